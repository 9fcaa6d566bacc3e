"""What pruning did to one forward of prompts: who was kept where, and what ran. Records only; no model, no tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from visipruner.shape import ModelShape


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
    """

    rows: int = 0
    attention_rows: int = 0
    key_rows: int = 0
    value_rows: int = 0
    attention_pairs: int = 0
    score_pairs: int = 0
    score_rows: int = 0


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


@dataclass
class PruneTrace:
    """What the last prompts went through: one `ExampleTrace` per example of the batch (per beam, under beam search).

    `trace[b]` is one example; `trace.trigger_layer`, `.exit_layer`, `.exit_votes`, `.kept`, `.query_lengths` and
    `.key_lengths` are lists with one entry per example.
    """

    shape: ModelShape
    examples: list[ExampleTrace]
    dtype_bytes: int = 2

    def __getitem__(self, index: int) -> ExampleTrace:
        return self.examples[index]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def trigger_layer(self) -> list[int | None]:
        return [example.trigger_layer for example in self.examples]

    @property
    def exit_layer(self) -> list[int | None]:
        return [example.exit_layer for example in self.examples]

    @property
    def exit_votes(self) -> list[list[int]]:
        return [example.exit_votes for example in self.examples]

    @property
    def kept(self) -> list[list[list[int]]]:
        return [example.kept for example in self.examples]

    @property
    def query_lengths(self) -> list[list[int]]:
        return [example.query_lengths for example in self.examples]

    @property
    def key_lengths(self) -> list[list[int]]:
        return [example.key_lengths for example in self.examples]

    def kept_grid(self, image: int = 0, example: int = 0, layer: int | None = None) -> list[list[bool]]:
        """See `ExampleTrace.kept_grid`."""
        return self.examples[example].kept_grid(image, layer)

    def flops(self, example: int = 0) -> int:
        """Exact FLOPs (two per multiply-add) the decoder spent on one example's prompt, without the output head."""
        from visipruner.accounting import prompt_macs

        return prompt_macs(self.shape, self.examples[example]).flops

    def flops_cut(self, example: int = 0) -> float:
        """The fraction of the dense decoder's FLOPs for the same rows that was not spent; counted, not the paper's.
        A picture shown smaller is held against its full size."""
        from visipruner.accounting import prompt_cut

        traced = self.examples[example]
        dense = max([traced.prompt_length, *(work.rows for work in traced.work)]) + traced.unseen_rows
        return prompt_cut(self.shape, traced, dense_length=dense)

    def visual_attention_cut(self, example: int = 0) -> float:
        """The paper's cut of visual attention for one example (`accounting.visual_attention_cut`)."""
        from visipruner.accounting import model_from_trace, schedule_from_trace, visual_attention_cut

        traced = self.examples[example]
        return visual_attention_cut(model_from_trace(self.shape, traced), schedule_from_trace(traced))

    def kv_bytes(self, example: int = 0) -> int:
        """Bytes of keys and values that one example's prompt leaves in the cache."""
        from visipruner.accounting import expected_kv_bytes

        return expected_kv_bytes(self.shape, self.examples[example].key_lengths, self.dtype_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "shape": self.shape.to_dict(),
            "dtype_bytes": self.dtype_bytes,
            "examples": [example.to_dict() for example in self.examples],
        }

    def __str__(self) -> str:
        lines = []
        for index, example in enumerate(self.examples):
            left = [len(kept) for kept in example.kept[:-1]]
            lines.append(
                f"example {index}: {example.num_visual} visual of {example.prompt_length} rows; "
                f"trigger layer {example.trigger_layer}, exit layer {example.exit_layer}; visual rows per layer {left}"
            )
        return "\n".join(lines)


def plain_trace(shape: ModelShape, lengths: list[int], seq: int, dtype_bytes: int) -> PruneTrace:
    """The record of prompts without an image, `lengths` rows each, padded to `seq`: nothing to prune, all ran."""
    layers = shape.num_layers
    examples = [
        ExampleTrace(
            prompt_length=length,
            num_visual=0,
            kept=[[] for _ in range(layers + 1)],
            query_lengths=[length] * layers,
            visual_attention=[True] * layers,
            key_lengths=[length] * layers,
            work=[LayerWork(seq, seq, seq, seq, seq * seq) for _ in range(layers)],
        )
        for length in lengths
    ]
    return PruneTrace(shape, examples, dtype_bytes)
