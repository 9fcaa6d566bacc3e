"""Settings on the hub. Nothing reaches a network: only `HfApi` and the download of one file are replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

import visipruner as vp
from tests.cli.tiny_llava import save_llava
from visipruner import hub
from visipruner.errors import ConfigError, LoadError
from visipruner.evaluation import DENSE
from visipruner.pruners.registry import method_class
from visipruner.specs import resolve

RESULTS = json.loads((Path(__file__).parents[2] / "docs" / "comparison" / "results.json").read_text())
PRUNER = vp.VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=7)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub's only repository; `api` in it says how the API was called."""
    there = tmp_path / "repository"
    there.mkdir()
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/somebody/settings")
    api.upload_folder.side_effect = lambda folder_path, **_: (
        shutil.copytree(folder_path, there, dirs_exist_ok=True) and "https://huggingface.co/somebody/settings/commit/1"
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(there / file))
    return there


def test_settings_come_back_from_where_they_were_pushed(repository: Path) -> None:
    assert hub.push_to_hub(PRUNER, "somebody/settings", private=True).endswith("/commit/1")
    assert vp.hub.from_pretrained("somebody/settings") == PRUNER
    assert [path.name for path in repository.iterdir()] == ["pruner.json"]  # a model's own card stays


def test_a_card_goes_with_them(repository: Path) -> None:
    card = hub.model_card(PRUNER, "llava-hf/llava-1.5-7b-hf", "somebody/settings")
    hub.push_to_hub(PRUNER, "somebody/settings", card=card)
    assert (repository / "README.md").read_text() == card


def test_a_card_says_what_nobody_told() -> None:
    card = ModelCard(hub.model_card(PRUNER, "llava-hf/llava-1.5-7b-hf", "somebody/settings"))
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf"
    assert card.data.library_name == "visipruner"
    assert "visipruner" in card.data.tags
    assert "`keep_tokens` | `7`" in card.text
    assert "Nobody said on which data" in card.text
    assert "Not measured. `visipruner eval --config pruner.json --model llava-hf/llava-1.5-7b-hf" in card.text
    assert "None" not in card.text.replace("`None`", "")


def test_a_card_says_what_was_measured() -> None:
    name = next(name for name in RESULTS["methods"] if name.startswith("fastv"))
    settings = RESULTS["methods"][name]["settings"]
    rows = {row["method"]: row for row in RESULTS["rows"]}
    card = hub.model_card(
        method_class("fastv").from_settings(settings),
        "a/b",
        "c/d",
        calibration="Layers on 8 drawings.",
        results=RESULTS,
    )
    assert "Layers on 8 drawings." in card
    assert f"{RESULTS['samples']} samples of {RESULTS['data']}" in card
    [line] = [line for line in card.splitlines() if line.startswith(f"| {name.replace('|', '')} ")]
    found = rows[name]
    assert f"{found['accuracy']['value']:.1%}" in line
    assert f"{found['difference']['value']:+.1%}" in line
    assert f"{found['flops_cut']:.1%}" in line
    assert f"| {DENSE} | {rows[DENSE]['accuracy']['value']:.1%} |  |" in card
    with pytest.raises(ConfigError, match="no row of visipruner with these settings"):
        hub.model_card(PRUNER, "a/b", "c/d", results=RESULTS)


def test_a_checkpoints_own_settings(tmp_path: Path) -> None:
    """Where the user says so: for `--config`, the plug-ins and in Python the checkpoint's folder will do."""
    folder = save_llava(tmp_path)
    PRUNER.save_pretrained(folder)
    assert resolve(folder, str(folder), 6).pruner == hub.from_pretrained(folder) == PRUNER
    assert resolve("visipruner", str(folder), 6).pruner != PRUNER  # and not where he does not


@pytest.mark.parametrize("name", ["somebody/none", "no/such/folder", "nothing at all"])
def test_what_is_not_there(name: str) -> None:
    """The test environment is offline, so this is the hub client's own answer."""
    with pytest.raises(LoadError, match=name) as caught:
        hub.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_offline_nothing_is_pushed() -> None:
    with pytest.raises(Exception, match=r"(?i)offline"):
        hub.push_to_hub(PRUNER, "somebody/settings")
