"""Which attention edges a layer has while it reads a prompt with visual rows. Declarations only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Edge = Literal["attend", "cut", "zero", "zero_first_half", "merge"]
Needed = Literal["all", "sink", "none"]


@dataclass(frozen=True)
class Routing:
    """Edges into the visual rows of one layer, for text rows and for visual rows.

    An edge is one of
        attend: as in the plain model;
        cut: absent, before the softmax (the remaining weights are renormalised);
        zero: weight set to 0 after the softmax (not renormalised: the mass is spent on nothing);
        zero_first_half: the same for the first half of the visual rows only;
        merge: the summed weight of all visual rows goes to the first of them, the attention sink.

    Attributes:
        text_to_visual: edges from text rows.
        visual_to_visual: edges from visual rows, to themselves included.
        visual_rows_attend: False takes visual rows out of self-attention altogether: no projections, no keys; they
            still pass the FFN. Text rows then see no visual row, but for the sink.
        sink: with `visual_rows_attend=False`, let the first visual row stay as an attention sink whose logit is raised
            by log(n_v): it stands for the mass of all n_v rows.
        prompt_only: the edges hold for prompt rows; rows generated later attend as in the plain model.
        freezes_visual: visual rows only give keys and values: they query nothing, pass no FFN and leave the layer as
            they came. Text rows attend to them as in the plain model.
    """

    text_to_visual: Edge = "attend"
    visual_to_visual: Edge = "attend"
    visual_rows_attend: bool = True
    sink: bool = False
    prompt_only: bool = False
    freezes_visual: bool = False

    @property
    def is_plain(self) -> bool:
        """True when the layer runs as in the plain model."""
        as_plain = self.text_to_visual == "attend" and self.visual_to_visual == "attend" and self.visual_rows_attend
        return as_plain and not self.freezes_visual

    @property
    def visual_keys(self) -> Needed:
        """Of which visual rows a key is needed; a later row's plain attention counts too."""
        return "none" if self.text_to_visual == self.visual_to_visual == "cut" and not self.prompt_only else "all"

    @property
    def visual_values(self) -> Needed:
        """Of which visual rows a value is needed: a merged edge takes the sink's alone, a zeroed one takes none."""
        edges = {self.text_to_visual, self.visual_to_visual}
        if self.prompt_only or edges & {"attend", "zero_first_half"}:
            return "all"
        return "sink" if "merge" in edges else "none"

    @property
    def keeps_visual_keys(self) -> bool:
        """Whether later text rows can still need the visual rows' keys of this layer."""
        return self.text_to_visual != "cut" or self.prompt_only


PLAIN = Routing()
FROZEN = Routing(freezes_visual=True)
