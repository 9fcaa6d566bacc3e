"""Qwen2-VL and its successors: images of any size, videos, and rotary positions in time, height and width (M-RoPE).

Positions reach the decoder as `[3 or 4, batch, seq]` and its layers as cosines and sines `[batch, seq, head_dim]`, so
rows that leave take theirs along and the others keep theirs. The vision start and end tokens are text. Qwen3-VL writes
a time stamp before every video frame, as text, and adds features of inner vision layers (DeepStack) to visual rows
after the first decoder layers.
"""

from __future__ import annotations

from visipruner.adapters.base import POSITIONS, VIDEO_PROCESSOR, Adapter
from visipruner.adapters.mrope import frames
from visipruner.adapters.placeholders import IMAGE, VIDEO, rows_of
from visipruner.adapters.towers import merged

QWEN2 = Adapter(
    family="Qwen2-VL, Qwen2.5-VL",
    model_types=("qwen2_vl", "qwen2_5_vl"),
    locate=rows_of(IMAGE, VIDEO),
    images=frames,
    vision=("model.visual",),
    patches=merged,
    visual="merged patches of images and video frames; the vision start and end tokens are text",
    remarks={"new image": POSITIONS, "run": VIDEO_PROCESSOR},
)
QWEN3 = Adapter(
    family="Qwen3-VL",
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    locate=rows_of(IMAGE, VIDEO),
    images=frames,
    vision=("model.visual",),
    patches=merged,
    visual="merged patches of images and video frames; vision start and end tokens and time stamps are text",
    lacks={"late": "The family adds features of the image to its rows in the first layers; an error says so."},
    remarks={"new image": POSITIONS, "run": VIDEO_PROCESSOR},
)
