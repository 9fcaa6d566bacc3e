"""Which patches of the vision tower a visual token is made of, found out by moving patches; and attention, keys and
features of tokens, against loops over the whole maps of an eager tower."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

import visipruner as vp
from tests.families.kinds import KINDS, MIXED, TowerPrompts, built_kind
from tests.families.zoo import FAMILIES, LAYERS, PINPOINTS, adapter_of, built, inputs, prompt, visual_rows
from tests.flash import use_stand_in
from tools.families.types import written
from visipruner.adapters import Adapter, generic, known_towers, supported, towers
from visipruner.adapters.base import submodule
from visipruner.checking.prompts import Asked
from visipruner.contract.entry_view import EntryView
from visipruner.contract.vision_view import VisionView
from visipruner.engine.patch_table import token_numbers
from visipruner.engine.vision import tower_layers
from visipruner.pruners.registry import method_class

FASTERVLM = vp.FasterVLM(keep_ratio=0.5)
VISIONZIP = vp.VisionZip(keep_ratio=0.5)
SEVERAL = [name for name in FAMILIES if FAMILIES[name].video is not None and not name.startswith("glm")]
# One family of each kind of tower and connector, with one prompt of all that it reads.
TOWERS = [name for name in FAMILIES if name not in ("llava-mixtral", "llava-qwen3-moe", "qwen3-vl-moe", "glm4v-moe")]
LAYOUTS = {name: [2, 0, 3, -1, 4] if name in SEVERAL else [3, 0, 2, 0, 4] for name in TOWERS}
LAYOUTS |= {"llava-onevision": [3, 0, 4]}
CASES = [*LAYOUTS.items(), ("llava-onevision", [3, -1, 4]), ("llava-onevision", [3, 0, 2, 0, 4]), ("glm4v", [3, -1, 4])]
FEW = 9  # patches that are tried of a prompt


def tower_of(name: str, model: Any) -> Any:
    found = submodule(model, adapter_of(name).vision)
    assert found is not None
    return found


@cache
def trained(name: str) -> Any:
    """The tiny model, with no weights that are zero: Gemma 3 starts with a connector of zeros, through which nothing
    is seen."""
    model = deepcopy(built(name, "eager"))
    for parameter in model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter)
    return model


@cache
def unmixed(name: str) -> Any:
    """The same with a tower whose patches do not look at each other."""
    model = deepcopy(trained(name))
    unmix(tower_of(name, model))
    return model


def unmix(tower: Any) -> None:
    for name, module in tower_layers(tower).named_modules():
        if name.endswith(("attn.proj", "out_proj", "o_proj", "projection_layer")):
            for parameter in module.parameters():
                parameter.data.zero_()


class StopError(Exception):
    """What comes after is not looked at."""


def entering(model: Any, prepared: dict[str, Any]) -> Tensor:
    """Hidden states `[n, d]` of the visual rows before layer 0."""
    seen: list[Tensor] = []

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args or (kwargs.get("hidden_states"),))[0])
        raise StopError

    hook = model.get_decoder().layers[0].register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), suppress(StopError):
        model(**prepared)
    hook.remove()
    return seen[0][0][visual_rows(prepared["input_ids"])[0]]


@dataclass(frozen=True, kw_only=True)
class Looking(vp.FasterVLM):
    """Shows what a method is shown."""

    seen: ClassVar[list[tuple[list[VisionView], Tensor]]] = []

    def choose(self, view: EntryView, count: int) -> Tensor:
        self.seen.append((view.vision(self.vision_layer), view.embeddings))
        raise StopError


def looked_at(
    model: Any, *prompts: dict[str, Any], layer: int = -1, adapter: Adapter | None = None
) -> list[tuple[list[VisionView], Tensor]]:
    """What a method is shown of the images of each prompt, and the tokens as they enter the decoder."""
    found = []
    with vp.attach(model, Looking(keep_ratio=0.5, vision_layer=layer), adapter=adapter), torch.no_grad():
        for prepared in prompts:
            with suppress(StopError):
                model(**prepared)
            found.append(Looking.seen.pop())
    return found


def moved(before: Tensor, after: Tensor) -> list[int]:
    """Which lines changed."""
    return ((before - after).abs().amax(-1) > 1e-6).nonzero().flatten().tolist()


def pixel_blocks(prepared: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every patch of every picture, as an index into one of the prompt's tensors; patches are 8 x 8 pixels."""
    blocks: list[tuple[str, Any]] = []
    for name in ("pixel_values", "pixel_values_videos"):
        if name not in prepared:
            continue
        pixels = prepared[name]
        if pixels.ndim < 4:  # patches one after another
            blocks += [(name, place) for place in product(*map(range, pixels.shape[:-1]))]
            continue
        pictures = torch.cartesian_prod(*(torch.arange(size) for size in pixels.shape[:-3])).view(-1, pixels.ndim - 3)
        for picture in pictures.tolist():
            for top in range(0, pixels.shape[-2], 8):
                for left in range(0, pixels.shape[-1], 8):
                    blocks.append((name, (*picture, slice(None), slice(top, top + 8), slice(left, left + 8))))
    return blocks


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_token_changes_with_the_pixels_of_its_patches(name: str, layout: list[int]) -> None:
    """Where patches do not look at each other, the tokens whose patches the view says have changed are those that
    changed for the decoder, for every patch of the prompt."""
    follow_pixels(unmixed(name), inputs(name, [prompt(name, layout)]))


