"""What a measurement writes down and draws as it goes, so that an interrupted one keeps what it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.pictures import COLORS, MARKERS
from visipruner.files import prepare_folder, write_atomic, write_json
from visipruner.progress import Progress
from visipruner.speed import machine
from visipruner.speed.checks import CheckResult
from visipruner.speed.rounds import DENSE, TEXT
from visipruner.speed.table import as_markdown

SCHEMA = "visipruner.speed/1"
_WIDE = 1.25  # highest over lowest time beyond which a reader is warned
Point = dict[str, Any]


class Report:
    """Attributes: document: everything so far, JSON-ready."""

    def __init__(self, out: str | Path | None, progress: Progress) -> None:
        self._out = None if out is None else Path(out)
        self._progress = progress
        if self._out is not None:
            prepare_folder(self._out)
        self.document: dict[str, Any] = {"schema": SCHEMA, "machine": machine.describe(), "warnings": []}
        if busy := machine.busy_warning():
            self._warn(busy)

    def _warn(self, text: str) -> None:
        self.document["warnings"].append(text)
        self._progress.note(text)

    def add(self, point: Point) -> None:
        """One number of visual tokens, measured."""
        points = self.document.setdefault("points", [])
        points.append(point)
        for row in point["rows"]:
            ratio = row["prefill"]["high"] / row["prefill"]["low"]
            if ratio > _WIDE:
                self._warn(
                    f"{row['name']} at {point['visual']} visual tokens: prefill times differ by a factor of "
                    f"{ratio:.2f}; measure on a quieter machine or with more --rounds."
                )
        self._save("results", self.document, points)

    def add_check(self, result: CheckResult) -> None:
        """One check, in files of its own."""
        self.document.setdefault("checks", []).append(result.to_dict())
        self._save(result.name, {**self.document, "checks": [result.to_dict()]}, result.points)

    def _save(self, name: str, document: dict[str, Any], points: Sequence[Point]) -> None:
        if self._out is None:
            return
        write_json(self._out / f"{name}.json", document)
        if not points:  # a check of targets alone
            return
        text = "\n\n".join(map(as_markdown, points)) + "\n"
        write_atomic(self._out / f"{name}.md", lambda part: part.write_text(text, encoding="utf-8"))
        sizes = [point["visual"] for point in points]
        if all(sizes) and len(set(sizes)) == len(sizes):
            draw(points, self._out / f"{name}.png")


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
