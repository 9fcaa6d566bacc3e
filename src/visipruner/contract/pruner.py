"""What every method is: an immutable configuration that answers, per layer and example, which tokens go on."""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.routing import PLAIN, Routing
from visipruner.contract.settings import Count, check_layers, check_names, checked, scaled_defaults
from visipruner.errors import ConfigError, UnsupportedModelError
from visipruner.files import write_json

FORMAT_VERSION = 1
FILE_NAME = "pruner.json"

Positions = Literal["keep", "compact"]
InStates = Literal["error", "next", "ask"]


@dataclass(frozen=True)
class About:
    """A method in a few words, for lists and tables.

    Attributes:
        summary: one line for lists.
        paper: where it was published; empty for controls.
        acts: where tokens leave.
        needs: what it looks at.
    """

    summary: str
    paper: str = ""
    acts: str = "nowhere"
    needs: str = "nothing"


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A pruning method with its settings; it never touches a model. Raises ConfigError on settings without sense.

    It can look at two points of a layer: at the rows on their way in, and at the attention once it ran. What is
    dropped at the first leaves before this layer, what is dropped at the second leaves before the next. A method that
    must remember something from layer to layer gives a `PromptRun` of its own from `start`, which then answers.

    Attributes:
        name: what it is called in the registry. about: what lists say of it.
        merges: whether kept tokens may take over what others held (the answer is a `Merge`).
        reads_last_row_only: whether `select` needs of the queries only the last row's; rows known from another prompt
            about the same image then need not run, and a row of the answer can be the last one.
        reads_rotary: whether it asks for `EntryView.rotary`, which engines other than transformers' do not show.
        reads_states: whether it asks for `EntryView.recurrence`, which only models with such layers have.
        in_states: what becomes of a look with `select` at a layer without attention, through which a state passes
            (linear attention, convolutions): "error"; "next", it may be asked of the next layer that has attention
            instead, under the number that it looks at; "ask", it looks at nothing but which tokens are present.
        match_tolerance: how far a share asked of its budget may be missed, which comes in steps.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    merges: ClassVar[bool] = False
    reads_last_row_only: ClassVar[bool] = False
    reads_rotary: ClassVar[bool] = False
    reads_states: ClassVar[bool] = False
    in_states: ClassVar[InStates] = "error"
    match_tolerance: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        """Holds every setting against its declared type; a subclass with checks of its own calls this first."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in checked(type(self), given).items():
            object.__setattr__(self, name, value)

    # ---- what it answers --------------------------------------------------------------------------------------------

    def observes_entry(self, layer: int) -> bool:
        """Whether `select_entry` wants to see the rows that enter this layer. Not asked when no token is left."""
        return False

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        """Which of the visual tokens present enter this layer.

        Returns ascending positions among them `[k]` long (empty: all leave), a `Merge` where kept tokens take over
        what others held, or None to keep all.
        """
        return None

    def select_entries(self, layer: int, views: Sequence[EntryView]) -> list[Tensor | Merge | None]:
        """As `select_entry`, of the examples of a batch; methods of many small steps take them together."""
        return [self.select_entry(layer, view) for view in views]

    def observes(self, layer: int) -> bool:
        """Whether `select` wants to see this layer. Not asked when no visual token is left."""
        return False

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        """Which of the visual tokens still present go on to the next layer.

        Returns ascending positions among them `[k]` long (empty: all leave), or None to keep all. Gradient
        checkpointing repeats a layer and with it this question; the second answer is not looked at.
        """
        return None

    def start(self) -> PromptRun:
        """Begins one prompt of one example."""
        return PromptRun(self)

    def begin(self, in_line: Callable[[], bool]) -> PromptRun:
        """As the engine starts a run. `in_line()`: whether the model numbers the prompt's rows one after another (see
        `DroppingPruner`); to ask may cost a read from the device."""
        return self.start()

    def routing(self, layer: int) -> Routing:
        """The attention edges of a layer while prompts with visual rows are read; the plain model's by default."""
        return PLAIN

    def first_layer(self) -> int:
        """The first layer with visual rows; before it they are paused, and text rows run alone."""
        return 0

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        """Layers of the vision tower, of `depth` in all, that it wants to see; negative ones from the end."""
        return ()

    def asked(self, question: str) -> Self:
        """This method for a prompt that asks `question`; most do not read it."""
        return self

    @property
    def recalls(self) -> bool:
        """Whether tokens that left may come back while the answer is decoded; the engine then holds them ready."""
        return False

    def chooses_again(self, step: int, rows: int = 1) -> bool:
        """Whether it chooses again in the forward whose `rows` are the last ones of `step` after the prompt."""
        return False

    # ---- its settings -----------------------------------------------------------------------------------------------

    def check(self, num_layers: int) -> None:
        """Raises ConfigError where the settings do not fit a model of `num_layers` layers."""
        check_layers(self, num_layers)

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """The defaults for a model of `num_layers` layers: layer numbers at the same relative depth."""
        return cls(**scaled_defaults(cls, num_layers))

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self | None:
        """This method keeping about `share` of the visual tokens, where no `keep_tokens`, `keep_ratio` or
        `keep_ratios` says it; `prompts` are some calls of `model`. None: it has no budget of its own kind."""
        return None

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Writes `pruner.json` into `directory`, atomically, and returns its path."""
        target = Path(directory) / FILE_NAME
        write_json(target, {"format_version": FORMAT_VERSION, "method": self.name, "settings": self.settings()})
        return target

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, drop_unknown: bool = False) -> Self:
        """Builds the pruner from JSON values. Raises ConfigError, also where a setting is missing.

        Unknown keys are an error too, or dropped with a warning (files written by a newer version).
        """
        check_names(cls, settings)
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown and drop_unknown:
            warnings.warn(f"{cls.name}: settings {unknown} are not known to this version; ignored.", stacklevel=3)
            settings = {key: value for key, value in settings.items() if key in known}
        settings = checked(cls, settings)
        missing = [item.name for item in fields(cls) if _is_needed(item) and item.name not in settings]
        if missing:
            raise ConfigError(f"{cls.name} needs {', '.join(missing)}; `visipruner list` shows its settings.")
        return cls(**settings)


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


class PromptRun:
    """A method at work on one prompt of one example. It asks the method; one that must remember something from layer to
    layer answers itself. The next layer may run on another device, so tensors that it remembers are brought to the
    view's before they meet.

    Attributes:
        trigger_layer: the last layer that ran with every visual token, None where there is none; reported in the
            trace. The engine sets it when tokens first leave.
        exit_votes: layers that counted towards the exit of all visual tokens; reported in the trace.
        is_compact: whether the rows that stay are numbered anew, without gaps where tokens left; see `DroppingPruner`.
        protected: numbers in the prompt of tokens `[k]` that the other methods of a composition may drop only with all
            the others; None for none.
    """

    def __init__(self, pruner: Pruner | None = None) -> None:
        self._pruner = pruner
        self.trigger_layer: int | None = None
        self.exit_votes: list[int] = []
        self.is_compact = False
        self.protected: Tensor | None = None

    @property
    def may_close_gaps(self) -> bool:
        """Whether any token that this run drops may leave no gap in the positions."""
        return self.is_compact

    def without_gap(self, gone: Tensor) -> Tensor:
        """Those of the tokens `gone` (numbers in the prompt, `[k]` long), dropped by the last answer, that leave no gap
        in the positions."""
        return gone if self.is_compact else gone[:0]

    def observes_entry(self, layer: int) -> bool:
        """As `Pruner.observes_entry`."""
        return self._pruner is not None and self._pruner.observes_entry(layer)

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        """As `Pruner.select_entry`."""
        return None if self._pruner is None else self._pruner.select_entry(layer, view)

    def select_entries(
        self, layer: int, runs: Sequence[PromptRun], views: Sequence[EntryView]
    ) -> list[Tensor | Merge | None]:
        """What `runs` answer about a layer, one per view: runs of this one's method on the examples of a batch."""
        if self._pruner is not None and type(self).select_entry is PromptRun.select_entry:
            return self._pruner.select_entries(layer, views)
        return [run.select_entry(layer, view) for run, view in zip(runs, views, strict=True)]

    def observes(self, layer: int) -> bool:
        """As `Pruner.observes`."""
        return self._pruner is not None and self._pruner.observes(layer)

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        """As `Pruner.select`."""
        return None if self._pruner is None else self._pruner.select(layer, view)

    def chooses_again(self, step: int, rows: int = 1) -> bool:
        """As `Pruner.chooses_again`."""
        return self._pruner is not None and self._pruner.chooses_again(step, rows)

    def select_again(self, layer: int, view: LayerView) -> Tensor | None:
        """Which visual tokens are seen after `layer` by the rows after the prompt, in a forward in which this run
        chooses again.

        `view`: the layer's attention from those rows, over all visual tokens that ever ran in it. Returns ascending
        positions among them; those that left after this layer come back, and none leaves. None: no change. By default
        what `select` says where it looked at the prompt.
        """
        if self._pruner is None or not self._pruner.observes(layer):
            return None
        return self._pruner.select(layer, view)


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

    def begin(self, in_line: Callable[[], bool]) -> PromptRun:
        run = self.start()
        if (self.positions or self.published_positions) == "compact":
            run.is_compact = in_line()
        if self.positions == "compact" and not run.is_compact:
            raise UnsupportedModelError(
                f"{self.name}: positions='compact' needs rows that are numbered one after another, which those of this "
                "prompt are not (M-RoPE, or position_ids of your own); use positions='keep'."
            )
        return run


@dataclass(frozen=True, kw_only=True)
class RecallingPruner(DroppingPruner):
    """A method that judges by the last row's attention. While the answer is decoded it may do so again, by a later row,
    and take back what left.

    Attributes:
        recall: after how many tokens of the answer it chooses again, among all tokens that were there when it first
            chose; 0 for never.
    """

    recall: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recall and not self.reads_last_row_only:
            raise ConfigError(
                f"{self.name} judges by more rows than the last, of which an answer has no others: recall must be 0."
            )

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values; `recall` only where it is on: without it files are as before."""
        return {key: value for key, value in super().settings().items() if key != "recall" or value}

    @property
    def recalls(self) -> bool:
        return self.recall > 0

    def chooses_again(self, step: int, rows: int = 1) -> bool:
        return self.recall > 0 and step // self.recall > (step - rows) // self.recall
