"""Ways of calling that people know from transformers: each works as there, or says in one sentence why not."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CompileConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    TextStreamer,
)

import visipruner as vp
from tests.engine.state import state_of
from tests.families.checkpoints import words_tokenizer
from tests.families.prompts import extended
from tests.families.test_matrix import CLOSE, KEEPS_ALL, PRUNERS
from tests.families.tried import tries
from tests.families.zoo import DISTINCT, FAMILIES, LAYERS, built, inputs, peaked, prompt, visual_rows
from tests.flash import use_stand_in, with_flash
from tests.oracle import oracle, pruned_edit
from visipruner.analysis.probe import Probe
from visipruner.pruners.fastervlm import FasterVLM

ONE: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": list(range(80, 99))}
each_family = pytest.mark.parametrize("name", DISTINCT)


# Families with a sliding window that is shorter than the prompts here.
WINDOWED = {"gemma3"}


def _attn(name: str) -> str:
    return "eager" if name == "paligemma2" else "sdpa"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return words_tokenizer({}, {})


# ---- streaming -----------------------------------------------------------------------------------------------------


@tries("streaming")
@each_family
def test_streaming_gives_the_same_words(name: str, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, prepared = built(name, _attn(name)), inputs(name, [prompt(name, [3, 0, 5])])
    with vp.attach(model, PRUNERS["detect"]):
        output = model.generate(**prepared, **ONE)
        said = tokenizer.decode(output[0, prepared["input_ids"].shape[1] :])
        model.generate(**prepared, **ONE, streamer=TextStreamer(tokenizer, skip_prompt=True))
        assert capsys.readouterr().out.strip() == said
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = Thread(target=model.generate, kwargs={**prepared, **ONE, "streamer": streamer})
        thread.start()
        assert "".join(streamer).strip() == said
        thread.join()


# ---- sampling ------------------------------------------------------------------------------------------------------

SAMPLED: dict[str, Any] = {
    **ONE,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 30,
    "num_return_sequences": 2,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@tries("sampling")
@each_family
def test_sampling(name: str) -> None:
    model, family, prepared = built(name, _attn(name)), FAMILIES[name], inputs(name, [prompt(name, [3, 0, 5])])
    visual = visual_rows(prepared["input_ids"])[0]

    def said() -> Any:
        torch.manual_seed(7)
        return model.generate(**prepared, **SAMPLED)

    plain = said()
    assert not torch.equal(*plain.sequences), "the case must draw to test anything"
    with vp.attach(model, KEEPS_ALL):
        assert torch.equal(said().sequences, plain.sequences)
    with vp.attach(model, PRUNERS["detect"]) as handle:
        pruned, traces = said(), handle.trace
        assert torch.equal(said().sequences, pruned.sequences)
    assert torch.equal(said().sequences, plain.sequences)
    assert len(traces) == 2
    for sequence, trace, logits in zip(pruned.sequences, traces, torch.stack(pruned.logits, 1), strict=True):
        assert len(trace.kept[-1]) < trace.num_visual
        longer = extended(prepared, sequence[None, len(visual) : -1], family.types, family.later_type)
        with oracle(model, pruned_edit(visual, trace.kept, PRUNERS["detect"])), torch.no_grad():
            expected = model(**longer, use_cache=False).logits[0, len(visual) - 1 :]
        torch.testing.assert_close(logits, expected, **CLOSE)


# ---- what is refused -----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "Assisted decoding does not work.*leave out assistant_model"),
    "chunks": ({"prefill_chunk_size": 8}, "leave out prefill_chunk_size"),
    "offloaded cache": ({"cache_implementation": "offloaded_static"}, "use the default dynamic cache"),
}


@tries("assisted decoding", "static cache")
@each_family
@pytest.mark.parametrize("use", REFUSED)
def test_what_does_not_work_says_so(name: str, use: str) -> None:
    model, (settings, message) = built(name, _attn(name)), REFUSED[use]
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    model.generate(**prepared, max_new_tokens=1)  # transformers installs hooks of its own
    before = state_of(model)
    with vp.attach(model, PRUNERS["schedule"]), pytest.raises(vp.UnsupportedModelError, match=message):
        model.generate(**prepared, **ONE, **settings)
    now = state_of(model)
    assert {**now, "attributes": 0} == {**before, "attributes": 0}
    ours = {"_prefill", "_get_candidate_generator", "_prepare_static_cache", "get_compiled_call", "forward"}
    assert not ours & set(vars(model))


def _wrapped(around: str) -> Any:
    model = built("llava")
    if "peft" in around:
        peft = pytest.importorskip("peft")
        model = copy.deepcopy(model)  # shared, and peft changes it
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).eval()
    return torch.compile(model, backend="eager") if "compile" in around else model


each_wrapper = pytest.mark.parametrize("around", ["torch.compile", "peft", "peft, compiled"])


@tries("assisted decoding", "torch.compile")
@each_wrapper
@pytest.mark.parametrize("use", REFUSED)
def test_what_does_not_work_says_so_through_a_wrapper(around: str, use: str) -> None:
    wrapped, (settings, message) = _wrapped(around), REFUSED[use]
    prepared = inputs("llava", [prompt("llava", [3, 0, 5])])
    with vp.attach(wrapped, PRUNERS["schedule"]) as handle:
        wrapped.generate(**prepared, **ONE)
        assert len(handle.trace[0].kept[-1]) < handle.trace[0].num_visual
        with pytest.raises(vp.UnsupportedModelError, match=message):
            wrapped.generate(**prepared, **ONE, **settings)
    torch.compiler.reset()


# ---- static caches ---------------------------------------------------------------------------------------------------


def compiled_step() -> dict[str, Any]:
    """A static cache and a compiled step, on a CPU and without a C++ compiler."""
    config = CompileConfig(backend="eager", mode="default", dynamic=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def answers_alike(model: Any, prepared: dict[str, Any], **settings: Any) -> None:
    """These settings give the words and logits of the default ones."""
    asked = {**ONE, "output_logits": True, "return_dict_in_generate": True}
    expected, found = model.generate(**prepared, **asked), model.generate(**prepared, **asked, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **CLOSE)


@tries("static cache")
@each_family
@pytest.mark.parametrize("pruner", ["schedule", "detect"])
def test_a_static_cache_answers_as_the_default_one(name: str, pruner: str) -> None:
    model, batch = built(name, _attn(name)), inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [5, 0, 6], 2)])
    if name == "paligemma2":  # transformers' own error
        with pytest.raises(AttributeError, match="ndim"):
            model.generate(**batch, **ONE, cache_implementation="static")
        return
    with vp.attach(model, PRUNERS[pruner]):
        answers_alike(model, batch, cache_implementation="static")


@pytest.mark.compiles
@tries("static cache")
@each_family
def test_a_compiled_step_answers_as_the_default_one(name: str) -> None:
    if name == "paligemma2":
        pytest.skip("transformers' own error")
    model = built(name, _attn(name))
    with vp.attach(model, PRUNERS["detect"]):
        answers_alike(model, inputs(name, [prompt(name, [3, 0, 5])]), **compiled_step())
    torch.compiler.reset()


@pytest.mark.compiles
@tries("static cache", "torch.compile")
@each_wrapper
def test_a_static_cache_through_a_wrapper(around: str) -> None:
    wrapped, prepared = _wrapped(around), inputs("llava", [prompt("llava", [3, 0, 5])])
    with vp.attach(wrapped, PRUNERS["schedule"]):
        answers_alike(wrapped, prepared, **compiled_step())
    torch.compiler.reset()


@tries("assisted decoding")
def test_an_assistant_is_refused_and_comes_back_when_the_pruner_is_gone() -> None:
    model, assistant = built("llava"), built("llava", "eager")
    prepared = inputs("llava", [prompt("llava", [6])])
    plain = model.generate(**prepared, **ONE)
    with vp.attach(model, PRUNERS["schedule"]), pytest.raises(vp.UnsupportedModelError, match="Assisted decoding"):
        model.generate(**prepared, **ONE, assistant_model=assistant)
    assert torch.equal(model.generate(**prepared, **ONE, prompt_lookup_num_tokens=2), plain)


@tries("attention maps")
@each_family
def test_attention_maps_are_whole_or_an_error(name: str) -> None:
    model, prepared = built(name, "eager"), inputs(name, [prompt(name, [3, 0, 5])])
    with torch.no_grad():
        plain = model(**prepared, output_attentions=True).attentions
        with vp.attach(model, vp.NoPruning()):
            attached = model(**prepared, output_attentions=True).attentions
        assert len(plain) == len(attached) == LAYERS
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(attached, plain, strict=True))
        with vp.attach(model, PRUNERS["schedule"]):
            with pytest.raises(vp.UnsupportedModelError, match="leave out output_attentions"):
                model(**prepared, output_attentions=True)
            with pytest.raises(vp.UnsupportedModelError, match="leave out output_attentions"):
                model.generate(**prepared, **ONE, output_attentions=True, return_dict_in_generate=True)
            assert torch.isfinite(model(**prepared).logits).all(), "the same handle goes on working"


@pytest.mark.parametrize("name", ["qwen3-vl-moe", "glm4v-moe"])
@pytest.mark.parametrize("by", ["argument", "config"])
def test_router_logits_are_of_every_row_or_an_error(name: str, by: str) -> None:
    """The loss that balances experts counts the prompt's rows in every layer."""
    model, prepared = built(name), inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [2, 0, 4], 2)])
    asked = {"output_router_logits": True} if by == "argument" else {}
    model.config.text_config.output_router_logits = by == "config"
    try:
        with torch.no_grad():
            plain = model(**prepared, **asked)
            with vp.attach(model, vp.NoPruning()):
                attached = model(**prepared, **asked)
            assert torch.equal(attached.logits, plain.logits)
            assert getattr(attached, "aux_loss", None) == getattr(plain, "aux_loss", None)
            with vp.attach(model, PRUNERS["schedule"]):
                with pytest.raises(vp.UnsupportedModelError, match="leave out output_router_logits"):
                    model(**prepared, **asked)
                model.config.text_config.output_router_logits = False
                assert torch.isfinite(model(**prepared).logits).all(), "the same handle goes on working"
    finally:
        model.config.text_config.output_router_logits = False


