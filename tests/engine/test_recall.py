"""Tokens that come back: what the engine computes is the full-length model whose edges to them open at a row.

In the full-length model every row runs every layer, and edges are cut: to a token that left, from the layer on where it
left, for rows that ran before it came back. A token that came back sees there, itself, what the mask lets it see of the
rows that had run by then.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import visipruner as vp
from tests.engine.cases import generate
from tests.engine.test_states import subject
from tests.families.prompts import extended
from tests.families.zoo import FAMILIES, built, inputs, visual_rows
from tests.families.zoo import prompt as family_prompt
from tests.models import IMAGE_TOKEN, TEXT_CONFIGS, llava_inputs, llava_model, prompt, text_model
from tests.oracle import PrunedEdit, held_back, oracle, softmax
from visipruner.accounting import cache_bytes
from visipruner.accounting.exact import layer_macs
from visipruner.accounting.record import Recalled
from visipruner.contract.budget import ScoredPruner
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About
from visipruner.engine.calls import cache_of
from visipruner.pruners.composed import Composed
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.ivc import IVC
from visipruner.pruners.pool import Pool
from visipruner.pruners.priortr import PriorTR
from visipruner.pruners.registry import make_from_spec
from visipruner.pruners.shortv import ShortV
from visipruner.speed.host_work import _Operations

STEPS = 8
CLOSE: dict[str, float] = {"atol": 2e-5, "rtol": 1e-4}
FASTV = vp.FastV(layer=2, keep_tokens=4, recall=2)
VISIPRUNER = vp.VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=3, exit_layer=5, recall=2)
_DETECT = {"filter_threshold": 0.99999, "token_threshold": 0.15, "relative": True}
PRUNERS: dict[str, vp.Pruner] = {
    "fastv": FASTV,
    "every token": replace(FASTV, recall=1),
    "capa": vp.Capa(layer=3, keep_tokens=3, recall=3),
    "visipruner": VISIPRUNER,
    "late": replace(VISIPRUNER, shallow_end=2, shallow_visual="late"),
    "detecting": vp.VisiPruner(stages=("middle", "deep"), shallow_end=0, exit_votes=2, recall=2, **_DETECT),
    "after another": Composed(parts=(DivPrune(keep_tokens=12, positions="keep"), FASTV)),
    "beside coordinates": Composed(parts=(IVC(coordinates=0.25), FASTV)),
    "two that choose": Composed(parts=(replace(FASTV, keep_tokens=9), vp.Capa(layer=4, keep_tokens=3, recall=3))),
}


@dataclass(frozen=True)
class RecalledEdit(PrunedEdit):
    """Edges of rows some of whose tokens came back. `visual` covers all rows.

    `clock`: of each row the last row of the forward in which it ran first. `events`: when some tokens came back, by
    that clock, the first layer that they had missed, and which. `maps`: by layer the weights that came of it.
    """

    clock: tuple[int, ...] = ()
    events: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    maps: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, logits: Tensor) -> Tensor:
        if len(self.kept[layer]) == int(self.visual.sum()):  # nothing left yet; shallow layers have rules of their own
            self.maps[layer] = super().__call__(layer, logits)
        else:
            self.maps[layer] = softmax(logits.masked_fill(self._closed(layer), float("-inf")))
        return self.maps[layer]

    def _closed(self, layer: int) -> Any:
        """`[n, n]` bool: whether the key ran only after the query did, or never."""
        end = max(number for number, kept in enumerate(self.kept[:-1]) if kept) + 1
        ran, places = torch.tensor(self.clock), self.visual.nonzero().flatten()
        left = torch.ones(len(places), dtype=torch.bool)
        left[self.kept[layer]] = False
        ran[places[left]] = 10**9
        for when, first, tokens in self.events:
            if first <= layer < end:
                ran[places[list(tokens)]] = when
        return ran[None] > ran[:, None]

    def moved(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs  # rows keep their positions


def _edit(visual: Tensor, trace: vp.ExampleTrace, pruner: vp.Pruner, *forwards: int) -> RecalledEdit:
    """For a prompt, `visual` `[n]` bool, and forwards of so many rows after it."""
    clock = _clock(len(visual), *forwards)
    visual = torch.nn.functional.pad(visual, (0, len(clock) - len(visual)))
    return RecalledEdit(visual, trace.kept, pruner, clock=clock, events=_events(trace, trace.prompt_length))


def _clock(*forwards: int) -> tuple[int, ...]:
    ends: list[int] = []
    for rows in forwards:
        ends += [len(ends) + rows - 1] * rows
    return tuple(ends)


def _events(trace: vp.ExampleTrace, end: int, shift: int = 0) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """`end`: rows up to the end of the prompt. `shift`: visual tokens of earlier turns."""
    return tuple(
        (end + event.step - 1, event.layer, tuple(shift + token for token in event.tokens)) for event in trace.recalled
    )


def _expected(model: Any, embeds: Tensor, tokens: Tensor, edit: RecalledEdit) -> Tensor:
    """Logits of the last prompt row and of all `tokens` `[1, n]` but the last."""
    after = model.get_input_embeddings()(tokens[:, :-1])
    first = edit.pruner.first_layer()
    late = held_back(model.model.layers, edit.visual, first) if first else nullcontext()
    with oracle(model, edit), late, torch.no_grad():
        logits = model(inputs_embeds=torch.cat([embeds, after], 1), use_cache=False).logits
    return logits[0, embeds.shape[1] - 1 :]


# ---- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_decoding_equals_the_full_model_with_edges_opened(kind: str, pruner: str, attn: str) -> None:
    model = text_model(kind, attn)
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        output = generate(model, STEPS, inputs_embeds=embeds)
        trace = handle.trace[0]
    if kind != "mistral-sliding":  # whose rows of the answer see no early layer's tokens any more
        assert trace.recalled, "the case must bring something back to test anything"
    edit = _edit(mask[0], trace, PRUNERS[pruner], *[1] * (STEPS - 1))
    expected = _expected(model, embeds, output.sequences[:, -STEPS:], edit)
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)


@pytest.mark.parametrize("layer", [2, 4])
@pytest.mark.parametrize("recall", [1, 3])
def test_what_comes_back_is_what_the_newest_row_attends_to(recall: int, layer: int) -> None:
    pruner = vp.FastV(layer=layer, keep_tokens=4, recall=recall)
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, pruner, mask) as handle:
        output = generate(model, STEPS, inputs_embeds=embeds)
        trace = handle.trace[0]
    edit = _edit(mask[0], trace, pruner, *[1] * (STEPS - 1))
    _expected(model, embeds, output.sequences[:, -STEPS:], edit)
    present, events = set(trace.kept[layer]), []
    for step in range(recall, STEPS, recall):
        weights = edit.maps[layer - 1][:, len(mask[0]) + step - 1, :][:, mask[0].nonzero().flatten()].mean(0)
        best = set(weights.topk(4).indices.tolist())
        if best - present:
            events.append(Recalled(step, layer, sorted(best - present)))
        present |= best
    assert trace.recalled == events
    assert events


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_padding_and_several_images(attn: str) -> None:
    model, pruner = llava_model("clip", "llama", attn), replace(FASTV, scope="image")
    given = llava_inputs([[3, 0, 2, 0, 4]])
    names = ("input_ids", "attention_mask")
    padded = {**given, **{name: torch.nn.functional.pad(given[name], (3, 0)) for name in names}}
    with vp.attach(model, pruner) as handle:
        alone = generate(model, STEPS, **given)
        trace = handle.trace[0]
        output = generate(model, STEPS, **padded)
        assert handle.trace[0].recalled == trace.recalled
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(alone.logits), **CLOSE)
    assert {number // 16 for event in trace.recalled for number in event.tokens} == {0, 1}
    edit = _edit(given["input_ids"][0] == IMAGE_TOKEN, trace, pruner, *[1] * (STEPS - 1))
    longer = torch.cat([given["input_ids"], alone.sequences[:, -STEPS:-1]], 1)
    with oracle(model, edit), torch.no_grad():
        expected = model(input_ids=longer, pixel_values=given["pixel_values"], use_cache=False).logits[0, -STEPS:]
    torch.testing.assert_close(torch.stack(alone.logits, 1)[0], expected, **CLOSE)


# M-RoPE, crops, tiles, images that attend in both directions, sliding windows beside full attention.
@pytest.mark.parametrize("name", ["llava-next", "qwen2.5-vl", "internvl", "gemma3", "paligemma2", "llava-mixtral"])
def test_families(name: str) -> None:
    family, given = FAMILIES[name], inputs(name, [family_prompt(name, [3, 0, 5])])
    model = built(name, "eager")
    pruner = vp.FastV(layer=1, keep_tokens=2, recall=1)
    with vp.attach(model, pruner) as handle:
        output = model.generate(
            **given,
            max_new_tokens=STEPS,
            do_sample=False,
            suppress_tokens=list(range(80, 99)),
            output_logits=True,
            return_dict_in_generate=True,
        )
        trace = handle.trace[0]
    assert trace.recalled
    tokens = output.sequences[:, -STEPS:-1]
    longer = extended(given, tokens, family.types, family.later_type)
    visual = visual_rows(given["input_ids"])[0]
    with oracle(model, _edit(visual, trace, pruner, *[1] * (STEPS - 1))), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, len(visual) - 1 :]
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, **CLOSE)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_next_turn_chooses_by_its_last_row(attn: str) -> None:
    """Text alone, several rows at once; then a new image, whose own tokens come back while its answer is decoded."""
    model = llava_model("clip", "qwen2", attn)
    pruner = replace(FASTV, recall=3)
    first, second = llava_inputs([[4, 0, 7]]), llava_inputs([[2, 0, 5]], seed=7)
    words, answer = llava_inputs([[5]], seed=8)["input_ids"], llava_inputs([[4]], seed=9)["input_ids"]
    forwards = [words, second["input_ids"], *answer.split(1, 1)]
    with vp.attach(model, pruner) as handle, torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        one = handle.trace[0]
        logits = [model(input_ids=words, past_key_values=cache).logits]
        pixels = {"pixel_values": second["pixel_values"]}
        logits.append(model(input_ids=second["input_ids"], **pixels, past_key_values=cache).logits)
        two = handle.trace[0]
        logits += [model(input_ids=word, past_key_values=cache).logits for word in forwards[2:]]
    assert [event.step for event in one.recalled] == [5]
    assert [event.step for event in two.recalled] == [3]
    ids = torch.cat([first["input_ids"], *forwards], 1)
    visual, begun = ids[0] == IMAGE_TOKEN, first["input_ids"].shape[1]
    clock = _clock(begun, *(part.shape[1] for part in forwards))
    kept = [a + [16 + token for token in b] for a, b in zip(one.kept, two.kept, strict=True)]
    events = _events(one, begun) + _events(two, begun + 5 + second["input_ids"].shape[1], shift=16)
    edit = RecalledEdit(visual, kept, pruner, clock=clock, events=events)
    pixels = {"pixel_values": torch.cat([first["pixel_values"], second["pixel_values"]])}
    with oracle(model, edit), torch.no_grad():
        expected = model(input_ids=ids, **pixels, use_cache=False).logits[0, begun:]
    text = ~visual[begun:]
    torch.testing.assert_close(torch.cat(logits, 1)[0][text], expected[text], **CLOSE)


def test_where_a_key_stands_in_the_cache_does_not_matter() -> None:
    model, (embeds, mask) = text_model("llama"), prompt()
    with vp.attach(model, FASTV, mask), torch.no_grad():
        cache = cache_of(model(inputs_embeds=embeds, use_cache=True))
        for word in (5, 6, 7):
            model(input_ids=torch.tensor([[word]]), past_key_values=cache)
        moved = copy.deepcopy(cache)
        for held in moved.layers[2:]:
            order = torch.randperm(held.columns.shape[1], generator=torch.Generator().manual_seed(0))
            assert held.columns.shape[1] > int((~mask).sum()) + 4, "something came back"
            held.columns = held.columns[:, order]
            for name in ("keys", "values"):
                states = getattr(held, name)
                setattr(held, name, torch.cat([states[:, :, order], states[:, :, len(order) :]], 2))
        for word in (8, 9, 10):  # some come back again
            one = model(input_ids=torch.tensor([[word]]), past_key_values=cache).logits
            other = model(input_ids=torch.tensor([[word]]), past_key_values=moved).logits
            torch.testing.assert_close(other, one, **CLOSE)
        assert cache.layers[3].keys.shape == moved.layers[3].keys.shape


def test_a_copied_cache_goes_its_own_way_and_a_cropped_one_goes_on() -> None:
    model, (embeds, mask) = text_model("llama"), prompt()
    words = torch.tensor([[5, 6, 7, 8]])

    def read(cache: Any) -> Tensor:
        return torch.cat([model(input_ids=word, past_key_values=cache).logits for word in words.split(1, 1)], 1)

    with vp.attach(model, FASTV, mask), torch.no_grad():
        cache = cache_of(model(inputs_embeds=embeds, use_cache=True))
        twin = copy.deepcopy(cache)
        once = read(cache)
        assert torch.equal(read(twin), once)
        cache.crop(-4)
        assert len(cache.layers[3].all_columns()[0]) > int((~mask).sum()) + 4, "what came back stays"
        again = read(cache)
        assert not torch.equal(again[:, 0], once[:, 0]), "the first word sees it now"


# ---- cost and accounts -----------------------------------------------------------------------------------------------


def test_until_something_comes_back_all_is_bit_exact() -> None:
    model, (embeds, mask) = text_model("llama"), prompt()
    for pruner, same in ((replace(FASTV, recall=4), 4), (replace(FASTV, keep_tokens=99), STEPS)):
        with vp.attach(model, pruner, mask):
            recalling = generate(model, STEPS, inputs_embeds=embeds)
        with vp.attach(model, replace(pruner, recall=0), mask):
            plain = generate(model, STEPS, inputs_embeds=embeds)
        assert torch.equal(torch.stack(recalling.logits[:same]), torch.stack(plain.logits[:same]))
        is_same = torch.equal(torch.stack(recalling.logits), torch.stack(plain.logits))
        assert is_same == (same == STEPS)


class _Fixed(ScoredPruner):
    """Chooses the same tokens always, at the cost of a choice by attention."""

    name = "fixed"
    about = About("the first tokens stay")
    reads_last_row_only = True

    def score(self, view: LayerView) -> Tensor:
        return 0 * view.attention[:, view.visual].mean(0) - view.tokens


def test_a_token_costs_hardly_more_where_nothing_comes_back() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 99}
    model, (embeds, mask) = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=32)).eval(), prompt()

    def operations(recall: int) -> int:
        with vp.attach(model, _Fixed(layer=2, keep_tokens=4, recall=recall), mask) as handle, torch.no_grad():
            cache = cache_of(model(inputs_embeds=embeds, use_cache=True))
            with _Operations() as counted:
                model(input_ids=torch.tensor([[5]]), past_key_values=cache)
            assert not handle.trace[0].recalled
        return counted.count

    plain = operations(0)
    assert operations(2) == plain, "nothing is due"
    assert plain < operations(1) <= 1.1 * plain, "it looks"


@pytest.mark.parametrize("pruner", ["fastv", "visipruner", "two that choose"])
def test_what_came_back_is_counted(pruner: str) -> None:
    model, (embeds, mask) = text_model("llama"), prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle, torch.no_grad():
        cache = cache_of(model(inputs_embeds=embeds, use_cache=True))
        before = copy.deepcopy(handle.trace.to_dict())
        flops = handle.trace.flops()
        for word in range(5, 12):
            model(input_ids=torch.tensor([[word]]), past_key_values=cache)
        trace, told = handle.trace[0], handle.trace
    end = max(layer for layer, kept in enumerate(trace.kept[:-1]) if kept) + 1
    assert trace.recalled
    assert f"{sum(len(event.tokens) for event in trace.recalled)} came back" in str(told)
    spent = 0
    for layer, held in enumerate(cache.layers):
        back = sum(len(event.tokens) for event in trace.recalled if event.layer <= layer < end)
        assert held.keys.shape[-2] - 7 == trace.key_lengths[layer]
        assert trace.key_lengths[layer] == before["examples"][0]["key_lengths"][layer] + back
        assert trace.work[layer].rows == before["examples"][0]["work"][layer]["rows"] + back
        spent += layer_macs(told.shape, trace.work[layer]).flops
    assert told.flops() == spent > flops
    assert told.kv_bytes() == sum(2 * held.keys[:, :, :-7].numel() * 4 for held in cache.layers)
    assert told.to_dict()["examples"][0]["recalled"][0]["tokens"] == trace.recalled[0].tokens


def test_states_are_held_only_where_they_may_be_needed() -> None:
    model, (embeds, mask) = text_model("llama"), prompt()
    with vp.attach(model, VISIPRUNER, mask), torch.no_grad():
        cache = cache_of(model(inputs_embeds=embeds, use_cache=True))
    left = cache.layers[-1].left
    assert {layer: len(tokens) for layer, (tokens, _) in left.states.items()} == {3: 13}
    with vp.attach(model, replace(VISIPRUNER, recall=0), mask), torch.no_grad():
        plain = cache_of(model(inputs_embeds=embeds, use_cache=True))
    assert plain.layers[-1].left is None
    assert cache_bytes(cache).used == cache_bytes(plain).used
    assert cache_bytes(cache).bookkeeping >= cache_bytes(plain).bookkeeping + left.states[3][1].numel() * 4


# ---- what is refused -------------------------------------------------------------------------------------------------


def _one_sentence(error: pytest.ExceptionInfo[Exception]) -> None:
    assert str(error.value).count(". ") == 0
    assert "recall" in str(error.value)


@pytest.mark.parametrize(
    ("pruner", "settings", "message"),
    [
        (FASTV, {"num_beams": 2}, "without beams"),
        (FASTV, {"use_cache": False}, "use_cache=False"),
        (replace(FASTV, positions="compact"), {}, "positions='keep'"),
        (Composed(parts=(FASTV, ShortV(layers=(3,)))), {}, "attend in another way"),
    ],
)
def test_ways_to_decode_that_are_refused(pruner: vp.Pruner, settings: dict[str, Any], message: str) -> None:
    model = llava_model()
    with vp.attach(model, pruner), pytest.raises(vp.UnsupportedModelError, match=message) as error:
        generate(model, 2, **llava_inputs([[4, 0, 6]]), **settings)
    _one_sentence(error)


def test_batches_and_shared_images_are_refused() -> None:
    model = llava_model()
    with vp.attach(model, FASTV) as handle:
        with pytest.raises(vp.UnsupportedModelError, match="one example") as error:
            generate(model, 2, **llava_inputs([[4, 0, 6], [3, 0, 2]]))
        _one_sentence(error)
        with handle.image_cache(), pytest.raises(vp.UnsupportedModelError, match="image_cache") as error:
            generate(model, 2, **llava_inputs([[4, 0, 6]]))
        _one_sentence(error)
        with torch.no_grad():
            cache = cache_of(model(**llava_inputs([[4, 0, 6]]), use_cache=True))
            cache.batch_repeat_interleave(2)
            with pytest.raises(vp.UnsupportedModelError, match="repeated") as error:
                model(input_ids=torch.tensor([[5], [5]]), past_key_values=cache)
        _one_sentence(error)
        model(**llava_inputs([[4, 0, 6]]), use_cache=False)  # no answer follows
        generate(model, 2, **llava_inputs([[4], [9]]))  # nor is there an image


def test_added_features_must_all_be_there() -> None:
    """DeepStack adds them after layers 0, 1 and 2 of four."""
    model, given = built("qwen3-vl"), inputs("qwen3-vl", [family_prompt("qwen3-vl", [3, 0, 5])])
    for layer in (1, 2, 3):
        with vp.attach(model, vp.FastV(layer=layer, keep_tokens=2, recall=1)):
            with pytest.raises(vp.UnsupportedModelError, match="features of the image") as error:
                generate(model, 2, **given)
            _one_sentence(error)


@pytest.mark.parametrize("implementation", ["flex_attention"])
def test_other_kernels_are_refused(implementation: str) -> None:
    model = llava_model(attn=implementation)
    with pytest.raises(vp.UnsupportedModelError, match="'sdpa' or 'eager'") as error:
        vp.attach(model, FASTV)
    _one_sentence(error)


def test_models_and_methods_that_are_refused() -> None:
    with pytest.raises(vp.UnsupportedModelError, match="a state") as error:
        vp.attach(subject("qwen3_5").model, vp.FastV(layer=2, keep_tokens=4, recall=2))
    _one_sentence(error)
    with pytest.raises(vp.UnsupportedModelError, match="merges") as error:
        vp.attach(llava_model(), Composed(parts=(Pool(), FASTV)))
    _one_sentence(error)
    with pytest.raises(vp.ConfigError, match="more rows than the last") as wrong:
        PriorTR(recall=2)
    _one_sentence(wrong)


# ---- the setting -----------------------------------------------------------------------------------------------------


def test_it_is_a_setting_of_methods_that_judge_by_the_last_row() -> None:
    assert make_from_spec("visipruner:recall=4") == vp.VisiPruner(recall=4)
    assert "recall" not in vp.FastV().settings()
    assert vp.FastV(recall=3).settings()["recall"] == 3
    assert not vp.FastV().recalls
    assert Composed(parts=(DivPrune(), vp.FastV(recall=3))).recalls


@pytest.mark.parametrize(
    ("step", "rows", "expected"),
    [(3, 1, False), (4, 1, True), (5, 1, False), (5, 2, True), (9, 5, True), (7, 3, False)],
)
def test_it_counts_rows(step: int, rows: int, expected: bool) -> None:
    assert vp.FastV(recall=4).chooses_again(step, rows) is expected
