"""Draws training logs: loss, and accuracy per question type, on each batch before it is learnt from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SMOOTHED_OVER = 50
_STYLES = ("-", "--", ":")


def plot_logs(logs: Sequence[Path], picture: Path) -> None:
    """Write a PNG of means over 50 steps; `logs` are the `log.jsonl` of a training's parts, one after another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    losses, answers = figure.subplots(1, 2, width_ratios=(2, 3))
    parts = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    names = sorted({name for steps in parts for step in steps for name in step["right"]})
    lines: dict[str, Any] = {}
    before = 0
    for steps in parts:
        images = [before + step["images"] for step in steps]
        losses.plot(images, [step["loss"] for step in steps], color="0.85", linewidth=0.7)
        losses.plot(*_means(images, [(step["loss"], 1) for step in steps]), color="C0")
        for number, name in enumerate(names):
            counted = [tuple(step["right"].get(name, (0, 0))) for step in steps]
            if any(total for _, total in counted):
                style = {"color": f"C{number % 10}", "linestyle": _STYLES[number // 10], "linewidth": 1.2}
                lines[name] = answers.plot(*_means(images, counted), **style)[0]
        before = images[-1]
        for axes in (losses, answers):
            axes.axvline(before, color="0.7", linewidth=0.7)
    # The first steps' loss would flatten the rest of its curve.
    losses.set(xlabel="pictures seen", title="loss", ylim=(0, 3))
    answers.set(xlabel="pictures seen", title="answers right, by type", ylim=(0, 1.02))
    answers.legend(lines.values(), lines, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (losses, answers):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=90)


def _means(images: Sequence[int], counted: Sequence[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Where, and the sums of the first numbers over those of the second in a window that ends there; NaN for 0 / 0."""
    window = np.ones(min(_SMOOTHED_OVER, len(counted)))
    sums, totals = (np.convolve(part, window, mode="valid") for part in zip(*counted, strict=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(images[len(window) - 1 :]), sums / totals
