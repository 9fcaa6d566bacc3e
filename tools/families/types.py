"""The tiny check of every type that transformers maps to AutoModelForImageTextToText, one after another.

`python -m tools.families.types TYPE...` prints findings; without types it writes tools/families/types.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, CLIPVisionConfig, PretrainedConfig, SiglipVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from visipruner import adapters
from visipruner.checking import Report, check_tiny
from visipruner.errors import UnsupportedModelError
from visipruner.models import checked

TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
RESULTS = Path(__file__).with_name("types.json")

_LINES = {f"IMGIMG{letter}Z": 3 + number for number, letter in enumerate("ABCD")}
_CODES = {f"<|visual token {number:06d}|>": 10 + number for number in range(4)}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_BOTH = {kind: dict(_ROTARY) for kind in ("full_attention", "sliding_attention")}
_MIXED = ["full_attention", "sliding_attention", "sliding_attention"] * 15
_EXPERTS = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_WORDS = {"<image>": 90, "<|extra_200|>": 20, **_LINES, **_CODES}

# Where a type's default config makes no model, or not one of the kind that checkpoints are.
_GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "aya_vision": lambda: {"vision_config": SiglipVisionConfig(num_hidden_layers=1)},
    "chameleon": lambda: {"vocabulary_map": _WORDS},
    "emu3": lambda: {"vocabulary_map": _WORDS},
    "fast_vlm": lambda: {"vision_config": CLIPVisionConfig(num_hidden_layers=1)},
    "perception_lm": lambda: {"vision_config": CLIPVisionConfig(num_hidden_layers=1, model_args={"embed_dim": 64})},
    "blip-2": lambda: {"image_token_index": 90},
    "granite4_vision": lambda: {
        "image_grid_pinpoints": [[384, 384]],
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "downsample_rate": "4/8",
    },
    "hunyuan_vl": lambda: {"text_config": {"head_dim": 128, "rope_parameters": {**_ROTARY, "mrope_section": [16] * 4}}},
    "cohere_compass": lambda: {"text_config": {"rope_parameters": _BOTH}},
    "step3p7": lambda: {"text_config": {"sliding_window": 512, "layer_types": _MIXED, "rope_parameters": _BOTH}},
    "minimax_m3_vl": lambda: {"text_config": {"layer_types": ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57}},
    "deepseek_ocr2": lambda: {"text_config": {**_EXPERTS, "mlp_layer_types": ["dense"] + ["sparse"] * 31}},
    "unlimited_ocr": lambda: {"text_config": dict(_EXPERTS)},
    "lfm2_vl": lambda: {"text_config": {"full_attn_idxs": [2, 5, 8, 10, 12, 14]}},
    "qwen2_5_omni_thinker": lambda: {"vision_start_token_id": 85, "vision_end_token_id": 86},
    "qwen3_omni_moe_thinker": lambda: {"vision_start_token_id": 85, "vision_end_token_id": 86},
    "ernie4_5_vl_moe": lambda: {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [22, 22, 20]}}},
    "instructblip": lambda: {"image_token_index": 90},
    **dict.fromkeys(
        ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"), lambda: {"image_token_id": 90, "video_token_id": 91}
    ),
}

# What a check of videos says, and what the table does of it; types that read none have no such check.
_VIDEOS = {"passes": "yes", "left out": "not tried"}


def default_config(kind: str) -> PretrainedConfig:
    """A type's default config, completed where it makes no model."""
    return CONFIG_MAPPING[kind](**_GIVEN.get(kind, dict)())


def checked_type(kind: str) -> Report:
    """The tiny check of a type. One whose default config makes no model is refused, too: nobody can say more of it."""
    try:
        config = default_config(kind)
    except Exception as error:  # whatever a config says of its own defaults
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        return Report(kind, "tiny", "", checked.versions(), (), f"Its default config makes no model ({told}).")
    try:
        return check_tiny(config, keep=False)
    except UnsupportedModelError as error:
        return Report(kind, "tiny", "", checked.versions(), (), str(error))


def verdict(report: Report) -> dict[str, Any]:
    """What the table says of a type: passes, refused or fails, and why."""
    if report.refused:
        why = report.refused.partition("are not supported: ")[2].partition(". Choose")[0] or report.refused
        return {"result": "refused" if "are not supported" in report.refused else "no tiny model", "why": _short(why)}
    if report.passed:
        layers = [each.where for each in report.findings if each.check == "drop = cut"]
        videos = [each.state for each in report.findings if each.check == "video"]
        return {"result": "passes", "layers": layers, "videos": _VIDEOS[videos[0]] if videos else "no"}
    bad = next(each for each in report.findings if each.state != "passes")
    return {"result": "not tried" if bad.check == "plain model" else "fails", "why": _short(f"{bad.check}: {bad.says}")}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Every type: what its tiny check said, as Markdown."""
    passing = [kind for kind, one in found.items() if one["result"] == "passes"]
    known = adapters.supported()
    lines = [
        f"Of the {len(found)} types of transformers {version('transformers')} that read images and write text, "
        f"{len(passing)} pass `visipruner check` with a tiny model of their default config; the others say why not. "
        "Videos are *not tried* where a type reads them and wants more than features in place of those of its tower.",
        "",
        "| `model_type` | check | videos | described by | why not |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, one in found.items():
        by = known.get(kind, "itself") if one["result"] == "passes" else ""
        lines.append(f"| `{kind}` | {one['result']} | {one.get('videos', '')} | {by} | {one.get('why', '')} |")
    return "\n".join(lines) + "\n"


def written() -> dict[str, dict[str, Any]]:
    """What the last run over all types found."""
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())
    return found


def _short(why: str) -> str:
    first = " ".join(why.split())
    return first if len(first) <= 160 else first[:157].rsplit(" ", 1)[0] + " ..."


def main() -> None:
    """Checks the types named on the command line and tells, or all and writes what came out."""
    found = {}
    for kind in sys.argv[1:] or TYPES:
        report = checked_type(kind)
        found[kind] = verdict(report)
        print(report, flush=True)
    if not sys.argv[1:]:
        RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
