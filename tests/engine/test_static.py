"""A static cache after a pruned prompt answers as the dynamic one, compiled or not; a step compiles once for a size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import visipruner as vp
from tests.engine.cases import METHODS, PRUNERS, WAYS, cells, generate
from tests.engine.state import state_of
from tests.engine.test_states import KINDS, ONE, schedule, subject
from tests.models import IMAGE_TOKEN, llava_inputs, llava_model, prompt, text_model
from visipruner.engine.static import StaticRows, rounded
from visipruner.engine.twin import grouped_attention

CLOSE: dict[str, float] = {"atol": 2e-5, "rtol": 1e-4}
STATIC: dict[str, Any] = {"cache_implementation": "static"}
MANY = pytest.mark.compiles  # a step takes seconds to compile: make compiled-test
LAYOUTS = {"one": [[4, 0, 7]], "unlike": [[4, 0, 7], [2, 0, 3]], "text": [[9]]}


def compiled(backend: str = "eager", dynamic: bool | None = False) -> dict[str, Any]:
    """A compiled step on a CPU, by a backend that needs no C++ compiler."""
    config = CompileConfig(backend=backend, mode="default", dynamic=dynamic, fullgraph=True)
    config._compile_all_devices = True
    return {**STATIC, "compile_config": config}


@contextmanager
def compiles(graphs: int) -> Iterator[None]:
    """Within it, so many graphs are compiled, and none is split."""
    torch.compiler.reset()
    counters.clear()
    yield
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def agrees(model: Any, inputs: dict[str, Any], steps: int = 4, **settings: Any) -> Any:
    """Asserts that these settings answer as the default; returns what they gave."""
    expected, found = generate(model, steps, **inputs), generate(model, steps, **inputs, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **CLOSE)
    return found


# ---- answers --------------------------------------------------------------------------------------------------------


ALL = [(attn, layout) for attn in ("sdpa", "eager") for layout in LAYOUTS]


@pytest.mark.parametrize(("pruner", "attn", "layout"), cells(ALL, [("sdpa", "unlike")]))
def test_a_static_cache_answers_as_a_dynamic_one(pruner: str, attn: str, layout: str) -> None:
    model, inputs = llava_model("clip", "qwen2", attn), llava_inputs(LAYOUTS[layout])
    with vp.attach(model, METHODS[pruner]) as handle:
        generate(model, 4, **inputs)
        trace = handle.trace.to_dict()
        found = agrees(model, inputs, **STATIC)
        assert handle.trace.to_dict() == trace
    assert {type(layer) for layer in found.cache.layers} == {StaticRows}


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}]
)
@pytest.mark.parametrize("pruner", WAYS)
def test_beams_and_samples(pruner: str, settings: dict[str, Any]) -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["unlike"])
    said = []
    with vp.attach(model, WAYS[pruner]):
        for how in ({}, STATIC):
            torch.manual_seed(0)
            said.append(model.generate(**inputs, max_new_tokens=6, suppress_tokens=[IMAGE_TOKEN], **settings, **how))
    assert torch.equal(*said)


def test_guidance_runs_beside_it() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    with vp.attach(model, PRUNERS["budget"]):
        agrees(model, {**inputs, "guidance_scale": 2.0}, **STATIC)


def test_prompts_share_an_image() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    with vp.attach(model, PRUNERS["budget"]) as handle, handle.image_cache():
        for _ in range(2):
            agrees(model, inputs, **STATIC)


@pytest.mark.parametrize("how", ["uncompiled", pytest.param("compiled", marks=MANY)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_pass_a_state(kind: str, how: str) -> None:
    """Their states have one size anyhow."""
    tried = subject(kind)
    with tried.attach(schedule(1)):
        agrees(tried.model, tried.prompts.inputs([ONE]), **(STATIC if how == "uncompiled" else compiled()))
    torch.compiler.reset()


# ---- lengths --------------------------------------------------------------------------------------------------------


def test_lengths_are_rounded_up_to_a_few_sizes() -> None:
    sizes = [rounded(count) for count in range(4097)]
    assert all(count <= size <= max(1.5 * count, 32) for count, size in enumerate(sizes) if count)
    assert sizes[0] == 0, "a layer that kept nothing takes no column"
    assert sorted(set(sizes)) == [0, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def test_each_layer_has_columns_for_what_it_kept() -> None:
    """20 rows of text and 160 visual ones; then 100, then none of these."""
    model = text_model("llama")
    embeds, mask = prompt(before=10, visual=160, after=10)
    with vp.attach(model, vp.FixedSchedule(layers=(1, 3), keep=(100, 0)), mask):
        cache = agrees(model, {"inputs_embeds": embeds}, 4, **STATIC).cache
    room = rounded(3)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [
        192 + room,
        192 + room,
        128 + room,
        128 + room,
        32 + room,
        32 + room,
    ]


def test_room_for_the_longest_answer() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["unlike"])
    with vp.attach(model, PRUNERS["schedule"]):
        agrees(model, inputs, 70, **STATIC)
        agrees(model, {**inputs, "max_cache_len": 200}, 4, **STATIC)


# ---- compiled steps -------------------------------------------------------------------------------------------------


def steps() -> Iterator[Any]:
    """Two of all by default."""
    by_default = {("schedule", "aot_eager"), ("fastv", "eager, by eager attention")}
    for pruner in ("schedule", "budget", "ffn", "frozen", "fastv", "divprune", "middle-deep"):
        for attn, text, backend in (
            ("sdpa", "llama", "eager"),
            ("sdpa", "qwen2", "aot_eager"),
            ("eager", "qwen2", "eager"),
        ):
            told = backend if attn == "sdpa" else f"{backend}, by eager attention"
            yield pytest.param(pruner, attn, text, backend, marks=() if (pruner, told) in by_default else MANY)


@pytest.mark.parametrize(("pruner", "attn", "text", "backend"), steps())
def test_a_step_compiles_once_for_prompts_of_a_size(pruner: str, attn: str, text: str, backend: str) -> None:
    model = llava_model("clip", text, attn)
    with vp.attach(model, METHODS[pruner]), compiles(graphs=1):
        for layout in ([[4, 0, 7]], [[3, 0, 5]], [[6, 0, 6]]):
            agrees(model, llava_inputs(layout), **compiled(backend))


@MANY
@pytest.mark.parametrize(("dynamic", "graphs"), [(False, 4), (None, 2)])
def test_another_size_compiles_anew(dynamic: bool | None, graphs: int) -> None:
    """By default torch takes lengths as unknown once it has seen two."""
    model = llava_model()
    with vp.attach(model, PRUNERS["schedule"]), compiles(graphs):
        for text in (7, 60, 6, 59, 130, 250):
            agrees(model, llava_inputs([[4, 0, text]]), **compiled(dynamic=dynamic))


@pytest.mark.parametrize("how", [STATIC, {**compiled(), "disable_compile": True}])
def test_where_transformers_does_not_compile_nothing_is_compiled(how: dict[str, Any]) -> None:
    model = llava_model()
    with vp.attach(model, PRUNERS["schedule"]), compiles(graphs=0):
        agrees(model, llava_inputs(LAYOUTS["unlike"]), **how)


def test_a_padded_batch_of_unlike_prompts_compiled() -> None:
    model = llava_model()
    with vp.attach(model, PRUNERS["middle-deep"]), compiles(graphs=1):
        agrees(model, llava_inputs(LAYOUTS["unlike"]), **compiled())


def test_a_compiled_step_follows_the_model() -> None:
    """Hooks of others are in it (those that it was compiled with: torch looks at them once); weights and modules are
    what they are by now."""
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    layers = model.model.language_model.layers
    with vp.attach(model, PRUNERS["schedule"]):
        plain = generate(model, 4, **inputs).logits
        layers[2].register_forward_hook(lambda module, args, output: output * 1.5)
        hooked = agrees(model, inputs, **compiled()).logits
        assert not torch.allclose(hooked[-1], plain[-1], **CLOSE)
        with torch.no_grad():
            layers[2].mlp.down_proj.weight.mul_(2)
        heavier = agrees(model, inputs, **compiled()).logits
        assert not torch.allclose(heavier[-1], hooked[-1], **CLOSE)
        layers[4].mlp = copy.deepcopy(layers[3].mlp)
        assert not torch.allclose(agrees(model, inputs, **compiled()).logits[-1], heavier[-1], **CLOSE)
    torch.compiler.reset()


@MANY
def test_a_compiled_step_of_the_plain_model_stays_its_own() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    expected = generate(model, 4, **inputs, **compiled())
    own = model._compiled_call
    with vp.attach(model, PRUNERS["schedule"]):
        agrees(model, inputs, **compiled())
        assert model._compiled_call is own
    assert torch.equal(generate(model, 4, **inputs, **compiled()).sequences, expected.sequences)
    torch.compiler.reset()


@MANY
def test_a_compiled_call_that_reads_a_prompt_prunes_it() -> None:
    """Only `generate` compiles a step without the engine."""
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    config = CompileConfig(backend="eager", mode="default")
    with vp.attach(model, PRUNERS["schedule"]) as handle, torch.no_grad():
        expected = model(**inputs).logits
        found = model.get_compiled_call(config)(**inputs).logits
        assert len(handle.trace[0].kept[-1]) < handle.trace[0].num_visual
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.compiler.reset()


def test_hidden_states_of_compiled_steps() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    with vp.attach(model, PRUNERS["schedule"]):
        expected = generate(model, 3, **inputs, output_hidden_states=True).hidden_states
        found = generate(model, 3, **inputs, output_hidden_states=True, **compiled()).hidden_states
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
    torch.compiler.reset()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", ["bool", "added", "per head", "none"])
@pytest.mark.parametrize("rows", [1, 3])
def test_attention_of_grouped_heads_is_sdpa(groups: int, mask: str, rows: int) -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    query = torch.randn(2, 4, rows, 8)
    key, value = torch.randn(2, 4 // groups, 9, 8), torch.randn(2, 4 // groups, 9, 6)
    shape = (2, 4 if mask == "per head" else 1, rows, 9)
    given: Tensor | None = torch.rand(shape) < 0.6
    if mask == "added":
        given = torch.randn(shape)
    if mask == "none":
        given = None
    settings = {"scaling": 0.3, "dropout": 0.0, "is_causal": False}
    found, _ = grouped_attention(module, query, key, value, given, **settings)
    expected, _ = sdpa_attention_forward(module, query, key, value, given, **settings)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("settings", [STATIC, pytest.param(compiled(), marks=MANY)])
def test_threads_do_not_see_each_other(settings: dict[str, Any]) -> None:
    """One decodes without the engine while another's prompt is read by it."""
    model = llava_model()
    prompts = [llava_inputs([[4, 0, 6]], seed=1), llava_inputs([[9, 0, 3]], seed=2)] * 2
    with vp.attach(model, PRUNERS["schedule"]):
        alone = [generate(model, 6, **inputs).sequences for inputs in prompts]
        generate(model, 6, **prompts[0], **settings)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda inputs: generate(model, 6, **inputs, **settings).sequences, prompts))
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found, expected)
    torch.compiler.reset()


