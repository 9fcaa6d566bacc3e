"""Aligned models against the stock model, against themselves in other surroundings, and through a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import visipruner as vp
from tests.engine.cases import generate
from tests.models import GRID, LAYERS, llava_inputs, llava_model
from tests.oracle import frozen
from visipruner import ConfigError, VisiPrunerError
from visipruner.adapters.llava import ADAPTER
from visipruner.errors import UnsupportedModelError
from visipruner.training import AlignedLlavaForConditionalGeneration, align

VISUAL = GRID * GRID
# (settings, visual rows in each layer)
STAGES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "late": ({"inject_layer": 2}, [0, 0, 16, 16, 16, 16]),
    "exit": ({"exit_layer": 4}, [16, 16, 16, 16, 0, 0]),
    "both": ({"inject_layer": 2, "exit_layer": 5}, [0, 0, 16, 16, 16, 0]),
    "frozen": ({"frozen_layers": (1, 3), "exit_layer": 5}, [16, 16, 16, 16, 16, 0]),
    "late, frozen, sparse": (
        {"inject_layer": 1, "frozen_layers": (2,), "keep_tokens": 3, "filter_layer": 3, "exit_layer": 5},
        [0, 16, 16, 16, 3, 0],
    ),
    "sparse": ({"inject_layer": 1, "keep_tokens": 3, "filter_layer": 2, "exit_layer": 5}, [0, 16, 16, 3, 3, 0]),
}


def aligned(attn: str = "sdpa", **settings: Any) -> Any:
    return align(llava_model(attn=attn), **settings)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_late_without_training_is_the_aligned_model(attn: str) -> None:
    """`VisiPruner(shallow_visual="late")` in a batch, decoding included."""
    inputs = llava_inputs([[4, 0, 6], [3, 0, 2]])
    settings = {"filter_layer": 3, "keep_tokens": 3}
    late = vp.VisiPruner(stages=("shallow", "middle"), shallow_end=2, shallow_visual="late", **settings)
    stock = llava_model(attn=attn)
    with vp.attach(stock, late) as handle:
        got = generate(stock, 4, **inputs)
        assert [len(kept) for kept in handle.trace[0].kept[:-1]] == [0, 0, 16, 16, 3, 3]
        assert handle.trace[0].key_lengths[:2] == [10, 10]
    wanted = generate(aligned(attn, inject_layer=2, **settings), 4, **inputs)
    assert torch.equal(got.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(wanted.logits), atol=1e-5, rtol=1e-4)


def with_labels(inputs: dict[str, Any], learnt: int = 3) -> dict[str, Any]:
    """The last rows of every prompt are the answer (right padding only)."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask, ids in zip(labels, inputs["attention_mask"], inputs["input_ids"], strict=True):
        last = int(mask.sum())
        row[last - learnt : last] = ids[last - learnt : last]
    return {**inputs, "labels": labels}


def gradients(model: Any) -> dict[str, Any]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"exit_layer": LAYERS}, {"keep_tokens": 2 * VISUAL, "filter_layer": 3}])
def test_all_layers_and_tokens_are_the_stock_model_forward_and_backward(attn: str, settings: dict[str, Any]) -> None:
    inputs = with_labels(llava_inputs([[4, 0, 6], [3, 0, 2, 0, 4]], "right"))
    stock = llava_model(attn=attn)
    wanted = stock(**inputs)
    wanted.loss.backward()
    model = aligned(attn, inject_layer=0, **settings)
    got = model(**inputs)
    got.loss.backward()
    assert torch.equal(got.logits, wanted.logits)
    expected = gradients(stock)
    assert expected.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("training", [False, True])
def test_visual_rows_run_only_in_their_layers(stage: str, training: bool) -> None:
    settings, wanted = STAGES[stage]
    model = aligned(**settings).train(training)
    model.visual_gates.progress = 1.0
    model(**with_labels(llava_inputs([[4, 0, 6]], "right")))
    example = model.trace[0]
    assert [len(kept) for kept in example.kept[:-1]] == wanted
    frozen = settings.get("frozen_layers", ())
    ran = [0 if layer in frozen else rows for layer, rows in enumerate(wanted)]
    assert [work.rows for work in example.work] == [10 + rows for rows in ran]
    assert [work.attention_rows for work in example.work] == [10 + rows for rows in ran]
    assert [work.key_rows for work in example.work] == [10 + rows for rows in wanted]


