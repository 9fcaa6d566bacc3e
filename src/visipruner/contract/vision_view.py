"""What a pruner may look at in the vision tower: one image in one of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 256


@dataclass(frozen=True, eq=False)
class VisionView:
    """One image in one layer of the vision tower. Rows are a class token (and registers), if any, then patches.

    Where the connector makes one visual token of every `window` x `window` patches of the (square) grid, what is told
    of a token is the mean over its patches; p counts tokens then.

    Attributes:
        queries, all_keys: `[heads, m, head_dim]` of all m rows. scaling: factor of the logits.
        prefix: rows before the patches. outputs: `[m, d_vision]`, what the layer gave. window: see above.
    """

    queries: Tensor
    all_keys: Tensor
    outputs: Tensor
    scaling: float
    prefix: int
    window: int = 1

    def to(self, device: torch.device) -> VisionView:
        """The same with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("queries", "all_keys", "outputs")}
        return replace(self, **moved)

    @property
    def keys(self) -> Tensor:
        """`[heads, p, head_dim]`."""
        return self._of_tokens(self.all_keys[:, self.prefix :].transpose(1, 2)).transpose(1, 2)

    @property
    def features(self) -> Tensor:
        """`[p, d_vision]`, what the layer gave."""
        return self._of_tokens(self.outputs[self.prefix :].T).T

    @property
    def has_class_token(self) -> bool:
        return self.prefix > 0

    @cached_property
    def class_attention(self) -> Tensor:
        """`[heads, p]` float32: the class token's softmax weights over all rows, those of the patches."""
        return self._of_tokens(self._rows(slice(0, 1))[:, 0])

    @cached_property
    def received(self) -> Tensor:
        """`[heads, p]` float32: the weight every patch receives, mean over all rows."""
        count = self.queries.shape[1]
        total = torch.zeros(1, device=self.queries.device)
        for start in range(0, count, CHUNK):
            total = total + self._rows(slice(start, start + CHUNK)).sum(1)
        return self._of_tokens(total / count)

    @property
    def salience(self) -> Tensor:
        """`[p]`: attention of the class token, or received attention where the tower has none; mean over heads."""
        return (self.class_attention if self.has_class_token else self.received).mean(0)

    def _rows(self, rows: slice) -> Tensor:
        """`[heads, rows, patches]`: softmax weights of some rows over all rows, those of the patches."""
        logits = self.queries[:, rows].float() @ self.all_keys.float().transpose(1, 2) * self.scaling
        return logits.softmax(-1)[..., self.prefix :]

    def _of_tokens(self, of_patches: Tensor) -> Tensor:
        """`[..., patches]` to `[..., p]`, mean over each token's patches."""
        if self.window == 1:
            return of_patches
        side = math.isqrt(of_patches.shape[-1]) // self.window
        grid = of_patches.reshape(*of_patches.shape[:-1], side, self.window, side, self.window)
        return grid.mean((-3, -1)).flatten(-2)
