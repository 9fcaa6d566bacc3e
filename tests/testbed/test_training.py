"""A miniature of the training: the warm start names patches, the loss falls, resuming changes nothing."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from visipruner.errors import ConfigError
from visipruner.testbed.assembly.trained import TRAINED_FILE, export_trained, fold_trained, load_trained
from visipruner.testbed.scenes import TRAIN_STYLES, Example, LayoutOptions, Scene, draw_example
from visipruner.testbed.scenes.scene import Background, Item
from visipruner.testbed.training.loop import train
from visipruner.testbed.training.lora import add_lora, fold_lora
from visipruner.testbed.training.recipe import Recipe
from visipruner.testbed.training.warmstart import PatchTargets, fit_projector
from visipruner.testbed.training.words import collect_words

RECIPE = Recipe(
    rank=4, questions=4, batch=2, lora_rate=2e-2, projector_rate=2e-3, warmup_images=2, warm_images=6, warm_steps=20
)


def test_patches_are_labelled_with_what_they_show(model, processor, art):
    targets = PatchTargets(model, processor)
    example = draw_example("labels", 1, art, LayoutOptions(styles=TRAIN_STYLES), 0)
    labels, vectors = targets.of(example, 16)
    assert vectors.shape == (256, 32)
    named = {targets.names[label] for label in labels.tolist() if label >= 0}
    behind = example.scene.background.color or "texture"
    assert named <= {item.name for item in example.scene.items} | {behind}
    assert behind in named


def test_lora_starts_as_the_identity_and_folds_exactly(model):
    decoder = model.model.language_model
    embeds = torch.randn(1, 5, 32)
    before = decoder(inputs_embeds=embeds).last_hidden_state
    plain = {name: value.clone() for name, value in decoder.state_dict().items()}
    adapted = add_lora(decoder, rank=3)
    assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, before)
    for module in adapted.values():
        torch.nn.init.normal_(module.lora_b, std=0.1)
    changed = decoder(inputs_embeds=embeds).last_hidden_state
    state = {f"{name}.lora_{k}": getattr(m, f"lora_{k}").detach() for name, m in adapted.items() for k in "ab"}
    fresh = type(decoder)(decoder.config).eval()
    fresh.load_state_dict(plain)
    fold_lora(fresh, state)
    torch.testing.assert_close(fresh(inputs_embeds=embeds).last_hidden_state, changed, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed, before, atol=1e-2)


def test_rate_rises_stays_and_falls_over_the_last_fifth():
    recipe = Recipe()
    assert recipe.rate(0, 1000) < 0.05
    assert recipe.rate(500, 1000) == recipe.rate(800, 1000) == 1.0
    assert 0 < recipe.rate(990, 1000) < 0.06


def test_loss_falls_and_the_result_can_be_folded(model, processor, emoji, tmp_path):
    weights = train(model, processor, emoji, tmp_path, images=40, recipe=RECIPE)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    shipped = export_trained(tmp_path, tmp_path / "weights")
    assert shipped.stat().st_size < weights.stat().st_size


def test_resuming_gives_the_same_weights(model, processor, emoji, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def fresh():
        made = type(model)(model.config).eval()
        made.load_state_dict(start)
        return made

    train(fresh(), processor, emoji, tmp_path / "once", images=8, recipe=RECIPE)
    # The first half of a long run has no decay yet, so stopping it there and going on with 8 must be the same.
    whole = load_file(tmp_path / "once" / TRAINED_FILE)
    train(fresh(), processor, emoji, tmp_path / "twice", images=8, recipe=RECIPE, stop_at=4)
    train(fresh(), processor, emoji, tmp_path / "twice", images=8, recipe=RECIPE, resume=True)
    again = load_trained(tmp_path / "twice" / TRAINED_FILE)
    assert whole.keys() == again.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], again[name], atol=1e-6, rtol=1e-5)
    fold_trained(fresh(), again)
    with pytest.raises(ConfigError, match="--resume"):
        train(fresh(), processor, emoji, tmp_path / "twice", images=8, recipe=RECIPE)


def test_going_on_starts_from_the_earlier_weights(model, processor, emoji, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, processor, emoji, tmp_path / "first", images=4, recipe=RECIPE)
    earlier = load_file(tmp_path / "first" / TRAINED_FILE)

    def fresh():
        made = type(model)(model.config).eval()
        made.load_state_dict(start)
        return made

    # With rates of nothing, what comes out is what went in, but for the projector's lesson in words.
    still = dataclasses.replace(RECIPE, lora_rate=0.0, projector_rate=0.0, word_images=4, word_steps=3, practice=True)
    train(fresh(), processor, emoji, tmp_path / "next", 2, still, continue_from=tmp_path / "first")
    later = load_file(tmp_path / "next" / TRAINED_FILE)
    assert later.keys() == earlier.keys()
    for name in earlier:
        assert torch.equal(later[name], earlier[name]) == ("lora" in name)
    recorded = json.loads((tmp_path / "next" / "recipe.json").read_text())
    assert recorded["continued_from"]["recipe"]["lora_rate"] == RECIPE.lora_rate
    wider = dataclasses.replace(still, rank=8)
    with pytest.raises(ConfigError, match="rank 4"):
        train(fresh(), processor, emoji, tmp_path / "wider", 2, wider, continue_from=tmp_path / "first")


def test_digits_are_labelled_one_by_one(model, processor):
    targets = PatchTargets(model, processor, by_digit=True)
    item = Item(kind="text", name="35", x=0.5, y=0.5, size=0.5, color="black", style="sans")
    owner = np.full((336, 336), -1)
    owner[100:200, 84:252] = 0
    scene = Scene(Background("flat", "white"), (item,), blur=0.0, noise=0.0, noise_seed=0)
    labels, _ = targets.of(Example(scene, Image.new("RGB", (336, 336)), owner, []), 16)
    grid = [[targets.names[label] if label >= 0 else "" for label in row] for row in labels.reshape(16, 16).tolist()]
    assert set(grid[7][4:8]) == {"3"}
    assert set(grid[7][8:12]) == {"5"}
    assert set(grid[7][:4]) == {"white"}


def test_words_are_learnt_and_the_rest_stays(model, processor, art, emoji):
    names = PatchTargets(model, processor, by_digit=True).embeddings
    before = collect_words(model, processor, art, "words", 12)
    distance = (model.model.multi_modal_projector(before.features) - before.targets).pow(2).mean(1)
    assert distance[before.background].max() < 1e-8  # the others' target is what the projector said before
    fit_projector(model, before, names, steps=150, afresh=False)
    after = (model.model.multi_modal_projector(before.features) - before.targets).pow(2).mean(1)
    words = ~before.background
    assert after[words].mean() < 0.7 * distance[words].mean()
    assert after[before.background].mean() < 0.5 * distance[words].mean()
