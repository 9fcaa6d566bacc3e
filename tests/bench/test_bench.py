"""The benchmark on a tiny shape: what it builds, what it counts, what it refuses."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from transformers import AutoModelForImageTextToText

from visipruner import VisiPruner, attach
from visipruner.engine.clock import EngineClock
from visipruner.errors import ConfigError
from visipruner.speed import machine, subject
from visipruner.speed.checks import Target
from visipruner.speed.measure import DENSE, TEXT, Contender, rows, run_once, take_turns
from visipruner.speed.prompt import Rows, embedded, text_only
from visipruner.speed.scheduled import Schedule

SCHEDULE = Schedule(filter=2, keep=5, exit=4)


@pytest.fixture(scope="module")
def tiny():
    return subject.from_shape("tiny", dtype="float32", tie=False).model


@pytest.mark.parametrize("name", subject.names())
def test_shapes_that_ship_can_be_built(name):
    model = subject.empty_model(subject.load_config(name), torch.bfloat16, "sdpa")
    whole = subject.parameter_bytes(model)
    subject.tie_layers(model)
    assert subject.parameter_bytes(model) < whole


def test_a_filled_model_is_the_stock_one_but_for_its_weights(tiny):
    stock = AutoModelForImageTextToText.from_config(tiny.config, dtype=torch.float32)
    assert tiny.state_dict().keys() == stock.state_dict().keys()
    for (name, ours), (_, theirs) in zip(tiny.named_buffers(), stock.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(bool(part.isfinite().all()) for part in tiny.parameters())


def test_tied_layers_stay_modules_of_their_own():
    tied = subject.from_shape("tiny", dtype="float32", tie=True)
    layers = tied.model.model.language_model.layers
    assert len(set(map(id, layers))) == len(layers) == 6
    assert layers[0].self_attn.q_proj.weight is layers[5].self_attn.q_proj.weight
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(6))
    assert tied.tied
    assert "share" in " ".join(tied.notes)


def test_fewer_layers_of_a_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(subject.load_config("tiny").to_dict()))
    assert subject.load_config(str(path), 3).text_config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("shape", "layers", "said"),
    [
        ("lava-1.5-7b", None, "Did you mean 'llava-1.5-7b'"),
        ("nothing.json", None, "No config"),
        ("tiny", 9, "6 layers"),
    ],
)
def test_wrong_shapes(shape, layers, said):
    with pytest.raises(ConfigError, match=said):
        subject.load_config(shape, layers)


def test_a_schedule_is_kept_and_its_evidence_computed(tiny):
    prompt = embedded(tiny, [Rows(5, 20, 4)])
    pruner = SCHEDULE.applied(VisiPruner(shallow_end=0), 6)
    run = run_once(tiny, prompt, pruner, 1)
    assert run.visual == [20, 20, 20, 5, 0, 0]
    without = run_once(tiny, prompt, VisiPruner(shallow_end=0, filter_layer=2, keep_tokens=5, exit_layer=4), 1)
    assert without.visual == run.visual
    assert run.flops - without.flops == 2 * 2 * 128 * (29 + 14)  # evidence of layer 1, and of layer 3 for the exit


def test_a_schedule_takes_the_place_of_a_budget(tiny):
    prompt = embedded(tiny, [Rows(5, 20, 4)])
    for budget in ({"keep_ratio": 0.5}, {"keep_tokens": 9}):
        pruner = SCHEDULE.applied(VisiPruner(shallow_end=0, **budget), 6)
        assert run_once(tiny, prompt, pruner, 1).visual == [20, 20, 20, 5, 0, 0]


@pytest.mark.parametrize("text", ["filter=2", "filter=a,keep=1,exit=2", "2,3,4", "filter=1,keep=1,exit=2,more=3"])
def test_schedules_that_make_no_sense(text):
    with pytest.raises(ConfigError, match="filter=14,keep=10,exit=20"):
        Schedule.parse(text)


def test_a_filter_in_the_shallow_stage_is_refused():
    with pytest.raises(ConfigError, match="must come after layer 2"):
        SCHEDULE.applied(VisiPruner(shallow_end=2), 6)


def test_counted_flops_are_those_that_torch_counts(tiny):
    image, text = embedded(tiny, [Rows(5, 30, 4), Rows(3, 25, 4)]), text_only(tiny, 9)
    pruner = SCHEDULE.applied(VisiPruner(shallow_end=1), 6)
    for prompt, method in [(image, None), (image, pruner), (text, None), (text, pruner)]:
        run = run_once(tiny, prompt, method, 1, count=True)
        assert run.measured_flops == pytest.approx(run.flops, rel=0.01)


def test_a_prefill_is_split_into_selection_and_overhead(tiny):
    pruner = SCHEDULE.applied(VisiPruner(shallow_end=0), 6)
    run = run_once(tiny, embedded(tiny, [Rows(5, 20, 4)]), pruner, 2)
    assert 0 < run.selection < run.prefill
    assert 0 < run.bookkeeping < run.prefill


@pytest.mark.parametrize("visual", [0, 20])
def test_the_hosts_own_attention_is_not_our_time(tiny, visual):
    prompt = embedded(tiny, [Rows(5, visual, 4)]) if visual else text_only(tiny, 9)
    pruner, clock = SCHEDULE.applied(VisiPruner(shallow_end=0), 6), EngineClock()
    with attach(tiny, pruner, visual_mask=prompt.visual_mask, clock=clock):
        tiny(**prompt.inputs)
    assert clock.kernel.seconds > 0
    assert 0 < clock.bookkeeping < clock.engine.seconds - clock.kernel.seconds + 1e-9


def test_turns_and_ratios(tiny):
    prompt = embedded(tiny, [Rows(5, 200, 4)])
    contenders = [
        Contender(DENSE, prompt),
        Contender("ours", prompt, SCHEDULE.applied(VisiPruner(shallow_end=0), 6)),
        Contender(TEXT, text_only(tiny, 9)),
    ]
    told = []
    runs, counted = take_turns(tiny, contenders, 3, 3, warm=contenders[:1], on_run=told.append)
    assert [name.split(",")[0] for name in told[1:]] == [DENSE, "ours", TEXT, "ours", TEXT, DENSE, TEXT, DENSE, "ours"]
    dense, ours, text = rows(contenders, runs, counted)
    assert dense["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert 1 < ours["flops_ratio"] < text["flops_ratio"]
    assert ours["of_limit"] == pytest.approx(ours["speedup"]["median"] / ours["flops_ratio"])
    full, few, own = (runs[name] for name in (DENSE, TEXT, "ours"))
    part = sum(ours["visual_per_layer"]) / (6 * 200)
    reached = [(b.prefill + part * (a.prefill - b.prefill)) / c.prefill for a, b, c in zip(full, few, own, strict=True)]
    assert ours["of_reach"] == pytest.approx(statistics.median(reached))
    assert (dense["of_reach"], text["of_reach"]) == (1.0, 1.0)
    assert ours["kv_bytes"] < dense["kv_bytes"]
    assert runs[DENSE][0].tokens == runs[DENSE][1].tokens
    assert len(dense["runs"]) == 3
    assert dense["measured_flops"] is not None
    assert ours["measured_flops"] is None


def test_peak_memory_sees_what_was_held_for_a_moment():
    with machine.peak_memory(torch.device("cpu")) as peak:
        torch.ones(64 << 20, dtype=torch.uint8)
    if peak.added is None:
        pytest.skip("this system does not tell the peak of a process")
    assert 60 << 20 <= peak.added < 2 * (64 << 20)


def test_a_machine_without_room_is_refused(monkeypatch):
    class Full:
        available = 2 << 30

    monkeypatch.setattr(machine.psutil, "virtual_memory", Full)
    with pytest.raises(machine.MachineError, match="would swap"):
        subject.from_shape("llava-1.5-7b", dtype="float32", tie=False)


def test_a_machine_that_swaps_is_refused(tiny, monkeypatch):
    written = iter(range(100))
    monkeypatch.setattr(machine, "swapped_bytes", lambda: next(written))
    with pytest.raises(machine.MachineError, match="swapped during"):
        take_turns(tiny, [Contender(TEXT, text_only(tiny, 5))], 1, 1)


def test_targets_in_both_directions():
    assert Target("a", 1.0, 0.97).met
    assert not Target("a", 0.9, 0.97).met
    assert Target("a", 0.005, 0.01, at_least=False).met
    assert str(Target("a", 0.9, 0.97)).startswith("MISSED")
