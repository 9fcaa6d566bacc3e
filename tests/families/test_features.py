"""What the matrix does not hold: beams, an image in a later turn, the score on the host's own maps, grids of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.families.prompts import Prompt, extended
from tests.families.test_matrix import CLOSE, PRUNERS, each_cell, each_pruner
from tests.families.tried import tries
from tests.families.zoo import DISTINCT, FAMILIES, LAYERS, built, inputs, prompt, visual_rows
from tests.oracle import oracle, pruned_edit
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import PromptRun
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.fastv import FastV


@tries("beams")
@each_cell
@pytest.mark.parametrize("pruner", ["schedule", "prefix"])
def test_beams_with_and_without_a_cache(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, [3, 0, 5]), prompt(name, [2, 0, 4], 2)])
    settings: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 3, "do_sample": False}
    with vp.attach(model, PRUNERS[pruner]) as handle:
        results = [
            model.generate(**prepared, **settings, suppress_tokens=list(range(80, 99)), use_cache=use_cache)
            for use_cache in (True, False)
        ]
    assert torch.equal(*results)
    assert len(handle.trace) == 4, "one record per beam"


# ---- a further image on the same cache -----------------------------------------------------------------------------


def _second_turn(name: str, model: Any, turns: list[Prompt]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of the second turn, and of both as one prompt."""
    family = FAMILIES[name]
    first, second, both = inputs(name, turns[:1]), inputs(name, turns[1:]), inputs(name, [turns[0] + turns[1]])
    past = first["input_ids"].shape[1]
    if "batch_num_images" in both:  # two prompts' worth of images: one crop set each
        both["batch_num_images"] = torch.tensor([1, 1])
    if family.types == "mm_token_type_ids":
        positions, _ = model.model.get_rope_index(**{key: both.get(key) for key in _ROPE})
        second["position_ids"] = positions[:, :, past:]
    elif family.types is not None:
        both[family.types][:, past:] = family.later_type
        del second[family.types]
    second["attention_mask"] = both["attention_mask"]
    return second, both


_ROPE = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")


@tries("new image")
@each_cell
@pytest.mark.parametrize("pruner", ["schedule", "detect", "prefix", "ffn"])
def test_an_image_in_a_later_turn(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    turns = [prompt(name, [3, 0, 4], 1), prompt(name, [2, 0, 5], 2)]
    second, both = _second_turn(name, model, turns)
    with vp.attach(model, PRUNERS[pruner]) as handle, torch.no_grad():
        cache = model(**inputs(name, turns[:1]), use_cache=True).past_key_values
        first = handle.trace[0]
        logits = model(**second, past_key_values=cache).logits[0]
        kept = [
            a + [first.num_visual + token for token in b] for a, b in zip(first.kept, handle.trace[0].kept, strict=True)
        ]
    visual = visual_rows(both["input_ids"])[0]
    turns = (len(visual) - len(logits),)
    with oracle(model, pruned_edit(visual, kept, PRUNERS[pruner], turns)), torch.no_grad():
        expected = model(**both, use_cache=False).logits[0, -len(logits) :]
    text = ~visual[-len(logits) :]
    torch.testing.assert_close(logits[text], expected[text], **CLOSE)


# ---- the score -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recorder(vp.Pruner):
    """Keeps everything and remembers every layer's weights: the last row's, and all rows'."""

    name: ClassVar[str] = "recorder"

    def start(self) -> PromptRun:
        return RecorderRun()


class RecorderRun(PromptRun):
    last: ClassVar[list[Tensor]] = []
    whole: ClassVar[list[Tensor]] = []

    def observes(self, layer: int) -> bool:
        return True

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        self.last.append(view.attention)
        self.whole.append(torch.cat(list(view.attention_of(torch.arange(len(view.columns)))), 1))
        return None


@tries("eager", "sdpa")
@each_cell
def test_the_score_sees_the_hosts_own_attention(name: str, attn: str) -> None:
    """Scaling, grouped heads, norms of queries, bounded logits, windows and both directions, as in the host's maps."""
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 5])])
    with torch.no_grad():
        maps = built(name, "eager")(**prepared, output_attentions=True).attentions
        RecorderRun.last.clear()
        RecorderRun.whole.clear()
        with vp.attach(built(name, attn), Recorder()):
            built(name, attn)(**prepared)
    assert len(maps) == LAYERS
    for last, whole, expected in zip(RecorderRun.last, RecorderRun.whole, maps, strict=True):
        torch.testing.assert_close(last, expected[0, :, -1], **CLOSE)
        torch.testing.assert_close(whole, expected[0], **CLOSE)


