"""What a measurement writes down, tables and draws as it goes, so that an interrupted one keeps what it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.pictures import COLORS, MARKERS
from visipruner.files import prepare_folder, write_atomic, write_json
from visipruner.progress import Progress
from visipruner.speed import machine
from visipruner.speed.checks import CheckResult
from visipruner.speed.measure import DENSE, TEXT
from visipruner.tables import Table

Row = Mapping[str, Any]


def as_table(point: Mapping[str, Any]) -> Table:
    """One line a contender. Seconds are medians with (lowest to highest); ratios are to dense."""
    of_a_gpu = _OF_A_GPU if any(row.get("waits") is not None for row in point["rows"]) else {}
    return Table.of({**_COLUMNS, **of_a_gpu}, point["rows"])


def as_markdown(point: Mapping[str, Any]) -> str:
    return as_table(point).markdown(numbers_right=True)


def _seconds(value: Mapping[str, float] | None, factor: float = 1, digits: int = 2) -> str:
    if value is None:
        return "-"
    median, low, high = (factor * value[key] for key in ("median", "low", "high"))
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _times(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:.2f}x ({value['low']:.2f}-{value['high']:.2f})"


def _plain(value: float | Mapping[str, float] | None, pattern: str, factor: float = 1) -> str:
    """Of several values the median."""
    known = value["median"] if isinstance(value, Mapping) else value
    return "-" if known is None else pattern.format(known * factor)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: str(row["name"]),
    "prefill, s": lambda row: _seconds(row["prefill"]),
    "faster than dense": lambda row: _times(row["speedup"]),
    "FLOPs promise": lambda row: _plain(row["flops_ratio"], "{:.2f}x"),
    "of the promise": lambda row: _plain(row["of_limit"], "{:.2f}"),
    "of what plain runs reach": lambda row: _plain(row["of_reach"], "{:.2f}"),
    "x text only": lambda row: _plain(row["times_text_only"], "{:.2f}"),
    "decode, ms": lambda row: _seconds(row["decode"], 1000, 1),
    "faster": lambda row: _times(row["decode_speedup"]),
    "all tokens, s": lambda row: _seconds(row["total"]),
    "selection": lambda row: _plain(row["selection_share"], "{:.2%}"),
    "bookkeeping": lambda row: _plain(row["bookkeeping_share"], "{:.2%}"),
    "peak memory": lambda row: _plain(row["peak_bytes"], "{:.0f} MB", 1e-6),
    "KV cache": lambda row: _plain(row["kv_bytes"], "{:.0f} MB", 1e-6),
}
_OF_A_GPU: dict[str, Callable[[Row], str]] = {
    "waits": lambda row: _plain(row["waits"], "{:.0f}"),
    "GPU idle": lambda row: _plain(row["idle_share"], "{:.0%}"),
}


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
