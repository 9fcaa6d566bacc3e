"""`visipruner run`: its options, and what a person sees of an answer and of what pruning did to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from visipruner.cli.console import Status, clean, output, print_json, shortened, show_settings
from visipruner.cli.errors import CliError
from visipruner.cli.options import RULE, AsJson, ModelOptions, argument, command, flag, option

if TYPE_CHECKING:
    from visipruner.asking import Answered

EXAMPLES = """
visipruner run photo.jpg -q "What animal is this?"

visipruner run a.jpg b.jpg -q "How many people?" -q "What color is the car?" --compare --out out/

visipruner run photo.jpg -q "What is this?" --method none

visipruner run photo.jpg -q "What is this?" --set keep_tokens=32 --json

visipruner run photo.jpg -q "What is this?" --model ~/models/llava-1.5-7b-hf --dtype bfloat16
"""


_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True, kw_only=True)
class RunOptions(ModelOptions):
    images: list[Path] = argument(MISSING, "IMAGE", "Image files. Every image is asked every question.")
    questions: list[str] = option(MISSING, "TEXT", "A question; may be given several times.", "--question", "-q")
    method: str | None = option(
        None,
        "SPEC",
        f"A pruning method (see: visipruner list); 'none' prunes nothing, first+second joins two. {RULE}",
        shown="visipruner",
    )
    setting: list[str] | None = option(
        None, "KEY=VALUE", "A setting of the bare --method that is to be another; may be repeated.", "--set"
    )
    config: Path | None = option(None, "FILE", "A saved pruner.json (or its folder) instead of --method and --set.")
    compare: bool = flag("--compare", "Also answer without pruning, in turns, and compare answers and times.")
    repeats: int = option(
        3, "N", "Timed answers of each kind under --compare, after one warm-up; medians count.", min=1
    )
    out: Path | None = option(None, "DIR", "Save results.json and one picture of the kept tokens per answer.")
    as_json: AsJson = False


@command(RunOptions, EXAMPLES)
def run(options: RunOptions) -> None:
    """Ask a multimodal model about images while its visual tokens are pruned.

    Shows the answer, how many visual tokens were kept and at which layer, and what that saved.
    """
    from visipruner.asking import ask

    console = output()

    def show(answer: Answered) -> None:
        if not options.as_json:
            show_answer(console, answer)

    method, settings = chosen(options.method, options.setting or [], options.config)
    asked = ask(
        options.model,
        options.images,
        options.questions,
        method,
        settings,
        repeats=options.repeats if options.compare else None,
        max_new_tokens=options.max_new_tokens,
        out=options.out,
        load=options.loading(),
        each=show,
        progress=Status(),
    )
    if options.as_json:
        print_json(asked.document)
        return
    show_agreement(console, asked.answers)
    method_used = asked.document["method"]
    show_settings(console, {method_used["name"]: {**method_used, "method": method_used["name"]}})
    if options.out is not None:
        console.print(f"Saved to {options.out}")


def parse_value(text: str) -> Any:
    """JSON where it is JSON; also True, False and None in any case, and `a,b,c` for a list; else the text itself."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        pass
    if text[:1] in {"[", "{", '"'}:
        shown = text if len(text) < 80 else f"{text[:80]}..."
        raise CliError(
            f'--set: {shown} starts like JSON but is not; quote it for your shell, as in \'key=["a", "b"]\'.'
        )
    if "," in text:
        return [parse_value(part) for part in text.split(",") if part.strip()]
    return text


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`["a=1", "b=x"]` as a dict. Raises CliError for a pair without `=` and for a key given twice."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier() or not value.strip():
            raise CliError(f"--set takes key=value, for instance --set keep_tokens=64, and not {pair!r}.")
        if key in settings:
            raise CliError(f"--set {key} is given twice; give it once.")
        settings[key] = parse_value(value)
    return settings


def chosen(method: str | None, pairs: list[str], config: Path | None) -> tuple[str | Path, dict[str, Any]]:
    """The method and the settings that are to be changed. Raises CliError."""
    from visipruner.specs import DEFAULT, is_bare

    settings = parse_settings(pairs)
    if config is not None:
        if method is not None or settings:
            raise CliError(
                "--config holds the method and all its settings; leave out --method and --set, or edit the file."
            )
        if not config.exists():
            raise CliError(f"There is no pruner file at {config}; check --config.")
        return config, {}
    if settings and method is not None and not is_bare(method):
        raise CliError("--set goes with a single --method; write settings as --method 'first:key=value+second'.")
    return DEFAULT if method is None else method, settings


def percent(fraction: float) -> str:
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
    compared = [answer for answer in answers if answer.dense is not None]
    if len(compared) > 1:
        same = sum(bool(answer.same_answer) for answer in compared)
        faster = sum(one.dense.seconds for one in compared if one.dense) / sum(one.seconds for one in compared)
        console.print(
            f"{same} of {len(compared)} answers agree with the dense model; all together {faster:.2f}x as fast"
        )
