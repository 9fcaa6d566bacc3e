"""V-CoLA on a tiny Qwen3.5 (a state, attention, a state, attention): loops over what the stock kernel is given."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5 as stock

import visipruner as vp
from tests.models import llava_model
from tools.families.types import default_config
from visipruner.adapters.generic import adapter_of
from visipruner.checking.prompts import Asked, TinyPrompts
from visipruner.checking.subject import Subject
from visipruner.checking.tiny import shrunk_model
from visipruner.pruners.composed import Composed
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.vcola import VCoLA, in_chunks

SIZE = 12  # tokens of an image
ONE, TWO = Asked((1,), 7), Asked((2, 3), 9)


@cache
def subject(kind: str = "qwen3_5") -> Subject:
    model = shrunk_model(default_config(kind))
    return Subject(model, adapter_of(model), TinyPrompts(model))


def _kernel_arguments(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], dict[str, Any]]:
    """What the stock model's first layer gives its kernel."""
    given: list[Any] = []
    kernel = stock.torch_chunk_gated_delta_rule

    def spy(*args: Any, **kwargs: Any) -> Any:
        given.append((args, kwargs))
        return kernel(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(stock, "torch_chunk_gated_delta_rule", spy)
        subject().logits(inputs)
    (query, key, value), kwargs = given[0]
    return [query, key, value], {"g": kwargs["g"], "beta": kwargs["beta"]}


def _psi(a: Tensor, b: Tensor) -> float:
    return float(1 - (a @ b) / (a.norm() * b.norm()).clamp(min=1e-8)) / 2


def _worth(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    (query, key, value), rates = _kernel_arguments(inputs, monkeypatch)
    rows, heads = value.shape[1:3]
    times = heads // key.shape[2]
    states = [torch.zeros(heads, key.shape[-1], value.shape[-1])]
    for end in range(1, rows + 1):
        cut = [part[:, :end] for part in (query, key, value, *rates.values())]
        told = dict(zip(("g", "beta"), cut[3:], strict=True))
        more = {"initial_state": None, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
        states.append(stock.torch_recurrent_gated_delta_rule(*cut[:3], **told, **more)[1][0])
    worth = []
    for row in subject().visual(inputs)[0].nonzero().flatten().tolist():
        recalled, changed = [], []
        for head in range(heads):
            recalled.append(_psi(key[0, row, head // times] @ states[-1][head], value[0, row, head]))
            for other in range(row, min(row + 4, rows)):
                asked = query[0, other, head // times]
                changed.append(_psi(asked @ states[row + 1][head], asked @ states[row][head]))
        worth.append(0.9 * (1 - sum(recalled) / heads) + 0.1 * sum(changed) / len(changed))
    return worth


def _entering(layer: int, run: Any) -> Tensor:
    """`[n, d]`, the hidden states that enter a layer."""
    seen: list[Tensor] = []
    layers = subject().host.layers
    with layers[layer].input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0])):
        run()
    return seen[-1]


@pytest.mark.parametrize(("asked", "count"), [(ONE, 6), (ONE, 3), (ONE, 1), (TWO, 12)])
@torch.no_grad()
def test_chunks_and_what_they_become(asked: Asked, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = subject()
    inputs = tried.prompts.inputs([asked])
    plain = _entering(1, lambda: tried.logits(inputs))
    visual = tried.visual(inputs)[0].nonzero().flatten().tolist()
    worth = _worth(inputs, monkeypatch)
    images = len(asked.images)
    kept, expected = [], []
    for image in range(images):
        mine = range(image * SIZE, (image + 1) * SIZE)
        total, passed = sum(worth[j] for j in mine), 0.0
        chunks: list[list[int]] = [[] for _ in range(count // images)]
        for j in mine:
            chunks[int(len(chunks) * (passed + worth[j] / 2) / total)].append(j)
            passed += worth[j]
        assert all(chunks), "this test has no rule for empty chunks"
        for chunk in chunks:
            weights = torch.tensor([worth[j] for j in chunk]).softmax(0)
            kept.append(max(chunk, key=lambda j: worth[j]))
            expected.append(sum(w * plain[visual[j]] for w, j in zip(weights, chunk, strict=True)))
    with tried.attach(VCoLA(keep_tokens=count, exit_layer=3)) as handle:
        merged = _entering(1, lambda: tried.logits(inputs))
        trace = handle.trace[0]
    assert trace.kept == [list(range(len(visual))), kept, kept, [], []]
    gone = set(visual) - {visual[j] for j in kept}
    left = [row for row in range(len(plain)) if row not in gone]
    for place, row in enumerate(left):
        is_visual = row in visual
        want = expected[kept.index(visual.index(row))] if is_visual else plain[row]
        torch.testing.assert_close(merged[place], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_an_example_of_a_batch_is_what_it_is_alone(side: Any) -> None:
    tried = subject()
    pruner = VCoLA(keep_ratio=0.25, exit_layer=3)
    with tried.attach(pruner) as handle:
        logits = tried.logits(tried.prompts.inputs([ONE, TWO], side))
        together = [example.kept for example in handle.trace.examples]
        real = tried.prompts.inputs([ONE, TWO], side)["attention_mask"].bool()
        for example, asked in enumerate((ONE, TWO)):
            alone = tried.logits(tried.prompts.inputs([asked]))
            assert together[example] == handle.trace[0].kept
            torch.testing.assert_close(logits[example][real[example]][-5:], alone[0, -5:], atol=1e-4, rtol=1e-4)


def test_decoding_with_a_cache_is_decoding_without() -> None:
    tried = subject()
    inputs = tried.prompts.inputs([ONE, TWO])
    more = {"max_new_tokens": 5, "min_new_tokens": 5, "suppress_tokens": tried.prompts.suppressed()}
    plain = tried.model.generate(**inputs, **more, do_sample=False)
    with tried.attach(VCoLA(keep_ratio=0.25, exit_layer=None)):
        cached, uncached = (
            tried.model.generate(**inputs, **more, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)


@torch.no_grad()
def test_what_keeps_everything_is_the_plain_model() -> None:
    tried = subject()
    inputs = tried.prompts.inputs([TWO])
    plain = tried.logits(inputs)
    with tried.attach(VCoLA(keep_ratio=1.0, exit_layer=None)):
        assert torch.equal(tried.logits(inputs), plain)


@pytest.mark.parametrize(("scope", "each"), [("prompt", [2, 2]), ("image", [4, 4])])
@torch.no_grad()
def test_budgets_of_images_and_other_methods_beside_it(scope: Any, each: list[int]) -> None:
    tried = subject()
    pruner = Composed(parts=(RandomPruner(layer=1, keep_ratio=0.5), VCoLA(keep_tokens=4, scope=scope, exit_layer=None)))
    with tried.attach(pruner) as handle:
        tried.logits(tried.prompts.inputs([TWO]))
        kept = handle.trace[0].kept
    assert len(kept[0]) == 2 * SIZE
    assert len(kept[1]) == sum(each)
    if scope == "image":
        assert [sum(token // SIZE == image for token in kept[1]) for image in range(2)] == each


def test_chunks_of_extremes() -> None:
    states = torch.arange(6.0)[:, None]

    def chunks(worth: list[float], count: int) -> tuple[list[int], list[float]]:
        kept, merged = in_chunks(torch.tensor(worth), states, count)
        return kept.tolist(), [round(float(value), 4) for value in merged[:, 0]]

    assert chunks([0.5] * 6, 3) == ([0, 2, 4], [0.5, 2.5, 4.5])
    assert chunks([0.5] * 6, 6) == chunks([0.5] * 6, 9) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert chunks([0.5] * 6, 0) == ([], [])
    # One token has nearly all of the worth: no chunk is empty for that.
    for heavy in range(6):
        worth = [1.0 if place == heavy else 1e-9 for place in range(6)]
        for count in range(1, 6):
            kept, merged = chunks(worth, count)
            assert len(set(kept)) == count
            assert kept == sorted(kept)
            assert heavy in kept
            assert merged == sorted(set(merged))
    assert len(set(chunks([float("nan")] * 6, 4)[0])) == 4


def test_where_it_cannot_work() -> None:
    with pytest.raises(vp.UnsupportedModelError, match=r"no layer of .* has one; choose another method"):
        vp.attach(llava_model(), VCoLA(exit_layer=None))
    for kind, layer in (("lfm2_vl", 1), ("qwen3_5", 2)):  # a convolution; attention
        tried = subject(kind)
        inputs = tried.prompts.inputs([ONE])
        pruner = VCoLA(layer=layer, exit_layer=None)
        with tried.attach(pruner), pytest.raises(vp.UnsupportedModelError, match="no state by a gated delta rule"):
            tried.logits(inputs)
    with pytest.raises(vp.ConfigError, match="at least 1"):
        VCoLA(layer=0)
