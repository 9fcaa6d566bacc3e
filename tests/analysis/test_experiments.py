"""Every experiment against its definition, on tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.analysis.cases import NO_LOSS, edited, kl, near, oracle_logprobs, read, resting
from tests.models import LAYERS, VOCAB
from tests.oracle import oracle, pruned_edit, softmax
from visipruner.analysis import gaze, knockout, scores
from visipruner.analysis.probe import Probe
from visipruner.analysis.result import Labelled, Result
from visipruner.contract.influence import influence as influence_of
from visipruner.errors import ConfigError

RIGHT = [7, 8, 2]


@pytest.mark.parametrize("text", ["llama", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_captured_attention_equals_whole_maps(text: str, attn: str) -> None:
    model, inputs, reading = read([5, 0, 6], text=text, attn=attn)
    maps: dict[int, torch.Tensor] = {}

    def record(layer: int, logits: torch.Tensor) -> torch.Tensor:
        maps[layer] = softmax(logits)
        return maps[layer]

    with oracle(model, record), torch.no_grad():
        model(**inputs)
    n = reading.prompt_length
    for layer in range(LAYERS):
        weights = gaze.attention_weights(reading, layer, range(n))[..., :n]
        torch.testing.assert_close(weights, maps[layer], rtol=0, atol=1e-4)
        last = gaze.attention_weights(reading, layer)[..., :n]
        torch.testing.assert_close(last[:, 0], maps[layer][:, n - 1], rtol=0, atol=1e-4)


class _Numbers:
    """A tokenizer of texts that are token ids."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        return " ".join(map(str, tokens.tolist()))


def test_an_answer_may_end_with_any_of_several_ends() -> None:
    model, inputs, reading = read([5, 0, 6])
    first, second, end, _ = reading.answer.tokens.tolist()
    model.generation_config.eos_token_id = [RIGHT[-1], end]
    assert RIGHT[-1] not in reading.answer.tokens
    assert end not in (first, second)
    with Probe(model) as probe:
        for right in ([first, second, RIGHT[-1]], f"{first} {second}"):
            found = probe.read(inputs, _Numbers(), right=right, max_new_tokens=4)
            assert found.answer.tokens.tolist() == [first, second, end]
            assert found.is_right
        wrong = probe.read(inputs, right=RIGHT, max_new_tokens=4)
    assert not wrong.is_right
    assert wrong.right is not None
    assert wrong.right.tokens.tolist() == [*RIGHT[:-1], end]


def test_an_empty_answer_needs_an_end() -> None:
    model, inputs, _ = read([5, 0, 6])
    with Probe(model) as probe:
        model.generation_config.eos_token_id = None
        for right in ("", []):
            with pytest.raises(ConfigError, match="give an answer of one token"):
                probe.read(inputs, _Numbers(), right=right, max_new_tokens=2)
        model.generation_config.eos_token_id = RIGHT[-1]
        found = probe.read(inputs, _Numbers(), right="", max_new_tokens=2)
    assert found.right is not None
    assert found.right.tokens.tolist() == RIGHT[-1:]


@pytest.mark.parametrize("top", [0, VOCAB + 1])
def test_a_lens_names_no_more_words_than_there_are(top: int) -> None:
    model, _, reading = read([5, 0, 6])
    with Probe(model) as probe:
        for look in (gaze.logit_lens, gaze.value_lens):
            with pytest.raises(ConfigError, match=f"top must be 1 to {VOCAB}"):
                look(probe, reading, top=top)
        assert gaze.logit_lens(probe, reading, top=VOCAB)["top"].values.shape == (LAYERS, VOCAB)


def test_visual_attention_sums_and_ranks() -> None:
    _, _, reading = read([5, 0, 6])
    found = gaze.visual_attention(reading, "question", top=4)
    assert found["map"].values.shape == (LAYERS, 16)
    np.testing.assert_allclose(found["map"].values.sum(-1), found["mass"].values, rtol=1e-5)
    best = found["map"].values.argsort(-1)[:, ::-1][:, :4]
    np.testing.assert_array_equal(found["top"].values, best)
    norms = reading.layers[2].values.abs().sum(-1).mean(0)[reading.visual]
    np.testing.assert_allclose(found["value_l1"].values[2], norms.numpy(), rtol=1e-5)


