"""The first layer of a cache that holds a pruned prompt: it refuses to have that cropped, before anything is cut.

Caches are cropped layer by layer, and a pruned layer cannot lose a part of its prompt. If only it refused, the layers
before it would be cropped by then, and whoever caught the error would go on with a spoiled cache.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from visipruner.errors import VisiPrunerError


def no_crop() -> VisiPrunerError:
    """What is said where a pruned prompt would be cropped."""
    return VisiPrunerError("A pruned prompt cannot be cropped out of its cache; only tokens generated after it can.")


class SealedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that holds its whole prompt. Attributes: `prompt_end`, tokens up to the end of the pruned one."""

    prompt_end: int

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens, which must have come after the pruned prompt."""
        if tokens_to_remove > 0 or self.get_seq_length() - abs(tokens_to_remove) < self.prompt_end:
            raise no_crop()
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.prompt_end = 0


class SealedSlidingLayer(SealedLayer, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The same, with a sliding window."""


_KINDS = {DynamicLayer: SealedLayer, DynamicSlidingWindowLayer: SealedSlidingLayer}


def sealed(layer: Any) -> Any:
    """What `layer`, which holds its whole prompt, becomes once a later layer of its cache holds a pruned one."""
    kind = _KINDS.get(type(layer))
    if kind is not None:
        held, layer = layer, kind.__new__(kind)
        vars(layer).update(vars(held))
    if isinstance(layer, SealedLayer):
        layer.prompt_end = layer.get_seq_length()
    return layer
