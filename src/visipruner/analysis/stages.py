"""Where shallow ends, where fusion happens, where vision can leave: read off the sweeps, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from visipruner.analysis.intervals import Bootstrap, Interval
from visipruner.analysis.results import Array
from visipruner.errors import ConfigError
from visipruner.pruners.visipruner import Stage, VisiPruner

Metric = Literal["accuracy", "agreement", "kl"]
TOLERANCES: dict[Metric, float] = {"accuracy": 0.02, "agreement": 0.05, "kl": 0.05}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What stages are read off, S samples, L layers; losses are against the dense model and may be NaN.

    Attributes:
        below: `[S, L + 1]`, loss without text -> visual edges in layers 0 .. k-1.
        discard: `[S, L + 1]`, loss with visual rows gone from layer k on.
        window: `[S, W]`, loss without these edges in layers k .. k + window_size - 1.
        window_size: layers in a window.
        kept: `[S, budgets, layers]`, loss with only `budgets` most influential tokens left after `layers`.
        budgets, layers: labels of `kept`.
        distance: `[S, L]`, largest 1 - cos(o, o - c_j) of any visual token (the paper's test).
        relative_norm: `[S, L, n_v]`, ||c_j|| / ||o||.
        images: per sample, which image; types: per sample, the kind of question.
        metric: what a loss is: right answers lost, dense answers changed (both shares), or KL in nats.
    """

    below: Array
    discard: Array
    window: Array
    window_size: int
    kept: Array
    budgets: Sequence[int]
    layers: Sequence[int]
    distance: Array
    relative_norm: Array
    images: Sequence[Any]
    types: Sequence[str]
    metric: Metric = "kl"


@dataclass(frozen=True)
class Fusion:
    """Neighbouring layers whose windows the answers need; `loss` is that of the worst window."""

    first_layer: int
    last_layer: int
    loss: Interval


@dataclass(frozen=True)
class Boundaries:
    """Stage boundaries of one kind of questions (or all).

    Attributes:
        samples: how many. shallow_end: text need not see the image in layers below it; None where not even layer 0
            can be spared. exit_layer: visual rows can leave before it; None where the last layer still needs them.
        fusion: layers in between that are needed.
        needs_image: False where nothing is lost without any text -> visual edge: then no stage can be told.
    """

    samples: int
    shallow_end: Interval | None
    exit_layer: Interval | None
    fusion: list[Fusion]
    needs_image: bool


@dataclass(frozen=True)
class FilterChoice:
    """Where to filter, and how many tokens to keep.

    Attributes:
        layer: the filter layer; budget: tokens that go on; loss: against dense, of this step alone.
        threshold: the `filter_threshold` that fires at this layer (give or take one) most often; hits: how often.
        token_threshold: relative length ||c_j|| / ||o|| that keeps `budget` tokens in the median sample.
    """

    layer: int
    budget: int
    loss: Interval
    threshold: float
    hits: float
    token_threshold: float


@dataclass(frozen=True)
class Stages:
    """What the data say about a model's stages.

    Attributes:
        overall, by_type: boundaries for all samples and per kind of question.
        filter: the cheapest choice within the tolerance, None where there is none.
        paper_filter_layers, paper_exit_layers: per sample, where the paper's own tests fire; L where they do not.
        pruner: settings for `VisiPruner`, the cautious end of every interval; None where the data support none.
        notes: in words, also what was not found.
    """

    num_layers: int
    metric: Metric
    tolerance: float
    overall: Boundaries
    by_type: dict[str, Boundaries]
    filter: FilterChoice | None
    paper_filter_layers: list[int]
    paper_exit_layers: list[int]
    pruner: VisiPruner | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "num_layers": self.num_layers,
            "metric": self.metric,
            "tolerance": self.tolerance,
            "overall": _boundaries_dict(self.overall),
            "by_type": {name: _boundaries_dict(found) for name, found in self.by_type.items()},
            "filter": None if self.filter is None else {**vars(self.filter), "loss": self.filter.loss.to_dict()},
            "paper_filter_layers": self.paper_filter_layers,
            "paper_exit_layers": self.paper_exit_layers,
            "pruner": None if self.pruner is None else self.pruner.settings(),
            "notes": self.notes,
        }