def follow_pixels(model: Any, prepared: dict[str, Any], adapter: Adapter | None = None) -> None:
    blocks = pixel_blocks(prepared)
    others = []
    for key, where in blocks[:: max(1, len(blocks) // FEW)]:
        pixels = prepared[key].clone()
        pixels[where] += torch.randn(pixels[where].shape, generator=torch.Generator().manual_seed(3))
        others.append({**prepared, key: pixels})
    (views, tokens), *changed = looked_at(model, prepared, *others, adapter=adapter)
    touched: set[int] = set()
    for those, after in changed:
        features = [torch.cat([view.features for view in part]) for part in (views, those)]
        assert len(features[0]) == len(tokens)
        assert moved(*features) == moved(tokens, after)
        assert len(moved(tokens, after)) <= 1, "patches must not look at each other for this to test anything"
        touched.update(moved(tokens, after))
    blank = torch.cat([torch.zeros(len(view.patches)).bool() if view.blank is None else view.blank for view in views])
    assert not touched & set(blank.nonzero().flatten().tolist()), "a newline feature holds no patch"
    assert len(touched) > 1


# One of each way to make tokens, padding, and a tower that merges on its way; the others by `make families-test`.
SHOWN = {*{patches: kind for kind, (_, patches) in known_towers.TOWERS.items()}.values(), "lfm2_vl", "minicpmv4_6"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in SHOWN else pytest.mark.every_type) for kind in known_towers.TOWERS]
)
def test_towers_of_types_that_nobody_described(kind: str) -> None:
    model = deepcopy(built_kind(kind))
    adapter = generic.adapter_of(model)
    tower = submodule(model, adapter.vision)
    assert tower is not None
    unmix(tower)
    follow_pixels(model, TowerPrompts(kind).inputs([Asked((0, 1), 4)]), adapter)


def test_of_every_type_it_is_known_which_patches_a_token_has() -> None:
    undescribed = {kind for kind, one in written().items() if one["result"] == "passes"} - set(supported())
    assert set(known_towers.TOWERS) | set(known_towers.NO_PATCHES) == undescribed
    assert set(KINDS) == set(known_towers.TOWERS)
    assert set(MIXED) < set(known_towers.NO_PATCHES)


# ---- what is told of a token ----------------------------------------------------------------------------------------


@dataclass
class Whole:
    """A layer of an eager tower: per picture its attention map `[heads, m, m]`, keys `[heads, m, head_dim]` and outputs
    `[m, d]`."""

    maps: list[Tensor]
    keys: list[Tensor]
    outputs: list[Tensor]


