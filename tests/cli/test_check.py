"""`visipruner check`: a table or JSON, and an exit status that says whether all passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, Gemma3nConfig, LlavaForConditionalGeneration

import visipruner as vp
from tests.cli.tiny_llava import save_llava
from visipruner.adapters import generic, structure
from visipruner.models import checked

CHECKS = {"rows", "keep all", "text only", "drop = cut", "several images", "cache", "next turn", "batch"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIPRUNER_CACHE", str(tmp_path / "cache"))


def test_a_model_that_passes(cli: Any, llava_folder: Path) -> None:
    result = cli("check", "--model", llava_folder)
    assert result.exit_code == 0, result.output
    assert all(check in result.stdout for check in CHECKS)
    assert "llava (tiny): passes" in result.stdout
    loaded = LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype="bfloat16")
    kept = checked.kept(loaded.config)
    assert kept is not None, "what is loaded is known by its config, in any precision"
    assert kept["passed"]


def test_its_weights_and_processor_as_json(cli: Any, llava_folder: Path) -> None:
    result = cli("check", "--model", llava_folder, "--full", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert told["passed"] is True
    assert [report["mode"] for report in told["reports"]] == ["tiny", "full"]
    assert {finding["check"] for finding in told["reports"][1]["findings"]} == CHECKS
    assert {finding["state"] for finding in told["reports"][1]["findings"]} == {"passes"}


def test_a_type_that_is_refused_says_why_and_ends_with_one(cli: Any, tmp_path: Path) -> None:
    Gemma3nConfig().save_pretrained(tmp_path)
    result = cli("check", "--model", tmp_path)
    assert result.exit_code == 1
    assert "'gemma3n' are not supported: some of its layers attend to keys and values of an earlier layer." in " ".join(
        result.stdout.split()
    )


def test_from_python_a_wrong_row_is_a_failure_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_llava(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    monkeypatch.setattr(vp.adapters, "BUILT_IN", ())
    assert vp.check(model, processor).passed
    assert checked.warning(model.config) is None
    real = generic.placeholder_ids
    monkeypatch.setattr(generic, "placeholder_ids", lambda embedder: (*real(embedder), 5))  # a word
    report = vp.check(model, processor)
    rows = next(finding for finding in report.findings if finding.check == "rows")
    assert not report.passed
    assert "found, but not overwritten" in rows.says
    assert "failed its check" in (checked.warning(model.config) or "")


def test_a_plain_model_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, cli: Any, llava_folder: Path) -> None:
    """There is nothing to compare with, which is no pass."""
    monkeypatch.setattr(structure, "is_routed", lambda module: 1 / 0)
    result = cli("check", "--model", llava_folder)
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stdout
