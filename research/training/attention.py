"""Attention of packed questions (`sequence`), without the scores that their mask would take away.

With all questions of a picture in one row, most of what a masked attention computes is between questions that do not
see each other. Here a question meets the prefix and itself only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from research.training.sequence import PackedBatch

ATTENTION = "visipruner_packed_questions"


@dataclass(frozen=True)
class Blocks:
    """Where the questions of a packed row are: after `prefix` rows, `count` of them, the longest of `longest` tokens.

    `slots` [rows after the prefix] is each row's place when every question is padded to `longest`.
    """

    prefix: int
    count: int
    longest: int
    slots: Tensor

    @classmethod
    def of(cls, packed: PackedBatch, prefix: int) -> "Blocks":
        """Of a batch of one row: a question begins where positions start again."""
        positions = packed.position_ids[0, prefix:] - prefix
        numbers = (positions == 0).cumsum(0) - 1
        count, longest = int(numbers[-1]) + 1, int(positions.max()) + 1
        return cls(prefix, count, longest, numbers * longest + positions)

    def pad(self, rows: Tensor) -> Tensor:
        """[..., rows, d] -> [count, ..., longest, d], zero where a question has ended."""
        rows = rows.movedim(-2, 0)
        padded = rows.new_zeros(self.count * self.longest, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return padded.reshape(self.count, self.longest, *rows.shape[1:]).movedim(1, -2)

    def unpad(self, padded: Tensor) -> Tensor:
        """[count, ..., longest, d] -> [..., rows, d]."""
        return padded.movedim(-2, 1).flatten(0, 1).index_select(0, self.slots).movedim(0, -2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    packed: Blocks,
    **_: object,
) -> tuple[Tensor, None]:
    """What a masked attention gives for a packed row; [1, heads, rows, d] -> [1, rows, heads, d]. Used through
    transformers' `AttentionInterface`."""
    start, key_heads = packed.prefix, key.shape[1]
    query = (query[0] * scaling).reshape(key_heads, -1, *query.shape[2:])
    seen, key = key[0, :, :start], key[0, :, start:]
    told, value = value[0, :, :start], value[0, :, start:]

    prefix, asking = query[:, :, :start], query[:, :, start:]
    scores = _grouped(prefix, seen.mT) + _causal(start, query)
    prefix = _grouped(scores.softmax(dim=-1), told)

    far = _grouped(asking, seen.mT)
    near = _grouped(packed.pad(asking), packed.pad(key).mT) + _causal(packed.longest, query)
    shares = torch.cat((far, packed.unpad(near)), dim=-1).softmax(dim=-1)
    own = _grouped(packed.pad(shares[..., start:]), packed.pad(value))
    asking = _grouped(shares[..., :start], told) + packed.unpad(own)

    out = torch.cat((prefix, asking), dim=2).flatten(0, 1)
    return out.transpose(0, 1)[None], None


def _grouped(rows: Tensor, other: Tensor) -> Tensor:
    """[..., key heads, shared, rows, n] @ [..., key heads, n, m]: heads that share keys are rows of one product."""
    product: Tensor = rows.flatten(-3, -2) @ other
    return product.reshape(*rows.shape[:-1], other.shape[-1])


def _causal(length: int, like: Tensor) -> Tensor:
    """[length, length]: what to add to scores so that a row sees none after it."""
    return torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype).triu(1)


def use_packed_attention(language_model: PreTrainedModel) -> None:
    """Let a language model attend so; its forward then takes `packed`, the `Blocks` of the row, and no mask."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    language_model.set_attn_implementation(ATTENTION)


def _no_mask(*_: object, **__: object) -> None:
    """`Blocks` say which rows see which."""
