"""Layers that visual tokens pass by."""

from __future__ import annotations

import pytest
import torch

import visipruner as vp
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.oracle import frozen
from visipruner.accounting import count_flops
from visipruner.pruners.composed import Composed
from visipruner.pruners.shortv import ShortV, rank_layers


def test_layers_are_ranked_by_what_freezing_each_alone_does_to_the_next_token() -> None:
    model = text_model("llama")
    calls = [{"inputs_embeds": prompt(seed=seed)[0]} for seed in (1, 2)]
    mask = prompt()[1]
    means = []
    for layer in range(LAYERS):
        terms = []
        for call in calls:
            with torch.no_grad():
                full = model(**call).logits[0, -1].softmax(-1)
                with frozen(model.model.layers, mask[0], [layer]):
                    without = model(**call).logits[0, -1].softmax(-1)
            terms.append(sum(float(q * (q / p).log()) for p, q in zip(full, without, strict=True)))
        means.append(sum(terms) / len(terms))
    wanted = sorted(range(LAYERS), key=means.__getitem__)
    assert rank_layers(model, calls, visual_mask=mask) == tuple(wanted)
    assert means[LAYERS - 1] == pytest.approx(0, abs=1e-6)  # nobody reads what the last layer makes of them
    with pytest.raises(vp.ConfigError, match="at least one prompt"):
        rank_layers(model, [])


def test_a_share_of_the_layers_runs_those_that_contribute_most() -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    prompts = [inputs]
    order = rank_layers(model, prompts)
    half = ShortV().with_share(0.5, model, prompts)
    assert half.layers == tuple(sorted(order[: LAYERS // 2]))
    assert ShortV().with_share(1.0, model, prompts).layers == ()
    other = llava_inputs([[6, 0, 3]], seed=5)
    assert ShortV().with_share(0.5, model, [other]).layers == tuple(sorted(rank_layers(model, [other])[: LAYERS // 2]))


def test_what_is_counted_is_what_runs() -> None:
    """16 of 27 rows are spared all but keys and values in two layers."""
    model, inputs = text_model("llama", "eager"), prompt()
    embeds, mask = inputs
    with vp.attach(model, ShortV(layers=(1, 4)), mask) as handle, torch.no_grad(), count_flops() as counted:
        model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    trace = handle.trace[0]
    assert [work.rows for work in trace.work] == [27, 11, 27, 27, 11, 27]
    assert [work.key_rows for work in trace.work] == [27] * LAYERS
    assert [work.attention_pairs for work in trace.work] == [27 * 27, 11 * 27, 27 * 27, 27 * 27, 11 * 27, 27 * 27]
    head = 2 * model.config.hidden_size * model.config.vocab_size
    assert counted.flops == handle.trace.flops() + head
    assert (trace.exit_layer, trace.frozen) == (None, [1, 4])
    # The paper's formula: all 16 + 11 rows meet 16 visual ones in four layers, only the text rows in the other two.
    assert handle.trace.visual_attention_cut() == pytest.approx(1 - (4 * 16 * 27 + 2 * 16 * 11) / (6 * 16 * 27))
    assert trace.key_lengths == [27] * LAYERS


def test_rows_that_passed_the_last_layer_by_come_back_as_they_were() -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7], [3, 0, 2, 0, 4]], "right")
    with vp.attach(model, ShortV(layers=(1, LAYERS - 1))), torch.no_grad():
        got = model(**inputs, use_cache=False).logits[0]
    one = {name: value[:1] for name, value in inputs.items()}
    visual = one["input_ids"][0] == model.config.image_token_id
    with frozen(model.model.language_model.layers, visual, [1, LAYERS - 1]), torch.no_grad():
        wanted = model(**one, use_cache=False).logits[0]
    real = one["attention_mask"][0].bool()
    torch.testing.assert_close(got[real], wanted[real], rtol=1e-4, atol=1e-5)


def test_another_method_chooses_while_tokens_are_frozen() -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 7]])
    chooser = vp.VisiPruner(stages=("middle", "deep"), filter_layer=2, keep_tokens=3, exit_layer=4)
    with vp.attach(model, Composed(parts=(ShortV(layers=(1, 2, 3)), chooser))) as handle, torch.no_grad():
        model(**inputs)
        got = handle.trace[0]
    assert [len(kept) for kept in got.kept[:-1]] == [16, 16, 16, 3, 0, 0]
    assert got.query_lengths == [27, 11, 11, 11, 11, 11]
    still = frozen(model.model.language_model.layers, inputs["input_ids"][0] == model.config.image_token_id, [1])
    # Layer 2 is looked at before anything changes in it, so only layer 1 need stand still here.
    with still, vp.attach(model, chooser) as handle, torch.no_grad():
        model(**inputs)
    assert handle.trace[0].kept[3] == got.kept[3]


def test_layers_that_are_none_are_refused() -> None:
    with pytest.raises(vp.ConfigError, match="negative"):
        ShortV(layers=(-1,))
    with pytest.raises(vp.ConfigError, match="layers are 0 to 5"):
        vp.attach(llava_model(), ShortV(layers=(LAYERS,)))
    both = Composed(parts=(ShortV(layers=(1,)), vp.VisiPruner(shallow_end=2)))
    with pytest.raises(vp.ConfigError, match="both change the attention edges of layer 1"):
        vp.attach(llava_model(), both)