def _prunes_as(model: Any, other: Any, name: str) -> None:
    """`other`, the same model with another kernel, prunes a batch as `model` does."""
    prepared = inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [2, 0, 4], 2)])
    with torch.no_grad():
        plain = other(**prepared).logits
        with vp.attach(other, vp.NoPruning()):
            assert torch.equal(other(**prepared).logits, plain)
        with vp.attach(model, PRUNERS["schedule"]) as handle:
            expected, kept = model(**prepared).logits, handle.trace.kept
        with vp.attach(other, PRUNERS["schedule"]) as handle:
            logits = other(**prepared).logits
            assert handle.trace.kept == kept
    real = prepared["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], **CLOSE)


@tries("flash attention")
@each_family
def test_flash_kernels_prune_as_sdpa_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch)
    model, flash = built(name, _attn(name)), with_flash(copy.deepcopy(built(name, _attn(name))))
    if name in WINDOWED:
        refused = pytest.raises(vp.UnsupportedModelError, match="sliding window")
        with vp.attach(flash, PRUNERS["schedule"]), torch.no_grad(), refused:
            flash(**inputs(name, [prompt(name, [3, 0, 5])]))
    else:
        _prunes_as(model, flash, name)


@tries("flex attention")
@each_family
def test_flex_kernels_prune_as_sdpa_does(name: str) -> None:
    model, flex = built(name, _attn(name)), copy.deepcopy(built(name, _attn(name)))
    for config in {
        id(part.config): part.config for part in flex.get_decoder().modules() if hasattr(part, "config")
    }.values():
        config._attn_implementation = "flex_attention"
    with torch.compiler.set_stance("force_eager"):
        _prunes_as(model, flex, name)


