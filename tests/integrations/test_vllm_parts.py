"""What of the vLLM plug-in knows nothing of vLLM; the rest is tested where vLLM is installed (tests/vllm)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.errors import ConfigError
from visipruner.integrations.vllm.counters import REMEMBERED, Numbers, sentence
from visipruner.integrations.vllm.decoder import narrowed
from visipruner.integrations.vllm.request import Picture, Request
from visipruner.integrations.vllm.settings import Served, served
from visipruner.integrations.vllm.step import Step
from visipruner.pruners.registry import make_from_spec

LAYERS = 6
CPU = torch.device("cpu")


class Keeps(PromptRun):
    """Keeps given positions: before a layer, or after its attention."""

    def __init__(self, entry: dict[int, Any], after: dict[int, Any]) -> None:
        super().__init__()
        self._entry, self._after = entry, after

    def observes_entry(self, layer: int) -> bool:
        return layer in self._entry

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        return self._entry[layer](view)  # type: ignore[no-any-return]

    def observes(self, layer: int) -> bool:
        return layer in self._after

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        return self._after[layer](view)  # type: ignore[no-any-return]


def positions(*kept: int) -> Any:
    return lambda view: torch.tensor(kept, dtype=torch.long)


def request(runs: list[list[tuple[int, int]]], length: int, run: PromptRun | None = None) -> Request:
    made = Request.of([Picture(each, None) for each in runs], length, LAYERS, CPU)
    made.read(run)
    return made


def step(*requests: Request, ran: tuple[int, ...], lengths: tuple[int, ...]) -> Step:
    return Step([str(at) for at in range(len(requests))], requests, np.array(ran), np.array(lengths))


def qkv(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, heads, 8, generator=generator) for heads in (4, 2, 2))  # type: ignore[return-value]


def test_columns_follow_what_left() -> None:
    """Rows 1-3 and 6-7 are visual, of two images; token 1 and then token 2 leave."""
    asked = request([[(1, 3)], [(6, 7)]], 10)
    assert asked.columns().tolist() == [1, 2, 3, 6, 7]
    asked.drop(2, torch.tensor([0, 2, 3, 4]))
    assert asked.columns().tolist() == [1, 2, 5, 6]
    asked.drop(4, torch.tensor([0, 2, 3]))
    assert (asked.columns().tolist(), asked.rows_present) == ([1, 4, 5], 8)
    assert asked.gone.tolist() == [0, 0, 1, 1, 2, 2]
    asked.read(None)
    assert (asked.gone.tolist(), asked.is_packed) == ([0] * LAYERS, False)


def test_a_prompt_that_ends_in_an_image_keeps_its_last_row() -> None:
    asked = request([[(1, 4)]], 5)
    assert asked.columns().tolist() == [1, 2, 3]
    assert asked.layout.tokens_per_image == [3]


def test_rows_leave_of_each_request_alone() -> None:
    """A decode, a prompt, a prompt read again with two rows that it had generated, a text."""
    first = request([[(1, 4)]], 6, Keeps({}, {1: positions(0, 3)}))
    again = request([[(0, 2)]], 4, Keeps({2: positions(1)}, {}))
    batch = step(request([], 3), first, again, request([], 2), ran=(3, 0, 0, 0), lengths=(1, 6, 6, 2))
    assert batch.observes(1)
    assert not batch.observes_entry(1)
    index = batch.select(1, qkv(15), 1.0, None)
    assert index is not None
    assert index.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    states = torch.arange(13.0)[:, None]
    index, states = batch.select_entry(2, states, lambda rows: None)  # type: ignore[arg-type, return-value]
    assert index is not None
    assert index.tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12]
    assert batch.present.tolist() == [1, 4, 4, 2]
    assert batch.gone[:, 2].tolist() == [0, 2, 2, 0]
    rows = [0, 1, 2, 5, 6, 8, 10, 11, 12, 13, 14]
    assert batch.in_play(torch.arange(15)).tolist() == rows
    back = batch.scattered(torch.ones(11, 1), 15)
    assert back[:, 0].nonzero().flatten().tolist() == rows


def test_a_view_sees_its_prompt_and_nothing_else() -> None:
    seen: list[LayerView] = []

    def look(view: LayerView) -> None:
        seen.append(view)

    batch = step(
        request([], 4), request([[(1, 2)]], 5, Keeps({}, {0: look})), request([], 3), ran=(0, 0, 0), lengths=(4, 7, 3)
    )
    given = qkv(14)
    assert batch.select(0, given, 0.5, None) is None
    (view,) = seen
    assert torch.equal(view.query, given[0][8])
    assert view.keys.shape == (2, 5, 8)
    logits = given[0][8].view(2, 2, 8) @ given[1][4:9].permute(1, 2, 0) * 0.5
    torch.testing.assert_close(view.attention, logits.softmax(-1).flatten(0, 1))
    (second,) = view.attention_of(torch.tensor([1]))
    assert second[:, 0, 2:].eq(0).all()


def test_merged_states_are_taken_over() -> None:
    run = Keeps({0: lambda view: Merge(torch.tensor([1]), view.embeddings.sum(0, keepdim=True))}, {})
    batch = step(request([[(1, 2)]], 4, run), ran=(0,), lengths=(4,))
    index, states = batch.select_entry(0, torch.arange(1.0, 5.0)[:, None], lambda rows: None)  # type: ignore[arg-type, return-value]
    assert index is not None
    assert states[index].flatten().tolist() == [1, 5, 4]


def fails(view: LayerView) -> Tensor:
    raise RuntimeError("no idea")


@pytest.mark.parametrize("wrong", [fails, positions(1, 0), positions(4), lambda view: torch.ones(4, dtype=torch.bool)])
def test_a_wrong_answer_is_noted_and_hurts_no_other(wrong: Any) -> None:
    bad = request([[(0, 3)]], 5, Keeps({}, {0: wrong}))
    good = request([[(0, 3)]], 5, Keeps({}, {0: positions(2)}))
    batch = step(bad, good, ran=(0, 0), lengths=(5, 5))
    index = batch.select(0, qkv(10), 1.0, None)
    assert index is not None
    assert index.tolist() == [0, 1, 2, 3, 4, 7, 9]
    assert list(batch.failed) == ["0"]
    assert not bad.is_read


def test_numbers_are_told_once() -> None:
    numbers = Numbers()
    numbers.add({"prompts_pruned": 1, "prompts_dense": 0})
    numbers.add({"prompts_pruned": 2, REMEMBERED: 4})
    numbers.add({REMEMBERED: 3})
    assert numbers.take() == {"prompts_pruned": 3, REMEMBERED: 3}
    assert numbers.take() == {}
    assert "3 prompts pruned" in sentence({"prompts_pruned": 3})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("visipruner", "stages="),
        ({"method": "visipruner", "settings": {"shallow_visual": "late"}}, "stages="),
        ("shortv", "which rows attend to which"),
        ("divprune", "positions='keep'"),
        ("divprune:keep_tokens=8+fastv:keep_tokens=4", "positions='keep'"),
        ("fastervlm", "vision tower"),
        ("downsample", "smaller"),
        ({"method": "fastv", "settings": {"layer": 80}}, "layer 80"),
        ({"method": "fastv", "config": "pruner.json"}, "one of the two"),
        ({"methods": "fastv"}, "methods is not known"),
        ({"method": "fastv", "cache_groups": [3, 2]}, "ascending layers"),
        ({"method": "fastv", "format_version": 2}, "update visipruner"),
        (7, "and not 7"),
    ],
)
def test_what_cannot_be_served_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        served(asked, 8)


def test_models_with_places_keep_them_anyway() -> None:
    """Under M-RoPE the published form closes no gaps, so nothing is refused."""
    assert served("divprune:keep_tokens=8", 8, in_line=False).pruner.name == "divprune"


def test_all_forms_mean_the_same(tmp_path: Path) -> None:
    pruner = make_from_spec("fastv:layer=2,keep_tokens=8")
    file = pruner.save_pretrained(tmp_path)
    mapping = {"method": "fastv", "settings": pruner.settings()}
    for asked in (
        pruner,
        "fastv:layer=2,keep_tokens=8",
        mapping,
        {"config": str(file)},
        {"format_version": 1, **mapping},
    ):
        assert served(asked, 8).pruner == pruner
    whole = Served(pruner, True, (2, 4))
    assert served(whole.as_json(), 8) == whole


@dataclass(frozen=True, kw_only=True)
class Named(Pruner):
    name: ClassVar[str] = "named"
    about: ClassVar[About] = About("for tests")

    def start(self) -> PromptRun:
        return PromptRun()


def test_any_pruner_can_be_served_in_this_process() -> None:
    assert served(Named(), 8).pruner == Named()


def test_vllm_is_not_imported_before_it_calls() -> None:
    import visipruner.integrations.vllm
    import visipruner.integrations.vllm.settings

    assert callable(visipruner.integrations.vllm.register)
    assert "vllm" not in sys.modules


class Attention(torch.nn.Module):
    """One head of width 2; what it is given is its output."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Kernel()

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        turned = hidden_states + positions[:, None]
        return self.attn(turned, turned, hidden_states)  # type: ignore[no-any-return]


