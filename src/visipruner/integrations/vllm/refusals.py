"""Which ways to start vLLM are refused, each in one sentence that says what to do; and the settings that we choose.

Reads vLLM's configuration only, before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch import nn

from visipruner.errors import UnsupportedModelError
from visipruner.integrations.vllm.internals import hooks, model

# Decoders of vLLM's that were tried, and the `model_type` of text configurations.
DECODERS = ("LlamaModel", "Qwen2Model", "MistralModel")
TEXTS = ("llama", "qwen2", "mistral", "qwen2_vl_text", "qwen2_5_vl_text")
# Attention backends that keep nothing from one metadata to the next; only the first was run. FlashInfer plans all
# layers with the last metadata of a step.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
_ANYWAY = 'or set "allow_untested": true to try it all the same'


def choose_settings(args: Any) -> None:
    """What nobody decided is decided in our favour: prompts in one piece, no cache that prompts share, runner V1.

    Raises UnsupportedModelError where prefix caching was asked for: what a layer's cache holds of an image depends on
    the question that came with it.
    """
    if args.enable_prefix_caching:
        raise UnsupportedModelError(
            "visipruner cannot run with prefix caching, as what is kept of an image depends on the question; leave out "
            "enable_prefix_caching (--enable-prefix-caching)."
        )
    args.enable_prefix_caching = False
    if args.enable_chunked_prefill is None:
        args.enable_chunked_prefill = False
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


def check_config(config: Any, allow_untested: bool) -> None:
    """Raises UnsupportedModelError for a configuration that cannot be pruned or, unless `allow_untested`, that nobody
    tried."""
    problems = [*_impossible(config), *(() if allow_untested else _untried(config))]
    if problems:
        raise UnsupportedModelError(f"visipruner {problems[0]}.")


def check_decoder(decoder: nn.Module, allow_untested: bool) -> None:
    """The same for a decoder that was loaded."""
    name = type(decoder).__name__
    if name not in DECODERS and not allow_untested:
        raise UnsupportedModelError(f"visipruner was tried with {', '.join(DECODERS)} and not with {name}; {_ANYWAY}.")
    backends = {model.backend_of(layer) for layer in model.layers_of(decoder)} - set(BACKENDS)
    if backends and not allow_untested:
        raise UnsupportedModelError(
            f"visipruner gives layers attention metadata of their own, which {', '.join(sorted(backends))} may mix up; "
            f"choose one of {', '.join(BACKENDS)} with attention_backend (--attention-backend), {_ANYWAY}."
        )
    windows = [layer for layer, module in enumerate(model.layers_of(decoder)) if model.is_windowed(module)]
    if windows:
        raise UnsupportedModelError(
            f"visipruner packs caches, which sliding windows (here in layer {windows[0]}) would count wrongly; serve a "
            "model without them, or without visipruner."
        )


def _impossible(config: Any) -> Iterator[str]:
    parallel, caches = config.parallel_config, config.cache_config
    if config.speculative_config is not None:
        yield "cannot run with speculative decoding; leave out speculative_config"
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        yield "runs a model on one device; set tensor_parallel_size and pipeline_parallel_size to 1"
    if parallel.data_parallel_size > 1:
        yield "runs one engine; start one server for each data-parallel rank instead of data_parallel_size"
    if parallel.enable_dbo or parallel.decode_context_parallel_size > 1:
        yield "cannot run with batches or contexts in parts; leave out enable_dbo and decode_context_parallel_size"
    if config.lora_config is not None:
        yield "cannot run with LoRA adapters, which count rows themselves; leave out enable_lora, or merge the adapter"
    if config.kv_transfer_config is not None:
        yield "cannot send its packed caches elsewhere; leave out kv_transfer_config"
    if caches.enable_prefix_caching:
        yield "cannot run with prefix caching; leave out enable_prefix_caching"
    if config.model_config.runner_type != "generate":
        yield "prunes models that generate text, and not pooling models; serve this one without it"
    if config.use_v2_model_runner:
        yield "knows vLLM's V1 model runner; set the environment variable VLLM_USE_V2_MODEL_RUNNER=0"


def _untried(config: Any) -> Iterator[str]:
    version, kind = hooks.version(), config.model_config.hf_text_config.model_type
    cache, executor = config.cache_config.cache_dtype, config.parallel_config.distributed_executor_backend
    if version not in hooks.TRIED:
        yield f"was tried with vLLM {', '.join(hooks.TRIED)} and not with {version}; install that, {_ANYWAY}"
    if kind not in TEXTS:
        yield f"was tried with decoders {', '.join(TEXTS)} and not with {kind}; serve one of these, {_ANYWAY}"
    if cache != "auto":
        yield f"was tried with kv_cache_dtype='auto' and not with {cache!r}; leave it out, {_ANYWAY}"
    if executor not in (None, "uni", "mp"):
        yield f"was tried with a worker on the engine's machine and not with {executor!r}; leave it out, {_ANYWAY}"
