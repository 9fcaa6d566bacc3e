"""The models that are compared: what each trains with, and what is on top when it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from visipruner.adapters.llava import ADAPTER
from visipruner.engine.attach import PruneHandle
from visipruner.engine.host import Host
from visipruner.errors import ConfigError
from visipruner.training import Alignment, VisualGates
from visipruner.training.guide import Guide
from visipruner.words import spans

PLAIN = "plain"
PRUNED = "plain + VisiPruner"


@dataclass(frozen=True)
class Span:
    """Visual rows in layers `inject .. exit - 1`, but for the layers `frozen`, which they only give keys to; of them
    `keep` after layer `chooser`, where that is said."""

    inject: int
    exit: int
    chooser: int | None = None
    keep: int | None = None
    frozen: tuple[int, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """`8-24`, `8-24:11=64` for 64 tokens after layer 11, `0-24/2-11` with layers 2 to 11 frozen.

        Raises ConfigError.
        """
        found = re.fullmatch(r"(\d+)-(\d+)((?:/\d+-\d+)*)(?::(\d+)=(\d+))?", text.strip())
        if found is None:
            raise ConfigError(
                f"{text!r} says no layers; write 8-24, 8-24:11=64 for 64 tokens after layer 11, or 0-24/2-11 to "
                "freeze visual rows in layers 2 to 11."
            )
        first, end, passed, chooser, keep = found.groups()
        frozen = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d+)-(\d+)", passed)]
        return cls(
            int(first),
            int(end),
            None if chooser is None else int(chooser),
            None if keep is None else int(keep),
            tuple(layer for span in frozen for layer in span),
        )

    def arms(self) -> list[Arm]:
        """With these layers, the projector fitted to the first: trained, and, where all tokens stay, not trained."""
        alignment = Alignment(
            inject_layer=self.inject,
            exit_layer=self.exit,
            filter_layer=self.chooser,
            keep_tokens=self.keep,
            frozen_layers=self.frozen,
        )
        is_late = self.inject > 0
        name = f"{'late-' if is_late else ''}exit {self.inject}-{self.exit}"
        if self.frozen:
            name += f", frozen {spans(self.frozen)}"
        if self.keep is not None:
            name += f", {self.keep} after {self.chooser}"
        followed = {"a": is_late, "f": bool(self.frozen), "b": self.keep is not None, "c": True}
        letters = "+".join(letter for letter, is_on in followed.items() if is_on)
        arm = Arm(name, letters, alignment, fitted=is_late)
        return [arm] if self.keep is not None else _trained_and_not(arm)


def _trained_and_not(arm: Arm) -> list[Arm]:
    return [arm, replace(arm, name=f"{arm.name}, {'fitted only' if arm.fitted else 'not trained'}", trains=False)]


@dataclass(frozen=True)
class Stages:
    """The layers and tokens that the arms are made of; for the small model chosen from its analysis (docs/training.md).

    `inject`, `exit`: first layer with visual rows, first without. `keep` tokens go on after layer `chooser`.
    `also`: further arms.
    """

    inject: int = 12
    exit: int = 24
    chooser: int = 15
    keep: int = 64
    also: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One of the compared trainings; `letters` are the guidelines it follows.

    `fitted`: before the training its projector is fitted to the layer that rows enter at (`training.fit_entry`).
    `trains`: else it answers with what it begins with.
    """

    name: str
    letters: str
    alignment: Alignment
    fitted: bool = False
    trains: bool = True

    @property
    def is_sparse(self) -> bool:
        return self.alignment.keep_tokens is not None


def arms(stages: Stages, learnt: bool = False) -> list[Arm]:
    """Plain, (a), (c), (a)+(c), (a)+(b)+(c), and (a)+(c) with its fitted projector alone, and trained without one.

    And those of `stages.also`; with `learnt` one that learns its layers.
    """
    late, early = Alignment(inject_layer=stages.inject), Alignment(exit_layer=stages.exit)
    both = replace(late, exit_layer=stages.exit)
    sparse = replace(both, keep_tokens=stages.keep, filter_layer=stages.chooser)
    found = [
        Arm(PLAIN, "-", Alignment()),
        Arm("late", "a", late, fitted=True),
        Arm("exit", "c", early),
        *_trained_and_not(Arm("late-exit", "a+c", both, fitted=True)),
        Arm("late-sparse-exit", "a+b+c", sparse, fitted=True),
        Arm("late-exit, unfitted", "a+c", both),
        *(arm for span in stages.also for arm in span.arms()),
    ]
    if learnt:
        middle = (stages.inject + stages.exit) // 2
        gated = Alignment(
            inject_layer="learnt",
            exit_layer="learnt",
            start_candidates=(0, middle - 1),
            exit_candidates=(middle, stages.exit + 2),
        )
        found.append(Arm("learnt", "a+c, learnt", gated))
    return found


@contextmanager
def staged(model: Any, arm: Arm) -> Iterator[tuple[PruneHandle | None, VisualGates | None]]:
    """The stock model as an arm has it, until the block ends; the plain arm is the model untouched."""
    if arm.name == PLAIN:
        yield None, None
        return
    gates = VisualGates(arm.alignment, model.config.text_config.num_hidden_layers)
    with PruneHandle(model, Host.of(model, ADAPTER), Guide(source=lambda: gates)) as handle:
        yield handle, gates
