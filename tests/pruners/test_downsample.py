"""A smaller picture: what the model is given, and that the cut is told against the picture in full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Dinov2Config,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from typer.testing import CliRunner

import visipruner as vp
from tests.cli.tiny_llava import TEMPLATE, save_llava, tokenizer
from tests.families.checkpoints import save
from visipruner.accounting import LayerSpan, PaperModel, dense_macs, visual_attention_cut
from visipruner.chat import ChatPrompt, attached, chat_inputs
from visipruner.cli.app import app
from visipruner.evaluation import evaluate, matched
from visipruner.evaluation.samples import Sample
from visipruner.models import processors
from visipruner.pruners.downsample import Downsample
from visipruner.pruners.registry import make, make_from_spec

PATCH, SIDE, LAYERS = 8, 5, 6
QUESTION = "where is the cat ?"


def _llava_processor(side: int) -> LlavaProcessor:
    pixels = side * PATCH
    images = CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(images, tokenizer(), chat_template=TEMPLATE, **settings)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A tiny LLaVA whose tower interpolates its position embeddings; 5 x 5 visual tokens."""
    folder = save_llava(tmp_path_factory.mktemp("model"), LAYERS)
    config = LlavaForConditionalGeneration.from_pretrained(folder).config
    config.vision_config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE * PATCH, patch_size=PATCH
    )
    torch.manual_seed(1)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model, _llava_processor(SIDE), folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return _family("qwen2-vl", tmp_path_factory.mktemp("qwen"))


def _family(name: str, folder: Path) -> tuple[Any, Any]:
    save(name, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, processors.load(str(folder), model.config.model_type, local_files_only=True)


def _picture(width: int = 160, height: int = 120) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).rotate(30).convert("RGB")


def _read(pruner: vp.Pruner, model: Any, prompt: ChatPrompt) -> tuple[Any, vp.PruneTrace]:
    with attached(model, pruner, prompt) as turn, torch.inference_mode():
        return model(**turn.inputs).logits, turn.trace


def _cuts(trace: vp.PruneTrace, visual: int, length: int, fewer: int) -> tuple[float, float]:
    """FLOPs and visual attention cut by reading `fewer` of `visual` tokens in every layer, by the formulas."""
    shape = trace.shape
    flops = 1 - dense_macs(shape, length - visual + fewer).total / dense_macs(shape, length).total
    model = PaperModel("", shape, visual, length - visual)
    return flops, visual_attention_cut(model, (LayerSpan(shape.num_layers, fewer),))


def test_a_processor_with_one_size(dinov2: tuple[Any, Any, Path]) -> None:
    model, processor, _ = dinov2
    before = processor.image_processor.to_dict()
    prompt = chat_inputs(model, processor, _picture(), QUESTION)
    logits, trace = _read(Downsample(keep_ratio=9 / 25), model, prompt)
    with torch.inference_mode():
        plain = chat_inputs(model, _llava_processor(3), _picture(), QUESTION)
        assert torch.equal(logits, model(**plain).logits)
    assert [len(kept) for kept in trace[0].kept] == [9] * (LAYERS + 1)
    assert trace[0].grids == [(3, 3)]
    assert (trace[0].dense_visual, prompt.num_visual) == (25, 25)
    flops, attention = _cuts(trace, 25, prompt.length, 9)
    assert trace.flops_cut(0) == pytest.approx(flops)
    assert trace.visual_attention_cut(0) == pytest.approx(attention)
    assert processor.image_processor.to_dict() == before
    assert not model.model.language_model.layers[0]._forward_pre_hooks


@pytest.mark.parametrize(("size", "grid", "fewer"), [((160, 120), (3, 4), (2, 2)), ((48, 32), (2, 3), (1, 2))])
def test_a_processor_that_follows_the_picture(
    qwen: tuple[Any, Any], size: tuple[int, int], grid: tuple[int, int], fewer: tuple[int, int]
) -> None:
    """The second is so small that the stock processor would enlarge it again."""
    model, processor = qwen
    processor.image_processor.size = type(processor.image_processor.size)(shortest_edge=32 * 48, longest_edge=48 * 64)
    prompt = chat_inputs(model, processor, _picture(*size), "w5 w6")
    logits, trace = _read(Downsample(keep_ratio=1 / 3), model, prompt)
    rows, columns = fewer
    assert prompt["image_grid_thw"].tolist() == [[1, 2 * grid[0], 2 * grid[1]]]
    assert trace[0].grids == [fewer]
    flops, attention = _cuts(trace, grid[0] * grid[1], prompt.length, rows * columns)
    assert trace.flops_cut(0) == pytest.approx(flops)
    assert trace.visual_attention_cut(0) == pytest.approx(attention)
    shown = _picture(*size).resize((16 * columns, 16 * rows), Image.Resampling.BICUBIC)
    pixels = processor.image_processor(shown, size={"shortest_edge": 256, "longest_edge": 48 * 64}, return_tensors="pt")
    ids = prompt["input_ids"][0].tolist()
    start = ids.index(model.config.image_token_id)
    ids = [*ids[: start + rows * columns], *ids[start + prompt.num_visual :]]
    with torch.inference_mode():
        types = torch.tensor([[int(token == model.config.image_token_id) for token in ids]])
        expected = model(input_ids=torch.tensor([ids]), mm_token_type_ids=types, **pixels).logits
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("name", "size", "counts"),
    [
        ("pixtral", (64, 48), (48, 12)),  # 6 x 8 patches become 3 x 4
        ("mistral3", (64, 64), (16, 4)),
        ("glm4v", (160, 120), (4, 1)),
        ("idefics3", (160, 120), (20, 4)),  # four tiles and the overview; one tile
        ("internvl", (96, 32), (16, 4)),  # three tiles and the overview; one tile
        ("internvl", (32, 32), (4, 4)),  # one tile already
    ],
)
def test_other_processors(name: str, size: tuple[int, int], counts: tuple[int, int], tmp_path: Path) -> None:
    model, processor = _family(name, tmp_path)
    prompt = chat_inputs(model, processor, _picture(*size), "w5 w6")
    _, trace = _read(Downsample(), model, prompt)
    assert (prompt.num_visual, trace[0].num_visual) == counts
    assert (trace.flops_cut(0) > 0) == (counts[0] > counts[1])
    assert sum(trace[0].tokens_per_image) == counts[1]


