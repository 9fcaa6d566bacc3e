"""A miniature of the experiment: a tiny model that learns to name what two kinds of features show."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.models import GRID, llava_model
from visipruner import ConfigError, FixedSchedule
from visipruner.models.shape import ModelShape
from visipruner.testbed.guidelines import runner
from visipruner.testbed.guidelines.arms import PLAIN, PRUNED, Span, Stages
from visipruner.testbed.guidelines.learner import Learner, Pace
from visipruner.testbed.guidelines.lessons import Lesson
from visipruner.testbed.guidelines.runner import Bench, Plan, experiment
from visipruner.testbed.guidelines.summary import as_markdown, draw, summarize
from visipruner.testbed.scenes import Question
from visipruner.testbed.training.lora import add_lora
from visipruner.testbed.training.sequence import Packer
from visipruner.training.planning import Suggestion, choices, suggestions
from visipruner.training.settings import Alignment

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


def analysed(layers: int, start: Any, end: Any, chosen: Any, blocks: list[int]) -> dict[str, Any]:
    def interval(found: Any) -> Any:
        return None if found is None else dict(zip(("low", "value", "high"), found, strict=True))

    return {
        "model": {"layers": layers, "visual_tokens": 576},
        "stages": {
            "overall": {"shallow_end": interval(start), "exit_layer": interval(end)},
            "filter": None if chosen is None else {"layer": chosen, "budget": 64},
            "metric": "kl",
            "tolerance": 0.05,
        },
        "settings": {"plan": {"block": 4}},
        "freeze_blocks": {"layer": blocks, "kl": {"mean": [0.01] * len(blocks), "high": [0.02] * len(blocks)}},
    }


ANALYSES = {
    "the testbed's": json.loads((Path(__file__).parents[2] / "docs/analysis/analysis.json").read_text()),
    "frozen on both sides of the filter": analysed(32, (4, 8, 12), (20, 24, 28), 10, [2, 16]),
    "frozen up to the exit": analysed(30, (3, 4, 6), (23, 24, 25), 12, [20]),
    "filter before the last layer": analysed(24, None, None, 22, [0, 18]),
    "no layer needs to see": analysed(32, (30, 32, 32), (31, 31, 31), None, []),
    "a middle of one layer": analysed(32, (7, 8, 8), (9, 9, 9), 8, [4]),
    "no evidence": analysed(32, None, None, None, []),
}


@pytest.mark.parametrize("analysis", ANALYSES)
def test_each_row_of_a_plan_can_be_built(analysis: str) -> None:
    shape = ModelShape.from_config(llava_model(text="llama-mha").config)
    for suggestion, layers in product(suggestions(ANALYSES[analysis]), (1, 2, 3, 5, 12, 24, 28, 30, 32, 40, 64, 80)):
        for choice in choices(replace(shape, num_layers=layers), 144, 74, suggestion):
            seen = [layer for layer, rows in enumerate(choice.rows) if rows]
            full = [layer for layer in seen if choice.rows[layer] == 144]
            is_sparse = full != seen
            Alignment(
                inject_layer=seen[0],
                exit_layer=seen[-1] + 1,
                filter_layer=full[-1] if is_sparse else None,
                keep_tokens=choice.rows[seen[-1]] if is_sparse else None,
                frozen_layers=choice.frozen,
            ).check(layers)
            assert ("f" in choice.guidelines) == bool(choice.frozen)


def test_a_sparse_middle_is_planned_with_the_frozen_layers_below_it() -> None:
    shape = replace(ModelShape.from_config(llava_model(text="llama-mha").config), num_layers=32)
    estimate, _ = suggestions(ANALYSES["frozen on both sides of the filter"])
    found = {choice.guidelines: choice for choice in choices(shape, 576, 74, estimate)}
    assert found["f+b+c"].frozen == (2, 3, 4, 5)
    assert found["f+c"].frozen == (2, 3, 4, 5, 16, 17, 18, 19)
    estimate, _ = suggestions(ANALYSES["frozen up to the exit"])
    assert "f+b+c" not in {choice.guidelines for choice in choices(shape, 576, 74, estimate)}


def test_plan_reads_an_analysis(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from visipruner.cli.app import app

    def planned(folder: Path, *more: object) -> tuple[int, str]:
        """Exit code and what was said, words apart by single spaces."""
        result = CliRunner().invoke(app, ["plan", "--analysis", str(folder), *map(str, more)], env={"COLUMNS": "80"})
        assert max(map(len, result.stdout.splitlines()), default=0) <= 80
        return result.exit_code, " ".join(result.output.split())

    def interval(value: float, low: float, high: float) -> dict[str, float]:
        return {"value": value, "low": low, "high": high}

    overall = {"samples": 5, "shallow_end": interval(8, 4, 12), "exit_layer": interval(24, 20, 28)}
    chosen = {"layer": 10, "budget": 32, "loss": interval(0.02, 0.01, 0.03)}
    document = {
        "model": {"name": "made-up", "layers": 32, "visual_tokens": 576},
        "stages": {"overall": overall, "filter": chosen, "metric": "kl", "tolerance": 0.05, "notes": []},
        "settings": {"plan": {"block": 4}},
        "freeze_blocks": {
            "layer": [0, 2, 4, 6, 16, 18, 20, 26],
            "kl": {
                "mean": [2.0, 0.01, 0.03, 0.04, 0.03, 0.06, -0.01, 0.0],
                "high": [3.0, 0.04, 0.05, 0.05, 0.05, 0.08, 0.05, 0.01],
            },
        },
    }
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    code, told = planned(tmp_path, "--shape", "7b", "--save", tmp_path / "plan.json")
    assert code == 0
    assert "k = 8, e = 24, n = 32 after layer 10" in told
    places = [told.index(f"({letter}) ") for letter in "abcf"]
    assert places == sorted(places)  # the letters in their order
    estimate, cautious = json.loads((tmp_path / "plan.json").read_text())["shapes"]
    rows = {row["guidelines"]: row for row in estimate["choices"]}
    # The best is 20-23 (26-29 is after the exit), then 2-5, then 16-19; 4-7 overlaps, and 6-9 is one too many.
    assert rows["f+c"]["frozen_layers"] == [2, 3, 4, 5, 16, 17, 18, 19, 20, 21, 22, 23] == rows["f"]["frozen_layers"]
    assert cautious["suggestion"]["frozen_layers"] == [2, 3, 4, 5]
    assert rows["a+b+c"]["visual_rows"] == [0] * 8 + [576] * 3 + [32] * 13 + [0] * 8
    d, m, n, t = 4096, 11008, 650, 74
    per_layer = {rows: 2 * (4 * rows * d * d + 2 * rows * rows * d + 3 * rows * d * m) for rows in (n, t)}
    assert rows["a+c"]["prefill_flops"] == 16 * per_layer[n] + 16 * per_layer[t]
    seen = 2 * (2 * t * d * d + 2 * n * d * d + 2 * t * n * d + 3 * t * d * m)
    assert rows["f+c"]["prefill_flops"] == 12 * seen + 12 * per_layer[n] + 8 * per_layer[t]
    assert rows["f+c"]["kv_bytes"] == rows["c"]["kv_bytes"]
    assert rows["-"]["train_flops_full"] == 3 * 32 * per_layer[n]
    assert (cautious["suggestion"]["inject_layer"], cautious["suggestion"]["exit_layer"]) == (4, 28)
    chosen["budget"] = 1 / 16  # a share, where images differ in their tokens
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    _, told = planned(tmp_path, "--shape", "7b")
    assert "(b) 6.25 % of the tokens after layer 10" in told
    assert "n = 36 after layer 10" in told
    code, told = planned(tmp_path / "nowhere")
    assert (code, "no analysis" in told) == (1, True)