def test_visual_rows_get_no_gradient_outside_their_layers() -> None:
    """Every layer's gradient is that of the text rows alone but in the layers with visual rows, and the features that
    come in at layer k have the gradient of layers k.. alone."""
    model = aligned(inject_layer=2, exit_layer=4)
    lengths: dict[int, int] = {}
    for layer, module in enumerate(model.model.language_model.layers):

        def note(module: Any, into: Any, out: Any, layer: int = layer) -> None:
            lengths[layer] = out[0].shape[1]

        module.mlp.register_full_backward_hook(note)
    inputs = with_labels(llava_inputs([[4, 0, 6]], "right"))
    model(**inputs).loss.backward()
    assert [lengths[layer] for layer in range(LAYERS)] == [10, 10, 26, 26, 10, 10]

    # With the layers 2 and 3 unable to hand anything on from visual rows, the projector learns nothing.
    cut = aligned(inject_layer=2, exit_layer=4)
    with torch.no_grad():
        for layer in (2, 3):
            cut.model.language_model.layers[layer].self_attn.v_proj.weight.zero_()
    cut(**inputs).loss.backward()
    projector = [p.grad for p in cut.model.multi_modal_projector.parameters()]
    assert all(grad is None or not grad.abs().max() for grad in projector)
    assert any(p.grad.abs().max() > 0 for p in model.model.multi_modal_projector.parameters())


def test_late_rows_come_straight_from_the_projector_at_their_old_positions() -> None:
    """Entering at layer k is a full-length model whose visual rows stand still and unseen in the layers before."""
    inputs = llava_inputs([[4, 0, 6]])
    model = aligned(inject_layer=2)
    with torch.no_grad():
        got = model(**inputs).logits
    stock = llava_model()
    visual = (inputs["input_ids"][0] == stock.config.image_token_id).nonzero().flatten()
    mask = torch.ones(26, 26, dtype=torch.bool).tril()[None, None]
    unseen = mask.clone()
    unseen[..., visual] = False
    unseen[..., visual, visual] = True

    def before(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": unseen if layer < 2 else mask}

        return hook

    def stand_still(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        output = output.clone()
        output[:, visual] = args[0][:, visual]
        return output

    for layer, module in enumerate(stock.model.language_model.layers):
        module.register_forward_pre_hook(before(layer), with_kwargs=True)
        if layer < 2:
            module.register_forward_hook(stand_still, with_kwargs=True)
    with torch.no_grad():
        wanted = stock(**inputs).logits
    text = inputs["input_ids"][0] != stock.config.image_token_id
    torch.testing.assert_close(got[0, text], wanted[0, text], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_frozen_layers_are_a_stock_model_whose_visual_rows_stand_still(attn: str) -> None:
    """Forward and gradients, in double precision but for the softmax of transformers' eager attention."""
    close = {"rtol": 1e-9, "atol": 1e-12} if attn == "sdpa" else {"rtol": 1e-4, "atol": 1e-5}
    inputs = with_labels(llava_inputs([[4, 0, 6]], "right"))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    model = aligned(attn, frozen_layers=(1, 3)).double().train()
    stock = llava_model(attn=attn).double().train()
    is_visual = inputs["input_ids"][0] == stock.config.image_token_id
    with frozen(stock.model.language_model.layers, is_visual, (1, 3)):
        wanted = stock(**inputs)
        wanted.loss.backward()
    got = model(**inputs)
    got.loss.backward()
    torch.testing.assert_close(got.logits[0, ~is_visual], wanted.logits[0, ~is_visual], **close)
    expected = gradients(stock)
    assert expected.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], **close, msg=name)


@pytest.mark.parametrize("rows", ["attention", "mlp"])
def test_a_frozen_layer_gives_its_modules_text_rows_only(rows: str) -> None:
    model = aligned(frozen_layers=(1,))
    layer, seen = model.model.language_model.layers[1], []
    for part in [layer.self_attn.q_proj, layer.self_attn.o_proj] if rows == "attention" else [layer.mlp]:
        part.register_forward_hook(lambda _module, _args, output: seen.append(output.shape[1]))
    with torch.no_grad():
        model(**llava_inputs([[4, 0, 6]]))
    # The keys' pass through the layer makes 16 queries out of none.
    assert sorted(seen) == ([10, 10, 16] if rows == "attention" else [10])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_padding_gives_what_its_examples_give_alone(stage: str, side: str) -> None:
    model = aligned(**STAGES[stage][0])
    layout = [[4, 0, 6], [3, 0, 2, 0, 4], [7]]
    both = llava_inputs(layout, side)
    with torch.no_grad():
        together = model(**both).logits
    images = 0
    for index, parts in enumerate(layout):
        ids = both["input_ids"][index][both["attention_mask"][index].bool()][None]
        mine = parts.count(0)
        alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if mine:
            alone["pixel_values"] = both["pixel_values"][images : images + mine]
        images += mine
        with torch.no_grad():
            wanted = model(**alone).logits[0]
        got = together[index][both["attention_mask"][index].bool()]
        text = ids[0] != model.config.image_token_id
        torch.testing.assert_close(got[text], wanted[text], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_cached_generation_is_repeated_full_forwards(stage: str) -> None:
    model = aligned(**STAGES[stage][0])
    inputs = llava_inputs([[4, 0, 6], [3, 0, 2, 0, 4]])
    options = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    cached = model.generate(**inputs, **options)
    plain = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.scores), torch.stack(plain.scores), rtol=1e-4, atol=1e-4)


