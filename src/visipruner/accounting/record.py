"""What pruning did to one example: which tokens each layer kept, and what ran. Records only; no model, no tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LayerWork:
    """What one decoder layer computed for one example, as executed (padding rows included where they ran).

    Attributes:
        rows: rows through norms, residual and FFN.
        attention_rows: rows through the query and output projections.
        key_rows: rows through the key projection. value_rows: rows through the value projection.
        attention_pairs: (query, key) pairs the attention kernels were given, per head; rectangles count in full.
        score_pairs: (query, key) pairs computed on top, for a pruner's score, per head.
        score_rows: rows through query, key and value projections on top, for a pruner's score.
        state_rows: rows that a state passes through, in layers that have one in place of attention.
    """

    rows: int = 0
    attention_rows: int = 0
    key_rows: int = 0
    value_rows: int = 0
    attention_pairs: int = 0
    score_pairs: int = 0
    score_rows: int = 0
    state_rows: int = 0


@dataclass(frozen=True)
class Recalled:
    """Visual tokens that came back while the answer was decoded.

    Attributes:
        step: rows after the prompt when they did, the newest included: it sees them, and so do all after it.
        layer: the first layer that they had missed. tokens: indices among the prompt's visual tokens, ascending.
    """

    step: int
    layer: int
    tokens: list[int]


@dataclass
class ExampleTrace:
    """One example of the last pruned prompt.

    Attributes:
        prompt_length: rows of the prompt, padding excluded.
        num_visual: visual rows among them.
        unseen_rows, unseen_visual: rows, and visual rows among them, that the prompt would have had on top with its
            picture in full size; 0 but for methods that show it smaller.
        grids: per image `(rows, columns)` of its visual tokens, where the layout is a grid, else None.
        tokens_per_image: visual tokens of each image, in prompt order; sums to `num_visual`.
        trigger_layer: the last layer that ran with every visual token, or None where no layer did, or all did. Of a
            composition: what its first part that has one says, such as VisiPruner's filter layer.
        exit_votes: layers that counted towards the exit, ascending.
        merged: layers on whose entry kept tokens took over what others held.
        renumbered: layers on whose entry rows closed up over tokens that left, so that their positions are not those of
            the whole prompt any more.
        kept: `kept[l]` are the visual tokens (indices among the prompt's visual tokens, ascending) that enter layer
            `l`; the last entry, `kept[num_layers]`, are those chosen at the last layer, which no layer runs any more.
        query_lengths: rows that ran in each layer, padding excluded.
        visual_attention: per layer, whether text rows attended to the visual rows as in the plain model.
        frozen: layers in which visual rows only gave keys and values, and did not run.
        key_lengths: keys that each layer holds for later tokens once the prompt is processed, padding excluded.
        work: what each layer executed.
        recalled: what came back later. Its rows, and looks at the answer's, count in `work`, its keys in `key_lengths`;
            all else is of the prompt as it was read.
    """

    prompt_length: int
    num_visual: int
    tokens_per_image: list[int] = field(default_factory=list)
    grids: list[tuple[int, int] | None] = field(default_factory=list)
    trigger_layer: int | None = None
    exit_votes: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    renumbered: list[int] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    query_lengths: list[int] = field(default_factory=list)
    visual_attention: list[bool] = field(default_factory=list)
    key_lengths: list[int] = field(default_factory=list)
    work: list[LayerWork] = field(default_factory=list)
    recalled: list[Recalled] = field(default_factory=list)
    unseen_rows: int = 0
    unseen_visual: int = 0

    @property
    def dense_visual(self) -> int:
        """Visual tokens of the dense model's prompt."""
        return self.num_visual + self.unseen_visual

    @property
    def exit_layer(self) -> int | None:
        """First layer that runs without a visual token again, or None; 0 where no layer ran with one."""
        if self.num_visual == 0:
            return None
        seen = 0
        for layer, kept in enumerate(self.kept[:-1]):
            if seen and not kept:
                return layer
            seen += len(kept)
        return None if seen else 0

    def kept_grid(self, image: int = 0, layer: int | None = None) -> list[list[bool]]:
        """Which tokens of one image are kept, as rows and columns of its grid.

        `layer` defaults to the first layer after the trigger (every token is kept when nothing triggered). Raises
        ValueError where the image's tokens do not form a grid.
        """
        grid = self.grids[image] if image < len(self.grids) else None
        if grid is None:
            raise ValueError(f"image {image} of this prompt has no token grid: its {self.num_visual} tokens are a list")
        if layer is None:
            layer = 0 if self.trigger_layer is None else self.trigger_layer + 1
        start = sum(self.tokens_per_image[:image])
        kept = {token - start for token in self.kept[layer]}
        height, width = grid
        return [[row * width + column in kept for column in range(width)] for row in range(height)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `exit_layer` included."""
        return {**asdict(self), "exit_layer": self.exit_layer}
