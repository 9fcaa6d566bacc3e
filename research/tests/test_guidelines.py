"""A miniature of the experiment: a tiny model that learns to name what two kinds of features show."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from research.guidelines import runner
from research.guidelines.arms import PLAIN, PRUNED, Span, Stages
from research.guidelines.learner import Learner, Pace
from research.guidelines.lessons import Lesson
from research.guidelines.runner import Bench, Plan, experiment
from research.guidelines.summary import as_markdown, draw, summarize
from research.scenes import Question
from research.training.sequence import Packer
from tests.models import GRID, llava_model
from visipruner import ConfigError, FixedSchedule
from visipruner.models.shape import ModelShape
from visipruner.training.planning import Suggestion, choices
from visipruner_testbed.assembly.lora import add_lora

WORDS = ["<image>", "<|im_end|>", "what", "is", "where", "this", "red", "blue", "left", "right"]
STAGES = Stages(inject=2, exit=5, chooser=3, keep=6, also=(Span.read("1-5"),))
NAMES = [
    PLAIN,
    "late",
    "exit",
    "late-exit",
    "late-exit, fitted only",
    "late-sparse-exit",
    "late-exit, unfitted",
    "late-exit 1-5",
    "late-exit 1-5, fitted only",
]
PLAN = Plan(stages=STAGES, seeds=2, pictures=14, questions=2, test_pictures=6, timed=1, pace=Pace(5e-3, 5e-3, warmup=1))


class Words:
    """As much of a tokenizer as `Packer` uses: known words have their numbers, all others are one number."""

    pad_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        found = re.findall(r"<image>|<\|im_end\|>|\w+", text)
        return [98 if word == "<image>" else 3 + WORDS.index(word) if word in WORDS else 50 for word in found]


def lessons(seed: int, count: int) -> list[Lesson]:
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randint(2, (count, 2), generator=generator)
    kinds = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(9))
    found = []
    for index, (color, place) in enumerate(shown.tolist()):
        features = 0.1 * torch.randn(GRID * GRID, 32, generator=generator)
        features[3:7] += 3 * kinds[0, color]
        features[10:13] += 3 * kinds[1, place]
        asked = [
            Question("what is this?", ("red", "blue")[color], "identify"),
            Question("where is this?", ("left", "right")[place], "where-is"),
        ]
        found.append(Lesson(f"{seed}/{index}", features, asked))
    return found


def bench() -> Bench:
    model = llava_model(text="llama-mha").requires_grad_(False)
    torch.manual_seed(0)
    adapted = add_lora(model.model.language_model, 8)
    processor: Any = SimpleNamespace(tokenizer=Words())
    packer = Packer(processor, GRID * GRID)
    pruner = FixedSchedule(layers=(2, 4), keep=(6, 0))
    return Bench(model, adapted, packer, lambda seed: lessons(seed, 14), lambda: lessons(99, 6), pruner)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("guidelines")
    return out, experiment(bench(), PLAN, out)


def test_every_arm_learns_the_same_lessons(done: tuple[Path, dict[str, Any]]) -> None:
    records = done[1]["records"]
    assert [(record["seed"], record["arm"]) for record in records] == [(s, name) for s in (0, 1) for name in NAMES]
    for record in records:
        losses = [line["loss"] for line in record["log"]]
        assert len(losses) == (0 if "only" in record["arm"] else 7)
        assert not losses or sum(losses[-2:]) < 0.85 * sum(losses[:2]), record["arm"]
        assert (record["entry"] is not None) == (record["arm"] not in (PLAIN, "exit", "late-exit, unfitted"))
        assert [one["type"] for one in record["answers"]] == ["identify", "where-is"] * 6
    sparse = [line["kept_tokens"] for line in records[5]["log"]]
    assert sparse[-1] == STAGES.keep


def test_the_costs_are_those_of_the_plan(done: tuple[Path, dict[str, Any]]) -> None:
    costs = done[1]["costs"]
    shape = ModelShape.from_config(llava_model(text="llama-mha").config)
    text = costs["prompt_rows"] - GRID * GRID
    own = Suggestion("own", shape.num_layers, GRID * GRID, STAGES.inject, STAGES.exit, STAGES.chooser, STAGES.keep)
    wanted = {one.guidelines: one for one in choices(shape, GRID * GRID, text, own)}
    head = 2 * shape.hidden_size * shape.vocab_size
    for name, letters in ((PLAIN, "-"), ("late", "a"), ("exit", "c"), ("late-exit", "a+c")):
        assert costs["inference"][name]["flops"] == wanted[letters].prefill.flops + head
        assert costs["inference"][name]["kv_bytes"] == 2 * wanted[letters].kv_bytes
        # torch's count of forward and backward, LoRA and head included, follows the rows.
        ratio = costs["training"][name]["flops"] / costs["training"][PLAIN]["flops"]
        assert ratio == pytest.approx(wanted[letters].prefill.total / wanted["-"].prefill.total, abs=0.12)
    assert costs["training"]["late-exit"]["activation_bytes"] < 0.9 * costs["training"][PLAIN]["activation_bytes"]


def test_the_table_has_every_arm_and_intervals(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    rows = summarize(done[1])
    assert [row["arm"] for row in rows] == [PLAIN, PRUNED, *NAMES[1:]]
    for row in rows:
        accuracy = row["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        right = sum(cell["right"] for cell in row["by_type"].values())
        assert accuracy["value"] == pytest.approx(right / 24)
        for cell in row["by_type"].values():
            assert cell["low"] <= cell["value"] == cell["right"] / cell["total"] <= cell["high"]
        assert (row["difference"] is None) == (row["arm"] == PLAIN)
    table = as_markdown(rows)
    assert table.count("| late-exit |") == 2
    assert "identify (12)" in table
    draw(done[1], rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_an_interrupted_experiment_ends_as_if_it_had_not_been(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a training, and gone on with in a new process (a new model)."""
    step = Learner.step
    plan = replace(PLAN, seeds=1)

    def fails(self: Learner, batch: Any) -> dict[str, Any]:
        if self.pictures_seen == 6 and self.gates is not None:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", fails)
    with pytest.raises(KeyboardInterrupt):
        experiment(bench(), plan, tmp_path, save_every=0.0)
    monkeypatch.setattr(Learner, "step", step)
    assert (tmp_path / "runs" / "late-0" / "state.pt").exists()
    again = experiment(bench(), plan, tmp_path)
    for mine, wanted in zip(again["records"], done[1]["records"][:9], strict=True):
        assert mine["fingerprint"] == wanted["fingerprint"], mine["arm"]
        assert mine["answers"] == wanted["answers"]
    with pytest.raises(ConfigError, match="other settings"):
        experiment(bench(), replace(plan, questions=1), tmp_path)


