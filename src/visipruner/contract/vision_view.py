"""What a pruner may look at in the vision tower: attention and features of one image in one layer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 256


@dataclass(frozen=True, eq=False)
class Crop:
    """What one layer of the tower had of a picture that attends to itself alone: an image, a crop of one, a video
    frame. Rows are a class token (and registers), if the tower has them, then patches.

    Attributes:
        queries, keys: `[heads, m, head_dim]` of all m rows. outputs: `[m, d_vision]`, what the layer gave.
        scaling: factor of the logits.
    """

    queries: Tensor
    keys: Tensor
    outputs: Tensor
    scaling: float

    def weights(self, rows: slice) -> Tensor:
        """`[heads, rows, m]` float32: softmax weights of some rows over all rows."""
        logits = self.queries[:, rows].float() @ self.keys.float().transpose(1, 2) * self.scaling
        return logits.softmax(-1)

    def received(self) -> Tensor:
        """`[heads, m]` float32: the weight that every row receives, mean over all rows."""
        count = self.queries.shape[1]
        total = torch.zeros(1, device=self.queries.device)
        for start in range(0, count, CHUNK):
            total = total + self.weights(slice(start, start + CHUNK)).sum(1)
        return total / count


@dataclass(frozen=True, eq=False)
class VisionView:
    """One image of a prompt in one layer of the vision tower.

    A visual token is made of some patches, and what is told of it is the mean over these: attention, keys and features
    alike. p counts visual tokens.

    Attributes:
        crops: what the tower saw of the image, each by itself; mostly one. prefix: rows before a crop's patches.
        patches: `[p, k]` long: the patches that a token is made of, counted through all crops.
        shares: `[p, k]` float32, their parts in the token, which sum up to 1, or to 0 for a token that holds no patch
            (a newline feature); None where all are alike.
    """

    crops: Sequence[Crop]
    prefix: int
    patches: Tensor
    shares: Tensor | None = None

    def to(self, device: torch.device) -> VisionView:
        """The same with its tensors on `device`."""
        crops = [
            replace(crop, queries=crop.queries.to(device), keys=crop.keys.to(device), outputs=crop.outputs.to(device))
            for crop in self.crops
        ]
        shares = None if self.shares is None else self.shares.to(device)
        return replace(self, crops=crops, patches=self.patches.to(device), shares=shares)

    @property
    def keys(self) -> Tensor:
        """`[heads, p, head_dim]`."""
        return self._of_tokens(lambda crop: crop.keys.transpose(1, 2)).transpose(1, 2)

    @property
    def features(self) -> Tensor:
        """`[p, d_vision]`, what the layer gave."""
        return self._of_tokens(lambda crop: crop.outputs.T).T

    @property
    def has_class_token(self) -> bool:
        return self.prefix > 0

    @property
    def blank(self) -> Tensor | None:
        """`[p]` bool: tokens that hold no patch, of which the tower says nothing; None where there are none."""
        return None if self.shares is None else self.shares.sum(-1) == 0

    @cached_property
    def class_attention(self) -> Tensor:
        """`[heads, p]` float32: the class token's softmax weights over all rows of its crop, those of the patches."""
        return self._of_tokens(lambda crop: crop.weights(slice(0, 1))[:, 0])

    @cached_property
    def received(self) -> Tensor:
        """`[heads, p]` float32: the weight every patch receives, mean over all rows of its crop."""
        return self._of_tokens(Crop.received)

    @property
    def salience(self) -> Tensor:
        """`[p]`: attention of the class token, or received attention where the tower has none; mean over heads."""
        return (self.class_attention if self.has_class_token else self.received).mean(0)

    def _of_tokens(self, of_rows: Callable[[Crop], Tensor]) -> Tensor:
        """`[..., m]` of every crop's rows to `[..., p]`: mean over each token's patches."""
        of_patches = torch.cat([of_rows(crop)[..., self.prefix :] for crop in self.crops], -1)
        found = of_patches[..., self.patches]
        return found.mean(-1) if self.shares is None else (found * self.shares.to(found)).sum(-1)
