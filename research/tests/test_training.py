"""A miniature of the training: the warm start names patches, the loss falls, resuming changes nothing."""

import dataclasses
import errno
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from research.scenes import TRAIN_STYLES, Example, LayoutOptions, Scene, draw_example
from research.scenes.scene import Background, Item
from research.training import course, curve, loop
from research.training.attention import Blocks, use_packed_attention
from research.training.claim import STATE_FILE, check_claim
from research.training.lessons import Lessons
from research.training.loop import Trainer, train
from research.training.recipe import LARGE, SMALL, Recipe, WarmRound
from research.training.sequence import Packer
from research.training.targets import PatchTargets
from research.training.warmstart import WarmStart, warm_start
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.easyvqa import PACKAGE
from visipruner.files import sha256_of, write_atomic
from visipruner_testbed.assembly.lora import add_lora, fold_lora, remove_lora
from visipruner_testbed.assembly.trained import (
    PROJECTOR,
    TRAINED_FILE,
    VISION,
    export_trained,
    fold_trained,
    load_trained,
)

RECIPE = Recipe(
    rank=4,
    vision_rank=4,
    questions=4,
    batch=2,
    lora_rate=2e-2,
    projector_rate=2e-3,
    images=40,
    warmup_images=2,
    easy_vqa_every=0,
    warm_rounds=(
        WarmRound("warm-start", 8, ("plain", "wordy"), large_every=4, vision_rate=5e-3, projector_rate=1e-2),
        WarmRound("warm-words", 4, ("page",), large_every=3),
    ),
    warm_batch=2,
    dtype="float32",
)


def test_patches_are_labelled_with_what_they_show(model, processor, art):
    targets = PatchTargets(model, processor)
    example = draw_example("labels", 1, art, LayoutOptions(styles=TRAIN_STYLES), 0)
    labels = targets.of(example, 16)
    assert labels.vectors.shape == (256, 32)
    named = {targets.names[label] for label in labels.names[labels.known].tolist()}
    behind = example.scene.background.color or "texture"
    assert named <= {item.name for item in example.scene.items} | {behind}
    assert behind in named
    assert int(labels.marked.sum()) == len(example.scene.items)


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
    remove_lora(decoder)
    assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, before)
    fold_lora(fresh, state)
    torch.testing.assert_close(fresh(inputs_embeds=embeds).last_hidden_state, changed, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed, before, atol=1e-2)


def test_rate_rises_stays_and_falls_over_the_last_three_fifths():
    recipe = Recipe(images=1000)
    assert recipe.rate(0) < 0.05
    assert recipe.rate(300) == recipe.rate(400) == 1.0
    assert 0 < recipe.rate(990) < 0.04


def test_the_last_pictures_and_some_before_are_large():
    sides = [Recipe(images=1000).side(image) for image in range(1000)]
    assert set(sides[880:]) == {LARGE}
    assert 0.08 < sides[:880].count(LARGE) / 880 < 0.12
    assert set(sides) == {SMALL, LARGE}


def test_loss_falls_and_the_result_can_be_folded(model, processor, emoji, tmp_path):
    weights = train(model, processor, emoji, tmp_path, RECIPE)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    shipped = export_trained(tmp_path, tmp_path / "weights")
    assert shipped.stat().st_size < weights.stat().st_size


@pytest.fixture
def fresh(model):
    """Makes the same untrained model again: a training leaves its updates in the one it is given."""
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def make():
        made = type(model)(model.config).eval()
        made.load_state_dict(start)
        return made

    return make


def test_resuming_gives_the_same_weights(fresh, processor, emoji, tmp_path):
    recipe = dataclasses.replace(RECIPE, images=8)
    train(fresh(), processor, emoji, tmp_path / "once", recipe)
    # The first half of a long run has no decay yet, so stopping it there and going on with 8 must be the same.
    whole = load_file(tmp_path / "once" / TRAINED_FILE)
    train(fresh(), processor, emoji, tmp_path / "twice", recipe, stop_at=4)
    train(fresh(), processor, emoji, tmp_path / "twice", recipe, resume=True)
    again = load_trained(tmp_path / "twice" / TRAINED_FILE)
    assert whole.keys() == again.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], again[name], atol=1e-6, rtol=1e-5)
    fold_trained(fresh(), again)
    with pytest.raises(ConfigError, match="--resume"):
        train(fresh(), processor, emoji, tmp_path / "twice", recipe)


