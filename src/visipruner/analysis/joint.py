"""Settings run for real: as a whole, made more cautious until that is harmless, and on other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visipruner.analysis.boundaries import Evidence, Metric, filter_choice, token_layers
from visipruner.analysis.probe import greedy_logprobs
from visipruner.analysis.result import Array, Bootstrap
from visipruner.analysis.stages import Attempt, P, Proposal, Stages, settings_from, stages_from
from visipruner.chat import chat_inputs, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import normalize, right_by_any
from visipruner.images import open_image
from visipruner.pruners.none import NoPruning
from visipruner.pruners.visipruner import VisiPruner

TRIES = 12
# Parts are found at the tolerance, and at 0.7 of it, 0.5, ... down to a sixteenth.
_STRICTER = 0.5**0.5
_TOLERANCES = 9
# A part that loses nothing by itself may still lose something beside others.
_LEAST = 0.01


def settle(trial: Trial, evidence: Evidence, tolerance: float | None = None, seed: int = 0) -> Iterator[Stages]:
    """Yields the stages with the pruner of every attempt so far; the last ones have the settings to use.

    Parts of a proposal (shallow stage, filter, exit) that lose the tolerance each can lose more together, so it runs as
    a whole. While that is harmful, other combinations of parts, found at this and stricter tolerances, are tried: the
    cheapest that should be harmless if parts add up as in the worst attempt, else the least harmful. After a harmless
    one, cheaper ones that should be harmless and are not as bold in every part as a harmful one. The cheapest harmless
    attempt stays, after `TRIES` the least harmful, with a note. `trial` has the samples of `evidence`.
    """
    found = stages_from(evidence, tolerance, seed)
    if found.pruner is None:
        yield found
        return
    stricter = [stages_from(evidence, found.tolerance * _STRICTER**step, seed) for step in range(1, _TOLERANCES)]
    left = proposals(evidence, [found, *stricter], seed)
    for attempts in search(left, trial, found.tolerance, seed):
        best = best_of(attempts, found.tolerance)
        yield replace(found, pruner=best.pruner, attempts=attempts, notes=_told(found, attempts, best))


def search(
    left: Sequence[Proposal[P]], trial: Trial, tolerance: float, seed: int = 0, growth: float = 0.0
) -> Iterator[list[Attempt[P]]]:
    """Runs proposals, which are sorted by cost, as `settle` says, and yields all attempts so far after each.

    `growth` is how many times the sum of its parts' losses a whole is expected to lose before anything was run; at 0
    the cheapest is tried first.
    """
    left, tried = list(left), list[Attempt[P]]()
    bootstrap = Bootstrap(trial.images, seed)
    while len(tried) < TRIES and (proposal := _next(left, tried, tolerance, growth)) is not None:
        left.remove(proposal)
        tried.append(Attempt(proposal, bootstrap.mean(trial.losses(proposal.pruner))))
        yield list(tried)


def best_of(tried: Sequence[Attempt[P]], tolerance: float) -> Attempt[P]:
    """The cheapest harmless attempt, else the least harmful."""
    harmless = [one for one in tried if one.loss.value <= tolerance]
    if harmless:
        return min(harmless, key=lambda one: one.proposal.token_layers)
    return min(tried, key=lambda one: one.loss.value)


def _next(
    left: Sequence[Proposal[P]], tried: Sequence[Attempt[P]], tolerance: float, growth: float
) -> Proposal[P] | None:
    """The next of `left`, which is sorted by cost; None where none is left, or none that would be better."""
    if not left:
        return None
    harmful = [one.proposal for one in tried if one.loss.value > tolerance]
    if len(harmful) == len(tried):
        growth = max((one.growth for one in tried), default=growth)
        hopeful = [proposal for proposal in left if growth * proposal.parts_loss <= tolerance]
        return hopeful[0] if hopeful else min(left, key=lambda proposal: proposal.parts_loss)
    best = best_of(tried, tolerance)
    for proposal in left:
        is_cheaper = proposal.token_layers < best.proposal.token_layers
        is_hopeful = best.growth * proposal.parts_loss <= tolerance
        if is_cheaper and is_hopeful and not any(proposal.is_as_bold_as(other) for other in harmful):
            return proposal
    return None


def _told(found: Stages, attempts: Sequence[Attempt[VisiPruner]], best: Attempt[VisiPruner]) -> list[str]:
    first = attempts[0]
    if first.loss.value <= found.tolerance:
        return list(found.notes)
    unit = " nats" if found.metric == "kl" else ""
    ending = "." if best.loss.value <= found.tolerance else f", still more than the tolerance of {found.tolerance:g}."
    return [
        *found.notes,
        f"Parts that are harmless alone lose {first.loss.value:.3f}{unit} together, so stricter ones were put together "
        f"({len(attempts)} combinations tried); the proposed settings lose {best.loss.value:.3f}{unit}{ending}",
    ]


def proposals(evidence: Evidence, found: Sequence[Stages], seed: int = 0) -> list[Proposal[VisiPruner]]:
    """All combinations of the parts of `found` (stages at several tolerances, the largest first), the cheapest first;
    of equal cost, the longest shallow stage.

    A filter comes after the shallow stage it was found with, so filters are also looked for from shorter ones on."""
    staged = [stages for stages in found if stages.filter is not None]
    if not staged:
        return []
    num_layers, tolerance = found[0].num_layers, found[0].tolerance
    shallow_ends = {stages.overall.sure_shallow_end for stages in staged}
    leaves = {stages.overall.sure_exit(num_layers) for stages in staged}
    choices = [stages.filter for stages in staged]
    choices += [
        filter_choice(evidence, shallow_end, stages.overall.sure_exit(num_layers), stages.tolerance, seed)
        for stages in staged
        for shallow_end in sorted(shallow_ends)
    ]
    # The first of those that differ only in thresholds, which a fixed layer and budget do not use.
    filters = {(choice.layer, choice.budget): choice for choice in reversed(choices) if choice is not None}
    whole = evidence.relative_norm.shape[-1]
    made = []
    for shallow_end, choice, leave in product(shallow_ends, filters.values(), leaves):
        if not shallow_end <= choice.layer < leave - 1:
            continue
        alone = (
            float(np.nanmean(evidence.below[:, shallow_end])),
            choice.loss.value,
            float(np.nanmean(evidence.discard[:, leave])),
        )
        made.append(
            Proposal(
                pruner=settings_from(shallow_end, choice, leave, num_layers),
                token_layers=token_layers(choice.layer, choice.budget, leave, whole),
                parts_loss=sum_of_parts(alone, tolerance),
                boldness=(shallow_end, -choice.layer, -choice.budget, -leave),
            )
        )
    return sorted(made, key=lambda one: (one.token_layers, -one.pruner.shallow_end))


def sum_of_parts(losses: Iterable[float], tolerance: float) -> float:
    """Losses of a proposal's parts by themselves, summed; see `Proposal`."""
    return max(sum(max(0.0, loss) for loss in losses), _LEAST * tolerance)


