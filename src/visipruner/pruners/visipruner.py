"""VisiPruner: shallow layers skip visual attention, one middle layer picks the few tokens that matter, then they leave.

"VisiPruner: Decoding Discontinuous Cross-Modal Dynamics for Efficient Multimodal LLMs", EMNLP 2025, arXiv 2510.17205.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from visipruner.contract.budget import Scope, best, parts_of
from visipruner.contract.entry_view import EntryView
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, InStates, PromptRun, RecallingPruner
from visipruner.contract.routing import PLAIN, Routing
from visipruner.contract.settings import Count, Layer, Number, Within, scaled_layer
from visipruner.errors import ConfigError

Stage = Literal["shallow", "middle", "deep"]
Cosine = Annotated[float, Within(-1, 1, "is a cosine and ")]
STAGES: tuple[Stage, ...] = ("shallow", "middle", "deep")


@dataclass(frozen=True, kw_only=True)
class VisiPruner(RecallingPruner):
    """The paper's training-free pruner, with real skipping.

    Shallow (layers `0 .. shallow_end - 1`): text rows attend to text rows only, and in layer 0 to one visual token
    that stands for the mass of all of them (an attention sink). Visual rows attend to no visual row.
    Middle (from layer `shallow_end + 1` on): with o the last row's attention output and c_j the part of it that token
    j brings, the first layer in which any cos(o, o - c_j) < `filter_threshold` is the filter layer; tokens with
    ||c_j|| > `token_threshold` go on.
    Deep (after the filter layer): a layer in which no token has cos(o, o - c_j) < `exit_threshold` votes for the
    exit; after `exit_votes` votes all visual tokens leave. A layer whose sliding window has passed them does not vote.

    Attributes:
        stages: which of the three are on; settings of one that is off do nothing. "deep" needs "middle", whose filter
            layer it follows, or an `exit_layer`.
        shallow_end: number of shallow layers.
        shallow_visual: what visual rows do in shallow layers: "prefix" attends to the text before them, "ffn" takes no
            part in attention (no projections, no keys; the sink of layer 0 is then the first visual row, its logit
            raised by log(n_v) in place of the summed mass), "late" pauses visual rows until layer `shallow_end`, where
            they enter as the projector made them (the paper proposes that for training, section 6; a model that was
            not trained for it may lose everything, as the small one does).
        filter_threshold, token_threshold, exit_threshold: see above.
        relative: `token_threshold` is a fraction of ||o|| instead of an absolute length. The absolute scale belongs
            to one model; relative thresholds transfer.
        exit_votes: how many layers must vote.
        exit_count: "consecutive" starts anew at every layer without a vote (paper), "cumulative" does not (reference).
        keep_tokens: budget mode: at the filter layer keep exactly this many tokens (all, if there are fewer), those
            with the largest ||c_j||, whatever `token_threshold` says.
        keep_ratio: the same as a fraction of the tokens, at least one of them: for models whose number of tokens
            follows the picture's size. Not together with `keep_tokens`.
        scope: whether this budget is for all images of the prompt together or for each (see `Budgeted`).
        filter_layer: fixes the filter layer instead of detecting it. exit_layer: fixes the first layer without vision
            instead of voting, whether or not there was a filter layer before it.
        recall: after how many tokens of the answer the filter layer chooses again, by the same rule and the newest row;
            what comes back leaves where all leave. 0 for never.
    """

    name: ClassVar[str] = "visipruner"
    about: ClassVar[About] = About(
        "VisiPruner: three stages, influence on the last row",
        paper="EMNLP 2025, arXiv 2510.17205",
        acts="shallow layers, then where the evidence is",
        needs="last row's attention, values",
    )
    reads_last_row_only: ClassVar[bool] = True
    in_states: ClassVar[InStates] = "next"

    stages: tuple[Stage, ...] = STAGES
    shallow_end: Count = 6
    shallow_visual: Literal["prefix", "ffn", "late"] = "prefix"
    filter_threshold: Cosine = 0.995
    token_threshold: Annotated[float, Within(0, what="is a length and ")] = 0.2
    relative: bool = False
    exit_threshold: Cosine = 0.999
    exit_votes: Number = 2
    exit_count: Literal["consecutive", "cumulative"] = "consecutive"
    keep_tokens: Count | None = None
    keep_ratio: float | None = None
    scope: Scope = "prompt"
    filter_layer: Layer | None = None
    exit_layer: Layer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio is a fraction and must lie in (0, 1], got {self.keep_ratio}.")
        if self.keep_ratio is not None and self.keep_tokens is not None:
            raise ConfigError("keep_tokens and keep_ratio say the same thing: give one, and leave the other None.")
        if self.filter_layer is not None and self.exit_layer is not None and self.exit_layer <= self.filter_layer:
            raise ConfigError(f"exit_layer {self.exit_layer} must come after filter_layer {self.filter_layer}.")

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values; `keep_ratio` only where given: without it files are as before."""
        found = super().settings()
        return {key: value for key, value in found.items() if key != "keep_ratio" or value is not None}

    @classmethod
    def paper(cls) -> Self:
        """The paper's method with its numbers for LLaVA-v1.5: 0.995, 0.2, 0.999, two consecutive votes, 6 layers."""
        return cls()

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        return cls(shallow_end=scaled_layer(cls.shallow_end, num_layers))

    @classmethod
    def reference(
        cls,
        size: Literal["7b", "13b"] = "7b",
        stages: tuple[Stage, ...] = STAGES,
        shallow_mid_layer: int = 6,
        layer_threshold: float = 0.995,
        tokens_threshold: float = 0.2,
    ) -> ReferenceVisiPruner:
        """What the authors' code computes, where it differs from the paper; see `ReferenceVisiPruner`."""
        return ReferenceVisiPruner(
            size=size,
            stages=stages,
            shallow_end=shallow_mid_layer,
            filter_threshold=layer_threshold,
            token_threshold=tokens_threshold,
            exit_count="cumulative",
        )

    def check(self, num_layers: int) -> None:
        if "shallow" in self.stages and self.shallow_end > num_layers:
            raise ConfigError(f"shallow_end is {self.shallow_end} but the model has {num_layers} layers.")
        super().check(num_layers)
        self._check_stages(num_layers)

    def _check_stages(self, num_layers: int) -> None:
        """Raises ConfigError where a stage that is on could never do anything in a model of `num_layers` layers."""
        chosen, leave = self.filter_layer, self.exit_layer if "deep" in self.stages else None
        first, last = self.shallow_end if "shallow" in self.stages else 0, num_layers - 2  # none leave after the last
        if "middle" in self.stages:
            if chosen is not None and first > (num_layers - 1 if self.shallow_visual == "prefix" else last):
                raise ConfigError(
                    f"With shallow_end {first} no layer is left in which text rows see what filter_layer {chosen} "
                    f"keeps: the model has {num_layers}; lower shallow_end to {max(chosen, 1)} or less."
                )
            if chosen is not None and chosen < first and self.shallow_visual != "prefix":
                raise ConfigError(
                    f"filter_layer {chosen} lies in the shallow layers 0 to {first - 1}, in which visual rows take no "
                    f"part in attention with shallow_visual={self.shallow_visual!r}; it can be {first} at least."
                )
            if chosen is not None and chosen > last:
                raise ConfigError(
                    f"No token can leave after filter_layer {chosen}, the model's last; it can be {last} at most."
                )
            if chosen is None and self.shallow_end >= last and not (leave is not None or "shallow" in self.stages):
                raise ConfigError(
                    f"The filter layer is looked for after layer {self.shallow_end} (shallow_end), where the model has "
                    f"none left that tokens could leave after; shallow_end can be {last - 1} at most."
                )
        elif "deep" in self.stages and leave is None:
            raise ConfigError('The stage "deep" follows the filter layer of "middle"; add that, or set exit_layer.')
        if leave is not None and 0 < self.first_layer() >= leave:
            raise ConfigError(
                f"exit_layer {leave} must come after layer {self.first_layer()} (shallow_end), before which the model "
                "sees nothing yet with shallow_visual='late'."
            )

    def first_layer(self) -> int:
        return self.shallow_end if "shallow" in self.stages and self.shallow_visual == "late" else 0

    def routing(self, layer: int) -> Routing:
        if "shallow" not in self.stages or layer >= self.shallow_end or self.shallow_visual == "late":
            return PLAIN
        if self.shallow_visual == "ffn":
            return Routing("cut", "cut", visual_rows_attend=False, sink=layer == 0)
        return Routing("merge" if layer == 0 else "cut", "cut")

    def start(self) -> PromptRun:
        return VisiPrunerRun(self)


