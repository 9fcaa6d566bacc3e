"""Many samples: nothing finished is done twice, nothing is mixed up, and the summary says what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.planted import pictures, planted, sizes_seen, turned
from visipruner.analysis import joint, measuring
from visipruner.analysis.joint import check
from visipruner.analysis.measuring import PARTS, Task, measure
from visipruner.analysis.study import Study
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import load_samples
from visipruner.pruners.visipruner import VisiPruner

LAYERS = 6
TASK = Task("tiny", "float32", "sdpa", max_new_tokens=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return planted(tmp_path_factory.mktemp("model"), LAYERS, (2, 3))


def test_an_interrupted_study_goes_on_where_it_was(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, task = pictures(tmp_path), replace(TASK, parts=("lens",))
    interrupted = measure(*tiny, samples, task, tmp_path / "out")
    first = [next(interrupted), next(interrupted)]
    interrupted.close()
    assert tiny[0].config.get_text_config()._attn_implementation == "sdpa"  # the probe let go
    measured = []
    original = measuring._measure_one
    monkeypatch.setattr(measuring, "_measure_one", lambda *args: measured.append(args[2]) or original(*args))
    records = list(measure(*tiny, samples, task, tmp_path / "out"))
    assert measured == samples[2:]
    assert records[:2] == json.loads(json.dumps(first))
    # Another part is added to what is there.
    measured.clear()
    more = list(measure(*tiny, samples, replace(task, parts=("lens", "cache")), tmp_path / "out"))
    assert measured == samples
    assert set(more[0]["parts"]) == {"lens", "cache"}
    assert more[0]["parts"]["lens"] == records[0]["parts"]["lens"]


@pytest.mark.parametrize("turn", [1, -1], ids=["first", "last"])
def test_parts_that_only_some_samples_have_are_left_out(tiny: tuple[Any, Any], tmp_path: Path, turn: int) -> None:
    samples, task = pictures(tmp_path, 1), replace(TASK, parts=("lens",))
    list(measure(*tiny, samples[:1], replace(task, parts=("cache", "lens")), tmp_path / "out"))
    found = Study(list(measure(*tiny, samples[::turn], task, tmp_path / "out")))
    assert found.parts == ["lens"]
    assert set(found.summary()) == {"dense", "lens"}
    assert [set(record["parts"]) for record in found.records] == [{"lens"}] * 2
    assert [set(record["seconds"]) for record in found.records] == [{"reading", "lens"}] * 2


def test_a_folder_of_another_analysis_is_refused(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples, task = pictures(tmp_path, 1), replace(TASK, parts=("lens",))
    list(measure(*tiny, samples, task, tmp_path / "out"))
    with pytest.raises(ConfigError, match="another dtype, model"):
        list(measure(*tiny, samples, replace(task, model="other", dtype="bfloat16"), tmp_path / "out"))


def test_pictures_of_one_name_are_told_apart(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    task, out = replace(TASK, parts=("lens",)), tmp_path / "out"
    lines = []
    for folder in ("day", "night"):
        (tmp_path / folder).mkdir()
        question = pictures(tmp_path / folder, 1)[0].question
        lines.append(json.dumps({"image": f"{folder}/0.png", "question": question}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    samples = load_samples(tmp_path / "data.jsonl")
    for _ in ("measured", "read again"):
        records = list(measure(*tiny, samples, task, out))
        assert [record["image"] for record in records] == [str(sample.image) for sample in samples]
    pictures(tmp_path / "night", 1, seed=9)
    list(measure(*tiny, samples, task, out))
    assert len(list((out / "samples").iterdir())) == 3


def test_a_study_goes_on_where_the_data_have_moved_and_kinds_have_changed(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    task, out = replace(TASK, parts=("lens",)), tmp_path / "out"
    (tmp_path / "here").mkdir()
    samples = [sample.named_from(tmp_path / "here") for sample in pictures(tmp_path / "here", 1)]
    list(measure(*tiny, samples[:1], task, out))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = [
        replace(sample, image=tmp_path / "there" / sample.image.name, name=sample.image_name, type="other")
        for sample in samples
    ]
    found = Study(list(measure(*tiny, moved, task, out)))
    assert len(list((out / "samples").iterdir())) == 2  # the first was not measured again
    assert found.images == [str(moved[0].image)] * 2
    assert found.types == ["other"] * 2


def test_a_folder_of_another_version(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"format_version": 3}')
    with pytest.raises(ConfigError, match="of another version of visipruner; choose another --out"):
        list(measure(*tiny, pictures(tmp_path, 1), TASK, tmp_path))


def test_pictures_are_seen_upright(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, early = turned(tmp_path), VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2, exit_layer=4)
    sizes = [sizes_seen(monkeypatch, module) for module in (measuring, joint)]
    list(measure(*tiny, [sample], replace(TASK, parts=("lens",))))
    joint.Trial(*tiny, [sample], "agreement", 1).losses(early)
    list(check(*tiny, {}, [sample], 1))
    assert sizes == [[(40, 60)], [(40, 60)] * 2]


def test_bad_parts_and_pictures(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no part 'nothing'"):
        replace(TASK, parts=("nothing",))
    sample = pictures(tmp_path, 1)[0]
    sample.image.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="is not an image that Pillow can read"):
        list(measure(*tiny, [sample], TASK))
    with pytest.raises(ConfigError, match="nothing to summarise"):
        Study([])


def test_every_part_is_summarised_and_is_json(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    records = json.loads(json.dumps(list(measure(*tiny, pictures(tmp_path), TASK))))
    found = json.loads(json.dumps(Study(records).summary(), allow_nan=False))
    assert set(found) == {"dense", "budgets", *PARTS}
    assert found["dense"]["accuracy"] is None
    below = found["sweeps"]["sweep_shallow_to_deep"]
    assert below["layer"] == list(range(LAYERS + 1))
    assert below["kl"]["mean"][0] < 1e-6 < below["kl"]["mean"][-1]
    assert below["accuracy"]["mean"] == [None] * (LAYERS + 1)
    assert set(below["by_type"]) == {"what", "where"}
    single = np.mean([record["parts"]["sweeps"]["discard"]["arrays"]["kl"]["values"] for record in records], axis=0)
    np.testing.assert_allclose(found["sweeps"]["discard"]["kl"]["mean"], single, atol=1e-5)
    assert found["attention"]["overlap_of_questions"]["pairs"] == 3
    assert found["lens"]["leading_layer"]
    assert all(record["seconds"]["sweeps"] > 0 for record in records)


def test_a_model_of_two_layers_has_no_empty_window(tmp_path: Path) -> None:
    model = planted(tmp_path / "model", 2, (1,))
    found = Study(list(measure(*model, pictures(tmp_path, 1)[:1], replace(TASK, parts=("cache",)))))
    assert found.summary()["cache"]["window"] == ["0-1", "1-2", "0-2"]


def test_known_answers_make_the_loss_accuracy(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    task = replace(TASK, parts=("sweeps",))
    plain = pictures(tmp_path)
    answers = [record["answer"] for record in measure(*tiny, plain, task)]
    are_right = [bool(number % 2 and answer) for number, answer in enumerate(answers)]  # it may say nothing
    samples = [
        replace(sample, answers=(answer if is_right else "left cat",))
        for sample, answer, is_right in zip(plain, answers, are_right, strict=True)
    ]
    records = list(measure(*tiny, samples, task))
    found = Study(records)
    assert found.has_answers
    assert [record["is_right"] for record in records] == are_right
    loss = found.loss(found.result("sweeps", "sweep_shallow_to_deep"), "accuracy")
    assert (loss[:, 0] == 0).all()
    assert (loss[1::2, -1] >= 0).all()  # right answers can only be lost
    with pytest.raises(ConfigError, match="Stages need the parts control, influence, scores"):
        found.stages()


def test_the_check_prunes_for_real(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    early = VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2, exit_layer=4)
    rows = list(check(*tiny, {"early": early}, pictures(tmp_path), 3))
    assert [row["name"] for row in rows] == ["dense", "early"]
    assert rows[0]["agreement"]["value"] == 1
    assert rows[0]["flops_cut"] == 0
    assert 0 < rows[1]["flops_cut"] < 1
    assert rows[1]["accuracy"] is None