def test_beams_share_their_prompt() -> None:
    model = aligned(**STAGES["sparse"][0])
    inputs = llava_inputs([[4, 0, 6], [3, 0, 2, 0, 4]])
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"prefill_chunk_size": 8}, "leave out prefill_chunk_size"),
        ({"prompt_lookup_num_tokens": 2}, "Assisted decoding does not work"),
    ],
)
def test_ways_to_generate_that_would_choose_by_another_row_are_refused(use: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        aligned(**STAGES["sparse"][0]).generate(**llava_inputs([[4, 0, 12]]), max_new_tokens=2, do_sample=False, **use)


def test_a_static_cache_answers_as_the_default_one() -> None:
    model, inputs = aligned(**STAGES["sparse"][0]), llava_inputs([[4, 0, 6], [3, 0, 2, 0, 4]])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **options), model.generate(**inputs, **options, cache_implementation="static")
    )


def test_a_copy_of_the_module_says_why_it_cannot_run() -> None:
    model = copy.deepcopy(aligned(inject_layer=2))
    with pytest.raises(UnsupportedModelError, match="is a copy of one"):
        model(**llava_inputs([[4, 0, 6]]))


def test_a_copy_of_the_module_takes_nothing_off_the_original() -> None:
    model, inputs = aligned(inject_layer=2), llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        before = model(**inputs).logits
        copied = copy.deepcopy(model)
        copied.stage()
        copied.model.language_model.layers[0].mlp.down_proj.weight.zero_()
        assert torch.equal(model(**inputs).logits, before)
        assert not torch.equal(copied(**inputs).logits, before)


def test_the_attention_implementation_can_be_set() -> None:
    model, inputs = aligned(**STAGES["sparse"][0]), llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        before = model(**inputs).logits
        kept = model.trace.kept
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**inputs).logits, before)
        assert model.trace.kept == kept
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**inputs).logits, before)


def test_an_attention_implementation_that_cannot_be_aligned_is_refused_until_another_is_set() -> None:
    AttentionInterface.register("unmasked", sdpa_attention_forward)
    model, inputs = aligned(**STAGES["sparse"][0]), llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        before = model(**inputs).logits
        with pytest.raises(UnsupportedModelError, match="'unmasked' cannot be attached to"):
            model.set_attn_implementation("unmasked")
        with pytest.raises(UnsupportedModelError, match=r"call set_attn_implementation\('sdpa'\)"):
            model(**inputs)
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**inputs).logits, before)


