"""What stages are read off: where losses begin and end over the layers; where to filter there, and what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visipruner.analysis.result import Array, Bootstrap, Interval, Told
from visipruner.words import runs, spans

# How many tokens go on: a number of them (int), or a share of the image's (float), where images differ in their tokens.
Budget = int | float
Metric = Literal["accuracy", "agreement", "kl"]
TOLERANCES: dict[Metric, float] = {"accuracy": 0.02, "agreement": 0.05, "kl": 0.05}


def tokens_of(budget: Budget, num_visual: int) -> int:
    """How many of `num_visual` tokens a budget is; of a share at least one."""
    return budget if isinstance(budget, int) else max(1, round(budget * num_visual))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What stages are read off, S samples, L layers; losses are against the dense model and may be NaN.

    Attributes:
        below: `[S, L + 1]`, loss without text -> visual edges in layers 0 .. k-1.
        discard: `[S, L + 1]`, loss with visual rows gone from layer k on.
        window: `[S, W]`, loss without these edges in layers k .. k + window_size - 1.
        swapped_window: `[S, W]`, loss with another picture's tokens seen in these layers instead.
        swapped: `[S]`, loss with another picture's tokens seen in all layers.
        window_size: layers in a window.
        kept: `[S, budgets, layers]`, loss with only `budgets` most influential tokens left after `layers`.
        budgets, layers: labels of `kept`; all budgets are of one kind.
        distance: `[S, L]`, largest 1 - cos(o, o - c_j) of any visual token (the paper's test).
        relative_norm: `[S, L, n_v]`, ||c_j|| / ||o||.
        images: per sample, which image; types: per sample, the kind of question.
        metric: what a loss is: right answers lost, dense answers changed (both shares), or KL in nats.
    """

    below: Array
    discard: Array
    window: Array
    swapped_window: Array
    swapped: Array
    window_size: int
    kept: Array
    budgets: Sequence[Budget]
    layers: Sequence[int]
    distance: Array
    relative_norm: Array
    images: Sequence[Any]
    types: Sequence[str]
    metric: Metric = "kl"


@dataclass(frozen=True)
class Fusion(Told):
    """Neighbouring layers whose windows the answers need; `loss` is that of the worst window."""

    first_layer: int
    last_layer: int
    loss: Interval

    @property
    def layers(self) -> str:
        """`15`, or `13-15`."""
        return spans(range(self.first_layer, self.last_layer + 1))


@dataclass(frozen=True)
class Boundaries(Told):
    """Stage boundaries of one kind of questions (or all).

    Attributes:
        samples: how many. needs_image: False where nothing is lost without any text -> visual edge, or with another
            picture in place of the image: then no stage can be told.
        shallow_end: text need not see the image in layers below it; None where not even layer 0 can be spared.
        exit_layer: visual rows can leave before it; None where the last layer still needs them.
        fusion: layers in between whose content is needed. weight_only: layers in between that answers need too, but
            not what the image says there: another picture does as well.
    """

    samples: int
    needs_image: bool
    shallow_end: Interval | None
    exit_layer: Interval | None
    fusion: list[Fusion]
    weight_only: list[int]

    @property
    def sure_shallow_end(self) -> int:
        """The cautious end of the shallow stage; 0 where there is none."""
        return int(self.shallow_end.ends[0]) if self.shallow_end else 0

    def sure_exit(self, num_layers: int) -> int:
        """The cautious exit: visual rows can leave before this layer; `num_layers` where they stay."""
        return int(self.exit_layer.ends[1]) if self.exit_layer else num_layers


def boundaries(evidence: Evidence, members: Array, tolerance: float, seed: int) -> Boundaries:
    """Boundaries of the samples `members` (their numbers); a loss within `tolerance` counts as none."""
    layers = evidence.below.shape[1] - 1
    bootstrap = Bootstrap([evidence.images[i] for i in members], seed)

    def last_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        # Nothing is cut at k = 0, but rounding may lose more there than a tiny tolerance.
        return float(max(0, harmful[0] - 1)) if len(harmful) else float(layers)

    def first_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        return float(harmful[-1] + 1) if len(harmful) else 0.0

    shallow = bootstrap.interval(last_harmless, evidence.below[members])
    leave = bootstrap.interval(first_harmless, evidence.discard[members])
    if min(float(np.nanmean(losses[members])) for losses in (evidence.discard[:, 0], evidence.swapped)) <= tolerance:
        return Boundaries(len(members), False, None, None, [], [])
    between = range(int(shallow.value), int(leave.value))
    curve, swapped = (bootstrap.curve(losses[members]) for losses in (evidence.window, evidence.swapped_window))
    needed = _is_lost(curve, tolerance)
    of_content = needed & _is_lost(swapped, tolerance)
    size = evidence.window_size
    weight_only = set(_own_layers(needed, size)) - set(_own_layers(of_content, size))
    return Boundaries(
        samples=len(members),
        needs_image=True,
        shallow_end=shallow if shallow.value > 0 else None,
        exit_layer=leave if leave.value < layers else None,
        fusion=fusion_places(curve, of_content, size, between),
        weight_only=sorted(weight_only.intersection(between)),
    )


