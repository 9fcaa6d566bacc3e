"""Several methods on one prompt: one before the language model and one inside, for instance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from visipruner.contract.choosing import others, union
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.contract.routing import PLAIN, Routing
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Composed(Pruner):
    """Every part does what it does alone, with the tokens that the others have left.

    On entry to a layer parts choose one after the other. After a layer's attention they look at the same tokens, and
    those stay that all of them keep. Rows close up over tokens that leave by a part with compact positions, and over no
    others. Tokens that a part protects (`ivc`) stay whatever the others say, until one lets all leave. Written
    `divprune:keep_tokens=192+visipruner` on the command line.

    Attributes:
        parts: the methods, in order. At most one of them may change a layer's attention edges.
    """

    name: ClassVar[str] = "composed"
    about: ClassVar[About] = About(
        "several methods on one prompt, written first+second", acts="where its parts do", needs="what its parts need"
    )

    parts: tuple[Pruner, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ConfigError("composed needs pruners as its parts, for instance parts=(DivPrune(), VisiPruner()).")
        object.__setattr__(self, "merges", any(part.merges for part in self.parts))
        object.__setattr__(self, "reads_rotary", any(part.reads_rotary for part in self.parts))
        object.__setattr__(self, "reads_states", any(part.reads_states for part in self.parts))
        looking = [part.in_states for part in self.parts if _may_look(part)]  # several would be asked at once
        object.__setattr__(self, "in_states", looking[0] if len(looking) == 1 else "error")

    def settings(self) -> dict[str, Any]:
        return {"parts": [{"method": part.name, "settings": part.settings()} for part in self.parts]}

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, drop_unknown: bool = False) -> Self:
        from visipruner.pruners.registry import method_class

        try:
            given = [(part["method"], part["settings"]) for part in settings["parts"]]
        except (KeyError, TypeError) as error:
            raise ConfigError('composed: parts is a list of {"method": name, "settings": {...}}.') from error
        parts = [method_class(name).from_settings(part, drop_unknown=drop_unknown) for name, part in given]
        return cls(parts=tuple(parts))

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """An example: DivPrune before the language model, VisiPruner inside."""
        from visipruner.pruners.divprune import DivPrune
        from visipruner.pruners.visipruner import VisiPruner

        return cls(parts=(DivPrune(keep_ratio=1 / 3), VisiPruner.for_depth(num_layers)))

    def check(self, num_layers: int) -> None:
        for part in self.parts:
            part.check(num_layers)
        late = [part.name for part in self.parts if part.first_layer() and len(self.parts) > 1]
        if late:
            raise ConfigError(
                f"With these settings {late[0]} brings visual tokens in late, where no other method looks for them; "
                "use it alone."
            )
        for layer in range(num_layers):
            routed = [part.name for part in self.parts if not part.routing(layer).is_plain]
            if len(routed) > 1:
                raise ConfigError(f"{' and '.join(routed)} both change the attention edges of layer {layer}.")
            self._check_seen(layer)

    def _check_seen(self, layer: int) -> None:
        """Raises ConfigError where a part looks at a layer that another part keeps visual rows out of."""
        if self.routing(layer).visual_rows_attend:
            return
        blind = [part.name for part in self.parts if part.start().observes(layer)]
        if blind:
            raise ConfigError(
                f"{blind[0]} looks at the attention of layer {layer}, in which with these settings visual rows take no "
                "part; let it look at a later layer, or the other method begin before it."
            )

    @property
    def recalls(self) -> bool:
        return any(part.recalls for part in self.parts)

    def asked(self, question: str) -> Self:
        return replace(self, parts=tuple(part.asked(question) for part in self.parts))

    def first_layer(self) -> int:
        return max(part.first_layer() for part in self.parts)

    def routing(self, layer: int) -> Routing:
        return next((part.routing(layer) for part in self.parts if not part.routing(layer).is_plain), PLAIN)

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(layer for part in self.parts for layer in part.vision_layers(depth))

    def start(self) -> _ComposedRun:
        return _ComposedRun([part.start() for part in self.parts])

    def begin(self, in_line: Callable[[], bool]) -> PromptRun:
        run = self.start()
        run.parts = [part.begin(in_line) for part in self.parts]
        return run


def _may_look(part: Pruner) -> bool:
    """Whether a method, or its run, may ever look at a layer's attention."""
    return any(getattr(type(part), name) is not getattr(Pruner, name) for name in ("observes", "start"))


