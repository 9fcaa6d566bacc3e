"""LLaVA-NeXT, and LLaVA-NeXT-Video: a small view of the whole image, then its crops joined.

Each row of the joined crops is ended by a learned newline feature. It comes from the connector, not from the
tokenizer, and lies on an image token, so it is visual here and may be pruned, as in the family's own code, where it is
part of the image's features. Papers that speak of 2880 tokens (five views of 576) leave the newlines out of the number:
a square picture of that size has 48 of them and brings 2928 rows.
"""

from visipruner.adapters.base import NO_VIDEO, VIDEO_PROCESSOR, Adapter
from visipruner.adapters.placeholders import IMAGE, VIDEO, image_sizes, rows_of, sizes_without_videos
from visipruner.adapters.towers import by_kind, joined_crops, pooled_squares

ADAPTER = Adapter(
    family="LLaVA-NeXT",
    model_types=("llava_next",),
    locate=rows_of(IMAGE),
    images=image_sizes,
    vision=("model.vision_tower",),
    patches=joined_crops,
    visual="tokens of all crops, and the newline feature after each row of them, which the usual 2880 leaves out",
    lacks={"video": NO_VIDEO},
)
VIDEO_ADAPTER = Adapter(
    family="LLaVA-NeXT-Video",
    model_types=("llava_next_video",),
    locate=rows_of(IMAGE, VIDEO),
    images=sizes_without_videos,
    vision=("model.vision_tower",),
    patches=by_kind(image=joined_crops, video=pooled_squares),
    visual="as LLaVA-NeXT, and the tokens of pooled video frames",
    remarks={"run": VIDEO_PROCESSOR},
)