def fusion_places(curve: dict[str, Array], needed: Array, size: int, between: range) -> list[Fusion]:
    """Neighbouring windows that are needed, as places in the layers `between` the boundaries.

    Args:
        curve: mean, low and high `[W]` of what the windows of `size` layers lose. needed: `[W]` bool.
    """
    found: list[Fusion] = []
    own = _own_layers(needed, size)
    for windows in runs(np.flatnonzero(needed).tolist()):
        covered = range(windows.start, windows.stop + size - 1)
        # Where layers can stand in for each other, none is needed in every window; those that all windows share are.
        layers = [layer for layer in covered if layer in own] or list(range(windows[-1], windows[0] + size))
        worst = windows[int(np.argmax(curve["mean"][windows.start : windows.stop]))]
        loss = Interval(*(float(curve[name][worst]) for name in ("mean", "low", "high")))
        places = runs([layer for layer in layers if layer in between])
        found += [Fusion(place[0], place[-1], loss) for place in places]
    return found


def _is_lost(curve: dict[str, Array], tolerance: float) -> Array:
    """`[W]` bool: more than the tolerance, surely more than nothing (of one image nothing more is known)."""
    return np.asarray((curve["mean"] > tolerance) & ~(curve["low"] <= 0))


def _own_layers(needed: Array, size: int) -> list[int]:
    """Layers that cannot be spared in any window that holds them: a window is wider than what it is needed for."""
    return [layer for layer in range(len(needed) + size - 1) if needed[max(0, layer - size + 1) : layer + 1].all()]


@dataclass(frozen=True)
class FilterChoice(Told):
    """Where to filter, and how many tokens to keep.

    Attributes:
        layer: the filter layer; budget: tokens that go on, or their share; loss: against dense, of this step alone.
        threshold: the `filter_threshold` that fires at this layer (give or take one) most often; hits: how often. None
            where `layer` is the first that is looked at after the shallow stage: any threshold fires there or later.
        token_threshold: relative length ||c_j|| / ||o|| that keeps `budget` in the median sample.
    """

    layer: int
    budget: Budget
    loss: Interval
    threshold: float | None
    hits: float | None
    token_threshold: float


def filter_choice(evidence: Evidence, shallow_end: int, leave: int, tolerance: float, seed: int) -> FilterChoice | None:
    """The choice with the fewest visual token-layers within the tolerance, of the `layers_between`; None without one.

    Evidence for that is the whole interval of its own loss, or the loss at its layer and at every later one.
    """
    if evidence.kept.size == 0:
        return None
    bootstrap = Bootstrap(evidence.images, seed)
    whole = evidence.relative_norm.shape[-1]
    between = layers_between(evidence, shallow_end, leave)
    harmless: list[tuple[float, int, int]] = []
    for b, budget in enumerate(evidence.budgets):
        curve = bootstrap.curve(evidence.kept[:, b])
        for place, layer in enumerate(evidence.layers):
            # Where a later layer loses more, an early mean that does not could be an accident.
            is_sure = curve["high"][place] <= tolerance or bool((curve["mean"][place:] <= tolerance).all())
            if is_sure and layer in between:
                harmless.append((token_layers(layer, budget, leave, whole), b, place))
    if not harmless:
        return None
    _, b, place = min(harmless)
    layer, budget = evidence.layers[place], evidence.budgets[b]
    loss = bootstrap.mean(evidence.kept[:, b, place])
    threshold, hits = None, None
    if layer > shallow_end + 1:
        threshold, hits = _filter_threshold(evidence.distance, layer, shallow_end)
    return FilterChoice(layer, budget, loss, threshold, hits, _token_threshold(evidence, layer, budget))


def token_layers(layer: int, budget: Budget, leave: int, whole: int) -> int:
    """Visual tokens summed over layers: `whole` up to `layer`, `budget` of them from there to before `leave`."""
    return (layer + 1) * whole + (leave - layer - 1) * tokens_of(budget, whole)


def layers_between(evidence: Evidence, shallow_end: int, leave: int) -> list[int]:
    """Layers that were tried, from layer `shallow_end` on and at least two before `leave`."""
    return [layer for layer in evidence.layers if shallow_end <= layer < leave - 1]


def _token_threshold(evidence: Evidence, layer: int, budget: Budget) -> float:
    """The relative length of the last token within the budget, in the median sample."""
    ranked = -np.sort(-evidence.relative_norm[:, layer], axis=-1)  # NaN, last, beyond a sample's own tokens
    counts = (~np.isnan(ranked)).sum(-1).tolist()
    last = [min(tokens_of(budget, count), ranked.shape[-1]) - 1 for count in counts]
    return float(np.nanmedian(ranked[np.arange(len(ranked)), last]))


def _filter_threshold(distance: Array, layer: int, shallow_end: int) -> tuple[float, float]:
    """The cosine threshold that fires at `layer`, give or take one, in the most samples."""
    best = (0.995, -1.0)
    for candidate in np.unique(distance[:, layer].clip(min=1e-6)):
        threshold = candidate * (1 - 1e-6)
        fired = np.array([first_layer(row > threshold, shallow_end + 1) for row in distance])
        hits = float((np.abs(fired - layer) <= 1).mean())
        if hits > best[1]:
            best = (float(1 - threshold), hits)
    return best


def paper_exit(distance: Array, filter_layer: int) -> int:
    """The first layer without vision by the paper's two consecutive votes, over all tokens; L where they fail."""
    quiet = distance < 0.001
    twice = np.append(False, quiet[1:] & quiet[:-1])
    return min(first_layer(twice, filter_layer + 2) + 1, len(distance))


def first_layer(fires: Array, start: int) -> int:
    """The first place from `start` on, or the length."""
    later = np.flatnonzero(fires[start:])
    return int(later[0]) + start if len(later) else len(fires)
