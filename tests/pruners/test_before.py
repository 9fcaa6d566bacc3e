"""Methods that choose before the language model, against loops written from their papers: over the embeddings that
enter it, and over whole attention maps of an eager vision tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

import visipruner as vp
from tests.cli.tiny_llava import WORDS, tokenizer
from tests.families.zoo import built
from tests.families.zoo import inputs as zoo_inputs
from tests.families.zoo import prompt as zoo_prompt
from tests.models import IMAGE_TOKEN, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import kept_by, largest
from visipruner.adapters.towers import Encoded, squares
from visipruner.contract.entry_view import Image
from visipruner.pruners.cdpruner import CDPruner, greedy_map, without_instruction
from visipruner.pruners.divprune import DivPrune, most_diverse
from visipruner.pruners.fastervlm import FasterVLM
from visipruner.pruners.hiprune import HiPrune, neighbours
from visipruner.pruners.pool import Pool
from visipruner.pruners.prumerge import PruMerge
from visipruner.pruners.scope import SCOPE, most_covering
from visipruner.pruners.visionzip import VisionZip
from visipruner.pruners.vispruner import VisPruner, thinned

TOWERS = ["clip", "siglip", "dinov2"]
LAYOUT = [[3, 0, 9], [5, 0, 2, 0, 4]]  # one image, then two
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _run(model: Any, pruner: vp.Pruner, inputs: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """The trace, and the hidden states that entered layer 0."""
    entered: list[Tensor] = []
    hook = model.model.language_model.layers[0].input_layernorm.register_forward_pre_hook(
        lambda _module, args: entered.append(args[0])
    )
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model(**inputs)
    hook.remove()
    return handle.trace, entered[0]


def _encoded(model: Any, pixels: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Per tower layer: attention maps `[images, heads, m, m]`, outputs `[images, m, d]`; and projected embeddings."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
        embeddings = model.model.get_image_features(pixel_values=pixels).pooler_output
    model.set_attn_implementation("sdpa")
    return list(output.attentions), list(output.hidden_states[1:]), torch.stack(list(embeddings))


def _salience(maps: Tensor, image: int) -> list[float]:
    """Attention of the class token, or received where there is none, per patch."""
    heads, m = maps.shape[1], maps.shape[-1]
    prefix = m - 16
    scores = []
    for patch in range(prefix, m):
        rows = [0] if prefix else range(m)
        terms = [float(maps[image, head, row, patch]) for head in range(heads) for row in rows]
        scores.append(sum(terms) / len(terms))
    return scores


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", TOWERS)
def test_fastervlm(tower: str, attn: str) -> None:
    model = llava_model(tower, attn=attn)
    inputs = llava_inputs(LAYOUT)
    trace, _ = _run(model, FasterVLM(keep_tokens=6), inputs)
    maps, _, _ = _encoded(model, inputs["pixel_values"])
    for layer in (-2, -1):
        trace, _ = _run(model, FasterVLM(keep_tokens=6, vision_layer=layer), inputs)
        kept = [trace[0].kept[0], trace[1].kept[0]]
        assert kept[0] == largest(_salience(maps[layer], 0), 6)
        second, third = (largest(_salience(maps[layer], image), 3) for image in (1, 2))
        assert kept[1] == second + [16 + place for place in third]


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("clip", "full"), ("siglip", "full")])
def test_a_prompt_that_ends_with_its_image(tower: str, strategy: str) -> None:
    """Its last row is no visual token, and yet every other token is the patch (or class token) it always is."""
    model = llava_model(tower)
    model.config.vision_feature_select_strategy = strategy
    pixels = llava_inputs([[4, 0]])["pixel_values"]
    maps, _, embeddings = _encoded(model, pixels)
    ids = torch.tensor([[5, 6, 7, *[IMAGE_TOKEN] * embeddings.shape[1]]])
    trace, _ = _run(model, FasterVLM(keep_tokens=5, vision_layer=-1), {"input_ids": ids, "pixel_values": pixels})
    received = maps[-1][0].mean((0, 1)).tolist()
    scores = received if strategy == "full" else _salience(maps[-1], 0)
    assert trace[0].kept[0] == largest(scores[:-1], 5)
    assert largest(scores[:-1], 5) != largest(scores[1:], 5), "tokens off by one must show"


def _peaked(model: Any) -> Any:
    """Attention of a random tower is all alike or one-hot; whoever goes by the order of all patches needs between."""
    for name, weight in model.model.vision_tower.named_parameters():
        if name.endswith(("q_proj.weight", "query.weight")):
            weight.data.mul_(0.3 / weight.std())
    return model


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("ratio", [0.5, 0.0, 0.2])
@pytest.mark.parametrize("tower", TOWERS)
def test_vispruner(tower: str, ratio: float) -> None:
    model = _peaked(llava_model(tower))
    inputs = llava_inputs([[3, 0, 4]])
    trace, _ = _run(model, VisPruner(keep_tokens=5, important_ratio=ratio), inputs)
    maps, outputs, _ = _encoded(model, inputs["pixel_values"])
    important = largest(_salience(maps[-2], 0), int(5 * ratio))
    features = outputs[-2][0, -16:]
    salience = _salience(maps[-2], 0)
    left = sorted((j for j in range(16) if j not in important), key=lambda j: -salience[j])
    while len(left) > 5 - len(important):
        first, second = left[::2], left[1::2]
        closest = {i: max(_cosine(features[i], features[j]) for j in second) for i in first}
        drop = min(8, len(left) - (5 - len(important)))
        left = sorted(first, key=lambda i: -closest[i])[drop:] + second
    assert trace[0].kept[0] == sorted(important + left)


def test_thinning_meets_any_count() -> None:
    features = torch.randn(45, 8)
    for count in range(46):
        assert len(set(thinned(features, count).tolist())) == count


@pytest.mark.parametrize("tower", TOWERS)
def test_visionzip(tower: str) -> None:
    model = llava_model(tower)
    inputs = llava_inputs([[3, 0, 4]])
    keys: list[Tensor] = []
    layer = model.model.vision_tower.encoder
    layer = (layer.layers if hasattr(layer, "layers") else layer.layer)[-2]
    projection = (layer.self_attn if hasattr(layer, "self_attn") else layer.attention).k_proj
    hook = projection.register_forward_hook(lambda _module, _args, output: keys.append(output[0]))
    trace, entered = _run(model, VisionZip(keep_tokens=8, contextual_ratio=0.25), inputs)
    hook.remove()
    maps, _, embeddings = _encoded(model, inputs["pixel_values"])
    dominant = largest(_salience(maps[-2], 0), 6)
    rest = [j for j in range(16) if j not in dominant]
    targets = [rest[0], rest[5]]  # ten others, two targets: every fifth
    mean_keys = keys[0][-16:].unflatten(-1, (2, -1)).mean(1)
    members: dict[int, list[int]] = {target: [target] for target in targets}
    for j in rest:
        if j not in targets:
            members[max(targets, key=lambda t: _cosine(mean_keys[j], mean_keys[t]))].append(j)
    assert trace[0].kept[0] == sorted(dominant + targets)
    assert trace[0].merged == [0]
    for place, token in enumerate(trace[0].kept[0]):
        expected = embeddings[0, members.get(token, [token])].mean(0)
        torch.testing.assert_close(entered[0, 3 + place], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", TOWERS)
def test_hiprune(tower: str) -> None:
    model = llava_model(tower)
    inputs = llava_inputs([[3, 0, 4]])
    trace, _ = _run(model, HiPrune(keep_tokens=10, alpha=0.5, object_layer=0, deep_layer=1), inputs)
    maps, _, _ = _encoded(model, inputs["pixel_values"])
    received = [part[0].mean(0).mean(0)[-16:].tolist() for part in maps]
    anchor = largest(received[0], 1)[0]
    first = sorted({anchor, *(min(max(anchor + step, 0), 15) for step in (-1, 1, -4, 4))})
    others = [j for j in range(16) if j not in first]
    registers = [others[i] for i in largest([received[1][j] for j in others], 10 - len(first))]
    assert trace[0].kept[0] == sorted(first + registers)


@pytest.mark.parametrize("alpha", [1.0, 0.0])
@pytest.mark.parametrize("tower", TOWERS)
def test_scope(tower: str, alpha: float) -> None:
    model = _peaked(llava_model(tower))
    inputs = llava_inputs([[3, 0, 4]])
    trace, _ = _run(model, SCOPE(keep_tokens=6, alpha=alpha), inputs)
    maps, outputs, _ = _encoded(model, inputs["pixel_values"])
    features, worth = outputs[-2][0, -16:], [part**alpha for part in _salience(maps[-2], 0)]
    chosen: list[int] = []
    covered = [0.0] * 16
    while len(chosen) < 6:
        gains = {
            j: worth[j] * sum(max(0.0, _cosine(features[i], features[j]) - covered[i]) for i in range(16))
            for j in range(16)
            if j not in chosen
        }
        chosen.append(max(gains, key=lambda j: gains[j]))
        covered = [max(covered[i], _cosine(features[i], features[chosen[-1]])) for i in range(16)]
    assert trace[0].kept[0] == sorted(chosen)


def test_scope_chooses_what_is_no_number_last() -> None:
    features, weights = torch.randn(9, 8), torch.rand(9)
    features[[2, 5]], weights[7] = float("nan"), float("nan")
    order = most_covering(features, weights, 9).tolist()
    assert sorted(order) == list(range(9))
    assert set(order[6:]) == {2, 5, 7}


def _one_head(model: Any, inputs: dict[str, Tensor]) -> tuple[list[float], Tensor]:
    """Attention of the last layer's class token (received where there is none), all heads as one, and the keys."""
    held: dict[str, Tensor] = {}
    layers = model.model.vision_tower.encoder
    layer = (layers.layers if hasattr(layers, "layers") else layers.layer)[-1]
    attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
    for name in ("q_proj", "k_proj"):
        hook = getattr(attention, name).register_forward_hook(
            lambda _module, _args, output, name=name: held.update({name: output[0]})
        )
        held[f"{name} hook"] = hook
    with torch.no_grad():
        model(**inputs)
    for name in ("q_proj", "k_proj"):
        held[f"{name} hook"].remove()  # type: ignore[operator]
    queries, keys = held["q_proj"].double(), held["k_proj"].double()
    weights = (queries @ keys.T / queries.shape[-1] ** 0.5).softmax(-1)
    prefix = len(keys) - 16
    return (weights[0, prefix:] if prefix else weights.mean(0)).tolist(), keys[prefix:]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("budget", [None, 7])
