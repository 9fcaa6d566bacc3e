"""What pruning must equal, written the slow way: the full-length model with whole attention maps that are edited.

No row is ever dropped here. The oracle shares no code with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from visipruner import VisiPruner
from visipruner.contract.routing import PLAIN
from visipruner.pruners.visipruner import ReferenceVisiPruner

# (layer, weights-to-be as logits [heads, n, n], values [heads, n, d]) -> weights
Edit = Callable[[int, Tensor], Tensor]
_EDIT: list[Edit] = []


def _oracle_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = (query.float() @ key.float().transpose(2, 3)) * kwargs["scaling"]
    if kwargs.get("softcap") is not None:
        logits = kwargs["softcap"] * torch.tanh(logits / kwargs["softcap"])
    logits = logits.masked_fill(mask < torch.finfo(mask.dtype).min / 2, float("-inf"))
    weights = torch.stack([_EDIT[0](module.layer_idx, example) for example in logits])
    return (weights @ value.float()).to(query.dtype).transpose(1, 2), None


AttentionInterface.register("test_oracle", _oracle_attention)
# The host's own whole mask: windows, and images that attend to themselves in both directions.
AttentionMaskInterface.register("test_oracle", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def oracle(
    model: Any,
    edit: Edit,
    configs: Sequence[Any] | None = None,
    decoder_layers: Sequence[Any] | None = None,
    moves: bool | None = None,
) -> Iterator[None]:
    """Runs `model` (batch 1, no cache) with `edit` turning every layer's logits into weights, rows where it says, and
    visual rows as they were after the layers that freeze them. `configs`: those of its attention; `decoder_layers`:
    its layers, where they are not in the usual place. `moves`: whether rows are placed anew; by default in all models
    but those with M-RoPE."""
    config = model.config.get_text_config()
    configs = [config] if configs is None else configs
    before = [each._attn_implementation for each in configs]
    for each in configs:
        each._attn_implementation = "test_oracle"
    _EDIT[:] = [edit]
    hooks = []
    if isinstance(edit, PrunedEdit):
        layers = model.get_decoder().layers if decoder_layers is None else decoder_layers
        has_axes = "mrope_section" in (getattr(config, "rope_parameters", None) or {})
        places_move = not has_axes if moves is None else moves
        for number, layer in enumerate(layers if places_move else []):
            move = partial(edit.moved, number)
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _module, args, given, move=move: (args, move(given)), with_kwargs=True
                )
            )
        resting = edit.frozen_layers(len(layers))
    else:
        layers, resting = [], []
    try:
        with frozen(layers, getattr(edit, "visual", None), resting):
            yield
    finally:
        for each, name in zip(configs, before, strict=True):
            each._attn_implementation = name
        for hook in hooks:
            hook.remove()


@contextmanager
def frozen(layers: Sequence[Any], visual: Tensor | None, which: Sequence[int]) -> Iterator[None]:
    """The rows `visual` (`[n]` bool over the prompt) of the full-length model leave the layers `which` as they came."""
    places = torch.empty(0) if visual is None else visual.nonzero().flatten()

    def after(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        entered = args[0] if args else kwargs["hidden_states"]
        left = output[0] if isinstance(output, tuple) else output
        left = left.index_copy(1, places, entered[:, places])
        return (left, *output[1:]) if isinstance(output, tuple) else left

    hooks = [layers[layer].register_forward_hook(after, with_kwargs=True) for layer in which]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Entering:
    """What a method was shown of the tokens that enter a layer, and what those that stay were to hold from there on.

    Attributes:
        tokens: `[k]` long, numbers in the prompt. embeddings: `[k, d]`, their hidden states.
        kept: `[j]` long, tokens that take over what others held; `states`: `[j, d]`, what they hold. None: no merge.
    """

    layer: int
    tokens: Tensor
    embeddings: Tensor
    kept: Tensor | None = None
    states: Tensor | None = None


@contextmanager
def merged(
    layers: Sequence[Any], visual: Tensor, entering: Sequence[Entering], kept: Sequence[Sequence[int]] | None = None
) -> Iterator[None]:
    """Before each layer of the full-length model, its rows must be what the method was shown, and become what the
    method merged. `visual`: `[n]` bool over the prompt. `kept`: tokens by layer, where the others have left before the
    layer after it is entered."""

    def enter(shown: Entering) -> Callable[..., Any]:
        places = visual.nonzero().flatten()
        if kept is not None and shown.layer:
            here = ~visual
            here[places[kept[shown.layer - 1]]] = True
            places = here.cumsum(0)[places] - 1

        def before(_module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            torch.testing.assert_close(hidden[0, places[shown.tokens]], shown.embeddings, atol=2e-4, rtol=1e-4)
            if shown.kept is None or shown.states is None:
                return None
            hidden = hidden.index_copy(1, places[shown.kept], shown.states[None].to(hidden))
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return before

    hooks = [layers[shown.layer].register_forward_pre_hook(enter(shown), with_kwargs=True) for shown in entering]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def held_back(layers: Sequence[Any], visual: Tensor, first: int) -> Iterator[None]:
    """Gives the rows `visual` (`[n]` bool over the prompt) of the full-length model, before layer `first`, the states
    that they had before layer 0."""
    places = visual.nonzero().flatten()
    kept: list[Tensor] = []

    def before(_module: Any, args: Any, kwargs: Any, layer: int) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if layer == 0:
            kept[:] = [hidden[:, places].clone()]
            return None
        hidden = hidden.index_copy(1, places, kept[0])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    hooks = [
        layers[layer].register_forward_pre_hook(partial(before, layer=layer), with_kwargs=True) for layer in (0, first)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def softmax(logits: Tensor) -> Tensor:
    """Softmax whose rows without any key are zero."""
    return logits.softmax(-1).nan_to_num(0)


@dataclass(frozen=True)
class PrunedEdit:
    """Edges of a pruned prompt: from layer l on nobody sees visual tokens outside `kept[l]`; shallow rules on top. Rows
    are placed as the methods at work number them.

    `visual`: `[n]` bool over the prompt; rows beyond it are text. `turns`: the rows with which a turn begins that finds
    those before it in a cache, as shallow rules left them there: merged ones are seen as one and not merged again.
    """

    visual: Tensor
    kept: list[list[int]]
    pruner: Any = None
    turns: tuple[int, ...] = ()

    def __call__(self, layer: int, logits: Tensor) -> Tensor:
        is_visual = torch.nn.functional.pad(self.visual, (0, logits.shape[-1] - len(self.visual)))
        gone = is_visual.clone()
        gone[self.visual.nonzero().flatten()[self.kept[layer]]] = False
        logits = logits.masked_fill(gone, float("-inf"))
        parts = getattr(self.pruner, "parts", [self.pruner])
        pruner = next((part for part in parts if isinstance(part, VisiPruner)), None)
        is_shallow = pruner is not None and "shallow" in pruner.stages and layer < pruner.shallow_end
        if not is_shallow or pruner.shallow_visual == "late":  # nothing is kept in layers before it comes in
            return softmax(logits)
        if isinstance(pruner, ReferenceVisiPruner):
            return _zeroed(layer, logits, is_visual & ~gone, len(self.visual))
        present = (is_visual & ~gone).nonzero().flatten()
        bounds = [0, *self.turns, len(is_visual)]
        shown = [present[(present >= start) & (present < end)] for start, end in pairwise(bounds)]
        return _shallow(layer, logits, [rows for rows in shown if len(rows)], pruner)

    def frozen_layers(self, depth: int) -> list[int]:
        """Layers that visual rows leave as they came."""
        routings = [PLAIN if self.pruner is None else self.pruner.routing(layer) for layer in range(depth)]
        return [layer for layer, routing in enumerate(routings) if routing.freezes_visual]

    def moved(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's arguments with every row at the place that it has once rows closed up: counted from the start, less
        the tokens before it that left without a gap."""
        closed = torch.zeros_like(self.visual)
        closed[self.visual.nonzero().flatten()[self._closed(layer)]] = True
        named = {name: value for name, value in kwargs.items() if name.startswith("position_embeddings")}
        given = {name: value for name, value in named.items() if value is not None}
        if not given:
            return kwargs
        rows = torch.arange(next(iter(given.values()))[0].shape[-2])
        before = torch.nn.functional.pad(closed, (0, len(rows) - len(closed))).cumsum(0)
        places = (rows - before).clamp(min=0)  # a token that opened the prompt and left is seen by nobody
        moved = {name: tuple(part.index_select(-2, places) for part in value) for name, value in given.items()}
        return {**kwargs, **moved}

    def _closed(self, layer: int) -> list[int]:
        """Tokens that left before `layer` and left no gap; of several methods each closes up over its own, who must not
        drop at the same point."""
        everyone = set(range(int(self.visual.sum())))
        compact = [part for part in getattr(self.pruner, "parts", [self.pruner]) if _is_compact(part)]
        if len(compact) == len(getattr(self.pruner, "parts", [None])):
            return sorted(everyone - set(self.kept[layer]))
        left: set[int] = set()
        for entry in {part.layer for part in compact if part.layer <= layer}:
            left |= (everyone if entry == 0 else set(self.kept[entry - 1])) - set(self.kept[entry])
        return sorted(left)


