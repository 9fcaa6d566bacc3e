"""Methods for video against loops written from their descriptions, over embeddings that enter the language model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import compute_retention_mask

import visipruner as vp
from tests.models import IMAGE_TOKEN, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import kept_by
from visipruner.contract.pruner import Pruner
from visipruner.pruners.composed import Composed
from visipruner.pruners.dycoke import DyCoke
from visipruner.pruners.evs import EVS
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.vidcom2 import VidCom2

BEFORE, FRAMES, SIZE = 5, 6, 8


def _video(seed: int = 1) -> tuple[Tensor, Tensor]:
    """A prompt with a video of which each frame is mostly the one before."""
    embeds, mask = prompt(visual=FRAMES * SIZE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for frame in range(1, FRAMES):
        here, before = (slice(BEFORE + number * SIZE, BEFORE + (number + 1) * SIZE) for number in (frame, frame - 1))
        embeds[0, here] = embeds[0, before] + torch.rand(SIZE, 1, generator=generator) * embeds[0, here]
    return embeds, mask


def _kept(pruner: Pruner, seed: int = 1) -> list[int]:
    return kept_by(text_model("llama"), pruner, *_video(seed))[0]


def _states(seed: int = 1) -> Tensor:
    """`[FRAMES, SIZE, d]`."""
    embeds, mask = _video(seed)
    return embeds[0][mask[0]].double().view(FRAMES, SIZE, -1)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.1])
def test_evs(ratio: float) -> None:
    states = _states()
    change = {
        frame * SIZE + place: 1 - _cosine(states[frame, place], states[frame - 1, place])
        for frame in range(1, FRAMES)
        for place in range(SIZE)
    }
    count = max(SIZE, round(ratio * FRAMES * SIZE))
    changed = sorted(change, key=lambda token: -change[token])[: count - SIZE]
    kept = _kept(EVS(frame_tokens=SIZE, keep_ratio=ratio))
    assert kept == sorted([*range(SIZE), *changed])
    released = compute_retention_mask(states.flatten(0, 1), FRAMES, 1 - ratio)
    assert len(kept) - int(released.sum()) in (0, 1)  # which rounds down
    if len(kept) == int(released.sum()):
        assert kept == released.nonzero().flatten().tolist()


def test_evs_for_every_frame() -> None:
    kept = _kept(EVS(frame_tokens=SIZE, keep_ratio=0.25))
    assert kept[:SIZE] == list(range(SIZE)), "one image of the trace is one budget"
    model, inputs = llava_model(), llava_inputs([[3, 0, 0, 0, 4]])
    with vp.attach(model, EVS(scope="image", keep_ratio=0.25)) as handle, torch.no_grad():
        model(**inputs)
    tokens = handle.trace[0].kept[0]
    assert [sum(token // 16 == frame for token in tokens) for frame in range(3)] == [16, 4, 4]


def _outlying(states: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    flat = states.flatten(0, 1)
    varies = [float(((flat[:, c] - flat[:, c].mean()) ** 2).mean()) for c in range(flat.shape[1])]
    steady = sorted(range(len(varies)), key=lambda c: varies[c])[: len(varies) // 2]
    unit = [[row[steady] / row[steady].norm() for row in frame] for frame in states]
    centre = sum(row for frame in unit for row in frame) / sum(map(len, unit))

    def kernels(row: Tensor, mean: Any) -> float:
        return sum(math.exp(-float(((row - mean) ** 2).sum()) / (2 * 2.0**k)) for k in range(-3, 2))

    to_video = [[kernels(row, centre) for row in frame] for frame in unit]
    to_frame = [[kernels(row, sum(frame) / len(frame)) for row in frame] for frame in unit]
    return to_video, to_frame


@pytest.mark.parametrize(("ratio", "scope"), [(0.25, "prompt"), (0.5, "prompt"), (0.5, "image")])
def test_vidcom2(ratio: float, scope: Any) -> None:
    to_video, to_frame = _outlying(_states())
    logits = [-sum(frame) / SIZE / 0.01 for frame in to_video]
    weights = [math.exp(value - max(logits)) for value in logits]
    p = [weight / sum(weights) for weight in weights]
    kept = []
    for frame in range(FRAMES):
        share = ratio if scope == "image" else min(1.0, ratio * (1 + p[frame] - 1 / FRAMES))
        ordinary = [a + b for a, b in zip(to_video[frame], to_frame[frame], strict=True)]
        kept += [
            frame * SIZE + j for j in sorted(range(SIZE), key=lambda j: ordinary[j])[: max(1, round(share * SIZE))]
        ]
    assert _kept(VidCom2(frame_tokens=SIZE, keep_ratio=ratio, scope=scope)) == sorted(kept)
    if scope == "prompt":
        assert max(p) > 0.5, "one frame must stand out for the shares to differ"


@pytest.mark.parametrize("ratio", [0.7, 0.5, 1.0])
def test_dycoke(ratio: float) -> None:
    states = _states()
    kept = [*range(SIZE), *range(4 * SIZE, 5 * SIZE)]
    for frame, other in ((1, 0), (2, 0), (3, 2), (5, 4)):
        likeness = [_cosine(states[frame, j], states[other, j]) for j in range(SIZE)]
        kept += [frame * SIZE + j for j in sorted(range(SIZE), key=lambda j: likeness[j])[: int((1 - ratio) * SIZE)]]
    assert _kept(DyCoke(frame_tokens=SIZE, merge_ratio=ratio)) == sorted(kept)


@pytest.mark.parametrize("pruner", [EVS(keep_ratio=0.5), DyCoke(), VidCom2(keep_ratio=0.5)], ids=lambda part: part.name)
def test_images_of_one_grid_in_a_row_are_frames(pruner: Any) -> None:
    """As the trace of models with M-RoPE has them, against one image of frames."""
    model = llava_model()
    inputs = llava_inputs([[3, 0, 0, 0, 4]])
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model(**inputs)
    mask = inputs["input_ids"] == IMAGE_TOKEN
    with vp.attach(model, replace(pruner, frame_tokens=16), mask) as whole, torch.no_grad():
        model(**inputs)
    assert handle.trace[0].tokens_per_image == [16, 16, 16]
    assert whole.trace[0].tokens_per_image == [48]
    assert handle.trace[0].kept[0] == whole.trace[0].kept[0]


@pytest.mark.parametrize("name", ["evs", "dycoke"])
def test_a_picture_is_a_first_frame(name: str) -> None:
    model = llava_model()
    with vp.attach(model, {"evs": EVS(), "dycoke": DyCoke()}[name]) as handle, torch.no_grad():
        model(**llava_inputs([[3, 0, 4]]))
    assert handle.trace[0].kept[-1] == list(range(16))


@pytest.mark.parametrize("pruner", [EVS(frame_tokens=5), DyCoke(frame_tokens=5), VidCom2(frame_tokens=5)])
def test_tokens_after_the_last_frame_stay(pruner: Any) -> None:
    assert {45, 46, 47} <= set(_kept(pruner))
    assert len(_kept(pruner)) < 40


def test_what_another_method_took() -> None:
    """A place that is gone is new in the next frame, and counts for no mean."""
    lot = RandomPruner(keep_ratio=0.6)
    drawn, states = _kept(lot), _states()
    kept = _kept(Composed(parts=(lot, EVS(frame_tokens=SIZE, keep_ratio=0.5))))
    change = {
        token: 1 - _cosine(states[token // SIZE, token % SIZE], states[token // SIZE - 1, token % SIZE])
        if token >= SIZE and token - SIZE in drawn
        else math.inf
        for token in drawn
    }
    new = sum(value == math.inf for value in change.values())
    count = max(new, round(0.5 * len(drawn)))
    assert kept == sorted(sorted(drawn, key=lambda token: -change[token])[:count])
    for pruner in (DyCoke(frame_tokens=SIZE), VidCom2(frame_tokens=SIZE)):
        both = _kept(Composed(parts=(lot, pruner)))
        assert set(both) < set(drawn)


def test_broken_numbers_leave_shares_as_they_are() -> None:
    embeds, mask = _video()
    embeds[:, BEFORE : BEFORE + FRAMES * SIZE] = float("nan")
    kept = kept_by(text_model("llama"), VidCom2(frame_tokens=SIZE), embeds, mask)[0]
    assert len(kept) == FRAMES * SIZE // 4