def stages_from(evidence: Evidence, tolerance: float | None = None, seed: int = 0) -> Stages:
    """Reads the stages off the evidence.

    A loss within `tolerance` counts as none. `shallow_end` is the largest k such that no smaller one loses more;
    `exit_layer` the smallest k such that no larger one does. Both come with the interval that 95 % of bootstrap
    resamples (of images) give; nothing is assumed about how many places of fusion there are.

    Raises ConfigError for a tolerance below 0 or without samples.
    """
    tolerance = TOLERANCES[evidence.metric] if tolerance is None else tolerance
    if tolerance < 0 or len(evidence.below) == 0:
        raise ConfigError("Stages need at least one sample and a tolerance of 0 or more.")
    num_layers = evidence.below.shape[1] - 1
    overall = _boundaries(evidence, np.arange(len(evidence.below)), tolerance, seed)
    by_type = {}
    for name in sorted(set(evidence.types)):
        members = np.flatnonzero(np.array(evidence.types) == name)
        by_type[name] = _boundaries(evidence, members, tolerance, seed)
    choice = _filter_choice(evidence, overall, tolerance, seed, num_layers)
    shallow_end = int(overall.shallow_end.low) if overall.shallow_end else 0
    filters = [_first(row > 0.005, shallow_end + 1) for row in evidence.distance]
    exits = [_paper_exit(row, layer) for row, layer in zip(evidence.distance, filters, strict=True)]
    pruner = _pruner(overall, choice, num_layers)
    notes = _notes(evidence, overall, choice, exits, tolerance, num_layers)
    return Stages(num_layers, evidence.metric, tolerance, overall, by_type, choice, filters, exits, pruner, notes)


def _boundaries(evidence: Evidence, members: Array, tolerance: float, seed: int) -> Boundaries:
    layers = evidence.below.shape[1] - 1
    bootstrap = Bootstrap([evidence.images[i] for i in members], seed)

    def last_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        return float(harmful[0] - 1) if len(harmful) else float(layers)

    def first_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        return float(harmful[-1] + 1) if len(harmful) else 0.0

    shallow = bootstrap.interval(last_harmless, evidence.below[members])
    leave = bootstrap.interval(first_harmless, evidence.discard[members])
    needs_image = bool(bootstrap.curve(evidence.discard[members])["mean"][0] > tolerance)
    fusion = _fusion(evidence, members, bootstrap, tolerance)
    return Boundaries(
        samples=len(members),
        shallow_end=shallow if needs_image and shallow.value > 0 else None,
        exit_layer=leave if needs_image and leave.value < layers else None,
        fusion=fusion if needs_image else [],
        needs_image=needs_image,
    )


def _fusion(evidence: Evidence, members: Array, bootstrap: Bootstrap, tolerance: float) -> list[Fusion]:
    """Runs of overlapping windows that lose more than the tolerance, surely more than nothing."""
    curve = bootstrap.curve(evidence.window[members])
    needed = (curve["mean"] > tolerance) & (curve["low"] > 0)
    found: list[Fusion] = []
    start: int | None = None
    for k in range(len(needed) + 1):
        if k < len(needed) and needed[k]:
            start = k if start is None else start
        elif start is not None:
            worst = start + int(np.argmax(curve["mean"][start:k]))
            loss = Interval(*(float(curve[name][worst]) for name in ("mean", "low", "high")))
            # Layers that every needed window shares say best where it happens; a long run is given whole.
            first, last = (k - 1, start + evidence.window_size - 1)
            if last < first:
                first, last = start, k - 1 + evidence.window_size - 1
            found.append(Fusion(first, last, loss))
            start = None
    return found


def _filter_choice(
    evidence: Evidence, overall: Boundaries, tolerance: float, seed: int, num_layers: int
) -> FilterChoice | None:
    """The choice with the fewest visual token-layers whose loss stays within the tolerance from its layer on."""
    if not overall.needs_image or evidence.kept.size == 0:
        return None
    bootstrap = Bootstrap(evidence.images, seed)
    shallow_end = int(overall.shallow_end.low) if overall.shallow_end else 0
    leave = int(overall.exit_layer.high) if overall.exit_layer else num_layers
    whole = evidence.relative_norm.shape[-1]
    best: tuple[float, int, int] | None = None
    for b, budget in enumerate(evidence.budgets):
        curve = bootstrap.curve(evidence.kept[:, b])
        for place, layer in enumerate(evidence.layers):
            # A later layer that loses more would make an early harmless one an accident.
            harmless = bool((curve["mean"][place:] <= tolerance).all())
            if harmless and shallow_end <= layer < leave - 1:
                cost = (layer + 1) * whole + (leave - layer - 1) * budget
                if best is None or cost < best[0]:
                    best = (cost, b, place)
    if best is None:
        return None
    _, b, place = best
    layer, budget = evidence.layers[place], evidence.budgets[b]
    loss = bootstrap.interval(lambda curve: float(curve[0]), evidence.kept[:, b, place : place + 1])
    threshold, hits = _filter_threshold(evidence.distance, layer, shallow_end)
    ranked = -np.sort(-evidence.relative_norm[:, layer], axis=-1)
    cut = float(np.nanmedian(ranked[:, min(budget, ranked.shape[-1]) - 1]))
    return FilterChoice(layer, budget, loss, threshold, hits, cut)


