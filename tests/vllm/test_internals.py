"""Every name of vLLM's insides that the plug-in relies on; a new version of vLLM fails here first."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import pytest

from visipruner.integrations.vllm.internals import hooks
from visipruner.integrations.vllm.refusals import DECODERS

RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"


def found(path: str) -> Any:
    module, _, names = path.partition(":")
    thing: Any = import_module(module)
    for name in names.split("."):
        thing = getattr(thing, name)
    return thing


def source(path: str) -> str:
    return inspect.getsource(found(path))


def test_the_version_is_one_that_was_tried() -> None:
    assert hooks.version() in hooks.TRIED


def test_vllm_finds_the_plug_in() -> None:
    (point,) = entry_points(group="vllm.general_plugins", name="visipruner")
    assert callable(point.load())


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("vllm.engine.arg_utils:EngineArgs.create_engine_config", ["self"]),
        (f"{RUNNER}.__init__", ["self", "vllm_config", "device"]),
        (
            f"{RUNNER}._model_forward",
            ["self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"],
        ),
        (f"{RUNNER}._update_states", ["self", "scheduler_output"]),
        (f"{RUNNER}.load_model", ["self"]),
        (f"{RUNNER}.get_model", ["self"]),
        (f"{RUNNER}.sample_tokens", ["self"]),
        ("vllm.v1.core.sched.scheduler:Scheduler.__init__", ["self", "vllm_config"]),
        (
            "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
            ["self", "scheduler_output", "model_runner_output"],
        ),
        ("vllm.v1.core.sched.scheduler:Scheduler.make_stats", ["self"]),
        ("vllm.v1.metrics.loggers:StatLoggerManager.record", ["self", "scheduler_stats"]),
        ("vllm.v1.metrics.loggers:StatLoggerManager.log", ["self"]),
        ("vllm.v1.worker.utils:AttentionGroup.build_metadata", ["self", "common_attn_metadata"]),
        (
            "vllm.model_executor.models.llama:LlamaDecoderLayer.forward",
            ["self", "positions", "hidden_states", "residual"],
        ),
        (
            "vllm.model_executor.models.qwen2:Qwen2DecoderLayer.forward",
            ["self", "positions", "hidden_states", "residual"],
        ),
        ("vllm.model_executor.models.llama:LlamaAttention.forward", ["self", "positions", "hidden_states"]),
        ("vllm.model_executor.models.qwen2:Qwen2Attention.forward", ["self", "positions", "hidden_states"]),
        ("vllm.model_executor.layers.attention:Attention.forward", ["self", "query", "key", "value"]),
        ("vllm.logger:init_logger", ["name"]),
        ("vllm.multimodal.inputs:PlaceholderRange.extract_embeds_range", ["self"]),
        ("vllm.v1.worker.block_table:BlockTable.get_device_tensor", ["self", "num_reqs"]),
    ],
)
def test_functions_take_what_we_give_them(path: str, parameters: list[str]) -> None:
    assert list(inspect.signature(found(path)).parameters)[: len(parameters)] == parameters


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            "vllm.forward_context:ForwardContext",
            ["attn_metadata", "slot_mapping", "skip_compiled", "cudagraph_runtime_mode"],
        ),
        (
            "vllm.v1.attention.backend:CommonAttentionMetadata",
            [
                "query_start_loc",
                "query_start_loc_cpu",
                "seq_lens",
                "seq_lens_cpu_upper_bound",
                "num_reqs",
                "num_actual_tokens",
                "max_query_len",
                "max_seq_len",
                "block_table_tensor",
                "slot_mapping",
                "causal",
                "is_prefilling",
            ],
        ),
        ("vllm.v1.metrics.stats:SchedulerStats", ["kv_connector_stats"]),
        ("vllm.v1.outputs:ModelRunnerOutput", ["sampled_token_ids", "req_id_to_index"]),
        ("vllm.multimodal.inputs:MultiModalFeatureSpec", ["modality", "mm_position"]),
        ("vllm.v1.kv_cache_interface:KVCacheConfig", ["kv_cache_groups"]),
        ("vllm.v1.kv_cache_interface:KVCacheGroupSpec", ["layer_names"]),
        ("vllm.v1.core.sched.output:SchedulerOutput", ["finished_req_ids"]),
        ("vllm.config:VllmConfig", ["additional_config"]),
    ],
)
def test_records_have_the_fields_we_read(path: str, names: list[str]) -> None:
    assert set(names) <= {each.name for each in fields(found(path))}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            RUNNER,
            [
                "input_batch",
                "query_start_loc",
                "requests",
                "num_prompt_logprobs",
                "attn_groups",
                "model_config",
                "device",
            ],
        ),
        ("vllm.v1.worker.gpu_model_runner:AsyncGPUModelRunnerOutput", ["_model_runner_output"]),
        ("vllm.v1.worker.gpu_input_batch:InputBatch", ["block_table", "num_computed_tokens_cpu", "req_ids"]),
        ("vllm.v1.worker.gpu_input_batch:CachedRequestState", ["num_prompt_tokens", "mm_features"]),
        ("vllm.v1.worker.block_table:BlockTable", ["block_table", "block_size"]),
        ("vllm.v1.core.sched.scheduler:Scheduler", ["grammar_compile_error_reqs"]),
        (
            "vllm.model_executor.layers.attention:Attention",
            [
                "impl",
                "layer_name",
                "num_heads",
                "num_kv_heads",
                "head_size",
                "head_size_v",
                "sliding_window",
                "attn_backend",
            ],
        ),
        ("vllm.model_executor.models.llama:LlamaDecoderLayer", ["self_attn", "input_layernorm"]),
        ("vllm.model_executor.models.qwen2:Qwen2DecoderLayer", ["self_attn", "input_layernorm"]),
        ("vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl", ["scale", "logits_soft_cap"]),
    ],
)
def test_objects_have_the_attributes_we_read(path: str, names: list[str]) -> None:
    """They are made in methods, so their sources are looked through."""
    missing = [name for name in names if f"{name}" not in source(path)]
    assert not missing


def test_compiled_decoders_can_be_passed_by() -> None:
    assert "get_forward_context().skip_compiled" in inspect.getsource(import_module("vllm.compilation.decorators"))


def test_failed_requests_end_as_we_say() -> None:
    text = source("vllm.v1.core.sched.scheduler:Scheduler.update_from_output")
    assert "set(self.grammar_compile_error_reqs)" in text
    assert "RequestStatus.FINISHED_ERROR" in text


def test_decoders_are_those_that_were_tried() -> None:
    modules = {"LlamaModel": "llama", "Qwen2Model": "qwen2", "MistralModel": "mistral"}
    assert {name: found(f"vllm.model_executor.models.{modules[name]}:{name}") for name in DECODERS}


def test_cache_groups_derive_from_what_vllm_has() -> None:
    from visipruner.integrations.vllm.internals.cache_groups import GROUPS, GroupManager

    base = GroupManager.__mro__[1]
    for name in ("get_num_blocks_to_allocate", "allocate_new_blocks"):
        assert list(inspect.signature(getattr(base, name)).parameters)[:3] == ["self", "request_id", "num_tokens"]
    assert list(inspect.signature(base.pop_blocks_for_free).parameters) == ["self", "request_id"]
    assert "single_type_managers" in source("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator")
    assert "num_blocks_per_row" in source("vllm.v1.worker.block_table:BlockTable")
    assert list(inspect.signature(found(f"{RUNNER}.get_kv_cache_spec")).parameters) == ["self"]
    assert len({each.__qualname__ for each in GROUPS}) == len(GROUPS)
