"""Data of the explorer: a dozen samples with their image, attention and influence per token, and words per layer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visipruner.analysis.boundaries import tokens_of
from visipruner.analysis.report.words import budget, budget_of
from visipruner.errors import ConfigError
from visipruner.images import open_image

Record = dict[str, Any]
MOST_SAMPLES = 12
MOST_BYTES = 3_000_000
_LONG_SIDE = 400


def explorer_data(document: dict[str, Any], records: Sequence[Record]) -> dict[str, Any] | None:
    """What the page's script needs, JSON values; None where no part was measured that it could show.

    At most `MOST_SAMPLES` samples over all kinds of questions, fewer where they would need more than `MOST_BYTES`.
    """
    if not records or not {"attention", "influence", "lens"} & records[0]["parts"].keys():
        return None
    proposed = (document.get("stages") or {}).get("pruner")
    samples: list[dict[str, Any]] = []
    size = 0
    for record in choose(records, MOST_SAMPLES):
        sample = _sample(record, proposed)
        size += len(str(sample))
        if size > MOST_BYTES:
            break
        samples.append(sample)
    if not samples:
        return None
    kept = f"{budget(budget_of(proposed))} after layer {proposed['filter_layer']}" if proposed else ""
    return {"layers": document["model"]["layers"], "kept": kept, "samples": samples}


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """Takes kinds of questions in turns, and within a kind right and wrong answers and new images first."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record["type"], []).append(record)
    chosen: list[Record] = []
    while len(chosen) < min(count, len(records)):
        for kind in sorted(by_kind):
            group = by_kind[kind]
            if group and len(chosen) < count:
                seen = {(other["type"], other["is_right"]) for other in chosen}
                images = {other["image"] for other in chosen}
                best = min(group, key=lambda record: ((kind, record["is_right"]) in seen, record["image"] in images))
                group.remove(best)
                chosen.append(best)
    return chosen


def _sample(record: Record, proposed: dict[str, Any] | None) -> dict[str, Any]:
    parts = record["parts"]
    image, missing = _image(Path(record["image"]))
    found: dict[str, Any] = {
        "question": record["question"],
        "answer": record["answer"],
        "answers": record["answers"],
        "type": record["type"],
        "right": record["is_right"],
        "file": Path(record["image"]).name,
        "image": image,
        "missing": missing,
        "tokens": record["visual_tokens"],
        "grid": _grid(record),
    }
    if "attention" in parts:
        arrays = parts["attention"]["attention"]["arrays"]
        found["attention"] = _map(arrays["map"]["values"], arrays["top"]["values"])
        found["mass"] = arrays["mass"]["values"]
    if "influence" in parts:
        arrays = parts["influence"]["influence"]["arrays"]
        found["influence"] = _map(arrays["norm"]["values"], arrays["top"]["values"])
        if proposed:
            norms = np.array(arrays["norm"]["values"][proposed["filter_layer"]], dtype=float)
            kept = tokens_of(budget_of(proposed), norms.size)
            found["kept"] = sorted(np.argsort(-norms, kind="stable")[:kept].tolist())
    if "lens" in parts:
        lens = parts["lens"]
        found["lens"] = {
            "words": lens["words"],
            "sure": [layer[0] for layer in lens["lens"]["arrays"]["probability"]["values"]],
            "answer": lens["lens"]["arrays"]["answer"]["values"],
            "heads": lens["heads"],
            "leads": lens["leading_layer"],
        }
    return found


def _grid(record: Record) -> list[int] | None:
    """Rows and columns of the one grid that all visual tokens form, if they do."""
    grids = record["grids"]
    if len(grids) == 1 and grids[0] and int(np.prod(grids[0])) == record["visual_tokens"]:
        return list(grids[0])
    return None


def _map(values: list[list[float]], top: list[list[int]]) -> dict[str, Any]:
    """One byte a token and layer, 255 for the layer's largest; `most` holds these largest values."""
    numbers = np.nan_to_num(np.array(values, dtype=float))
    most = numbers.max(axis=1)
    scaled = np.round(255 * np.clip(numbers, 0, None) / np.where(most > 0, most, 1)[:, None])
    data = base64.b64encode(scaled.astype(np.uint8).tobytes()).decode("ascii")
    return {"data": data, "most": [float(f"{value:.4g}") for value in most], "top": top}


def _image(path: Path) -> tuple[str | None, str]:
    """A small JPEG as a data address, or None and why."""
    try:
        picture = open_image(path)
    except (ConfigError, OSError):
        return None, f"The image {path.name} can no longer be read, so only its tokens are drawn."
    picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), ""
