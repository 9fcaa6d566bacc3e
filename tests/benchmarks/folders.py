"""Miniature folders in the benchmarks' layouts, and answers as records have them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from visipruner.evaluation.datasets import Benchmark

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def picture(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 12), color).save(path, format="PNG")


def encoded(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), color).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def jsonl(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def tsv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def answered(benchmark: Benchmark, answers: Sequence[str], method: str = "dense") -> list[dict[str, Any]]:
    """Records of the benchmark's samples, in order, with what a method said."""
    return [
        {
            "id": sample.id,
            "image": sample.image_name,
            "question": sample.question,
            "answers": list(sample.answers),
            "type": sample.type,
            "given": {method: {"answer": answer}},
        }
        for sample, answer in zip(benchmark.samples, answers, strict=True)
    ]


def scores(benchmark: Benchmark, answers: Sequence[str]) -> list[float]:
    """The score of each sample's answer."""
    return benchmark.scores(answered(benchmark, answers), "dense")


def official(benchmark: Benchmark, answers: Sequence[str]) -> dict[str, Any]:
    """The published aggregates of these answers."""
    return benchmark.official(answered(benchmark, answers), "dense")


def pope_folder(folder: Path, doubled: bool = False) -> Path:
    """Two questions in each category, one with LLaVA's typo; `doubled` labels have a line more than was asked."""
    asked = []
    for number, category in enumerate(("random", "popular", "adversarial")):
        lines = []
        for offset, (thing, label) in enumerate((("a cat", "yes"), ("an umbrella", "no"))):
            image = f"COCO_val2014_{offset:012d}.jpg"
            picture(folder / "val2014" / image)
            text = f"Is there {thing} in the image?"
            lines.append({"question_id": offset + 1, "image": image, "text": text, "label": label})
            text = text.replace("image", "imange") if thing.startswith("an ") else text
            asked.append(
                {"question_id": 2 * number + offset, "image": image, "text": text + SHORT, "category": category}
            )
        if doubled:
            lines.insert(1, {**lines[0], "text": "Is there a cow in the image?", "label": "no"})
        jsonl(folder / "coco" / f"coco_pope_{category}.json", lines)
    jsonl(folder / "llava_pope_test.jsonl", asked)
    return folder
