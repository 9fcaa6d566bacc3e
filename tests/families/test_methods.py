"""Every method of the registry with every family: the nine invariants of a pair in one test that shares its runs.

What is not asked of a method, and which pairs are errors, `tools.families.methods` declares for this test and for
the table of the docs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

import visipruner as vp
from tests.engine.state import state_of, untouched
from tests.families.prompts import extended
from tests.families.test_matrix import CLOSE
from tests.families.tried import tries
from tests.families.zoo import FAMILIES, LAYERS, adapter_of, built, inputs, layers_of, prompt, visual_rows
from tests.oracle import Entering, merged, oracle, pruned_edit
from tools.families.methods import asked, is_refused, tuned
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.picture import picture_methods
from visipruner.pruners.composed import Composed
from visipruner.pruners.registry import available

STEPS = 3
LAYOUTS = [[3, 0, 2, 0, 5], [2, 0, 6], [7]]
PADDED, TEXT = 1, 2  # which of them is padded beside the first and has images, and which has none

METHODS: dict[str, vp.Pruner] = {name: tuned(name, LAYERS) for name in available()}
_KEEPS_ALL: dict[str, dict[str, Any]] = {
    "dycoke": {"merge_ratio": 0.0},
    "fitprune": {"remove": (0.0,) * LAYERS},
    "ivc": {},
    "none": {},
    "pool": {"stride": 1},
    "pyramiddrop": {"keep_ratios": (1.0,) * 3},
    "schedule": {"keep": (10_000,) * 2},
    "second-look": {"keep_ratios": (1.0,) * 2, "cover_ratio": 1.0, "exit_layer": None},
    "shortv": {"layers": ()},
    "sparsevlm": {"keep": (10_000,) * 3},
    "tops": {"keep_ratio": 1.0, "multiples": (1.0,) * 3},
    "visipruner": {"stages": ("middle",), "filter_layer": 1, "keep_tokens": 10_000},
    "visipruner-reference": {"stages": ("middle",), "filter_layer": 1, "keep_tokens": 10_000},
}


def keeping_everything(pruner: vp.Pruner) -> vp.Pruner:
    """The method with settings that keep every token; a method without a `keep_ratio` needs an entry above."""
    if isinstance(pruner, Composed):
        return Composed(parts=tuple(keeping_everything(part) for part in pruner.parts))
    if pruner.name in _KEEPS_ALL:
        return replace(pruner, **_KEEPS_ALL[pruner.name])
    assert "keep_ratio" in {item.name for item in fields(pruner)}
    return replace(pruner, keep_ratio=1.0)  # type: ignore[call-arg]


_PAIRS = [(name, method) for name in FAMILIES for method in METHODS]
WORKS = [pair for pair in _PAIRS if not is_refused(METHODS[pair[1]], adapter_of(pair[0]))]
ERRORS = [pair for pair in _PAIRS if is_refused(METHODS[pair[1]], adapter_of(pair[0]))]


# One class token, crops, windows and M-RoPE, tiles, a prefix; `make families-test` runs every pair.
FEW = ("llava", "llava-next", "qwen2.5-vl", "internvl", "paligemma2")


def _cases(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    return [pytest.param(*pair, marks=() if pair[0] in FEW else pytest.mark.every_type) for pair in pairs]


def _attn(name: str) -> str:
    return "eager" if name == "paligemma2" else "sdpa"


def _generate(model: Any, prepared: dict[str, Any], **settings: Any) -> Any:
    return model.generate(
        **prepared,
        **settings,
        max_new_tokens=STEPS,
        do_sample=False,
        suppress_tokens=list(range(80, 99)),
        output_logits=True,
        return_dict_in_generate=True,
    )


def _logits(output: Any) -> Tensor:
    """`[batch, STEPS, vocabulary]`."""
    return torch.stack(output.logits, 1)


@cache
def _prepared(name: str, example: int | None = None, side: str = "left") -> dict[str, Any]:
    """One example, or the batch of all."""
    chosen = list(enumerate(LAYOUTS)) if example is None else [(example, LAYOUTS[example])]
    return inputs(name, [prompt(name, layout, seed) for seed, layout in chosen], side)


@cache
def _plain(name: str, example: int | None = None) -> Tensor:
    return _logits(_generate(built(name, _attn(name)), _prepared(name, example)))


def remembered(pruner: vp.Pruner, monkeypatch: pytest.MonkeyPatch, runs: list[Any] | None = None) -> list[Entering]:
    """Filled with what the method's runs are shown on entry and answer; `runs` with these."""
    seen: list[Entering] = []
    start = type(pruner).start

    def remembering(self: vp.Pruner) -> Any:
        run: Any = start(self)
        inner = run.select_entries
        if runs is not None:
            runs.append(run)

        def select_entries(layer: int, runs: Any, views: Sequence[EntryView]) -> Any:
            answers = inner(layer, runs, views)
            for view, answer in zip(views, answers, strict=True):
                is_merge = isinstance(answer, Merge)
                held = (view.tokens[answer.kept], answer.states) if is_merge else (None, None)
                seen.append(Entering(layer, view.tokens, view.embeddings, *held))
            return answers

        run.select_entries = select_entries
        return run

    monkeypatch.setattr(type(pruner), "start", remembering)
    return seen