# ---- images and their grids ----------------------------------------------------------------------------------------

# Of the prompt [3, 0, 2, 0, 4] (images number 1 and 2 of the zoo): tokens and grid of every image.
GRIDS: dict[str, list[tuple[int, tuple[int, int] | None]]] = {
    "llava": [(16, (4, 4))] * 2,
    "pixtral": [(8, (4, 2)), (4, (2, 2))],
    "llava-next": [(36, None), (40, None)],  # a whole view and joined crops with newlines: no grid
    "qwen2-vl": [(10, (2, 5)), (9, (3, 3))],
    "qwen3-vl": [(10, (2, 5)), (9, (3, 3))],
    "glm4v": [(10, (2, 5)), (9, (3, 3))],
    "internvl": [(4, (2, 2))] * 3,
    "idefics3": [(4, (2, 2))] * 6,
    "mistral3": [(8, (4, 2)), (4, (2, 2))],
    "gemma3": [(16, (4, 4))] * 2,
    "paligemma": [(16, (4, 4))] * 2,
}


@tries("image", "several images")
@pytest.mark.parametrize("prepared_by", ["forward", "generate"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_trace_knows_images_and_their_grids(name: str, prepared_by: str) -> None:
    model = built(name, "eager")
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 4])])
    with vp.attach(model, vp.NoPruning()) as handle, torch.no_grad():
        if prepared_by == "forward":
            model(**prepared)
        else:  # hands over encoded images instead of pixels
            model.generate(**prepared, max_new_tokens=1)
    trace = handle.trace[0]
    assert list(zip(trace.tokens_per_image, trace.grids, strict=True)) == GRIDS[name]
    assert sum(trace.tokens_per_image) == int(visual_rows(prepared["input_ids"]).sum())


@tries("video")
@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm4v"])
def test_video_frames_are_images_of_their_own(name: str) -> None:
    model = built(name, "eager")
    prepared = inputs(name, [prompt(name, [3, -1, 4])])
    with vp.attach(model, vp.NoPruning()) as handle, torch.no_grad():
        model(**prepared)
    assert handle.trace[0].grids == [(3, 2), (3, 2)]


READS_VIDEOS = [name for name, family in FAMILIES.items() if family.video is not None]


