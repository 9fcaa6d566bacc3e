"""A tiny LLaVA whose stages are known: attention does nothing outside chosen layers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cli.tiny_llava import save_llava
from visipruner.evaluation.samples import Sample

QUESTIONS = ("what is this ?", "where is the cat ?")


def planted(folder: Path, layers: int, active: Collection[int]) -> tuple[Any, Any]:
    """A model and its processor; only in layers `active` does attention reach the residual stream."""
    save_llava(folder, layers)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20 if "q_proj" in name or "k_proj" in name else 8)
        for number, layer in enumerate(model.model.language_model.layers):
            layer.self_attn.o_proj.weight.mul_(5 if number in active else 0)
        model.model.multi_modal_projector.linear_2.weight.mul_(20)
        model.lm_head.weight.mul_(30)  # answers that are sure of themselves
    return model, AutoProcessor.from_pretrained(folder)


def make_blind(model: Any, layers: Collection[int]) -> None:
    """From now on no query, key, value or MLP of `layers` reads what a visual token shows, only that it is one.

    What pictures show is kept in the first half of the state, which is empty for words and is never written by a layer.
    The second half has what layers read and write, and is the same for all visual tokens.
    """
    decoder = model.model.language_model
    half = decoder.config.hidden_size // 2
    projector = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        projector.weight[half:] = 0
        projector.bias[half:] = projector.bias[half:] + 3
        decoder.embed_tokens.weight[:, :half] = 0
        for number, layer in enumerate(decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            attention.o_proj.weight[:half] = 0
            mlp.down_proj.weight[:half] = 0
            if number in layers:
                for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                    reader.weight[:, :half] = 0


def pictures(folder: Path, count: int = 3, seed: int = 1) -> list[Sample]:
    """Questions about `count` unlike pictures; another `seed` draws other ones."""
    samples = []
    for number in range(count):
        noise = np.random.default_rng([seed, number]).normal(128, 80 + 10 * number, (60, 60))
        picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).convert("RGB")
        ImageDraw.Draw(picture).rectangle(
            (5 * number, 10, 30 + 5 * number, 40), fill=("red", "blue", "lime")[number % 3]
        )
        path = folder / f"{number}.png"
        picture.save(path)
        samples += [Sample(path, question, (), question.split()[0]) for question in QUESTIONS]
    return samples


def turned(folder: Path) -> Sample:
    """A question about a picture of 60 x 40 that its camera held on its side: upright it is 40 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(folder / "turned.jpg", exif=exif)
    return Sample(folder / "turned.jpg", QUESTIONS[0], ("cat",))


def sizes_seen(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[tuple[int, int]]:
    """Filled with the size of every picture that `module` asks about."""
    sizes: list[tuple[int, int]] = []
    original = module.chat_inputs

    def noted(model: Any, processor: Any, picture: Image.Image, question: str) -> Any:
        sizes.append(picture.size)
        return original(model, processor, picture, question)

    monkeypatch.setattr(module, "chat_inputs", noted)
    return sizes