@each_family
@pytest.mark.parametrize(
    ("kernel", "attach"),
    [("paged|eager", lambda model: vp.attach(model, vp.NoPruning())), ("flex_attention", Probe)],
)
def test_kernels_without_masks_by_row_are_refused(name: str, kernel: str, attach: Any) -> None:
    model = copy.deepcopy(built(name, _attn(name)))
    model.get_decoder().config._attn_implementation = kernel
    before = state_of(model)
    with pytest.raises(vp.UnsupportedModelError, match=rf"{re.escape(repr(kernel))}.*attn_implementation='sdpa'"):
        attach(model)
    assert state_of(model) == before


# ---- hidden states -------------------------------------------------------------------------------------------------


@tries("hidden states")
@each_family
def test_hidden_states_are_those_of_the_rows_that_ran(name: str) -> None:
    model = built(name, _attn(name))
    prepared = inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [2, 0, 4], 2)])
    with vp.attach(model, PRUNERS["schedule"]) as handle, torch.no_grad():
        output = model(**prepared, output_hidden_states=True)
        later = model.generate(**prepared, **ONE, output_hidden_states=True, return_dict_in_generate=True)
    rows = [sum(lengths) for lengths in zip(*handle.trace.query_lengths, strict=True)]
    batch, seq = prepared["input_ids"].shape
    states = output.hidden_states
    assert len(states) == LAYERS + 1
    assert [tuple(part.shape[:2]) for part in states[2:-1]] == [(1, count) for count in rows[1:-1]]
    assert tuple(states[-1].shape[:2]) == (batch, seq), "the last entry is in the prompt's places again"
    logits, cap = model.lm_head(states[-1])[:, -1], getattr(model.config.text_config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * (logits / cap).tanh()
    torch.testing.assert_close(logits, output.logits[:, -1], **CLOSE)
    assert [tuple(part.shape[:2]) for part in later.hidden_states[1]] == [(batch, 1)] * (LAYERS + 1)


# ---- torch.compile -------------------------------------------------------------------------------------------------


@tries("torch.compile")
@pytest.mark.parametrize(
    "name", ["llava", *(pytest.param(name, marks=pytest.mark.compiles) for name in ("qwen3-vl", "idefics3", "gemma3"))]
)
def test_a_compiled_model_runs_its_decoder_as_it_is(name: str) -> None:
    model, prepared = built(name), inputs(name, [prompt(name, [3, 0, 5])])
    decoder = model.get_decoder()
    before = set(vars(decoder))
    compiled = torch.compile(model, backend="eager")
    with vp.attach(model, PRUNERS["detect"]) as handle, torch.no_grad():
        expected, kept = model(**prepared).logits, handle.trace.kept
        assert torch.equal(compiled(**prepared).logits, expected)
        assert handle.trace.kept == kept
    assert set(vars(decoder)) == before
    torch.compiler.reset()


# ---- through accelerate --------------------------------------------------------------------------------------------


def _places(model: Any) -> dict[str, str]:
    """A device map with the towers in memory and every other decoder layer on the disk."""
    names = [name for name, _ in model.named_parameters()]
    spread = {"lm_head": "cpu"}  # some are tied to the embedding
    for name in names:
        parts = name.split(".")
        if "layers" in parts and ("language_model" in parts or "text_model" in parts):
            end = parts.index("layers") + 2
            spread[".".join(parts[:end])] = "disk" if int(parts[end - 1]) % 2 else "cpu"
        else:
            spread[name.rsplit(".", 1)[0]] = "cpu"
    return spread


@tries("device_map")
@pytest.mark.parametrize("name", ["llava", "qwen3-vl", "idefics3", "gemma3"])
@pytest.mark.parametrize("where", ["auto", "disk"])
def test_device_maps(name: str, where: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    plain = built(name)
    plain.save_pretrained(tmp_path)
    places = "auto" if where == "auto" else _places(plain)
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offloaded", attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None
    offloaded = [parameter for parameter in model.parameters() if parameter.device.type == "meta"]
    assert bool(offloaded) == (where == "disk")
    prepared = inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [2, 0, 4], 2)])
    pruners = {**PRUNERS, "tower": FasterVLM(keep_ratio=0.3)} if name == "llava" else PRUNERS
    for pruner in pruners.values():
        with vp.attach(plain, pruner):
            expected = plain.generate(**prepared, **ONE, output_logits=True, return_dict_in_generate=True)
        with vp.attach(model, pruner):
            output = model.generate(**prepared, **ONE, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))


