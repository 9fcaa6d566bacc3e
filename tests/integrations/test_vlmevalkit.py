"""The driver for VLMEvalKit and its launcher, with stand-ins for the three things of VLMEvalKit that they touch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.cli.tiny_llava import save_llava
from visipruner.errors import ConfigError
from visipruner.integrations.answering import Answerer
from visipruner.models import loading as models

_DRIVER = "visipruner.integrations.vlmevalkit"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What `supported_VLM` holds; `run.py` notes its arguments under "argv"."""
    known: dict[str, Any] = {}
    contents: dict[str, dict[str, Any]] = {
        "vlmeval": {"__path__": []},
        "vlmeval.vlm": {"__path__": []},
        "vlmeval.vlm.base": {"BaseModel": type("BaseModel", (), {})},
        "vlmeval.config": {"supported_VLM": known},
        "vlmeval.run": {"main": lambda: known.update(argv=sys.argv), "__spec__": object()},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delitem(sys.modules, _DRIVER, raising=False)
    yield known
    sys.modules.pop(_DRIVER, None)


def test_the_launcher_registers_a_model_that_answers(
    harness: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    ours = ["--pretrained", str(folder), "--method", "fastv", "--settings", '{"layer": 1}', "--max-new-tokens", "3"]
    importlib.import_module(_DRIVER).main([*ours, "--name", "mine", "--data", "MMStar", "--mode", "infer"])
    assert harness["argv"] == ["run.py", "--model", "mine", "--data", "MMStar", "--mode", "infer"]
    picture = Image.effect_noise((60, 60), 90).convert("RGB")
    picture.save(tmp_path / "a.png")
    message = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": "what is this ?"}]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this ?"}]
    expected = Answerer(str(folder), "fastv:layer=1").answer([{"role": "user", "content": content}], 3).text
    assert harness["mine"]().generate_inner(message, dataset="MMStar") == expected != ""


@pytest.mark.parametrize("allowed", [False, True])
def test_the_launcher_can_allow_a_download(
    harness: dict[str, Any], monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    asked: list[bool] = []

    def load(name: str, dtype: str, attn: str, allow_download: bool) -> None:
        asked.append(allow_download)
        raise ConfigError("That was all.")

    monkeypatch.setattr(models, "load", load)
    importlib.import_module(_DRIVER).main(["--pretrained", "someone/something", *["--allow-download"] * allowed])
    assert harness["argv"] == ["run.py", "--model", "visipruner"]
    with pytest.raises(ConfigError, match="That was all"):
        harness["visipruner"]()
    assert asked == [allowed]
