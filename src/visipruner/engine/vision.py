"""What the vision tower attended to: queries and keys of a few of its layers, read while it encodes the images.

No attention map is formed unless a pruner asks, and then only the rows asked for, whatever kernel the tower runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from visipruner.contract.layout import TokenLayout, square
from visipruner.contract.vision_view import VisionView
from visipruner.engine import attention
from visipruner.engine.attention import QKV, host_kernel, uncompiled
from visipruner.engine.calls import brings_pixels, scaling_of
from visipruner.engine.masks import is_open
from visipruner.engine.patch import Implementation, Replaced
from visipruner.engine.threads import PerThread, Threads
from visipruner.errors import LayoutError, UnsupportedModelError

MAX_WINDOW = 4  # the largest square of patches that a known model makes one token of


class VisionTap:
    """Runs the attention of a vision tower and remembers it for some layers, for each thread until its `clear`.

    Args:
        tower: a stock vision transformer. wanted: numbers of the layers wanted; negative ones count from the end.

    Raises UnsupportedModelError for a tower without such layers, or whose attention ours cannot stand in for.
    """

    _seen = PerThread[dict[int, list[tuple[Tensor, Tensor, float]]]](dict)
    _outputs = PerThread[dict[int, list[Tensor]]](dict)
    # Whether what was seen is of no use to another prompt: its prompt was begun, or the tower did not get through.
    _is_spent = PerThread[bool](bool)

    def __init__(self, tower: nn.Module, wanted: Sequence[int]) -> None:
        self._layers = tower_layers(tower)
        self.depth = depth = len(self._layers)
        missing = [layer for layer in wanted if not -depth <= layer < depth]
        if missing:
            raise UnsupportedModelError(f"The vision tower has {depth} layers, and none numbered {missing[0]}.")
        self._tower, self.wanted = tower, {layer % depth for layer in wanted}
        configs = {id(part.config): part.config for part in tower.modules() if hasattr(part, "config")}
        self._configs: list[Any] = list(configs.values())
        self._implementation: str = self._configs[0]._attn_implementation
        self._ours = Implementation(self._configs, self._implementation)
        registers = max(int(getattr(config, "num_register_tokens", 0) or 0) for config in self._configs)
        self._prefixes = (1 + registers, 0)
        self.threads = Threads()
        self._hooks: list[RemovableHandle] = []
        self._replaced = Replaced()

    def install(self, model: nn.Module) -> None:
        """Puts our attention function under every layer of the tower of `model`; only the wanted ones are remembered.

        What `generate` encodes belongs to it, which hooks alone could not tell: it runs the tower by itself.
        """
        self._hooks.append(self._tower.register_forward_pre_hook(uncompiled(self._begin)))
        for number, layer in enumerate(self._layers):
            for part in layer.modules():  # whichever of them calls the attention function
                attention.own(part, self, number)
            if number in self.wanted:
                self._hooks.append(layer.register_forward_hook(self._keep_output(number)))
        self._hooks.append(self._tower.register_forward_hook(uncompiled(self._finish)))
        if hasattr(type(model), "generate"):
            self._replaced.replace(model, "generate", self._around_generate())
        self._ours.put()

    def remove(self) -> None:
        """The tower is as it was."""
        self.threads = Threads()  # no thread remembers an image
        self._replaced.remove()
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            for part in layer.modules():
                attention.disown(part)
        self._ours.restore()

    def _begin(self, module: nn.Module, args: Any) -> None:
        """Before the tower runs, which it may do several times for one prompt."""
        self._ours.check()
        if self._is_spent:
            self.clear()
        self._is_spent = True

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, unless it was interrupted."""
        self._is_spent = False

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
        self._outputs.clear()

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Called by the attention of every layer of the tower."""
        if layer in self.wanted:
            if mask is not None and not bool(is_open(mask).all()):
                raise UnsupportedModelError("This vision tower masks patches; its attention cannot be read yet.")
            queries, keys, _ = (part.detach() for part in qkv)
            scaling = scaling_of(kwargs, queries)
            self._seen.setdefault(layer, []).extend((q, k, scaling) for q, k in zip(queries, keys, strict=True))
        return host_kernel(module, self._implementation)(module, *qkv, mask, **kwargs)

    def _keep_output(self, layer: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._outputs.setdefault(layer, []).extend(states.detach())

        return keep

    # ---- which image is whose --------------------------------------------------------------------------------------

    def images_of(self, image_rows: Sequence[int]) -> tuple[list[list[int]], int, int]:
        """Per example the numbers of its images, then tokens per image and the side of a token's window of patches.

        `image_rows`: per example the rows that hold image features, its last one too. `generate` repeats examples for
        beams, but encodes their images once. Raises LayoutError where rows and patches do not match otherwise.
        """
        sizes = {queries.shape[1] for seen in self._seen.values() for queries, _, _ in seen}
        count = max((len(seen) for seen in self._seen.values()), default=0)
        if not count:
            raise LayoutError(
                "The images were encoded before the pruner was attached; pass pixel_values while it is attached."
            )
        for tokens, window in _tokens_of_an_image(sizes, self._prefixes):
            if any(rows % tokens for rows in image_rows):
                continue
            numbers = [rows // tokens for rows in image_rows]
            repeats = sum(numbers) // count
            if _come_in_groups(numbers, repeats) and sum(numbers) == repeats * count:
                return _numbered(numbers, repeats), tokens, window
        raise LayoutError(
            f"The vision tower gave {count} images of {sorted(sizes)} rows for {sum(image_rows)} visual tokens, "
            "which do not match; choose a method that does not look at the tower (`visipruner list`)."
        )

    def view(self, layer: int, image: int, tokens: int, window: int) -> VisionView:
        """One image of the batch that was encoded, in one of the wanted layers."""
        number = layer % len(self._layers)
        queries, keys, scaling = self._seen[number][image]
        prefix = queries.shape[1] - tokens * window**2
        return VisionView(queries, keys, self._outputs[number][image], scaling, prefix, window)


def _tokens_of_an_image(sizes: set[int], prefixes: Sequence[int]) -> list[tuple[int, int]]:
    """What an image of so many rows can be: (tokens, side of a token's window of patches), likely ones first."""
    found = []
    if len(sizes) == 1:
        for window in range(1, MAX_WINDOW + 1):
            for prefix in prefixes:
                patches = min(sizes) - prefix
                side = math.isqrt(max(patches, 0))
                if patches > 0 and (window == 1 or (side**2 == patches and side % window == 0)):
                    found.append((patches // window**2, window))
    return found


def tower_layers(tower: nn.Module) -> nn.ModuleList:
    """The layers of a vision transformer: its longest list of modules. Raises UnsupportedModelError without one."""
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise UnsupportedModelError(f"{type(tower).__name__} has no list of layers whose attention could be read.")
    return max(lists, key=len)


@dataclass(frozen=True, eq=False)
class Vision:
    """One example's images in the tower: their numbers in what it encoded, and how they became tokens."""

    tap: VisionTap
    images: list[int]
    tokens: int
    window: int

    @property
    def depth(self) -> int:
        """Layers of the tower."""
        return self.tap.depth

    def views(self, layer: int) -> list[VisionView]:
        """The images in one of the wanted layers."""
        return [self.tap.view(layer, image, self.tokens, self.window) for image in self.images]


def _come_in_groups(numbers: Sequence[int], size: int) -> bool:
    """Whether examples come in groups of `size` with the same number of images each."""
    if size < 1 or len(numbers) % size:
        return False
    return all(number == numbers[place - place % size] for place, number in enumerate(numbers))


def _numbered(numbers: Sequence[int], repeats: int) -> list[list[int]]:
    """Images of examples that have so many, in order; examples come `repeats` times each."""
    images, start = [], 0
    for number in numbers[::repeats]:
        images += [list(range(start, start + number))] * repeats
        start += number
    return images


def read_tower(tap: VisionTap, layouts: Sequence[TokenLayout]) -> tuple[list[TokenLayout], list[Vision | None]]:
    """The examples' images as the tower saw them: layouts cut into its images, and a look at them per example."""
    images, tokens, window = tap.images_of([len(layout.visual) + len(layout.spared) for layout in layouts])
    found: list[TokenLayout] = []
    for layout, mine in zip(layouts, images, strict=True):
        grids = [grid for grid in layout.grids if grid is not None and grid[0] * grid[1] == tokens]
        sizes = [tokens] * len(mine)
        shapes = [grids[0] if grids else square(tokens)] * len(mine)
        for row in layout.spared:
            sizes[row // tokens], shapes[row // tokens] = tokens - 1, None
        found.append(replace(layout, tokens_per_image=sizes, grids=shapes))
    return found, [Vision(tap, mine, tokens, window) for mine in images]
