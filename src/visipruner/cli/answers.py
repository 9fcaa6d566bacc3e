"""What a person sees of an answer and of what pruning did to it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from visipruner.asking import Answered
from visipruner.cli.console import clean, shortened


def percent(fraction: float) -> str:
    """`0.539` as `53.9 %`."""
    return f"{100 * fraction:.1f} %"


def _seconds(pruned: float, dense: float | None) -> str:
    if dense is None:
        return f"{pruned:.2f}"
    return f"{pruned:.2f}, dense {dense:.2f}: {dense / pruned:.2f}x as fast"


def show_answer(console: Console, answer: Answered) -> None:
    """One block: the question, then what came of it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("answer", Text.assemble(clean(answer.answer or "(empty)").plain, style="bold"))
    if answer.dense is not None:
        note = Text("  same", "green") if answer.same_answer else Text("  differs", "yellow")
        table.add_row("dense answer", clean(answer.dense.text or "(empty)") + note)
    table.add_row("visual tokens", answer.tokens_told())
    table.add_row("FLOPs cut", percent(answer.flops_cut))
    table.add_row("visual attention cut", percent(answer.visual_attention_cut))
    dense = answer.dense
    table.add_row("seconds", _seconds(answer.seconds, dense.seconds if dense else None))
    table.add_row("to first token", _seconds(answer.first_token_seconds, dense.first_token_seconds if dense else None))
    if answer.overlay:
        table.add_row("picture", answer.overlay)
    image, question = clean(answer.image).plain, clean(shortened(answer.question)).plain
    console.print(Text.assemble((image, "cyan"), "  ", (question, "bold")))
    console.print(table)
    console.print()


def show_agreement(console: Console, answers: Sequence[Answered]) -> None:
    """The last line of a comparison."""
    compared = [answer for answer in answers if answer.dense is not None]
    if len(compared) > 1:
        same = sum(bool(answer.same_answer) for answer in compared)
        faster = sum(one.dense.seconds for one in compared if one.dense) / sum(one.seconds for one in compared)
        console.print(
            f"{same} of {len(compared)} answers agree with the dense model; all together {faster:.2f}x as fast"
        )