def test_all_of_the_picture_is_the_plain_model(dinov2: tuple[Any, Any, Path]) -> None:
    model, processor, _ = dinov2
    prompt = chat_inputs(model, processor, _picture(), QUESTION)
    logits, trace = _read(Downsample(keep_ratio=1.0), model, prompt)
    with torch.inference_mode():
        assert torch.equal(logits, model(**prompt).logits)
    assert trace.flops_cut(0) == trace.visual_attention_cut(0) == 0


def test_with_a_method_inside(dinov2: tuple[Any, Any, Path]) -> None:
    model, processor, _ = dinov2
    prompt = chat_inputs(model, processor, _picture(), QUESTION)
    both = make_from_spec("downsample:keep_ratio=0.36+fastv:keep_tokens=4,layer=2")
    _, trace = _read(both, model, prompt)
    assert [len(kept) for kept in trace[0].kept] == [9, 9, 4, 4, 4, 4, 4]
    assert trace[0].dense_visual == 25
    twice = make_from_spec("downsample:keep_ratio=0.36+downsample:keep_ratio=0.25")
    _, trace = _read(twice, model, prompt)
    assert (trace[0].num_visual, trace[0].dense_visual) == (4, 25)  # a quarter of 3 x 3: the nearest square


def test_what_cannot_be(dinov2: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, processor, _ = dinov2
    with pytest.raises(vp.ConfigError, match=r"which attach cannot; use visipruner.chat.attached"):
        vp.attach(model, Downsample())
    with pytest.raises(vp.ConfigError, match="which attach cannot"):
        vp.attach(model, make_from_spec("downsample+visipruner"))
    prompt = chat_inputs(model, processor, _picture(), QUESTION)
    with pytest.raises(vp.ConfigError, match=r"make the prompt with visipruner.chat.chat_inputs"):
        _read(Downsample(), model, dict(prompt))  # type: ignore[arg-type]
    with pytest.raises(vp.ConfigError, match="above 0 and at most at 1"):
        make("downsample", keep_ratio=0)
    clip = LlavaForConditionalGeneration.from_pretrained(save_llava(tmp_path, LAYERS)).eval()
    with pytest.raises(vp.ConfigError, match="take pool where its vision tower knows one size only"):
        _read(Downsample(), clip, chat_inputs(clip, processor, _picture(), QUESTION))
    with vp.attach(clip, vp.NoPruning()):
        pass  # what failed left nothing behind


@pytest.mark.parametrize("axis", ["tokens", "flops", "attention"])
def test_budgets_take_the_nearest_size(dinov2: tuple[Any, Any, Path], axis: str) -> None:
    model, processor, _ = dinov2
    prompt = chat_inputs(model, processor, _picture(), QUESTION)
    shares = {}
    for side in range(1, SIDE + 1):
        _, trace = _read(Downsample(keep_ratio=side**2 / 25), model, prompt)
        cut = {"tokens": 1 - side**2 / 25, "flops": trace.flops_cut(0), "attention": trace.visual_attention_cut(0)}
        shares[side] = cut[axis]
    for target in (0.3, 0.7):
        nearest = min(shares, key=lambda side: abs(shares[side] - target))
        found = matched(model, [prompt], Downsample(), axis, target, tolerance=0.3)
        assert _read(found, model, prompt)[1][0].num_visual == nearest**2
    with pytest.raises(vp.ConfigError, match="nearest: off by"):
        matched(model, [prompt], Downsample(), axis, (shares[1] + shares[2]) / 2, tolerance=0.01)


def test_eval_and_run_show_less(dinov2: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, processor, folder = dinov2
    path = tmp_path / "photo.png"
    _picture().save(path)
    [record] = evaluate(
        model, processor, [Sample(path, QUESTION, ("cat",))], {"small": Downsample(keep_ratio=0.36)}, max_new_tokens=2
    )
    given = record["given"]
    assert given["dense"]["tokens_per_layer"] == [25] * LAYERS
    assert given["small"]["tokens_per_layer"] == [9] * LAYERS
    assert given["small"]["flops_cut"] > 0.3

    options = ["--method", "downsample", "--set", "keep_ratio=0.36", "--max-new-tokens", "2", "--out", tmp_path / "out"]
    arguments = ["run", path, "-q", QUESTION, "--model", folder, *options, "--compare", "--repeats", 1, "--json"]
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == 0, result.stderr
    [answer] = json.loads(result.stdout)["answers"]
    assert (answer["visual_tokens"], answer["kept_tokens"]) == (25, 9)
    assert answer["answer"] == given["small"]["answer"]
    assert answer["dense"]["text"] == given["dense"]["answer"]
    assert answer["flops_cut"] == pytest.approx(given["small"]["flops_cut"], abs=1e-6)
    assert (tmp_path / "out" / answer["overlay"]).exists()
