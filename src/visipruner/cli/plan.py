"""`visipruner plan`: an analysis in, layers and savings out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visipruner.analysis.report.words import some
from visipruner.cli.errors import CliError
from visipruner.files import write_json
from visipruner.words import spans

_NAMED = {"7b": "LLAVA_1_5_7B", "13b": "LLAVA_1_5_13B"}


def execute(
    analysis: Path, shapes: list[str], visual: int | None, text: int | None, json_file: Path | None, as_json: bool
) -> None:
    """Prints a table per shape. Raises CliError where the analysis or a shape cannot be read."""
    from visipruner.training.planning import as_rows, choices, suggestions

    source = analysis / "analysis.json" if analysis.is_dir() else analysis
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
        for one in found:
            own = replace(one.scaled(shape.num_layers, rows))
            table = as_rows(choices(shape, rows, words, one))
            result["shapes"].append(
                {
                    "shape": name,
                    "sizes": shape.to_dict(),
                    "visual_rows": rows,
                    "text_rows": words,
                    "suggestion": asdict(own),
                    "choices": table,
                }
            )
    if json_file is not None:
        write_json(json_file, result)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(Console(highlight=False), result)


def _evidence(document: dict[str, Any]) -> dict[str, Any]:
    stages = document["stages"]
    return {
        "samples": stages["overall"]["samples"],
        "metric": stages["metric"],
        "tolerance": stages["tolerance"],
        "shallow_end": stages["overall"]["shallow_end"],
        "exit_layer": stages["overall"]["exit_layer"],
        "filter": stages.get("filter"),
        "notes": stages.get("notes", []),
    }


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
    console.print(f"  (a) text need not see the image below layer  {_told(evidence['shallow_end'])}")
    console.print(f"  (c) vision can leave before layer            {_told(evidence['exit_layer'])}")
    chosen = evidence["filter"]
    if chosen is None:
        console.print("  (b) no budget of tokens was small enough in its loss at any layer")
    else:
        loss = chosen["loss"]
        console.print(
            f"  (b) {some(chosen['budget'])} tokens after layer {chosen['layer']}, loss "
            f"{loss['value']:.3f} ({loss['low']:.3f}-{loss['high']:.3f})"
        )
    for one in result["suggestions"]:
        if one["frozen_layers"]:
            console.print(f"  (f) {spans(one['frozen_layers'])} need not work on the image ({one['name']})")
    for note in evidence["notes"]:
        console.print(f"  [dim]{note}[/dim]")
    console.print(
        "  [dim]Measured without training: for (a) text's view of the image was cut while visual rows still passed the "
        "layers, which rows that come in late do not; for (f) a few layers in a row were frozen at a time, and losses "
        "were added up. Other shapes take the same relative depth and share of tokens: "
        "an assumption.[/dim]"
    )
    for part in result["shapes"]:
        console.print(_table(part))


def _told(interval: dict[str, float] | None) -> str:
    return (
        "no evidence" if interval is None else f"{interval['value']:.0f} ({interval['low']:.0f}-{interval['high']:.0f})"
    )


def _table(part: dict[str, Any]) -> Table:
    own = part["suggestion"]
    settings = f"k = {own['inject_layer']}, e = {own['exit_layer']}"
    if own["keep_tokens"] is not None:
        settings += f", n = {own['keep_tokens']} after layer {own['filter_layer']}"
    if own["frozen_layers"]:
        settings += f", frozen {spans(own['frozen_layers'])}"
    rows = f"{part['visual_rows']} visual, {part['text_rows']} text rows"
    table = Table(title=f"{part['shape']}, {own['name']}: {settings} ({rows})", title_justify="left")
    for name in ("guidelines", "layers with vision", "prefill TFLOPs", "step TFLOPs", "LoRA step", "saved", "KV MB"):
        table.add_column(name, justify="left" if name == "guidelines" else "right")
    for row in part["choices"]:
        table.add_row(
            row["guidelines"],
            str(row["layers_with_vision"]) + (f", {len(row['frozen_layers'])} frozen" if row["frozen_layers"] else ""),
            _figures(row["prefill_flops"] / 1e12),
            _figures(row["train_flops_full"] / 1e12),
            _figures(row["train_flops_frozen"] / 1e12),
            f"{row['flops_cut']:.1%}",
            _figures(row["kv_bytes"] / 1e6),
        )
    return table


def _figures(value: float) -> str:
    """Three figures that count, written out."""
    return f"{value:.3g}" if value < 999.5 else f"{float(f'{value:.3g}'):,.0f}"