def test_lens_of_the_last_layer_is_the_model() -> None:
    model, inputs, reading = read([5, 0, 6])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    with Probe(model) as probe:
        for row in (reading.last, 3):
            found = gaze.logit_lens(probe, reading, row)
            expected = logits[row].softmax(-1).topk(5)
            assert found["top"].values[-1].tolist() == expected.indices.tolist()
            np.testing.assert_allclose(found["probability"].values[-1], expected.values.numpy(), rtol=1e-3)
        found = gaze.logit_lens(probe, reading)
        leads = gaze.leading_layer(found)
        answer = found["top"].values[-1, 0]
        assert (found["top"].values[leads:, 0] == answer).all()
        assert leads == 0 or found["top"].values[leads - 1, 0] != answer
        words = gaze.value_lens(probe, reading)
    module = model.model.language_model.layers[3].self_attn
    value = reading.layers[3].values[1, reading.last]  # heads 2 and 3 share value head 1
    alone = torch.zeros(4, value.shape[0])
    alone[3] = value
    with torch.no_grad():
        expected = model.lm_head(module.o_proj(alone.flatten())).softmax(-1).topk(5)
    assert words[3][3].tokens == expected.indices.tolist()
    np.testing.assert_allclose(words[3][3].probability, expected.values.numpy(), rtol=1e-4)


def test_sweeps_equal_single_knockouts() -> None:
    model, _, reading = read([5, 0, 6], right=RIGHT)
    with Probe(model) as probe:
        below = knockout.sweep(probe, reading, "shallow_to_deep")
        above = knockout.sweep(probe, reading, "deep_to_shallow")
        window = knockout.sweep(probe, reading, "window", window=2)
        for k in (0, 2, LAYERS):
            single = knockout.attention_knockout(probe, reading, layers=range(k))
            assert below["kl"].values[k] == (near(single.kl) if k else NO_LOSS)
            assert below["right"].values[k] == single.right
            single = knockout.attention_knockout(probe, reading, layers=range(k, LAYERS))
            assert above["kl"].values[k] == (near(single.kl) if k < LAYERS else NO_LOSS)
        single = knockout.attention_knockout(probe, reading, layers=[3, 4])
        assert window["kl"].values[3] == near(single.kl)
        discarded = knockout.discard(probe, reading)
    assert below["kl"].labels("layer") == list(range(LAYERS + 1))
    assert len(window["kl"].values) == LAYERS - 1
    np.testing.assert_array_equal(discarded["kl"].values, above["kl"].values)


def test_token_choices_of_a_knockout() -> None:
    model, inputs, reading = read([5, 0, 6])
    paid = gaze.attention_weights(reading, 2, "text").mean((0, 1))[reading.visual]
    best = reading.visual[paid.topk(4).indices]
    with Probe(model) as probe:
        found = knockout.attention_knockout(probe, reading, layers=[2], tokens="top", share=0.25)
        halves = [
            knockout.attention_knockout(probe, reading, layers=[1, 2], tokens=half, how="zero")  # type: ignore[arg-type]
            for half in ("first_half", "second_half")
        ]
        seeds = [
            knockout.attention_knockout(probe, reading, layers=[1], tokens="random", share=0.5, seed=s)
            for s in (1, 1, 2)
        ]
    expected = oracle_logprobs(model, inputs, reading, edited([2], reading.rows("text"), reading.rows(best), "cut"))
    assert found.kl == near(kl(reading.logprobs, expected))
    for half, rows in zip(halves, (reading.visual[:8], reading.visual[8:]), strict=True):
        weights = edited([1, 2], reading.rows("text"), reading.rows(rows), "zero")
        assert half.kl == near(kl(reading.logprobs, oracle_logprobs(model, inputs, reading, weights)))
    assert seeds[0] == seeds[1] != seeds[2]


def test_shallow_ablations_name_every_condition() -> None:
    model, inputs, reading = read([5, 0, 6])
    with Probe(model) as probe:
        found = knockout.shallow_ablations(probe, reading, 2)
    values = dict(zip(found["kl"].labels("condition"), found["kl"].values, strict=True))
    text, visual = reading.rows("text"), reading.rows("visual")

    def passive(layer: int, logits: torch.Tensor) -> torch.Tensor:
        n = logits.shape[-1]
        merged = edited([0, 1], text, visual, "merge", int(reading.visual[0]))(layer, logits)
        cut = edited([0, 1], visual, visual, "cut")(layer, logits)
        return torch.where(visual[:n, None], cut, merged)

    for name, weights in {
        "zero": edited([0, 1], text, visual, "zero"),
        "merge_50": edited([0, 1], text, visual, "merge", int(reading.visual[8])),
        "layer_0": edited([0], text, visual, "cut"),
        "after_0": edited([1], text, visual, "cut"),
        "visual_to_visual": edited([0, 1], visual, visual, "cut"),
        "passive": passive,
    }.items():
        expected = kl(reading.logprobs, oracle_logprobs(model, inputs, reading, weights))
        assert values[name] == near(expected), name


