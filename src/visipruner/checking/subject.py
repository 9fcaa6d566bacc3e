"""The model under check, and what pruning it must equal: the full-length model with attention edges cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.adapters.base import Adapter
from visipruner.checking.prompts import Prompts
from visipruner.checking.tiny import telling_kinds
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import PruneHandle, attach
from visipruner.engine.host import Host
from visipruner.errors import VisiPrunerError


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its adapter and prompts."""

    model: Any
    adapter: Adapter
    prompts: Prompts

    @cached_property
    def host(self) -> Host:
        """Raises UnsupportedModelError."""
        return Host.of(self.model, self.adapter)

    def attach(self, pruner: Pruner) -> PruneHandle:
        return attach(self.model, pruner, adapter=self.adapter)

    def logits(self, inputs: dict[str, Any], **more: Any) -> Tensor:
        """`[batch, seq, vocabulary]` float of one forward without a cache."""
        with torch.no_grad():
            return self.model(**inputs, use_cache=False, **more).logits.float()  # type: ignore[no-any-return]

    def visual(self, inputs: dict[str, Any]) -> Tensor:
        """`[batch, seq]` bool: the rows that the adapter finds."""
        assert self.adapter.locate is not None
        embedder = self.host.embedder
        assert embedder is not None
        found = self.adapter.locate(embedder, {**inputs, "cache": None})
        return torch.zeros_like(inputs["input_ids"], dtype=torch.bool) if found is None else found

    def kinds(self) -> dict[str, int]:
        """Layers that differ in their modules or in what the config says of them, each by the first that is not layer 0
        and so can be entered by fewer rows than the prompt has."""
        host = self.host
        found: dict[str, int] = {}
        text: Any = host.decoder.config
        lists = telling_kinds(text, len(host.layers)).values()
        for number, layer in enumerate(host.layers):
            parts = {type(part).__name__ for part in layer.children() if not type(part).__name__.endswith("Norm")}
            said = [str(value[number]) for value in lists if isinstance(value[number], (str, int, bool))]
            if number:
                found.setdefault(", ".join([*sorted(parts), *said]), number)
        return found

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Inside, the model attends by its own eager function, which takes any mask."""
        configs = self.host.configs
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = "eager"
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = name

    def cut(self, inputs: dict[str, Any], kept: Sequence[Sequence[int]], run: Callable[[], Tensor]) -> Tensor:
        """What `run` gives of a prompt while no row of the full-length model sees visual tokens outside `kept[l]` in
        layer l, and no row leaves."""
        visual = self.visual(inputs)[0].nonzero().flatten()
        gone = [
            torch.ones(len(visual), dtype=torch.bool).index_fill(0, torch.tensor(list(each), dtype=torch.long), False)
            for each in kept
        ]
        with self.eager(), _closed(self.host.layers, [visual[mask.to(visual.device)] for mask in gone]):
            return run()


@contextmanager
def _closed(layers: Sequence[nn.Module], columns: Sequence[Tensor]) -> Iterator[None]:
    """Nobody sees `columns[l]` in layer l. Masks of a sliding window's cache begin later than with column 0."""
    rows = dict.fromkeys(layers, 0)

    def close(shut: Tensor, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        rows[layer] += (args[0] if args else kwargs["hidden_states"]).shape[1]
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise VisiPrunerError(
                f"{type(layer).__name__} is given no whole attention mask, so its edges cannot be cut."
            )
        within = shut - (rows[layer] - mask.shape[3])
        within = within[within >= 0]
        low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.index_fill(3, within, low)}

    hooks = [
        layer.register_forward_pre_hook(partial(close, shut), with_kwargs=True)
        for layer, shut in zip(layers, columns, strict=False)  # columns go on to what is left after the last layer
        if shut.numel()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