@tries("video")
@each_pruner
@pytest.mark.parametrize("name", [name for name in READS_VIDEOS if not name.startswith("glm")])
def test_an_image_and_a_video_in_one_prompt(name: str, pruner: str) -> None:
    model, family = built(name), FAMILIES[name]
    prepared = inputs(name, [prompt(name, [3, 0, 2, -1, 4])])
    visual = visual_rows(prepared["input_ids"])[0]
    more = torch.tensor([[5]])
    with vp.attach(model, PRUNERS[pruner]) as handle, torch.no_grad():
        logits = model(**prepared).logits[0, -1]
        kept = handle.trace[0].kept
    longer = extended(prepared, more[:, :0], family.types, family.later_type)
    with oracle(model, pruned_edit(visual, kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(**longer, use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits, expected, **CLOSE)


@tries("video")
@pytest.mark.parametrize("name", [name for name in READS_VIDEOS if name.startswith("glm")])
def test_an_image_and_a_video_in_one_prompt_are_an_error_of_the_host(name: str) -> None:
    model, prepared = built(name), inputs(name, [prompt(name, [3, 0, 2, -1, 4])])
    with vp.attach(model, PRUNERS["schedule"]), pytest.raises(ValueError, match="tokens do not match"):
        model(**prepared)


@tries("video", "batch")
@each_pruner
@pytest.mark.parametrize("name", READS_VIDEOS)
def test_videos_in_a_batch(name: str, pruner: str) -> None:
    model = built(name)
    prompts = [prompt(name, layout, seed) for seed, layout in enumerate([[3, -1, 6], [7], [2, -1, 2, -1, 4]])]
    together = inputs(name, prompts)
    with vp.attach(model, PRUNERS[pruner]), torch.no_grad():
        logits = model(**together).logits
        for row, pieces in zip(logits, prompts, strict=True):
            alone = model(**inputs(name, [pieces])).logits[0]
            torch.testing.assert_close(row[-4:], alone[-4:], **CLOSE)


@tries("video")
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.video is None])
def test_a_video_is_an_error_where_the_family_reads_none(name: str) -> None:
    model, video = built(name, "eager"), torch.randn(1, 3, 3, 32, 32)
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    with vp.attach(model, PRUNERS["schedule"]) as handle, torch.no_grad():
        with pytest.raises(vp.LayoutError, match="does not read pixel_values_videos; leave them out"):
            model(**prepared, pixel_values_videos=video)
        with pytest.raises(ValueError, match=r"not used by the model.*pixel_values_videos"):  # the host's own
            model.generate(**prepared, pixel_values_videos=video, max_new_tokens=1)
        model(**prepared)
    assert handle.trace[0].num_visual, "the same handle goes on working"


@tries("each image")
@each_cell
@pytest.mark.parametrize("pruner", [FastV(keep_tokens=2, scope="image"), DivPrune(keep_tokens=2, scope="image")])
def test_a_budget_for_each_image(name: str, attn: str, pruner: vp.Pruner) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 5]), prompt(name, [4, 0, 6], 2)])
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model.generate(**prepared, max_new_tokens=1)
    for example in handle.trace.examples:
        sizes = torch.tensor(example.tokens_per_image)
        image_of = torch.arange(len(sizes)).repeat_interleave(sizes)
        assert image_of[example.kept[-1]].bincount().tolist() == [2] * len(sizes)
    assert len(handle.trace[0].tokens_per_image) > len(handle.trace[1].tokens_per_image)


# ---- prompts nobody writes ------------------------------------------------------------------------------------------


@tries("image", "several images")
@each_cell
@pytest.mark.parametrize("pruner", ["schedule", "ffn"])
def test_nothing_but_images(name: str, attn: str, pruner: str) -> None:
    model = built(name, attn)
    prepared = inputs(name, [prompt(name, [0, 0])])
    visual = visual_rows(prepared["input_ids"])[0]
    visual[-1] = False  # the next token is read from the last row: it stays whatever it is
    with vp.attach(model, PRUNERS[pruner]) as handle, torch.no_grad():
        logits = model(**prepared).logits[0]
    assert handle.trace[0].num_visual == int(visual.sum())
    with oracle(model, pruned_edit(visual, handle.trace[0].kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(**prepared, use_cache=False).logits[0]
    torch.testing.assert_close(logits[~visual], expected[~visual], **CLOSE)


@pytest.mark.parametrize("name", DISTINCT)
def test_hidden_states_are_the_hosts_where_nothing_is_pruned(name: str) -> None:
    """Features that the host adds between layers (DeepStack) show where the host shows them."""
    model = built(name, "eager")
    prepared = inputs(name, [prompt(name, [3, 0, 5])])
    with torch.no_grad():
        plain = model(**prepared, output_hidden_states=True).hidden_states
        with vp.attach(model, vp.NoPruning()):
            attached = model(**prepared, output_hidden_states=True).hidden_states
    assert len(plain) == LAYERS + 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(attached, plain, strict=True))
