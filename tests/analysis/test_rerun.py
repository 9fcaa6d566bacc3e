"""Altered runs against whole attention maps edited by hand."""

from __future__ import annotations

import pytest
import torch

from tests.analysis.cases import LAYOUTS, edited, kl, oracle_logprobs, read
from tests.models import LAYERS, llava_inputs, llava_model
from visipruner import FixedSchedule, VisiPrunerError, attach
from visipruner.analysis.probe import Probe
from visipruner.analysis.rerun import Variant, combined, knockout

CLOSE = {"rtol": 0, "atol": 2e-4}
GROUPS = [("text", "visual"), ("last", "visual"), ("visual", "visual"), ("question", "system"), ("answer", "visual")]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_reading_is_the_dense_model(layout: list[int], attn: str) -> None:
    model, inputs, reading = read(layout, attn=attn)
    expected = oracle_logprobs(model, inputs, reading, edited([], *[torch.zeros(99, dtype=torch.bool)] * 2, "cut"))
    torch.testing.assert_close(reading.logprobs, expected, **CLOSE)
    plain = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    assert reading.answer.tokens.tolist() == plain[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("text", ["llama", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize("how", ["cut", "zero", "merge"])
@pytest.mark.parametrize(("src", "dst"), GROUPS)
def test_edges_equal_edited_maps(src: str, dst: str, how: str, text: str) -> None:
    model, inputs, reading = read([5, 0, 6], text=text)
    onto = int(reading.visual[3]) if dst == "visual" else 0
    if how == "merge" and src == "visual":
        onto = int(reading.visual[0])  # a sink that every visual row sees
    layers = [1, 2, 4]
    with Probe(model) as probe:
        outcome = probe.rerun(reading, [knockout(reading, src, dst, layers, how, onto)])[0]
    weights = edited(layers, reading.rows(src), reading.rows(dst), how, onto)
    expected = oracle_logprobs(model, inputs, reading, weights)
    picked = expected[range(len(reading.answer.tokens)), reading.answer.tokens].sum()
    assert outcome.logprob == pytest.approx(float(picked), abs=2e-3)
    assert outcome.kl == pytest.approx(kl(reading.logprobs, expected), abs=1e-3)
    is_other = (src, how) != ("question", "merge") and (text, dst) != ("mistral-sliding", "system")
    assert outcome.kl > 1e-3 or not is_other  # one system row merged onto itself; rows out of the window


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_growing_batch_equals_runs_alone(layout: list[int]) -> None:
    model, _, reading = read(layout)
    variants = [knockout(reading, "text", "visual", [layer]) for layer in range(LAYERS)]
    variants.append(knockout(reading, "visual", "visual", range(2), "zero"))
    with Probe(model) as probe:
        together = probe.rerun(reading, variants)
        alone = [probe.rerun(reading, [variant])[0] for variant in variants]
    for one, other in zip(together, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_children_continue_their_parent() -> None:
    model, _, reading = read([5, 0, 6])
    whole = knockout(reading, "text", "visual", range(LAYERS))
    forks = [Variant({}, start=layer, parent=0) for layer in range(1, LAYERS + 1)]
    direct = [knockout(reading, "text", "visual", range(layer)) for layer in range(1, LAYERS + 1)]
    with Probe(model) as probe:
        forked = probe.rerun(reading, [whole, *forks])[1:]
        plain = probe.rerun(reading, direct)
    for one, other in zip(forked, plain, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_no_change_changes_nothing() -> None:
    model, _, reading = read([5, 0, 6])
    sink = [int(reading.visual[2])]
    variants = [
        Variant(start=0),
        Variant(start=LAYERS),
        knockout(reading, "text", [], range(LAYERS)),
        knockout(reading, "text", sink, range(LAYERS), "merge", sink[0]),  # the sink's own mass stays with it
    ]
    with Probe(model) as probe:
        for outcome in probe.rerun(reading, variants):
            assert outcome.kl < 1e-6
            assert outcome.agrees


def test_cutting_equals_dropping() -> None:
    """Design invariant: without edges to a row it may as well not be there."""
    model, inputs, reading = read([5, 0, 6])
    for layer in range(1, LAYERS):
        with Probe(model) as probe:
            cut = probe.rerun(reading, [knockout(reading, "text", "visual", range(layer, LAYERS))])[0]
        with attach(model, FixedSchedule(layers=(layer - 1,), keep=(0,))), torch.no_grad():
            fed = torch.cat([inputs["input_ids"], reading.answer.tokens[None, :-1]], dim=1)
            logits = model(input_ids=fed, pixel_values=inputs["pixel_values"], use_cache=False).logits[0]
        dropped = logits[reading.answer.rows].log_softmax(-1)
        picked = dropped[range(len(reading.answer.tokens)), reading.answer.tokens].sum()
        assert cut.logprob == pytest.approx(float(picked), abs=1e-3)


def test_combined_edits_and_known_answer() -> None:
    right = [7, 8, 2]
    model, inputs, reading = read([5, 0, 6], right=right)
    assert reading.is_right is False
    assert reading.right is not None
    with Probe(model) as probe:
        edit = combined(
            knockout(reading, "text", "visual", [0, 1], "zero"), knockout(reading, "visual", "visual", [1, 2])
        )
        probe.rerun(reading, [edit])
        logits = probe.unembed(reading.final[reading.right.rows])
    fed = torch.cat([inputs["input_ids"], torch.tensor([right[:-1]])], dim=1)
    with torch.no_grad():
        plain = model(input_ids=fed, pixel_values=inputs["pixel_values"]).logits[0, -3:]
    torch.testing.assert_close(logits, plain, **CLOSE)


def test_probe_leaves_the_model_as_it_was() -> None:
    model = llava_model()
    inputs = llava_inputs([[5, 0, 6]])
    with torch.no_grad():
        before = model(**inputs).logits
    with Probe(model) as probe:
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, before)
        with pytest.raises(VisiPrunerError, match="attached already"):
            Probe(model)
    probe.close()
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.language_model.layers)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (llava_inputs([[5, 0, 6], [4, 0, 7]]), "one by one"),
        (llava_inputs([[5, 6]]), "no visual rows"),
    ],
)
def test_prompts_that_cannot_be_read(inputs: object, message: str) -> None:
    with Probe(llava_model()) as probe, pytest.raises(VisiPrunerError, match=message):
        probe.read(inputs)  # type: ignore[arg-type]


def test_a_model_in_bfloat16() -> None:
    model = llava_model().to(torch.bfloat16)
    inputs = llava_inputs([[5, 0, 6]])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with Probe(model) as probe:
        reading = probe.read(inputs, max_new_tokens=3)
        same, cut = probe.rerun(reading, [Variant(start=0), knockout(reading, "text", "visual", range(LAYERS))])
    assert same.kl < 0.01 < cut.kl  # three significant digits
