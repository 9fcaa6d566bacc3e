"""Which training a folder belongs to: it records what made its weights, and only the same training may go on there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from research.training.recipe import Recipe
from visipruner.errors import ConfigError
from visipruner.files import sha256_of
from visipruner_testbed.assembly.trained import RECIPE_FILE, TRAINED_FILE

STATE_FILE = "optimizer.pt"


def record_of(recipe: Recipe, continue_from: Path | None) -> dict[str, Any]:
    """What a training records: its recipe and, where it goes on from the weights in `continue_from`, what made those
    and their hash."""
    record: dict[str, Any] = {"recipe": asdict(recipe)}
    if continue_from is not None:
        before: dict[str, Any] = json.loads((continue_from / RECIPE_FILE).read_text())
        record["continued_from"] = before | {"sha256": sha256_of(continue_from / TRAINED_FILE)}
    return record


def check_claim(folder: Path, recipe: Recipe, continue_from: Path | None, resume: bool) -> None:
    """Raises ConfigError when `folder` holds a training and `resume` is not set, or one that was begun with other
    settings. Its length, `recipe.images`, may change."""
    if (folder / STATE_FILE).exists() and not resume:
        raise ConfigError(
            f"{folder} holds a training already; continue it with --resume and the settings it was begun with, or "
            "choose another folder."
        )
    if not (folder / RECIPE_FILE).exists():
        return
    recorded = json.loads((folder / RECIPE_FILE).read_text())
    others = _differences(recorded["recipe"], json.loads(json.dumps(asdict(recipe))))
    before = recorded.get("continued_from", {}).get("sha256")
    weights = None if continue_from is None else continue_from / TRAINED_FILE
    now = sha256_of(weights) if weights is not None and weights.exists() else None
    if before != now:
        others.append(f"continued from {_named(before)} instead of {_named(now)}")
    if others:
        raise ConfigError(
            f"{folder} holds a training with other settings ({', '.join(others)}); give those it was begun with, or "
            "choose another folder."
        )


def _differences(recorded: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Of the settings that both have: another version may know fewer."""
    return [
        f"{name} {recorded[name]!r} instead of {value!r}"
        for name, value in given.items()
        if name != "images" and name in recorded and recorded[name] != value
    ]


def _named(sha256: str | None) -> str:
    return "no earlier weights" if sha256 is None else f"weights of sha256 {sha256[:8]}"
