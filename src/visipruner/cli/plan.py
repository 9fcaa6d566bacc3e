"""`visipruner plan`: an analysis in, layers and savings out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from visipruner.cli.console import output, print_json, show_table
from visipruner.cli.errors import CliError
from visipruner.cli.options import AsJson, command, option
from visipruner.files import write_json
from visipruner.tables import Table
from visipruner.words import figures, spans

EXAMPLES = """
visipruner plan --analysis analysis/

visipruner plan --analysis analysis/ --shape 7b --shape ~/models/my-llava --visual 576 --text 100 --save plan.json
"""
_NAMED = {"7b": "LLAVA_1_5_7B", "13b": "LLAVA_1_5_13B"}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    analysis: Path = option(MISSING, "DIR", "What `visipruner analyze` wrote.")
    shape: list[str] | None = option(
        None,
        "SHAPE",
        "7b, 13b (LLaVA-1.5), or a folder or file with a transformers config. Repeatable.",
        shown="7b and 13b",
    )
    visual: int | None = option(None, "N", "Visual rows of a prompt.", min=1, shown="the shape's")
    text: int | None = option(None, "N", "Text rows of a prompt.", min=1, shown="the paper's mean, 74")
    save: Path | None = option(None, "FILE", "Write everything as JSON here.")
    as_json: AsJson = False


@command(PlanOptions, EXAMPLES)
def plan(options: PlanOptions) -> None:
    """Plan a model that needs no pruning: which layers its visual rows should be in, and what each choice saves."""
    result = planned(options.analysis, options.shape or [], options.visual, options.text)
    if options.save is not None:
        write_json(options.save, result)
    if options.as_json:
        print_json(result)
    else:
        _show(output(), result)


def planned(analysis: Path, shapes: list[str], visual: int | None, text: int | None) -> dict[str, Any]:
    """Evidence, suggestions, and a table of choices a shape. Raises CliError where the analysis or a shape cannot be
    read."""
    from visipruner.training.planning import as_rows, choices, suggestions

    source = analysis / "analysis.json" if analysis.is_dir() else analysis
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CliError(f"{source} is no analysis; make one with: visipruner analyze --out {analysis}") from error
    found = suggestions(document)
    result: dict[str, Any] = {
        "analysis": {key: document["model"][key] for key in ("name", "layers", "visual_tokens")},
        "evidence": _evidence(document),
        "suggestions": [asdict(one) for one in found],
        "shapes": [],
    }
    for name in shapes or ["7b", "13b"]:
        shape, rows, words = _shape(name, document)
        rows, words = visual or rows, text or words
        sizes = {"shape": name, "sizes": shape.to_dict(), "visual_rows": rows, "text_rows": words}
        for one in found:
            own, table = asdict(one.scaled(shape.num_layers, rows)), as_rows(choices(shape, rows, words, one))
            result["shapes"].append({**sizes, "suggestion": own, "choices": table})
    return result


def _evidence(document: dict[str, Any]) -> dict[str, Any]:
    stages = document["stages"]
    found = {"filter": None, "notes": [], **stages, **stages["overall"]}
    names = ("samples", "metric", "tolerance", "shallow_end", "exit_layer", "filter", "notes")
    return {name: found[name] for name in names}


def _shape(name: str, document: dict[str, Any]) -> tuple[Any, int, int]:
    """(shape, visual rows, text rows) of a named model, or of a folder or file with a transformers config."""
    from visipruner import accounting
    from visipruner.models.shape import ModelShape

    if name.lower() in _NAMED:
        known = getattr(accounting, _NAMED[name.lower()])
        return known.shape, known.visual_tokens, known.text_tokens
    if not Path(name).exists():
        raise CliError(f"There is no shape {name!r}; give 7b, 13b, or a folder or file with a transformers config.")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name)
    visual = getattr(config, "image_seq_length", None) or document["model"]["visual_tokens"]
    return ModelShape.from_config(config), int(visual), 74


def _show(console: Console, result: dict[str, Any]) -> None:
    evidence, model = result["evidence"], result["analysis"]
    console.print(
        f"[bold]Evidence[/bold]: {model['name']}, {model['layers']} layers, {model['visual_tokens']} visual tokens, "
        f"{evidence['samples']} samples; a loss up to {evidence['tolerance']} {evidence['metric']} counts as none"
    )
    for letter, what in sorted(_letters(evidence, result["suggestions"])):
        console.print(f"  ({letter}) {what}")
    for note in evidence["notes"]:
        console.print(f"  [dim]{note}[/dim]")
    console.print(
        "  [dim]Measured without training: for (a) text's view of the image was cut while visual rows still passed the "
        "layers, which rows that come in late do not; for (f) a few layers in a row were frozen at a time, and losses "
        "were added up. Other shapes take the same relative depth and share of tokens: "
        "an assumption.[/dim]"
    )
    for part in result["shapes"]:
        console.print(f"\n{_title(part)}")
        show_table(console, Table.of(_COLUMNS, part["choices"]))


def _letters(evidence: dict[str, Any], suggestions: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What was found for each guideline, by its letter."""
    from visipruner.analysis.report.words import interval, layers, some

    chosen, budget = evidence["filter"], "no budget of tokens was small enough in its loss at any layer"
    if chosen is not None:
        loss = interval(chosen["loss"], 1, 3, "")
        budget = f"{some(chosen['budget'])} tokens after layer {chosen['layer']}, loss {loss}"
    frozen = [
        ("f", f"{spans(one['frozen_layers'])} need not work on the image ({one['name']})")
        for one in suggestions
        if one["frozen_layers"]
    ]
    return [
        ("a", f"text need not see the image below layer {layers(evidence['shallow_end'], 'no evidence')}"),
        ("b", budget),
        ("c", f"vision can leave before layer {layers(evidence['exit_layer'], 'no evidence')}"),
        *frozen,
    ]


def _title(part: dict[str, Any]) -> str:
    own = part["suggestion"]
    settings = f"k = {own['inject_layer']}, e = {own['exit_layer']}"
    if own["keep_tokens"] is not None:
        settings += f", n = {own['keep_tokens']} after layer {own['filter_layer']}"
    if own["frozen_layers"]:
        settings += f", frozen {spans(own['frozen_layers'])}"
    rows = f"{part['visual_rows']} visual, {part['text_rows']} text rows"
    return f"{part['shape']}, {own['name']}: {settings} ({rows})"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "guidelines": lambda row: str(row["guidelines"]),
    "layers with vision": lambda row: str(row["layers_with_vision"]),
    "frozen": lambda row: str(len(row["frozen_layers"]) or "-"),
    "prefill TFLOPs": lambda row: figures(row["prefill_flops"] / 1e12),
    "step TFLOPs": lambda row: figures(row["train_flops_full"] / 1e12),
    "LoRA step": lambda row: figures(row["train_flops_frozen"] / 1e12),
    "saved": lambda row: f"{row['flops_cut']:.1%}",
    "KV MB": lambda row: figures(row["kv_bytes"] / 1e6),
}
