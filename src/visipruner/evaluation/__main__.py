"""`python -m visipruner.evaluation DIR`: the table and the pictures of a comparison anew, from its results.json.

With `--against "uniform @ 90%"`: every method compared with that one, from samples.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from visipruner.errors import ConfigError
from visipruner.evaluation.comparison import RESULTS_FILE, draw_results
from visipruner.evaluation.folder import SAMPLES_FILE, finished
from visipruner.evaluation.rows import against


def compared(folder: Path, name: str) -> str:
    """One line a method: its difference to `name` in points with the 95 % interval, p, and p after Holm."""
    records = list(finished(folder / SAMPLES_FILE).values())
    if not records:
        raise ConfigError(f"There are no answers in {folder / SAMPLES_FILE}; name the --out folder of an evaluation.")
    lines = [f"| against {name} | difference | p | p, Holm |", "|---|---|---:|---:|"]
    for row in against(records, name):
        value, low, high = (row["difference"][key] for key in ("value", "low", "high"))
        around = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(f"| {row['method']} | {100 * value:+.1f}{around} | {row['p']:.3g} | {row['p_holm']:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Draws every folder's results anew, or compares its methods with one of them."""
    parser = argparse.ArgumentParser(prog="python -m visipruner.evaluation", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--against", metavar="METHOD", help="a name in the table, or dense")
    given = parser.parse_args()
    for folder in given.folders:
        if given.against is not None:
            print(compared(folder, given.against))
            continue
        file = folder / RESULTS_FILE
        if not file.exists():
            raise ConfigError(f"There is no {file}; name the --out folder of an evaluation.")
        draw_results(folder, json.loads(file.read_text(encoding="utf-8"))["rows"])


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(str(error))
