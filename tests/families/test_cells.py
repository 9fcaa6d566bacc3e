"""Every method of the registry with every type that nobody described: a pair holds the engine's invariants, or is
refused with the sentence that `tools.families.cells` wrote down.

Methods that look at the vision tower meet types whose towers are known (`kinds.py`); the others meet every type, with
features in place of its tower. Types that somebody described are in `test_methods.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.kinds import KINDS, TowerPrompts, built_kind
from tests.families.test_methods import remembered
from tests.oracle import Entering, merged, oracle, pruned_edit
from tools.families.cells import fitted, kinds, looks_at_tower, refusals
from tools.families.methods import asked
from tools.families.types import default_config
from visipruner.adapters import generic
from visipruner.checking.checks import OTHER, TWO, Judge, longer
from visipruner.checking.prompts import Side, TinyPrompts
from visipruner.checking.subject import Subject, opened
from visipruner.checking.tiny import shrunk_model
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.pruners.registry import available

STEPS = 3
REFUSED = refusals()
# Of each run: features that enter as they are, convolutions beside attention, and their unlike towers.
FEW = {
    "gemma4": ("fastv", "dart", "sparsevlm", "visionzip", "shortv"),
    "lfm2_vl": ("schedule", "visipruner", "tops"),
}


def cells() -> Iterator[Any]:
    for kind in kinds():
        for name in available():
            marks = () if name in FEW.get(kind, ()) else pytest.mark.every_type
            yield pytest.param(kind, name, marks=marks)


@cache
def subject_of(kind: str, with_tower: bool) -> Subject:
    model = built_kind(kind) if with_tower else shrunk_model(default_config(kind))
    prompts = TowerPrompts(kind) if with_tower else TinyPrompts(model)
    return Subject(model, generic.adapter_of(model), prompts)


@cache
def judge_of(subject: Subject) -> Judge:
    return Judge.of(subject)


def test_every_type_and_method_has_a_cell() -> None:
    """Else: `python -m tools.families.cells`."""
    assert list(REFUSED) == kinds()
    assert not {name for those in REFUSED.values() for name in those} - set(available())


@pytest.mark.parametrize(("kind", "name"), list(cells()))
def test_a_cell_holds_every_invariant_or_says_why_not(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tower = looks_at_tower(name, 4) and kind in KINDS
    subject = subject_of(kind, with_tower)
    pruner = fitted(name, subject)
    if isinstance(pruner, str):
        assert pruner == REFUSED[kind].get(name)
        return
    assert name not in REFUSED[kind]
    inputs = subject.prompts.inputs([TWO])
    words, first, kept = _alone(subject, pruner, inputs, monkeypatch)
    other = _first_word(subject, pruner, subject.prompts.inputs([OTHER]))
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        together = subject.prompts.inputs([TWO, OTHER], side)
        with subject.attach(pruner) as handle:
            logits = subject.logits(together)
            assert handle.trace.kept[0] == kept
        last = together["attention_mask"].cumsum(1).argmax(1)
        got, expected = logits[torch.arange(2), last], torch.stack([first, other])
        _same(subject, got, expected, f"a batch padded {side}", own_padding(subject, side))
    with subject.attach(pruner):
        _same(subject, _first_word(subject, None, inputs)[None], words[:1], "without a cache")


@cache
def own_padding(subject: Subject, side: Side) -> float:
    """What the plain model's next words differ by in a padded batch (HunYuan-VL's do)."""
    together = subject.prompts.inputs([TWO, OTHER], side)
    last = together["attention_mask"].cumsum(1).argmax(1)
    alone = torch.stack([_first_word(subject, None, subject.prompts.inputs([each])) for each in (TWO, OTHER)])
    return float((subject.logits(together)[torch.arange(2), last] - alone).abs().max())


def _same(subject: Subject, got: Tensor, expected: Tensor, what: str, own: float = 0.0) -> None:
    finding = judge_of(subject).of_rows(what, "", got, expected, None, own)
    assert finding.state == "passes", f"{what}: {finding.says}, allowed {finding.allowed:.1e}"


def _first_word(subject: Subject, pruner: Pruner | None, inputs: dict[str, Any]) -> Tensor:
    with ExitStack() as stack:
        if pruner is not None:
            stack.enter_context(subject.attach(pruner))
        return subject.logits(inputs)[0, -1]


def _alone(
    subject: Subject, pruner: Pruner, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """A prompt and `STEPS` words of its answer against the full-length model: their logits, those of the first, and
    what was kept."""
    visual, runs = subject.visual(inputs)[0], []
    plain = subject.logits(inputs)[0, -1]
    with monkeypatch.context() as patch, subject.attach(pruner) as handle:
        shown = remembered(pruner, patch, runs)
        output = subject.model.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            suppress_tokens=subject.prompts.suppressed(),
            output_logits=True,
            return_dict_in_generate=True,
        )
        trace = handle.trace[0]
    got = torch.stack([opened(step[0]) for step in output.logits])
    whole = longer(inputs, output.sequences[:, -STEPS:-1])
    with full_length(subject, pruner, visual, trace.kept, shown, runs[0], inputs):
        expected = subject.logits(whole)[0, len(visual) - 1 :]
    _same(subject, got, expected, "edges cut")
    is_frozen = any(pruner.routing(layer).freezes_visual for layer in range(len(subject.host.layers)))
    if 5 in asked(pruner.name):
        assert len(trace.kept[-1]) < trace.num_visual or is_frozen, "the case must prune to test anything"
        assert not torch.equal(got[0], plain)
    assert trace.num_visual == int(visual.sum())
    return got, got[0], trace.kept


@contextmanager
def full_length(
    subject: Subject,
    pruner: Pruner,
    visual: Tensor,
    kept: list[list[int]],
    shown: Sequence[Entering],
    run: PromptRun,
    inputs: dict[str, Any],
) -> Iterator[None]:
    """Inside, the model with no row dropped: edges cut, rows merged, frozen and placed as the method says."""
    layers, edit = subject.host.layers, pruned_edit(visual, kept, pruner)
    is_routed = any(not pruner.routing(layer).is_plain for layer in range(len(layers)))
    with ExitStack() as stack:
        stack.enter_context(merged(layers, visual, shown, kept if subject.host.states else None))
        if is_routed:
            stack.enter_context(oracle(subject.model, edit, subject.host.configs, layers, run.may_close_gaps))
        else:
            for number, layer in enumerate(layers if run.may_close_gaps else []):
                move = partial(_moved, edit, number)
                stack.callback(layer.register_forward_pre_hook(move, with_kwargs=True).remove)
            stack.enter_context(subject.cutting(inputs, kept))
        yield


def _moved(edit: Any, number: int, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, edit.moved(number, kwargs)
