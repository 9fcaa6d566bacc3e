"""Packs several questions about one picture into one pass: the picture's tokens are run once and every question
attends to them and to itself.

Row layout: prefix (system prompt and picture), then one block per question (question, answer). Blocks do not see
each other, and each restarts its positions after the prefix, so every question is computed as if it were asked alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaProcessor

from research.scenes import Question
from visipruner_testbed.assembly.language import IMAGE_TOKEN, SYSTEM_PROMPT

_IGNORE = -100


@dataclass(frozen=True)
class PackedBatch:
    """Token rows of a batch, right padded.

    `input_ids`, `position_ids`, `labels`, `weights` are [batch, seq] (`labels` are next tokens, -100 where nothing is
    learnt; `weights` are each answer token's share of the loss); `attention_mask` is bool [batch, 1, seq, seq], true
    where a row may look.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    weights: Tensor
    attention_mask: Tensor


class Packer:
    """Turns question lists into `PackedBatch`es with the wording of the chat template.

    `tallying`: a count is answered with the tally before the number.
    """

    def __init__(self, processor: LlavaProcessor, visual_tokens: int, tallying: bool = False) -> None:
        self._tokenizer, self._tallying = processor.tokenizer, tallying
        opening = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
        self.prefix = self._encode(opening + IMAGE_TOKEN * visual_tokens)

    def pack(self, questions: list[list[Question]]) -> PackedBatch:
        """One row per picture."""
        rows = [self._row(asked) for asked in questions]
        longest = max(len(row[0]) for row in rows)
        ids, positions, labels, blocks = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(4))
        weights = torch.zeros(len(rows), longest)
        labels.fill_(_IGNORE)
        ids.fill_(self._tokenizer.pad_token_id)
        blocks.fill_(-1)
        for index, (row_ids, row_positions, row_labels, row_blocks, row_weights) in enumerate(rows):
            length = len(row_ids)
            ids[index, :length] = torch.tensor(row_ids)
            positions[index, :length] = torch.tensor(row_positions)
            labels[index, :length] = torch.tensor(row_labels)
            blocks[index, :length] = torch.tensor(row_blocks)
            weights[index, :length] = torch.tensor(row_weights)
        return PackedBatch(ids, positions, labels, weights, block_mask(blocks))

    def _row(self, questions: list[Question]) -> tuple[list[int], list[int], list[int], list[int], list[float]]:
        ids = list(self.prefix)
        start = len(ids)
        positions, labels, blocks, weights = list(range(start)), [_IGNORE] * start, [0] * start, [0.0] * start
        for number, question in enumerate(questions, start=1):
            asked = self._encode(f"{question.question}<|im_end|>\n<|im_start|>assistant\n")
            # The leading space makes an everyday name one token, the very token the name has in running text.
            said = question.worked_out if self._tallying else question.answer
            answer = self._encode(f" {said}<|im_end|>")
            block = asked + answer
            ids += block
            positions += range(start, start + len(block))
            blocks += [number] * len(block)
            labels += [_IGNORE] * (len(asked) - 1) + answer + [_IGNORE]
            share = len(answer) ** -0.5
            weights += [0.0] * (len(asked) - 1) + [share] * len(answer) + [0.0]
        return ids, positions, labels, blocks, weights

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def block_mask(blocks: Tensor) -> Tensor:
    """[batch, seq] block numbers (0 prefix, 1.. questions, -1 padding) -> bool [batch, 1, seq, seq]: causal, own
    block and prefix only."""
    length = blocks.shape[1]
    same = blocks[:, :, None] == blocks[:, None, :]
    to_prefix = (blocks == 0)[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((same | to_prefix) & causal)[:, None]
