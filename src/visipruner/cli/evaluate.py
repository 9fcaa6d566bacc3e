"""`visipruner eval`: its options, and the table of what was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from visipruner.cli.console import Status, output, print_json, show_settings, show_table
from visipruner.cli.errors import CliError
from visipruner.cli.options import RULE, AsJson, ModelOptions, Seed, command, flag, given, option

EXAMPLES = """
visipruner eval --method visipruner --method fastv --samples 100 --out results/

visipruner eval --method all --match flops --cut 0.5 --samples 100 --out results/

visipruner eval --method 'divprune:keep_tokens=64+visipruner' --data pairs.jsonl --model ~/models/llava-1.5-7b-hf

visipruner eval --method fastv --data playground/data/eval/pope --model ~/models/llava-1.5-7b-hf --out results/
"""


class Axis(StrEnum):
    """What budgets can be matched by."""

    TOKENS = "tokens"
    FLOPS = "flops"
    ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(ModelOptions):
    method: list[str] | None = option(
        None,
        "SPEC",
        f"A method; + joins two; 'all' is every one that runs on the model. Repeatable. {RULE}",
        shown="visipruner",
    )
    fixed: list[str] | None = option(
        None,
        "[LABEL=]SPEC",
        "As --method, with its settings as they are whatever --match says, and its own name in the table. Repeatable.",
    )
    config: list[Path] | None = option(None, "FILE", "A saved pruner.json (or its folder), used as it is. Repeatable.")
    data: Path | None = option(
        None,
        "PATH",
        "A JSONL file (image, question, answer or answers, type), the folder of a benchmark as LLaVA's evaluation "
        "keeps it, a question file in it, or easy-vqa.",
        shown="what a packaged model brings",
    )
    benchmark: str | None = option(
        None,
        "NAME",
        "Read --data as this benchmark; visipruner list has their names.",
        shown="recognised by its files",
    )
    samples: int | None = option(None, "N", "How many, spread over images.", min=1, shown="all")
    match: Axis | None = option(None, None, "Give all methods the same budget; see --cut.", shown="no")
    cut: list[float] | None = option(
        None, "X", "Share to cut of what --match names, above 0 and below 1 (0.5 is half). Repeatable."
    )
    share_images: bool = flag(
        "--share-images",
        "Questions about one image share the work on it: the same answers in less time. Seconds and FLOPs are then "
        "those of what was left to do.",
    )
    batch_size: int = option(
        1,
        "N",
        "Samples answered as one batch: the same answers, and each has an equal share of the seconds. Methods that "
        "read the question or change the picture answer one by one all the same.",
        min=1,
    )
    keep_sets: bool = flag("--keep-sets", "Also write which visual tokens each layer had to samples.jsonl.")
    out: Path | None = option(
        None, "DIR", "Save results.json, table.md, chart.png, ranking.png, samples.jsonl; an interrupted run goes on."
    )
    seed: Seed = 0
    as_json: AsJson = False


@command(EvalOptions, EXAMPLES)
def evaluate(options: EvalOptions) -> None:
    """Compare methods on the same samples: accuracy with paired intervals, what was cut, seconds against dense."""
    from visipruner.evaluation import compare
    from visipruner.evaluation.rows import as_tables

    compared = compare(
        options.model,
        options.method or [],
        fixed=_fixed(options),
        **given(options, "data", "benchmark", "samples", "seed", "match", "max_new_tokens", "out", cuts="cut"),
        **given(options, "share_images", "keep_sets", "batch_size"),
        load=options.loading(),
        progress=Status(),
    )
    if compared is None:  # another process shows what all have found
        return
    if options.as_json:
        print_json(compared.document)
        return
    console = output()
    for table in as_tables(compared.rows):
        show_table(console, table)
        console.print()
    show_settings(console, compared.document["methods"])
    if options.out is not None:
        console.print(f"Saved to {options.out}")


def _fixed(options: EvalOptions) -> dict[str, str | Path]:
    """By name in the table. Raises CliError where two would have one name."""
    configs = ((str(path), path) for path in options.config or [])
    pairs: list[tuple[str, str | Path]] = [*map(_named, options.fixed or []), *configs]
    named: dict[str, str | Path] = {}
    for label, spec in pairs:
        if named.setdefault(label, spec) != spec:
            raise CliError(f"2 settings have the name {label!r} in the table; give each a name: --fixed LABEL=SPEC.")
    return named


def _named(spec: str) -> tuple[str, str]:
    """`label=method:key=value` as label and method; without a label the method is its own."""
    label, equals, method = spec.partition("=")
    if equals and not {":", "+"} & set(label):
        return label.strip(), method.strip()
    return spec, spec
