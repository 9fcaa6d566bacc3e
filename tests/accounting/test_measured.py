"""torch's counter against the exact count, and which operators it must know."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from visipruner.accounting import count_flops, dense_decode_macs, dense_macs
from visipruner.models.shape import ModelShape

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 512,
}


def tiny(family: str, kv_heads: int, attention: str) -> Any:
    torch.manual_seed(0)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    config = config_class(**SIZES, num_key_value_heads=kv_heads, attn_implementation=attention)
    return model_class(config).eval()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 4), ("llama", 2), ("qwen2", 1)])
@torch.no_grad()
def test_dense_prompt_agrees_within_one_percent(family: str, kv_heads: int, attention: str, padded: bool) -> None:
    model = tiny(family, kv_heads, attention)
    mask = torch.ones(2, 150, dtype=torch.long)
    if padded:
        mask[1, :20] = 0
    with count_flops() as count:
        model(input_ids=torch.randint(97, (2, 150)), attention_mask=mask, logits_to_keep=1)
    exact = dense_macs(ModelShape.from_config(model.config), 150, logit_rows=1)
    assert exact.attention > 0.1 * exact.total, "attention must weigh enough for its omission to show"
    assert count.flops == pytest.approx(2 * exact.flops, rel=0.01)
    assert count.macs == count.flops // 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_decode_step_agrees_within_one_percent(attention: str) -> None:
    model = tiny("llama", 2, attention)
    cache = model(input_ids=torch.randint(97, (1, 200)), use_cache=True).past_key_values
    with count_flops() as count:
        model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    assert count.flops == pytest.approx(dense_decode_macs(ModelShape.from_config(model.config), 200).flops, rel=0.01)


@torch.no_grad()
def test_only_the_given_module_counts() -> None:
    model = tiny("llama", 2, "sdpa")
    ids = torch.randint(97, (1, 80))
    with count_flops(model.model) as decoder:
        torch.ones(50, 50) @ torch.ones(50, 50)
        model(input_ids=ids)
        model(input_ids=ids)
    with count_flops() as everything:
        model(input_ids=ids)
    shape = ModelShape.from_config(model.config)
    assert decoder.flops == pytest.approx(2 * dense_macs(shape, 80).flops, rel=0.01)
    assert everything.flops - decoder.flops // 2 == 2 * 80 * 64 * 97


@torch.no_grad()
def test_a_failed_forward_is_counted_and_leaves_no_hook() -> None:
    linear = torch.nn.Linear(8, 8)
    hooks = dict(linear._forward_hooks), dict(linear._forward_pre_hooks), dict(linear._forward_hooks_always_called)
    with count_flops(linear) as count:
        linear(torch.ones(3, 8))
        with pytest.raises(RuntimeError):
            linear(torch.ones(3, 9))
        linear(torch.ones(3, 8))
    assert count.flops == 2 * (2 * 3 * 8 * 8)
    assert hooks == (linear._forward_hooks, linear._forward_pre_hooks, linear._forward_hooks_always_called)


def math_sdpa(*args: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(*args, **kwargs)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("attend", [functional.scaled_dot_product_attention, math_sdpa])
@pytest.mark.parametrize(
    ("kv_heads", "options"),
    [
        (4, {}),
        (4, {"is_causal": True}),
        (4, {"attn_mask": torch.ones(12, 12, dtype=torch.bool).tril()}),
        (4, {"attn_mask": torch.zeros(12, 12)}),
        (2, {"enable_gqa": True}),
        (2, {"enable_gqa": True, "attn_mask": torch.ones(12, 12, dtype=torch.bool).tril()}),
    ],
)
def test_every_way_of_sdpa_counts_the_full_rectangle(
    kv_heads: int, options: dict[str, Any], attend: Callable[..., torch.Tensor], context: Callable[[], Any]
) -> None:
    query, key = torch.ones(2, 4, 12, 8), torch.ones(2, kv_heads, 12, 8)
    with context(), count_flops() as count:
        attend(query, key, key, **options)
    assert count.flops == 2 * (2 * 4 * 12 * 12) * (8 + 8)


def test_matrix_vector_and_dot_products_count() -> None:
    with torch.no_grad(), count_flops() as count:
        torch.ones(5, 7) @ torch.ones(7)
        torch.ones(9) @ torch.ones(9)
    assert count.by_op == {"aten.mv": 70, "aten.dot": 18}
