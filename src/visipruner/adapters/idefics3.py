"""Idefics3 and SmolVLM: square crops, each announced by its row and column in text, and a view of the whole image."""

from visipruner.adapters.base import FRAMES, Adapter
from visipruner.adapters.placeholders import IMAGE, rows_of

ADAPTER = Adapter(
    family="Idefics3, SmolVLM",
    model_types=("idefics3", "smolvlm"),
    locate=rows_of(IMAGE),
    vision=("model.vision_model",),
    visual="tokens of all crops and video frames; row, column and separator tokens are text",
    remarks={
        "video": "SmolVLM only. " + FRAMES,
        "run": "SmolVLM's processor needs the package num2words.",
    },
)