def test_visual_rows_rest_in_one_layer_unseen_or_seen() -> None:
    model, inputs, reading = read([5, 0, 6])
    layers = model.model.language_model.layers
    for layer in (0, 3, LAYERS - 1):
        for measure, cut in ((knockout.skip, [layer]), (knockout.freeze, [])):
            hook = layers[layer].register_forward_hook(resting(reading.visual))
            weights = edited(cut, reading.rows("all"), reading.rows("visual"), "cut")
            expected = kl(reading.logprobs, oracle_logprobs(model, inputs, reading, weights))
            hook.remove()
            with Probe(model) as probe:
                found = measure(probe, reading, [layer])
            assert found.name == measure.__name__
            # After the last layer no row sees what became of visual rows.
            is_idle = measure is knockout.freeze and layer == LAYERS - 1
            assert found["kl"].values[0] == (NO_LOSS if is_idle else near(expected))


def test_visual_rows_rest_in_a_block_of_layers() -> None:
    model, inputs, reading = read([5, 0, 6])
    with Probe(model) as probe:
        found = knockout.freeze_blocks(probe, reading, [0, 2], 3)
        with pytest.raises(ConfigError, match="must lie within"):
            knockout.freeze_blocks(probe, reading, [LAYERS - 2], 3)
    assert found["kl"].labels("layer") == [0, 2]
    for place, start in enumerate([0, 2]):
        layers = model.model.language_model.layers[start : start + 3]
        hooks = [layer.register_forward_hook(resting(reading.visual)) for layer in layers]
        nothing = edited([], reading.rows("all"), reading.rows("visual"), "cut")
        expected = kl(reading.logprobs, oracle_logprobs(model, inputs, reading, nothing))
        for hook in hooks:
            hook.remove()
        assert found["kl"].values[place] == near(expected)


def test_keeping_tokens_equals_pruned_maps() -> None:
    model, inputs, reading = read([5, 0, 6])
    tokens = torch.tensor([1, 6, 11])
    with Probe(model) as probe:
        outcomes = knockout.keep_only(probe, reading, [(1, tokens), (3, tokens), (LAYERS - 1, tokens)])
        with pytest.raises(ConfigError, match="same number"):
            knockout.keep_only(probe, reading, [(1, tokens), (1, tokens[:2])])
    for layer, outcome in zip((1, 3, LAYERS - 1), outcomes, strict=True):
        kept = [list(range(16)) if at <= layer else tokens.tolist() for at in range(LAYERS + 1)]
        mask = reading.rows("visual")[: reading.prompt_length]
        expected = oracle_logprobs(model, inputs, reading, pruned_edit(mask, kept))
        # Tokens that leave after the last layer have been seen everywhere.
        assert outcome.kl == (near(kl(reading.logprobs, expected)) if layer < LAYERS - 1 else NO_LOSS)


def test_cache_removal_leaves_the_first_token_alone() -> None:
    model, inputs, reading = read([5, 0, 6])
    with Probe(model) as probe:
        found = knockout.remove_from_cache(probe, reading, [(0, 2), (2, LAYERS), (0, LAYERS)])
    for place, layers in enumerate(([0, 1], range(2, LAYERS), range(LAYERS))):
        weights = edited(layers, reading.rows("answer"), reading.rows("visual"), "cut")
        expected = oracle_logprobs(model, inputs, reading, weights)
        torch.testing.assert_close(expected[0], reading.logprobs[0], rtol=0, atol=1e-3)
        assert found["kl"].values[place] == near(kl(reading.logprobs, expected))


