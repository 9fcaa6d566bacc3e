"""Methods by name, and their files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visipruner as vp
from tests.models import prompt, text_model
from tests.pruners.plain import kept_by
from visipruner.pruners.registry import available, make, make_from_spec, method_class, spec_of
from visipruner.pruners.shortv import ShortV
from visipruner.training.guide import StagedVision


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


@pytest.mark.parametrize("name", available())
def test_a_method_is_written_as_the_specification_that_makes_it(name: str) -> None:
    needed: dict[str, dict[str, Any]] = {
        "schedule": {"layers": [1, 2], "keep": [4, 2]},
        "fitprune": {"remove": [0, 0.25, 0.75]},
    }
    pruner = make(name, **needed[name]) if name in needed else method_class(name).for_depth(23)
    assert make_from_spec(spec_of(pruner)) == pruner
    joined = vp.Composed(parts=(vp.DivPrune(keep_ratio=0.123456789), vp.VTW(layer=3)))
    assert make_from_spec(spec_of(joined)) == joined


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


@pytest.mark.parametrize("settings", [None, [1], {1: 2}, "layer", 3])
@pytest.mark.parametrize("drop_unknown", [False, True])
@pytest.mark.parametrize("name", ["fastv", "composed"])
def test_settings_that_are_none(settings: Any, drop_unknown: bool, name: str) -> None:
    with pytest.raises(vp.ConfigError, match=r"settings are a dict|parts is a list"):
        method_class(name).from_settings(settings, drop_unknown=drop_unknown)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:seed=1e30", "seed can be 18446744073709551615 at most, got 1e"),
        ("random:seed=-1e19", "seed must be at least -9223372036854775808"),
        ("pool:stride=1e30", "stride can be 2147483647 at most"),
        ("feather:stride=0", "stride must be at least 1, got 0"),
        ("dart:pivot_text=1e30", "pivot_text can be"),
        ("fastv:keep_tokens=-1", "keep_tokens cannot be negative, got -1"),
        ("pyramiddrop:layers=[1,2,1e30]", "layers can be"),
        ("vispruner:important_ratio=1.5", r"important_ratio is a fraction and must lie in \[0, 1\], got 1.5"),
    ],
)
def test_numbers_out_of_bounds(spec: str, message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        make_from_spec(spec)


def _install(folder: Path, points: str, code: str = "") -> None:
    """A package of that name as pip leaves it: a module, and what its metadata says."""
    (folder / "stranger.py").write_text(code)
    info = folder / "stranger-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[visipruner.pruners]\n{points}\n")


_STRANGER = '''
from dataclasses import dataclass
from typing import ClassVar
from visipruner.contract.budget import ScoredPruner
from visipruner.contract.pruner import About

@dataclass(frozen=True, kw_only=True)
class Newest(ScoredPruner):
    """The last tokens stay."""
    name: ClassVar[str] = "newest"
    about: ClassVar[About] = About("the last tokens stay")

    def score(self, view):
        return view.tokens.float()

class Impostor(Newest):
    name: ClassVar[str] = "fastv"
'''


def test_a_method_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "newest = stranger:Newest\nfastv = stranger:Impostor\nbroken = stranger:Missing", _STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert available()["newest"] == "the last tokens stay"
    with pytest.warns(UserWarning, match="'broken'"):
        pruner = make_from_spec("newest:keep_tokens=3+vtw:layer=4")
    assert pruner.parts[0].keep_tokens == 3
    assert make("fastv") == vp.FastV(), "a name that is here stays ours"
    kept = kept_by(text_model("llama"), pruner, *prompt())
    assert [kept[2], kept[4]] == [[13, 14, 15], []]
