"""CDPruner: a determinantal point process over tokens, conditioned on how relevant each is to the question.

"Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025,
arXiv 2506.10967. Greedy inference after Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process to
Improve Recommendation Diversity", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import first_of_each, first_smallest, side_by_side, unit_vectors
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, Positions, PromptRun
from visipruner.contract.settings import Fraction
from visipruner.errors import ConfigError
from visipruner.models.clip_text import clip_text

# What benchmarks' prompts add on a line of its own; it says nothing about the picture.
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


NO_TEXT_ENCODER = (
    "cdpruner's relevance needs the text encoder of CLIP, which this model's vision tower comes without; set "
    "text_encoder=FOLDER of the CLIP model that the tower was taken from, or relevance=words (the model's own word "
    "embeddings), or relevance=none."
)
NO_QUESTION = (
    "cdpruner must know what is asked: put it to work with visipruner.chat.attached(model, pruner, chat_inputs(...)), "
    "or set question."
)


@dataclass(frozen=True, kw_only=True)
class _Relevance(EntryPruner):
    """What the question is compared with.

    Attributes:
        relevance: "clip" is the paper's: how **unlike** a patch is to the question in CLIP's common space (the sign is
            the released code's; patches of CLIP are least like the text that describes them). Multimodal LLMs carry
            the vision tower alone, so it needs `text_encoder`. "words" takes the cosine to the mean embedding of the
            text after the image instead (ours), and "none" leaves the condition out.
        text_encoder: folder of the CLIP model that the vision tower was taken from.
        question: what the prompt asks. `visipruner.chat.attached`, and with it every command, fills it in. What
            benchmarks add about the form of the answer (`INSTRUCTIONS`) is left out, as in the released code.
        vision_layer: of the tower, whose patches are compared with the question.
    """

    relevance: Literal["clip", "words", "none"] = "clip"
    text_encoder: str | None = None
    question: str | None = None
    vision_layer: int = -2

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.relevance == "clip" and self.text_encoder is None:
            raise ConfigError(NO_TEXT_ENCODER)

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """Without a text encoder, which belongs to a model and not to a depth."""
        return cls(relevance="words")

    def asked(self, question: str) -> Self:
        return replace(self, question=question) if self.relevance == "clip" and self.question is None else self

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,) if self.relevance == "clip" else ()

    def start(self) -> PromptRun:
        if self.relevance == "clip" and self.question is None:
            raise ConfigError(NO_QUESTION)
        return super().start()

    def likeness(self, view: EntryView, unit: Tensor) -> Tensor:
        """`[n_v]` double: of every visual token, `unit` `[n_v, d]`, to the question, turned as relevance is."""
        if self.relevance == "words":
            return words_likeness(view, unit)
        assert self.text_encoder is not None
        assert self.question is not None
        found = view.embeddings.new_zeros(len(view.tokens), dtype=torch.float64)
        blank = torch.zeros_like(found, dtype=torch.bool)
        text, question = clip_text(self.text_encoder), without_instruction(self.question)
        for image, seen in zip(view.images(), view.vision(self.vision_layer), strict=True):
            if len(image.tokens):
                found[image.positions] = -text.likeness(question, seen.features[image.tokens]).to(found)
            if seen.blank is not None:
                blank[image.positions] = seen.blank[image.tokens]
        # Tokens that hold no patch are like nothing, and so least relevant.
        return torch.where(blank, found.masked_fill(blank, float("inf")).min(), found)


@dataclass(frozen=True, kw_only=True)
class CDPruner(_Relevance):
    """The subset S that greedily maximises det(L_S), L_ij = r_i cos(v_i, v_j) r_j over the visual embeddings v.

    The relevance r is normalised to [0, 1] per prompt. The released code normalises over a whole batch and all crops,
    so that what is kept depends on the neighbours; ours does not. See `_Relevance` for its settings.
    """

    name: ClassVar[str] = "cdpruner"
    about: ClassVar[About] = About(
        "CDPruner: diverse and relevant, by a determinantal point process",
        paper="Zhang et al., NeurIPS 2025, arXiv 2506.10967",
        acts="before the language model",
        needs="visual embeddings; with text_encoder the vision tower's features, else relevance=words or none",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 1 / 9

    def choose(self, view: EntryView, count: int) -> Tensor:
        return greedy_map([self._vectors(view)], [count])[0]

    def choose_each(self, views: Sequence[EntryView], counts: Sequence[int]) -> list[Tensor]:
        return greedy_map([self._vectors(view) for view in views], counts)

    def _vectors(self, view: EntryView) -> Tensor:
        """`[n_v, d]` double, whose Gram matrix is L."""
        unit = unit_vectors(view.embeddings, torch.float64)
        if self.relevance == "none":
            return unit
        likeness = self.likeness(view, unit)
        relevance = (likeness - likeness.min()) / (likeness.max() - likeness.min()).clamp(min=1e-6)
        return unit.mul_(relevance[:, None])


def without_instruction(question: str) -> str:
    """`question` without lines that only say what form the answer should have."""
    for instruction in INSTRUCTIONS:
        question = question.replace(f"\n{instruction}", "")
    return question


def words_likeness(view: EntryView, unit: Tensor) -> Tensor:
    """`[n_v]`: of visual embeddings, `unit` `[n_v, d]`, to the mean embedding of the text after the image."""
    after = view.text[view.text > view.visual[0]]
    return unit @ functional.normalize(view.states[after].double().mean(0), dim=-1)


def greedy_map(vectors: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Ascending positions of so many of each of `vectors` `[n, d]` that greedily maximise the determinant of their Gram
    matrix, the earliest of equals, by incremental Cholesky; O(n count (count + d)). In float64: unit vectors gain alike
    but for rounding. Vectors that are not numbers are chosen last."""
    held, lengths = side_by_side([part.double() for part in vectors])
    batch = torch.arange(len(held), device=held.device)
    gain = lengths.square().nan_to_num(-1.0)  # [b, n]
    factors = held.new_zeros(len(held), max(counts), held.shape[1])
    chosen: list[Tensor] = []
    for step in range(max(counts)):
        best = first_smallest(-gain, 1e-9)
        chosen.append(best)
        before, place = factors[:, :step], best[:, 0]
        row = torch.bmm(held, held[batch, place, :, None])[..., 0]
        row = row - torch.bmm(before[batch, None, :, place], before)[:, 0]
        row = row / gain.gather(1, best).clamp(min=1e-12).sqrt()
        factors[:, step] = row
        gain = (gain - row.square().nan_to_num(0)).scatter(1, best, float("-inf"))
    return first_of_each(chosen, counts)