class VisiPrunerRun(PromptRun):
    """The middle and deep stage of one prompt."""

    def __init__(self, config: VisiPruner) -> None:
        super().__init__(config)
        self._config = config
        self._has_left = False

    def observes_entry(self, layer: int) -> bool:
        return "deep" in self._config.stages and layer == self._config.exit_layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        """The fixed exit."""
        return view.tokens[:0]

    def observes(self, layer: int) -> bool:
        config = self._config
        if "middle" not in config.stages or self._has_left:
            return False
        if self.trigger_layer is None:
            if config.filter_layer is not None:
                return layer == config.filter_layer
            return layer > config.shallow_end
        return "deep" in config.stages and config.exit_layer is None

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        if self.trigger_layer is None:
            return self._filter(layer, view)
        return self._exit(layer, view)

    def _filter(self, layer: int, view: LayerView) -> Tensor | None:
        config, cosine = self._config, view.influence.cosine
        if config.filter_layer is None and not bool((cosine < config.filter_threshold).any()):
            return None
        self.trigger_layer = layer
        kept = self._kept(view)
        self._has_left = not self._exit_follows(kept.numel(), cosine.numel())
        return kept

    def select_again(self, layer: int, view: LayerView) -> Tensor | None:
        """The filter's choice, made anew in its layer."""
        is_filter = "middle" in self._config.stages and layer == self.trigger_layer
        return self._kept(view) if is_filter else None

    def _kept(self, view: LayerView) -> Tensor:
        """Positions of the tokens that go on after the filter layer."""
        config, influence = self._config, view.influence
        if config.keep_tokens is not None or config.keep_ratio is not None:
            parts = parts_of(view, config.scope)
            some = best(influence.norm, parts, [_budget(config, len(part)) for part in parts])
            return torch.arange(influence.norm.numel(), device=view.visual.device) if some is None else some
        scale = influence.output_norm if config.relative else 1.0
        return (influence.norm > config.token_threshold * scale).nonzero().flatten()

    def _exit_follows(self, kept: int, present: int) -> bool:
        """Whether the deep stage has anything to do once `kept` of `present` tokens go on."""
        return kept > 0

    def _exit(self, layer: int, view: LayerView) -> Tensor | None:
        config = self._config
        if not view.sees_visual:
            return None  # no evidence: other layers, without a window, may still use the tokens
        if bool((view.influence.cosine < config.exit_threshold).any()):
            if config.exit_count == "consecutive":
                self.exit_votes.clear()
        else:
            self.exit_votes.append(layer)
            self._has_left = len(self.exit_votes) >= config.exit_votes
        return torch.empty(0, dtype=torch.long, device=view.visual.device) if self._has_left else None


