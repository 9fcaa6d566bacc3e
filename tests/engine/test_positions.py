"""Rows that close up over what left (`positions="compact"`): in the prompt, and decoding with and without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.engine.cases import generate
from tests.models import IMAGE_TOKEN, llava_inputs, llava_model, prompt, text_model
from tests.oracle import oracle, pruned_edit
from visipruner.pruners.composed import Composed
from visipruner.pruners.fastv import FastV
from visipruner.pruners.pool import Pool
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.registry import make, method_class
from visipruner.pruners.vtw import VTW

STEPS = 4
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
COMPACT: dict[str, vp.Pruner] = {
    "before": RandomPruner(keep_tokens=5, positions="compact"),
    "stages": PyramidDrop(layers=(1, 2, 4), keep_ratios=(0.75, 0.5, 0.2)),
    "after": FastV(layer=2, keep_tokens=4, positions="compact"),
    "all-leave": VTW(layer=3, positions="compact"),
    "schedule": vp.FixedSchedule(layers=(0, 2), keep=(9, 3), positions="compact"),
    "prefix": vp.VisiPruner(shallow_end=2, filter_layer=3, keep_tokens=4, exit_layer=5, positions="compact"),
    "ffn": vp.VisiPruner(
        shallow_end=2, shallow_visual="ffn", filter_layer=3, keep_tokens=4, exit_layer=5, positions="compact"
    ),
    "one-closes-up": Composed(
        parts=(RandomPruner(keep_tokens=9, positions="compact"), FastV(layer=2, keep_tokens=4, positions="keep"))
    ),
    "the-other-closes-up": Composed(
        parts=(RandomPruner(keep_tokens=9, positions="keep"), PyramidDrop(layers=(2,), keep_ratios=(0.3,)))
    ),
}
ORACLE = [name for name in COMPACT if name != "the-other-closes-up"]  # whose entry it takes for a single layer


def _logits(model: Any, **inputs: Any) -> Tensor:
    """`[batch, STEPS, vocabulary]`."""
    return torch.stack(generate(model, STEPS, **inputs).logits, 1)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_before_the_model_it_is_the_plain_model_on_a_shorter_prompt(kind: str, attn: str) -> None:
    model = text_model(kind, attn)
    embeds, mask = prompt()
    with vp.attach(model, COMPACT["before"], mask) as handle:
        pruned = _logits(model, inputs_embeds=embeds)
        trace = handle.trace[0]
    with vp.attach(model, replace(COMPACT["before"], positions="keep"), mask):  # type: ignore[call-arg]
        kept_in_place = _logits(model, inputs_embeds=embeds)
    stays = ~mask[0]
    stays[mask[0].nonzero().flatten()[trace.kept[0]]] = True
    shorter = _logits(model, inputs_embeds=embeds[:, stays])
    torch.testing.assert_close(pruned, shorter, **CLOSE)
    assert (kept_in_place - shorter).abs().max() > 1e-2, "positions must matter for this to test anything"
    assert trace.renumbered == [0]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", ORACLE)
def test_every_layer_numbers_its_own_rows(pruner: str, attn: str) -> None:
    """Against the full-length model whose rows are moved down from layer to layer, decoding included."""
    model, method = text_model("llama", attn), COMPACT[pruner]
    embeds, mask = prompt()
    with vp.attach(model, method, mask) as handle:
        output = generate(model, STEPS, inputs_embeds=embeds)
        trace = handle.trace[0]
    generated = model.get_input_embeddings()(output.sequences[:, -STEPS:-1])
    longer = torch.cat([embeds, generated], 1)
    with oracle(model, pruned_edit(mask[0], trace.kept, method)), torch.no_grad():
        expected = model(inputs_embeds=longer, use_cache=False).logits[0, embeds.shape[1] - 1 :]
    with oracle(model, pruned_edit(mask[0], trace.kept, None)), torch.no_grad():
        in_place = model(inputs_embeds=longer, use_cache=False).logits[0, embeds.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)
    if pruner not in ("prefix", "ffn"):  # their shallow layers are none of this second oracle's
        assert (in_place - expected).abs().max() > 1e-3, "positions must matter for this to test anything"
    assert trace.renumbered


@pytest.mark.parametrize("pruner", COMPACT)
def test_without_a_cache_rows_stand_where_they_stood(pruner: str) -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    with vp.attach(model, COMPACT[pruner]):
        cached, uncached = _logits(model, **inputs), _logits(model, **inputs, use_cache=False)
    torch.testing.assert_close(cached, uncached, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pruner", COMPACT)
def test_a_batch_gives_what_its_examples_give_alone(pruner: str, side: str) -> None:
    model = llava_model()
    layouts = [[4, 0, 7], [3, 0, 2, 0, 4], [6]]
    inputs = llava_inputs(layouts, side)
    with vp.attach(model, COMPACT[pruner]) as handle, torch.no_grad():
        logits, traces = model(**inputs).logits, handle.trace
        images = 0
        for example, layout in enumerate(layouts):
            real = inputs["attention_mask"][example].bool()
            count = layout.count(0)
            pixels = {"pixel_values": inputs["pixel_values"][images : images + count]} if count else {}
            images += count
            alone = model(input_ids=inputs["input_ids"][example : example + 1, real], **pixels).logits[0, -1]
            torch.testing.assert_close(logits[example, real][-1], alone, **CLOSE)
            assert handle.trace[0].renumbered == traces[example].renumbered
            assert bool(traces[example].renumbered) == bool(count)


@pytest.mark.parametrize("pruner", ["before", "stages", "after"])
def test_beams_and_a_later_turn(pruner: str) -> None:
    """What follows a pruned prompt is numbered from its end, whatever left."""
    model, method = llava_model(), COMPACT[pruner]
    first = llava_inputs([[4, 0, 7]])
    second = llava_inputs([[5]], seed=7)["input_ids"]
    with vp.attach(model, method) as handle, torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        kept = handle.trace[0].kept
        logits = model(input_ids=second, past_key_values=cache).logits
        beams = [
            model.generate(**first, num_beams=3, max_new_tokens=6, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        ]
    assert torch.equal(*beams)
    mask = first["input_ids"][0] == IMAGE_TOKEN
    with oracle(model, pruned_edit(mask, kept, method)), torch.no_grad():
        ids = torch.cat([first["input_ids"], second], 1)
        expected = model(input_ids=ids, pixel_values=first["pixel_values"], use_cache=False).logits[:, -5:]
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_a_new_image_in_a_later_turn_closes_up_within_its_turn() -> None:
    model = llava_model()
    method = RandomPruner(keep_tokens=0, positions="compact")
    first, second = llava_inputs([[4, 0, 7]]), llava_inputs([[2, 0, 5]], seed=7)
    with vp.attach(model, method), torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        del second["attention_mask"]
        logits = model(**second, past_key_values=cache).logits[0, -5:]
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)
    text = ids[ids != IMAGE_TOKEN][None]
    places = torch.tensor([[*range(16, 27), *range(43, 50)]])  # 27 rows, then 23 more; 16 tokens left of each
    with torch.no_grad():
        expected = model(input_ids=text, position_ids=places).logits[0, -5:]
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("pruner", ["before", "stages", "after"])
def test_questions_about_one_image(pruner: str) -> None:
    model = llava_model()
    one = llava_inputs([[4, 0, 7]])
    other = {**one, "input_ids": one["input_ids"].clone()}
    other["input_ids"][0, -7:] = torch.arange(20, 27)
    with vp.attach(model, COMPACT[pruner]) as handle:
        apart = [_logits(model, **inputs) for inputs in (one, other)]
        with handle.image_cache() as cache:
            shared = [_logits(model, **inputs) for inputs in (one, other)]
    assert cache.reused == 1
    for first, second in zip(apart, shared, strict=True):
        torch.testing.assert_close(first, second, **CLOSE)


def test_merged_tokens_close_up() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, Pool(positions="compact"), mask), torch.no_grad():
        logits = model(inputs_embeds=embeds).logits[0, -1]
    means = embeds[:, 5:21].view(1, 2, 2, 2, 2, -1).mean((2, 4)).flatten(1, 2)
    with torch.no_grad():
        shorter = model(inputs_embeds=torch.cat([embeds[:, :5], means, embeds[:, 21:]], 1)).logits[0, -1]
    torch.testing.assert_close(logits, shorter, **CLOSE)


def test_keeping_everything_is_the_plain_model() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    plain = model(inputs_embeds=embeds).logits
    with vp.attach(model, RandomPruner(keep_ratio=1.0, positions="compact"), mask) as handle:
        assert torch.equal(model(inputs_embeds=embeds).logits, plain)
        assert handle.trace[0].renumbered == []


# ---- which of the two --------------------------------------------------------------------------------------------

AS_PUBLISHED = {
    "compact": {
        *("cdpruner", "divprune", "dycoke", "fastervlm", "hiprune", "prumerge", "pyramiddrop", "scope", "sparsevlm"),
        *("tops", "vidcom2", "visionzip", "vispruner"),
    },
    "keep": {
        *("capa", "dart", "deft", "evs", "fastv", "feather", "fitprune", "ivc-prune", "pool", "priortr", "random"),
        *("schedule", "second-look", "uniform", "vcola", "visipruner", "visipruner-reference", "vtw"),
    },
}


def test_every_published_method_has_its_papers_default() -> None:
    for positions, names in AS_PUBLISHED.items():
        for name in names:
            cls: Any = method_class(name)
            assert (name, cls.published_positions) == (name, positions)
            assert cls.for_depth(32).positions is None


@pytest.mark.parametrize(("positions", "renumbered"), [(None, [0]), ("compact", [0]), ("keep", [])])
def test_the_default_can_be_overruled(positions: Any, renumbered: list[int]) -> None:
    model = llava_model()
    with vp.attach(model, make("divprune", keep_tokens=4, positions=positions)) as handle, torch.no_grad():
        model(**llava_inputs([[4, 0, 7]]))
    assert handle.trace[0].renumbered == renumbered


def test_positions_that_are_none() -> None:
    with pytest.raises(vp.ConfigError, match="positions takes 'keep' or 'compact' or none"):
        RandomPruner(positions="compress")  # type: ignore[arg-type]
    with pytest.raises(vp.ConfigError, match="positions takes 'keep' or 'compact'"):
        make("fastv", positions="compress")


def test_rows_that_are_not_in_a_line() -> None:
    """Rows with places of their own, as image tokens have in models with M-RoPE: kept by default, refused if asked."""
    model = text_model("llama")
    embeds, mask = prompt()
    places = torch.arange(27)[None] * 2
    asked, unasked = (make("divprune", keep_tokens=4, positions=positions) for positions in ("compact", None))
    with vp.attach(model, unasked, mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds, position_ids=places)
        assert handle.trace[0].renumbered == []
    with vp.attach(model, asked, mask), pytest.raises(vp.UnsupportedModelError, match="positions='keep'"):
        model(inputs_embeds=embeds, position_ids=places)
