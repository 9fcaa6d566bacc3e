"""Several questions about one image share the work on it, and are answered as if they did not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import visipruner as vp
from tests.engine.cases import METHODS, PRUNERS
from tests.engine.state import state_of
from tests.families.prompts import words
from tests.families.zoo import built, inputs, prompt
from tests.models import llava_inputs, llava_model, text_model
from tests.models import prompt as embedded
from visipruner.accounting import count_flops
from visipruner.engine.image_cache import ImageCache
from visipruner.errors import UnsupportedModelError, VisiPrunerError

BEFORE, IMAGE = 4, 16
METHODS_TRIED = {"dense": vp.NoPruning(), **{name: method for name, method in METHODS.items() if name != "frozen"}}
CELLS = [(name, "sdpa") for name in METHODS_TRIED] + [(name, "eager") for name in ("dense", "prefix", "ffn", "budget")]


def questions(count: int = 3, seed: int = 1) -> list[dict[str, Tensor]]:
    """Prompts with the same picture and the same text before it, and questions of different lengths behind."""
    first = llava_inputs([[BEFORE, 0, 5]], seed=seed)
    prompts = []
    for number in range(count):
        tail = llava_inputs([[4 + number]], seed=50 + number)["input_ids"]
        ids = torch.cat([first["input_ids"][:, : BEFORE + IMAGE], tail], dim=1)
        prompts.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": first["pixel_values"]}
        )
    return prompts


def ask(model: Any, inputs: dict[str, Tensor], tokens: int = 3) -> tuple[list[int], Tensor]:
    output = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0].tolist(), torch.stack(output.logits)


def check_agreement(model: Any, pruner: vp.Pruner, prompts: list[dict[str, Tensor]], mask: Any = None) -> ImageCache:
    """Every prompt alone and then under one cache: the same answer, kept tokens and keys, logits up to rounding."""
    with vp.attach(model, pruner, mask) as handle:
        alone = [(*ask(model, one), handle.trace[0]) for one in prompts]
        with handle.image_cache() as cache:
            for one, (expected, expected_logits, trace) in zip(prompts, alone, strict=True):
                answer, logits = ask(model, one)
                assert answer == expected
                assert handle.trace[0].kept == trace.kept
                assert handle.trace[0].key_lengths == trace.key_lengths
                torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=2e-5)
    return cache


@pytest.mark.parametrize(("method", "attn"), CELLS)
def test_answers_are_those_of_separate_runs(method: str, attn: str) -> None:
    cache = check_agreement(llava_model(attn=attn), METHODS_TRIED[method], questions())
    assert (cache.read, cache.reused) == (1, 2)


@pytest.mark.parametrize("text", ["qwen2-sliding", "mistral-sliding", "qwen3"])
@pytest.mark.parametrize("method", ["dense", "prefix"])
def test_other_text_models(method: str, text: str) -> None:
    check_agreement(llava_model(text=text), METHODS_TRIED[method], questions(2))


FAMILIES = ("llava-next", "qwen2-vl", "qwen3-vl", "internvl", "idefics3", "gemma3", "glm4v")
FAMILY_CELLS = [(name, "budget") for name in FAMILIES]
FAMILY_CELLS += [(name, method) for name in ("qwen3-vl", "gemma3") for method in ("dense", "ffn", "sparsevlm")]


@pytest.mark.parametrize(("name", "method"), FAMILY_CELLS)
def test_families(name: str, method: str) -> None:
    pruner = METHODS_TRIED[method]
    pruner = vp.VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=3, exit_layer=3) if method == "budget" else pruner
    cache = check_agreement(built(name), pruner, family_questions(name))
    assert (cache.read, cache.reused) == (1, 1)


def family_questions(name: str) -> list[dict[str, Any]]:
    begun = prompt(name, [3, 0, 4])[:-1]
    tails = [words(4 + number, torch.Generator().manual_seed(number)) for number in range(2)]
    return [inputs(name, [[*begun, tail]]) for tail in tails]


@pytest.mark.parametrize("method", ["dense", "prefix", "ffn"])
@pytest.mark.parametrize("kind", ["padding", "whole"])
def test_rows_that_see_something_else_are_another_image(kind: str, method: str) -> None:
    """The same rows, but one before the image is masked; then all of them, and masked again."""
    prompts = questions()
    for number in (0, 2):
        if kind == "padding":
            prompts[number]["attention_mask"][:, 1] = 0
            continue
        length = prompts[number]["input_ids"].shape[1]
        mask = torch.full((1, 1, length, length), -1e9).triu(1)
        mask[:, :, 2:, 1] = -1e9
        prompts[number] = {"input_ids": prompts[number]["input_ids"], "pixel_values": prompts[number]["pixel_values"]}
        prompts[number]["attention_mask"] = mask
    if kind == "padding":
        cache = check_agreement(llava_model(), METHODS_TRIED[method], prompts)
        assert (cache.read, cache.reused) == (3, 0)
        return
    model = llava_model()
    with vp.attach(model, METHODS_TRIED[method]) as handle, torch.no_grad():
        alone = [_read(model, one) for one in prompts]
        with handle.image_cache() as cache:
            for one, expected in zip(prompts, alone, strict=True):
                torch.testing.assert_close(_read(model, one), expected, rtol=1e-4, atol=2e-5)
    assert (cache.read, cache.reused) == (3, 0)
    assert not torch.allclose(alone[0][0, -1], alone[1][0, -1], atol=1e-3)


def _read(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Logits of the words behind the image, read into a cache."""
    logits: Tensor = model(**inputs, past_key_values=DynamicCache(config=model.config)).logits
    return logits[:, BEFORE + IMAGE :]


