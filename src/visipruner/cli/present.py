"""What a person sees: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from visipruner.cli.results import Result
from visipruner.words import spans

_MOST_STEPS = 5


def clean(text: str) -> Text:
    """Model output as text: no markup, no control characters that would steer the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def percent(fraction: float) -> str:
    """`0.539` as `53.9 %`."""
    return f"{100 * fraction:.1f} %"


def _tokens(result: Result) -> str:
    """`256 -> 64 (before the language model) -> 12 (trigger layer 14) -> 0 (exit layer 20)`."""
    steps = [str(result.visual_tokens), *(_cut(result, *cut) for cut in result.cuts)]
    if len(steps) > _MOST_STEPS:
        steps = [*steps[:2], "...", *steps[-2:]]
    notes = ["no trigger layer"] if result.trigger_layer is None and not result.cuts else []
    if result.exit_layer is None:
        notes.append("no exit layer")
    if result.frozen_layers:
        notes.append(f"frozen in layers {spans(result.frozen_layers)}")
    return ", ".join([" -> ".join(steps), *notes])


def _cut(result: Result, layer: int, count: int) -> str:
    if layer == result.exit_layer:
        return f"0 (exit layer {layer})"
    if layer == 0:
        return f"{count} (before the language model)"
    word = "trigger" if result.trigger_layer == layer - 1 else "after"
    return f"{count} ({word} layer {layer - 1})"


def _seconds(pruned: float, dense: float | None) -> str:
    if dense is None:
        return f"{pruned:.2f}"
    return f"{pruned:.2f}, dense {dense:.2f}: {dense / pruned:.2f}x as fast"


def show_result(console: Console, result: Result) -> None:
    """One block: the question, then what came of it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("answer", Text.assemble(clean(result.answer or "(empty)"), style="bold"))
    if result.dense is not None:
        note = Text("  same", "green") if result.same_answer else Text("  differs", "yellow")
        table.add_row("dense answer", clean(result.dense.text or "(empty)") + note)
    table.add_row("visual tokens", _tokens(result))
    table.add_row("FLOPs cut", percent(result.flops_cut))
    table.add_row("visual attention cut", percent(result.visual_attention_cut))
    dense = result.dense
    table.add_row("seconds", _seconds(result.seconds, dense.seconds if dense else None))
    table.add_row("to first token", _seconds(result.first_token_seconds, dense.first_token_seconds if dense else None))
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
        console.print(
            f"{same} of {len(compared)} answers agree with the dense model; all together {faster:.2f}x as fast"
        )


def show_methods(methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Every method with its settings below it."""
    console = Console(highlight=False)
    console.print(Text("Methods (--method NAME) and their settings (--set KEY=VALUE) with defaults", "cyan"))
    for name, method in methods.items():
        console.print(Text.assemble((f"  {name}", "bold"), f"  {method['description']}"))
        table = Table.grid(padding=(0, 2))
        for key, setting in method["settings"].items():
            table.add_row(f"      {key}={_setting(setting)}", Text(setting["takes"], "dim"))
        console.print(table)


def _setting(setting: Mapping[str, Any]) -> str:
    """A default as one would type it after `--set key=`."""
    if "default" not in setting:
        return "..."
    default = setting["default"]
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def show_families(families: Mapping[str, str]) -> None:
    """Model types, grouped by family."""
    console = Console(highlight=False)
    console.print(Text("\nModel families and their types (model_type in config.json)", "cyan"))
    for family in dict.fromkeys(families.values()):
        types = ", ".join(kind for kind, its_family in families.items() if its_family == family)
        console.print(Text.assemble((f"  {family}", "bold"), f"  {types}"))


def show_models(names: Sequence[str]) -> None:
    """Models that installed packages bring."""
    console = Console(highlight=False)
    console.print(Text("\nModels of installed packages (--model)", "cyan"))
    console.print(Text(f"  {', '.join(names) or 'none'}"))