# ---- what is refused, and what stays --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruner", "attn", "settings", "why"),
    [
        (PRUNERS["schedule"], "flex_attention", STATIC, "with flex_attention"),
        (PRUNERS["schedule"], "sdpa", {"cache_implementation": "offloaded_static"}, "between devices"),
        (vp.FastV(layer=2, keep_tokens=4, recall=2), "sdpa", STATIC, "recall"),
    ],
)
def test_what_a_static_cache_cannot_hold(pruner: Any, attn: str, settings: dict[str, Any], why: str) -> None:
    model, inputs = llava_model("clip", "llama", attn), llava_inputs(LAYOUTS["one"])
    ran = []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    with vp.attach(model, pruner), pytest.raises(vp.UnsupportedModelError, match=f"{why}.*default dynamic cache"):
        model.generate(**inputs, max_new_tokens=2, **settings)
    assert not ran, "it is refused before the prompt is read"


def test_another_s_forward_is_not_compiled() -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    layer = model.model.language_model.layers[0]
    layer.forward = layer.forward
    with vp.attach(model, PRUNERS["schedule"]):
        with pytest.raises(vp.UnsupportedModelError, match="pass disable_compile=True"):
            generate(model, 3, **inputs, **compiled())
        agrees(model, inputs, **compiled(), disable_compile=True)


