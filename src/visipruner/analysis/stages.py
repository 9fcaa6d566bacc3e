"""Where shallow ends, where fusion happens, where vision can leave: read off the sweeps, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from visipruner.analysis.boundaries import (
    TOLERANCES,
    Boundaries,
    Evidence,
    FilterChoice,
    Metric,
    boundaries,
    filter_choice,
    first_layer,
    layers_between,
    paper_exit,
)
from visipruner.analysis.result import Interval, Told, few_images, plain
from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.pruners.visipruner import Stage, VisiPruner
from visipruner.words import spans

P = TypeVar("P", bound=Pruner)


@dataclass(frozen=True)
class Proposal(Generic[P]):
    """Settings to try.

    Attributes:
        token_layers: visual tokens, summed over the layers they pass; of the largest image, where they differ.
        parts_loss: what its parts (shallow stage, filter and exit) lose by themselves, summed; a hundredth of the
            tolerance at least.
        boldness: how much each part takes away; larger is bolder.
    """

    pruner: P
    token_layers: int
    parts_loss: float
    boldness: tuple[float, ...]

    def is_as_bold_as(self, other: Proposal[P]) -> bool:
        """Whether no part of it takes less away than the other's."""
        return all(mine >= theirs for mine, theirs in zip(self.boldness, other.boldness, strict=True))


@dataclass(frozen=True)
class Attempt(Told, Generic[P]):
    """A proposal that was run as a whole, and what its parts lose together."""

    proposal: Proposal[P]
    loss: Interval

    @property
    def pruner(self) -> P:
        return self.proposal.pruner

    @property
    def growth(self) -> float:
        """What the parts lose together, in what they lose by themselves."""
        return self.loss.value / self.proposal.parts_loss

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": plain(self.pruner),
            "parts_loss": plain(self.proposal.parts_loss),
            "loss": self.loss.to_dict(),
        }


