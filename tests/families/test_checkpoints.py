"""Every command of docs/checkpoints.md, on random weights of a small shape of the same class."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import visipruner as vp
from tests.benchmarks.folders import pope_folder
from tests.families.checkpoints import PROCESSORS
from tests.families.checkpoints import save as save_checkpoint
from tests.families.zoo import FAMILIES
from visipruner.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
LAYERS = 8
# The checkpoints of the page, and the tiny model that has their class.
CLASSES = {
    "llava-hf/llava-1.5-7b-hf": "llava",
    "llava-hf/llava-1.5-13b-hf": "llava",
    "Qwen/Qwen2-VL-7B-Instruct": "qwen2-vl",
    "OpenGVLab/InternVL2_5-8B-MPO-hf": "internvl",
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph, pairs, a miniature POPE, and the models in folders named after their class."""
    place = tmp_path_factory.mktemp("checkpoints")
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(place / "photo.jpg")
    pairs = [{"image": "photo.jpg", "question": f"w{number} w6", "answer": "w7"} for number in range(4)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    pope_folder(place / "playground" / "data" / "eval" / "pope")
    for name in set(CLASSES.values()):
        folder = save_checkpoint(name, place / name)
        config = FAMILIES[name].config()
        config.text_config.num_hidden_layers = LAYERS
        if getattr(config.text_config, "layer_types", None):
            config.text_config.layer_types = config.text_config.layer_types[:1] * LAYERS
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return place


def test_the_page_has_commands_for_every_checkpoint() -> None:
    assert {line.split("--model ")[1].split()[0] for line in commands()} == set(CLASSES)
    assert set(CLASSES.values()) <= set(PROCESSORS)


def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as later ones read what earlier ones wrote; with fewer samples and words, and one part of
    an analysis. Random weights support no settings: a written file stands in for those proposed."""
    monkeypatch.chdir(place)
    for line in commands():
        program, verb, *rest = shlex.split(line)
        rest = [CLASSES.get(part, part) for part in rest if part != "--allow-download"]
        fewer = {"run": ["--repeats", "1"], "eval": ["--samples", "2"], "analyze": ["--samples", "2", "--checked", "1"]}
        extra = ["--only", "influence"] if verb == "analyze" else ["--max-new-tokens", "2"]
        result = CliRunner().invoke(app, [verb, *rest, *fewer[verb], *extra])
        assert (program, result.exit_code) == ("visipruner", 0), f"{line}\n{result.output}{result.stderr}"
        if verb != "run":
            out = place / rest[rest.index("--out") + 1]
            assert (out / {"eval": "results.json", "analyze": "report.html"}[verb]).exists()
            if verb == "analyze" and not (out / "pruner.json").exists():
                vp.VisiPruner(filter_layer=6, keep_tokens=2, shallow_end=1).save_pretrained(out)
