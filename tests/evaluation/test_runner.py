"""Methods in turns over samples: complete, resumable, and what the records say is what was done."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from PIL import Image

from tests.analysis.planted import pictures, planted, sizes_seen, turned
from visipruner import FixedSchedule, VisiPruner, attach
from visipruner.chat import chat_inputs
from visipruner.errors import ConfigError
from visipruner.evaluation import DENSE, evaluate, matched
from visipruner.evaluation import folder as files
from visipruner.evaluation import runner as runner_module
from visipruner.evaluation.folder import Processes
from visipruner.evaluation.samples import Sample
from visipruner.images import open_image
from visipruner.pruners.composed import Composed
from visipruner.pruners.registry import make

LAYERS = 6


@dataclass(frozen=True, kw_only=True)
class _AsManyAsWords(FixedSchedule):
    """Reads the question: as many tokens stay as it has words."""

    name: ClassVar[str] = "as-many-as-words"

    def asked(self, question: str) -> Self:
        return replace(self, keep=(len(question.split()),))


METHODS = {
    "schedule": FixedSchedule(layers=(1,), keep=(3,)),
    "early": VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2, exit_layer=4),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return planted(tmp_path_factory.mktemp("model"), LAYERS, (2, 3))


def test_every_method_sees_every_sample(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples = pictures(tmp_path, 2)
    records = list(evaluate(*tiny, samples, METHODS, max_new_tokens=3))
    assert [record["question"] for record in records] == [sample.question for sample in samples]
    for record in records:
        assert list(record["given"]) == [DENSE, *METHODS]
        dense, schedule = record["given"][DENSE], record["given"]["schedule"]
        assert dense["flops_cut"] == 0
        assert dense["tokens_per_layer"] == [25] * LAYERS
        assert schedule["tokens_per_layer"] == [25, 25, 3, 3, 3, 3]
        assert 0 < schedule["flops_cut"] < 1
        assert 0 < schedule["prefill_seconds"] <= schedule["seconds"]
        assert "kept" not in schedule
        early = record["given"]["early"]
        assert 0 < early["selection_seconds"] < early["prefill_seconds"]
    spent = {name: min(record["given"][name]["selection_seconds"] for record in records) for name in (DENSE, "early")}
    assert spent[DENSE] < spent["early"]  # the least of all samples: a busy machine may hold up any one of them
    plain = chat_inputs(*tiny, open_image(samples[0].image), samples[0].question)
    said = tiny[0].generate(**plain, max_new_tokens=3, do_sample=False)[0, plain["input_ids"].shape[1] :]
    assert records[0]["given"][DENSE]["answer"] == tiny[1].decode(said, skip_special_tokens=True).strip()


def test_a_methods_own_seconds_are_told_on_the_cpu_only(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a function returns before its work is done, so what the clock reads says nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(type(tiny[0]), "device", torch.device("cuda"))
        comparison = runner_module.Comparison(*tiny, METHODS, max_new_tokens=1)
    given = comparison.records(pictures(tmp_path, 1)[:1], 0)[0]["given"]
    assert [one["selection_seconds"] for one in given.values()] == [None] * 3
    assert all(one["prefill_seconds"] > 0 for one in given.values())


def test_pictures_are_seen_upright(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_seen(monkeypatch, runner_module)
    list(evaluate(*tiny, [turned(tmp_path)], METHODS, max_new_tokens=1))
    assert sizes == [(40, 60)]


def test_kept_sets_are_written_where_they_change(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    sample = pictures(tmp_path, 1)[0]
    [record] = evaluate(*tiny, [sample], METHODS, max_new_tokens=1, keep_sets=True)
    with attach(tiny[0], METHODS["early"]) as handle, torch.no_grad():
        tiny[0](**chat_inputs(*tiny, open_image(sample.image), sample.question))
        kept = handle.trace[0].kept
    given = record["given"]["early"]["kept"]
    assert list(given) == ["0", "3", "4"]
    assert all(given[layer] == kept[int(layer)] for layer in given)


def test_questions_about_one_image_can_share_it(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples = pictures(tmp_path, 2)
    mixed = [samples[0], samples[2], samples[1], samples[3]]
    alone = list(evaluate(*tiny, samples, METHODS, max_new_tokens=3))
    shared = list(evaluate(*tiny, mixed, METHODS, max_new_tokens=3, share_images=True))
    assert [record["key"] for record in shared] == [record["key"] for record in alone]
    for name in (DENSE, *METHODS):
        given = [record["given"][name] for record in shared]
        assert [one["answer"] for one in given] == [record["given"][name]["answer"] for record in alone]
        assert [one["tokens_per_layer"] for one in given] == [r["given"][name]["tokens_per_layer"] for r in alone]
        for number in (1, 3):  # the second question about each image finds the image's work done
            assert given[number]["flops_cut"] > alone[number]["given"][name]["flops_cut"]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_give_the_answers_of_one_at_a_time(tiny: tuple[Any, Any], tmp_path: Path, batch_size: int) -> None:
    """Prompts of unlike length, methods that can share a batch and two that cannot."""
    asking = _AsManyAsWords(layers=(1,), keep=(1,))
    methods = {**METHODS, "asking": asking, "then": Composed(parts=(make("random", keep_tokens=20), asking))}
    samples = pictures(tmp_path, 2)
    samples[1] = replace(samples[1], question=samples[1].question + " the cat ? left right")
    alone = list(evaluate(*tiny, samples, methods, max_new_tokens=4, keep_sets=True))
    together = list(evaluate(*tiny, samples, methods, max_new_tokens=4, keep_sets=True, batch_size=batch_size))
    assert len({record["given"][DENSE]["answer"] for record in alone}) > 1
    for one, other in zip(alone, together, strict=True):
        for name in (DENSE, *methods):
            first, second = one["given"][name], other["given"][name]
            unlike = {"seconds", "prefill_seconds", "selection_seconds", "flops_cut"}  # FLOPs count padding that runs
            assert {key: first[key] for key in first.keys() - unlike} == {
                key: second[key] for key in second.keys() - unlike
            }
    assert {record["given"]["asking"]["tokens_per_layer"][-1] for record in together} == {
        len(sample.question.split()) for sample in samples
    }
    with pytest.raises(ConfigError, match="Prompts of a batch share no image"):
        next(evaluate(*tiny, samples, methods, share_images=True, batch_size=2))


def test_an_answer_of_a_batch_ends_where_it_would_alone(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word that one answer begins with ends that answer, and no longer one that is beside it in the batch."""
    model, processor = tiny
    samples = pictures(tmp_path, 2)

    def told(size: int) -> list[tuple[str, int]]:
        records = evaluate(model, processor, samples, {}, max_new_tokens=4, batch_size=size)
        return [(record["given"][DENSE]["answer"], record["given"][DENSE]["tokens"]) for record in records]

    words = [answer.split() for answer, _ in told(1)]
    end = next(said[0] for said in words if any(said[0] not in other for other in words))
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, processor.tokenizer.convert_tokens_to_ids(end)])
    assert told(4) == told(1)
    assert len({tokens for _, tokens in told(4)}) > 1