def test_a_killed_run_goes_on_from_its_last_periodic_checkpoint(
    fresh, processor, emoji, trainer, tmp_path, monkeypatch
):
    """Killed in its third step, which alone is lost."""
    start = {PROJECTOR + name: value for name, value in trainer().projector.state_dict().items()}
    monkeypatch.setattr(loop, "warm_start", lambda *args: start)
    recipe, step, begun = dataclasses.replace(RECIPE, images=6), Trainer.step, []

    def killed_in_the_third(self):
        begun.append(self.images_seen)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return step(self)

    for run in ("once", "twice"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "warm_start.json").write_text("{}")
    whole = load_file(train(fresh(), processor, emoji, tmp_path / "once", recipe))
    monkeypatch.setattr(Trainer, "step", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), processor, emoji, tmp_path / "twice", recipe, save_every=0.0)
    again = load_file(train(fresh(), processor, emoji, tmp_path / "twice", recipe, resume=True))
    assert begun == [0, 2, 4, 4]
    assert same(again, whole)
    logged = [json.loads(line)["images"] for line in (tmp_path / "twice" / "log.jsonl").read_text().splitlines()]
    assert logged == [2, 4, 6]


@pytest.fixture
def trainer(fresh, processor, emoji):
    """Makes a `Trainer` that has learnt nothing, not even a warm start."""

    def make():
        made = fresh()
        projector = made.model.multi_modal_projector.state_dict()
        start = {PROJECTOR + name: value.clone() for name, value in projector.items()}
        return Trainer(made, processor, RECIPE, emoji, start)

    return make


def learnt(trainer):
    return {name: value.clone() for name, value in trainer.trained_state().items()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize(("image", "factor"), [(0, 1 / 2), (10, 1.0), (37, 1 / 8)])
def test_a_step_learns_at_its_rate(image, factor, trainer):
    """In the warm-up, at the peak, and with 3 of the last 24 pictures to come."""
    learner, rates = trainer(), []
    learner.images_seen = image
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.extend(group["lr"] for group in optimizer.param_groups)
    )
    assert learner.step()["rate"] == factor
    assert rates == pytest.approx([RECIPE.lora_rate * factor, RECIPE.projector_rate * factor])


def test_an_answer_is_right_when_every_token_of_it_is():
    end = 0
    labels = torch.tensor([5, 6, end, 7, end, end, 8, end])
    expected = {
        (): [True, True, True, True],
        (0,): [False, True, True, True],  # the first token of the first answer
        (2,): [False, True, True, True],  # its end
        (3,): [True, False, True, True],  # the token after another answer's end
        (5,): [True, True, False, True],  # an empty answer
        (4, 7): [True, False, True, False],
    }
    for wrong, answers in expected.items():
        right = torch.ones(len(labels), dtype=torch.bool)
        right[list(wrong)] = False
        assert loop._answers_right(right, labels, end) == answers, wrong


def test_right_answers_are_counted_by_type():
    counted = loop._count_by_type(["color", "count", "color", "color"], [True, False, False, True])
    assert counted == {"color": (2, 3), "count": (0, 1)}


@pytest.mark.parametrize(("full", "images"), [(STATE_FILE, 2), (TRAINED_FILE, 4)])
def test_a_checkpoint_that_stops_between_its_files_is_one_all_the_same(full, images, trainer, tmp_path, monkeypatch):
    def write(path, content):
        if path.name == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomic(path, content)

    first, states = trainer(), {}
    first.step()
    first.save(tmp_path)
    states[2] = learnt(first)
    first.step()
    states[4] = learnt(first)
    monkeypatch.setattr(loop, "write_atomic", write)
    with pytest.raises(OSError, match="No space"):
        first.save(tmp_path)
    again = trainer()
    again.resume(tmp_path)
    assert again.images_seen == images
    assert same(again.trained_state(), states[images])
    assert not same(states[2], states[4])


