"""`generate` as people use it: beams, sampling, return sequences, further turns on the same cache."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import visipruner as vp
from tests.engine.cases import PRUNERS, SELECTS, WAYS, two_turns
from tests.models import IMAGE_TOKEN, LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.oracle import oracle, pruned_edit
from visipruner.contract.layer_view import LayerView
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.calls import CACHE_NAMES
from visipruner.pruners.composed import Composed
from visipruner.pruners.uniform import UniformPruner

MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "do_sample": False},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "several-samples": {"do_sample": True, "num_return_sequences": 3},
}
# A random model says anything; an image token without an image stops the host when there is no cache.
_SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "suppress_tokens": [IMAGE_TOKEN]}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pruner", WAYS)
def test_modes_agree_with_and_without_a_cache(pruner: str, mode: str, attn: str) -> None:
    """Without a cache nothing is reordered or remembered per layer, so agreement shows that the cache is right."""
    model = llava_model("clip", "llama", attn)
    inputs = llava_inputs([[4, 0, 7], [2, 0, 3]])
    with vp.attach(model, WAYS[pruner]):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            results.append(model.generate(**inputs, **MODES[mode], **_SETTINGS, use_cache=use_cache))
    assert torch.equal(*results)


def _asks(inputs: dict[str, Any], *words: int) -> dict[str, Any]:
    """The prompt with `words` after it."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([words]).long()], 1)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("before", [[()], [(), (5,)], [(), (5,), (5, 6)], [(5,)]])
