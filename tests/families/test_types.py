"""Types that nobody described: read from the model, checked, or refused with the reason before anything runs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, LlavaConfig

import visipruner as vp
from tools.families.types import TYPES, checked_type, default_config, verdict, written
from visipruner.adapters import described, generic
from visipruner.checking import check_tiny
from visipruner.checking.prompts import Asked, TinyPrompts
from visipruner.checking.tiny import IMAGE, VIDEO, built, shrunk, shrunk_model, telling_kinds
from visipruner.engine import calls
from visipruner.errors import UnsupportedModelError
from visipruner.models import checked
from visipruner.models.checked import config_fingerprint
from visipruner.pruners.shortv import ShortV

FOUND = written()
PASSING = [kind for kind, one in FOUND.items() if one["result"] == "passes"]
# One of each: a plain decoder, windows and per-row arguments, experts and M-RoPE, latent keys, token types for experts,
# linear attention, convolutions, features that enter by layer, a decoder that fills its rows by itself.
EACH_RUN = (
    *("aya_vision", "gemma4", "qwen3_omni_moe_thinker", "kimi_k25", "ernie4_5_vl_moe"),
    *("qwen3_5", "lfm2_vl", "granite4_vision", "chameleon"),
)
REFUSED_EACH_RUN = ("mllama", "gemma3n", "llama4", "florence2", "idefics", "nemotron_h_omni", "blip-2")


def test_every_type_has_a_verdict() -> None:
    """Else: `python -m tools.families.types`."""
    assert set(FOUND) == set(TYPES)
    assert set(EACH_RUN) <= set(PASSING)
    assert not [kind for kind in EACH_RUN if described(CONFIG_MAPPING[kind]()) is not None]


@pytest.mark.parametrize(
    "kind", [kind if kind in EACH_RUN else pytest.param(kind, marks=pytest.mark.every_type) for kind in PASSING]
)
def test_a_type_passes_its_tiny_check(kind: str) -> None:
    report = checked_type(kind)
    assert report.passed, str(report)
    assert verdict(report) == FOUND[kind]
    tried = {finding.check for finding in report.findings}
    assert tried - {"video"} == {
        *("rows", "keep all", "text only", "drop = cut", "several images", "cache", "next turn", "batch"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in REFUSED_EACH_RUN else pytest.param(kind, marks=pytest.mark.every_type)
        for kind in FOUND
        if kind not in PASSING
    ],
)
def test_a_type_that_does_not_pass_says_why(kind: str) -> None:
    report = checked_type(kind)
    assert not report.passed
    assert verdict(report) == FOUND[kind]


def test_keys_shared_between_layers_are_refused_before_anything_runs() -> None:
    config = default_config("gemma4_unified")
    config.get_text_config().num_kv_shared_layers = 2
    with pytest.raises(UnsupportedModelError, match="keys and values of an earlier layer"):
        shrunk_model(config)


def test_the_placeholders_are_those_of_the_model_itself() -> None:
    model = shrunk_model(default_config("qwen2_5_vl"))
    assert generic.placeholder_ids(model.model) == (IMAGE, VIDEO)
    assert generic.adapter_of(model).decoder == ("model.language_model",)


def test_a_tiny_model_has_full_precision_whatever_its_config_says() -> None:
    assert check_tiny(LlavaConfig(dtype="bfloat16"), keep=False).passed


def test_a_shrunk_config_keeps_every_kind_of_layer() -> None:
    config = default_config("muse_spark")
    text, small = config.get_text_config(), shrunk(config).get_text_config()
    before, after = telling_kinds(text, text.num_hidden_layers), telling_kinds(small, small.num_hidden_layers)
    assert before
    assert small.num_hidden_layers < text.num_hidden_layers
    kinds = [
        {tuple(map(str, each)) for each in zip(*(lists[name] for name in before), strict=True)}
        for lists in (before, after)
    ]
    assert kinds[0] == kinds[1]


# ---- a check that something is wrong ---------------------------------------------------------------------------------


def _found(report: Any, check: str) -> Any:
    return next(finding for finding in report.findings if finding.check == check)


def test_rows_that_the_model_does_not_overwrite_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = generic.placeholder_ids
    monkeypatch.setattr(generic, "placeholder_ids", lambda embedder: (*real(embedder), 85))  # the token before an image
    report = check_tiny(default_config("aria"), keep=False)
    assert not report.passed
    assert _found(report, "rows").state == "fails"
    assert "found, but not overwritten" in _found(report, "rows").says


def test_a_row_argument_that_nobody_narrows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine as it was before it knew of token types for experts."""
    monkeypatch.setattr(calls, "PER_ROW", calls.PER_ROW[:2])
    report = check_tiny(default_config("ernie4_5_vl_moe"), keep=False)
    assert not report.passed
    assert _found(report, "drop = cut").state == "fails"
    assert report.to_dict()["passed"] is False


