"""Invariants 4, 7, 8 and 9: nothing changes where nothing is pruned, nothing is left behind, nothing is changed in
place, and what cannot work says so."""

from __future__ import annotations

import copy
import gc
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import visipruner as vp
from tests.engine.cases import KEEPS_EVERYTHING, METHODS, PRUNERS
from tests.engine.state import state_of
from tests.models import LAYERS, TEXT_CONFIGS, llava_inputs, llava_model, prompt, text_model
from visipruner.analysis import Probe
from visipruner.contract.routing import PLAIN, Routing
from visipruner.engine.session import PromptSession

GREEDY = {"max_new_tokens": 6, "do_sample": False}


# ---- 4: keeping everything, and prompts without images, are the plain model to the last bit -------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pruner", [*KEEPS_EVERYTHING, "none"])
@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_keeping_everything_is_bit_identical(kind: str, pruner: str, dtype: torch.dtype, attn: str) -> None:
    model = text_model(kind, attn, dtype)
    embeds, mask = prompt(batch=2)
    embeds = embeds.to(dtype)
    settings = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(inputs_embeds=embeds, **settings)
    with vp.attach(model, KEEPS_EVERYTHING.get(pruner, vp.NoPruning()), mask):
        attached = model.generate(inputs_embeds=embeds, **settings)
    assert torch.equal(torch.stack(plain.logits), torch.stack(attached.logits))
    assert torch.equal(plain.sequences, attached.sequences)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", METHODS)
def test_a_prompt_without_images_is_bit_identical(pruner: str, attn: str) -> None:
    model = llava_model("clip", "llama", attn)
    inputs = llava_inputs([[9], [14]])
    settings = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **settings)
    with vp.attach(model, METHODS[pruner]) as handle:
        attached = model.generate(**inputs, **settings)
        assert handle.trace[0].num_visual == 0
        assert handle.trace.query_lengths == [[9] * LAYERS, [14] * LAYERS]
    assert torch.equal(torch.stack(plain.logits), torch.stack(attached.logits))


# ---- 7: off is off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", METHODS)
def test_on_changes_off_restores_on_again_repeats(pruner: str) -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    with torch.no_grad():
        plain = model(**inputs).logits
        before = state_of(model)  # taken after a first forward: transformers installs hooks of its own then
        with vp.attach(model, METHODS[pruner]):
            pruned = model(**inputs).logits
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, plain)
        with vp.attach(model, METHODS[pruner]):
            again = model(**inputs).logits
    assert not torch.equal(pruned[:, -1], plain[:, -1])
    assert torch.equal(pruned, again)


@pytest.mark.parametrize("pruner", ["prefix", "ffn", "middle-deep"])
@pytest.mark.parametrize("where", ["mlp", "self_attn"])
def test_an_interrupted_forward_leaves_the_model_as_it_was(pruner: str, where: str) -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    with torch.no_grad():
        plain = model(**inputs).logits
        before = state_of(model)  # taken after a first forward: transformers installs hooks of its own then
        with vp.attach(model, PRUNERS[pruner]):
            expected = model(**inputs).logits
        _fail_once(getattr(model.model.language_model.layers[3], where))
        with pytest.raises(KeyboardInterrupt), vp.attach(model, PRUNERS[pruner]):
            model(**inputs)
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, plain)
        with vp.attach(model, PRUNERS[pruner]):
            _fail_once(getattr(model.model.language_model.layers[3], where))
            with pytest.raises(KeyboardInterrupt):
                model(**inputs)
            assert torch.equal(model(**inputs).logits, expected), "the same handle goes on working"