@pytest.mark.parametrize("pruner", WAYS)
def test_without_a_cache_a_prompt_does_not_depend_on_the_one_before(pruner: str, before: list[tuple[int, ...]]) -> None:
    """As when options of one question are scored: prompts that begin alike, and are no continuations."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    option = _asks(inputs, 8, 9, 10) if len(before) == 3 else _asks(inputs, 8, 9)
    with torch.no_grad():
        with vp.attach(model, WAYS[pruner]) as handle:
            expected, trace = model(**option, use_cache=False).logits, handle.trace.to_dict()
        with vp.attach(model, WAYS[pruner]) as handle:
            for words in before:
                model(**_asks(inputs, *words), use_cache=False)
            assert torch.equal(model(**option, use_cache=False).logits, expected)
            assert handle.trace.to_dict() == trace


@pytest.mark.parametrize("between", ["text", "interrupted"])
def test_without_a_cache_another_forward_ends_a_prompt(between: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    with vp.attach(model, PRUNERS["budget"]) as handle, torch.no_grad():
        longer = _asks(inputs, 5)
        expected = model(**longer, use_cache=False).logits
        model(**inputs, use_cache=False)
        if between == "text":
            model(**llava_inputs([[9]]), use_cache=False)
        else:
            hook = model.model.language_model.norm.register_forward_pre_hook(_interrupt)
            with pytest.raises(KeyboardInterrupt):
                model(**inputs, use_cache=False)
            hook.remove()
        assert torch.equal(model(**longer, use_cache=False).logits, expected)
        assert handle.trace[0].prompt_length == longer["input_ids"].shape[1]


@pytest.mark.parametrize("use_cache", [True, None, False])
@pytest.mark.parametrize("pruner", WAYS)
def test_a_call_is_a_prompt_of_its_own(pruner: str, use_cache: bool | None) -> None:
    """As when options of one token are scored: the prompt, then the prompt and one word, which is no continuation."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    option = {**_asks(inputs, 8), "use_cache": use_cache}
    with torch.no_grad():
        with vp.attach(model, WAYS[pruner]) as handle:
            expected, trace = model(**option).logits, handle.trace.to_dict()
        with vp.attach(model, WAYS[pruner]) as handle:
            model(**inputs, use_cache=False)
            assert torch.equal(model(**option).logits, expected)
            assert handle.trace.to_dict() == trace


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_call_after_generate_is_a_prompt_of_its_own(use_cache: bool) -> None:
    """Also where it is what `generate` would have read next."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    with vp.attach(model, PRUNERS["budget"]) as handle, torch.no_grad():
        said = model.generate(**inputs, max_new_tokens=1, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
        longer = {**_asks(inputs, int(said[0, -1])), "use_cache": use_cache}
        expected = model(**longer).logits
        model.generate(**inputs, **_SETTINGS | {"max_new_tokens": 1}, do_sample=False, use_cache=False)
        assert torch.equal(model(**longer).logits, expected)
        assert handle.trace[0].prompt_length == longer["input_ids"].shape[1]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pruner", WAYS)
def test_guidance_leaves_the_trace_of_the_prompt(pruner: str, use_cache: bool) -> None:
    """Classifier-free guidance runs the answer without its prompt beside it. Selections hold without a cache, too."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    settings = {**_SETTINGS, "do_sample": False, "use_cache": use_cache}
    with vp.attach(model, WAYS[pruner]) as handle:
        model.generate(**inputs, **settings)
        trace = handle.trace.to_dict()
        guided = model.generate(**inputs, **settings, guidance_scale=2.0)
        assert handle.trace.to_dict() == trace
        assert torch.equal(guided, model.generate(**inputs, **{**settings, "use_cache": True}, guidance_scale=2.0))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_guidance_beside_a_prompt_with_a_mask(pruner: str, use_cache: bool) -> None:
    """The mask speaks of the prompt, not of what guidance runs beside it, however long that gets."""
    model = text_model("llama")
    ids = torch.randint(3, IMAGE_TOKEN, (1, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[:, 2:8] = True
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "guidance_scale": 2.0}
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        model.generate(ids, max_new_tokens=1, use_cache=use_cache)
        trace = handle.trace.to_dict()
        guided = model.generate(ids, **settings, use_cache=use_cache)
        assert handle.trace.to_dict() == trace
        assert torch.equal(guided, model.generate(ids, **settings))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("pruner", PRUNERS)
def test_beams_of_a_batch_are_the_beams_of_its_examples(pruner: str) -> None:
    model = text_model("qwen2")
    embeds, mask = prompt(batch=2)
    settings = {"num_beams": 3, "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        together = model.generate(inputs_embeds=embeds, **settings)
        assert len(handle.trace) == 6, "one record per beam"
    for example in range(2):
        with vp.attach(model, PRUNERS[pruner], mask[:1]):
            alone = model.generate(inputs_embeds=embeds[example : example + 1], **settings)
        assert torch.equal(together[example], alone[0])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", SELECTS)
def test_a_second_turn_on_the_same_cache(pruner: str, attn: str) -> None:
    model = llava_model("clip", "llama", attn)
    first = llava_inputs([[4, 0, 7]])
    second = llava_inputs([[5]], seed=7)["input_ids"]
    with vp.attach(model, SELECTS[pruner]) as handle, torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        kept = handle.trace[0].kept
        logits = model(input_ids=second, past_key_values=cache).logits
    ids = torch.cat([first["input_ids"], second], 1)
    mask = first["input_ids"][0] == IMAGE_TOKEN
    with oracle(model, pruned_edit(mask, kept, SELECTS[pruner])), torch.no_grad():
        expected = model(input_ids=ids, pixel_values=first["pixel_values"], use_cache=False).logits[:, -5:]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("order", ["image-image", "text-image"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_new_image_in_the_second_turn(pruner: str, order: str, attn: str) -> None:
    model = llava_model("clip", "qwen2", attn)
    method = PRUNERS[pruner]
    first = llava_inputs([[4, 0, 7]] if order == "image-image" else [[9]])
    second = llava_inputs([[2, 0, 5]], seed=7)
    with vp.attach(model, method) as handle, torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        kept_first = handle.trace[0].kept
        logits = model(**{k: v for k, v in second.items() if k != "attention_mask"}, past_key_values=cache).logits
        kept_second = handle.trace[0].kept
        key_lengths = handle.trace[0].key_lengths
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)
    mask = ids[0] == IMAGE_TOKEN
    shift = int((first["input_ids"] == IMAGE_TOKEN).sum())
    kept = [a + [shift + token for token in b] for a, b in zip(kept_first, kept_second, strict=True)]
    pixels = [part["pixel_values"] for part in (first, second) if "pixel_values" in part]
    # Rows of the first turn ran before the second image came; no text row of it can see that image anyway.
    turns = (first["input_ids"].shape[1],)
    with oracle(model, pruned_edit(mask, kept, method, turns)), torch.no_grad():
        expected = model(input_ids=ids, pixel_values=torch.cat(pixels), use_cache=False).logits
    text = second["input_ids"][0] != IMAGE_TOKEN
    tail = expected[0, turns[0] :]
    torch.testing.assert_close(logits[0][text], tail[text], atol=2e-5, rtol=1e-4)
    assert key_lengths == [layer.keys.shape[-2] for layer in cache.layers]
    whole = [layer for layer in range(LAYERS) if layer >= getattr(method, "shallow_end", 0)]
    assert [key_lengths[layer] for layer in whole] == [int((~mask).sum()) + len(kept[layer]) for layer in whole]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_new_images_in_the_second_turn_of_a_batch(pruner: str, attn: str) -> None:
    """Examples of different lengths, in both turns, give what each gives alone."""
    model = llava_model("clip", "qwen2", attn)
    turns = llava_inputs([[4, 0, 7], [3, 0, 2]]), llava_inputs([[2, 0, 5], [3, 0, 6]], seed=7)
    with vp.attach(model, PRUNERS[pruner]) as handle, torch.no_grad():
        logits, cache = two_turns(model, *turns)
        traces = handle.trace.examples
        for layer, held in enumerate(cache.layers):
            if isinstance(held, PrunedLayer):  # no padding but what makes the examples equally long
                assert held.keys.shape[-2] == max(trace.key_lengths[layer] for trace in traces)
        for example in range(2):
            alone = [{name: given[example : example + 1] for name, given in turn.items()} for turn in turns]
            for turn in alone:  # without its padding
                real = turn["attention_mask"][0].bool()
                turn["input_ids"], turn["attention_mask"] = turn["input_ids"][:, real], turn["attention_mask"][:, real]
            expected = two_turns(model, *alone)[0][0]
            text = alone[1]["input_ids"][0] != IMAGE_TOKEN
            ours = logits[example, -len(expected) :]
            torch.testing.assert_close(ours[text], expected[text], atol=2e-5, rtol=1e-4)
            assert handle.trace[0].kept == traces[example].kept
            assert handle.trace[0].key_lengths == traces[example].key_lengths


class _ReadByText(vp.FastV):
    """As FastV, by what all text rows pay on average."""

    def score(self, view: LayerView) -> torch.Tensor:
        return torch.cat(list(view.attention_of(view.text_rows)), 1)[..., view.visual].mean((0, 1))


@pytest.mark.parametrize("is_second_drop", [False, True])
@pytest.mark.parametrize("method", [vp.FastV, _ReadByText])
def test_tokens_of_a_second_turn_are_chosen_by_the_whole_map(method: type[vp.FastV], is_second_drop: bool) -> None:
    """In which nobody sees what the first turn dropped."""
    model = llava_model("clip", "qwen2")
    pruner: vp.Pruner = method(layer=4, keep_tokens=5)
    if is_second_drop:
        pruner = Composed(parts=(vp.FixedSchedule(layers=(1,), keep=(9,)), pruner))
    first, second = llava_inputs([[4, 0, 7]]), llava_inputs([[2, 0, 5]], seed=7)
    with vp.attach(model, pruner) as handle, torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        earlier = handle.trace[0].kept
        del second["attention_mask"]
        model(**second, past_key_values=cache)
        kept = handle.trace[0].kept
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)
    visual = ids[0] == IMAGE_TOKEN
    before = [a + [16 + token for token in kept[min(layer, 3)]] for layer, a in enumerate(earlier)]
    edit, maps = pruned_edit(visual, before), []

    def remember(layer: int, logits: torch.Tensor) -> torch.Tensor:
        maps.append(edit(layer, logits))
        return maps[-1]

    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    with oracle(model, remember), torch.no_grad():
        model(input_ids=ids, pixel_values=pixels, use_cache=False)
    begun = first["input_ids"].shape[1]
    text = [row for row in range(begun, ids.shape[1]) if not visual[row]]
    columns = visual.nonzero().flatten()[[16 + token for token in kept[3]]]
    paid = maps[3][:, text if method is _ReadByText else text[-1:]][..., columns].mean((0, 1))
    assert kept[4] == sorted(kept[3][place] for place in paid.topk(5).indices)


def test_tokens_can_be_cropped_but_not_the_prompt() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS["schedule"], mask), torch.no_grad():
        cache = model(inputs_embeds=embeds, use_cache=True).past_key_values
        tokens = torch.tensor([[5, 6, 7]])
        once = model(input_ids=tokens, past_key_values=cache).logits
        cache.crop(-3)
        again = model(input_ids=tokens, past_key_values=cache).logits
        assert torch.equal(once, again)
        with pytest.raises(vp.VisiPrunerError, match="cropped"):
            cache.crop(-10)


@pytest.mark.parametrize("kind", ["llama", "mistral-sliding"])
def test_a_crop_that_is_refused_cuts_no_layer(kind: str) -> None:
    """The layers before the pruned ones hold whole prompts, and come first."""
    model = text_model(kind)
    embeds, mask = prompt(before=1, visual=4, after=3)  # shorter than the window
    tokens = torch.tensor([[5, 6, 7]])
    with vp.attach(model, vp.FastV(layer=3, keep_ratio=0.5), mask), torch.no_grad():
        cache = model(inputs_embeds=embeds, use_cache=True).past_key_values
        _refuses(cache, 1)
        once = model(input_ids=tokens, past_key_values=cache).logits
        cache.crop(-3)
        assert torch.equal(model(input_ids=tokens, past_key_values=cache).logits, once)
        _refuses(cache, 4)


def test_a_refused_crop_of_a_second_turn_cuts_no_layer() -> None:
    """The first turn lost tokens before layer 0, the second only later."""
    model = llava_model()
    pruner = Composed(parts=(UniformPruner(keep_tokens=16), vp.FastV(layer=3, keep_ratio=0.5)))
    with vp.attach(model, pruner) as handle, torch.no_grad():
        cache = model(**llava_inputs([[3, 0, 2, 0, 3]]), use_cache=True).past_key_values
        second = llava_inputs([[2, 0, 3]], seed=2)
        del second["attention_mask"]
        model(**second, past_key_values=cache)
        assert [len(kept) for kept in handle.trace[0].kept] == [16] * 3 + [8] * 4
        _refuses(cache, 1)


def _refuses(cache: Any, tokens: int) -> None:
    held = [layer.keys.shape[-2] for layer in cache.layers]
    with pytest.raises(vp.VisiPrunerError, match="cropped"):
        cache.crop(-tokens)
    assert [layer.keys.shape[-2] for layer in cache.layers] == held


def test_examples_are_selected_as_in_an_unpruned_cache() -> None:
    """Unlike prompts, the shorter with padding: one of them goes on alone, and twice."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 7], [2, 0, 3]])
    chosen = torch.tensor([1, 1])
    for pruner in (PRUNERS["schedule"], vp.NoPruning()):
        with vp.attach(model, pruner), torch.no_grad():
            cache, all_of_them = (model(**inputs, use_cache=True).past_key_values for _ in range(2))
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            ids = torch.tensor([[5], [5]])
            expected = model(input_ids=ids, attention_mask=mask, past_key_values=all_of_them).logits
            held = [layer.keys.shape for layer in cache.layers]
            cache.batch_select_indices(chosen)
            assert [layer.keys.shape for layer in cache.layers] == held
            assert cache.get_seq_length() == inputs["input_ids"].shape[1]
            got = model(input_ids=ids, attention_mask=mask[chosen], past_key_values=cache).logits
        torch.testing.assert_close(got, expected[chosen], atol=2e-5, rtol=1e-4)
        assert not torch.allclose(got[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("pruner", ["schedule", "ffn"])
@pytest.mark.parametrize("layout", [[2, 0, 9], [9]], ids=["image", "text"])
def test_a_reset_cache_is_a_new_one(layout: list[int], pruner: str) -> None:
    """Its layers are empty as the host's are, and take another prompt."""
    model, first, second = llava_model(), llava_inputs([[4, 0, 7]]), llava_inputs([layout], seed=2)
    with vp.attach(model, PRUNERS[pruner]), torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        cache.reset()
        assert [layer.get_seq_length() for layer in cache.layers] == [0] * LAYERS
        assert [layer.get_mask_sizes(3) for layer in cache.layers] == [(3, 0)] * LAYERS
        pruned = [layer for layer in cache.layers if isinstance(layer, PrunedLayer)]
        assert pruned
        assert all(layer.columns.shape == (1, 0) and layer.bias is None for layer in pruned)
        new = DynamicCache(config=model.config)
        for inputs in (second, {"input_ids": torch.tensor([[5]])}):
            got, expected = (model(**inputs, past_key_values=held).logits for held in (cache, new))
            assert torch.equal(got, expected)
            assert [layer.keys.shape for layer in cache.layers] == [layer.keys.shape for layer in new.layers]


@pytest.mark.parametrize("called", CACHE_NAMES)
def test_the_cache_is_found_by_its_newer_and_its_older_name(called: str) -> None:
    """Whoever calls a decoder by itself may still use the older one, which hooks see before the host renames it."""
    model = text_model("llama")
    decoder, cache = model.model, DynamicCache(config=model.config)
    if called == "cache" and called not in signature(decoder.forward).parameters:
        pytest.skip("before transformers 5.24")
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS["schedule"], mask) as handle, torch.no_grad():
        decoder(inputs_embeds=embeds, **{called: cache})
        held = cache.layers[-1].keys.shape[-2]
        decoder(inputs_embeds=embeds[:, :3], **{called: cache})
    assert held == handle.trace[0].key_lengths[-1] < embeds.shape[1]
    assert cache.get_seq_length() == embeds.shape[1] + 3


def test_an_image_token_said_by_the_model_is_a_word() -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    with vp.attach(model, PRUNERS["schedule"]) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        kept = handle.trace.kept
        model(input_ids=torch.tensor([[IMAGE_TOKEN]]), past_key_values=cache)
        assert handle.trace.kept == kept