# ---- quantized weights ---------------------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """Weights as int8 with a scale for each output; no `weight` that anybody could look at."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, self.packed.to(rows.dtype) * self.scale)


def _replaced(model: Any) -> Any:
    for module in list(model.model.language_model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model


def _by_torchao(model: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    return model


def _by_bitsandbytes(folder: Path, bits: int) -> Any:
    """On CPUs that have bfloat16 the 4-bit kernel takes whole blocks of 64 weights a row only, hence the widths."""
    pytest.importorskip("bitsandbytes")
    config = FAMILIES["llava"].config()
    for part in (config.text_config, config.vision_config):
        part.hidden_size = part.intermediate_size = 64
    config.text_config.head_dim = 16
    model = peaked(config)
    settings = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    model.save_pretrained(folder)
    return AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype=torch.float32
    )


@tries("8- and 4-bit weights")
@pytest.mark.parametrize("kind", ["int8", "torchao", "bitsandbytes-8", "bitsandbytes-4"])
def test_quantized_weights(kind: str, tmp_path: Path) -> None:
    if kind.startswith("bitsandbytes"):
        model = _by_bitsandbytes(tmp_path, int(kind[-1]))
    else:
        model = {"int8": _replaced, "torchao": _by_torchao}[kind](copy.deepcopy(built("llava")))
    prepared = inputs("llava", [prompt("llava", [3, 0, 5])])
    visual = visual_rows(prepared["input_ids"])[0]
    # That kernel rounds to bfloat16; what a pruner changes is a hundred times as much.
    close = {"atol": 1e-2, "rtol": 0.0} if kind == "bitsandbytes-4" else CLOSE
    for pruner in PRUNERS.values():
        with torch.no_grad(), vp.attach(model, pruner) as handle:
            logits, kept = model(**prepared).logits[0], handle.trace[0].kept
        with torch.no_grad(), oracle(model, pruned_edit(visual, kept, pruner)):
            expected = model(**prepared, use_cache=False).logits[0]
        assert len(kept[-1]) < int(visual.sum())
        torch.testing.assert_close(logits[~visual], expected[~visual], **close)
