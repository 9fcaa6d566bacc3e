"""A measurement as one picture: seconds and peak memory over image sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.pictures import COLORS, MARKERS
from visipruner.files import write_atomic
from visipruner.speed.rounds import DENSE, TEXT

Point = Mapping[str, Any]


def draw(points: Sequence[Point], path: Path) -> None:
    """Writes a PNG over image sizes: seconds to the first token with the limit that FLOPs set, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    by_name = [{row["name"]: row for row in point["rows"]} for point in points]
    sizes = [point["visual"] for point in points]
    for number, name in enumerate(name for name in by_name[0] if name != TEXT):
        rows = [named[name] for named in by_name]
        style = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)], "linewidth": 1}
        middle = [row["prefill"]["median"] for row in rows]
        reach = [
            [value - row["prefill"]["low"] for value, row in zip(middle, rows, strict=True)],
            [row["prefill"]["high"] - value for value, row in zip(middle, rows, strict=True)],
        ]
        seconds.errorbar(sizes, middle, yerr=reach, label=name, capsize=2, elinewidth=0.6, **style)
        if name != DENSE:
            limit = [named[DENSE]["prefill"]["median"] / named[name]["flops_ratio"] for named in by_name]
            seconds.plot(sizes, limit, linestyle=":", linewidth=1, color=style["color"])
        peaks = [row["peak_bytes"]["median"] / 1e6 if row["peak_bytes"] else None for row in rows]
        if all(peak is not None for peak in peaks):
            memory.plot(sizes, peaks, label=name, **style)
    for panel, title in ((seconds, "seconds to the first token (dotted: dense time x FLOPs)"), (memory, "peak, MB")):
        panel.set_xlabel("visual tokens")
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        if len(sizes) > 1:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
    seconds.legend(fontsize="small", frameon=False)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=150))