@dataclass(frozen=True)
class Stages(Told):
    """What the data say about a model's stages.

    Attributes:
        overall, by_type: boundaries for all samples and per kind of question.
        filter: the cheapest choice within the tolerance, None where there is none.
        paper_filter_layers, paper_exit_layers: per sample, where the paper's own tests fire; L where they do not.
        pruner: settings for `VisiPruner`, the cautious end of every interval; None where the data support none.
        attempts: settings that were run as a whole (see `joint.settle`); empty where nothing was run.
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
    attempts: list[Attempt[VisiPruner]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stages_from(evidence: Evidence, tolerance: float | None = None, seed: int = 0) -> Stages:
    """Reads the stages off the evidence; a loss within `tolerance` counts as none.

    `shallow_end` is the largest k such that no smaller one loses more, `exit_layer` the smallest k such that no larger
    one does, both with the interval that 95 % of bootstrap resamples (of images) give. There may be any number of
    places of fusion. Raises ConfigError for a tolerance below 0 or without samples.
    """
    tolerance = TOLERANCES[evidence.metric] if tolerance is None else tolerance
    if tolerance < 0 or len(evidence.below) == 0:
        raise ConfigError("Stages need at least one sample and a tolerance of 0 or more.")
    num_layers = evidence.below.shape[1] - 1
    overall = boundaries(evidence, np.arange(len(evidence.below)), tolerance, seed)
    by_type = {
        name: boundaries(evidence, np.flatnonzero(np.array(evidence.types) == name), tolerance, seed)
        for name in sorted(set(evidence.types))
    }
    shallow_end, leave = overall.sure_shallow_end, overall.sure_exit(num_layers)
    choice = filter_choice(evidence, shallow_end, leave, tolerance, seed) if overall.needs_image else None
    pruner = None if choice is None else settings_from(shallow_end, choice, leave, num_layers)
    filters = [first_layer(row > 0.005, shallow_end + 1) for row in evidence.distance]
    exits = [paper_exit(row, layer) for row, layer in zip(evidence.distance, filters, strict=True)]
    notes = _notes(evidence, overall, choice, exits, tolerance)
    return Stages(num_layers, evidence.metric, tolerance, overall, by_type, choice, filters, exits, pruner, notes=notes)


def settings_from(shallow_end: int, choice: FilterChoice, leave: int, num_layers: int) -> VisiPruner:
    """Settings of the three stages; those that would do nothing are left out."""
    stages: tuple[Stage, ...] = ("middle",) if shallow_end == 0 else ("shallow", "middle")
    has_exit = choice.layer + 1 < leave < num_layers
    return VisiPruner(
        stages=(*stages, "deep") if has_exit else stages,
        shallow_end=shallow_end,
        filter_layer=choice.layer,
        filter_threshold=VisiPruner.filter_threshold if choice.threshold is None else choice.threshold,
        token_threshold=choice.token_threshold,
        relative=True,
        keep_tokens=choice.budget if isinstance(choice.budget, int) else None,
        keep_ratio=choice.budget if isinstance(choice.budget, float) else None,
        exit_layer=leave if has_exit else None,
    )


def _notes(
    evidence: Evidence, overall: Boundaries, choice: FilterChoice | None, exits: list[int], tolerance: float
) -> list[str]:
    notes = few_images(len(set(evidence.images)), "analysed")
    if not overall.needs_image:
        why = "Without the image nothing more than the tolerance is lost"
        if np.nanmean(evidence.discard[:, 0]) > tolerance:
            why = (
                "Another picture makes no more difference than the tolerance: answers need the image's attention "
                "weight but not its content"
            )
        return [*notes, f"{why}: these samples show no stages."]
    if overall.shallow_end is None:
        notes.append("No shallow stage: without text -> visual attention in layer 0 more than the tolerance is lost.")
    if overall.exit_layer is None:
        notes.append("No deep stage: visual tokens are needed up to the last layer.")
    notes += _fusion_notes(evidence, overall)
    if choice is None:
        notes.append(_without_filter(evidence, overall))
    elif choice.hits is not None and choice.hits < 0.8:
        notes.append(
            f"No threshold finds filter layer {choice.layer} (the best does in {choice.hits:.0%} of samples): a filter "
            "there has to be fixed."
        )
    vote = float(np.median(exits))
    if overall.exit_layer is not None and vote < overall.exit_layer.value:
        notes.append(
            f"The paper's exit vote would pass before layer {vote:.0f} (median), vision is needed until layer "
            f"{overall.exit_layer.value:.0f}: an exit has to be fixed."
        )
    return notes


def _without_filter(evidence: Evidence, overall: Boundaries) -> str:
    num_layers = evidence.below.shape[1] - 1
    shallow_end, leave = overall.sure_shallow_end, overall.sure_exit(num_layers)
    why = "No budget that was tried stays within the tolerance before the exit"
    if not layers_between(evidence, shallow_end, leave):
        end = f"the exit at layer {leave}" if leave < num_layers else "the last layer"
        why = f"No layer that was tried lies between the shallow stage below layer {shallow_end} and {end}"
    return f"{why}: no filter layer proposed."


def _fusion_notes(evidence: Evidence, overall: Boundaries) -> list[str]:
    notes = []
    if not overall.fusion:
        notes.append(
            f"No single window of {evidence.window_size} layers is needed: what it would take is taken elsewhere."
        )
    elif len(overall.fusion) > 1:
        places = " and ".join(part.layers for part in overall.fusion)
        notes.append(f"Fusion happens at {len(overall.fusion)} places, not one: layers {places}.")
    if overall.weight_only:
        layers = f"layer{'s' if len(overall.weight_only) > 1 else ''} {spans(overall.weight_only, ', ')}"
        notes.append(
            f"In {layers} answers need the image's attention weight but not its "
            "content: another picture does as well, so that is no fusion."
        )
    return notes


def idle_layers(
    analysis: Mapping[str, Any], layers: range, end: Literal["mean", "low", "high"] = "mean"
) -> tuple[int, ...]:
    """Of `layers` the blocks that lose least, for as long as their losses add up to no more than the analysis allows;
    none without such a measurement, or where stages are not read off KL. A proposal to try: several lose more than the
    sum.

    Args:
        analysis: what `analysis.json` holds. layers: where blocks must lie as a whole.
        end: of a block's interval, what is taken for its loss.
    """
    blocks, stages = analysis.get("freeze_blocks"), analysis["stages"]
    if blocks is None or stages["metric"] != "kl":
        return ()
    size = int(analysis["settings"]["plan"]["block"])
    losses = blocks["kl"][end]
    if None in losses:  # one image has no interval
        losses = blocks["kl"]["mean"]
    chosen: set[int] = set()
    spent = 0.0
    for loss, start in sorted(zip(losses, blocks["layer"], strict=True)):
        block = range(start, start + size)
        if start < layers.start or block.stop > layers.stop or not chosen.isdisjoint(block):
            continue
        spent += max(0.0, loss)
        if spent > stages["tolerance"]:
            break
        chosen.update(block)
    return tuple(sorted(chosen))


def full_layers(pruner: VisiPruner) -> range:
    """Layers that have every visual token: from the end of the shallow stage to the filter layer, if that is fixed."""
    first = pruner.shallow_end if "shallow" in pruner.stages else 0
    return range(first, first if pruner.filter_layer is None else pruner.filter_layer + 1)
