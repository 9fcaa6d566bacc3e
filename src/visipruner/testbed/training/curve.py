"""Draws a training log: loss, and accuracy on each batch before it is learnt from."""

import json
from pathlib import Path

import numpy as np

_SMOOTHED_OVER = 25


def plot_log(log: Path, picture: Path) -> None:
    """Write a PNG of running means over 25 steps; `log` is the `log.jsonl` of a training."""
    from matplotlib.figure import Figure

    steps = [json.loads(line) for line in log.read_text().splitlines()]
    images = [step["images"] for step in steps]
    right = [sum(r for r, _ in step["right"].values()) / sum(n for _, n in step["right"].values()) for step in steps]
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 2), ([s["loss"] for s in steps], right), ("loss", "answers right"), strict=True
    ):
        axes.plot(images, values, color="0.85", linewidth=0.7)
        window = min(_SMOOTHED_OVER, len(values))
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(images[window - 1 :], means, color="C0")
        # The first steps' loss would flatten the rest of its curve.
        axes.set(xlabel="pictures seen", title=title, ylim=(0, 3 if title == "loss" else 1))
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=90)
