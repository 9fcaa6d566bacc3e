"""Bytes of a cache, counted from tensors."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from visipruner.accounting import cache_bytes, dense_kv_bytes, expected_kv_bytes
from visipruner.models.shape import ModelShape

# 2 layers, 2 key/value heads of 3.
SHAPE = ModelShape(2, 10, 4, 2, 3, 7, 50)


def test_expected_bytes_by_hand() -> None:
    # 2 (key, value) * 2 heads * 3 numbers * 2 bytes = 24 bytes a key.
    assert expected_kv_bytes(SHAPE, [5, 3], dtype_bytes=2) == 8 * 24
    assert expected_kv_bytes(SHAPE, [5, 3], dtype_bytes=2, new_tokens=4) == 16 * 24
    assert dense_kv_bytes(SHAPE, 5, dtype_bytes=4) == 10 * 48
    with pytest.raises(ValueError, match="3 layers for a model of 2"):
        expected_kv_bytes(SHAPE, [1, 2, 3], dtype_bytes=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_real_cache_holds_what_is_expected(dtype: torch.dtype) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    cache = model(input_ids=torch.randint(97, (2, 20)), use_cache=True).past_key_values
    counted = cache_bytes(cache)
    # 3 layers * 2 examples * 20 rows * 2 (key, value) * 2 heads * 16 numbers.
    assert counted.used == 3 * 2 * 20 * 2 * 2 * 16 * dtype.itemsize
    assert counted.used == 2 * dense_kv_bytes(ModelShape.from_config(config), 20, dtype.itemsize)
    assert counted.held == counted.used


def test_a_view_holds_all_of_the_storage_behind_it() -> None:
    whole = torch.zeros(1, 2, 100, 3)
    sliced = cache_bytes([(whole[:, :, :5], whole[:, :, 5:10])])
    assert sliced.used == 2 * (2 * 5 * 3 * 4)
    assert sliced.held == 2 * 100 * 3 * 4
    copied = cache_bytes([(whole[:, :, :5].clone(), whole[:, :, 5:10].clone())])
    assert copied.held == copied.used == sliced.used


def test_an_expanded_tensor_holds_less_than_it_shows() -> None:
    one = torch.zeros(1, 2, 5, 3)
    assert cache_bytes([(one.expand(4, -1, -1, -1), torch.zeros(4, 2, 5, 3))]).held == 120 + 480


def test_bookkeeping_is_counted_apart_and_once() -> None:
    columns = torch.zeros(1, 6, dtype=torch.long)
    keys = torch.zeros(1, 2, 6, 3)
    layer = SimpleNamespace(keys=keys, values=torch.zeros(1, 2, 6, 3), columns=columns, extra=[keys[0]], logical=9)
    counted = cache_bytes(SimpleNamespace(layers=[layer, SimpleNamespace(keys=None, values=None, columns=columns)]))
    assert (counted.used, counted.held, counted.bookkeeping) == (288, 288, 48)
    assert counted.total == 336


def test_an_empty_cache_and_something_else() -> None:
    assert cache_bytes(DynamicCache()).total == 0
    with pytest.raises(TypeError, match="cannot count a str"):
        cache_bytes("cache")
