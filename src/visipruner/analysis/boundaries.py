"""Where losses begin and end over the layers, with intervals; nothing is assumed about how many places there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from visipruner.analysis.evidence import Evidence
from visipruner.analysis.intervals import Bootstrap, Interval
from visipruner.analysis.results import Array


@dataclass(frozen=True)
class Fusion:
    """Neighbouring layers whose windows the answers need; `loss` is that of the worst window."""

    first_layer: int
    last_layer: int
    loss: Interval


@dataclass(frozen=True)
class Boundaries:
    """Stage boundaries of one kind of questions (or all).

    Attributes:
        samples: how many. shallow_end: text need not see the image in layers below it; None where not even layer 0
            can be spared. exit_layer: visual rows can leave before it; None where the last layer still needs them.
        fusion: layers in between that are needed.
        needs_image: False where nothing is lost without any text -> visual edge: then no stage can be told.
    """

    samples: int
    shallow_end: Interval | None
    exit_layer: Interval | None
    fusion: list[Fusion]
    needs_image: bool

    @property
    def sure_shallow_end(self) -> int:
        """The cautious end of the shallow stage; 0 where there is none."""
        return int(self.shallow_end.low) if self.shallow_end else 0

    def sure_exit(self, num_layers: int) -> int:
        """The cautious exit: visual rows can leave before this layer; `num_layers` where they stay."""
        return int(self.exit_layer.high) if self.exit_layer else num_layers

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "samples": self.samples,
            "needs_image": self.needs_image,
            "shallow_end": None if self.shallow_end is None else self.shallow_end.to_dict(),
            "exit_layer": None if self.exit_layer is None else self.exit_layer.to_dict(),
            "fusion": [{**vars(part), "loss": part.loss.to_dict()} for part in self.fusion],
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
    needs_image = bool(bootstrap.curve(evidence.discard[members])["mean"][0] > tolerance)
    fusion = _fusion(evidence, members, bootstrap, tolerance)
    return Boundaries(
        samples=len(members),
        shallow_end=shallow if needs_image and shallow.value > 0 else None,
        exit_layer=leave if needs_image and leave.value < layers else None,
        fusion=fusion if needs_image else [],
        needs_image=needs_image,
    )


def _fusion(evidence: Evidence, members: Array, bootstrap: Bootstrap, tolerance: float) -> list[Fusion]:
    """Runs of overlapping windows that lose more than the tolerance, surely more than nothing."""
    curve = bootstrap.curve(evidence.window[members])
    needed = (curve["mean"] > tolerance) & (curve["low"] > 0)
    found: list[Fusion] = []
    start: int | None = None
    for k in range(len(needed) + 1):
        if k < len(needed) and needed[k]:
            start = k if start is None else start
        elif start is not None:
            worst = start + int(np.argmax(curve["mean"][start:k]))
            loss = Interval(*(float(curve[name][worst]) for name in ("mean", "low", "high")))
            # Layers that every needed window shares say best where it happens; a long run is given whole.
            first, last = (k - 1, start + evidence.window_size - 1)
            if last < first:
                first, last = start, k - 1 + evidence.window_size - 1
            found.append(Fusion(first, last, loss))
            start = None
    return found
