"""Numbers as readers see them, and which of accuracy and agreement an analysis can speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visipruner.analysis.evidence import Budget

TEACHER_FORCED = "An answer counts as the same only token for token, read along the dense answer."
MEASURE_NAMES = {"accuracy": "accuracy", "agreement": "same answer as dense", "kl": "KL divergence"}


def measure_of(document: Mapping[str, Any]) -> str:
    """Accuracy where right answers are known, else agreement with the dense model's answers."""
    return "agreement" if document["dense"]["accuracy"] is None else "accuracy"


def dense_level(document: Mapping[str, Any]) -> float:
    """What the dense model reaches in `measure_of`, a share."""
    accuracy = document["dense"]["accuracy"]
    return 1.0 if accuracy is None else float(accuracy["mean"][0])


def evidence_of(document: Mapping[str, Any]) -> str:
    """The measure that the stages were read off; without stages `measure_of`."""
    stages = document.get("stages")
    return str(stages["metric"]) if stages else measure_of(document)


def loss(value: float, metric: str) -> str:
    """A loss or a tolerance in the metric's unit."""
    number, unit = (value, "nats") if metric == "kl" else (100 * value, "points")
    return f"{number:.0f} {unit}" if abs(number) >= 10 else f"{number:.2g} {unit}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def interval(found: Mapping[str, float] | None, scale: float = 100, digits: int = 1, unit: str = " %") -> str:
    """`57.4 % (52.1–62.9)`."""
    if found is None or found["value"] is None:
        return "–"
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
    """One point of a curve as a value with its interval."""
    found = {"value": curve["mean"][place], "low": curve["low"][place], "high": curve["high"][place]}
    return None if any(value is None for value in found.values()) else found


def layers(found: Mapping[str, float] | None) -> str:
    """`12 (10–14)`."""
    return interval(found, scale=1, digits=0, unit="")


def places_of(fusion: Sequence[Mapping[str, Any]]) -> str:
    """`8–9, 23`; empty where there is no fusion."""
    spans = [(part["first_layer"], part["last_layer"]) for part in fusion]
    return ", ".join(f"{first}–{last}" if last > first else f"{first}" for first, last in spans)


def basis(document: Mapping[str, Any], samples: int | None = None) -> str:
    """How many samples a figure rests on, and what its bands are."""
    dense = document["dense"]
    count = dense["samples"] if samples is None else samples
    return f"{count} samples, {dense['images']} images; bands and whiskers: 95 % bootstrap over images."


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min" if value < 36000 else f"{value / 3600:.1f} h"
