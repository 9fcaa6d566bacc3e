"""`python -m research guidelines`: the experiment on the small model, from its weights to the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from research.guidelines.lessons import drawn, shipped
from research.guidelines.runner import Bench, Plan, experiment
from research.guidelines.summary import as_markdown, draw, summarize
from research.training.memory import keep_freed_memory
from visipruner.errors import ConfigError
from visipruner.files import write_atomic, write_json

RANK = 32


def run_guidelines(plan: Plan, out: Path, emoji: Path, threads: int) -> dict[str, Any]:
    """Runs or goes on with the experiment; writes results.json, table.md and curves.png to `out`.

    Raises ConfigError for an unknown start, and when `out` holds an experiment of another plan.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    bench = small_model(plan, out, emoji)
    found = experiment(bench, plan, out)
    rows = summarize(found)
    table = as_markdown(rows)
    draw(found, rows, out / "curves.png")
    write_atomic(out / "table.md", lambda part: part.write_text(table))
    result = {"plan": found["plan"], "rows": rows, "costs": found["costs"], "versions": _versions()}
    write_json(out / "results.json", result)
    return result


def small_model(plan: Plan, out: Path, emoji: Path) -> Bench:
    """The small model with LoRA, unfolded, at its start: the shipped weights, or the projector's warm start alone."""
    from research.training.recipe import SMALL, Recipe
    from research.training.sequence import Packer
    from research.training.warmstart import warm_start
    from visipruner_testbed.assembly.llava import PATCH_SIZE, assemble
    from visipruner_testbed.assembly.lora import add_lora, load_lora
    from visipruner_testbed.assembly.trained import (
        TRAINED_FILE,
        WEIGHTS_FOLDER,
        counts_aloud,
        fold_sight,
        language_part,
        load_trained,
    )
    from visipruner_testbed.calibration import calibrated
    from visipruner_testbed.testset import load_test_set

    if plan.start not in ("shipped", "warm"):
        raise ConfigError(f"start must be shipped or warm, got {plan.start!r}.")
    if not emoji.exists():
        from research.fetch import fetch_emoji

        print(f"Fetching the pictures that scenes are drawn with into {emoji}", file=sys.stderr)
        fetch_emoji(emoji)
    assembled = assemble(SMALL * PATCH_SIZE)
    model, processor = assembled.model, assembled.processor
    model.requires_grad_(False)
    torch.manual_seed(0)
    if plan.start == "shipped":
        state = load_trained(WEIGHTS_FOLDER / TRAINED_FILE)
        tallying = counts_aloud(WEIGHTS_FOLDER)
    else:
        out.mkdir(parents=True, exist_ok=True)
        state = warm_start(model, processor, emoji, Recipe(), out)
        tallying = Recipe().tallying
    fold_sight(model, state)
    adapted = add_lora(model.model.language_model, RANK)
    load_lora(adapted, language_part(state))
    features = out / "features"

    def lessons(seed: int) -> list[Any]:
        return drawn(model, processor, emoji, f"guidelines-{seed}", plan.pictures, plan.questions, features)

    def test() -> list[Any]:
        return shipped(model, processor, load_test_set(), plan.test_pictures, features)

    packer = Packer(processor, model.config.image_seq_length, tallying)
    return Bench(model, adapted, packer, lessons, test, calibrated(SMALL * PATCH_SIZE))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("visipruner", "torch", "transformers")}
