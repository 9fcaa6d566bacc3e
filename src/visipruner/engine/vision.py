"""What the vision tower attended to: queries and keys of a few of its layers, read while it encodes the images.

No attention map is formed unless a pruner asks, and then only the rows asked for, whatever kernel the tower runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from visipruner.adapters.structure import is_routed
from visipruner.adapters.towers import Encoded, Kind, Patches, open_layers
from visipruner.contract.layout import TokenLayout
from visipruner.contract.vision_view import Crop
from visipruner.engine import attention
from visipruner.engine.attention import QKV, host_kernel, uncompiled
from visipruner.engine.calls import brings_pixels, named, scaling_of
from visipruner.engine.masks import is_open
from visipruner.engine.patch import Implementation, Replaced
from visipruner.engine.patch_table import PatchTable, Vision, token_numbers
from visipruner.engine.threads import PerThread, Threads
from visipruner.errors import LayoutError, UnsupportedModelError

KINDS: tuple[Kind, ...] = ("image", "video")
KNOWN = [["image"], ["video"], ["image", "video"]]  # what one prompt may have encoded, a call of each kind
NOWHERE = -1  # stands for the number of a layer where there is none
ANOTHER = "choose a method that does not look at the tower (`visipruner list`)."


class VisionTap:
    """Runs the attention of a vision tower and remembers it for some layers, for each thread until its `clear`.

    Args:
        tower: a stock vision transformer. wanted: numbers of the layers wanted; negative ones count from the end. Where
            a layer's patches attend within windows, the nearest layer with full attention stands in, the later of two.
        patches: the family's way of telling which patches a visual token is made of.

    Raises UnsupportedModelError for a tower without such layers, or whose attention ours cannot stand in for.
    """

    _seen = PerThread[dict[int, list[Crop]]](dict)
    # Of the layer that runs: queries, keys, scaling of a picture, and how many rows of padding come after it.
    _pieces = PerThread[list[tuple[Tensor, Tensor, float, int]]](list)
    _tables = PerThread[list[PatchTable]](list)
    _is_encoding = PerThread[bool](bool)
    # Whether what was seen is of no use to another prompt: its prompt was begun, or the tower did not get through.
    _is_spent = PerThread[bool](bool)

    def __init__(self, tower: nn.Module, wanted: Sequence[int], patches: Patches) -> None:
        self._layers = tower_layers(tower)
        self.depth = depth = len(self._layers)
        missing = [layer for layer in wanted if not -depth <= layer < depth]
        if missing:
            raise UnsupportedModelError(f"The vision tower has {depth} layers, and none numbered {missing[0]}.")
        configs = {id(part.config): part.config for part in tower.modules() if hasattr(part, "config")}
        self._configs: list[Any] = list(configs.values())
        self._open = open_layers(self._configs[0], depth)
        if not self._open:
            raise UnsupportedModelError(f"Patches of this vision tower attend within windows in every layer; {ANOTHER}")
        self._tower, self._patches, self.wanted = tower, patches, {self.stand_in(layer) for layer in wanted}
        self._implementation: str = self._configs[0]._attn_implementation
        self._ours = Implementation(self._configs, self._implementation)
        registers = max(int(getattr(config, "num_register_tokens", 0) or 0) for config in self._configs)
        self._prefixes = (1 + registers, 0)
        self.threads = Threads()
        self._hooks: list[RemovableHandle] = []
        self._replaced = Replaced()

    def stand_in(self, layer: int) -> int:
        """The layer with full attention that is shown for `layer`."""
        return min(self._open, key=lambda number: (abs(number - layer % self.depth), -number))

    def install(self, model: nn.Module, embedder: nn.Module) -> None:
        """Puts our attention function under every layer of the tower; only the wanted ones are remembered.

        What `generate` of `model` encodes belongs to it, which hooks alone could not tell: it has `embedder` encode by
        itself.
        """
        self._hooks.append(self._tower.register_forward_pre_hook(uncompiled(self._begin)))
        for part in self._tower.modules():
            attention.own(part, self, NOWHERE)  # what attends between the layers (MiniCPM-V's merger) is not looked at
        for number, layer in enumerate(self._layers):
            for part in layer.modules():  # whichever of them calls the attention function
                attention.own(part, self, number)
            if number in self.wanted:
                self._hooks.append(layer.register_forward_hook(self._remembering(number)))
        self._hooks.append(self._tower.register_forward_hook(uncompiled(self._finish)))
        for kind in KINDS:
            if hasattr(embedder, f"get_{kind}_features"):
                self._replaced.replace(embedder, f"get_{kind}_features", self._around_encoding(embedder, kind))
        if hasattr(type(model), "generate"):
            self._replaced.replace(model, "generate", self._around_generate())
        self._ours.put()

    def remove(self) -> None:
        """The tower is as it was."""
        self.threads = Threads()  # no thread remembers an image
        self._replaced.remove()
        for hook in self._hooks:
            hook.remove()
        for part in self._tower.modules():
            attention.disown(part)
        self._ours.restore()

    # ---- while it encodes -------------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Any) -> None:
        """Before the tower runs, which it may do several times for one prompt."""
        self._ours.check()
        if self._is_spent:
            self.clear()
        self._pieces.clear()
        self._is_spent = True

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, unless it was interrupted."""
        self._is_spent = False

    def _around_encoding(self, embedder: nn.Module, kind: Kind) -> Callable[..., Any]:
        """Calls `get_image_features` or `get_video_features`, and notes which patches its tokens are made of."""

        def around(encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._is_encoding:  # videos, which some models encode as images
                return encode(*args, **kwargs)
            if self._is_spent:
                self.clear()
                self._is_spent = False
            first, self._is_encoding = self._count(), True
            try:
                output = encode(*args, **kwargs)
            finally:
                self._is_encoding = False
            self._note(embedder, Encoded(kind, named(encode, args, kwargs), [], _tokens(output), self._prefixes), first)
            return output

        return uncompiled(around)

    def _note(self, embedder: nn.Module, call: Encoded, first: int) -> None:
        crops = next(iter(self._seen.values()), [])[first:]
        if not crops and brings_pixels(call.call):
            raise UnsupportedModelError(f"The {call.kind} goes through another tower than is looked at; {ANOTHER}")
        if not crops:
            return  # what was encoded before is handed through
        seen = replace(call, rows=[crop.queries.shape[1] for crop in crops])
        table = PatchTable.of(self._patches(embedder, seen), seen, first)
        if table is None:
            raise LayoutError(
                f"The vision tower gave {len(seen.rows)} images of {sorted(set(seen.rows))} rows for {seen.tokens} "
                f"visual tokens, which do not match; {ANOTHER}"
            )
        self._tables.append(table)

    def _around_generate(self) -> Callable[..., Any]:
        """Calls `generate` so that it finds no image where it encodes its own, and leaves none, however it ends."""

        def around(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if brings_pixels(kwargs):
                self.clear()
            try:
                return generate(*args, **kwargs)
            finally:
                self.clear()

        return around

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After a forward that may have encoded images, also when it failed before its decoder ran."""
        self.clear()

    def spend(self) -> None:
        """What was seen belongs to the prompt that begins now: the next images are another's, even if it never ends."""
        self._is_spent = True

    def clear(self) -> None:
        """Forgets all images of this thread."""
        self._seen.clear()
        self._tables.clear()

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Called by the attention of every layer of the tower, for all pictures at once or for one after another."""
        if layer in self.wanted:
            queries, keys, _ = (part.detach() for part in qkv)
            keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
            scaling, rows = scaling_of(kwargs, queries), queries.shape[2]
            for q, k, lengths in zip(queries, keys, _lengths(queries, mask, kwargs), strict=True):
                padding = rows - sum(lengths)  # of a single picture
                parts = zip(*(part[:, : rows - padding].split(lengths, 1) for part in (q, k)), strict=True)
                self._pieces.extend((*part, scaling, padding) for part in parts)
        return host_kernel(module, self._implementation)(module, *qkv, mask, **kwargs)

    def _remembering(self, layer: int) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            """After a wanted layer, whose output has the rows of all pictures one after another."""
            states = (output[0] if isinstance(output, tuple) else output).detach()
            states = states.reshape(-1, states.shape[-1])
            lengths = [rows for queries, _, _, padding in self._pieces for rows in (queries.shape[1], padding)]
            if sum(lengths) != len(states):
                raise UnsupportedModelError(f"This vision tower's layers give other rows than they attend; {ANOTHER}")
            for (queries, keys, scaling, _), outputs in zip(self._pieces, states.split(lengths)[::2], strict=True):
                self._seen.setdefault(layer, []).append(Crop(queries, keys, outputs, scaling))
            self._pieces.clear()

        return leave

    # ---- which image is whose --------------------------------------------------------------------------------------

    def _count(self) -> int:
        return max((len(seen) for seen in self._seen.values()), default=0)

    def read(
        self, layouts: Sequence[TokenLayout], rows: Sequence[np.ndarray], videos: Tensor | None
    ) -> list[Vision | None]:
        """The examples' images as the tower saw them.

        Args:
            layouts: of the examples. rows: per example all rows that hold image features, `[n]`.
            videos: `[batch, seq]` bool, those of a video's; asked where both images and videos were encoded.

        `generate` repeats examples for beams, but encodes their images once. Raises LayoutError where rows and tokens
        do not match otherwise.
        """
        if not self._tables:
            raise LayoutError(
                "The images were encoded before the pruner was attached; pass pixel_values while it is attached."
            )
        tables = sorted(self._tables, key=lambda table: table.kind)
        kinds = [np.zeros(len(mine), dtype=np.int64) for mine in rows]
        if len(tables) > 1 and videos is not None:
            kinds = [flags[mine].astype(np.int64) for flags, mine in zip(videos.cpu().numpy(), rows, strict=True)]
        totals = [len(table.patches) for table in tables]
        numbers = token_numbers(kinds, totals) if [table.kind for table in tables] in KNOWN else None
        if numbers is None:
            raise LayoutError(
                f"The model encoded {sum(totals)} visual tokens, and the prompts have {sum(map(len, rows))}; pass the "
                "pixels of all their images in one call, and no others."
            )
        whole = reduce(PatchTable.followed_by, tables)
        found: list[Vision | None] = []
        for mine, layout in zip(numbers, layouts, strict=True):
            kept = torch.from_numpy(np.delete(mine, list(layout.spared)))
            found.append(Vision(self.depth, self.crops, whole, torch.split(kept, layout.tokens_per_image)))
        return found

    def crops(self, layer: int) -> list[Crop]:
        """All pictures in one of the wanted layers."""
        return self._seen[self.stand_in(layer)]


def _tokens(output: Any) -> int:
    """How many visual tokens a model's function for features gave, one tensor or one for each image."""
    features = getattr(output, "pooler_output", output)
    parts = [features] if isinstance(features, Tensor) else features
    return sum(part.numel() // part.shape[-1] for part in parts)


def _lengths(queries: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> list[list[int]]:
    """Per entry of `[batch, heads, m, head_dim]` how many rows belong to each picture that attends to itself alone: all
    m of them to one, unless lengths or a mask of blocks say otherwise, or that the last ones are padding. Raises
    UnsupportedModelError for any other mask."""
    batch, _, rows, _ = queries.shape
    if kwargs.get("cu_seq_lens_q") is not None:
        return [kwargs["cu_seq_lens_q"].diff().tolist()]
    if mask is None:
        return [[rows]] * batch
    # Flash kernels are told of padding alone, `[batch, m]`.
    seen = mask.bool()[:, None] if mask.ndim == 2 else is_open(mask)[:, 0]
    if bool(seen.all()):
        return [[rows]] * batch
    if seen.shape[-1] == rows and seen.shape[-2] in (1, rows):
        seen = seen.expand(batch, rows, -1)
        counts = seen[:, 0].sum(-1)
        if torch.equal(seen, (torch.arange(rows, device=seen.device) < counts[:, None])[:, None].expand_as(seen)):
            return [[count] for count in counts.tolist()]
        block = functional.pad((~seen[0].diagonal(-1)).long().cumsum(0), (1, 0))
        if batch == 1 and torch.equal(seen[0], block[:, None] == block[None]):
            return [block.bincount().tolist()]
    raise UnsupportedModelError(f"This vision tower hides patches of a picture from each other; {ANOTHER}")


def tower_layers(tower: nn.Module) -> nn.ModuleList:
    """The layers of a vision transformer: its longest list of modules, one that attends where there is any. Raises
    UnsupportedModelError without one."""
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise UnsupportedModelError(f"{type(tower).__name__} has no list of layers whose attention could be read.")
    return max(lists, key=lambda layers: (any(map(is_routed, layers.modules())), len(layers)))
