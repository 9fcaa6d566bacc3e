"""The experiment from its lessons to its records; every finished training stays on disk and is not done again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from research.guidelines.arms import PLAIN, PRUNED, Arm, Stages, arms, staged
from research.guidelines.costs import inference_costs, training_costs
from research.guidelines.entries import enter_at
from research.guidelines.learner import Learner, Pace
from research.guidelines.lessons import Lesson
from research.guidelines.passing import answers_alone, run
from research.training.sequence import Packer
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.errors import ConfigError
from visipruner.files import write_atomic, write_json
from visipruner_testbed.assembly.lora import LoraLinear

SETTINGS_FILE, RESULT_FILE, LOG_FILE, COSTS_FILE = "settings.json", "result.json", "log.jsonl", "costs.json"
_STATE_FILE, _WEIGHTS_FILE = "state.pt", "trained.safetensors"


@dataclass(frozen=True)
class Plan:
    """What decides the outcome, but for the model and its lessons.

    Attributes:
        stages: see `Stages`. learnt: also train the arm with learnt layers. seeds: of the trainings' pictures.
        pictures, questions: per training, and per picture. test_pictures: how many pictures are asked about at the end.
        timed: rounds of the timing. start: what every arm starts from, in words.
    """

    stages: Stages = field(default_factory=Stages)
    learnt: bool = False
    seeds: int = 3
    pictures: int = 100
    questions: int = 8
    test_pictures: int = 50
    timed: int = 5
    start: str = "shipped"
    pace: Pace = field(default_factory=Pace)

    def arms(self) -> list[Arm]:
        return arms(self.stages, self.learnt)


@dataclass(frozen=True)
class Bench:
    """The model and what is taught. `start` are the values that every training begins with, by place in
    `Learner.state`; `lessons(seed)` the pictures of a seed; `pruner` what is put on the plain model, or None."""

    model: Any
    adapted: dict[str, LoraLinear]
    packer: Packer
    lessons: Callable[[int], list[Lesson]]
    test: Callable[[], list[Lesson]]
    pruner: Pruner | None

    def trained(self) -> list[Tensor]:
        """The tensors that every arm trains."""
        lora = [p for module in self.adapted.values() for p in (module.lora_a, module.lora_b)]
        return [*lora, *self.model.model.multi_modal_projector.parameters()]


def experiment(bench: Bench, plan: Plan, out: Path, save_every: float = 60.0) -> dict[str, Any]:
    """Trains every arm with every seed, asks each about the test pictures, measures costs; returns the records.

    A folder that was interrupted is gone on with, also by a plan with more arms or seeds; another raises ConfigError.
    """
    _claim(out, plan)
    start = [tensor.detach().clone() for tensor in bench.trained()]
    records = []
    for seed in range(plan.seeds):
        lessons: list[Lesson] = []
        for arm in plan.arms():
            folder = out / "runs" / f"{arm.name}-{seed}"
            if not (folder / RESULT_FILE).exists():
                lessons = lessons or bench.lessons(seed)
                _restore(bench, start)
                entry = None
                if arm.fitted:
                    layer = int(arm.alignment.inject_layer)
                    kept = out / "entries" / f"{seed}-{layer}.pt"
                    entry = enter_at(bench.model, bench.packer, lessons, layer, kept)
                _train(bench, plan, arm, lessons, folder, save_every, entry)
            record = json.loads((folder / RESULT_FILE).read_text())
            log = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
            records.append({"arm": arm.name, "letters": arm.letters, "seed": seed, **record, "log": log})
    costs = json.loads((out / COSTS_FILE).read_text()) if (out / COSTS_FILE).exists() else {}
    measured = costs.get("inference", {}).keys()
    if not {arm.name for arm in plan.arms()} <= measured or costs.get("rounds") != plan.timed:
        _restore(bench, start)
        costs = _costs(bench, plan)
        write_json(out / COSTS_FILE, costs)
    return {"plan": asdict(plan), "records": records, "costs": costs}


def _claim(out: Path, plan: Plan) -> None:
    settings = json.loads(json.dumps(asdict(plan)))
    known = out / SETTINGS_FILE
    if known.exists() and _deciding(json.loads(known.read_text())) != _deciding(settings):
        raise ConfigError(f"{out} holds an experiment with other settings; go on with those, or choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(known, settings)


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what only adds trainings, and what only measures."""
    stages = {key: value for key, value in settings["stages"].items() if key != "also"}
    return {key: value for key, value in settings.items() if key not in ("seeds", "learnt", "timed")} | {
        "stages": stages
    }


