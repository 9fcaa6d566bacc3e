"""Methods that drop tokens, and what becomes of the positions of the rows that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.errors import UnsupportedModelError

Positions = Literal["keep", "compact"]


@dataclass(frozen=True, kw_only=True)
class DroppingPruner(Pruner):
    """A method that drops tokens, with a say over the positions of the rows that stay.

    Attributes:
        positions: "keep": every row has the position it has in the whole prompt. "compact": the rows of a layer are
            numbered anew, without gaps, as if the tokens that left had never been there; what is generated follows
            them. None: as the method was published (`published_positions`), but "keep" in models that place image
            tokens by line and column (M-RoPE), where nothing could close up and the methods' ports keep places, too.
        published_positions: what the authors' code does.
    """

    published_positions: ClassVar[Positions] = "keep"

    positions: Positions | None = None

    def begin(self, in_line: bool) -> PromptRun:
        if self.positions == "compact" and not in_line:
            raise UnsupportedModelError(
                f"{self.name}: positions='compact' needs rows that are numbered one after another, which those of this "
                "prompt are not (M-RoPE, or position_ids of your own); use positions='keep'."
            )
        run = self.start()
        run.is_compact = in_line and (self.positions or self.published_positions) == "compact"
        return run
