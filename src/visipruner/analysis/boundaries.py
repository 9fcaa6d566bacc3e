"""Where losses begin and end over the layers, with intervals; nothing is assumed about how many places there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Array
from visipruner.analysis.evidence import Evidence
from visipruner.analysis.intervals import Bootstrap, Interval
from visipruner.words import spans


@dataclass(frozen=True)
class Fusion:
    """Neighbouring layers whose windows the answers need; `loss` is that of the worst window."""

    first_layer: int
    last_layer: int
    loss: Interval

    @property
    def layers(self) -> str:
        """`15`, or `13-15`."""
        return spans(range(self.first_layer, self.last_layer + 1))


@dataclass(frozen=True)
class Boundaries:
    """Stage boundaries of one kind of questions (or all).

    Attributes:
        samples: how many. shallow_end: text need not see the image in layers below it; None where not even layer 0
            can be spared. exit_layer: visual rows can leave before it; None where the last layer still needs them.
        fusion: layers in between whose content is needed. weight_only: layers in between that answers need too, but
            not what the image says there: another picture does as well.
        needs_image: False where nothing is lost without any text -> visual edge, or with another picture in place of
            the image: then no stage can be told.
    """

    samples: int
    shallow_end: Interval | None
    exit_layer: Interval | None
    fusion: list[Fusion]
    needs_image: bool
    weight_only: list[int] = field(default_factory=list)

    @property
    def sure_shallow_end(self) -> int:
        """The cautious end of the shallow stage; 0 where there is none."""
        return int(self.shallow_end.ends[0]) if self.shallow_end else 0

    def sure_exit(self, num_layers: int) -> int:
        """The cautious exit: visual rows can leave before this layer; `num_layers` where they stay."""
        return int(self.exit_layer.ends[1]) if self.exit_layer else num_layers

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "samples": self.samples,
            "needs_image": self.needs_image,
            "shallow_end": None if self.shallow_end is None else self.shallow_end.to_dict(),
            "exit_layer": None if self.exit_layer is None else self.exit_layer.to_dict(),
            "fusion": [{**vars(part), "loss": part.loss.to_dict()} for part in self.fusion],
            "weight_only": self.weight_only,
        }


def boundaries(evidence: Evidence, members: Array, tolerance: float, seed: int) -> Boundaries:
    """Boundaries of the samples `members` (their numbers); a loss within `tolerance` counts as none."""
    layers = evidence.below.shape[1] - 1
    bootstrap = Bootstrap([evidence.images[i] for i in members], seed)

    def last_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        # Nothing is cut at k = 0, but rounding may lose more there than a tiny tolerance.
        return float(max(0, harmful[0] - 1)) if len(harmful) else float(layers)

    def first_harmless(curve: Array) -> float:
        harmful = np.flatnonzero(curve > tolerance)
        return float(harmful[-1] + 1) if len(harmful) else 0.0

    shallow = bootstrap.interval(last_harmless, evidence.below[members])
    leave = bootstrap.interval(first_harmless, evidence.discard[members])
    lost = min(float(np.nanmean(losses[members])) for losses in (evidence.discard[:, 0], evidence.swapped))
    needs_image = lost > tolerance
    between = range(int(shallow.value), int(leave.value))
    curve, swapped = (bootstrap.curve(losses[members]) for losses in (evidence.window, evidence.swapped_window))
    needed = _is_lost(curve, tolerance)
    of_content = needed & _is_lost(swapped, tolerance)
    size = evidence.window_size
    weight_only = set(_own_layers(needed, size)) - set(_own_layers(of_content, size))
    return Boundaries(
        samples=len(members),
        shallow_end=shallow if needs_image and shallow.value > 0 else None,
        exit_layer=leave if needs_image and leave.value < layers else None,
        fusion=fusion_places(curve, of_content, size, between) if needs_image else [],
        needs_image=needs_image,
        weight_only=sorted(weight_only.intersection(between)) if needs_image else [],
    )


def fusion_places(curve: dict[str, Array], needed: Array, size: int, between: range) -> list[Fusion]:
    """Neighbouring windows that are needed, as places in the layers `between` the boundaries.

    Args:
        curve: mean, low and high `[W]` of what the windows of `size` layers lose. needed: `[W]` bool.
    """
    found: list[Fusion] = []
    own = _own_layers(needed, size)
    for windows in _runs(np.flatnonzero(needed).tolist()):
        covered = range(windows.start, windows.stop + size - 1)
        # Where layers can stand in for each other, none is needed in every window; those that all windows share are.
        layers = [layer for layer in covered if layer in own] or list(range(windows[-1], windows[0] + size))
        worst = windows[int(np.argmax(curve["mean"][windows.start : windows.stop]))]
        loss = Interval(*(float(curve[name][worst]) for name in ("mean", "low", "high")))
        places = _runs([layer for layer in layers if layer in between])
        found += [Fusion(place[0], place[-1], loss) for place in places]
    return found


def _is_lost(curve: dict[str, Array], tolerance: float) -> Array:
    """`[W]` bool: more than the tolerance, surely more than nothing (of one image nothing more is known)."""
    return np.asarray((curve["mean"] > tolerance) & ~(curve["low"] <= 0))


def _own_layers(needed: Array, size: int) -> list[int]:
    """Layers that cannot be spared in any window that holds them: a window is wider than what it is needed for."""
    return [layer for layer in range(len(needed) + size - 1) if needed[max(0, layer - size + 1) : layer + 1].all()]


def _runs(numbers: list[int]) -> list[range]:
    """Ascending numbers, those in a row as one range."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [range(start, end + 1) for start, end in zip(starts, ends, strict=True)]