def test_more_arms_are_added_to_what_is_done(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first = experiment(bench(), replace(PLAN, seeds=1, stages=replace(STAGES, also=())), tmp_path)
    stages = replace(STAGES, also=(*STAGES.also, Span.read("1-4:2=6"), Span.read("0-5/1-2/4-4")))
    more = experiment(bench(), replace(PLAN, seeds=1, stages=stages), tmp_path)
    assert more["records"][:7] == first["records"]
    assert more["records"][7]["answers"] == done[1]["records"][7]["answers"]
    added = more["records"][9]
    assert (added["arm"], added["letters"]) == ("late-exit 1-4, 6 after 2", "a+b+c")
    assert added["arm"] in more["costs"]["inference"]
    frozen, untrained = more["records"][10:]
    assert (frozen["arm"], frozen["letters"]) == ("exit 0-5, frozen 1-2 4", "f+c")
    assert untrained["arm"] == "exit 0-5, frozen 1-2 4, not trained"
    assert (frozen["entry"], len(frozen["log"]), len(untrained["log"])) == (None, 7, 0)
    costs = more["costs"]["inference"]
    assert costs[frozen["arm"]]["kv_bytes"] == costs["exit"]["kv_bytes"]
    assert costs[frozen["arm"]]["flops"] < costs["late-exit 1-5"]["flops"]
    plan = replace(PLAN, seeds=1, stages=stages)
    assert experiment(bench(), plan, tmp_path)["costs"] == more["costs"]
    again = experiment(bench(), replace(plan, timed=2), tmp_path)
    assert (again["costs"]["rounds"], again["records"]) == (2, more["records"])
    with pytest.raises(ConfigError, match="8-24"):
        Span.read("8 to 24")


def test_asking_alone_and_together_agree() -> None:
    """Greedy decoding from a cache, one question at a time, and the shared pass tell the same answers right."""
    made = bench()
    test = lessons(5, 8)
    together = runner._examined(made, test, None, alone=False)
    assert together == runner._examined(made, test, None, alone=True)