def test_an_older_checkpoint_has_its_weights_beside_it(trainer, tmp_path):
    first = trainer()
    first.step()
    first.save(tmp_path)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["trained"]
    torch.save(state, tmp_path / STATE_FILE)
    again = trainer()
    again.resume(tmp_path)
    assert again.images_seen == 2
    assert same(again.trained_state(), first.trained_state())


def test_a_log_holds_each_step_once_also_after_a_stop_before_the_first_checkpoint(
    fresh, processor, emoji, trainer, tmp_path, monkeypatch
):
    start = {PROJECTOR + name: value for name, value in trainer().projector.state_dict().items()}
    (tmp_path / "warm_start.json").write_text("{}")
    monkeypatch.setattr(loop, "warm_start", lambda *args: start)
    log = tmp_path / "log.jsonl"
    log.write_text('{"images": 2}\n{"images": 4}\n{"imag')
    train(fresh(), processor, emoji, tmp_path, RECIPE, stop_at=4)
    assert [json.loads(line)["images"] for line in log.read_text().splitlines()] == [2, 4]
    with log.open("a") as file:
        file.write('{"images": 6}\n{"imag')
    train(fresh(), processor, emoji, tmp_path, RECIPE, resume=True, stop_at=6)
    assert [json.loads(line)["images"] for line in log.read_text().splitlines()] == [2, 4, 6]


