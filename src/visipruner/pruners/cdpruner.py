"""CDPruner: a determinantal point process over tokens, conditioned on how relevant each is to the question.

"Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025,
arXiv 2506.10967. Greedy inference after Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process to
Improve Recommendation Diversity", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.engine.entry import EntryView
from visipruner.errors import ConfigError
from visipruner.pruners.about import About
from visipruner.pruners.budgeted import EntryPruner
from visipruner.pruners.dropping import Positions


@dataclass(frozen=True, kw_only=True)
class CDPruner(EntryPruner):
    """The subset S that greedily maximises det(L_S), L_ij = r_i cos(v_i, v_j) r_j over the visual embeddings v.

    The relevance r is normalised to [0, 1] per prompt. The released code normalises over a whole batch and all crops,
    so that what is kept depends on the neighbours; ours does not.

    Attributes:
        relevance: "clip" is the paper's, from the text encoder that belongs to the vision tower. Multimodal LLMs do
            not carry one, so it raises ConfigError; "words" takes the cosine to the mean embedding of the text after
            the image instead (ours), and "none" leaves the condition out.
    """

    name: ClassVar[str] = "cdpruner"
    about: ClassVar[About] = About(
        "CDPruner: diverse and relevant, by a determinantal point process",
        paper="Zhang et al., NeurIPS 2025, arXiv 2506.10967",
        acts="before the language model",
        needs="visual embeddings; CLIP's text encoder, or relevance=words or none",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: float = 1 / 9
    relevance: Literal["clip", "words", "none"] = "clip"

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.relevance == "clip":
            raise ConfigError(
                "cdpruner's relevance needs the text encoder of CLIP, which this model's vision tower comes without; "
                "set relevance=words (the model's own word embeddings) or relevance=none."
            )

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        return cls(relevance="words")

    def choose(self, view: EntryView, count: int) -> Tensor:
        unit = functional.normalize(view.embeddings.double(), dim=-1)
        if self.relevance == "none":
            return greedy_map(unit, count)
        after = view.text[view.text > view.visual[0]]
        words = functional.normalize(view.states[after].double().mean(0), dim=-1)
        likeness = unit @ words
        relevance = (likeness - likeness.min()) / (likeness.max() - likeness.min()).clamp(min=1e-6)
        return greedy_map(unit * relevance[:, None], count)


def greedy_map(vectors: Tensor, count: int) -> Tensor:
    """Ascending positions of the `count` of `vectors` `[n, d]` that greedily maximise the determinant of their Gram
    matrix, the earliest of equals, by incremental Cholesky; O(n count (count + d)). In float64: unit vectors gain alike
    but for rounding."""
    vectors = vectors.double()
    gain = vectors.square().sum(-1)
    factors = vectors.new_zeros(count, len(vectors))
    chosen: list[int] = []
    for step in range(count):
        best = int((gain >= gain.max() - 1e-9).nonzero()[0])
        chosen.append(best)
        row = vectors @ vectors[best] - factors[:step].T @ factors[:step, best]
        factors[step] = row / gain[best].clamp(min=1e-12).sqrt()
        gain = gain - factors[step].square()
        gain[best] = float("-inf")
    return torch.tensor(sorted(chosen), dtype=torch.long, device=vectors.device)