@pytest.mark.parametrize("when", ["attached", "removed"])
def test_a_static_cache_serves_one_answer(when: str) -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    handle = vp.attach(model, PRUNERS["schedule"])
    cache = generate(model, 3, **inputs, **STATIC).cache
    if when == "removed":
        handle.remove()
    more = torch.tensor([[5, 6]])
    serves_one = pytest.raises(vp.VisiPrunerError, match="serves the one answer")
    with serves_one, torch.no_grad():
        model(input_ids=more, cache=cache)
    ids = torch.cat([inputs["input_ids"], more.expand(1, -1)], 1)
    with serves_one:
        model.generate(ids, attention_mask=torch.ones_like(ids), cache=cache, max_new_tokens=2)
    for change in (lambda: cache.crop(-1), cache.reset):
        with serves_one:
            change()
    handle.remove()


class _Stops:
    """A streamer that fails at the third word."""

    def __init__(self) -> None:
        self.words = 0

    def put(self, value: Any) -> None:
        self.words += 1
        if self.words > 3:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


@pytest.mark.parametrize("settings", [STATIC, pytest.param(compiled(), marks=MANY)])
def test_a_failed_answer_leaves_nothing(settings: dict[str, Any]) -> None:
    model, inputs = llava_model(), llava_inputs(LAYOUTS["one"])
    with torch.no_grad():
        logits, before = model(**inputs).logits, state_of(model)
        with vp.attach(model, PRUNERS["schedule"]):
            with pytest.raises(KeyboardInterrupt):
                model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=_Stops(), **settings)
            agrees(model, inputs, **settings)
        assert state_of(model) == before
        assert torch.equal(model(**inputs).logits, logits)
    torch.compiler.reset()
