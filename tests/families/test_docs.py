"""The table of families and features: every cell is tried, and the docs say what the adapters declare."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, Llama4Config

import visipruner as vp
from tests.families import test_chats, test_features, test_matrix, test_methods, test_probe, test_run, test_uses
from tests.families.tried import TRIED
from tests.families.zoo import FAMILIES, adapter_of, built, inputs, prompt
from tools.families.__main__ import main, with_table
from tools.families.features import FEATURES, USES
from visipruner import adapters
from visipruner.adapters.base import FRAMES
from visipruner.adapters.structure import check_config

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    """Else: `python -m tools.families docs/families.md`."""
    page = (ROOT / "docs" / "families.md").read_text()
    assert with_table(page) == page
    assert page.count("\n| ") > 2 * len(adapters.BUILT_IN)


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    stale = tmp_path / "families.md"
    stale.write_text(page.replace("| LLaVA-NeXT |", "| Something |"))
    monkeypatch.setattr(sys, "argv", ["tools.families", str(stale)])
    main()
    assert stale.read_text() == page


def test_every_feature_is_tried() -> None:
    """Importing the tests fills TRIED."""
    modules = (test_matrix, test_chats, test_features, test_methods, test_probe, test_run, test_uses)
    tests = {name for module in modules for name in vars(module)}
    assert set(TRIED) == set(FEATURES) | set(USES)
    assert all(set(names) <= tests for names in TRIED.values())


def test_every_family_is_tried() -> None:
    tried = {FAMILIES[name].config().model_type for name in FAMILIES}
    assert tried == {kind for adapter in adapters.BUILT_IN if adapter.locate for kind in adapter.model_types}


@pytest.mark.parametrize("adapter", adapters.BUILT_IN, ids=lambda adapter: adapter.family)
def test_what_is_declared_is_a_feature(adapter: vp.Adapter) -> None:
    assert set(adapter.lacks) | set(adapter.remarks) <= set(FEATURES)
    assert adapter.visual


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_without_videos_says_so(name: str) -> None:
    adapter = adapter_of(name)
    assert ("video" in adapter.lacks) == (
        FAMILIES[name].video is None and FRAMES not in adapter.remarks.get("video", "")
    )


def test_what_the_page_says_is_not_supported_is_not() -> None:
    assert not [kind for kind in CONFIG_MAPPING if "mobilevlm" in kind], "transformers has it now"
    with pytest.raises(vp.UnsupportedModelError, match="'llama4' are not supported: its attention scales queries"):
        check_config(Llama4Config())


def test_neither_engine_nor_layout_names_a_family() -> None:
    known = ", ".join(", ".join((*adapter.model_types, adapter.family.lower())) for adapter in adapters.BUILT_IN)
    names = {found[0] for name in known.split(", ") if (found := re.match("[a-z]+", name))} - {"text"}
    assert {"llava", "qwen", "internvl", "pixtral", "gemma"} <= names
    source = ROOT / "src" / "visipruner"
    for path in (source / "contract/layout.py", *(source / "engine").glob("*.py")):
        assert not names & set(re.findall("[a-z]+", path.read_text().lower())), path.name


# ---- adapters from outside ------------------------------------------------------------------------------------------

PLUGIN = """
from visipruner.adapters import IMAGE, Adapter, rows_of

ADAPTER = Adapter(
    family="Mine",
    model_types=("my_llava",),
    decoder=("model.language_model",),
    embedder=("model",),
    locate=rows_of(IMAGE),
)
NOT_AN_ADAPTER = 3
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`plugin("my_plugin:ADAPTER")` installs a package with that entry point."""

    def install(target: str) -> None:
        info = tmp_path / "my_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[visipruner.adapters]\nmine = {target}\n")
        (tmp_path / "my_plugin.py").write_text(PLUGIN)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_plugin", raising=False)

    yield install
    sys.modules.pop("my_plugin", None)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A LLaVA under a name that nobody knows."""
    model: nn.Module = built("llava", "eager")
    monkeypatch.setattr(model.config, "model_type", "my_llava")
    return model


def _visual_tokens(model: nn.Module, **settings: object) -> int:
    with vp.attach(model, vp.NoPruning(), **settings) as handle:  # type: ignore[arg-type]
        model(**inputs("llava", [prompt("llava", [3, 0, 5])]))
    return handle.trace[0].num_visual


def test_an_unknown_type_is_read_from_the_model_with_a_warning(unknown: nn.Module) -> None:
    with pytest.warns(UserWarning, match="'my_llava' are read from the model itself"):
        assert _visual_tokens(unknown) == 16


def test_an_own_adapter_says_no_more_than_it_must(unknown: nn.Module) -> None:
    own = vp.Adapter(family="Mine", model_types=("my_llava",), locate=adapters.rows_of(adapters.IMAGE))
    assert _visual_tokens(unknown, adapter=own) == 16


def test_an_own_adapter_as_an_argument(unknown: nn.Module) -> None:
    own = vp.Adapter(
        family="Mine",
        model_types=("my_llava",),
        decoder=("model.language_model",),
        embedder=("model",),
        locate=adapters.rows_of(adapters.IMAGE),
    )
    assert _visual_tokens(unknown, adapter=own) == 16


def test_an_own_adapter_as_an_entry_point(unknown: nn.Module, plugin) -> None:
    plugin("my_plugin:ADAPTER")
    assert _visual_tokens(unknown) == 16
    assert adapters.supported()["my_llava"] == "Mine"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_plugin:NOT_AN_ADAPTER", "must be a visipruner.adapters.base.Adapter"),
        ("my_plugin:MISSING", "cannot be loaded"),
    ],
)
def test_a_broken_entry_point_is_named_and_harms_no_known_family(
    unknown: nn.Module, plugin, target: str, message: str
) -> None:
    plugin(target)
    with pytest.raises(vp.VisiPrunerError, match=f"{target}.*{message}"):
        vp.attach(unknown, vp.NoPruning())
    assert adapter_of("llava").family.startswith("LLaVA")
