"""Settings that give different methods the same budget, so that a comparison compares methods and not budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from visipruner.chat import ChatPrompt, attached
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError

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