def _filter_threshold(distance: Array, layer: int, shallow_end: int) -> tuple[float, float]:
    """The cosine threshold that fires at `layer`, give or take one, in the most samples."""
    best = (0.995, -1.0)
    for candidate in np.unique(distance[:, layer].clip(min=1e-6)):
        threshold = candidate * (1 - 1e-6)
        fired = np.array([_first(row > threshold, shallow_end + 1) for row in distance])
        hits = float((np.abs(fired - layer) <= 1).mean())
        if hits > best[1]:
            best = (float(1 - threshold), hits)
    return best


def _first(fires: Array, start: int) -> int:
    """The first place from `start` on, or the length."""
    later = np.flatnonzero(fires[start:])
    return int(later[0]) + start if len(later) else len(fires)


def _paper_exit(distance: Array, filter_layer: int) -> int:
    """The first layer without vision by the paper's two consecutive votes, over all tokens; L where they fail."""
    quiet = distance < 0.001
    for layer in range(filter_layer + 2, len(distance)):
        if quiet[layer] and quiet[layer - 1]:
            return layer + 1
    return len(distance)


def _pruner(overall: Boundaries, choice: FilterChoice | None, num_layers: int) -> VisiPruner | None:
    if choice is None:
        return None
    shallow_end = int(overall.shallow_end.low) if overall.shallow_end else 0
    stages: tuple[Stage, ...] = ("middle",) if shallow_end == 0 else ("shallow", "middle")
    leave = int(overall.exit_layer.high) if overall.exit_layer else num_layers
    has_exit = choice.layer + 1 < leave < num_layers
    return VisiPruner(
        stages=(*stages, "deep") if has_exit else stages,
        shallow_end=shallow_end,
        filter_layer=choice.layer,
        filter_threshold=choice.threshold,
        token_threshold=choice.token_threshold,
        relative=True,
        keep_tokens=choice.budget,
        exit_layer=leave if has_exit else None,
    )


def _notes(
    evidence: Evidence,
    overall: Boundaries,
    choice: FilterChoice | None,
    exits: list[int],
    tolerance: float,
    num_layers: int,
) -> list[str]:
    if not overall.needs_image:
        return ["Without the image nothing more than the tolerance is lost: these samples show no stages."]
    notes = []
    if overall.shallow_end is None:
        notes.append("No shallow stage: without text -> visual attention in layer 0 more than the tolerance is lost.")
    if overall.exit_layer is None:
        notes.append("No deep stage: visual tokens are needed up to the last layer.")
    if not overall.fusion:
        notes.append(
            f"No single window of {evidence.window_size} layers is needed: what it would take is taken elsewhere."
        )
    elif len(overall.fusion) > 1:
        places = " and ".join(f"{part.first_layer}-{part.last_layer}" for part in overall.fusion)
        notes.append(f"Fusion happens at {len(overall.fusion)} places, not one: layers {places}.")
    if choice is None:
        notes.append("No budget that was tried stays within the tolerance before the exit: no filter layer proposed.")
    elif choice.hits < 0.8:
        notes.append(
            f"No threshold finds filter layer {choice.layer} (the best does in {choice.hits:.0%} of samples), so the "
            "layer is fixed in the proposed settings."
        )
    if overall.exit_layer is not None and float(np.median(exits)) < overall.exit_layer.value:
        notes.append(
            f"The paper's exit vote would pass before layer {float(np.median(exits)):.0f} (median), vision is needed "
            f"until layer {overall.exit_layer.value:.0f}: the exit is fixed in the proposed settings."
        )
    return notes


def _boundaries_dict(found: Boundaries) -> dict[str, Any]:
    return {
        "samples": found.samples,
        "needs_image": found.needs_image,
        "shallow_end": None if found.shallow_end is None else found.shallow_end.to_dict(),
        "exit_layer": None if found.exit_layer is None else found.exit_layer.to_dict(),
        "fusion": [{**vars(part), "loss": part.loss.to_dict()} for part in found.fusion],
    }