def test_attention_over_other_rows_than_run_is_an_error() -> None:
    """Layer 3 attends to keys of layer 2, where more rows ran; the config's refusal is gone round."""
    config = default_config("gemma4_unified")
    adapter = generic.adapter_of(shrunk_model(config))
    config.get_text_config().num_kv_shared_layers = 1
    model = built(shrunk(config))
    inputs = TinyPrompts(model).inputs([Asked((1,), 7)])
    schedule = vp.FixedSchedule(layers=(2,), keep=(4,))
    with (
        vp.attach(model, schedule, adapter=adapter),
        pytest.raises(UnsupportedModelError, match=r"rows to \d+ keys where"),
    ):
        model(**inputs, use_cache=False)


def test_a_cache_of_latents_takes_no_method_that_changes_keys_and_values() -> None:
    """A merged value would be written over a part of a key, and the answer be another one than without a cache."""
    model = shrunk_model(default_config("kimi_k25"))
    adapter = generic.adapter_of(model)
    for pruner in (vp.VisiPruner.for_depth(4), ShortV.for_depth(4)):
        with pytest.raises(UnsupportedModelError, match="holds latents, not the keys and values"):
            vp.attach(model, pruner, adapter=adapter)
    prompts = TinyPrompts(model)
    first = prompts.inputs([Asked((1,), 7)])
    with vp.attach(model, vp.FastV.for_depth(4), adapter=adapter) as handle:
        cache = model(**first, use_cache=True).cache
        with pytest.raises(UnsupportedModelError, match="no further image can be pruned"):
            model(**{**prompts.inputs([Asked((2,), 5)]), "attention_mask": None}, cache=cache)
        with pytest.raises(UnsupportedModelError, match="leave it out"), handle.image_cache():
            pass


def test_an_argument_as_long_as_the_prompt_that_nobody_narrows_is_refused() -> None:
    """Hosts hand what they do not know to their layers."""
    model = shrunk_model(default_config("aya_vision"))
    adapter, inputs = generic.adapter_of(model), TinyPrompts(model).inputs([Asked((1,), 7)])
    weights = {"row_weights": torch.ones(1, inputs["input_ids"].shape[1])}
    with vp.attach(model, vp.NoPruning(), adapter=adapter):
        model(**inputs, **weights)
    with (
        vp.attach(model, vp.FixedSchedule(layers=(0,), keep=(4,)), adapter=adapter),
        pytest.raises(UnsupportedModelError, match=r"given row_weights \[1, 28\], which nobody narrows"),
    ):
        model(**inputs, **weights)


def test_images_that_enter_blank_cannot_be_told_apart_by_an_image_cache() -> None:
    model = shrunk_model(default_config("granite4_vision"))
    with (
        vp.attach(model, vp.NoPruning(), adapter=generic.adapter_of(model)) as handle,
        pytest.raises(UnsupportedModelError, match=r"given the image between them, which image_cache\(\) cannot share"),
        handle.image_cache(),
    ):
        pass


def test_a_video_is_tried_where_the_type_reads_one() -> None:
    said = {kind: FOUND[kind]["videos"] for kind in ("qwen3_5", "minicpmv4_6", "video_llava", "gemma3", "lfm2_vl")}
    assert said == {"qwen3_5": "yes", "minicpmv4_6": "yes", "video_llava": "yes", "gemma3": "no", "lfm2_vl": "no"}


# ---- what attach says -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIPRUNER_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_attach_warns_of_a_type_that_nobody_described_until_it_passed() -> None:
    config = default_config("aya_vision")
    model = shrunk_model(config)
    with pytest.warns(UserWarning, match="'aya_vision' are read from the model itself.*visipruner check --model"):
        vp.attach(model, vp.NoPruning()).remove()
    assert check_tiny(model.config).passed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vp.attach(model, vp.NoPruning()).remove()


@pytest.mark.usefixtures("cache")
def test_a_result_of_other_versions_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = default_config("aya_vision")
    report = check_tiny(config)
    assert checked.kept(config) == report.to_dict()
    monkeypatch.setattr(checked, "versions", lambda: {**report.versions, "transformers": "6.0"})
    assert checked.kept(config) is None


def test_a_fingerprint_is_of_how_the_model_works_not_of_where_it_lies() -> None:
    one, other = LlavaConfig(), LlavaConfig()
    other._name_or_path = "elsewhere"
    assert config_fingerprint(one) == config_fingerprint(other)
    other.text_config.num_hidden_layers += 1
    assert config_fingerprint(one) != config_fingerprint(other)
