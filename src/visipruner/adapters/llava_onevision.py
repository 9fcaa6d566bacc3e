"""LLaVA-OneVision: as LLaVA-NeXT for one image, one view for each of several, and videos of pooled frames.

Newline features (after a row of crops, an image, a video) lie on image and video tokens and count as visual, as in
LLaVA-NeXT.
"""

from visipruner.adapters.base import VIDEO_PROCESSOR, Adapter
from visipruner.adapters.placeholders import IMAGE, VIDEO, rows_of, sizes_without_videos
from visipruner.adapters.towers import by_kind, joined_crops, pooled_frames

ADAPTER = Adapter(
    family="LLaVA-OneVision",
    model_types=("llava_onevision",),
    locate=rows_of(IMAGE, VIDEO),
    images=sizes_without_videos,
    vision=("model.vision_tower",),
    patches=by_kind(image=joined_crops, video=pooled_frames),
    visual="tokens of all crops and video frames, and the newline features among them",
    remarks={"run": VIDEO_PROCESSOR},
)