class Kernel(torch.nn.Module):
    num_heads = num_kv_heads = 1
    head_size = head_size_v = 2
    impl = SimpleNamespace(scale=1.0, logits_soft_cap=0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value


class Layer(torch.nn.Module):
    """Notes the positions that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.input_layernorm, self.ran = Attention(), torch.nn.Identity(), []

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        self.ran.append(positions.tolist())
        entered = hidden_states if residual is None else hidden_states + residual
        return self.self_attn(positions=positions, hidden_states=self.input_layernorm(entered)), entered


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))

    def forward(self, input_ids: Any, positions: Tensor, intermediate: Any, inputs_embeds: Tensor) -> Tensor:
        hidden, residual = inputs_embeds, None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return hidden + residual


def test_a_decoder_runs_its_own_loop_with_fewer_rows() -> None:
    """Two rows before layer 1, one after its attention; two rows of padding at the end are of no request."""
    seen = {}

    def look(view: EntryView) -> Tensor:
        rows = torch.tensor([1, 2])
        seen["plain"], seen["turned"] = view.project(rows, rotary=False).keys, view.project(rows).keys
        return torch.tensor([1, 3])

    decoder, installed = Decoder(), []
    asked = request([[(1, 4)]], 6, Keeps({1: look}, {1: positions(1)}))
    batch = step(asked, request([], 1), ran=(0, 4), lengths=(6, 1))
    embeds = torch.arange(18.0).view(9, 2)
    where = torch.tensor([0, 1, 2, 3, 4, 5, 4, 0, 0])
    with narrowed(decoder, batch, installed.append):
        output = decoder(None, where, None, inputs_embeds=embeds)
    assert [layer.ran for layer in decoder.layers] == [[[0, 1, 2, 3, 4, 5, 4]], [[0, 2, 4, 5, 4]], [[0, 4, 5, 4]]]
    assert installed == [0, 1, 2]
    torch.testing.assert_close(output[[0, 4, 5, 6]], 8 * embeds[[0, 4, 5, 6]])
    assert output[[1, 2, 3, 7, 8]].eq(0).all()
    torch.testing.assert_close(seen["turned"] - seen["plain"], torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]))
    assert not any("forward" in vars(module) for module in decoder.modules())
