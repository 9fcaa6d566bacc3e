"""Sections on the analysis itself: what it cost, and with which settings it was made."""

from __future__ import annotations

from typing import Any

from visipruner.analysis.report.content import Document, Section, Table
from visipruner.analysis.report.words import (
    percent,
    seconds,
)


def cost(document: Document) -> Section | None:
    """Seconds by part."""
    spent = document["seconds"]["by_part"]
    count, whole = document["dense"]["samples"], sum(document["seconds"]["by_part"].values())
    rows = [
        (name, seconds(value), f"{value / count:.1f} s", percent(value / whole) if whole else "–")
        for name, value in sorted(spent.items(), key=lambda item: -item[1])
    ]
    rows.append(("all", seconds(whole), f"{whole / count:.1f} s", ""))
    table = Table(
        "Seconds by part",
        ("part", "all samples", "per sample", "share"),
        rows,
        "Wall time on the machine that ran this, all samples together, resumed runs included.",
    )
    return Section("cost", "What it cost", tables=[table])


def settings(document: Document) -> Section | None:
    """Model, settings, versions."""
    told = {**document["model"], **document["settings"], **document["versions"]}
    rows = [(name.replace("_", " "), _plain(value)) for name, value in told.items()]
    table = Table("Settings and versions", ("name", "value"), rows, "", numeric=False)
    return Section("settings", "Settings", tables=[table])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