def encoded(name: str, model: Any, prepared: dict[str, Any], layer: int) -> Whole:
    """By the tower's own eager function; a map that is masked into blocks is cut into them."""
    found = Whole([], [], [])
    module = tower_layers(tower_of(name, model))[layer]
    home: Any = sys.modules[type(module).__module__]
    eager = home.eager_attention_forward
    inside = set(module.modules())

    def remembering(caller: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        output, weights = eager(caller, query, key, value, attention_mask, **kwargs)
        if caller in inside:
            rows = key.shape[2]
            starts = [
                row for row in range(1, rows) if attention_mask is not None and attention_mask[0, 0, row, row - 1] < 0
            ]
            for of_picture, keys in zip(weights, key, strict=True):
                for start, end in zip([0, *starts], [*starts, rows], strict=True):
                    found.maps.append(of_picture[:, start:end, start:end])
                    found.keys.append(keys[:, start:end])
        return output, weights

    def outputs(_module: Any, _args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.outputs.extend(states.reshape(-1, states.shape[-1]).split([part.shape[-1] for part in found.maps]))

    hook = module.register_forward_hook(outputs)
    home.eager_attention_forward = remembering
    try:
        entering(model, prepared)
    finally:
        home.eager_attention_forward = eager
        hook.remove()
    return found


def patches_of_tokens(name: str, prepared: dict[str, Any], rows: list[int]) -> list[list[tuple[int, int]]]:
    """Per token the (picture, row) of its patches: those rows that change it where patches do not look at each other.
    `rows`: of every picture, in the order in which the tower has them."""
    model = unmixed(name)
    plain = entering(model, prepared)
    found: list[list[tuple[int, int]]] = [[] for _ in plain]
    places = [(picture, row) for picture, count in enumerate(rows) for row in range(count)]
    for number, place in enumerate(places):

        def bump(_module: Any, args: Any, kwargs: Any, number: int = number) -> Any:
            states = args[0].clone(memory_format=torch.contiguous_format)
            states.view(-1, states.shape[-1])[number] += torch.randn(states.shape[-1])
            return (states, *args[1:]), kwargs

        hook = tower_layers(tower_of(name, model))[0].register_forward_pre_hook(bump, with_kwargs=True)
        for token in moved(plain, entering(model, prepared)):
            found[token].append(place)
        hook.remove()
    return found


@pytest.mark.parametrize("name", TOWERS)
def test_a_token_has_the_mean_of_its_patches(name: str) -> None:
    """In loops over whole maps: the class token's attention, or the mean attention received within each picture, keys
    and features; merged as the connector merges, found out by changing one row of the tower after another."""
    model, prepared = trained(name), inputs(name, [prompt(name, [3, 0, 4])])
    whole = encoded(name, model, prepared, -1)
    held = patches_of_tokens(name, prepared, [part.shape[-1] for part in whole.maps])
    ((views, _),) = looked_at(model, prepared)
    salience, received = (torch.cat([getattr(view, what) for view in views], -1) for what in ("salience", "received"))
    keys = torch.cat([view.keys for view in views], 1)
    features = torch.cat([view.features for view in views])
    has_class_token = name.startswith(("llava", "internvl")) and name != "llava-onevision"
    assert all(view.has_class_token == has_class_token for view in views)
    for token, patches in enumerate(held):
        if not patches:  # a newline feature
            assert not bool(salience[token].any() or features[token].any())
            continue
        columns = [whole.maps[picture][:, :, row].mean(0).tolist() for picture, row in patches]  # what each query gives
        gets, looks = [sum(column) / len(column) for column in columns], [column[0] for column in columns]
        expected = looks if has_class_token else gets
        assert float(salience[token]) == pytest.approx(sum(expected) / len(patches), rel=1e-4)
        assert float(received[:, token].mean()) == pytest.approx(sum(gets) / len(patches), rel=1e-4)
        torch.testing.assert_close(keys[:, token], torch.stack([whole.keys[p][:, row] for p, row in patches]).mean(0))
        torch.testing.assert_close(features[token], torch.stack([whole.outputs[p][row] for p, row in patches]).mean(0))


# ---- windows, crops that are too many, odd frames, kernels ----------------------------------------------------------


def test_where_layers_have_windows_the_nearest_with_full_attention_is_shown() -> None:
    name = "qwen2.5-vl"
    model, prepared = built(name, "eager"), inputs(name, [prompt(name, [3, 0, 4])])
    assert model.config.vision_config.fullatt_block_indexes == [1]
    whole = encoded(name, model, prepared, 1)
    assert len(whole.maps) == 1, "one map of the whole picture"
    assert len(encoded(name, model, prepared, 0).maps) > 1, "windows"
    for layer in (0, 1, -1, -2):
        (((view,), _),) = looked_at(model, prepared, layer=layer)
        torch.testing.assert_close(view.crops[0].received(), whole.maps[0].mean(1))


@pytest.mark.parametrize(("wanted", "shown"), [(-2, 31), (-1, 31), (11, 15), (0, 7), (10, 7), (19, 23)])
def test_which_layer_is_the_nearest(wanted: int, shown: int) -> None:
    """Qwen2.5-VL's published layers with full attention are the 8th, 16th, 24th and 32nd."""
    name = "qwen2.5-vl"
    config = FAMILIES[name].config()
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 32, [7, 15, 23, 31]
    model = AutoModelForImageTextToText.from_config(config)
    with vp.attach(model, vp.FasterVLM(vision_layer=wanted)) as handle:
        assert handle._tap is not None
        assert handle._tap.wanted == {shown}


def test_a_tower_of_windows_alone_is_refused() -> None:
    config = FAMILIES["qwen2.5-vl"].config()
    config.vision_config.fullatt_block_indexes = []
    model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(vp.UnsupportedModelError, match="within windows in every layer"):
        vp.attach(model, FASTERVLM)


def _table_of(shares: Tensor | None, patches: Tensor, features: Tensor) -> Tensor:
    held = features[patches]
    return held.mean(1) if shares is None else (held * shares[..., None].to(held)).sum(1)


@pytest.mark.parametrize("size", [[32, 56], [30, 30], [60, 20], [64, 64], [17, 61]])
@pytest.mark.parametrize(
    ("name", "aspect"), [("llava-next", None), ("llava-onevision", "anyres_max_9"), ("llava-onevision", "anyres_max_1")]
)
def test_crops_are_joined_as_the_model_joins_their_features(name: str, aspect: str | None, size: list[int]) -> None:
    """Crops that are too many are made smaller (anyres_max_1); then a token lies between four patches."""
    model = built(name, "eager").model
    crops = image_size_to_num_patches(size, PINPOINTS, 32)
    features = torch.randn(crops, 16, 5, dtype=torch.double)
    settings: dict[str, Any] = {"vision_aspect_ratio": aspect} if aspect else {"vision_feature_select_strategy": "full"}
    sizes = torch.tensor([size])
    packed, _ = model.pack_image_features([features], sizes, image_newline=torch.zeros(5).double(), **settings)
    whole, _ = built("llava-next", "eager").model.pack_image_features(
        [features], sizes, "full", torch.zeros(5).double()
    )
    call = {"image_sizes": sizes, **settings}
    table = towers.joined_crops(model, towers.Encoded("image", call, [17] * crops, len(packed[0])))
    found = _table_of(table.shares, table.patches, features.flatten(0, 1))
    torch.testing.assert_close(found, packed[0], atol=1e-5, rtol=1e-5)
    assert table.prefix == 1
    assert table.patches.shape[1] == (4 if len(packed[0]) < len(whole[0]) else 1)


@pytest.mark.parametrize("patches", [16, 25, 9])
def test_frames_are_pooled_as_the_model_pools_them(patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-OneVision's real frames have 27 patches in a line, which no square divides."""
    model = built("llava-onevision", "eager").model
    side = round(patches**0.5)
    monkeypatch.setattr(model.config.vision_config, "image_size", side * 8)
    features = torch.randn(6, patches, 5, dtype=torch.double)
    pooled = model.apply_pooling(features).reshape(2, -1, 5)
    expected = torch.cat([pooled, torch.zeros(2, 1, 5)], 1).flatten(0, 1)
    call = {"pixel_values_videos": torch.zeros(2, 3, 3, side * 8, side * 8)}
    table = towers.pooled_frames(model, towers.Encoded("video", call, [patches] * 6, len(expected)))
    found = _table_of(table.shares, table.patches, features.flatten(0, 1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_a_square_leaves_over_belongs_to_no_token() -> None:
    assert towers.grid_squares(3, 5, 2).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]


def test_windows_come_one_after_another() -> None:
    """3 x 3 tokens in windows of 2 x 2: 0 1 3 4, 2 5, 6 7, 8."""
    assert towers.window_places(3, 3, 2).tolist() == [0, 1, 4, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm4v", "pixtral", "mistral3", "llava"])
def test_kernels_of_variable_length_show_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention is told lengths of packed images, sdpa is called for each or given a mask of blocks."""
    use_stand_in(monkeypatch)
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 4])])
    ((expected, _),) = looked_at(built(name, "sdpa"), prepared)
    model = deepcopy(built(name, "sdpa"))
    for part in tower_of(name, model).modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "flash_attention_2"
    ((found, _),) = looked_at(model, prepared)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.received, other.received)
        torch.testing.assert_close(one.features, other.features)


@pytest.mark.parametrize("kind", ["lfm2_vl", "gemma4"])
@pytest.mark.parametrize("kernel", ["sdpa", "flash_attention_2"])
def test_padding_of_pictures_is_not_shown(kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel is told of it, the patches of two unlike pictures are those of each alone."""
    use_stand_in(monkeypatch)
    model, prompts = deepcopy(built_kind(kind)), TowerPrompts(kind)
    adapter = generic.adapter_of(model)
    tower = submodule(model, adapter.vision)
    assert tower is not None
    for part in tower.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = kernel
    ((together, _),) = looked_at(model, prompts.inputs([Asked((0, 2), 4)]), adapter=adapter)
    for number, view in zip((0, 2), together, strict=True):
        (((alone,), _),) = looked_at(built_kind(kind), prompts.inputs([Asked((number,), 4)]), adapter=adapter)
        torch.testing.assert_close(view.received, alone.received, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(view.features, alone.features, atol=1e-4, rtol=1e-4)


# ---- newlines, batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
@pytest.mark.parametrize("method", [vp.FasterVLM, vp.VisPruner, vp.HiPrune, vp.VisionZip])
def test_newline_features_leave_before_any_patch(name: str, method: Callable[..., vp.Pruner]) -> None:
    model, prepared = built(name, "sdpa"), inputs(name, [prompt(name, [3, 0, 4])])
    (((view,), _),) = looked_at(model, prepared)
    assert view.blank is not None
    newlines = view.blank.nonzero().flatten().tolist()
    patches = len(view.patches) - len(newlines)
    assert len(newlines) == 4
    for count in (1, patches - 1, patches, patches + 1, patches + 3):
        with vp.attach(model, method(keep_tokens=count)) as handle, torch.no_grad():
            model(**prepared)
        kept = handle.trace[0].kept[0]
        assert len(kept) == count
        assert [token for token in kept if token in newlines] == newlines[: max(0, count - patches)]


def test_which_tokens_are_whose() -> None:
    def numbers(kinds: list[list[int]], *totals: int) -> list[list[int]] | None:
        found = token_numbers([np.array(mine, dtype=np.int64) for mine in kinds], totals)
        return None if found is None else [mine.tolist() for mine in found]

    assert numbers([[0, 0], [], [0, 0, 0]], 5) == [[0, 1], [], [2, 3, 4]]
    assert numbers([[0, 0], [0, 0], [0], [0]], 3) == [[0, 1], [0, 1], [2], [2]], "two beams each"
    assert numbers([[1, 0, 1], [0, 1]], 2, 3) == [[2, 0, 3], [1, 4]], "images before videos"
    assert numbers([[0, 0], [0]], 2) is None
    assert numbers([[0], [0, 0], [0]], 2) is None
    assert numbers([[0, 1]], 2) is None


@pytest.mark.parametrize("method", [FASTERVLM, VISIONZIP], ids=lambda m: m.name)
@pytest.mark.parametrize("name", TOWERS)
def test_a_batch_gives_what_its_examples_give_alone(name: str, method: vp.Pruner) -> None:
    """Eager towers are compared with these in the matrix of methods."""
    model = built(name, "eager" if name == "paligemma2" else "sdpa")
    prompts = [prompt(name, [3, 0, 4]), prompt(name, [5, 0, 2, 0, 3], seed=2)]
    with vp.attach(model, method) as handle, torch.no_grad():
        model(**inputs(name, prompts))
        together = handle.trace.kept
        model.generate(**inputs(name, prompts), max_new_tokens=2, num_beams=2, do_sample=False)
        beams = handle.trace.kept
        for example, one in enumerate(prompts):
            model(**inputs(name, [one]))
            assert handle.trace.kept[0] == together[example] == beams[2 * example]
            assert 0 < len(together[example][0]) <= handle.trace[0].num_visual // 2 + 1


def test_images_and_videos_of_a_batch_are_told_apart() -> None:
    """The tower encodes all images first, then all videos; prompts have them in any order."""
    for name in SEVERAL:
        model = built(name, "eager")
        prompts = [prompt(name, [3, -1, 2, 0, 4]), prompt(name, [2, 0, 3, -1, 2], seed=2)]
        if name == "llava-onevision":
            continue  # its batches need one number of images in each prompt, which `_join_onevision` cannot say
        with vp.attach(model, FASTERVLM) as handle, torch.no_grad():
            model(**inputs(name, prompts))
            together = handle.trace.kept
            for example, one in enumerate(prompts):
                model(**inputs(name, [one]))
                assert handle.trace.kept[0] == together[example], name


@pytest.mark.parametrize("method", ["divprune", "fastv", "visionzip"])
@pytest.mark.parametrize(("name", "images"), [("qwen2.5-vl", 2), ("llava-onevision", 1)])
def test_a_budget_counts_over_a_videos_frames(name: str, images: int, method: str) -> None:
    """Of methods for images; with scope=image in each frame, or where the trace has it as one image, in the video."""
    prepared = inputs(name, [prompt(name, [3, -1, 5])])
    for scope in ("prompt", "image"):
        pruner: Any = replace(method_class(method).for_depth(LAYERS), keep_ratio=0.5, scope=scope)
        with vp.attach(built(name), pruner) as handle, torch.no_grad():
            built(name)(**prepared)
        sizes, kept = handle.trace[0].tokens_per_image, handle.trace[0].kept[-1]
        assert len(sizes) == images
        assert len(kept) == round(sum(sizes) / 2)
        if scope == "image":
            each = [sum(token // size == frame for token in kept) for frame, size in enumerate(sizes)]
            assert each == [round(size / 2) for size in sizes]
