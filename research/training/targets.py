"""What each patch of a scene should read as, in the language model's own words: the target of the warm start.

The target of a patch is the embedding of the name of the thing it shows, plus those of the thing's colour (where it
has one), of its place ("top", "left", ...; background patches have their own) and of its size ("large", "small"); the
patch in the middle of a thing is also marked as an "object", so that things can be counted. Nothing that takes several
things to know (how many there are, which is larger) is written on a patch: that is left to the language model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.scenes import Example
from research.scenes.scene import third
from research.scenes.vocabulary import COLORS, LABELS, OBJECTS, SHAPES, WORDS

COLOR_SHARE, PLACE_SHARE, SIZE_SHARE = 0.8, 0.8, 1.0
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_TEXTURE = "texture"
_MARK = "object"
# A patch belongs to a thing that covers this much of it, to the background where things cover less than that.
_OWNED, _FREE = 0.4, 0.1


@dataclass(frozen=True)
class PatchLabels:
    """Of `n` patches: `names` [n] and `colors` [n] are indices into `PatchTargets.names` and `COLORS`, -1 where there
    is none; `rows` and `columns` [n] are thirds of the picture, 0 to 2; `marked` [n] is true in the middle of a thing,
    `known` [n] where the patch shows one thing or none; `vectors` [n, d_model] are the targets."""

    names: Tensor
    colors: Tensor
    rows: Tensor
    columns: Tensor
    marked: Tensor
    known: Tensor
    vectors: Tensor


class PatchTargets:
    """Labels and target embeddings of the patches of an example. The patches of a number have the digit they show."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self._table = model.get_input_embeddings().weight.detach().float()
        self._tokenizer = processor.tokenizer
        written = [*(str(digit) for digit in range(10)), *WORDS, *LABELS]
        self.names = [*OBJECTS, *SHAPES, *COLORS, _TEXTURE, *written]
        self.first_background, self.first_written = len(OBJECTS) + len(SHAPES), len(self.names) - len(written)
        # "orange" is an object and a colour: labels are looked up by what kind of thing they name.
        self._first = {
            "emoji": 0, "shape": len(OBJECTS), "plate": self.first_background, "tile": self.first_background,
            "text": self.first_written, "sign": self.first_written,
        }  # fmt: skip
        self.embeddings = torch.stack([self.embed(name) for name in self.names])
        self.colors = torch.stack([self.embed(color) for color in COLORS])
        self.mark = self.embed(_MARK)
        self.rows = torch.stack([self.embed(word) for word in _ROWS])
        self.columns = torch.stack([self.embed(word) for word in _COLUMNS])
        self._size = self.embed("large") - self.embed("small")

    def embed(self, word: str) -> Tensor:
        """[d_model]: mean embedding of the tokens of a word in running text."""
        # The tokenizer writes a number digit by digit, and the space before it as a token of its own.
        ids = self._tokenizer.encode(word if word.isdigit() else " " + word, add_special_tokens=False)
        embedding: Tensor = self._table[ids].mean(dim=0)
        return embedding

    def of(self, example: Example, side: int) -> PatchLabels:
        """Labels and targets of the `side` x `side` patches of a picture."""
        count = side * side
        names, colors = torch.full((count,), -1), torch.full((count,), -1)
        thirds = torch.tensor([third((at + 0.5) / side) for at in range(side)])
        rows, columns = thirds.repeat_interleave(side), thirds.repeat(side)
        sizes, marked = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        share = _shares(example, side)
        owner = share.argmax(dim=1) - 1
        free = share[:, 1:].sum(dim=1) < _FREE
        known = free | ((owner >= 0) & (share.max(dim=1).values > _OWNED))
        behind = example.scene.background.color
        names[free] = self._index("tile", behind) if behind else self.names.index(_TEXTURE)
        for number, item in enumerate(example.scene.items):
            mine = known & ~free & (owner == number)
            if item.name.isdigit():
                names[mine] = self._digits(side, item.x, item.name).repeat(side)[mine]
            else:
                names[mine] = self._index(item.kind, item.name.removesuffix(":"))
            if item.kind == "tile":  # is background
                continue
            if item.color:
                colors[mine] = tuple(COLORS).index(item.color)
            rows[mine], columns[mine] = item.row, item.column
            sizes[mine] = math.log2(item.size / 0.3)
            marked[min(int(item.y * side), side - 1) * side + min(int(item.x * side), side - 1)] = True
        vectors = self.embeddings[names.clamp(min=0)] + PLACE_SHARE * (self.rows[rows] + self.columns[columns])
        vectors += COLOR_SHARE * self.colors[colors.clamp(min=0)] * (colors >= 0)[:, None]
        vectors += SIZE_SHARE * sizes[:, None] * self._size + marked[:, None] * self.mark
        return PatchLabels(names, colors, rows, columns, marked, known, vectors)

    def _digits(self, side: int, x: float, number: str) -> Tensor:
        """[side]: the label of the digit that each column of patches shows of a number centred at `x`."""
        right = (torch.arange(side) + 0.5) / side > x
        labels = torch.tensor([self._index("text", digit) for digit in number])
        return labels[right.long() if len(number) == 2 else torch.zeros(side, dtype=torch.long)]

    def _index(self, kind: str, name: str) -> int:
        return self.names.index(name, self._first[kind])


def _shares(example: Example, side: int) -> Tensor:
    """[side * side, 1 + items]: how much of each patch shows the background, then each item."""
    owner = torch.from_numpy(example.owner) + 1
    cell = owner.shape[0] // side
    cells = owner.reshape(side, cell, side, cell).permute(0, 2, 1, 3).reshape(side * side, -1)
    counts = torch.zeros(side * side, 1 + len(example.scene.items))
    counts.scatter_add_(1, cells, torch.ones(cells.shape))
    return counts / cells.shape[1]
