"""`visipruner testbed guidelines`: the experiment on the small model, from its weights to the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from visipruner.errors import ConfigError
from visipruner.files import write_atomic, write_json
from visipruner.testbed.guidelines.lessons import drawn, shipped
from visipruner.testbed.guidelines.runner import Bench, Plan, experiment
from visipruner.testbed.guidelines.summary import as_markdown, draw, summarize

RANK = 32


def run_guidelines(plan: Plan, out: Path, emoji: Path, threads: int) -> dict[str, Any]:
    """Runs or goes on with the experiment; writes results.json, table.md and curves.png to `out`.

    Raises ConfigError for an unknown start, and when `out` holds an experiment of another plan.
    """
    torch.set_num_threads(threads)
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
    from visipruner.testbed.assembly.llava import assemble
    from visipruner.testbed.assembly.trained import PROJECTOR, TRAINED_FILE, WEIGHTS_FOLDER, load_trained
    from visipruner.testbed.calibration import calibrated
    from visipruner.testbed.testset import load_test_set
    from visipruner.testbed.training.lora import add_lora
    from visipruner.testbed.training.sequence import Packer

    if plan.start not in ("shipped", "warm"):
        raise ConfigError(f"start must be shipped or warm, got {plan.start!r}.")
    if not emoji.exists():
        from visipruner.testbed.fetch import fetch_emoji

        print(f"Fetching the pictures that scenes are drawn with into {emoji}", file=sys.stderr)
        fetch_emoji(emoji)
    assembled = assemble()
    model, processor = assembled.model, assembled.processor
    model.requires_grad_(False)
    torch.manual_seed(0)
    adapted = add_lora(model.model.language_model, RANK)
    projector = model.model.multi_modal_projector
    if plan.start == "shipped":
        state = load_trained(WEIGHTS_FOLDER / TRAINED_FILE)
        prefix = {k.removeprefix(PROJECTOR): v.float() for k, v in state.items() if k.startswith(PROJECTOR)}
        projector.load_state_dict(prefix)
        with torch.no_grad():
            for name, module in adapted.items():
                module.lora_a.copy_(state[f"{name}.lora_a"])
                module.lora_b.copy_(state[f"{name}.lora_b"])
    else:
        _warm(model, processor, emoji, out)
    features = out / "features"

    def lessons(seed: int) -> list[Any]:
        return drawn(model, processor, emoji, f"guidelines-{seed}", plan.pictures, plan.questions, features)

    def test() -> list[Any]:
        return shipped(model, processor, load_test_set(), plan.test_pictures, features)

    return Bench(model, adapted, Packer(processor, model.config.image_seq_length), lessons, test, calibrated())


def _warm(model: Any, processor: Any, emoji: Path, out: Path) -> None:
    from safetensors.torch import load_file, save_file

    from visipruner.testbed.training.recipe import FIRST
    from visipruner.testbed.training.warmstart import warm_start

    projector, kept = model.model.multi_modal_projector, out / "warm_start.safetensors"
    if not kept.exists():
        out.mkdir(parents=True, exist_ok=True)
        warm_start(model, processor, emoji, FIRST.warm_images, FIRST.warm_steps)
        write_atomic(kept, lambda part: save_file(projector.state_dict(), part))
    projector.load_state_dict(load_file(kept))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("visipruner", "torch", "transformers")}
