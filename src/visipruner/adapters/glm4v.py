"""GLM-4.1V and its successors: as Qwen2-VL, with M-RoPE; video frames use the image token, a time stamp after each."""

from visipruner.adapters.base import POSITIONS, VIDEO_PROCESSOR, Adapter
from visipruner.adapters.mrope import frames
from visipruner.adapters.placeholders import Placeholder, rows_of
from visipruner.adapters.towers import merged

ADAPTER = Adapter(
    family="GLM-4.1V, 4.5V, 4.6V",
    model_types=("glm4v", "glm4v_moe", "glm46v"),
    locate=rows_of(Placeholder("image_token_id", (("pixel_values", "image"), ("pixel_values_videos", "video")))),
    images=frames,
    vision=("model.visual",),
    patches=merged,
    visual="merged patches of images and video frames; begin and end tokens and time stamps are text",
    remarks={
        "new image": POSITIONS,
        "run": VIDEO_PROCESSOR,
        "video": "The host takes images and videos in different prompts only.",
    },
)
