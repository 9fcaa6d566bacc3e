"""How many tokens stay: of all images together or of each, and methods that drop once, by a score or a choice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from visipruner.contract.choosing import shares, top
from visipruner.contract.entry_view import EntryView, Image, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import DroppingPruner, InStates, RecallingPruner
from visipruner.contract.settings import Count, Fraction, Layer
from visipruner.contract.vision_view import VisionView
from visipruner.errors import ConfigError

Scope = Literal["prompt", "image"]
Choose = Callable[[EntryView, int], Tensor | Merge]
ChooseEach = Callable[[Sequence[EntryView], Sequence[int]], Sequence[Tensor | Merge]]


@dataclass(frozen=True, kw_only=True)
class Budgeted(DroppingPruner):
    """Keeps a number of tokens.

    Attributes:
        keep_tokens: how many visual tokens stay (all, if there are fewer); None to go by `keep_ratio`.
        keep_ratio: the fraction that stays.
        scope: "prompt" counts the tokens of all images together, and an image may lose more than its neighbour;
            "image" is a budget for each, which is then chosen from as if it were alone. Images are those of the trace:
            crops that are grids of their own and video frames, too.
    """

    keep_tokens: Count | None = None
    keep_ratio: Fraction = 0.5
    scope: Scope = "prompt"

    def budget(self, present: int) -> int:
        """How many of `present` tokens stay."""
        return round(self.keep_ratio * present) if self.keep_tokens is None else min(self.keep_tokens, present)


@dataclass(frozen=True, kw_only=True)
class ScoredPruner(Budgeted, RecallingPruner):
    """Scores the tokens in one layer's attention and keeps the best. A method is its `score`.

    Attributes:
        layer: the first layer without the dropped tokens; they are judged in the layer before it.
    """

    in_states: ClassVar[InStates] = "next"

    layer: Layer = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ConfigError(f"layer must be at least 1: {self.name} judges in the layer before it, got {self.layer}.")

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """`[n_v]`: what each visual token present is worth."""

    def observes(self, layer: int) -> bool:
        return layer == self.layer - 1

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        parts = parts_of(view, self.scope)
        counts = [self.budget(len(part)) for part in parts]
        return None if keeps_all(parts, counts) else best(self.score(view), parts, counts)


@dataclass(frozen=True, kw_only=True)
class EntryPruner(Budgeted):
    """Chooses among the tokens that enter one layer, by default the first: before the language model.

    Attributes:
        layer: the first layer without the dropped tokens.
    """

    layer: Layer = 0

    @abstractmethod
    def choose(self, view: EntryView, count: int) -> Tensor | Merge:
        """Ascending positions `[count]` among the visual tokens present, or a `Merge` of as many."""

    def choose_each(self, views: Sequence[EntryView], counts: Sequence[int]) -> Sequence[Tensor | Merge]:
        """As `choose`, of several views; greedy methods take their steps for all of them together."""
        return [self.choose(view, count) for view, count in zip(views, counts, strict=True)]

    def observes_entry(self, layer: int) -> bool:
        return layer == self.layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        return self._chosen([view])[0]

    def select_entries(self, layer: int, views: Sequence[EntryView]) -> list[Tensor | Merge | None]:
        if type(self).select_entry is not EntryPruner.select_entry:  # a subclass answers example by example
            return super().select_entries(layer, views)
        return self._chosen(views)

    def _chosen(self, views: Sequence[EntryView]) -> list[Tensor | Merge | None]:
        parts = [parts_of(view, self.scope) for view in views]
        counts = [[self.budget(len(part)) for part in mine] for mine in parts]
        return chosen_each(views, parts, counts, self.choose_each)


@dataclass(frozen=True, kw_only=True)
class PerImagePruner(EntryPruner):
    """Chooses in each image by itself, mostly by what the vision tower saw in it; images share the budget by size."""

    @abstractmethod
    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor | Merge:
        """Positions `[count]` among `image.tokens`, or a `Merge` of as many, in any order.

        `seen`: the image in each of `vision_layers`. `embeddings`: `[k, d]`, of `image.tokens`.
        """

    def choose(self, view: EntryView, count: int) -> Tensor | Merge:
        images, towers = view.images(), [view.vision(layer) for layer in self.vision_layers(view.vision_depth)]
        numbers = shares(count, [len(image.tokens) for image in images])
        kept, states = [view.tokens[:0]], [view.embeddings[:0]]
        for place, (image, number) in enumerate(zip(images, numbers, strict=True)):
            seen = [tower[place] for tower in towers]
            image, blank = _judged(image, seen)
            embeddings = view.embeddings[image.positions]
            answer = self.choose_in(image, min(number, len(image.tokens)), seen, embeddings)
            where = answer.kept if isinstance(answer, Merge) else answer
            blank = blank[: max(0, number - len(image.tokens))]
            kept += [image.positions[where], blank]
            states += [answer.states if isinstance(answer, Merge) else embeddings[where], view.embeddings[blank]]
        everyone, order = torch.cat(kept).sort()
        return Merge(everyone, torch.cat(states)[order]) if self.merges else everyone


def _judged(image: Image, seen: Sequence[VisionView]) -> tuple[Image, Tensor]:
    """An image without the tokens that hold no patch (newline features), and where these are: the tower says nothing of
    them, so they leave first."""
    if not seen or seen[0].blank is None:
        return image, image.positions[:0]
    blank = seen[0].blank[image.tokens]
    return replace(image, positions=image.positions[~blank], tokens=image.tokens[~blank]), image.positions[blank]


# ---- parts that have a budget each -----------------------------------------------------------------------------------


def parts_of(view: EntryView | LayerView, scope: Scope) -> list[Tensor]:
    """Positions among the visual tokens present that share a budget, long and ascending: those of each image (none,
    where all of its tokens left), or all in one."""
    if scope == "image":
        return view.positions_per_image()
    return [torch.arange(view.tokens.numel(), device=view.tokens.device)]


def first_sizes(view: EntryView | LayerView, scope: Scope) -> list[int]:
    """How many tokens each of `parts_of` had when the prompt began."""
    sizes = view.layout.tokens_per_image
    return list(sizes) if scope == "image" else [sum(sizes)]


def keeps_all(parts: Sequence[Tensor], counts: Sequence[int]) -> bool:
    """Whether every part may keep as many as it has."""
    return all(count >= len(part) for part, count in zip(parts, counts, strict=True))


def best(scores: Tensor, parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor | None:
    """Ascending positions of the best of each part by `scores` `[n_v]`, or None where all of them stay."""
    if keeps_all(parts, counts):
        return None
    kept = [part[top(scores[part], count)] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(kept).sort().values


def chosen(view: EntryView, parts: Sequence[Tensor], counts: Sequence[int], choose: Choose) -> Tensor | Merge | None:
    """`chosen_each` of one view."""
    return chosen_each([view], [parts], [counts], lambda views, sizes: list(map(choose, views, sizes)))[0]


def chosen_each(
    views: Sequence[EntryView],
    parts: Sequence[Sequence[Tensor]],
    counts: Sequence[Sequence[int]],
    choose: ChooseEach,
) -> list[Tensor | Merge | None]:
    """By view what `choose` answers for each of its parts as if the part's tokens were the only visual ones, or None
    where all of them stay.

    `choose(views, counts)` is asked once, and not for parts that stay, or leave, as a whole.
    """
    asked: list[tuple[EntryView, int]] = []
    for view, mine, sizes in zip(views, parts, counts, strict=True):
        if keeps_all(mine, sizes):
            continue
        split = [(part, size) for part, size in zip(mine, sizes, strict=True) if 0 < size < len(part)]
        asked += [(view if len(mine) == 1 else view.narrowed(part), size) for part, size in split]
    answers = iter(choose([view for view, _ in asked], [size for _, size in asked]) if asked else ())
    alone = iter(asked)
    found: list[Tensor | Merge | None] = []
    for view, mine, sizes in zip(views, parts, counts, strict=True):
        if keeps_all(mine, sizes):
            found.append(None)
        elif len(mine) == 1 and sizes[0] > 0:
            next(alone)
            found.append(next(answers))
        else:
            found.append(_joined(view, mine, sizes, alone, answers))
    return found


def _joined(
    view: EntryView,
    parts: Sequence[Tensor],
    counts: Sequence[int],
    alone: Iterator[tuple[EntryView, int]],
    answers: Iterator[Tensor | Merge],
) -> Tensor | Merge:
    """One answer of the answers about parts of a view; `alone`: the parts' own views."""
    kept, states, has_merged = [], [], False
    for part, count in zip(parts, counts, strict=True):
        positions, held = part[:count], view.embeddings[part[:count]]
        if 0 < count < len(part):
            answer = next(answers)
            view.add_work_of(next(alone)[0])
            where = answer.kept if isinstance(answer, Merge) else answer
            positions, held = part[where], answer.states if isinstance(answer, Merge) else view.embeddings[part[where]]
            has_merged |= isinstance(answer, Merge)
        kept.append(positions)
        states.append(held)
    everyone, order = torch.cat(kept).sort()
    return Merge(everyone, torch.cat(states)[order]) if has_merged else everyone


def check_stages(layers: tuple[int, ...], counts: tuple[object, ...], name: str) -> None:
    """Raises ConfigError unless there is one of `counts` (the setting `name`) for each of ascending `layers`."""
    if list(layers) != sorted(set(layers)):
        raise ConfigError(f"layers must be ascending layer numbers, got {layers}.")
    if len(layers) != len(counts):
        raise ConfigError(f"layers and {name} must have the same length: one entry per stage.")


def check_keep_ratios(layers: tuple[int, ...], keep_ratios: tuple[float, ...]) -> None:
    """Raises ConfigError unless each of ascending `layers` has a fraction of all tokens that is to stay, none larger
    than the one before."""
    check_stages(layers, keep_ratios, "keep_ratios")
    if list(keep_ratios) != sorted(keep_ratios, reverse=True):
        raise ConfigError(f"keep_ratios are fractions of all tokens and cannot grow, got {keep_ratios}.")
