"""Invariant 3: each example of a batch keeps its own set and gets what it gets alone, on either padding side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visipruner as vp
from tests.engine.cases import METHODS, PRUNERS, cells, generate
from tests.models import GRID, IMAGE_TOKEN, LAYERS, llava_inputs, llava_model, prompt, text_model

LAYOUTS = [[3, 0, 9], [12], [5, 0, 2, 0, 4], [0, 6]]
IMAGES = [1, 0, 2, 1]
_ALL = [(text, attn) for text in ("llama", "mistral-sliding") for attn in ("sdpa", "eager")]


def _alone(inputs: dict[str, Any], example: int) -> dict[str, Any]:
    real = inputs["attention_mask"][example].bool()
    first = sum(IMAGES[:example])
    alone = {"input_ids": inputs["input_ids"][example][real][None], "attention_mask": real[real].long()[None]}
    if IMAGES[example]:
        alone["pixel_values"] = inputs["pixel_values"][first : first + IMAGES[example]]
    return alone


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("pruner", "text", "attn"), cells(_ALL, [("llama", "sdpa"), ("llama", "eager")]))
def test_a_batch_gives_what_its_examples_give_alone(text: str, pruner: str, side: str, attn: str) -> None:
    model = llava_model("clip", text, attn)
    inputs = llava_inputs(LAYOUTS, side)
    with vp.attach(model, METHODS[pruner]) as handle, torch.no_grad():
        logits = model(**inputs).logits
        together = handle.trace
        for example in range(len(LAYOUTS)):
            alone = model(**_alone(inputs, example)).logits[0]
            real = inputs["attention_mask"][example].bool() & (inputs["input_ids"][example] != IMAGE_TOKEN)
            text_rows = _alone(inputs, example)["input_ids"][0] != IMAGE_TOKEN
            torch.testing.assert_close(logits[example][real], alone[text_rows], atol=2e-5, rtol=1e-4)
            ours, theirs = handle.trace[0], together[example]
            assert (ours.kept, ours.trigger_layer, ours.exit_votes) == (
                theirs.kept,
                theirs.trigger_layer,
                theirs.exit_votes,
            )
            assert ours.query_lengths == theirs.query_lengths
            assert ours.key_lengths == theirs.key_lengths
    assert together[2].tokens_per_image == [GRID * GRID, GRID * GRID]
    assert together[1].num_visual == 0


@pytest.mark.parametrize(
    ("pruner", "attn", "cache"),
    cells([(attn, cache) for attn in ("sdpa", "eager") for cache in ("cache", "no-cache")], [("sdpa", "cache")]),
)
def test_generating_in_a_batch(pruner: str, attn: str, cache: str) -> None:
    model = llava_model("clip", "llama", attn)
    inputs = llava_inputs(LAYOUTS, "left")
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "use_cache": cache == "cache"}
    settings["suppress_tokens"] = [IMAGE_TOKEN]
    with vp.attach(model, METHODS[pruner]):
        together = model.generate(**inputs, **settings)[:, -5:]
        for example in range(len(LAYOUTS)):
            alone = model.generate(**_alone(inputs, example), **settings)[0, -5:]
            assert torch.equal(together[example], alone), example


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", METHODS)
def test_an_example_of_padding_alone_changes_nothing_for_the_others(pruner: str, attn: str) -> None:
    """Servers fill up batches with such examples; the plain model takes them."""
    model = llava_model("clip", "llama", attn)
    inputs = llava_inputs([[4, 0, 6], [26]])
    inputs["attention_mask"][1] = 0
    alone = {name: given[:1] for name, given in inputs.items()}
    with vp.attach(model, METHODS[pruner]) as handle:
        expected, kept = generate(model, 3, **alone), handle.trace.kept
        together = generate(model, 3, **inputs)
        assert handle.trace.kept == [*kept, [[]] * (LAYERS + 1)]
        assert handle.trace[1].query_lengths == [0] * LAYERS
        recorded = model(**inputs).logits  # with gradients
    assert torch.equal(together.sequences[0], expected.sequences[0])
    for logits, wanted in zip(together.logits, expected.logits, strict=True):
        torch.testing.assert_close(logits[:1], wanted, atol=2e-5, rtol=1e-4)
        assert bool(logits.isfinite().all())
    torch.testing.assert_close(recorded[:1, -1], expected.logits[0], atol=2e-5, rtol=1e-4)


def test_examples_of_a_batch_may_trigger_in_different_layers() -> None:
    model = text_model("llama")
    embeds, mask = prompt(batch=6)
    pruner = vp.VisiPruner(stages=("middle",), shallow_end=0, filter_threshold=0.85, token_threshold=0.3, relative=True)
    with vp.attach(model, pruner, mask) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds, logits_to_keep=1).logits
        together = handle.trace
    alone = []
    for row, row_mask in zip(embeds, mask, strict=True):
        with vp.attach(model, pruner, row_mask[None]), torch.no_grad():
            alone.append(model(inputs_embeds=row[None], logits_to_keep=1).logits[0])
    assert len(set(together.trigger_layer)) > 1
    assert len({len(example[-1]) for example in together.kept}) > 1
    torch.testing.assert_close(logits, torch.stack(alone), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_rows_of_visual_masks_with_padding(pruner: str, side: str) -> None:
    """The same prompt with and without padding, as `inputs_embeds` with `visual_mask`."""
    model = text_model("qwen3")
    embeds, mask = prompt()
    pad = torch.zeros(1, 3, embeds.shape[-1])
    left = side == "left"
    padded = torch.cat([pad, embeds] if left else [embeds, pad], 1)
    padded_mask = torch.nn.functional.pad(mask, (3, 0) if left else (0, 3))
    attention_mask = torch.nn.functional.pad(torch.ones_like(mask).long(), (3, 0) if left else (0, 3))
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with vp.attach(model, PRUNERS[pruner], mask) as handle:
            expected = model(inputs_embeds=embeds).logits
            kept = handle.trace.kept
        with vp.attach(model, PRUNERS[pruner], padded_mask) as handle:
            logits = model(inputs_embeds=padded, attention_mask=attention_mask, position_ids=positions).logits
            assert handle.trace.kept == kept
    real = attention_mask.bool() & ~padded_mask
    torch.testing.assert_close(logits[real], expected[~mask], atol=2e-5, rtol=1e-4)