@torch.no_grad()
def _restore(bench: Bench, start: Sequence[Tensor]) -> None:
    for tensor, value in zip(bench.trained(), start, strict=True):
        tensor.copy_(value)


def _train(
    bench: Bench,
    plan: Plan,
    arm: Arm,
    lessons: Sequence[Lesson],
    folder: Path,
    save_every: float,
    entry: dict[str, float] | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with staged(bench.model, arm) as (_, gates):
        learner = Learner(bench.model, bench.adapted, bench.packer, gates, plan.pace)
        lessons = lessons if arm.trains else []
        state, log = folder / _STATE_FILE, folder / LOG_FILE
        lines = _logged(log)
        if state.exists():
            learner.resume(state)
        lines = [line for line in lines if line["pictures"] <= learner.pictures_seen]
        bar = tqdm(total=len(lessons), initial=learner.pictures_seen, desc=folder.name, unit="image", disable=None)
        saved = time.monotonic()
        while learner.pictures_seen < len(lessons):
            began = time.perf_counter()
            measured = learner.step(lessons)
            lines.append({**measured, "seconds": round(time.perf_counter() - began, 3)})
            bar.update(measured["pictures"] - bar.n)
            if time.monotonic() - saved > save_every:
                _write_log(log, lines)
                learner.save(state)
                saved = time.monotonic()
        bar.close()
        _write_log(log, lines)
        if gates is not None:
            gates.eval()
        bench.model.eval()
        test = bench.test()
        result: dict[str, Any] = {"answers": _examined(bench, test, gates, alone=arm.is_sparse), "entry": entry}
        if gates is not None:
            result |= {"inject_layer": gates.inject_layer, "exit_layer": gates.exit_layer}
    if arm.name == PLAIN and bench.pruner is not None:
        with attach(bench.model, bench.pruner):
            result["pruned_answers"] = _examined(bench, test, None, alone=True)
    result["fingerprint"] = _fingerprint(bench.trained())
    weights = {str(index): tensor.detach().bfloat16().clone() for index, tensor in enumerate(bench.trained())}
    write_atomic(folder / _WEIGHTS_FILE, lambda part: save_file(weights, part))
    write_json(folder / RESULT_FILE, result)
    state.unlink(missing_ok=True)


def _logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _write_log(log: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(log, lambda part: part.write_text(text))


def _examined(bench: Bench, test: Sequence[Lesson], gates: Any, alone: bool) -> list[dict[str, Any]]:
    """Every test question's picture, type and whether it is answered right.

    Questions share a pass where that is exact; where tokens are chosen for a question it is asked `alone`.
    """
    found = []
    for lesson in tqdm(test, desc="asking", unit="image", disable=None, leave=False):
        if alone:
            right = [answers_alone(bench.model, lesson.features, *pair) for pair in _pairs(bench.packer, lesson)]
        else:
            with torch.inference_mode():
                packed = bench.packer.pack([list(lesson.questions)])
                right = run(bench.model, lesson.features, packed, len(bench.packer.prefix), gates).right
        for question, is_right in zip(lesson.questions, right, strict=True):
            found.append({"picture": lesson.name, "type": question.type, "right": bool(is_right)})
    return found


def _pairs(packer: Packer, lesson: Lesson) -> Iterator[tuple[Tensor, Tensor]]:
    """Per question the prompt's tokens and the answer's."""
    for question in lesson.questions:
        row = packer.pack([[question]])
        learnt = (row.labels[0] >= 0).nonzero().flatten()
        yield row.input_ids[0, : int(learnt[0]) + 1], row.labels[0, learnt]


def _costs(bench: Bench, plan: Plan) -> dict[str, Any]:
    lesson = bench.test()[0]
    many = Lesson(lesson.name, lesson.features, (list(lesson.questions) * plan.questions)[: plan.questions])
    prompt, _ = next(_pairs(bench.packer, lesson))
    trained = [arm for arm in plan.arms() if arm.trains]
    return {
        "training": training_costs(bench.model, bench.adapted, bench.packer, trained, many, plan.timed),
        "inference": inference_costs(bench.model, plan.arms(), bench.pruner, lesson.features, prompt, plan.timed),
        "rounds": plan.timed,
        "prompt_rows": len(prompt),
        "questions_per_step": plan.questions,
    }


def _fingerprint(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["PRUNED", "Bench", "Plan", "experiment"]
