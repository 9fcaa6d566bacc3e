"""`python -m visipruner.evaluation DIR`: the table and the pictures of a comparison anew, from its results.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from visipruner.evaluation.comparison import RESULTS_FILE, draw_results

for folder in map(Path, sys.argv[1:]):
    draw_results(folder, json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["rows"])
