"""What cannot be served is refused before anything is loaded, in one sentence; what nobody decided is decided."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import visipruner
from visipruner.errors import VisiPrunerError
from visipruner.integrations.vllm.internals import hooks
from visipruner.integrations.vllm.plugin import register
from visipruner.integrations.vllm.refusals import check_config, check_decoder
from visipruner.pruners.registry import make_from_spec

register()
FASTV = {"method": "fastv", "settings": {"layer": 2, "keep_tokens": 8}}


def configured(folder: Path, asked: Any = FASTV, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        str(folder), dtype="float32", max_model_len=512, additional_config={"visipruner": asked}, **options
    ).create_engine_config()


def test_prompts_come_in_one_piece_and_share_no_cache(folder: Path) -> None:
    config = configured(folder)
    assert not config.cache_config.enable_prefix_caching
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens >= 512
    assert not config.compilation_config.cudagraph_mode.has_full_cudagraphs()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"enable_prefix_caching": True}, "prefix caching"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding",
        ),
        ({"tensor_parallel_size": 2}, "one device"),
        ({"pipeline_parallel_size": 2}, "one device"),
        ({"data_parallel_size": 2}, "one server for each"),
        ({"distributed_executor_backend": "external_launcher"}, "on the engine's machine"),
        ({"enable_lora": True}, "LoRA"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "kv_transfer_config",
        ),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
    ],
)
def test_ways_to_run_that_are_refused(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(VisiPrunerError, match=said) as error:
        configured(folder, **options)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("visipruner", "stages="),
        ("ivc-prune", "rotary embeddings"),
        ("ivc+fastv", "rotary embeddings"),
        ("scope", "vision tower"),
        ("fastv:recall=4", "comes back"),
    ],
)
def test_methods_that_are_refused(folder: Path, asked: Any, said: str) -> None:
    with pytest.raises(VisiPrunerError, match=said):
        configured(folder, asked)


def test_another_version_needs_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "TRIED", ("0.1",))
    with pytest.raises(VisiPrunerError, match=r"tried with vLLM 0\.1 and not with"):
        configured(folder)
    assert configured(folder, {**FASTV, "allow_untested": True}) is not None


def test_the_other_runner_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import VllmConfig

    config = configured(folder)
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", property(lambda _: True))
    with pytest.raises(VisiPrunerError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        check_config(config, allow_untested=True)


class Decoder(torch.nn.Module):
    """A stand-in with one layer."""

    def __init__(self, backend: str = "CPU_ATTN", window: int | None = None) -> None:
        super().__init__()
        attention = SimpleNamespace(attn_backend=SimpleNamespace(get_name=lambda: backend), sliding_window=window)
        self.layers = [SimpleNamespace(self_attn=SimpleNamespace(attn=attention))]


def test_decoders_that_are_refused() -> None:
    tried = type("LlamaModel", (Decoder,), {})
    check_decoder(tried(), allow_untested=False)
    with pytest.raises(VisiPrunerError, match="and not with Decoder"):
        check_decoder(Decoder(), allow_untested=False)
    with pytest.raises(VisiPrunerError, match="FLASHINFER may mix up"):
        check_decoder(tried("FLASHINFER"), allow_untested=False)
    for allow in (False, True):
        with pytest.raises(VisiPrunerError, match="sliding windows"):
            check_decoder(tried(window=9), allow_untested=allow)


def test_forms_of_the_same_wish(folder: Path, tmp_path: Path) -> None:
    """A method by name, a saved file, its content, a pruner: other processes get the same JSON values."""
    pruner = make_from_spec("fastv:layer=2,keep_tokens=8")
    file = pruner.save_pretrained(tmp_path)
    content = {"format_version": 1, **FASTV}
    for asked in (
        FASTV,
        "fastv:layer=2,keep_tokens=8",
        {"config": str(file)},
        {"config": str(tmp_path)},
        content,
        visipruner.load_pruner(file),
    ):
        passed_on = configured(folder, asked).additional_config["visipruner"]
        assert (passed_on["method"], passed_on["settings"]) == ("fastv", pruner.settings())
    assert configured(folder, "fastv").additional_config["visipruner"]["settings"]["layer"] >= 1


def test_without_the_key_the_configuration_is_vllms_own(folder: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(str(folder), max_model_len=512).create_engine_config()
    assert config.cache_config.enable_prefix_caching
    assert config.scheduler_config.enable_chunked_prefill
