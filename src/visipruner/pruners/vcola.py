"""V-CoLA: chunks of neighbours become one token each, cut where the state of linear attention says that much happened.

2026, arXiv 2610.11251, for hybrids of linear and full attention such as Qwen3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import Budgeted, keeps_all
from visipruner.contract.choosing import scores_of, shares
from visipruner.contract.entry_view import EntryView, Merge, Recurrence
from visipruner.contract.pruner import About, PromptRun
from visipruner.contract.settings import Layer
from visipruner.errors import ConfigError

RECALLED, CHANGED, QUERIES = 0.9, 0.1, 4
LEAST = 1e-6  # of a token's worth, so that every chunk has some


@dataclass(frozen=True, kw_only=True)
class VCoLA(Budgeted):
    """Token t is worth R_t = 0.9 (1 - psi(S k_t, v_t)) + 0.1 psi(S_t q, S_(t-1) q) in the layer before `layer`, a gated
    delta rule; psi(a, b) = (1 - cos(a, b)) / 2, S_t is the layer's state after row t, S that after the prompt's last
    row, and q are the queries of the four rows from t on. Before `layer` the tokens of every image are cut into chunks
    of neighbours with equal sums of R, and each chunk becomes one token, its hidden states weighed by softmax(R). All
    leave before `exit_layer`.

    From a short account of the paper; we could not get at the paper or at any code. Our reading is: means over heads
    and over the four queries, which end with the prompt; S of the whole prompt; layers counted from one; images share
    the budget by size; a merged token stands where the chunk's largest R was. Default: the paper's 50 %.

    Attributes:
        layer: the first one with merged tokens. exit_layer: the first one without vision, or None.
    """

    name: ClassVar[str] = "vcola"
    about: ClassVar[About] = About(
        "V-CoLA: chunks of neighbours are merged, by the states of linear attention",
        paper="2026, arXiv 2610.11251",
        acts="before layer 1 and layer 24",
        needs="states of a gated delta rule",
    )
    merges: ClassVar[bool] = True
    reads_states: ClassVar[bool] = True

    layer: Layer = 1
    exit_layer: Layer | None = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ConfigError("vcola: layer must be at least 1: tokens are judged in the layer before it.")

    def start(self) -> PromptRun:
        return _VCoLARun(self)


class _VCoLARun(PromptRun):
    def __init__(self, config: VCoLA) -> None:
        super().__init__()
        self._config = config
        self._scored, self._worth = torch.empty(0, dtype=torch.long), torch.empty(0)

    def observes_entry(self, layer: int) -> bool:
        return layer in (self._config.layer - 1, self._config.layer, self._config.exit_layer)

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        config = self._config
        if layer == config.exit_layer:
            return view.tokens[:0]
        if layer == config.layer - 1:
            self._scored, self._worth = view.tokens, worth_of(view.recurrence(), view.visual)
            return None
        images = view.positions_per_image()
        sizes = [len(image) for image in images]
        each = [config.budget(size) for size in sizes]
        counts = each if config.scope == "image" else shares(config.budget(sum(sizes)), sizes)
        if keeps_all(images, counts):
            return None
        worth = scores_of(view.tokens, self._scored, self._worth)
        kept, states = [view.tokens[:0]], [view.embeddings[:0].float()]
        for image, count in zip(images, counts, strict=True):
            best, merged = in_chunks(worth[image], view.embeddings[image].float(), count)
            kept.append(image[best])
            states.append(merged)
        return Merge(torch.cat(kept), torch.cat(states).to(view.embeddings))


def worth_of(rows: Recurrence, visual: Tensor) -> Tensor:
    """`[n_v]`: R of the rows `visual`, see `VCoLA`. One step a row of the prompt."""
    asked = functional.pad(rows.queries, (0, 0, 0, QUERIES - 1), value=torch.nan).unfold(1, QUERIES, 1)
    states, changed = rows.states(), list[Tensor]()
    state = next(states)
    for place, after in enumerate(states):
        before, now = (one.transpose(1, 2) @ asked[:, place] for one in (state, after))  # [heads, value_dim, QUERIES]
        changed.append(unlike(now, before, dim=1).nanmean())
        state = after
    recalled = unlike(rows.keys[:, visual] @ state, rows.values[:, visual], dim=-1).mean(0)
    return RECALLED * (1 - recalled) + CHANGED * torch.stack(changed)[visual]


def unlike(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """psi."""
    return (1 - functional.cosine_similarity(a, b, dim=dim)) / 2


def in_chunks(worth: Tensor, states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where the largest `worth` `[n]` is in each of `count` chunks, ascending, and the chunks' mean `[count, d]` of
    `states` `[n, d]` by softmax. No chunk is empty; a token belongs where the middle of its worth lies."""
    total = len(worth)
    if not count or count >= total:
        return torch.arange(min(count, total), device=worth.device), states[:count]
    mass = worth.nan_to_num(0.0).clamp(min=LEAST).double()
    middle, number = mass.cumsum(0) - mass / 2, torch.arange(1, count, device=worth.device)
    first = torch.searchsorted(middle, mass.sum() * number / count).clamp(min=number)
    first = ((first - number).cummax(0).values + number).minimum(total - count + number)
    chunk = torch.zeros_like(worth, dtype=torch.long).index_fill_(0, first, 1).cumsum(0)
    weights = mass.exp().float()
    merged = states.new_zeros(count, states.shape[1]).index_add_(0, chunk, states * weights[:, None])
    merged = merged / weights.new_zeros(count).index_add_(0, chunk, weights)[:, None]
    largest = mass.new_zeros(count).scatter_reduce(0, chunk, mass, "amax")
    places = torch.arange(total, device=worth.device).masked_fill(mass < largest[chunk], total)
    return torch.full_like(chunk[:count], total).scatter_reduce(0, chunk, places, "amin"), merged
