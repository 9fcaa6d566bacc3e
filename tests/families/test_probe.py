"""The probe of `visipruner.analysis` with every family: an altered run equals the host's with its maps edited."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.analysis.cases import edited, kl, near
from tests.families.kinds import built_kind
from tests.families.prompts import extended
from tests.families.stock import processor_of
from tests.families.test_matrix import each_cell
from tests.families.tried import tries
from tests.families.zoo import FAMILIES, built, inputs, prompt
from tests.oracle import oracle
from visipruner.analysis.knockout import freeze
from visipruner.analysis.probe import Probe
from visipruner.analysis.rerun import knockout
from visipruner.chat import chat_inputs
from visipruner.engine.attach import attach
from visipruner.fitting import next_token
from visipruner.pruners.shortv import ShortV

LAYERS_CUT = [1, 2]


@tries("probe")
@each_cell
def test_a_knockout_equals_edited_maps(name: str, attn: str) -> None:
    model, family = built(name, attn), FAMILIES[name]
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 5])])
    with Probe(model) as probe:
        reading = probe.read(prepared, max_new_tokens=3)
        outcome = probe.rerun(reading, [knockout(reading, "text", "visual", LAYERS_CUT, "cut")])[0]
    longer = extended(prepared, reading.answer.tokens[None, :-1], family.types, family.later_type)
    weights = edited(LAYERS_CUT, reading.rows("text"), reading.rows("visual"), "cut")
    with oracle(model, weights), torch.no_grad():
        logits = model(**longer, use_cache=False).logits[0]
    expected = logits[reading.answer.rows].float().log_softmax(-1)
    picked = expected[range(len(reading.answer.tokens)), reading.answer.tokens].sum()
    assert outcome.logprob == pytest.approx(float(picked), abs=2e-3)
    assert outcome.kl == near(kl(reading.logprobs, expected))


def test_words_that_the_model_closes_are_closed_in_every_reading() -> None:
    """Chameleon never says the words that stand for pictures."""
    model, processor = built_kind("chameleon"), processor_of("chameleon")
    prepared = chat_inputs(model, processor, Image.linear_gradient("L").convert("RGB"), "w5 w6")
    with Probe(model) as probe:
        reading = probe.read(prepared, max_new_tokens=3)
        outcome = probe.rerun(reading, [knockout(reading, "text", "visual", LAYERS_CUT, "cut")])[0]
        lens = probe.unembed(reading.final).softmax(-1)
    closed = model.model.vocabulary_mapping.image_tokens
    assert float(lens[:, closed].max()) == 0
    longer = extended(dict(prepared), reading.answer.tokens[None, :-1], None, 0)
    with torch.no_grad():
        dense = model(**longer, use_cache=False).logits[0, reading.answer.rows].log_softmax(-1)
        with oracle(model, edited(LAYERS_CUT, reading.rows("text"), reading.rows("visual"), "cut")):
            cut = model(**longer, use_cache=False).logits[0, reading.answer.rows].log_softmax(-1)
    torch.testing.assert_close(reading.logprobs, dense, atol=1e-4, rtol=1e-4)
    assert outcome.kl == near(kl(dense, cut))
    assert outcome.kl > 0.01


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen3-vl"])
def test_frozen_rows_keep_what_the_host_adds_between_layers(name: str) -> None:
    """What freezing loses is the layer's work, as ShortV measures it, and not DeepStack's features on top."""
    model = built(name, "eager")
    prepared = inputs(name, [prompt(name, [6, 0, 8])])
    with Probe(model) as probe:
        lost = freeze(probe, probe.read(prepared, max_new_tokens=1))["kl"].values
    dense = next_token(model, prepared)
    for layer, expected in enumerate(lost):
        with attach(model, ShortV(layers=(layer,))):
            frozen = next_token(model, prepared)
        assert float((dense.exp() * (dense - frozen)).sum()) == pytest.approx(expected, abs=1e-6)
