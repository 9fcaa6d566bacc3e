"""A small analysis without a model: records with made-up numbers, and the document that belongs to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visipruner.analysis.boundaries import Metric
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, Record
from visipruner.analysis.result import Labelled, Result
from visipruner.analysis.study import Study

LAYERS, ROWS, COLUMNS = 6, 4, 5
TOKENS = ROWS * COLUMNS
CONDITIONS = ("cut", "zero", "merge_0", "merge_25", "merge_50", "merge_99", "top_10", "layer_0", "passive")
HOSTILE = '<script>alert("x")</script> & $\\frac{a}{b}$ \N{SNOWMAN}'


def records(folder: Path, count: int = 8, *, answers_known: bool = True, parts: tuple[str, ...] = ()) -> list[Record]:
    """Two questions an image of three kinds; only the named parts, or all."""
    made = []
    for number in range(count):
        image = folder / f"picture-{number // 2}.png"
        if not image.exists():
            Image.effect_noise((60, 48), 40 + number).save(image)
        record = _record(np.random.default_rng(number), image, number, answers_known)
        record["parts"] = {name: part for name, part in record["parts"].items() if not parts or name in parts}
        made.append(record)
    return made


def document(found: list[Record], *, checked: bool = True, metric: Metric = "kl") -> dict[str, Any]:
    """What `analysis.json` would hold, read back from JSON."""
    study = Study(found)
    made = {
        "schema": "visipruner.analysis/1",
        "model": {"name": "tiny", "class": "Tiny", "layers": LAYERS, "hidden_size": 8, "visual_tokens": TOKENS},
        "settings": {"data": "made up", "samples": len(found), "seed": 0, "plan": found[0]["plan"]},
        "versions": {"visipruner": "0", "torch": "0"},
        "seconds": {"by_part": {"reading": 1.5, "sweeps": 700.0}},
        **study.summary(),
    }
    if set(NEEDED_FOR_STAGES) <= set(study.parts):
        stages = study.stages(metric).to_dict()
        interval = {"value": 2.0, "low": 1.0, "high": 3.0}
        # Made-up numbers need not have stages, the page must be able to show them.
        stages["overall"] |= {
            "needs_image": True,
            "shallow_end": interval,
            "exit_layer": {"value": 5.0, "low": 5.0, "high": 6.0},
            "fusion": [{"first_layer": 3, "last_layer": 4, "loss": {"value": 0.5, "low": 0.2, "high": 0.8}}],
        }
        stages["filter"] = {
            "layer": 3,
            "budget": 5,
            "loss": {"value": 0.01, "low": 0.0, "high": 0.02},
            "threshold": 0.99,
            "hits": 0.9,
            "token_threshold": 0.1,
        }
        stages["pruner"] = {"shallow_end": 1, "filter_layer": 2, "keep_tokens": 6}
        stages["attempts"] = [
            {"parts_loss": alone, "settings": settings, "loss": {"value": lost, "low": 0.0, "high": 0.2}}
            for settings, alone, lost in (
                ({**stages["pruner"], "keep_tokens": 2}, 0.05, 0.123),
                (stages["pruner"], 0.025, 0.045),
                ({**stages["pruner"], "keep_tokens": 10}, 0.01, 0.002),  # dearer, and loses less
            )
        ]
        made["stages"] = stages
        if checked:
            share = {"value": 0.5, "low": 0.4, "high": 0.6}
            made["check"] = [
                {
                    "name": name,
                    "samples": 4,
                    "images": 1,
                    "settings": {},
                    "accuracy": share,
                    "agreement": share,
                    "flops_cut": 0.5,
                }
                for name in ("dense", "proposed")
            ]
    return json.loads(json.dumps(made))


def _record(random: np.random.Generator, image: Path, number: int, answers_known: bool) -> Record:
    is_right = bool(number % 2) if answers_known else None

    def outcome(name: str, dim: str, labels: list[Any]) -> dict[str, Any]:
        shape = (len(labels),)
        right = random.integers(0, 2, shape).astype(float) if answers_known else np.full(shape, np.nan)
        coords = {dim: labels}
        arrays = {
            "kl": Labelled(random.exponential(0.2, shape), (dim,), "nats", coords),
            "agrees": Labelled(random.integers(0, 2, shape).astype(float), (dim,), "0 or 1", coords),
            "right": Labelled(right, (dim,), "0 or 1", coords),
        }
        return {name: Result(name, arrays, [f"Not in {name}."]).to_dict()}

    return {
        "image": str(image),
        "question": f"{HOSTILE} {number}?",
        "answers": ["yes"] if answers_known else [],
        "type": ("first kind", HOSTILE, "")[number % 3],
        "answer": f"<b>{number}</b>",
        "is_right": is_right,
        "prompt_rows": TOKENS + 9,
        "visual_tokens": TOKENS,
        "tokens_per_image": [TOKENS],
        "grids": [[ROWS, COLUMNS]],
        "plan": {"window": 2, "shallow": 2, "block": 2, "stride": 2, "scored": [2, 5], "budgets": [3]},
        "seconds": {"reading": 0.1},
        "parts": {
            "attention": _attention(random),
            "sweeps": outcome("sweep_shallow_to_deep", "layer", list(range(LAYERS + 1)))
            | outcome("discard", "layer", list(range(LAYERS + 1)))
            | outcome("sweep_window", "layer", list(range(LAYERS - 1))),
            "control": outcome("swap_window", "layer", list(range(LAYERS - 1))) | outcome("swap_all", "layer", [0]),
            "shallow": outcome("shallow", "condition", list(CONDITIONS)),
            "skip": outcome("skip", "layer", [0, 3]),
            "freeze_blocks": outcome("freeze_blocks", "layer", [0, 2, 4]),
            "cache": outcome("cache", "window", ["0-2", "2-4", "4-6", "0-6"]),
            "influence": _influence(random),
            "scores": _scores(random, answers_known),
            "lens": _lens(random),
        },
    }


def _tops(random: np.random.Generator) -> Labelled:
    return Labelled(np.stack([random.permutation(TOKENS)[:4] for _ in range(LAYERS)]), ("layer", "rank"), "token")


def _attention(random: np.random.Generator) -> dict[str, Any]:
    weights = random.random((LAYERS, TOKENS)) / TOKENS
    layer, token = ("layer",), ("layer", "token")
    arrays = {
        "map": Labelled(weights, token, "share"),
        "mass": Labelled(weights.sum(1), layer, "share"),
        "system_mass": Labelled(random.random(LAYERS) / 2, layer, "share"),
        "top": _tops(random),
        "value_l1": Labelled(random.random((LAYERS, TOKENS)), token, "L1 norm"),
        "sink_l1": Labelled(random.random(LAYERS), layer, "L1 norm"),
        "text_l1": Labelled(random.random(LAYERS), layer, "L1 norm"),
    }
    return {"attention": Result("attention", arrays, ["Heads are averaged."]).to_dict()}


def _influence(random: np.random.Generator) -> dict[str, Any]:
    numbers = random.random((LAYERS, TOKENS)) / 50
    stability = random.random(LAYERS)
    stability[-1] = np.nan
    arrays = {
        "distance": Labelled(numbers, ("layer", "token"), "1 - cosine"),
        "norm": Labelled(numbers, ("layer", "token"), "L2 norm"),
        "relative": Labelled(numbers, ("layer", "token"), "share"),
        "would_filter": Labelled((numbers > 0.015).any(1).astype(float), ("layer",), "0 or 1"),
        "top": _tops(random),
        "stability": Labelled(stability, ("layer",), "share"),
    }
    return {"influence": Result("influence", arrays).to_dict()}


def _scores(random: np.random.Generator, answers_known: bool) -> dict[str, Any]:
    def result(names: list[str], budgets: list[int], layers: list[int]) -> dict[str, Any]:
        coords: dict[str, list[Any]] = {"score": names, "budget": budgets, "layer": layers}
        shape = tuple(map(len, coords.values()))
        right = random.integers(0, 2, shape).astype(float) if answers_known else np.full(shape, np.nan)
        arrays = {"kl": random.random(shape), "agrees": random.random(shape), "overlap": random.random(shape)}
        found = {name: Labelled(values, tuple(coords), "", coords) for name, values in arrays.items()}
        return Result("scores", {**found, "right": Labelled(right, tuple(coords), "", coords)}).to_dict()

    return {
        "scores": result(["influence", "last_row", "random"], [2, 5], [0, 2, 4]),
        "budgets": result(["influence"], [3], [0, 2, 3, 4]),
    }


def _lens(random: np.random.Generator) -> dict[str, Any]:
    arrays = {
        "top": Labelled(random.integers(0, 9, (LAYERS, 3)), ("layer", "rank"), "token id"),
        "probability": Labelled(random.random((LAYERS, 3)), ("layer", "rank"), "probability"),
        "answer": Labelled(random.random(LAYERS), ("layer",), "probability"),
    }
    return {
        "lens": Result("lens", arrays).to_dict(),
        "words": [["</script>", " it", "\n"]] * LAYERS,
        "heads": [{"head": 1, "words": ["<i>", " b", "c"]}] * LAYERS,
        "leading_layer": int(random.integers(0, LAYERS)),
    }
