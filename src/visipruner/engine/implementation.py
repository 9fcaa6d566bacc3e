"""The name by which transformers finds our attention function, in the configs of a model or a vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visipruner.engine import attention
from visipruner.errors import VisiPrunerError


class Implementation:
    """Our attention function in place of `before` in `configs`, from `put` to `restore`.

    Raises UnsupportedModelError for an attention implementation that ours cannot stand in for.
    """

    def __init__(self, configs: Sequence[Any], before: str) -> None:
        self._configs, self._before, self._name = configs, before, attention.register(before)

    def put(self) -> None:
        """The layers call our function from now on."""
        for config in self._configs:
            config._attn_implementation = self._name

    def check(self) -> None:
        """Raises VisiPrunerError where somebody chose another implementation meanwhile: hooks alone would do half."""
        for config in self._configs:
            if config._attn_implementation != self._name:
                raise VisiPrunerError(
                    f"The attention implementation was set to {config._attn_implementation!r} under an attached "
                    "pruner; call .remove() on its handle (a probe: .close()), set it, and attach again (an aligned "
                    "model: call set_attn_implementation on the model itself)."
                )

    def restore(self) -> None:
        """The configs name what they named before; what somebody chose meanwhile stays."""
        for config in self._configs:
            if config._attn_implementation == self._name:
                config._attn_implementation = self._before
