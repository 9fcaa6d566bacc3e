"""FitPrune: a recipe fitted offline says how many tokens leave after each layer, attention says which.

"Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models", AAAI 2025,
arXiv 2409.10197.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from visipruner.contract.budget import Scope, best, keeps_all, parts_of
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, DroppingPruner, InStates, PromptRun, Pruner
from visipruner.contract.settings import Fraction
from visipruner.errors import ConfigError

if TYPE_CHECKING:
    from visipruner.fitting import Trials


@dataclass(frozen=True, kw_only=True)
class FitPrune(DroppingPruner):
    """Score = cross_j * self_j: the attention that token j receives in a layer from the text rows after the image
    and from the visual rows present, each the mean over rows of the largest over heads, as in the released code.

    Attributes:
        remove: per layer, the fraction of the prompt's visual tokens that leaves after it; `fit` finds it. The paper's
            tables belong to LLaVA's models and are not repeated here.
        scope: whether those are fractions of all images together or of each (see `Budgeted`).
    """

    name: ClassVar[str] = "fitprune"
    about: ClassVar[About] = About(
        "FitPrune: a recipe fitted offline, attention from text and image",
        paper="Ye et al., AAAI 2025, arXiv 2409.10197",
        acts="after every layer",
        needs="all rows' attention, a fitted recipe",
    )

    in_states: ClassVar[InStates] = "next"

    remove: tuple[Fraction, ...]
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.remove) > 1 + 1e-6:
            raise ConfigError(
                f"remove holds one fraction per layer, and they sum to at most 1, not {sum(self.remove)}."
            )

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """An even recipe, as an example: half of the tokens are gone at the end. Fit one with `fit`."""
        return cls(remove=(0.5 / num_layers,) * num_layers)

    def check(self, num_layers: int) -> None:
        if len(self.remove) != num_layers:
            raise ConfigError(
                f"remove has {len(self.remove)} entries but the model has {num_layers} layers; fit a recipe with "
                "visipruner.pruners.fitprune.fit."
            )

    match_tolerance: ClassVar[float] = 0.05  # whole tokens in every layer, and a search in steps

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """A recipe fitted on `prompts`."""
        fitted = fit(cast(nn.Module, model), prompts, max(share, 0.02), tolerance=0.02)
        return replace(self, remove=fitted.remove)

    def start(self) -> PromptRun:
        return _FitPruneRun(self.remove, self.scope)


class _FitPruneRun(PromptRun):
    def __init__(self, remove: tuple[float, ...], scope: Scope) -> None:
        super().__init__()
        self._remove, self._scope = remove, scope
        self._first: list[int] | None = None

    def observes(self, layer: int) -> bool:
        return self._first is None or self._remove[layer] > 0

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        parts = parts_of(view, self._scope)
        self._first = self._first or [len(part) for part in parts]
        # What is gone is rounded in total, so that small fractions add up over layers.
        gone = sum(self._remove[: layer + 1])
        counts = [min(len(part), first - round(first * gone)) for part, first in zip(parts, self._first, strict=True)]
        if keeps_all(parts, counts):
            return None
        cross, own = received(view)
        return best(cross * own, parts, counts)


def received(view: LayerView) -> tuple[Tensor, Tensor]:
    """What each visual token receives from the text rows after the image and from the visual rows present, both
    `[n_v]`: of every row the largest over heads, mean over rows."""
    text = view.text_rows[view.text_rows > view.visual_rows[0]]
    sums = []
    for rows in (text, view.visual_rows):
        total = torch.zeros(view.visual.numel(), device=view.visual.device)
        for weights in view.attention_of(rows):
            total = total + weights[..., view.visual].amax(0).sum(0)
        sums.append(total / rows.numel())
    return sums[0], sums[1]


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    prompts: Iterable[Mapping[str, Any]],
    keep_ratio: float,
    visual_mask: Tensor | None = None,
    tolerance: float = 0.01,
) -> FitPrune:
    """The recipe that changes attention least for its budget: a binary search for alpha, as in the paper.

    For a given alpha every layer drops the tokens that are among the least received in both ways, text and visual,
    as long as each way keeps 1 - alpha of its mass in the plain model. The mass is a mean over rows, so what visual
    rows give is measured by those still present. The smallest alpha is taken (to `tolerance`) for which at most
    `keep_ratio` of the visual tokens remain on average over layers and examples; removing ends at the layer from which
    on the tokens left meet that anyway. The paper's budget is a number of FLOPs; tokens per layer are the same thing
    to first order and belong to no model.

    Args:
        prompts: keyword arguments of forward calls; some tens of examples. visual_mask: as in `attach`.

    Raises:
        ConfigError: no prompts, or a budget that even alpha = 1 does not meet.
    """
    from visipruner.fitting import Trials

    if not 0 <= keep_ratio <= 1:
        raise ConfigError(f"fit needs a keep_ratio in [0, 1], got {keep_ratio}.")
    trials = Trials(model, prompts, visual_mask)
    reference = plain_masses(trials)
    low, high = 0.0, 1.0
    removed = recipe(trials, high, reference)
    if kept_by(removed) > keep_ratio:
        raise ConfigError(
            f"Even alpha = 1 keeps {kept_by(removed):.2f} of the tokens per layer; ask for a larger keep_ratio."
        )
    while high - low > tolerance:
        middle = (low + high) / 2
        trial = recipe(trials, middle, reference)
        if kept_by(trial) <= keep_ratio:
            high, removed = middle, trial
        else:
            low = middle
    return FitPrune(remove=until_met(removed, keep_ratio))


def plain_masses(trials: Trials) -> list[_Mass]:
    """Per example and layer, what all visual tokens receive from text and from visual rows in the plain model."""
    dense = _Fitting(alpha=None, reference=[])
    trials.run(dense)
    return [run.mass for run in dense.runs]


def recipe(trials: Trials, alpha: float, reference: list[_Mass]) -> tuple[float, ...]:
    """What `alpha` removes after each layer, as a fraction of the prompt's visual tokens, mean over examples.

    `reference`: the `plain_masses` of the same trials.
    """
    fitting = _Fitting(alpha=alpha, reference=reference)
    trials.run(fitting)
    # Layers that ran without a visual token are not asked: they removed none.
    rows = [run.removed + [0.0] * (trials.depth - len(run.removed)) for run in fitting.runs if run.first]
    return tuple(torch.tensor(rows, dtype=torch.float64).mean(0).tolist())


def kept_by(removed: Sequence[float]) -> float:
    """The fraction of tokens that run, mean over layers, where `removed` leave after each."""
    return 1 - sum(part * (len(removed) - 1 - layer) for layer, part in enumerate(removed)) / len(removed)


def until_met(removed: Sequence[float], keep_ratio: float) -> tuple[float, ...]:
    """`removed` up to the layer from which on removing nothing more keeps at most `keep_ratio` on average."""
    for layer in range(len(removed)):
        shorter = (*removed[:layer], *(0.0 for _ in removed[layer:]))
        if kept_by(shorter) <= keep_ratio:
            return shorter
    return tuple(removed)


_Mass = list[tuple[float, float]]  # per layer: what all visual tokens together receive from text and from visual rows


@dataclass(frozen=True, kw_only=True)
class _Fitting(Pruner):
    """Drops what alpha allows; without alpha it drops nothing and records the plain model's masses."""

    name: ClassVar[str] = "fitprune-fitting"

    alpha: float | None
    reference: list[_Mass]
    runs: list[_FittingRun] = field(default_factory=list)

    def start(self) -> PromptRun:
        mass = None if self.alpha is None else self.reference[len(self.runs)]
        self.runs.append(_FittingRun(self.alpha, mass))
        return self.runs[-1]


class _FittingRun(PromptRun):
    def __init__(self, alpha: float | None, reference: _Mass | None) -> None:
        super().__init__()
        self._alpha, self._reference = alpha, reference
        self.first = 0
        self.mass: _Mass = []
        self.removed: list[float] = []

    def observes(self, layer: int) -> bool:
        return True

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        self.first = self.first or view.visual.numel()
        cross, own = received(view)
        self.mass.append((float(cross.sum()), float(own.sum())))
        if self._alpha is None or self._reference is None:
            self.removed.append(0.0)
            return None
        floors = [(1 - self._alpha) * whole for whole in self._reference[layer]]
        leaves = dispensable(cross, floors[0]) & dispensable(own, floors[1])
        self.removed.append(float(leaves.sum()) / self.first)
        return (~leaves).nonzero().flatten()


def dispensable(mass: Tensor, floor: float) -> Tensor:
    """`[n]` bool: as many of the smallest entries of `mass` as can go while the rest still sums to `floor`."""
    order = mass.argsort(stable=True)
    rest = mass.double().sum() - mass.double()[order].cumsum(0)
    leaves = torch.zeros_like(mass, dtype=torch.bool)
    leaves[order[rest >= floor]] = True
    return leaves
