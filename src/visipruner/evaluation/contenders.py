"""Which methods a comparison runs, under which names, with which budgets, and why others are left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from visipruner import specs
from visipruner.chat import ChatPrompt, attached, chat_inputs
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError, VisiPrunerError
from visipruner.evaluation.folder import key_of
from visipruner.evaluation.samples import Sample
from visipruner.files import write_json
from visipruner.images import open_image
from visipruner.models.loading import LoadedModel
from visipruner.progress import Progress
from visipruner.pruners.registry import available, make
from visipruner.specs import Chosen

AXES: dict[str, Callable[[PruneTrace], float]] = {
    "tokens": lambda trace: 1 - sum(map(len, trace[0].kept[:-1])) / (len(trace[0].work) * trace[0].dense_visual),
    "flops": lambda trace: trace.flops_cut(0),
    "attention": lambda trace: trace.visual_attention_cut(0),
}
_STEPS = 12
_NEAR_ENOUGH = 0.005
_CLOSE = 0.1


def matched(
    model: Any,
    prompts: Sequence[Mapping[str, Any]],
    pruner: Pruner,
    axis: str,
    target: float,
    tolerance: float | None = None,
) -> Pruner:
    """`pruner` with its budget set so that it cuts the share `target` on average over `prompts`.

    Args:
        prompts: what `model` takes, one example each; only prompts are read. Methods that show the picture smaller
            need those of `visipruner.chat.chat_inputs`.
        axis: "tokens" (visual tokens summed over layers), "flops" (counted), or "attention" (the paper's formula).
        tolerance: how far off the target may be met; by default what the method says (`match_tolerance`).

    Raises ConfigError for methods without a budget, and where no budget comes within `tolerance` of the target.
    """
    if axis not in AXES:
        raise ConfigError(f"A budget can be matched by {', '.join(AXES)}, not by {axis!r}.")
    if not 0 < target < 1:
        raise ConfigError(f"The share to cut must lie between 0 and 1, got {target}.")
    low, high = 0.0, 1.0  # share of tokens kept; cutting falls as it grows
    best: tuple[float, Pruner] | None = None
    candidate: Pruner | None = None
    for _ in range(_STEPS):
        share = (low + high) / 2
        before, candidate = candidate, with_share(pruner, share, model, prompts)
        if candidate == before and high - low < _CLOSE:
            break  # a finer share makes no other settings
        cut = sum(share_cut(model, prompt, candidate, axis) for prompt in prompts) / len(prompts)
        if best is None or abs(cut - target) < best[0]:
            best = (abs(cut - target), candidate)
        if best[0] <= max(_NEAR_ENOUGH, pruner.match_tolerance / 2):
            break
        low, high = (share, high) if cut > target else (low, share)
    assert best is not None
    if best[0] > (pruner.match_tolerance if tolerance is None else tolerance):
        raise ConfigError(
            f"{pruner.name} cannot cut {100 * target:g}% of {axis} by its budget alone (nearest: off by "
            f"{best[0]:.1%}); give it other layers, or leave it out."
        )
    return best[1]


def with_share(pruner: Pruner, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Pruner:
    """`pruner` keeping about `share` of the tokens where it filters. Raises ConfigError where it has no budget."""
    own = pruner.with_share(share, model, prompts)
    if own is not None:
        return own
    names = {field.name for field in fields(pruner)}
    if getattr(pruner, "keep_ratio", None) is not None:
        without = {"keep_tokens": None} if "keep_tokens" in names else {}
        return replace(pruner, keep_ratio=share, **without)  # type: ignore[call-arg]
    if "keep_ratios" in names:  # several cuts: each keeps the same share of what the one before left
        count = len(pruner.keep_ratios)  # type: ignore[attr-defined]
        return replace(pruner, keep_ratios=tuple(share ** (cut + 1) for cut in range(count)))  # type: ignore[call-arg]
    if "keep_tokens" in names and getattr(pruner, "keep_tokens", None) is not None:
        return replace(pruner, keep_tokens=round(share * _visual_tokens(model, prompts[0])))  # type: ignore[call-arg]
    raise ConfigError(f"{pruner.name} with these settings has no budget that could be matched.")


def share_cut(model: Any, prompt: Mapping[str, Any], pruner: Pruner, axis: str = "flops") -> float:
    """What `pruner` cuts while `model` reads one prompt."""
    with attached(model, pruner, prompt) as turn, torch.inference_mode():
        model(**turn.inputs, use_cache=False)
        return AXES[axis](turn.trace)


def _visual_tokens(model: Any, prompt: Mapping[str, Any]) -> int:
    if isinstance(prompt, ChatPrompt):
        return prompt.num_visual
    from visipruner.pruners.none import NoPruning

    with attached(model, NoPruning(), prompt) as turn, torch.inference_mode():
        model(**turn.inputs, use_cache=False)
        return turn.trace[0].num_visual


EVERY = "all"
# Not methods that one would choose: recordings, parts of others, what is slower than dense by design, and what leaves
# pictures whole.
_NO_CHOICE = {"none", "composed", "schedule", "visipruner-reference", "ivc", "evs", "dycoke"}


@dataclass(frozen=True)
class Wanted:
    """What is to be compared.

    Attributes:
        methods: specs, fitted to the budgets of `cuts` where there are any; "all" is every method that runs.
        fixed: specs, saved files or pruners by their names in the table, taken as they are.
        match: what budgets are equal in, one of `matching.AXES`, or None. cuts: shares of it to cut.

    Raises ConfigError where these do not fit together, or two settings would have one name in the table.
    """

    methods: Sequence[str]
    fixed: Mapping[str, str | Path | Pruner] = field(default_factory=dict)
    match: str | None = None
    cuts: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.match is not None and self.match not in AXES:
            raise ConfigError(f"A budget can be matched by {', '.join(AXES)}, not by {self.match!r}.")
        if self.match is not None and not self.cuts:
            raise ConfigError("--match needs the shares to cut: --cut 0.3 --cut 0.5.")
        if self.cuts and self.match is None:
            raise ConfigError("--cut needs to know of what: --match flops, tokens or attention.")
        if wrong := [cut for cut in self.cuts if not 0 < cut < 1]:
            raise ConfigError(f"--cut is a share above 0 and below 1, as --cut 0.5, not {wrong[0]:g}.")
        labels = Counter([*self.fixed, *(_label(spec, cut) for spec in self.specs() for cut in self.budgets())])
        for label, count in labels.items():
            if count > 1:
                raise ConfigError(
                    f"{count} settings have the name {label!r} in the table; give each a name: --fixed LABEL=SPEC."
                )

    def specs(self) -> list[str]:
        """The methods, "all" spelled out."""
        named = [spec for spec in self.methods if spec != EVERY]
        if EVERY in self.methods:
            named = [*(name for name in available() if name not in _NO_CHOICE), *named]
        return list(dict.fromkeys(named))

    def budgets(self) -> list[float | None]:
        """Each cut once; None for the methods' own."""
        return [*dict.fromkeys(self.cuts)] or [None]

    def check(self, model: str) -> None:
        """Raises ConfigError for names and settings that do not exist; cheap, so that it is told before the model
        loads."""
        for spec in (*(spec for spec in self.methods if spec != EVERY), *self.fixed.values()):
            specs.resolve(spec, model, specs.ANY_DEPTH)


def _label(name: str, cut: float | None) -> str:
    return name if cut is None else f"{name} @ {100 * cut:g}%"


def contenders(
    wanted: Wanted, loaded: LoadedModel, samples: Sequence[Sample], out: Path | None, writes: bool, progress: Progress
) -> tuple[dict[str, Chosen], dict[str, str]]:
    """Methods by their names in the table, and by name why others were left out.

    Args:
        samples: on which budgets are matched. out: keeps what was matched. writes: whether this process writes there.

    Raises ConfigError where nothing is left to compare.
    """
    fixed = {name: specs.resolve(spec, loaded.name, loaded.num_layers) for name, spec in wanted.fixed.items()}
    plain = {spec: specs.resolve(spec, loaded.name, loaded.num_layers) for spec in wanted.specs()}
    if wanted.match is None and EVERY not in wanted.methods:
        return {**fixed, **plain}, {}
    fitting, left_out = _fitting(wanted, loaded, samples, plain, out, writes, progress)
    for label, reason in left_out.items():
        progress.note(f"left out: {label}: {reason}")
    if not fixed and not fitting:
        raise ConfigError("No method can be compared with the dense model: all were left out, for the reasons above.")
    return {**fixed, **fitting}, left_out


def _fitting(
    wanted: Wanted,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    plain: Mapping[str, Chosen],
    out: Path | None,
    writes: bool,
    progress: Progress,
) -> tuple[dict[str, Chosen], dict[str, str]]:
    """The methods that run on this model, with matched budgets where that is asked for; and why others do not."""
    prompts = [
        chat_inputs(loaded.model, loaded.processor, open_image(sample.image), sample.question) for sample in samples
    ]
    asked = {
        "model": loaded.name,
        "match": wanted.match,
        "samples": [key_of(sample) for sample in samples],
        "methods": {name: [one.pruner.name, one.pruner.settings()] for name, one in plain.items()},
    }
    path = None if out is None else out / "matched.json"
    known = _known(path, asked)  # by method and cut its name and settings, or why there are none
    found: dict[str, Chosen] = {}
    left_out: dict[str, str] = {}
    every = [(name, one, cut) for name, one in plain.items() for cut in wanted.budgets()]
    for name, one, cut in progress.over(every, len(every), "Trying methods, matching budgets"):
        key = json.dumps([name, cut])
        if key not in known:
            known[key] = _tried(loaded.model, prompts, one.pruner, wanted.match, cut)
            if path is not None and writes:
                write_json(path, {"asked": asked, "found": known})
        if isinstance(known[key], str):
            left_out[_label(name, cut)] = known[key]
        else:
            budget = "" if cut is None else f", budget matched to {100 * cut:g}% of {wanted.match}"
            pruner = make(known[key]["method"], **known[key]["settings"])
            found[_label(name, cut)] = Chosen(pruner, one.source + budget)
    return found, left_out


def _tried(
    model: Any, prompts: Sequence[Mapping[str, Any]], pruner: Pruner, match: str | None, cut: float | None
) -> dict[str, Any] | str:
    """The method with its budget, by its name and settings, or why it has none or does not run."""
    try:
        if cut is None or match is None:
            share_cut(model, prompts[0], pruner)
        else:
            pruner = matched(model, prompts, pruner, match, cut)
    except VisiPrunerError as error:
        return str(error)
    return {"method": pruner.name, "settings": pruner.settings()}


def _known(path: Path | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What an interrupted evaluation that asked the same left in `path`."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return dict(before["found"]) if before["asked"] == json.loads(json.dumps(asked)) else {}
