"""A schedule for the method `second-look`: looks before the places of fusion, as bold as stays harmless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement, pairwise
from typing import Literal

import numpy as np

from visipruner.analysis.boundaries import Evidence, tokens_of
from visipruner.analysis.joint import Trial, best_of, search, sum_of_parts
from visipruner.analysis.result import Array, Bootstrap, Told
from visipruner.analysis.stages import Attempt, Proposal, Stages
from visipruner.pruners.second_look import SecondLook

SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
SCORES: tuple[Literal["influence", "prior"], ...] = ("influence", "prior")  # tried after "attention", which is measured
_ROWS: dict[str, Literal["question", "last"]] = {"text_mean": "question", "last_row": "last"}
_CHANCE = "random"


@dataclass(frozen=True, eq=False)
class Scored:
    """What it loses to choose once and for good, by one score in one layer.

    Attributes:
        loss: by score `[budgets, layers]`, mean over samples. shares: the budgets, of the image. layers: labels.
    """

    loss: Mapping[str, Array]
    shares: Sequence[float]
    layers: Sequence[int]

    def at(self, score: str, layer: int, share: float | None = None) -> float:
        """The loss in a layer, mean over budgets; or of one share, where budgets in between lie on a line over the
        share's logarithm, from nothing lost where all stay."""
        losses = self.loss[score][:, list(self.layers).index(layer)]
        if share is None:
            return float(losses.mean())
        known = sorted([*zip(self.shares, losses.tolist(), strict=True), (1.0, 0.0)])
        return float(np.interp(np.log2(share), np.log2([of for of, _ in known]), [lost for _, lost in known]))


@dataclass(frozen=True)
class Looks(Told):
    """What the data say about a second look.

    Attributes:
        covered: layer before the first place of fusion, in which rows choose no better than chance, so that a grid
            covers the picture after it; None where they choose better. layers: others before places of fusion, in which
            they do. rows: the question's or the last, whichever choose better in these.
        pruner: settings, None where the data support none. attempts: settings that were run as a whole.
        notes: in words.
    """

    covered: int | None
    layers: list[int]
    rows: Literal["question", "last"]
    pruner: SecondLook | None = None
    attempts: list[Attempt[SecondLook]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def looks_from(scored: Scored, stages: Stages) -> Looks:
    """Where to look: in the last layer before each place of fusion, of those in which scores were compared."""
    first = _ends(stages)[0]
    before = [
        [layer for layer in scored.layers if first <= layer < place.first_layer] for place in stages.overall.fusion
    ]
    places = sorted({layers[-1] for layers in before if layers})
    if not places:
        return Looks(None, [], "question", notes=["No second look: scores were compared before no place of fusion."])
    score = min(_ROWS, key=lambda name: sum(scored.at(name, layer) for layer in places))
    layers = [layer for layer in places if scored.at(score, layer) < scored.at(_CHANCE, layer)]
    if not layers:
        return Looks(
            None, [], _ROWS[score], notes=["No second look: before fusion nothing chooses better than chance."]
        )
    if places[0] in layers:
        return Looks(None, layers, _ROWS[score])
    note = f"Second look: in layer {places[0]} attention chooses no better than chance, so an even grid is tried there."
    return Looks(places[0], layers, _ROWS[score], notes=[note])


def settle_looks(trial: Trial, evidence: Evidence, scored: Scored, stages: Stages, seed: int = 0) -> Iterator[Looks]:
    """Yields the looks with the pruner of every attempt so far; the last ones have the settings to use.

    Shares for the grid and every look are searched for as `settle` does, with the settled shallow stage and exit; then
    the other scores are tried, too. `trial` has the samples that `evidence` was measured on.
    """
    looks = looks_from(scored, stages)
    yield looks
    if not looks.layers:
        return
    for tried in search(proposals(evidence, scored, looks, stages), trial, stages.tolerance, seed, growth=1.0):
        best = best_of(tried, stages.tolerance)
        looks = replace(looks, pruner=best.pruner, attempts=tried)
        yield looks
    bootstrap = Bootstrap(trial.images, seed)
    for score in SCORES if best.pruner.layers else ():
        proposal = replace(best.proposal, pruner=replace(best.pruner, score=score))
        attempt = Attempt(proposal, bootstrap.mean(trial.losses(proposal.pruner)))
        best = min(best, attempt, key=lambda one: one.loss.value)
        looks = replace(looks, pruner=best.pruner, attempts=[*looks.attempts, attempt])
        yield looks
    if best.loss.value > stages.tolerance:
        note = f"Second look: the proposed schedule loses {best.loss.value:.3f}, more than the tolerance."
        yield replace(looks, notes=[*looks.notes, note])


def proposals(evidence: Evidence, scored: Scored, looks: Looks, stages: Stages) -> list[Proposal[SecondLook]]:
    """All schedules of `SHARES`, the cheapest first. A grid's loss by itself is taken to be that of chance."""
    shallow_end, leave = _ends(stages)
    score = next(name for name, rows in _ROWS.items() if rows == looks.rows)
    where = [(layer, score) for layer in looks.layers]
    if looks.covered is not None:
        where = [(looks.covered, _CHANCE), *where]
    ends = float(np.nanmean(evidence.below[:, shallow_end])), float(np.nanmean(evidence.discard[:, leave]))
    whole = evidence.relative_norm.shape[-1]
    starts = [0, *(layer + 1 for layer, _ in where), leave]
    made = []
    for shares in combinations_with_replacement(SHARES, len(where)):
        alone = [scored.at(name, layer, share) for (layer, name), share in zip(where, shares, strict=True)]
        present = [tokens_of(share, whole) for share in (1.0, *shares)]
        made.append(
            Proposal(
                pruner=_settings(looks, shares, shallow_end, leave if leave < stages.num_layers else None),
                token_layers=sum(n * (end - start) for n, (start, end) in zip(present, pairwise(starts), strict=True)),
                parts_loss=sum_of_parts([*ends, *alone], stages.tolerance),
                boldness=tuple(-share for share in shares),
            )
        )
    return sorted(made, key=lambda one: one.token_layers)


def _settings(looks: Looks, shares: Sequence[float], shallow_end: int, leave: int | None) -> SecondLook:
    """`shares` are those of the grid, if there is one, and of the looks; what would drop nothing is left out."""
    cover = 1.0 if looks.covered is None else shares[0]
    ratios = shares[-len(looks.layers) :]
    stay = zip(looks.layers, ratios, (cover, *ratios), strict=False)
    kept = [(layer, ratio) for layer, ratio, before in stay if ratio < before]
    return SecondLook(
        layers=tuple(layer for layer, _ in kept),
        keep_ratios=tuple(ratio for _, ratio in kept),
        score="attention",
        rows=looks.rows,
        cover_layer=looks.covered + 1 if looks.covered is not None and cover < 1 else None,
        cover_ratio=cover,
        exit_layer=leave,
        shallow_end=shallow_end,
    )


def _ends(stages: Stages) -> tuple[int, int]:
    """Shallow end and exit, of the settled pruner; without one no shallow stage, and the cautious exit."""
    pruner = stages.pruner
    if pruner is None:
        return 0, stages.overall.sure_exit(stages.num_layers)
    shallow_end = pruner.shallow_end if "shallow" in pruner.stages else 0
    return shallow_end, stages.num_layers if pruner.exit_layer is None else pruner.exit_layer
