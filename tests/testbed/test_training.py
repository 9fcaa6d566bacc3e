"""A miniature of the training: the warm start names patches, the loss falls, resuming changes nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file

from visipruner.errors import ConfigError
from visipruner.testbed.assembly.trained import TRAINED_FILE, export_trained, fold_trained, load_trained
from visipruner.testbed.scenes import TRAIN_STYLES, LayoutOptions, draw_example
from visipruner.testbed.training.loop import Recipe, train
from visipruner.testbed.training.lora import add_lora, fold_lora
from visipruner.testbed.training.warmstart import PatchTargets

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