@dataclass(frozen=True, kw_only=True)
class ReferenceVisiPruner(VisiPruner):
    """The authors' code, for comparison; built by `VisiPruner.reference()`.

    It differs from the paper: in shallow layers weights are zeroed after the softmax and the rows not renormalised;
    layer 0 merges onto the first visual token ("7b") or zeroes the first half of the visual columns ("13b"); visual
    rows attend to each other in all shallow layers but the first; generated rows attend as in the plain model; exit
    votes are cumulative; there is no exit when the filter keeps everything.
    """

    name: ClassVar[str] = "visipruner-reference"
    about: ClassVar[About] = About(
        "what the VisiPruner authors' code computes, for comparison; slower than the dense model by design",
        paper="EMNLP 2025, arXiv 2510.17205",
        acts="shallow layers, then where the evidence is",
        needs="last row's attention, values",
    )

    size: Literal["7b", "13b"] = "7b"
    exit_count: Literal["consecutive", "cumulative"] = "cumulative"

    def _check_stages(self, num_layers: int) -> None:
        """Stages that never do anything are the authors' code's, too."""

    def routing(self, layer: int) -> Routing:
        if "shallow" not in self.stages or layer >= self.shallow_end:
            return PLAIN
        if layer > 0:
            return Routing("zero", "attend", prompt_only=True)
        return Routing("merge" if self.size == "7b" else "zero_first_half", "zero", prompt_only=True)

    def start(self) -> PromptRun:
        return ReferenceRun(self)


class ReferenceRun(VisiPrunerRun):
    """As `VisiPrunerRun`, without an exit when the filter kept every token."""

    def _exit_follows(self, kept: int, present: int) -> bool:
        return 0 < kept < present


def _budget(config: VisiPruner, present: int) -> int:
    """How many of `present` tokens go on in budget mode."""
    if config.keep_ratio is not None:
        return max(1, round(config.keep_ratio * present))
    assert config.keep_tokens is not None
    return config.keep_tokens
