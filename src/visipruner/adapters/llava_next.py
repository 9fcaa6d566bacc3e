"""LLaVA-NeXT: a small view of the whole image, then its crops joined, each row ended by a learned newline feature.

The newline features come from the connector, not from the tokenizer: they lie on image tokens and are part of the
image in the paper's count (2880 tokens at most), so they are visual here and may be pruned.
"""

from visipruner.adapters.base import NO_VIDEO, Adapter
from visipruner.adapters.placeholders import IMAGE, image_sizes, rows_of

ADAPTER = Adapter(
    family="LLaVA-NeXT",
    model_types=("llava_next",),
    decoder=("model.language_model", "language_model"),
    embedder=("model", ""),
    locate=rows_of(IMAGE),
    images=image_sizes,
    visual="tokens of all crops, and the newline feature after each row of crops",
    lacks={"video": NO_VIDEO},
)