def test_a_full_disk_leaves_the_log(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    log.write_text('{"images": 2}\n{"images": 4}\n')
    whole = log.read_bytes()

    def full(path, text):
        with path.open("w") as file:
            file.write(text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(log), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        loop._forget_after(log, 2)
    assert log.read_bytes() == whole


def _interrupted(folder, recipe, sha256=None):
    record = {"recipe": dataclasses.asdict(recipe)}
    if sha256 is not None:
        record["continued_from"] = {"sha256": sha256}
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / STATE_FILE).write_text("")


def test_a_training_goes_on_with_the_settings_it_was_begun_with(tmp_path):
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    earlier.mkdir()
    (earlier / TRAINED_FILE).write_text("weights")
    check_claim(run, RECIPE, None, resume=False)
    _interrupted(run, RECIPE)
    check_claim(run, dataclasses.replace(RECIPE, images=80), None, resume=True)
    with pytest.raises(ConfigError, match="--resume and the settings it was begun with"):
        check_claim(run, RECIPE, None, resume=False)
    other = dataclasses.replace(RECIPE, dtype="bfloat16", rank=8)
    with pytest.raises(
        ConfigError, match=r"\(rank 4 instead of 8, dtype 'float32' instead of 'bfloat16'\); give those"
    ):
        check_claim(run, other, None, resume=True)
    with pytest.raises(ConfigError, match="continued from no earlier weights instead of weights of sha256"):
        check_claim(run, RECIPE, earlier, resume=True)
    _interrupted(run, RECIPE, sha256_of(earlier / TRAINED_FILE))
    check_claim(run, RECIPE, earlier, resume=True)
    for another in (None, tmp_path / "gone"):
        with pytest.raises(ConfigError, match=r"instead of no earlier weights"):
            check_claim(run, RECIPE, another, resume=True)


def test_settings_that_another_version_did_not_know_do_not_count(tmp_path):
    _interrupted(tmp_path, RECIPE)
    record = json.loads((tmp_path / "recipe.json").read_text())
    del record["recipe"]["tallying"]
    record["recipe"]["even_images"] = 240
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    check_claim(tmp_path, RECIPE, None, resume=True)


def test_a_warm_start_that_was_interrupted_goes_on_with_its_own_settings(
    fresh, processor, emoji, tmp_path, monkeypatch
):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "warm_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), processor, emoji, tmp_path, RECIPE)
    with pytest.raises(ConfigError, match="dtype 'float32' instead of 'bfloat16'"):
        train(fresh(), processor, emoji, tmp_path, dataclasses.replace(RECIPE, dtype="bfloat16"), resume=True)


def test_going_on_starts_from_the_earlier_weights(fresh, processor, emoji, tmp_path):
    train(fresh(), processor, emoji, tmp_path / "first", dataclasses.replace(RECIPE, images=4))
    earlier = load_file(tmp_path / "first" / TRAINED_FILE)
    # With rates of nothing, what comes out is what went in.
    still = dataclasses.replace(RECIPE, images=2, lora_rate=0.0, projector_rate=0.0)
    train(fresh(), processor, emoji, tmp_path / "next", still, continue_from=tmp_path / "first")
    later = load_file(tmp_path / "next" / TRAINED_FILE)
    assert later.keys() == earlier.keys()
    for name in earlier:
        assert torch.equal(later[name], earlier[name])
    recorded = json.loads((tmp_path / "next" / "recipe.json").read_text())
    assert recorded["continued_from"]["recipe"]["lora_rate"] == RECIPE.lora_rate
    wider = dataclasses.replace(still, rank=8)
    with pytest.raises(ConfigError, match="rank 4"):
        train(fresh(), processor, emoji, tmp_path / "wider", wider, continue_from=tmp_path / "first")


def test_the_course_goes_from_parts_to_weights_and_resumes(fresh, processor, emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(course, "assemble", lambda size: SimpleNamespace(model=fresh(), processor=processor))
    first, second, third = (dataclasses.replace(RECIPE, seed=f"train-{n}", images=2 * n) for n in (1, 2, 3))
    monkeypatch.setattr(course, "EARLIER_PARTS", {"first": first, "second": second})
    monkeypatch.setattr(course, "LAST_PART", third)
    weights = course.run_course(emoji, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "recipe.json").read_text())
    chain = [recorded, recorded["continued_from"], recorded["continued_from"]["continued_from"]]
    assert [part["recipe"]["seed"] for part in chain] == ["train-3", "train-2", "train-1"]
    assert "warm_start" in chain[-1]
    whole = load_file(weights)
    logs = course.course_logs(tmp_path / "run")
    assert [len(log.read_text().splitlines()) * RECIPE.batch for log in logs] == [2, 4, 6]
    curve.plot_logs(logs, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width > 2 * drawn.height > 400
    with pytest.raises(ConfigError, match="--resume"):
        course.run_course(emoji, tmp_path / "run")
    course.run_course(emoji, tmp_path / "run", resume=True)  # finished long ago
    # Refused before anything is trained: what is in the folder went on from other weights than it would now.
    (tmp_path / "run" / "second").rename(tmp_path / "second")
    with pytest.raises(ConfigError, match=r"continued from weights of sha256 \w{8} instead of no earlier weights"):
        course.run_course(emoji, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "second").exists()
    (tmp_path / "second").rename(tmp_path / "run" / "second")
    with pytest.raises(ConfigError, match="seed 'train-3' instead of 'other'"):
        course.run_course(emoji, tmp_path / "run", resume=True, seed="other")
    alone = course.run_course(emoji, tmp_path / "alone", continue_from=tmp_path / "run" / "second")
    for path in (weights, alone):
        again = load_file(path)
        assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_later_part_sees_more_and_then_tells_more(fresh, processor, emoji, tmp_path):
    """Rounds of seeing change the vision tower alone; what is asked after them is of the parts with small things."""
    train(fresh(), processor, emoji, tmp_path / "first", dataclasses.replace(RECIPE, images=4))
    before = load_file(tmp_path / "first" / TRAINED_FILE)
    rounds = (WarmRound("sight", 4, ("local", "documents", "photographs"), 1, vision_rate=5e-3, projector_rate=0.0),)
    parts = ("local", "plain", "documents", "many")
    recipe = dataclasses.replace(RECIPE, seed="next", images=8, sight_rounds=rounds, parts=parts, photograph_share=0.5)
    assert [recipe.part(image) for image in range(5)] == [*parts, "local"]
    assert [recipe.side(image) == LARGE for image in range(1, 3)] == [False, True]
    train(fresh(), processor, emoji, tmp_path / "next", recipe, continue_from=tmp_path / "first", stop_at=4)
    seen = load_file(tmp_path / "next" / "warm_start.safetensors")
    moved = {name for name in seen if not torch.allclose(seen[name], before[name], atol=1e-6)}
    assert moved
    assert all(name.startswith(VISION) for name in moved)
    assert json.loads((tmp_path / "next" / "recipe.json").read_text())["warm_start"].keys() == {"16", "24"}
    resumed = train(fresh(), processor, emoji, tmp_path / "next", recipe, resume=True, continue_from=tmp_path / "first")
    once = train(fresh(), processor, emoji, tmp_path / "once", recipe, continue_from=tmp_path / "first")
    for name, value in load_file(once).items():
        torch.testing.assert_close(load_file(resumed)[name], value, atol=1e-6, rtol=1e-5)
    kinds = {
        kind
        for line in (tmp_path / "once" / "log.jsonl").read_text().splitlines()
        for kind in json.loads(line)["right"]
    }
    assert {"after-label", "count-many"} & kinds


def test_digits_are_labelled_one_by_one(model, processor):
    targets = PatchTargets(model, processor)
    item = Item(kind="text", name="35", x=0.5, y=0.5, size=0.5, color="black", style="sans")
    owner = np.full((336, 336), -1)
    owner[100:200, 84:252] = 0
    scene = Scene(Background("flat", "white"), (item,), blur=0.0, noise=0.0, noise_seed=0)
    labels = targets.of(Example(scene, Image.new("RGB", (336, 336)), owner, []), 16)
    named = [targets.names[label] if label >= 0 else "" for label in labels.names.tolist()]
    grid = [named[row * 16 : row * 16 + 16] for row in range(16)]
    assert set(grid[7][4:8]) == {"3"}
    assert set(grid[7][8:12]) == {"5"}
    assert set(grid[7][:4]) == {"white"}
    assert labels.marked.reshape(16, 16)[8, 8]


def test_the_warm_start_learns_goes_on_and_leaves_the_model(model, processor, emoji, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = warm_start(model, processor, emoji, RECIPE, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(json.loads((tmp_path / "warm_start.json").read_text())) == {"16", "24"}
    halfway = WarmStart(model, processor, emoji, RECIPE)
    for _ in range(5):
        halfway.step()
    remove_lora(model.model.vision_tower)
    (tmp_path / "again").mkdir()
    halfway.save(tmp_path / "again" / "warm_start.pt")
    again = warm_start(model, processor, emoji, RECIPE, tmp_path / "again")
    assert state.keys() == again.keys()
    for name in state:
        torch.testing.assert_close(state[name], again[name], atol=1e-6, rtol=1e-5)
    longer = dataclasses.replace(RECIPE, warm_rounds=(dataclasses.replace(RECIPE.warm_rounds[0], images=120),))
    fitted = WarmStart(model, processor, emoji, longer)
    losses = [fitted.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_packed_attention_is_sdpa(model, processor, art):
    decoder = model.model.language_model
    packer = Packer(processor, 16)
    packed = packer.pack([draw_example("packed", 3, art, LayoutOptions(styles=TRAIN_STYLES), 5).questions])
    mask = torch.zeros(packed.attention_mask.shape).masked_fill(~packed.attention_mask, -1e30)
    embeds = torch.randn(1, packed.input_ids.shape[1], 32, requires_grad=True)
    inputs = {"inputs_embeds": embeds, "position_ids": packed.position_ids, "use_cache": False}
    decoder.set_attn_implementation("sdpa")
    expected = decoder(**inputs, attention_mask=mask).last_hidden_state
    use_packed_attention(decoder)
    given = decoder(**inputs, packed=Blocks.of(packed, len(packer.prefix))).last_hidden_state
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)
    direction = torch.randn_like(expected)
    wanted, found = (torch.autograd.grad(out, embeds, direction)[0] for out in (expected, given))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_every_twelfth_lesson_is_of_easy_vqas_training_part(emoji):
    lessons = Lessons(Recipe(), emoji)
    shown = [lessons.lesson(image) for image in range(24)]
    of_easy_vqa = [index for index, (_, asked) in enumerate(shown) if {q.type for q in asked} == {PACKAGE}]
    assert of_easy_vqa == [11, 23]
    assert all(shown[index][0].size == (64, 64) for index in of_easy_vqa)
    assert not any(q.type == PACKAGE for q in shown[0][1])
    assert lessons.lesson(11)[1] == shown[11][1]


def test_easy_vqa_is_asked_for_by_name_where_it_is_missing(emoji, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ConfigError, match=r"visipruner\[easy-vqa\]"):
        Lessons(Recipe(), emoji)