@pytest.mark.parametrize("pruner", ["budget", "frozen", "fastervlm", "sparsevlm"])
def test_a_session_ends_with_its_forward(pruner: str) -> None:
    """Its masks and waiting rows do not stay in memory until Python looks for cycles."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    gc.collect()
    gc.disable()
    try:
        with vp.attach(model, METHODS[pruner]), torch.no_grad():
            model(**inputs)
            assert not [kept for kept in gc.get_objects() if type(kept) is PromptSession]
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["vision_tower.encoder.layers.1", "language_model.layers.3"])
def test_images_of_an_interrupted_prompt_are_not_the_next_one_s(where: str) -> None:
    """With two beams the images before and the new ones would be as many as the examples."""
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    with vp.attach(model, METHODS["fastervlm"]) as handle:
        expected = model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        kept = handle.trace.kept
        _fail_once(model.model.get_submodule(where))
        with pytest.raises(KeyboardInterrupt):
            model.generate(**llava_inputs([[4, 0, 7]], seed=2), max_new_tokens=2, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False), expected)
        assert handle.trace.kept == kept


def _refused(model: Any, prompt: dict[str, Any], **settings: Any) -> None:
    with pytest.raises(vp.UnsupportedModelError, match="remove the pruner"):
        model.generate(**prompt, max_new_tokens=1, **settings)


def _interrupted(model: Any, prompt: dict[str, Any]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_prepare_cache_for_generation", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**prompt, max_new_tokens=1)


def _failed(model: Any, prompt: dict[str, Any]) -> None:
    def fail(*_: Any) -> None:
        hook.remove()
        raise MemoryError

    hook = model.model.multi_modal_projector.register_forward_hook(fail)
    with pytest.raises(MemoryError), torch.no_grad():
        model(**prompt)


_ENCODES: dict[str, Any] = {
    "offloaded cache": partial(_refused, cache_implementation="offloaded_static"),
    "chunked prefill": partial(_refused, prefill_chunk_size=4),
    "interrupted": _interrupted,
    "failed forward": _failed,
    "no prompt": lambda model, prompt: model.get_image_features(prompt["pixel_values"]),
}


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize("before", _ENCODES)
def test_images_that_met_no_prompt_are_not_the_next_one_s(before: str, way: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])

    def kept(handle: vp.PruneHandle) -> list[list[list[int]]]:
        call = partial(model.generate, max_new_tokens=1) if way == "generate" else model
        with torch.no_grad():
            call(**inputs)
        return handle.trace.kept

    with vp.attach(model, METHODS["fastervlm"]) as handle:
        expected = kept(handle)
        _ENCODES[before](model, llava_inputs([[4, 0, 7]], seed=2))
        assert kept(handle) == expected


@pytest.mark.parametrize("before", [name for name in _ENCODES if name != "no prompt"])
def test_images_encoded_by_themselves_are_those_of_the_prompt_that_is_given_them(before: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    with vp.attach(model, METHODS["fastervlm"]) as handle, torch.no_grad():
        model(**inputs)
        expected = handle.trace.kept
        pixels = inputs.pop("pixel_values")
        _ENCODES[before](model, llava_inputs([[4, 0, 7]], seed=2))
        encoded = {"image": model.get_image_features(pixels)}
        model.generate(**inputs, mm_encoder_outputs=encoded, max_new_tokens=1)
        assert handle.trace.kept == expected


def _fail_once(module: nn.Module) -> None:
    def fail(*_: Any) -> None:
        hook.remove()
        raise KeyboardInterrupt

    hook = module.register_forward_hook(fail)


def test_a_second_attach_raises_and_the_first_goes_on() -> None:
    model = text_model("llama")
    _, mask = prompt()
    with vp.attach(model, vp.NoPruning(), mask):
        with pytest.raises(vp.VisiPrunerError, match="attached already"):
            vp.attach(model, vp.NoPruning(), mask)
        assert model.config._attn_implementation == "visipruner_sdpa"
    vp.attach(model, vp.NoPruning(), mask).remove()


def test_removing_twice_is_harmless() -> None:
    model = text_model("llama")
    handle = vp.attach(model, vp.NoPruning(), prompt()[1])
    handle.remove()
    before = state_of(model)
    handle.remove()
    assert state_of(model) == before


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_a_failed_attach_leaves_nothing_behind(part: str) -> None:
    AttentionInterface.register("without_masks", sdpa_attention_forward)
    model = llava_model()
    getattr(model.model, part).config._attn_implementation = "without_masks"
    before = state_of(model)
    with pytest.raises(vp.UnsupportedModelError, match=r"without_masks.*load the model with"):
        vp.attach(model, vp.FasterVLM(keep_ratio=0.25, vision_layer=-1))
    assert state_of(model) == before
    getattr(model.model, part).config._attn_implementation = "sdpa"
    vp.attach(model, vp.FasterVLM(keep_ratio=0.25, vision_layer=-1)).remove()


class _BreaksLate(vp.NoPruning):
    def routing(self, layer: int) -> Routing:
        if layer == LAYERS - 1:
            raise RuntimeError("no routing")
        return PLAIN


def test_an_attach_that_breaks_half_way_leaves_nothing_behind() -> None:
    model = llava_model()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="no routing"):
        vp.attach(model, _BreaksLate())
    assert state_of(model) == before
    vp.attach(model, vp.NoPruning()).remove()


@pytest.mark.parametrize("pruner", [vp.VTW(layer=1), vp.FastV(layer=2, keep_tokens=4)])
@pytest.mark.parametrize(("attn", "new"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_another_attention_implementation_under_a_pruner_is_an_error(attn: str, new: str, pruner: vp.Pruner) -> None:
    model, inputs = llava_model(attn=attn), llava_inputs([[4, 0, 7]])
    with torch.no_grad():
        with vp.attach(model, pruner):
            model.set_attn_implementation(new)
            with pytest.raises(vp.VisiPrunerError, match=rf"set to '{new}'.*call .remove\(\)"):
                model(**inputs)
        assert model.config.text_config._attn_implementation == new, "the choice of the user stays"
        fresh = llava_model(attn=new)
        assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)
        with vp.attach(model, pruner), vp.attach(fresh, pruner):
            assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)


def test_another_attention_implementation_in_the_tower_is_an_error_where_it_is_read() -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    with vp.attach(model, vp.FasterVLM(keep_ratio=0.25, vision_layer=-1)), torch.no_grad():
        model.model.vision_tower.set_attn_implementation("eager")
        with pytest.raises(vp.VisiPrunerError, match="set to 'eager'"):
            model(**inputs)
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_another_attention_implementation_under_a_probe_is_an_error() -> None:
    model = llava_model()
    with Probe(model) as probe:
        model.set_attn_implementation("eager")
        with pytest.raises(vp.VisiPrunerError, match=r"a probe: .close\(\)"):
            probe.read(llava_inputs([[4, 0, 7]]))


@pytest.mark.parametrize("pruner", ["prefix", "ffn", "fastv"])
def test_a_copy_of_an_attached_model_never_runs_the_original(pruner: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    ran: list[nn.Module] = []
    with vp.attach(model, METHODS[pruner]) as handle, torch.no_grad():
        copied = copy.deepcopy(model)
        for layer in model.model.language_model.layers:
            layer.mlp.register_forward_hook(lambda module, *_: ran.append(module))
        for call in (lambda: copied(**inputs), lambda: copied.generate(**inputs, **GREEDY)):
            with pytest.raises(vp.UnsupportedModelError, match="is a copy of one"):
                call()
        with pytest.raises(vp.VisiPrunerError, match="no trace"):
            _ = handle.trace
    with pytest.raises(vp.UnsupportedModelError, match="is a copy of one"):
        copied.generate(**inputs, **GREEDY)
    assert not ran


# ---- 8: no tensor of the host is changed in place -------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_no_tensor_of_the_host_is_changed_in_place(pruner: str, attn: str) -> None:
    model = text_model("llama", attn)
    embeds, mask = prompt(batch=2)
    seen: list[tuple[torch.Tensor, int, torch.Tensor]] = []

    def remember(_module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        for value in [*args, *kwargs.values(), output]:
            tensors = [part for part in (value if isinstance(value, tuple) else (value,)) if torch.is_tensor(part)]
            seen.extend((tensor, tensor._version, tensor.clone()) for tensor in tensors)

    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in model.model.layers]
    hooks += [layer.register_forward_hook(remember, with_kwargs=True) for layer in model.model.layers]
    remember(model, (embeds, mask), dict(model.named_parameters()))
    with vp.attach(model, PRUNERS[pruner], mask), torch.no_grad():
        model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]).long())
    for hook in hooks:
        hook.remove()
    assert len(seen) > LAYERS
    for tensor, version, before in seen:
        assert tensor._version == version
        assert torch.equal(tensor, before)


# ---- 9: never a silent no-op ---------------------------------------------------------------------------------------


def test_unsupported_models_are_named_with_the_reason() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    with pytest.raises(vp.UnsupportedModelError, match=r"gpt2.*encoder_hidden_states.*nobody narrows"):
        vp.attach(model, vp.NoPruning())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: nn.DataParallel(model), r"DataParallel is no transformers model; .*its \.module"),
        (lambda model: model.model, r"LlavaModel is a model without its head.*give the whole model"),
        (lambda model: model.model.language_model, r"LlamaModel is a model without its head"),
        (lambda model: "llava-1.5", r"not to a str; load one"),
    ],
)
def test_what_is_no_whole_model_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(vp.UnsupportedModelError, match=message):
        vp.attach(wrong(llava_model()), vp.NoPruning())


def test_a_part_called_alone_is_pruned_with_the_whole_model() -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    with vp.attach(model, vp.VTW(layer=2)) as handle, torch.no_grad():
        model.model(**inputs)
        assert [len(kept) for kept in handle.trace.kept[0]] == [16, 16, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("wrong", "message"), [(vp.FastV, r"FastV\(.*not the class"), ("fastv", "not 'fastv'")])
def test_what_is_no_method_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        vp.attach(llava_model(), wrong)


def test_an_attached_model_says_that_it_cannot_be_pickled(tmp_path: Any) -> None:
    model = llava_model()
    before = state_of(model)
    with vp.attach(model, PRUNERS["budget"]):
        for save in (pickle.dumps, partial(torch.save, f=tmp_path / "model.pt")):
            with pytest.raises(vp.UnsupportedModelError, match=r"cannot be pickled; call \.remove\(\)"):
                save(model)
        model.save_pretrained(tmp_path)
    assert state_of(pickle.loads(pickle.dumps(model)))["attributes"] == before["attributes"]


@pytest.mark.parametrize("form", [lambda mask: mask.tolist(), lambda mask: mask.numpy()], ids=["lists", "numpy"])
def test_a_mask_may_be_an_array_or_lists(form: Any) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    kept = []
    for given in (mask, form(mask)):
        with vp.attach(model, PRUNERS["schedule"], given) as handle, torch.no_grad():
            model(inputs_embeds=embeds)
        kept.append(handle.trace.kept)
    assert kept[0] == kept[1]
    with Probe(model, form(mask[:1])) as probe:
        assert torch.equal(probe.visual_mask, mask[:1])


@pytest.mark.parametrize(
    "wrong", [[[True], [True, False]], [[0, 1]], [True, False], "mask", [["yes"]], {"mask": 1}, [[None]], 3], ids=str
)
def test_what_is_no_mask_is_refused(wrong: Any) -> None:
    with pytest.raises(vp.LayoutError, match=r"^visual_mask must be a bool tensor of shape \[batch, seq\]"):
        vp.attach(text_model("llama"), vp.NoPruning(), wrong)


def test_a_text_model_needs_a_mask() -> None:
    with pytest.raises(vp.LayoutError, match="visual_mask"):
        vp.attach(text_model("llama"), vp.NoPruning())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 27), "bool tensor"),
        (torch.ones(27, dtype=torch.bool), "bool tensor"),
        (torch.zeros(1, 27, dtype=torch.bool), "marks no visual row"),
    ],
)
def test_malformed_masks(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(vp.LayoutError, match=message):
        vp.attach(text_model("llama"), vp.NoPruning(), mask)


@pytest.mark.parametrize(("batch", "length"), [(2, 27), (1, 40)])
def test_masks_of_another_prompt(batch: int, length: int) -> None:
    model = text_model("llama")
    embeds, _ = prompt()
    mask = torch.ones(batch, length, dtype=torch.bool)
    with vp.attach(model, vp.NoPruning(), mask), pytest.raises(vp.LayoutError, match="visual_mask"):
        model(inputs_embeds=embeds)


def test_image_tokens_without_pixels() -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    with vp.attach(model, vp.NoPruning()), pytest.raises(vp.LayoutError, match="pixel_values"):
        model(input_ids=inputs["input_ids"])


def test_image_tokens_cut_from_the_prompt() -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    cut = {"input_ids": inputs["input_ids"][:, :12], "pixel_values": inputs["pixel_values"]}
    with vp.attach(model, vp.VisiPruner(shallow_end=2)), pytest.raises(ValueError, match=r"[Ii]mage"):
        model(**cut)


def test_embeddings_that_do_not_say_what_is_visual() -> None:
    model = llava_model()
    embeds, _ = prompt()
    with vp.attach(model, vp.NoPruning()), pytest.raises(vp.LayoutError, match="visual_mask"):
        model(inputs_embeds=embeds)


def test_a_static_cache_is_refused() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    cache = StaticCache(config=model.config, max_cache_len=64)
    with (
        vp.attach(model, PRUNERS["schedule"], mask),
        pytest.raises(vp.UnsupportedModelError, match="dynamic cache"),
        torch.no_grad(),
    ):
        model(inputs_embeds=embeds, past_key_values=cache)


def test_a_pruned_cache_needs_its_pruner() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS["schedule"], mask), torch.no_grad():
        cache = model(inputs_embeds=embeds, use_cache=True).past_key_values
    with pytest.raises(vp.VisiPrunerError, match="keep the pruner attached"), torch.no_grad():
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_threshold": 1.5}, "cosine"),
        ({"exit_threshold": float("nan")}, "cosine"),
        ({"token_threshold": -0.1}, "length"),
        ({"stages": ("shallow", "final")}, "stages"),
        ({"shallow_visual": "none"}, "shallow_visual"),
        ({"exit_count": "once"}, "exit_count"),
        ({"keep_tokens": -1}, "negative"),
        ({"keep_ratio": 0.0}, "fraction"),
        ({"keep_ratio": 1.1}, "fraction"),
        ({"keep_tokens": 3, "keep_ratio": 0.5}, "give one"),
        ({"exit_votes": 0}, "exit_votes"),
        ({"filter_layer": 4, "exit_layer": 4}, "after"),
    ],
)
def test_absurd_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        vp.VisiPruner(**settings)


@pytest.mark.parametrize("settings", [{"shallow_end": 99}, {"filter_layer": 6}, {"exit_layer": 60}])
def test_settings_that_do_not_fit_the_model(settings: dict[str, Any]) -> None:
    model = text_model("llama")
    before = state_of(model)
    with pytest.raises(vp.ConfigError, match="model"):
        vp.attach(model, vp.VisiPruner(**settings), prompt()[1])
    assert state_of(model) == before


def test_there_is_no_trace_before_the_first_prompt() -> None:
    with (
        vp.attach(text_model("llama"), vp.NoPruning(), prompt()[1]) as handle,
        pytest.raises(vp.VisiPrunerError, match="no trace"),
    ):
        _ = handle.trace
