"""Chats in which the image came turns ago, by each family's own processor and a chat template."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import visipruner as vp
from tests.families.checkpoints import processor_of
from tests.families.prompts import extended
from tests.families.test_matrix import CLOSE, PRUNERS, STEPS, follows_the_oracle, generate
from tests.families.tried import tries
from tests.families.zoo import DISTINCT, FAMILIES, built, visual_rows
from tests.oracle import oracle, pruned_edit

each_family = pytest.mark.parametrize("name", DISTINCT)
each_pruner = pytest.mark.parametrize("pruner", ["detect", "prefix"])
Turn = dict[str, Any]


def _turn(role: str, text: str, *images: Image.Image) -> Turn:
    content = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def _first() -> Turn:
    return _turn("user", "w5 w6 w7", Image.linear_gradient("L").resize((60, 40)).convert("RGB"))


def _prepared(name: str, turns: list[Turn]) -> dict[str, Any]:
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prepared = dict(processor_of(name).apply_chat_template(turns, **settings))
    prepared.pop("labels", None)  # PaliGemma's, for training
    return prepared


def _words(name: str, turn: Turn) -> Tensor:
    """A turn of text alone, `[1, n]`: some processors want a picture with every text."""
    processor = processor_of(name)
    text = processor.apply_chat_template([turn], tokenize=False)
    return processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]  # type: ignore[no-any-return]


def _attn(name: str) -> str:
    return "eager" if name == "paligemma2" else "sdpa"


@tries("chat")
@each_family
@each_pruner
def test_in_one_prompt(name: str, pruner: str) -> None:
    turns = [_first(), _turn("assistant", "w8 w9"), _turn("user", "w10 w11 w12")]
    prepared = _prepared(name, turns)
    words = prepared["input_ids"][0, -8:].tolist()
    assert [word for word in words if word in range(3, 13)][-7:] == [4, 8, 9, 3, 10, 11, 12]
    follows_the_oracle(name, _attn(name), pruner, prepared)


@tries("chat", "next turn")
@each_family
@each_pruner
def test_turn_by_turn_on_the_same_cache(name: str, pruner: str) -> None:
    model, family, first = built(name, _attn(name)), FAMILIES[name], _prepared(name, [_first()])
    visual = visual_rows(first["input_ids"])[0]
    with vp.attach(model, PRUNERS[pruner]) as handle:
        answer = generate(model, first)
        kept = handle.trace[0].kept
        assert len(kept[-1]) < int(visual.sum())
        for question in ("w10 w11 w12", "w13 w14"):
            ids = torch.cat([answer.sequences, _words(name, _turn("user", question))], 1)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            answer = generate(model, given, past_key_values=answer.past_key_values)
            assert handle.trace[0].kept == kept, "text brings nothing to prune"
    longer = extended(first, answer.sequences[:, len(visual) : -1], family.types, family.later_type)
    with oracle(model, pruned_edit(visual, kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, -STEPS:]
    torch.testing.assert_close(torch.stack(answer.logits, 1)[0], expected, **CLOSE)