class _ComposedRun(PromptRun):
    def __init__(self, parts: Sequence[PromptRun]) -> None:
        super().__init__()
        self.parts = parts
        self._closed: list[Tensor] = []
        self._again: Sequence[PromptRun] = ()

    @property
    def may_close_gaps(self) -> bool:
        return any(run.may_close_gaps for run in self.parts)

    def without_gap(self, gone: Tensor) -> Tensor:
        return gone[torch.isin(gone, torch.cat([gone[:0], *(closed.to(gone.device) for closed in self._closed)]))]

    def _left(self, run: PromptRun, tokens: Tensor, kept: Tensor | None) -> None:
        """Notes what a part's answer means for positions; `kept` are positions among `tokens`, None for all."""
        if kept is not None and run.may_close_gaps:
            self._closed.append(run.without_gap(tokens[others(kept, len(tokens))]))

    def observes_entry(self, layer: int) -> bool:
        return any(run.observes_entry(layer) for run in self.parts)

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        return self.select_entries(layer, [self], [view])[0]

    def select_entries(
        self, layer: int, runs: Sequence[PromptRun], views: Sequence[EntryView]
    ) -> list[Tensor | Merge | None]:
        fellows = [run for run in runs if isinstance(run, _ComposedRun)]
        entries = [_Entry(view) for view in views]
        for number in range(len(self.parts)):
            asked = [
                (run, entry)
                for run, entry in zip(fellows, entries, strict=True)
                if entry.left.tokens.numel() and run.parts[number].observes_entry(layer)
            ]
            if not asked:
                continue
            parts = [run.parts[number] for run, _ in asked]
            answers = parts[0].select_entries(layer, parts, [entry.left for _, entry in asked])
            for (run, entry), part, answer in zip(asked, parts, answers, strict=True):
                seen = entry.left
                spared = None if answer is None else run._sparing(answer, seen)
                run._left(part, seen.tokens, entry.follow(spared))
        for run in fellows:
            run._note()
        return [entry.answer() for entry in entries]

    def observes(self, layer: int) -> bool:
        return any(run.observes(layer) for run in self.parts)

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        stays = torch.ones_like(view.visual, dtype=torch.bool)
        for run in self.parts:
            if run.observes(layer):
                kept = run.select(layer, view)
                if kept is not None:
                    kept = union(kept, self._protected(view.tokens)) if len(kept) else kept
                    self._left(run, view.tokens, kept)
                    stays &= torch.zeros_like(stays).index_fill(0, kept, True)
        self._note()
        return None if bool(stays.all()) else stays.nonzero().flatten()

    def chooses_again(self, step: int, rows: int = 1) -> bool:
        self._again = [run for run in self.parts if run.chooses_again(step, rows)]
        return bool(self._again)

    def select_again(self, layer: int, view: LayerView) -> Tensor | None:
        """What any of the parts that choose again asks for."""
        asked = [run.select_again(layer, view) for run in self._again]
        found = [kept for kept in asked if kept is not None]
        return union(*found) if found else None

    def _protected(self, tokens: Tensor) -> Tensor:
        """Positions among `tokens` that a part protects from the others."""
        numbers = [run.protected.to(tokens.device) for run in self.parts if run.protected is not None]
        return torch.isin(tokens, torch.cat(numbers)).nonzero().flatten() if numbers else tokens[:0]

    def _sparing(self, answer: Tensor | Merge, view: EntryView) -> Tensor | Merge:
        """`answer` with the protected tokens, as they are, among those that stay; one that takes all out does so."""
        kept = answer.kept if isinstance(answer, Merge) else answer
        protected = self._protected(view.tokens)
        if not len(kept) or not len(protected):
            return answer
        stays = union(kept, protected)
        if not isinstance(answer, Merge):
            return stays
        return Merge(stays, view.embeddings.to(answer.states).index_copy(0, kept, answer.states)[stays])

    def _note(self) -> None:
        """What the parts report about themselves goes into the trace."""
        triggers = [run.trigger_layer for run in self.parts if run.trigger_layer is not None]
        if triggers:
            self.trigger_layer = triggers[0]
        self.exit_votes = sorted({vote for run in self.parts for vote in run.exit_votes})


class _Entry:
    """What the parts have left so far of the rows of one example that enter a layer."""

    def __init__(self, view: EntryView) -> None:
        self._view = self.left = view
        self._kept = torch.arange(view.tokens.numel(), device=view.tokens.device)
        self._has_merged = False

    def follow(self, answer: Tensor | Merge | None) -> Tensor | None:
        """Goes on with what a part says; returns the positions that stay among those it saw, None for all."""
        if self.left is not self._view:
            self._view.add_work_of(self.left)
        if answer is None:
            return None
        self._has_merged |= isinstance(answer, Merge)
        stays = answer.kept if isinstance(answer, Merge) else answer
        self._kept, self.left = self._kept[stays], self.left.narrowed(answer)
        return stays

    def answer(self) -> Tensor | Merge:
        """What all parts together say."""
        return Merge(self._kept, self.left.embeddings) if self._has_merged else self._kept
