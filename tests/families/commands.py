"""Commands on a saved checkpoint, and questions about a photograph for them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from visipruner.cli.app import app

QUESTION = "w5 w6 w7"


def invoke(*words: str) -> str:
    """What `visipruner WORDS` prints; it must end with 0."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{result.output}{result.stderr}{result.exception!r}"
    return result.stdout


def photographed(folder: Path) -> Path:
    """`photo.png` in `folder`."""
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(folder / "photo.png")
    return folder / "photo.png"


def eval_and_analyze(model: Path, method: str, folder: Path, unread: str = "") -> None:
    """`visipruner eval` and `analyze` with questions about the photograph in `folder`, where results go. `unread`: what
    is said of a model that no analysis can read."""
    lines = [{"image": "photo.png", "question": f"w{number} w6", "answer": "w7"} for number in range(4, 8)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    named = ["--model", str(model), "--attn", "eager", "--data", str(folder / "pairs.jsonl"), "--max-new-tokens", "3"]
    invoke("eval", *named, "--method", method, "--out", str(folder / "eval"))
    assert (folder / "eval" / "results.json").exists()
    few = ["--only", "influence", "--samples", "2", "--checked", "1"]
    result = CliRunner().invoke(app, ["analyze", *named, *few, "--out", str(folder / "analysis")])
    if unread:
        assert result.exit_code == 1
        assert unread in result.stderr
    else:
        assert result.exit_code == 0, f"{result.output}{result.stderr}"
        assert (folder / "analysis" / "report.html").exists()
