"""PaliGemma and Gemma 3: square images that attend to themselves in both directions.

PaliGemma's whole prompt, text included, attends in both directions; Gemma 3 mixes sliding windows with full attention.
Both are in the host's masks, which the engine follows row by row.
"""

from visipruner.adapters.base import LATER_TURNS, NO_VIDEO, Adapter
from visipruner.adapters.placeholders import IMAGE, equal_squares, rows_of

PALIGEMMA = Adapter(
    family="PaliGemma, PaliGemma 2",
    model_types=("paligemma",),
    locate=rows_of(IMAGE),
    vision=("model.vision_tower",),
    images=equal_squares,
    visual="all tokens of an image",
    lacks={"video": NO_VIDEO},
    remarks={
        "new image": LATER_TURNS,
        "sdpa": "PaliGemma only: transformers offers Gemma 2, PaliGemma 2's text model, eager attention alone.",
        "run": "The family has no chat template of its own; put one beside config.json.",
    },
)
GEMMA3 = Adapter(
    family="Gemma 3",
    model_types=("gemma3",),
    locate=rows_of(IMAGE),
    vision=("model.vision_tower",),
    images=equal_squares,
    visual="tokens of an image and of its crops; the tokens around them are text",
    lacks={"video": NO_VIDEO},
    remarks={"new image": LATER_TURNS},
)