@pytest.mark.parametrize("tower", TOWERS)
def test_prumerge(tower: str, budget: int | None, plus: bool) -> None:
    model = _peaked(llava_model(tower))
    inputs = llava_inputs([[3, 0, 4]], seed=3)
    trace, entered = _run(model, PruMerge(keep_tokens=budget, plus=plus, neighbours=4), inputs)
    attention, keys = _one_head(model, inputs)
    _, _, embeddings = _encoded(model, inputs["pixel_values"])
    low, high = np.percentile(attention, 25), np.percentile(attention, 75)
    outliers = max(1, sum(value > high + 1.5 * (high - low) for value in attention))
    if budget is None:
        even = range(0, 15, max(1, 16 // outliers // 3)) if plus else ()
        kept = sorted({*largest(attention, outliers), *even})
    else:
        first = largest(attention, 3 if plus else 6)
        rest = [j for j in range(16) if j not in first]
        kept = sorted([*first, *(rest[(2 * i + 1) * 13 // 6] for i in range(3) if plus)])
    gone = [j for j in range(16) if j not in kept]
    expected = {}
    for token in kept:
        by_key = sorted((j for j in range(16) if j != token), key=lambda j: -_cosine(keys[token], keys[j]))
        expected[token] = embeddings[0, token] + sum(attention[j] * embeddings[0, j] for j in by_key[:4])
    expected[gone[-1]] = sum(attention[j] * embeddings[0, j] for j in gone)
    assert trace[0].kept[0] == sorted(expected)
    for place, token in enumerate(trace[0].kept[0]):
        torch.testing.assert_close(entered[0, 3 + place], expected[token], atol=1e-5, rtol=1e-4)


def test_neighbours_follow_the_reading_order() -> None:
    image = Image(torch.arange(12), torch.arange(12), (3, 4), 12)
    assert sorted(neighbours(torch.tensor([4]), image).tolist()) == [0, 3, 5, 8]
    assert sorted(neighbours(torch.tensor([10]), image).tolist()) == [6, 9, 11, 11]
    assert sorted(neighbours(torch.tensor([11]), image).tolist()) == [7, 10, 11, 11]
    row = Image(torch.arange(5), torch.arange(5), None, 5)
    assert sorted(neighbours(torch.tensor([0]), row).tolist()) == [0, 1]


def test_hiprunes_published_layer_is_the_ninth_of_24() -> None:
    assert HiPrune().vision_layers(24) == (8, -2)


def test_divprune() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    visual = embeds[0][mask[0]]
    distance = [[1 - _cosine(a, b) for b in visual] for a in visual]
    nearest = [min(d for j, d in enumerate(row) if j != i) for i, row in enumerate(distance)]
    chosen = [nearest.index(max(nearest))]
    while len(chosen) < 7:
        rest = [j for j in range(16) if j not in chosen]
        chosen.append(max(rest, key=lambda j: min(distance[j][i] for i in chosen)))
    assert kept_by(model, DivPrune(keep_tokens=7), embeds, mask)[0] == sorted(chosen)


def test_equal_embeddings_are_not_chosen_twice() -> None:
    same = torch.ones(6, 4)
    assert len(set(most_diverse([same], [4])[0].tolist())) == 4
    assert len(set(greedy_map([same], [4])[0].tolist())) == 4


def test_of_equal_embeddings_the_earliest_is_chosen() -> None:
    """Copies differ by rounding, in another batch or under another attention implementation in another way."""
    generator = torch.Generator().manual_seed(0)
    few = torch.nn.functional.normalize(torch.randn(8, 64, generator=generator), dim=-1)
    for _ in range(8):
        copies = torch.cat([few, few, few]) + 3e-8 * torch.randn(24, 64, generator=generator)
        found, exact = most_diverse([copies, few.repeat(3, 1)], [8, 8])
        assert found.tolist() == exact.tolist()
        assert len({place % 8 for place in found.tolist()}) == 8


@pytest.mark.parametrize("choose", [most_diverse, greedy_map])
def test_greedy_steps_for_a_batch_choose_what_they_choose_alone(choose: Any) -> None:
    """Unlike numbers of tokens and of choices, copies among them, and one embedding that is no number."""
    generator = torch.Generator().manual_seed(0)
    few = [torch.randn(n, 32, generator=generator) for n in (40, 7, 300, 12, 1)]
    few[1][3] = float("nan")
    few[3][6:] = few[3][:6]
    counts = [12, 7, 33, 8, 1]
    together = choose(few, counts)
    for embeddings, count, found in zip(few, counts, together, strict=True):
        assert found.tolist() == choose([embeddings], [count])[0].tolist()
        assert len(set(found.tolist())) == count


def _determinant(kernel: Tensor, chosen: list[int]) -> float:
    return float(torch.det(kernel[chosen][:, chosen]))


@pytest.mark.parametrize("relevance", ["words", "none"])
def test_cdpruner(relevance: Any) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    visual = torch.nn.functional.normalize(embeds[0][mask[0]].double(), dim=-1)
    words = torch.nn.functional.normalize(embeds[0][21:].double().mean(0), dim=0)
    likeness = [float(v @ words) for v in visual]
    low, high = min(likeness), max(likeness)
    r = [1.0 if relevance == "none" else (value - low) / (high - low) for value in likeness]
    kernel = torch.tensor([[r[i] * r[j] * float(visual[i] @ visual[j]) for j in range(16)] for i in range(16)]).double()
    chosen: list[int] = []
    for _ in range(6):
        rest = [j for j in range(16) if j not in chosen]
        chosen.append(max(rest, key=lambda j: round(_determinant(kernel, [*chosen, j]), 12)))
    kept = kept_by(model, CDPruner(keep_tokens=6, relevance=relevance), embeds, mask)
    assert kept[0] == sorted(chosen)


def test_cdpruner_says_what_it_misses() -> None:
    with pytest.raises(vp.ConfigError, match="text_encoder=FOLDER"):
        vp.attach(llava_model(), CDPruner())
    with pytest.raises(vp.ConfigError, match="what is asked"):
        _run(llava_model(), CDPruner(text_encoder="there"), llava_inputs([[3, 0, 4]]))
    with pytest.raises(vp.UnsupportedModelError, match="vision tower"):
        vp.attach(text_model("llama"), CDPruner(text_encoder="there"), prompt()[1])


LONGEST = 6  # tokens that the tiny CLIP reads at once, its own two among them


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights whose tower has the width of `llava_model`'s."""
    torch.manual_seed(5)
    text = {**_TINY, "vocab_size": len(WORDS), "max_position_embeddings": LONGEST, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**_TINY, "image_size": 32, "patch_size": 8}, projection_dim=24)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", [[3, 0, 4], [3, 0, 2, 0, 4]])
def test_cdpruner_with_the_text_side_of_clip(clip_folder: Path, layout: list[int]) -> None:
    """The question with its two tokens cut to what CLIP can read, without what benchmarks add; the patches through what
    CLIP does after its last layer."""
    model, inputs = llava_model(), llava_inputs([layout])
    question = "where is the red cat ? left of dog"
    asked = f"{question}\nAnswer the question using a single word or phrase."
    pruner = CDPruner(keep_tokens=6, text_encoder=str(clip_folder), question=asked)
    trace, _ = _run(model, pruner, inputs)
    clip = CLIPModel.from_pretrained(clip_folder)
    _, outputs, embeddings = _encoded(model, inputs["pixel_values"])
    patches = outputs[-2][:, -16:].flatten(0, 1)
    ids = [WORDS.index(word) for word in question.split()]
    raw = [1, *ids, 2]
    parts = [raw[start : start + LONGEST] for start in range(0, len(raw), LONGEST)]
    assert [len(part) for part in parts] == [LONGEST, LONGEST - 1]
    likeness = []
    with torch.no_grad():
        words = [clip.get_text_features(torch.tensor([part])).pooler_output[0] for part in parts]
        for patch in patches:
            seen = clip.visual_projection(clip.vision_model.post_layernorm(patch))
            likeness.append(sum(_cosine(seen, word) for word in words) / len(words))
    low, high = min(-one for one in likeness), max(-one for one in likeness)
    r = [(-one - low) / (high - low) for one in likeness]
    visual = torch.nn.functional.normalize(embeddings.flatten(0, 1).double(), dim=-1)
    kernel = torch.tensor(r).double()[:, None] * (visual @ visual.T) * torch.tensor(r).double()[None]
    chosen: list[int] = []
    for _ in range(6):
        rest = [j for j in range(len(r)) if j not in chosen]
        chosen.append(max(rest, key=lambda j: round(_determinant(kernel, [*chosen, j]), 12)))
    assert trace[0].kept[0] == sorted(chosen)
    other, _ = _run(model, replace(pruner, question="yes"), inputs)
    assert other[0].kept[0] != trace[0].kept[0], "the question must matter for this to test anything"


def test_newline_features_are_least_relevant(clip_folder: Path) -> None:
    model, inputs = built("llava-next"), zoo_inputs("llava-next", [zoo_prompt("llava-next", [3, 0, 4])])
    newlines = {20, 25, 30, 35}  # after each of four lines of the crops, four patches long
    for count, held in ((32, set()), (33, {20})):
        trace, _ = _run(model, CDPruner(keep_tokens=count, text_encoder=str(clip_folder), question="what"), inputs)
        assert newlines & set(trace[0].kept[0]) == held


def test_instructions_are_no_part_of_the_question() -> None:
    letter = "Which ?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly."
    assert without_instruction(letter) == "Which ?\nA. one\nB. two"
    assert without_instruction("what is this ?") == "what is this ?"


def test_text_encoders_that_are_none(clip_folder: Path, tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        _run(
            llava_model(), CDPruner(text_encoder=str(folder), question="what", keep_tokens=4), llava_inputs([[3, 0, 4]])
        )

    with pytest.raises(vp.ConfigError, match="cannot be read"):
        run(tmp_path / "nothing")
    text_model("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(vp.ConfigError, match="is a llama"):
        run(tmp_path / "llama")
    wider = CLIPModel.from_pretrained(clip_folder).config.to_dict()
    wider["vision_config"]["hidden_size"] = 64
    CLIPModel(CLIPConfig(**wider)).save_pretrained(tmp_path / "wider")
    tokenizer().save_pretrained(tmp_path / "wider")
    with pytest.raises(vp.ConfigError, match="width 64, this one has 32"):
        run(tmp_path / "wider")


def test_commands_tell_cdpruner_the_question(clip_folder: Path) -> None:
    pruner = CDPruner(text_encoder=str(clip_folder))
    assert pruner.asked("what ?").question == "what ?"
    assert replace(pruner, question="mine").asked("what ?").question == "mine"
    both = vp.Composed(parts=(pruner, vp.FastV())).asked("what ?")
    assert both == vp.Composed(parts=(pruner.asked("what ?"), vp.FastV()))
    assert CDPruner(relevance="words").asked("what ?") == CDPruner(relevance="words")


@pytest.mark.parametrize(("stride", "places"), [(2, [5, 7, 13, 15]), (3, [5, 7, 13, 15]), (4, [10])])
def test_pool(stride: int, places: list[int]) -> None:
    model = llava_model()
    inputs = llava_inputs([[3, 0, 4]])
    trace, entered = _run(model, Pool(stride=stride), inputs)
    _, _, embeddings = _encoded(model, inputs["pixel_values"])
    grid = embeddings[0].view(4, 4, -1)
    corners = [(top, left) for top in range(0, 4, stride) for left in range(0, 4, stride)]
    means = [grid[top : top + stride, left : left + stride].flatten(0, 1).mean(0) for top, left in corners]
    assert trace[0].kept[0] == places
    torch.testing.assert_close(entered[0, 3 : 3 + len(means)], torch.stack(means))


# ---- the tower -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_tower_computes_what_it_always_does(tower: str, attn: str) -> None:
    model = llava_model(tower, attn=attn)
    pixels = llava_inputs([[3, 0, 4]])["pixel_values"]
    with torch.no_grad():
        plain = model.model.vision_tower(pixels).last_hidden_state
        with vp.attach(model, FasterVLM()):
            assert torch.equal(model.model.vision_tower(pixels).last_hidden_state, plain)
        assert torch.equal(model.model.vision_tower(pixels).last_hidden_state, plain)
    assert model.model.vision_tower.config._attn_implementation == attn


def test_no_map_is_formed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of class attention per image, whatever kernel the tower runs."""
    model = llava_model("clip")
    inputs = llava_inputs(LAYOUT)
    shapes: list[tuple[int, ...]] = []
    original = Tensor.softmax

    def spy(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(self.shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "softmax", spy)
    _run(model, FasterVLM(keep_tokens=4), inputs)
    assert shapes == [(2, 1, 17)] * 3


def test_images_encoded_before_attaching_are_refused() -> None:
    model = llava_model()
    inputs = llava_inputs([[3, 0, 4]])
    with torch.no_grad():
        encoded = model.model.get_image_features(pixel_values=inputs.pop("pixel_values"))
        with vp.attach(model, FasterVLM()), pytest.raises(vp.LayoutError, match="before the pruner was attached"):
            model(**inputs, mm_encoder_outputs={"image": encoded})


def test_text_decoders_have_no_tower() -> None:
    with pytest.raises(vp.UnsupportedModelError, match="vision tower"):
        vp.attach(text_model("llama"), FasterVLM(), prompt()[1])


def test_layers_that_the_tower_has_not() -> None:
    with pytest.raises(vp.UnsupportedModelError, match="none numbered 9"):
        vp.attach(llava_model(), FasterVLM(vision_layer=9))


def test_features_of_other_images_are_refused() -> None:
    model = llava_model()
    inputs = llava_inputs([[3, 0, 4]])
    pixels = inputs.pop("pixel_values")
    with vp.attach(model, FasterVLM()), torch.no_grad():
        encoded = model.model.get_image_features(pixel_values=pixels)
        model.model.get_image_features(pixel_values=pixels)
        with pytest.raises(vp.LayoutError, match="encoded 32 visual tokens, and the prompts have 16"):
            model(**inputs, mm_encoder_outputs={"image": encoded})


@pytest.mark.parametrize(
    ("tokens", "rows", "prefix", "first"),
    [
        (16, 17, 1, [0]),
        (17, 17, 0, [0]),  # the class token is a visual token too
        (4, 17, 1, [0, 1, 4, 5]),
        (4, 16, 0, [0, 1, 4, 5]),
        (15, 15, 0, [0]),
    ],
)
def test_squares_of_patches(tokens: int, rows: int, prefix: int, first: list[int]) -> None:
    table = squares(None, Encoded("image", {}, [rows] * 3, 3 * tokens, (1, 0)))
    assert table is not None
    assert (table.prefix, table.patches[0].tolist(), len(table.patches)) == (prefix, first, 3 * tokens)
    assert table.patches[tokens].tolist() == [place + rows - prefix for place in first]


@pytest.mark.parametrize(("tokens", "rows"), [(5, [17, 17]), (3, [17]), (32, [17, 26])])
def test_what_is_no_square_of_patches(tokens: int, rows: list[int]) -> None:
    assert squares(None, Encoded("image", {}, rows, tokens * len(rows), (1, 0))) is None
