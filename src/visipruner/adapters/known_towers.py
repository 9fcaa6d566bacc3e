"""What cannot be read from a model of a type that nobody described: which patches of its vision tower a visual token is
made of, or why it is made of none."""

from __future__ import annotations

from visipruner.adapters.towers import (
    Patches,
    framed_lines,
    lines,
    listed,
    merged,
    merged_pairs,
    pooled_positions,
    sized_squares,
    squares,
    windowed_lines,
)

# The tower's name in the embedder, and the patches of a token.
TOWERS: dict[str, tuple[str, Patches]] = {
    **dict.fromkeys(("aya_vision", "cohere2_vision", "qianfan_ocr", "shieldgemma2"), ("vision_tower", squares)),
    **dict.fromkeys(("ovis2", "vipllava"), ("vision_tower", squares)),
    **dict.fromkeys(("deepseek_vl", "deepseek_vl_hybrid", "granite_docling", "janus"), ("vision_model", squares)),
    "video_llava": ("image_tower", squares),
    "lighton_ocr": ("vision_encoder", sized_squares),
    **dict.fromkeys(("cohere_compass", "cosmos3_edge", "cosmos3_omni", "exaone4_5", "glm_ocr"), ("visual", merged)),
    **dict.fromkeys(("glmga", "qwen2_5_omni_thinker", "qwen3_5", "qwen3_5_moe"), ("visual", merged)),
    "qwen3_omni_moe_thinker": ("visual", merged),
    **dict.fromkeys(("hyperclovax_vision_v2", "video_llama_3"), ("vision_model", merged)),
    "lfm3_vl": ("vision_tower", merged),
    "ernie4_5_vl_moe": ("vision_tower", merged_pairs),
    **dict.fromkeys(("kimi_k25", "lfm2_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), ("vision_tower", lines)),
    "paddleocr_vl": ("visual", lines),
    "hunyuan_vl": ("vision_tower", framed_lines),
    **dict.fromkeys(("muse_glimmer", "muse_spark"), ("vision_tower", windowed_lines)),
    "gemma4": ("vision_tower", pooled_positions),
    "molmo2": ("vision_tower", listed),
}

_CODES = "a convolutional tokenizer turns pictures into codes, and no tower attends to patches"
_SAM = "its tower (SAM) attends by functions of its own, and convolutions mix its patches"
_TIMM = "its tower is a timm model, whose attention does not go through transformers' interface"
_LEARNED = "its tokens are learned queries that look at the whole picture, not patches"
NO_PATCHES: dict[str, str] = {
    **dict.fromkeys(("apertus1p5", "chameleon", "emu3"), _CODES),
    **dict.fromkeys(("aria", "deepseek_ocr2", "idefics2"), _LEARNED),
    **dict.fromkeys(("fast_vlm", "perception_lm"), _TIMM),
    **dict.fromkeys(("fuyu", "gemma4_unified"), "it has no vision tower: patches enter the decoder by a projection"),
    **dict.fromkeys(("got_ocr2", "pp_chart2table"), _SAM),
    "granite4_vision": "its tokens are learned queries that mix the patches of a window, of several layers",
    "step3p7": "convolutions that overlap mix its patches, so no token has patches of its own",
}