def test_a_batch_interrupted_goes_on(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples, out = pictures(tmp_path, 2), tmp_path / "out"
    running = evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out, batch_size=3)
    next(running)
    running.close()
    assert len((out / "samples.jsonl").read_text().splitlines()) == 3
    assert len(list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out, batch_size=3))) == len(samples)
    with pytest.raises(ConfigError, match="other batch_size"):
        list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out))


def test_many_images_are_put_together_without_comparing_each_with_all(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []

    class Watched(type(Path())):  # type: ignore[misc]
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return bool(super().__eq__(other))

        __hash__ = type(Path()).__hash__

    monkeypatch.setattr(runner_module.Comparison, "records", lambda self, samples, turn: samples)
    samples = [Sample(Watched(f"{number}.png"), question) for question in ("a", "b") for number in range(100)]
    asked = list(evaluate(*tiny, samples, METHODS, share_images=True))
    assert [sample.question for sample in asked] == ["a", "b"] * 100
    assert [str(sample.image) for sample in asked[::2]] == [f"{number}.png" for number in range(100)]
    assert len(compared) < 5 * len(samples)


def test_an_interrupted_evaluation_goes_on(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, out = pictures(tmp_path, 2), tmp_path / "out"
    running = evaluate(*tiny, samples, METHODS, max_new_tokens=2, folder=out)
    first = next(running)
    running.close()
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # the power went off here
    asked: list[int] = []
    original = runner_module.Comparison._give
    monkeypatch.setattr(runner_module.Comparison, "_give", lambda *args: asked.append(args[-1]) or original(*args))
    records = list(evaluate(*tiny, samples, METHODS, max_new_tokens=2, folder=out))
    assert records[0] == json.loads(json.dumps(first))
    assert len(asked) == 3 + 3 * (len(samples) - 1)  # one warm-up each, then what was missing
    assert len((out / "samples.jsonl").read_text().splitlines()) == len(samples)
    with pytest.raises(ConfigError, match="other max_new_tokens"):
        list(evaluate(*tiny, samples, METHODS, max_new_tokens=3, folder=out))
    with pytest.raises(ConfigError, match="other methods"):
        list(evaluate(*tiny, samples, {"early": METHODS["early"]}, max_new_tokens=2, folder=out))


def test_only_a_newline_ends_a_line_of_records(tmp_path: Path) -> None:
    records = {name: {"key": name, "question": "one\u2028two\u2029three\u0085four\x0b?"} for name in ("a", "b")}
    for record in records.values():
        files.append(tmp_path, record, Processes())
    assert files.finished(tmp_path / "samples.jsonl") == records
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write('{"key": "猫'.encode()[:-1])  # the power went off within a character
    assert files.finished(tmp_path / "samples.jsonl") == records


def test_answers_belong_to_the_picture_and_not_to_its_name(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, out = [replace(sample, name=sample.image.name) for sample in pictures(tmp_path, 2)], tmp_path / "out"
    list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out))
    moved = [replace(sample, image=tmp_path / "moved" / sample.name) for sample in samples]
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=lambda *_: ["out", "moved"])
    with monkeypatch.context() as patched:
        patched.setattr(runner_module.Comparison, "records", lambda *_: pytest.fail("asked again"))
        assert len(list(evaluate(*tiny, moved, METHODS, max_new_tokens=1, folder=out))) == len(samples)
    Image.new("RGB", (60, 60), "white").save(moved[2].image)
    assert len(list(evaluate(*tiny, moved[:2], METHODS, max_new_tokens=1, folder=out))) == 2  # it is not asked
    with pytest.raises(ConfigError, match=r"answers about another picture called 1\.png; choose another --out"):
        list(evaluate(*tiny, moved, METHODS, max_new_tokens=1, folder=out))
    assert len((out / "samples.jsonl").read_text().splitlines()) == len(samples)


