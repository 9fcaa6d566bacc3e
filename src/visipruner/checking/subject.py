"""The model under check, and what pruning it must equal: the full-length model with attention edges cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.adapters.base import Adapter
from visipruner.adapters.structure import PER_ROW
from visipruner.checking.prompts import Prompts
from visipruner.checking.tiny import telling_kinds
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import PruneHandle, attach
from visipruner.engine.host import Host
from visipruner.errors import VisiPrunerError


@dataclass(frozen=True, eq=False)
class Subject:
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
            return opened(self.model(**inputs, use_cache=False, **more).logits)

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

    @contextmanager
    def cutting(self, inputs: dict[str, Any], kept: Sequence[Sequence[int]]) -> Iterator[None]:
        """Inside, no row of the full-length model sees visual tokens outside `kept[l]` in layer l, and no row leaves.

        Through layers without attention a state passes that has no edges: a model that has any runs, from layer l on,
        on the sequence without these tokens, and must read in one go, without a cache."""
        visual = self.visual(inputs)[0].nonzero().flatten()
        gone = [
            torch.ones(len(visual), dtype=torch.bool).index_fill(0, torch.tensor(list(each), dtype=torch.long), False)
            for each in kept
        ]
        without = _shortened if self.host.states else _closed
        with self.eager(), without(self.host.layers, [visual[mask.to(visual.device)] for mask in gone]):
            yield


def opened(logits: Tensor) -> Tensor:
    """Logits as float, with zeros where a model closes words with the lowest number, which would dwarf all else."""
    return logits.float().masked_fill(logits <= torch.finfo(logits.dtype).min / 2, 0)


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

    with ExitStack() as hooks:
        for layer, shut in zip(layers, columns, strict=False):  # columns go on to what is left after the last layer
            if shut.numel():
                hooks.enter_context(layer.register_forward_pre_hook(partial(close, shut), with_kwargs=True))
        yield


@contextmanager
def _shortened(layers: Sequence[nn.Module], gone: Sequence[Tensor]) -> Iterator[None]:
    """Layer l runs without the rows `gone[l]`; after the last layer the others are in their places, between zeros."""
    rows, seq = gone[0], 0

    def shorten(left: Tensor, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal rows, seq
        hidden = args[0] if args else kwargs["hidden_states"]
        if layer is layers[0]:
            seq = hidden.shape[1]
            rows = torch.arange(seq, device=hidden.device)
        rows = rows.to(hidden.device)  # layers may lie on several
        here = ~torch.isin(rows, left.to(hidden.device))
        hidden, rows = hidden[:, here], rows[here]
        found = {**kwargs, "attention_mask": _narrow_mask(kwargs.get("attention_mask"), rows)}
        for name, given in kwargs.items():
            dim = next((dim for prefix, dim in PER_ROW if name.startswith(prefix)), None)
            if dim is not None and given is not None:
                parts = given if isinstance(given, tuple) else (given,)
                narrow = tuple(part.index_select(dim, rows) for part in parts)
                found[name] = narrow if isinstance(given, tuple) else narrow[0]
        return ((hidden, *args[1:]), found) if args else (args, {**found, "hidden_states": hidden})

    def restore(layer: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        whole = hidden.new_zeros(1, seq, hidden.shape[-1]).index_copy(1, rows, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    with ExitStack() as hooks:
        for layer, left in zip(layers, gone, strict=False):
            hooks.enter_context(layer.register_forward_pre_hook(partial(shorten, left), with_kwargs=True))
        hooks.enter_context(layers[-1].register_forward_hook(restore))
        yield


def _narrow_mask(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask.index_select(1, rows)
    return mask.index_select(2, rows).index_select(3, rows)