def test_influence_per_layer() -> None:
    _, _, reading = read([5, 0, 6])
    found = scores.token_influence(reading, top=3)
    for layer in (0, 4):
        states = reading.layers[layer]
        weights = gaze.attention_weights(reading, layer)[:, 0]
        score = influence_of(weights, states.values, reading.visual)
        np.testing.assert_allclose(found["norm"].values[layer], score.norm.numpy())
        # The output of a head is its weights times its values; two query heads share each value head here.
        output = weights.unflatten(0, (len(states.values), -1)) @ states.values
        np.testing.assert_allclose(found["relative"].values[layer], (score.norm / output.norm()).numpy(), rtol=1e-5)
        assert found["would_filter"].values[layer] == float((score.cosine < 0.995).any())
        assert found["would_keep"].values[layer] == int((score.norm > 0.2).sum())
        assert set(found["top"].values[layer]) == set(score.norm.topk(3).indices.tolist())


def test_scores_compared_at_equal_budget() -> None:
    model, _, reading = read([5, 0, 6], right=RIGHT)
    with Probe(model) as probe:
        found = scores.compare_scores(probe, reading, [1, 3], [2, 99], seed=3)
        order = scores.SCORES["last_row"](reading, 3, 0).argsort(descending=True, stable=True)
        single = knockout.keep_only(probe, reading, [(3, order[:2])])[0]
    names = found["kl"].labels("score")
    assert found["kl"].labels("budget") == [2, 16]
    assert found["kl"].values[names.index("last_row"), 0, 1] == near(single.kl)
    assert (found["kl"].values[:, 1] < 1e-4).all()  # everything kept
    assert (found["overlap"].values[names.index("influence")] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [99]}, "layers must lie in 0 .. 5"),
        ({"layers": [0], "how": "burn"}, "how must be one of"),
        ({"layers": [0], "src": "nobody"}, "no group of rows called 'nobody'"),
        ({"layers": [0], "dst": [999]}, "Rows must lie in"),
        ({"layers": [0], "tokens": "best"}, "tokens must be one of"),
        ({"layers": [0], "share": 2.0}, "share must lie in"),
        ({"layers": [0], "how": "merge", "onto": 999}, "onto"),
    ],
)
def test_settings_without_sense(arguments: dict[str, object], message: str) -> None:
    model, _, reading = read([5, 0, 6])
    with Probe(model) as probe, pytest.raises(ConfigError, match=message):
        knockout.attention_knockout(probe, reading, **arguments)  # type: ignore[arg-type]


def test_results_survive_json_and_stacking() -> None:
    model, _, reading = read([5, 0, 6])
    with Probe(model) as probe:
        found = knockout.sweep(probe, reading, "window", window=3)
    again = Result.from_dict(found.to_dict())
    np.testing.assert_allclose(again["kl"].values, found["kl"].values, atol=1e-6)
    assert np.isnan(again["right"].values).all()
    together = Result.stack([found, again])
    assert together["kl"].dims == ("sample", "layer")
    assert together["kl"].values.shape == (2, LAYERS - 2)
    assert together["kl"].labels("layer") == found["kl"].labels("layer")


def test_labels_that_differ_are_not_the_first_ones() -> None:
    made = [
        Result("made", {"kl": Labelled(np.zeros((2, 1)), ("budget", "score"), "nats", {"budget": own, "score": ["s"]})})
        for own in ([2, 4], [3, 6])
    ]
    together = Result.stack(made)["kl"]
    assert (together.labels("budget"), together.labels("score")) == ([0, 1], ["s"])


def test_a_swap_in_all_layers_is_the_other_picture() -> None:
    model, inputs, reading = read([5, 0, 6])
    other_inputs = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) * 0.5}
    with Probe(model) as probe:
        other = probe.read(other_inputs, max_new_tokens=1)
        whole = knockout.attention_knockout(probe, reading, layers=range(LAYERS), how="swap", other=other)
        own = knockout.attention_knockout(probe, reading, layers=range(LAYERS), how="swap", other=reading)
        windows = knockout.sweep(probe, reading, "window", window=2, how="swap", other=other)["kl"].values
        with pytest.raises(ConfigError, match="swap needs other"):
            knockout.attention_knockout(probe, reading, layers=[0], how="swap")
    seen = oracle_logprobs(model, other_inputs, reading, lambda _, logits: softmax(logits))
    assert whole.kl == near(kl(reading.logprobs, seen))
    assert own.kl == NO_LOSS
    assert len(windows) == LAYERS - 1
    assert 0 < windows.max() != whole.kl
