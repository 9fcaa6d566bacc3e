"""Numbers, losses and notes as readers of the report see them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from visipruner.analysis.boundaries import Budget
from visipruner.analysis.result import ENOUGH, few_images

Document = dict[str, Any]

TEACHER_FORCED = "An answer counts as the same only token for token, read along the dense answer."
MEASURE_NAMES = {"accuracy": "accuracy", "agreement": "same answer as dense", "kl": "KL divergence"}
MEASURED = {
    "accuracy": "",
    "agreement": "Share of samples whose answer stays that of the dense model, right or wrong.",
    "kl": "Mean KL divergence of the answer tokens' distributions from the dense model's, in nats; linear below 0.01. "
    "It sees changes that do not (yet) change an answer.",
}


def measure_of(document: Mapping[str, Any]) -> str:
    """Accuracy where right answers are known, else agreement with the dense model's answers."""
    return "agreement" if document["dense"]["accuracy"] is None else "accuracy"


def dense_level(document: Mapping[str, Any], measure: str = "accuracy") -> float:
    """What the dense model reaches in a measure, a share; all where right answers are not known."""
    accuracy = document["dense"]["accuracy"]
    return 1.0 if accuracy is None or measure != "accuracy" else float(accuracy["mean"][0])


def evidence_of(document: Mapping[str, Any]) -> str:
    """The measure that the stages were read off; without stages `measure_of`."""
    stages = document.get("stages")
    return str(stages["metric"]) if stages else measure_of(document)


def loss(value: float, metric: str) -> str:
    """A loss or a tolerance in the metric's unit."""
    number, unit = (value, "nats") if metric == "kl" else (100 * value, "points")
    return f"{number:.0f} {unit}" if abs(number) >= 10 else f"{number:.2g} {unit}"


def lost(found: Mapping[str, float], metric: str) -> str:
    """A loss with its interval, where there is one."""
    value, low, high = (found[name] for name in ("value", "low", "high"))
    told = f"{loss(value, metric)} lost"
    return told if low is None else f"{told}, 95 %: {loss(low, metric)} to {loss(high, metric)}"


def as_json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2)


def kind(name: str) -> str:
    """A kind of questions, which data need not name."""
    return name or "(no kind given)"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def interval(found: Mapping[str, Any] | None, scale: float = 100, digits: int = 1, unit: str = " %") -> str:
    """`57.4 % (52.1–62.9)`; without brackets where there is no interval, as of one image."""
    if found is None or found["value"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['value'] * scale:.{digits}f}{unit}"
    value, low, high = (found[name] * scale for name in ("value", "low", "high"))
    return f"{value:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})"


def budget(found: Budget) -> str:
    """`144`, or `12.5 %` where it is a share of the tokens."""
    return f"{100 * found:g} %" if isinstance(found, float) else f"{found}"


def budget_of(proposed: Mapping[str, Any]) -> Budget:
    """How many tokens the filter of proposed settings lets go on, or which share."""
    found: Budget = proposed.get("keep_ratio") or proposed["keep_tokens"]
    return found


def some(found: Budget, whole: int | None = None) -> str:
    """What goes before "tokens": `144`, `144 of 576` where that is given, or `12.5 % of the`."""
    if isinstance(found, float):
        return f"{budget(found)} of the"
    return f"{found}" if whole is None else f"{found} of {whole}"


def point(curve: Mapping[str, Any], place: int) -> dict[str, float] | None:
    """One point of a curve as a value with its interval; None where it is not known."""
    found = {"value": curve["mean"][place], "low": curve["low"][place], "high": curve["high"][place]}
    return None if found["value"] is None else found


def curve_at(curve: Mapping[str, Any], *place: int) -> dict[str, Any]:
    """One curve of several in an array: those of a score at a budget."""
    found = dict(curve)
    for name in ("mean", "low", "high"):
        for number in place:
            found[name] = found[name][number]
    return found


def layers(found: Mapping[str, Any] | None, without: str = "–") -> str:
    """`12 (10–14)`; `without` where there is no boundary."""
    return without if found is None else interval(found, scale=1, digits=0, unit="")


def span(first: int, last: int) -> str:
    """`layer 15`, or `layers 13–15`."""
    return f"layers {first}–{last}" if last > first else f"layer {first}"


def count_of(layers: int) -> str:
    """`1 layer`, or `3 layers`."""
    return f"{layers} layer{'s' if layers != 1 else ''}"


def fusion_in(fusion: Sequence[Mapping[str, Any]]) -> str:
    """`layer 15`, or `layers 8–9, 23`; empty where there is no fusion."""
    places = places_of(fusion)
    return f"layer{'' if places.isdigit() else 's'} {places}" if places else ""


def places_of(fusion: Sequence[Mapping[str, Any]]) -> str:
    """`8–9, 23`; empty where there is no fusion."""
    spans = [(part["first_layer"], part["last_layer"]) for part in fusion]
    return ", ".join(f"{first}–{last}" if last > first else f"{first}" for first, last in spans)


def basis(document: Mapping[str, Any]) -> str:
    """How many samples a figure rests on, and what its bands are."""
    count, images = document["dense"]["samples"], document["dense"]["images"]
    if images == 1:
        return f"{count} samples, one image: no intervals."
    bands = "bands and whiskers" if images >= ENOUGH else "too few for bands; whiskers"
    return f"{count} samples, {images} images; {bands}: 95 % bootstrap over images."


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min" if value < 36000 else f"{value / 3600:.1f} h"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers: the stages' notes, and where few images were analysed or checked."""
    stages, rows = document.get("stages"), document.get("check")
    told: list[str] = list(stages["notes"]) if stages else few_images(document["dense"]["images"], "analysed")
    told += document.get("second_look", {}).get("notes", [])
    if rows and "images" in rows[0]:  # an earlier version's check, which a later run keeps, does not say
        told += few_images(rows[0]["images"], "used for the check")
    return told