def test_a_folder_of_another_version(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"format_version": 2}')
    with pytest.raises(ConfigError, match="of another version of visipruner; choose another --out"):
        list(evaluate(*tiny, pictures(tmp_path, 1), METHODS, max_new_tokens=1, folder=tmp_path))


def test_answers_without_their_settings_are_not_taken(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples, out = pictures(tmp_path, 1), tmp_path / "out"
    list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out))
    (out / "settings.json").unlink()
    with pytest.raises(ConfigError, match=r"no settings\.json that says what gave them; choose another --out"):
        list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out))


def test_bad_methods_and_pictures(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    sample = pictures(tmp_path, 1)[0]
    with pytest.raises(ConfigError, match="always measured"):
        list(evaluate(*tiny, [sample], {DENSE: METHODS["early"]}))
    with pytest.raises(ConfigError, match="the model's last layer is 5"):
        list(evaluate(*tiny, [sample], {"late": FixedSchedule(layers=(99,), keep=(1,))}))
    sample.image.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not an image that Pillow can read"):
        list(evaluate(*tiny, [sample], METHODS))


@pytest.mark.parametrize("name", ["fastv", "random", "divprune", "pyramiddrop", "capa"])
@pytest.mark.parametrize("axis", ["flops", "tokens"])
def test_budgets_match_what_is_asked(tiny: tuple[Any, Any], tmp_path: Path, name: str, axis: str) -> None:
    sample = pictures(tmp_path, 1)[0]
    prompt = chat_inputs(*tiny, open_image(sample.image), sample.question)
    settings = {"layers": [1, 2, 4]} if name == "pyramiddrop" else {"layer": 1} if name == "capa" else {}
    found = matched(tiny[0], [prompt], make(name, **settings), axis, 0.4, tolerance=0.03)
    with attach(tiny[0], found) as handle:
        tiny[0](**prompt)
    if axis == "flops":
        assert handle.trace.flops_cut(0) == pytest.approx(0.4, abs=0.03)
    else:
        kept = sum(map(len, handle.trace[0].kept[:-1]))
        assert 1 - kept / (25 * LAYERS) == pytest.approx(0.4, abs=0.03)


def test_budgets_that_cannot_match(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    sample = pictures(tmp_path, 1)[0]
    prompt = chat_inputs(*tiny, open_image(sample.image), sample.question)
    late = make("fastv", layer=5)
    with pytest.raises(ConfigError, match="by its budget alone"):
        matched(tiny[0], [prompt], late, "flops", 0.6)
    with pytest.raises(ConfigError, match="has no budget"):
        matched(tiny[0], [prompt], METHODS["schedule"], "flops", 0.3)
    with pytest.raises(ConfigError, match="not by 'seconds'"):
        matched(tiny[0], [prompt], late, "seconds", 0.3)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        matched(tiny[0], [prompt], late, "flops", 1.5)