def _alone(
    name: str, pruner: vp.Pruner, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, vp.ExampleTrace]:
    """1, 2, 5, 6, 8 under eager attention: the logits of a single example and its trace."""
    model, family = built(name, "eager"), FAMILIES[name]
    visual = visual_rows(prepared["input_ids"])[0]
    with (
        monkeypatch.context() as patch,
        untouched(model, layers_of(model), prepared),
        vp.attach(model, pruner) as handle,
    ):
        shown = remembered(pruner, patch)
        output = _generate(model, prepared)
        trace: vp.ExampleTrace = handle.trace[0]
    _holds_the_rows_that_ran(pruner, visual, trace, output.past_key_values)
    assert bool(trace.merged) == pruner.merges
    tokens = output.sequences[:, -STEPS:]
    longer = extended(prepared, tokens[:, :-1], family.types, family.later_type)
    edit = pruned_edit(visual, trace.kept, pruner)
    with oracle(model, edit), merged(layers_of(model), visual, shown), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, len(visual) - 1 :]
    torch.testing.assert_close(_logits(output)[0], expected, **CLOSE)
    return _logits(output)[0], trace


def _holds_the_rows_that_ran(pruner: vp.Pruner, visual: Tensor, trace: vp.ExampleTrace, cache: Any) -> None:
    """1, 2."""
    assert trace.num_visual == sum(trace.tokens_per_image) == int(visual.sum())
    if 5 in asked(pruner.name):
        has_pruned = len(trace.kept[-1]) < trace.num_visual or _frozen_layers(pruner)
        assert has_pruned, "the case must prune to test anything"
    for earlier, later in zip(trace.kept, trace.kept[1:], strict=False):
        assert later == sorted(set(later) & set(earlier))
    seen = [int((~visual).sum()) + len(kept) for kept in trace.kept[:-1]]
    resting = {layer: len(trace.kept[layer]) for layer in _frozen_layers(pruner)}
    assert trace.query_lengths == [rows - resting.get(layer, 0) for layer, rows in enumerate(seen)]
    assert cache.get_seq_length() == len(visual) + STEPS - 1
    for layer, held in enumerate(cache.layers):
        if not isinstance(held, DynamicSlidingWindowLayer):  # untouched by pruning: the host's own eviction
            assert held.keys.shape[-2] == trace.key_lengths[layer] + STEPS - 1
            routing = pruner.routing(layer)
            assert trace.key_lengths[layer] == seen[layer] or not (routing.is_plain or routing.freezes_visual)


def _frozen_layers(pruner: vp.Pruner) -> list[int]:
    return [layer for layer in range(LAYERS) if pruner.routing(layer).freezes_visual]


@tries("methods", "vision methods")
@pytest.mark.parametrize(("name", "method"), _cases(WORKS))
def test_every_invariant(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruner, model, batch = METHODS[method], built(name, _attn(name)), _prepared(name)
    plain = _plain(name)
    before = state_of(model)  # after a first forward: transformers installs hooks of its own then
    alone, trace = _alone(name, pruner, _prepared(name, 0), monkeypatch)
    with vp.attach(model, pruner) as handle, torch.no_grad():
        with pytest.raises(vp.VisiPrunerError, match="attached already"):  # 7
            vp.attach(model, vp.NoPruning())
        together = _logits(_generate(model, batch))
        kept = handle.trace.kept
        torch.testing.assert_close(together[0], alone, **CLOSE)  # 3, 6
        assert kept[0] == trace.kept
        assert handle.trace[TEXT].num_visual == 0
        torch.testing.assert_close(together[TEXT], plain[TEXT], **CLOSE)  # 3, 4
        padded = _logits(_generate(model, _prepared(name, PADDED)))[0]
        torch.testing.assert_close(together[PADDED], padded, **CLOSE)  # 3
        assert handle.trace[0].kept == kept[PADDED]

        right = _prepared(name, side="right")
        last = right["attention_mask"].sum(1) - 1
        logits = model(**right).logits[torch.arange(len(LAYOUTS)), last]
        torch.testing.assert_close(logits, together[:, 0], **CLOSE)  # 3
        assert handle.trace.kept == kept

        uncached = _logits(_generate(model, _prepared(name, 0), use_cache=False))[0]
        torch.testing.assert_close(uncached, alone, **CLOSE)  # 6
        assert torch.equal(_logits(_generate(model, _prepared(name, TEXT))), _plain(name, TEXT))  # 4
        with pytest.raises(vp.LayoutError, match="no pixel_values"):  # 9
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert state_of(model) == before  # 7
    if 4 in asked(method):
        with vp.attach(model, keeping_everything(pruner)):
            assert torch.equal(_logits(_generate(model, batch)), plain)  # 4
    assert torch.equal(_logits(_generate(model, batch)), plain)  # 7
    assert torch.equal(together[0], plain[0]) == (5 not in asked(method))


@tries("methods", "video")
@pytest.mark.parametrize(("name", "method"), _cases([pair for pair in WORKS if FAMILIES[pair[0]].video is not None]))
def test_videos(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _alone(name, METHODS[method], inputs(name, [prompt(name, [3, -1, 5])]), monkeypatch)


@tries("methods", "vision methods")
@pytest.mark.parametrize(("name", "method"), ERRORS)
def test_what_does_not_work_is_an_error(name: str, method: str) -> None:
    model, pruner = built(name, _attn(name)), METHODS[method]
    _plain(name)
    before = state_of(model)
    error, message = vp.UnsupportedModelError, "linear attention" if pruner.reads_states else "vision tower"
    if picture_methods(pruner):
        error, message = vp.ConfigError, "use visipruner.chat.attached"
    with pytest.raises(error, match=message), vp.attach(model, pruner), torch.no_grad():
        model(**_prepared(name))
    assert state_of(model) == before
