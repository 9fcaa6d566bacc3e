"""Tiny checkpoints of types that nobody described, with their stock processors, and why others have none here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tests.families.checkpoints import _SIDE, MROPE_SIZE, chat_template, words_tokenizer
from tests.families.kinds import PATCH, built_kind
from tests.families.prompts import BREAK, END, IMAGE, ROW, START, VIDEO
from tests.families.zoo import PINPOINTS
from visipruner.models.processors import images_only

# Every name by which a processor asks its tokenizer for a special token.
NAMED = {
    **dict.fromkeys(("image_token", "context_image_token"), IMAGE),
    "video_token": VIDEO,
    **dict.fromkeys(
        ("image_start_token", "vision_start_token", "video_start_token", "boi_token", "start_image_token"), START
    ),
    **dict.fromkeys(("image_end_token", "vision_end_token", "video_end_token", "eoi_token", "end_image_token"), END),
    **dict.fromkeys(("slice_start_token", "image_id_start_token", "image_break_token", "boa_token"), BREAK),
    **dict.fromkeys(("slice_end_token", "image_id_end_token", "eoa_token", "audio_token", "eof_token"), ROW),
    **{"image_boundary_token": START, "image_wrapper_token": BREAK, "sep_token": END},
}
COMMON = {IMAGE: "<image>", VIDEO: "<video>", START: "<start>", END: "<end>", BREAK: "<break>", ROW: "<row>"}
QWEN = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
AROUND = {IMAGE: "<|IMAGE_PAD|>", VIDEO: "<|VIDEO_PAD|>", START: "<|VISION_START|>", END: "<|VISION_END|>"}
AYA = {IMAGE: "<|IMG_PATCH|>", START: "<|START_OF_IMG|>", END: "<|END_OF_IMG|>", BREAK: "<|IMG_LINE_BREAK|>"}
GLM = {IMAGE: "<|image|>", VIDEO: "<|video|>", START: "<|begin_of_image|>", END: "<|end_of_image|>"}
DOCLING = {START: "<fake_token_around_image>", END: "<global-img>"}
_GRID: dict[str, Any] = {"patch_size": PATCH, "merge_size": 2, "size": MROPE_SIZE}

# Of a type: its processor, its image processor with settings, settings of the processor, strings of special tokens.
Stock = tuple[str, tuple[str, dict[str, Any]], dict[str, Any], dict[int, str]]
_QWEN_IMAGES = ("Qwen2VLImageProcessorPil", _GRID)
_TILES = ("GotOcr2ImageProcessorPil", {"size": _SIDE, "crop_to_patches": True, "min_patches": 1, "max_patches": 3})
STOCK: dict[str, Stock] = {
    "aria": ("AriaProcessor", ("AriaImageProcessorPil", {}), {"size_conversion": {980: 6}}, {}),
    "chameleon": (
        "ChameleonProcessor",
        ("ChameleonImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": _SIDE}),
        {"image_seq_length": 16},
        {},
    ),
    "deepseek_ocr2": (
        "DeepseekOcr2Processor",
        ("DeepseekOcr2ImageProcessorPil", {"size": {"height": 128, "width": 128}, "tile_size": 96}),
        {"patch_size": 2},
        {},
    ),
    "emu3": ("Emu3Processor", ("Emu3ImageProcessor", {"min_pixels": 32 * 32, "max_pixels": 48 * 64}), {}, {}),
    "granite4_vision": (
        "Granite4VisionProcessor",
        (
            "LlavaNextImageProcessorPil",
            {"size": {"shortest_edge": 32}, "crop_size": _SIDE, "image_grid_pinpoints": PINPOINTS},
        ),
        {
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        },
        {},
    ),
    "idefics2": (
        "Idefics2Processor",
        ("Idefics2ImageProcessorPil", {"size": {"shortest_edge": 16, "longest_edge": 32}}),
        {"image_seq_len": 6},
        {BREAK: "<end_of_utterance>"},
    ),
    "pp_chart2table": (
        "PPChart2TableProcessor",
        ("PPChart2TableImageProcessorPil", {"size": {"height": 64, "width": 64}}),
        {},
        {},
    ),
    "aya_vision": (
        "AyaVisionProcessor",
        ("GotOcr2ImageProcessorPil", {"size": _SIDE, "crop_to_patches": False}),
        {"patch_size": PATCH, "img_size": 32, "downsample_factor": 2},
        AYA,
    ),
    "cohere_compass": ("CohereCompassProcessor", ("CohereCompassImageProcessorPil", _GRID), {}, AROUND),
    "cosmos3_edge": ("Cosmos3EdgeProcessor", ("Cosmos3EdgeImageProcessorPil", _GRID), {}, QWEN),
    "deepseek_vl": (
        "DeepseekVLProcessor",
        ("DeepseekVLImageProcessorPil", {"size": _SIDE, "min_size": PATCH}),
        {"num_image_tokens": 16},
        {},
    ),
    "deepseek_vl_hybrid": (
        "DeepseekVLHybridProcessor",
        (
            "DeepseekVLHybridImageProcessorPil",
            {"size": _SIDE, "min_size": PATCH, "high_res_size": {"height": 64, "width": 64}},
        ),
        {"num_image_tokens": 16},
        {},
    ),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeProcessor", ("Ernie4_5_VLMoeImageProcessorPil", _GRID), {}, {}),
    "exaone4_5": ("Exaone4_5_Processor", _QWEN_IMAGES, {}, QWEN),
    "gemma4": (
        "Gemma4Processor",
        ("Gemma4ImageProcessorPil", {"patch_size": PATCH, "max_soft_tokens": 70, "pooling_kernel_size": 2}),
        {},
        {VIDEO: "<|video|>"},
    ),
    "glm_ocr": ("Glm46VProcessor", ("Glm46VImageProcessorPil", _GRID), {}, GLM),
    "glmga": ("Glm46VProcessor", ("GlmgaImageProcessorPil", _GRID), {}, GLM),
    "granite_docling": (
        "GraniteDoclingProcessor",
        ("GraniteDoclingImageProcessorPil", {"size": _SIDE, "min_patches": 1, "max_patches": 3}),
        {"image_seq_len": 4},
        DOCLING,
    ),
    "hunyuan_vl": ("HunYuanVLProcessor", ("HunYuanVLImageProcessorPil", _GRID), {}, {}),
    "hyperclovax_vision_v2": ("HyperCLOVAXVisionV2Processor", _QWEN_IMAGES, {}, QWEN),
    "janus": (
        "JanusProcessor",
        ("JanusImageProcessorPil", {"size": _SIDE, "min_size": PATCH}),
        {"num_image_tokens": 16},
        {},
    ),
    "lfm3_vl": ("Lfm3VlProcessor", _QWEN_IMAGES, {}, QWEN),
    "lighton_ocr": (
        "LightOnOcrProcessor",
        ("PixtralImageProcessorPil", {"size": {"longest_edge": 64}, "patch_size": PATCH}),
        {"patch_size": PATCH, "spatial_merge_size": 2},
        {},
    ),
    **{
        kind: (
            name,
            ("MiniCPMV4_6ImageProcessorPil", {"patch_size": PATCH, "scale_resolution": 64, "max_slice_nums": 1}),
            {},
            {},
        )
        for kind, name in (("minicpmv4_6", "MiniCPMV4_6Processor"), ("minicpmv4_7", "MiniCPMV4_7Processor"))
    },
    "ovis2": (
        "Ovis2Processor",
        ("Ovis2ImageProcessorPil", {"size": _SIDE, "crop_to_patches": False}),
        {"image_seq_length": 4},
        {IMAGE: "<IMG_ATOM>", START: "<IMG_START>", END: "<IMG_END>", BREAK: "<IMG_GRID>"},
    ),
    "paddleocr_vl": ("PaddleOCRVLProcessor", ("PaddleOCRVLImageProcessorPil", _GRID), {}, {}),
    "qianfan_ocr": ("QianfanOCRProcessor", _TILES, {"image_seq_length": 4}, {IMAGE: "<IMG_CONTEXT>"}),
    "qwen3_5": ("Qwen3VLProcessor", _QWEN_IMAGES, {}, QWEN),
    "qwen3_5_moe": ("Qwen3VLProcessor", _QWEN_IMAGES, {}, QWEN),
    "video_llama_3": (
        "VideoLlama3Processor",
        ("VideoLlama3ImageProcessorPil", {**_GRID, "merge_size": 1}),
        {},
        QWEN,
    ),
    "video_llava": (
        "VideoLlavaProcessor",
        ("VideoLlavaImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": _SIDE}),
        {"patch_size": PATCH},
        {},
    ),
    "vipllava": (
        "LlavaProcessor",
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": _SIDE}),
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        {},
    ),
}
TORCHVISION = "its image processor needs torchvision, which no extra installs"
NO_PROCESSOR = "transformers has no processor for it"
WITHOUT: dict[str, str] = {
    **dict.fromkeys(("apertus1p5", "cohere2_vision", "gemma4_unified", "kimi_k25", "lfm2_vl"), TORCHVISION),
    **dict.fromkeys(("minicpm_ocr", "molmo2", "muse_glimmer", "muse_spark", "perception_lm", "step3p7"), TORCHVISION),
    **dict.fromkeys(("cosmos3_omni", "fast_vlm"), NO_PROCESSOR),
    **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), "it is a part of a model that speaks, too"),
    "shieldgemma2": "its processor asks whether a picture keeps to a policy, and takes no other questions",
    "fuyu": "without torchvision its processor hands tensors to an image processor that takes arrays "
    "(FuyuImageProcessorPil.patchify_image)",
    "got_ocr2": "its processor takes no pictures of a chat, which apply_chat_template hands over in a list of lists "
    "(GotOcr2Processor._make_list_of_inputs)",
}
# Of those: stock processors that can be made, but fail when they are asked.
FAILING: dict[str, Stock] = {
    "fuyu": (
        "FuyuProcessor",
        ("FuyuImageProcessorPil", {"size": _SIDE, "patch_size": {"height": PATCH, "width": PATCH}}),
        {},
        {IMAGE: "|SPEAKER|", BREAK: "|NEWLINE|", ROW: "<0x04>"},
    ),
    "got_ocr2": ("GotOcr2Processor", ("GotOcr2ImageProcessorPil", {"size": _SIDE}), {}, {IMAGE: "<imgpad>"}),
}
# How a chat template writes an image, where it is not the image token alone.
WRITTEN = {
    "aya_vision": "<image>",
    "fuyu": "",  # its processor puts the picture first
    "gemma4": "<image>",
    "pp_chart2table": "<image>" * 16,
    "qianfan_ocr": "<image>",
    "granite_docling": "<image>",
    "ovis2": "<image>",
}
# Types whose chat template writes a start and an end around it; their models tell images side by side apart by these.
MARKED = ("cohere_compass", "cosmos3_edge", "ernie4_5_vl_moe", "exaone4_5", "glm_ocr", "glmga", "hunyuan_vl")
MARKED += ("paddleocr_vl", "qwen3_5", "qwen3_5_moe")
# Types that no analysis can read, and what is said.
UNREAD = {"granite_docling": "are not what its final norm and output embeddings give"}


def processor_of(kind: str) -> Any:
    """A type's stock processor with a chat template."""
    name, (images, image_settings), settings, strings = {**STOCK, **FAILING}[kind]
    special = {**COMMON, **strings}
    named = {attribute: special[token] for attribute, token in NAMED.items()}
    cls, tokenizer = getattr(transformers, name), words_tokenizer(special, named)
    tokenizer.add_tokens([f"w{number}" for number in range(3, 80)])  # words to whichever class a type loads it by
    parts = {"image_processor": getattr(transformers, images)(**image_settings), "tokenizer": tokenizer}
    if "feature_extractor" in cls.get_attributes():
        parts["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    order = cls.get_attributes()
    if "video_processor" in order:
        cls, parts["video_processor"] = images_only(cls), None
    processor = cls(*(parts[part] for part in order), **settings)
    marked = special[START] + special[IMAGE] + special[END]
    processor.chat_template = chat_template(WRITTEN.get(kind, marked if kind in MARKED else special[IMAGE]))
    return processor


def save(kind: str, folder: Path) -> Path:
    """A type's tiny model and its processor in `folder`."""
    built_kind(kind).save_pretrained(folder)
    processor_of(kind).save_pretrained(folder)
    return folder