@dataclass(frozen=True)
class _Dense:
    """The dense model's answer: tokens `[t]`, log-probabilities `[t, vocabulary]`, whether it is right."""

    tokens: Tensor
    logprobs: Tensor
    is_right: bool


class Trial:
    """Samples on which pruners are run for real and compared with the dense model's answers, which are kept."""

    def __init__(
        self, model: Any, processor: Any, samples: Sequence[Sample], metric: Metric, max_new_tokens: int = 32
    ) -> None:
        self._model, self._processor, self._samples = model, processor, samples
        self.metric, self._max_new_tokens = metric, max_new_tokens
        self.images = [sample.image for sample in samples]
        self._dense: list[_Dense] = []

    def losses(self, pruner: Pruner) -> Array:
        """`[S]`: what pruning loses on every sample, in the metric's unit."""
        losses = []
        for number, sample in enumerate(self._samples):
            inputs = chat_inputs(self._model, self._processor, open_image(sample.image), sample.question)
            if number == len(self._dense):
                tokens, logprobs = greedy_logprobs(self._model, inputs, self._max_new_tokens)
                self._dense.append(_Dense(tokens, logprobs, self._is_right(sample, tokens)))
            with attach(self._model, pruner):
                losses.append(self._loss(sample, inputs, self._dense[number]))
        return np.array(losses)

    def _loss(self, sample: Sample, inputs: dict[str, Any], dense: _Dense) -> float:
        if self.metric == "accuracy":
            tokens, _ = greedy_logprobs(self._model, inputs, self._max_new_tokens)
            return float(dense.is_right) - float(self._is_right(sample, tokens))
        _, logprobs = greedy_logprobs(self._model, inputs, self._max_new_tokens, dense.tokens)
        if self.metric == "agreement":
            return float(not torch.equal(logprobs.argmax(-1), dense.tokens))
        return max(0.0, float((dense.logprobs.exp() * (dense.logprobs - logprobs)).sum(-1).mean()))

    def _is_right(self, sample: Sample, tokens: Tensor) -> bool:
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return bool(right_by_any(text, sample.answers))


def check(
    model: Any,
    processor: Any,
    pruners: Mapping[str, Pruner],
    samples: Sequence[Sample],
    max_new_tokens: int = 32,
) -> Iterator[dict[str, Any]]:
    """Yields one row a method, the dense model first: accuracy and agreement with dense, with 95 % intervals over
    images (None where an answer is not known), and `flops_cut`, the mean share of the prompt's multiply-adds not
    done."""
    images = [sample.image for sample in samples]
    bootstrap = Bootstrap(images)
    dense: list[str] = []
    for name, pruner in {"dense": NoPruning(), **pruners}.items():
        texts, cuts = [], []
        for sample in samples:
            inputs = chat_inputs(model, processor, open_image(sample.image), sample.question)
            with attach(model, pruner) as handle:
                texts.append(greedy_reply(model, processor.tokenizer, inputs, max_new_tokens).text)
                cuts.append(handle.trace.flops_cut(0))
        dense = dense or texts
        same = [float(normalize(a) == normalize(b)) for a, b in zip(texts, dense, strict=True)]
        accuracy = None
        if all(sample.answers for sample in samples):
            right = [right_by_any(text, sample.answers) for text, sample in zip(texts, samples, strict=True)]
            accuracy = bootstrap.mean(np.array(right)).to_dict()
        agreement = bootstrap.mean(np.array(same)).to_dict()
        yield {
            "name": name,
            "samples": len(samples),
            "images": len(set(images)),
            "settings": pruner.settings(),
            "accuracy": accuracy,
            "agreement": agreement,
            "flops_cut": float(np.mean(cuts)),
        }
