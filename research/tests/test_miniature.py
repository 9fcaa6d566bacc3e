"""Training end to end in miniature, interrupted and resumed: it learns to answer from the picture, and loses that with
the picture blanked."""

import json
from random import Random
from statistics import mean

import torch
from safetensors.torch import load_file

from research.scenes import Example, LayoutOptions, Question, Scene
from research.scenes.render import render
from research.scenes.scene import Background
from research.scenes.vocabulary import COLORS
from research.training import lessons
from research.training.loop import LOG_FILE, Trainer, train
from research.training.recipe import SMALL, Recipe, WarmRound
from research.training.sight import as_pixels, vision_features
from visipruner_testbed.assembly.trained import TRAINED_FILE

RECIPE = Recipe(
    images=320,
    rank=16,
    questions=1,
    batch=4,
    lora_rate=1e-2,
    projector_rate=3e-3,
    warmup_images=8,
    large_every=1000,
    large_share=0.0,
    easy_vqa_every=0,
    warm_rounds=(WarmRound("warm-start", 12, ("plain",), large_every=4),),
    warm_batch=2,
    dtype="float32",
)


def plain_example(seed, index, art, options, questions, mix=None):
    """An empty scene and the one question whose answer a random vision tower still shows: the background's colour."""
    rng = Random(f"{seed}/{index}")
    color = rng.choice(sorted(COLORS))
    scene = Scene(Background("flat", color), (), blur=0.0, noise=0.0, noise_seed=rng.getrandbits(32))
    picture, owner = render(scene, art, canvas=56)
    return Example(scene, picture, owner, [Question("What color is the background?", color, "background")])


@torch.no_grad()
def held_out_loss(trainer, processor, blank):
    """Mean loss per answer token over pictures of another seed, or over as many blank ones."""
    losses = []
    for index in range(40):
        example = plain_example("held-out", index, None, LayoutOptions(styles=()), 1)
        pixels = as_pixels(processor.image_processor, [example.picture], SMALL * 14)
        packer = trainer.packers[SMALL]
        row = packer.pack([example.questions])
        features = vision_features(trainer.model, torch.zeros_like(pixels) if blank else pixels)
        loss, _ = trainer.loss(features, row, len(packer.prefix))
        losses.append(float(loss / row.weights.sum()))
    return mean(losses)


def test_training_learns_to_look(model, processor, emoji, tmp_path, monkeypatch):
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def fresh():
        made = type(model)(model.config).eval()
        made.load_state_dict(start)
        return made

    monkeypatch.setattr(lessons, "draw_example", plain_example)
    train(fresh(), processor, emoji, tmp_path, RECIPE, stop_at=RECIPE.images // 2)
    train(fresh(), processor, emoji, tmp_path, RECIPE, resume=True)
    steps = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [step["images"] for step in steps] == list(range(4, RECIPE.images + 1, 4))
    losses = [step["loss"] for step in steps]
    trainer = Trainer(fresh(), processor, RECIPE, emoji, load_file(tmp_path / TRAINED_FILE))
    trainer.resume(tmp_path)
    seen, blanked = (held_out_loss(trainer, processor, blank) for blank in (False, True))
    assert mean(losses[-20:]) < 0.7 * mean(losses[:20])
    assert seen < 0.8 * blanked
