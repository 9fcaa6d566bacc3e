"""The three stages' rules, on influences written down by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import visipruner as vp
from tests.models import prompt, text_model
from visipruner.contract.influence import Influence

MIDDLE_DEEP = ("middle", "deep")


def _view(cosine: list[float], norm: list[float], output_norm: float = 2.0) -> Any:
    """What a run looks at, with a made-up influence."""
    found = Influence(torch.tensor(cosine), torch.tensor(norm), output_norm)
    tokens = torch.arange(len(cosine))
    return SimpleNamespace(influence=found, visual=tokens, tokens=tokens, sees_visual=True)


def _select(run: Any, layer: int, view: Any) -> list[int] | None:
    kept = run.select(layer, view)
    return None if kept is None else kept.tolist()


FIRES = _view([0.9, 1.0, 0.999], [0.5, 0.1, 0.3])
QUIET = _view([0.9995, 1.0], [0.1, 0.1])
BUSY = _view([0.998, 1.0], [0.1, 0.1])


def test_nothing_is_looked_at_up_to_the_first_middle_layer() -> None:
    run = vp.VisiPruner(shallow_end=6).start()
    assert [run.observes(layer) for layer in range(9)] == [False] * 7 + [True] * 2


def test_the_first_layer_below_the_threshold_filters_by_length() -> None:
    run = vp.VisiPruner(shallow_end=2).start()
    assert _select(run, 3, _view([0.995, 1.0], [0.5, 0.5])) is None, "the test is strict"
    assert run.trigger_layer is None
    assert _select(run, 4, FIRES) == [0, 2], "0.5 and 0.3 exceed 0.2, whatever their cosine"
    assert run.trigger_layer == 4


def test_the_length_test_is_strict_and_can_leave_nothing() -> None:
    run = vp.VisiPruner(token_threshold=0.5).start()
    assert _select(run, 9, FIRES) == []
    assert not run.observes(10), "nobody is left to wait for"


def test_a_share_goes_by_the_tokens_there_are() -> None:
    run = vp.VisiPruner(keep_ratio=0.5, filter_layer=3)
    for count, kept in ((1, [0]), (3, [1, 2]), (8, [4, 5, 6, 7])):
        norms = [0.1 * (token + 1) for token in range(count)]
        view = _view([1.0] * count, norms)
        assert _select(run.start(), 3, view) == kept
    few = vp.VisiPruner(keep_ratio=0.01, filter_layer=3)
    assert _select(few.start(), 3, FIRES) == [0], "at least one"


def test_a_share_is_saved_only_where_it_is_given() -> None:
    assert "keep_ratio" not in vp.VisiPruner(keep_tokens=3).settings()
    share = vp.VisiPruner(keep_ratio=0.25)
    assert vp.VisiPruner.from_settings(share.settings()) == share


def test_relative_lengths_are_fractions_of_the_output() -> None:
    run = vp.VisiPruner(relative=True, token_threshold=0.2).start()
    assert _select(run, 9, FIRES) == [0], "0.2 of ||o|| = 2.0 is 0.4"


def test_a_fixed_filter_layer_needs_no_evidence() -> None:
    run = vp.VisiPruner(filter_layer=3).start()
    assert [run.observes(layer) for layer in range(5)] == [False, False, False, True, False]
    assert _select(run, 3, _view([1.0, 1.0], [0.5, 0.1])) == [0]


@given(norms=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=30), budget=st.integers(0, 40))
def test_a_budget_is_met_exactly_with_the_most_influential(norms: list[float], budget: int) -> None:
    run = vp.VisiPruner(filter_layer=0, keep_tokens=budget).start()
    kept = _select(run, 0, _view([0.0] * len(norms), norms))
    assert kept is not None
    assert kept == sorted(set(kept))
    assert len(kept) == min(budget, len(norms))
    left = set(range(len(norms))) - set(kept)
    assert all(norms[i] >= norms[j] for i in kept for j in left)


@pytest.mark.parametrize(
    ("count", "views", "votes"),
    [
        ("consecutive", [QUIET, QUIET], [5, 6]),
        ("consecutive", [QUIET, BUSY, QUIET, QUIET], [7, 8]),
        ("cumulative", [QUIET, BUSY, QUIET], [5, 7]),
    ],
)
def test_exit_after_two_votes(count: Any, views: list[Any], votes: list[int]) -> None:
    run = vp.VisiPruner(stages=MIDDLE_DEEP, exit_count=count).start()
    _select(run, 4, FIRES)
    for layer, view in enumerate(views[:-1], start=5):
        assert _select(run, layer, view) is None
    assert _select(run, 4 + len(views), views[-1]) == []
    assert run.exit_votes == votes
    assert not run.observes(4 + len(views) + 1)


def test_a_fixed_exit_layer() -> None:
    run = vp.VisiPruner(filter_layer=4, exit_layer=7).start()
    _select(run, 4, FIRES)
    assert not any(run.observes(layer) for layer in (5, 6)), "no votes are needed"
    assert [run.observes_entry(layer) for layer in (5, 6, 7)] == [False, False, True]


def test_stages_are_switched_one_by_one() -> None:
    assert not vp.VisiPruner(stages=("shallow",)).start().observes(20)
    assert not vp.VisiPruner(stages=("deep",)).start().observes(20), "deep needs middle"
    assert vp.VisiPruner(stages=("middle",)).routing(0).is_plain
    run = vp.VisiPruner(stages=("middle",)).start()
    _select(run, 9, FIRES)
    assert not run.observes(10)


def test_the_reference_keeps_everything_forever_where_its_filter_does() -> None:
    run = vp.VisiPruner.reference(tokens_threshold=0.0).start()
    assert _select(run, 9, FIRES) == [0, 1, 2]
    assert not run.observes(10)
    ours = vp.VisiPruner(token_threshold=0.0).start()
    _select(ours, 9, FIRES)
    assert ours.observes(10)


def _rows_given(model: Any, pruner: vp.VisiPruner) -> tuple[dict[str, list[int]], vp.ExampleTrace]:
    """Rows that each module of the first three layers is given for a prompt of 11 text and 16 visual rows."""
    embeds, mask = prompt(before=5, visual=16, after=6)
    rows: dict[str, list[int]] = {"q_proj": [], "k_proj": [], "v_proj": [], "o_proj": [], "mlp": []}
    for layer in model.model.layers[:3]:
        for name in rows:
            module = layer.mlp if name == "mlp" else getattr(layer.self_attn, name)
            # Forward hooks of this test run after the engine's pre-hooks, and see what the module was given.
            module.register_forward_hook(lambda _m, args, _o, name=name: rows[name].append(args[0].shape[1]))
    with vp.attach(model, pruner, mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds, use_cache=True)
    return rows, handle.trace[0]


@pytest.mark.parametrize("shallow_visual", ["prefix", "ffn"])
def test_shallow_layers_do_no_work_that_is_not_needed(shallow_visual: Any) -> None:
    pruner = vp.VisiPruner(stages=("shallow",), shallow_end=3, shallow_visual=shallow_visual)
    rows, trace = _rows_given(text_model("llama"), pruner)
    text, everything = 11, 27
    if shallow_visual == "prefix":
        assert rows["q_proj"] == rows["o_proj"] == [everything] * 3
        assert rows["k_proj"] == [everything, text, text], "layer 0 sums the mass over all visual keys"
        assert rows["v_proj"] == [text + 1, text, text], "and spends it on one value, the sink's"
        assert trace.key_lengths[:3] == [everything, text, text]
    else:
        assert rows["q_proj"] == rows["k_proj"] == rows["v_proj"] == rows["o_proj"] == [text + 1, text, text]
        assert trace.key_lengths[:3] == [text + 1, text, text]
    assert rows["mlp"] == [everything] * 3
    assert trace.visual_attention == [False] * 3 + [True] * 3


def test_a_filter_in_a_shallow_layer_is_shown_every_key_and_value() -> None:
    pruner = vp.VisiPruner(stages=("shallow", "middle"), shallow_end=3, filter_layer=1, keep_tokens=4)
    rows, trace = _rows_given(text_model("llama"), pruner)
    assert rows["k_proj"] == [27, 27, 11]
    assert rows["v_proj"] == [12, 27, 11]
    assert [len(tokens) for tokens in trace.kept[:3]] == [16, 16, 4]


@pytest.mark.parametrize(
    ("settings", "kept", "trigger"),
    [
        ({"stages": ("middle", "deep"), "shallow_end": 0, "filter_threshold": -1.0, "exit_layer": 3}, [16, 16, 16], 2),
        ({"stages": ("deep",), "exit_layer": 2}, [16, 16], 1),
        ({"shallow_end": 3, "exit_layer": 1}, [16], 0),
        ({"shallow_end": 3, "exit_layer": 0}, [], None),
        ({"shallow_end": 3, "shallow_visual": "ffn", "exit_layer": 2}, [16, 16], 1),
        ({"shallow_end": 1, "shallow_visual": "late", "filter_threshold": -1.0, "exit_layer": 2}, [0, 16], 1),
        ({"shallow_end": 1, "filter_layer": 1, "keep_tokens": 4, "exit_layer": 4}, [16, 16, 4, 4], 1),
    ],
)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_fixed_exit_layer_is_the_first_without_vision_whatever_came_before(
    settings: dict[str, Any], kept: list[int], trigger: int | None, attn: str
) -> None:
    model, (embeds, mask) = text_model("llama", attn), prompt()
    with vp.attach(model, vp.VisiPruner(**settings), mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds, use_cache=True)
        trace = handle.trace[0]
    assert [len(tokens) for tokens in trace.kept] == kept + [0] * (7 - len(kept))
    assert (trace.exit_layer, trace.trigger_layer) == (len(kept), trigger)
    assert trace.key_lengths[len(kept) :] == [11] * (6 - len(kept))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shallow_end": 3, "shallow_visual": "ffn", "filter_layer": 1}, "it can be 3 at least"),
        ({"shallow_end": 3, "shallow_visual": "late", "filter_layer": 2}, "it can be 3 at least"),
        ({"shallow_end": 3, "shallow_visual": "late", "exit_layer": 3}, "exit_layer 3 must come after layer 3"),
        ({"shallow_end": 2, "filter_layer": 5}, "it can be 4 at most"),
        ({"shallow_end": 6, "filter_layer": 2, "keep_tokens": 4}, "no layer is left.*lower shallow_end to 2 or less"),
        ({"shallow_end": 6, "shallow_visual": "ffn", "filter_layer": 2}, "no layer is left.*lower shallow_end to 2"),
        ({"stages": ("middle",), "shallow_end": 4}, "shallow_end can be 3 at most"),
        ({"stages": ("shallow", "deep"), "shallow_end": 2}, "add that, or set exit_layer"),
    ],
)
def test_a_stage_that_could_never_act_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        vp.attach(text_model("llama"), vp.VisiPruner(**settings), prompt()[1])


@pytest.mark.parametrize(("after", "votes"), [(6, [2, 3]), (20, [2])])
def test_a_window_that_left_the_image_gives_no_vote(after: int, votes: list[int]) -> None:
    """Layers 3 to 5 see 12 rows back: some of the image where 6 rows of text follow it, none of it where 20 do."""
    pruner = vp.VisiPruner(stages=("middle", "deep"), filter_layer=1, keep_tokens=99, exit_threshold=-1.0)
    embeds, mask = prompt(after=after)
    model = text_model("qwen2-sliding")
    with vp.attach(model, pruner, mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    assert handle.trace[0].exit_votes == votes
    assert handle.trace[0].exit_layer == (4 if len(votes) == 2 else None)
