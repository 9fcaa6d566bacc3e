"""Methods by name, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visipruner as vp
from visipruner.pruners.registry import available, make, make_from_spec, method_class
from visipruner.pruners.shortv import ShortV
from visipruner.training.staged import StagedVision


@pytest.mark.parametrize("name", sorted(available()))
def test_every_name_leads_to_its_class(name: str) -> None:
    assert method_class(name).name == name


@pytest.mark.parametrize(
    "pruner",
    [
        vp.VisiPruner(stages=("middle",), keep_tokens=7, relative=True),
        vp.VisiPruner.paper(),
        vp.VisiPruner.reference(size="13b", shallow_mid_layer=4),
        vp.FixedSchedule(layers=(1, 4), keep=(9, 0)),
        vp.NoPruning(),
    ],
)
def test_a_pruner_survives_its_file(pruner: vp.Pruner, tmp_path: Path) -> None:
    file = pruner.save_pretrained(tmp_path / "new")
    assert vp.load_pruner(file) == vp.load_pruner(tmp_path / "new") == pruner
    assert [path.name for path in file.parent.iterdir()] == ["pruner.json"]


def test_settings_of_a_newer_version_are_dropped_with_a_warning(tmp_path: Path) -> None:
    file = vp.VisiPruner(keep_tokens=3).save_pretrained(tmp_path)
    content = json.loads(file.read_text())
    content["settings"]["from_the_future"] = 1
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert vp.load_pruner(tmp_path) == vp.VisiPruner(keep_tokens=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"not a pruner\.json"),
        ("[]", r"not a pruner\.json"),
        ('{"format_version": 2, "method": "none", "settings": {}}', "newer"),
        ('{"format_version": 1, "method": "nune", "settings": {}}', "did you mean 'none'"),
        ('{"format_version": 1, "method": "visipruner", "settings": {"relative": 0.3}}', "relative"),
        ('{"format_version": 1, "method": "fitprune", "settings": {}}', "fitprune needs remove"),
    ],
)
def test_files_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pruner.json").write_text(content)
    with pytest.raises(vp.ConfigError, match=message):
        vp.load_pruner(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(vp.ConfigError, match="No pruner can be read"):
        vp.load_pruner(tmp_path / "nothing.json")


def test_specifications() -> None:
    assert make_from_spec("none") == vp.NoPruning()
    made = make_from_spec("visipruner:keep_tokens=16,shallow_visual=ffn,relative=true")
    assert made == vp.VisiPruner(keep_tokens=16, shallow_visual="ffn", relative=True)
    with pytest.raises(vp.ConfigError, match="key=value"):
        make_from_spec("visipruner:keep_tokens")
    with pytest.raises(vp.ConfigError, match="did you mean 'keep_tokens'"):
        make_from_spec("visipruner:keep_token=1")
    with pytest.raises(vp.ConfigError, match="layers"):
        make("schedule")


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: vp.FastV(layer=2.5), "layer takes a whole number, not 2.5"),
        (lambda: vp.FastV(keep_tokens=2.5), "keep_tokens takes a whole number or none"),
        (lambda: vp.FastV(keep_ratio="0.5"), "keep_ratio takes a number, not '0.5'"),
        (lambda: vp.VTW(layer=1.5), "layer takes a whole number"),
        (lambda: vp.VisiPruner(keep_tokens=True), "keep_tokens takes a whole number or none, not True"),
        (lambda: ShortV(layers=(1, 2.5)), "layers takes a list of a whole number"),
        (lambda: StagedVision(keep_tokens=1.5, filter_layer=2), "keep_tokens takes"),
        (lambda: vp.Downsample(keep_ratio=None), "keep_ratio takes a number"),
        (lambda: vp.Composed(parts=("fastv",)), "parts takes a list of Pruner"),
    ],
)
def test_settings_of_another_type_are_an_error_in_the_constructor(make_it: Any, message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        make_it()


def test_numbers_are_made_what_is_declared() -> None:
    pruner = vp.FastV(layer=np.int64(3), keep_tokens=4.0, keep_ratio=1)
    assert pruner == vp.FastV(layer=3, keep_tokens=4, keep_ratio=1.0)
    assert {type(value) for value in pruner.settings().values()} == {int, float, str, type(None)}
    assert vp.FixedSchedule(layers=[1, 2], keep=[4, 2]).layers == (1, 2)
