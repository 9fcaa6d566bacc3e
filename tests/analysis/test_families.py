"""The probe on every supported family: its re-run is the model, and a knockout is what edited maps give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.analysis.cases import edited, kl, near, resting
from tests.families.prompts import extended
from tests.families.zoo import FAMILIES, LAYERS, built, inputs, layers_of, prompt
from tests.oracle import oracle
from visipruner.analysis.gaze import logit_lens, value_lens
from visipruner.analysis.knockout import attention_knockout, keep_only, skip
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.rerun import Variant

CELLS = [(name, attn) for name in FAMILIES for attn in ("sdpa", "eager") if (name, attn) != ("paligemma2", "sdpa")]


def _dense(name: str, attn: str) -> tuple[Any, Any, Reading]:
    model, prepared = built(name, attn), inputs(name, [prompt(name, [3, 0, 2, 0, 5])])
    with Probe(model) as probe:
        return model, prepared, probe.read(prepared, max_new_tokens=3, right=[7, 8, 9])


@pytest.mark.parametrize(("name", "attn"), CELLS)
def test_running_every_row_again_is_the_dense_model(name: str, attn: str) -> None:
    model, _, reading = _dense(name, attn)
    rows = [torch.arange(reading.length)]
    with Probe(model) as probe:
        for start in (0, LAYERS - 1):
            outcome = probe.rerun(reading, [Variant(start=start)], rows, torch.arange(0))[0]
            assert outcome.kl < 1e-5
            assert outcome.logprob == pytest.approx(outcome.dense_logprob, abs=2e-3)
        lens = logit_lens(probe, reading)
        assert lens["top"].values[-1, 0] == reading.logprobs[0].argmax()
        assert len(value_lens(probe, reading)) == LAYERS


@pytest.mark.parametrize(("name", "attn"), CELLS)
def test_knockout_equals_edited_maps(name: str, attn: str) -> None:
    model, prepared, reading = _dense(name, attn)
    family = FAMILIES[name]
    longer = extended(prepared, reading.answer.tokens[None, :-1], family.types, family.later_type)
    with Probe(model) as probe:
        found = attention_knockout(probe, reading, layers=[1, 2])
        kept = torch.arange(0, len(reading.visual), 2)
        pruned = keep_only(probe, reading, [(1, kept)])[0]
        skipped = skip(probe, reading, [2])
    text, visual = reading.rows("text"), reading.rows("visual")
    gone = visual.clone()
    gone[reading.visual[kept]] = False
    for outcome, weights in (
        (found, edited([1, 2], text, visual, "cut")),
        (pruned, edited(range(2, LAYERS), reading.rows("all"), gone, "cut")),
    ):
        with oracle(model, weights), torch.no_grad():
            logits = model(**longer, use_cache=False).logits[0]
        expected = kl(reading.logprobs, logits[reading.answer.rows].float().log_softmax(-1))
        assert outcome.kl == near(expected)
    hook = layers_of(model)[2].register_forward_hook(resting(reading.visual))
    with oracle(model, edited([2], reading.rows("all"), visual, "cut")), torch.no_grad():
        logits = model(**longer, use_cache=False).logits[0]
    hook.remove()
    expected = kl(reading.logprobs, logits[reading.answer.rows].float().log_softmax(-1))
    assert skipped["kl"].values[0] == near(expected)


# To the tiny Gemma-3 all pictures are nearly the same: less than 1e-7 nats lie between them.
@pytest.mark.parametrize(("name", "attn"), [cell for cell in CELLS if cell[0] != "gemma3"])
def test_a_swap_in_all_layers_is_the_other_picture(name: str, attn: str) -> None:
    model, prepared, reading = _dense(name, attn)
    other = {key: -given if given.is_floating_point() else given for key, given in prepared.items()}
    family = FAMILIES[name]
    longer = extended(other, reading.answer.tokens[None, :-1], family.types, family.later_type)
    with Probe(model) as probe:
        seen = probe.read(other, max_new_tokens=1)
        found = attention_knockout(probe, reading, layers=range(LAYERS), how="swap", other=seen)
    with torch.no_grad():
        logits = model(**longer, use_cache=False).logits[0]
    assert found.kl == near(kl(reading.logprobs, logits[reading.answer.rows].float().log_softmax(-1)))
