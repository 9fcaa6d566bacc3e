"""Every invariant of the engine with every family, method and attention implementation.

The numbers are those of `tools.families.methods.INVARIANTS`. The methods here are tuned by hand, one for each way
to drop rows; `test_methods.py` asks the same of every method of the registry, `tests/engine` of more text models.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import visipruner as vp
from tests.engine.state import state_of, untouched
from tests.families.prompts import IMAGE, extended
from tests.families.tried import tries
from tests.families.zoo import EACH_RUN, FAMILIES, LAYERS, built, inputs, layers_of, prompt, visual_rows
from tests.oracle import held_back, oracle, pruned_edit
from visipruner.adapters import adapter_of
from visipruner.pruners.composed import Composed
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.feather import Feather

STEPS = 4
CLOSE: dict[str, float] = {"atol": 2e-5, "rtol": 1e-4}
PRUNERS: dict[str, vp.Pruner] = {
    "schedule": vp.FixedSchedule(layers=(0, 1), keep=(3, 0)),
    "detect": vp.VisiPruner(
        stages=("middle", "deep"), shallow_end=0, exit_votes=1, filter_threshold=0.99999, exit_threshold=0.9
    ),
    "prefix": vp.VisiPruner(shallow_end=2, filter_layer=2, keep_tokens=3),
    # Before layer 0, and by a layer's own projections without RoPE.
    "entry": Composed(parts=(DivPrune(keep_ratio=0.6), Feather(layers=(1, 2), keep_ratio=0.4, stride=4))),
    "ffn": vp.VisiPruner(shallow_end=2, filter_layer=2, keep_tokens=3, shallow_visual="ffn"),
}
LATE = vp.VisiPruner(stages=("shallow",), shallow_end=1, shallow_visual="late")
KEEPS_ALL = vp.VisiPruner(stages=("middle",), filter_layer=1, keep_tokens=10_000)
# transformers offers Gemma 2, PaliGemma 2's text model, no sdpa.
CELLS = [(name, attn) for name in FAMILIES for attn in ("sdpa", "eager") if (name, attn) != ("paligemma2", "sdpa")]
each_cell = pytest.mark.parametrize(
    ("name", "attn"),
    [pytest.param(*cell, marks=() if cell[0] in EACH_RUN else pytest.mark.every_type) for cell in CELLS],
)
each_pruner = pytest.mark.parametrize("pruner", PRUNERS)


def generate(model: Any, prepared: dict[str, Any], **settings: Any) -> Any:
    """`STEPS` words, never a special token, with the logits they were chosen by."""
    return model.generate(
        **prepared,
        **settings,
        max_new_tokens=STEPS,
        do_sample=False,
        suppress_tokens=list(range(80, 99)),
        output_logits=True,
        return_dict_in_generate=True,
    )


def follows_the_oracle(name: str, attn: str, pruner: str, prepared: dict[str, Any]) -> None:
    """A prompt and its answer under a pruner."""
    model, family = built(name, attn), FAMILIES[name]
    with vp.attach(model, PRUNERS[pruner]) as handle:
        output = generate(model, prepared)
    trace, visual = handle.trace[0], visual_rows(prepared["input_ids"])[0]
    assert trace.num_visual == int(visual.sum())
    assert sum(trace.tokens_per_image) == trace.num_visual
    assert len(trace.kept[-1]) < trace.num_visual, "the case must prune to test anything"
    assert trace.query_lengths == [int((~visual).sum()) + len(kept) for kept in trace.kept[:-1]]
    tokens = output.sequences[:, -STEPS:]
    longer = extended(prepared, tokens[:, :-1], family.types, family.later_type)
    with oracle(model, pruned_edit(visual, trace.kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, len(visual) - 1 :]
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)


# ---- 1, 2, 5, 6: dropping rows is cutting edges, in the prompt and while decoding with a cache -----------------------


@tries("image", "several images", "cache", "prefix", "ffn", "sdpa", "eager")
@each_cell
@each_pruner
def test_decoding_equals_the_full_model_with_edges_cut(name: str, attn: str, pruner: str) -> None:
    follows_the_oracle(name, attn, pruner, inputs(name, [prompt(name, [3, 0, 2, 0, 5])]))


@tries("late")
@each_cell
def test_rows_that_come_in_late_are_the_full_model_with_edges_cut_before(name: str, attn: str) -> None:
    model, family, prepared = built(name, attn), FAMILIES[name], inputs(name, [prompt(name, [3, 0, 2, 0, 5])])
    if adapter_of(model).added_features is not None:
        with vp.attach(model, LATE), pytest.raises(vp.UnsupportedModelError, match="cannot come in later"):
            model(**prepared)
        return
    with vp.attach(model, LATE) as handle:
        output = generate(model, prepared)
    trace, visual = handle.trace[0], visual_rows(prepared["input_ids"])[0]
    assert [len(kept) for kept in trace.kept] == [0, *[trace.num_visual] * (len(trace.kept) - 1)]
    tokens = output.sequences[:, -STEPS:]
    longer = extended(prepared, tokens[:, :-1], family.types, family.later_type)
    layers = model.get_decoder().layers
    with oracle(model, pruned_edit(visual, trace.kept, LATE)), held_back(layers, visual, 1), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, len(visual) - 1 :]
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)


@tries("video")
@each_pruner
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.video is not None])
def test_videos(name: str, pruner: str) -> None:
    follows_the_oracle(name, "sdpa", pruner, inputs(name, [prompt(name, [3, -1, 5])]))


@tries("sdpa")
def test_the_cell_that_is_missing_is_an_error_of_the_host() -> None:
    with pytest.raises(ValueError, match=r"Gemma2Model does not support .*scaled_dot_product_attention"):
        AutoModelForImageTextToText.from_config(FAMILIES["paligemma2"].config(), attn_implementation="sdpa")


@tries("cache")
@each_cell
@each_pruner
def test_without_a_cache_the_prompts_selections_hold(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    with vp.attach(model, PRUNERS[pruner]) as handle:
        cached = generate(model, prepared)
        kept = handle.trace.kept
        uncached = generate(model, prepared, use_cache=False)
        assert handle.trace.kept == kept
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), **CLOSE)


@tries("next turn")
@each_cell
@each_pruner
def test_a_second_turn_on_the_same_cache(name: str, attn: str, pruner: str) -> None:
    model, family = built(name, attn), FAMILIES[name]
    first, more = inputs(name, [prompt(name, [3, 0, 5])]), torch.tensor([[5, 6, 7]])
    visual = visual_rows(first["input_ids"])[0]
    with vp.attach(model, PRUNERS[pruner]) as handle:
        answer = generate(model, first)
        kept, cache = handle.trace[0].kept, answer.past_key_values
        ids = torch.cat([answer.sequences, more], 1)
        output = generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, past_key_values=cache)
        assert handle.trace[0].kept == kept, "text brings nothing to prune"
    later = output.sequences[:, len(visual) : -1]
    longer = extended(first, later, family.types, family.later_type)
    with oracle(model, pruned_edit(visual, kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, -STEPS:]
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)


# ---- 3: each example of a batch gets what it gets alone, on either padding side --------------------------------------

LAYOUTS = [[3, 0, 6], [7], [2, 0, 2, 0, 4]]


@tries("batch")
@each_cell
@each_pruner
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_its_examples_give_alone(name: str, attn: str, pruner: str, side: str) -> None:
    model = built(name, attn)
    prompts = [prompt(name, layout, seed) for seed, layout in enumerate(LAYOUTS)]
    together_inputs = inputs(name, prompts, side)
    with vp.attach(model, PRUNERS[pruner]) as handle, torch.no_grad():
        logits = model(**together_inputs).logits
        together = handle.trace
        for example, pieces in enumerate(prompts):
            alone_inputs = inputs(name, [pieces])
            alone = model(**alone_inputs).logits[0]
            real = together_inputs["attention_mask"][example].bool()
            text = ~visual_rows(alone_inputs["input_ids"])[0]
            torch.testing.assert_close(logits[example][real][text], alone[text], **CLOSE)
            ours, theirs = handle.trace[0].to_dict(), together[example].to_dict()
            same = ("kept", "trigger_layer", "exit_votes", "query_lengths", "key_lengths", "num_visual")
            assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert [example.num_visual > 0 for example in together.examples] == [True, False, True]


@tries("batch", "cache")
@each_cell
@pytest.mark.parametrize("pruner", ["schedule", "ffn"])
def test_decoding_in_a_batch(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    prompts = [prompt(name, layout, seed) for seed, layout in enumerate(LAYOUTS)]
    with vp.attach(model, PRUNERS[pruner]):
        together = torch.stack(generate(model, inputs(name, prompts)).logits, 1)
        for logits, pieces in zip(together, prompts, strict=True):
            alone = torch.stack(generate(model, inputs(name, [pieces])).logits, 1)[0]
            torch.testing.assert_close(logits, alone, **CLOSE)


# ---- 4: keeping everything, and prompts without images, are the plain model to the last bit --------------------------


@tries("no image")
@each_cell
@pytest.mark.parametrize("layout", [[3, 0, 2, 0, 5], [8]], ids=["images", "text"])
def test_nothing_pruned_is_bit_identical(name: str, attn: str, layout: list[int]) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, layout), prompt(name, [11], 2)])
    plain = generate(model, prepared)
    for pruner in [KEEPS_ALL] if 0 in layout else PRUNERS.values():
        with vp.attach(model, pruner) as handle:
            attached = generate(model, prepared)
        assert torch.equal(torch.stack(plain.logits), torch.stack(attached.logits))
        assert handle.trace[1].query_lengths == [11] * LAYERS


# ---- 7, 8: off is off, nothing is changed in place -----------------------------------------------------------------


@each_cell
@each_pruner
def test_on_changes_off_restores_and_no_tensor_is_touched(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    with torch.no_grad():
        plain = model(**prepared).logits
        before = state_of(model)  # taken after a first forward: transformers installs hooks of its own then
        with untouched(model, layers_of(model), prepared), vp.attach(model, PRUNERS[pruner]):
            pruned = model(**prepared).logits
            with pytest.raises(vp.VisiPrunerError, match="attached already"):
                vp.attach(model, vp.NoPruning())
        assert state_of(model) == before
        assert torch.equal(model(**prepared).logits, plain)
    assert not torch.equal(pruned[:, -1], plain[:, -1])


# ---- 9: never a silent no-op ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_cannot_be_pruned_are_errors(name: str) -> None:
    model = built(name, "eager")
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    text = {"input_ids": prepared["input_ids"], "attention_mask": prepared["attention_mask"]}
    with vp.attach(model, PRUNERS["schedule"]), torch.no_grad():
        with pytest.raises(vp.LayoutError, match="no pixel_values"):
            model(**text)
        with pytest.raises(vp.LayoutError, match="no pixel_values"):
            model.generate(**text, max_new_tokens=1)
        with pytest.raises(vp.LayoutError, match="visual_mask"):
            model(inputs_embeds=torch.randn(1, 5, 32))
        cut = {**prepared, "input_ids": prepared["input_ids"].masked_fill(prepared["input_ids"] == IMAGE, 5)}
        cut["input_ids"][0, 4] = IMAGE
        with pytest.raises((ValueError, RuntimeError, StopIteration), match=r"[Ii]mage|size|shape"):
            model(**cut)
