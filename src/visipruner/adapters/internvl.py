"""InternVL in transformers' format: one or more square crops per image, each reduced by pixel shuffle."""

from visipruner.adapters.base import FRAMES, VIDEO_PROCESSOR, Adapter
from visipruner.adapters.placeholders import IMAGE, equal_squares, rows_of

ADAPTER = Adapter(
    family="InternVL",
    model_types=("internvl",),
    locate=rows_of(IMAGE),
    vision=("model.vision_tower",),
    images=equal_squares,
    visual="tokens of all crops and video frames; the tokens around an image are text",
    remarks={"video": FRAMES, "run": VIDEO_PROCESSOR},
)
