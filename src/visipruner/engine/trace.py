"""What pruning did to the last prompts, and what that saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visipruner.accounting.record import ExampleTrace
from visipruner.models.shape import ModelShape


class PruneTrace:
    """What the last prompts went through: one `ExampleTrace` per example of the batch (per beam, under beam search).

    `trace[b]` is one example; `trace.trigger_layer`, `.exit_layer`, `.exit_votes`, `.kept`, `.query_lengths` and
    `.key_lengths` are lists with one entry per example. What is still on a device is read when it is first asked for.

    Args:
        shape: the decoder's sizes. examples: the records, or what reads them. dtype_bytes: bytes of a number there.
    """

    def __init__(
        self, shape: ModelShape, examples: list[ExampleTrace] | Callable[[], list[ExampleTrace]], dtype_bytes: int = 2
    ) -> None:
        self.shape, self.dtype_bytes = shape, dtype_bytes
        self._examples = examples

    @property
    def examples(self) -> list[ExampleTrace]:
        if callable(self._examples):
            self._examples = self._examples()
        return self._examples

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
        """Exact FLOPs (two per multiply-add) the decoder spent on one example's prompt, without the output head; rows
        that came back later included."""
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
        """Bytes of keys and values that one example's prompt has in the cache, those that came back included."""
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
            back = sum(len(event.tokens) for event in example.recalled)
            lines.append(
                f"example {index}: {example.num_visual} visual of {example.prompt_length} rows; "
                f"trigger layer {example.trigger_layer}, exit layer {example.exit_layer}; visual rows per layer {left}"
                + (f"; {back} came back" if back else "")
            )
        return "\n".join(lines)


def plain_examples(shape: ModelShape, lengths: list[int], seq: int) -> list[ExampleTrace]:
    """The records of prompts without an image, `lengths` rows each, padded to `seq`: nothing to prune, all ran."""
    from visipruner.accounting import dense_work

    layers = shape.num_layers
    return [
        ExampleTrace(
            prompt_length=length,
            num_visual=0,
            kept=[[] for _ in range(layers + 1)],
            query_lengths=[length] * layers,
            visual_attention=[True] * layers,
            key_lengths=[0 if layer in shape.state_layers else length for layer in range(layers)],
            work=dense_work(shape, seq),
        )
        for length in lengths
    ]