def test_an_attention_implementation_that_transformers_refuses_changes_nothing() -> None:
    model, inputs = aligned(**STAGES["sparse"][0]), llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        before = model(**inputs).logits
        with pytest.raises(ValueError, match="not supported"):
            model.set_attn_implementation("no such function")
        assert torch.equal(model(**inputs).logits, before)
        assert [len(kept) for kept in model.trace[0].kept[:-1]] == STAGES["sparse"][1]


@pytest.mark.parametrize("stage", [*STAGES, "learnt"])
def test_gradient_checkpointing_changes_no_gradient(stage: str) -> None:
    settings = (
        {"inject_layer": "learnt", "exit_layer": "learnt", "keep_tokens": 3, "filter_layer": 3}
        if stage == "learnt"
        else STAGES[stage][0]
    )
    inputs = with_labels(llava_inputs([[4, 0, 6], [3, 0, 2, 0, 4]], "right"))
    model = aligned(**settings).train()
    model.model.multi_modal_projector.requires_grad_(True)
    model(**inputs).loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    with pytest.raises(ConfigError, match="use_reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    model.activation_checkpointing_enable()
    model(**inputs).loss.backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stage", ["both", "frozen", "sparse", "learnt"])
def test_a_checkpoint_comes_back_through_the_auto_class(stage: str, tmp_path: Any) -> None:
    settings = {"inject_layer": "learnt", "exit_layer": "learnt"} if stage == "learnt" else STAGES[stage][0]
    model = aligned(**settings)
    if stage == "learnt":
        with torch.no_grad():
            model.visual_gates.start.logits[2] = 3.0
            model.visual_gates.exit.logits[3] = 3.0
    inputs = llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        wanted = model(**inputs).logits
    model.save_pretrained(tmp_path)
    back = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(back) is AlignedLlavaForConditionalGeneration
    assert back.alignment == model.alignment
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, wanted)
    assert "visipruner_sdpa" not in (tmp_path / "config.json").read_text()


def test_weights_are_shared_and_layers_stay_stock() -> None:
    stock = llava_model()
    names = set(stock.state_dict())
    model = align(stock, inject_layer=2)
    assert set(model.state_dict()) == names
    assert model.model is stock.model


def test_contradictions_are_refused() -> None:
    for settings, message in (
        ({"inject_layer": 3, "exit_layer": 3}, "must come after inject_layer"),
        ({"inject_layer": LAYERS}, "is not in a model of 6 layers"),
        ({"exit_layer": LAYERS + 1}, "is not in a model of 6 layers"),
        ({"keep_tokens": 4, "inject_layer": 3, "filter_layer": 2}, "must lie between"),
        ({"inject_layer": "soon"}, "must be a number or learnt"),
        ({"filter_layer": 2}, "go together"),
        ({"frozen_layers": (1,), "inject_layer": 2}, "must lie between"),
        ({"frozen_layers": (4,), "exit_layer": 4}, "must lie between"),
        ({"frozen_layers": (3,), "keep_tokens": 4, "filter_layer": 2}, "must lie between"),
        ({"frozen_layers": (LAYERS,)}, "is not in a model of 6 layers"),
        ({"frozen_layers": (2,), "inject_layer": "learnt"}, "need fixed layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            aligned(**settings)
    with pytest.raises(UnsupportedModelError, match="cannot be aligned"):
        align(aligned())
    model = aligned()
    with pytest.raises(VisiPrunerError, match="attached already"):
        vp.attach(model, vp.VisiPruner(), adapter=ADAPTER)


def test_settings_survive_a_copy_of_the_config() -> None:
    model = aligned(inject_layer=1, exit_layer=4)
    again = AlignedLlavaForConditionalGeneration(copy.deepcopy(model.config))
    again.load_state_dict(model.state_dict())
    inputs = llava_inputs([[4, 0, 6]])
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)
