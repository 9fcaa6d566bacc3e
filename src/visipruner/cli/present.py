"""What a person sees: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from visipruner.cli.results import Result


def clean(text: str) -> Text:
    """Model output as text: no markup, no control characters that would steer the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def percent(fraction: float) -> str:
    """`0.539` as `53.9 %`."""
    return f"{100 * fraction:.1f} %"


def _layers(result: Result) -> str:
    if result.trigger_layer is None and result.exit_layer is None:
        return "nothing was pruned"
    cut = "never" if result.trigger_layer is None else f"after layer {result.trigger_layer}"
    gone = "never" if result.exit_layer is None else f"from layer {result.exit_layer} on"
    return f"cut {cut}, all gone {gone}"


def _seconds(result: Result) -> str:
    text = f"{result.seconds:.2f} (first token {result.first_token_seconds:.2f})"
    if result.dense is None:
        return text
    dense = f"dense {result.dense.seconds:.2f} (first token {result.dense.first_token_seconds:.2f})"
    return f"{text}, {dense}: {result.time_ratio:.2f}x (first token {result.first_token_ratio:.2f}x)"


def show_result(console: Console, result: Result) -> None:
    """One block: the question, then what came of it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("answer", Text.assemble(clean(result.answer or "(empty)"), style="bold"))
    if result.dense is not None:
        note = Text("  same", "green") if result.same_answer else Text("  differs", "yellow")
        table.add_row("dense answer", clean(result.dense.text or "(empty)") + note)
    table.add_row("visual tokens", f"{result.visual_tokens} -> {result.kept_tokens}; {_layers(result)}")
    cut, attention = percent(result.flops_cut), percent(result.visual_attention_cut)
    table.add_row("FLOPs cut", f"{cut}; visual attention cut {attention}")
    table.add_row("seconds", _seconds(result))
    if result.overlay:
        table.add_row("picture", result.overlay)
    console.print(Text.assemble((result.image, "cyan"), "  ", (result.question, "bold")))
    console.print(table)
    console.print()


def show_agreement(console: Console, results: list[Result]) -> None:
    """The last line of a comparison."""
    compared = [result for result in results if result.dense is not None]
    if len(compared) > 1:
        same = sum(bool(result.same_answer) for result in compared)
        faster = sum(r.dense.seconds for r in compared if r.dense) / sum(r.seconds for r in compared)
        console.print(f"{same} of {len(compared)} answers agree with the dense model; all answers {faster:.2f}x")


def show_names(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Two columns under a title."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, description in rows:
        table.add_row("  " + name, Text(description))
    console.print(Text(title, "cyan"))
    console.print(table)