def test_images_that_see_the_question_are_refused() -> None:
    model = built("paligemma")
    with (
        vp.attach(model, vp.NoPruning()) as handle,
        handle.image_cache(),
        pytest.raises(UnsupportedModelError, match="attend to the question"),
    ):
        ask(model, family_questions("paligemma")[0])


def test_a_prompt_of_embeddings() -> None:
    model = text_model("llama")
    embeds, mask = embedded()
    later = embeds.clone()
    later[:, -3:] = embeds[:, :3]
    prompts = [{"inputs_embeds": part} for part in (embeds, later)]
    assert check_agreement(model, PRUNERS["middle-deep"], prompts, mask).reused == 1


@pytest.mark.parametrize("method", ["dense", "budget", "ffn", "prefix"])
def test_the_image_runs_once(method: str) -> None:
    """What layers ran: all rows the first time, then the question's, and what the method kept where it left."""
    model, prompts = llava_model(), questions(2)
    with vp.attach(model, METHODS_TRIED[method]) as handle, handle.image_cache():
        ask(model, prompts[0])
        first, length = handle.trace[0], prompts[1]["input_ids"].shape[1]
        with count_flops(model.model.language_model) as count:
            ask(model, prompts[1], tokens=1)
        second, flops = handle.trace[0], handle.trace.flops()
    filtered = 6 if method == "dense" else 4 if method == "budget" else len(first.kept)
    for layer, (rows, tokens) in enumerate(zip(second.query_lengths, second.kept, strict=False)):
        untouched = len(tokens) == IMAGE and layer < filtered
        assert rows == (length - BEFORE - IMAGE if untouched else length - IMAGE + len(tokens)), layer
    assert count.flops == pytest.approx(flops, rel=0.01)
    assert sum(work.attention_pairs for work in second.work) < sum(work.attention_pairs for work in first.work)


def test_the_vision_tower_runs_once_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = llava_model(), []
    handle_of_tower = model.model.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    other = questions(1, seed=9)[0]
    with vp.attach(model, vp.NoPruning()) as handle:
        with handle.image_cache() as cache:
            for inputs in (*questions(3), other, other):
                ask(model, inputs)
        assert (len(seen), cache.read, cache.reused) == (2, 2, 3)
        ask(model, other)
    handle_of_tower.remove()
    assert len(seen) == 3, "after the context every prompt is read in full"


def test_a_cache_goes_on_with_the_same_method_only() -> None:
    model, prompts, cache = llava_model(), questions(2), ImageCache()
    for pruner, reused in ((vp.FastV(), 0), (vp.FastV(), 1), (vp.FastV(layer=3), 0)):
        cache.reused = 0
        with vp.attach(model, pruner) as handle, handle.image_cache(cache):
            ask(model, prompts[0])
        assert cache.reused == reused


def test_a_model_is_left_as_it_was() -> None:
    model = llava_model()
    ask(model, questions(1)[0])  # the host's own first-use hooks
    before = state_of(model)
    with vp.attach(model, PRUNERS["prefix"]) as handle:
        with handle.image_cache():
            ask(model, questions(1)[0])
        assert "get_image_features" not in vars(model.model)
    assert state_of(model) == before


def test_layers_that_visual_rows_pass_by_are_refused() -> None:
    with (
        vp.attach(llava_model(), METHODS["frozen"]) as handle,
        pytest.raises(UnsupportedModelError, match="cannot share"),
        handle.image_cache(),
    ):
        pass


def test_what_cannot_share() -> None:
    model, one = llava_model(), questions(1)[0]
    with vp.attach(model, vp.NoPruning()) as handle, handle.image_cache():
        with pytest.raises(VisiPrunerError, match="one at a time"):
            model.generate(**one, num_beams=2, max_new_tokens=2)
        with pytest.raises(VisiPrunerError, match="already"), handle.image_cache():
            pass