def _is_compact(pruner: Any) -> bool:
    return (getattr(pruner, "positions", None) or getattr(pruner, "published_positions", "keep")) == "compact"


pruned_edit = PrunedEdit  # what an edit of a pruned prompt is made by, a function to its users


def _shallow(layer: int, logits: Tensor, shown: list[Tensor], pruner: VisiPruner) -> Tensor:
    """`shown`: the visual rows present of every turn that has some, `[k]` long; the first stands for all of them."""
    is_visual = torch.zeros(logits.shape[-1], dtype=torch.bool)
    is_visual[torch.cat(shown)] = True
    text_only = softmax(logits.masked_fill(is_visual, float("-inf")))
    if pruner.shallow_visual == "prefix":
        if layer > 0:
            return text_only
        weights = _merged(softmax(logits), shown)
        for number, rows in enumerate(shown):  # they see text before them, and what stands for earlier turns
            logits[..., rows[:, None], rows] = float("-inf")
            weights[..., rows, :] = _merged(softmax(logits[..., rows, :]), shown[:number])
        return weights
    if layer == 0:
        raised = logits.masked_fill(is_visual, float("-inf"))
        for rows in shown:
            raised[..., rows[0]] = logits[..., rows[0]] + math.log(len(rows))
        text_only = softmax(raised)
    return text_only.masked_fill(is_visual[:, None], 0)


def _merged(weights: Tensor, shown: list[Tensor]) -> Tensor:
    """Each turn's weights all on the row that stands for it."""
    merged = weights.clone()
    for rows in shown:
        merged[..., rows] = 0
        merged[..., rows[0]] = weights[..., rows].sum(-1)
    return merged


def _zeroed(layer: int, logits: Tensor, is_visual: Tensor, prompt: int) -> Tensor:
    """The authors' code ("7b"): weights of prompt rows go after the softmax, and nothing takes their place."""
    full = softmax(logits)
    weights = full.masked_fill(is_visual, 0)
    if layer == 0:
        sink = is_visual.nonzero().flatten()[0]
        weights[..., ~is_visual, sink] = full[..., ~is_visual, :][..., is_visual].sum(-1)
    else:
        weights = torch.where(is_visual[:, None], full, weights)
    generated = torch.arange(len(is_visual)) >= prompt
    return torch.where(generated[:, None], full, weights)
