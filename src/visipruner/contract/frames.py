"""Videos among a prompt's images: which visual tokens are the same place of successive frames."""

from __future__ import annotations

import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView


def videos(view: EntryView, frame_tokens: int | None = None) -> list[Tensor]:
    """`[frames, n]` long for each video of the prompt: positions among the visual tokens present, -1 where one left.

    Images of one grid that follow each other are frames of one video; a picture by itself is a video of one frame.
    With `frame_tokens` every image of the trace is a video of frames of so many tokens, for models whose trace has the
    whole video as one image; tokens after the last whole frame, a newline for instance, belong to none.
    """
    found: list[list[Tensor]] = []
    before = None
    for image in view.images():
        places = image.positions.new_full((image.size,), -1)
        places[image.tokens] = image.positions
        if frame_tokens is not None:
            found.append(list(places[: image.size // frame_tokens * frame_tokens].view(-1, frame_tokens)))
        elif before == (image.size, image.grid):
            found[-1].append(places)
        else:
            found.append([places])
        before = (image.size, image.grid)
    return [torch.stack(frames) for frames in found if frames]
