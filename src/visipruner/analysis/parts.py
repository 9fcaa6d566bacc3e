"""The parts of a full analysis: what each measures on one reading. A new part is one line in `PARTS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from visipruner.analysis import gaze, knockout, scores
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.result import Result
from visipruner.errors import ConfigError

# Parts of the image's tokens that are tried as budgets: to compare scores, and of influence.
SCORED, TRIED = (32, 8), (32, 16, 8, 4)


@dataclass(frozen=True)
class Plan:
    """What the parts try, from the size of the model and the image.

    Attributes:
        window: layers in a moving window. shallow: first layers whose visual content is tested.
        block: layers in a block that is frozen as one.
        stride: layers between tries of the dearer experiments.
        scored: budgets at which scores are compared. budgets: those at which influence is tried.
    """

    window: int
    shallow: int
    block: int
    stride: int
    scored: tuple[int, ...]
    budgets: tuple[int, ...]

    @classmethod
    def for_model(cls, num_layers: int, num_visual: int) -> Plan:
        """Windows of a tenth of the layers; budgets from a 32nd of the image to a quarter of it."""
        return cls(
            window=max(1, num_layers // 10),
            shallow=max(1, num_layers // 5),
            block=max(1, round(num_layers / 8)),
            stride=max(1, num_layers // 10),
            scored=tuple(max(1, num_visual // part) for part in SCORED),
            budgets=tuple(max(1, num_visual // part) for part in TRIED),
        )


@dataclass(frozen=True)
class Context:
    """What a part may use; `read_other` reads the same question with another picture of the same size."""

    probe: Probe
    reading: Reading
    plan: Plan
    tokenizer: Any
    read_other: Callable[[], Reading]

    @property
    def some_layers(self) -> range:
        """Layers for experiments that run the visual rows again, one layer at a time."""
        return range(0, self.probe.num_layers, 2 * self.plan.stride)


def _named(*results: Result) -> dict[str, Any]:
    return {result.name: result.to_dict() for result in results}


def _control(context: Context) -> dict[str, Any]:
    probe, reading, other = context.probe, context.reading, context.read_other()
    found = {
        name: knockout.sweep(probe, reading, "window", window=window, how="swap", other=other)
        for name, window in (("swap_window", context.plan.window), ("swap_all", probe.num_layers))
    }
    return {name: result.to_dict() for name, result in found.items()}


def _freeze_blocks(context: Context) -> dict[str, Any]:
    size = context.plan.block
    starts = range(0, context.probe.num_layers - size + 1, max(1, size // 2))
    return _named(knockout.freeze_blocks(context.probe, context.reading, starts, size))


def _cache(context: Context) -> dict[str, Any]:
    last = context.probe.num_layers
    third = max(1, last // 3)
    windows = [(0, third), (third, 2 * third), (2 * third, last), (0, last)]
    filled = [(first, end) for first, end in windows if first < end <= last]
    return _named(knockout.remove_from_cache(context.probe, context.reading, filled))


def _scores(context: Context) -> dict[str, Any]:
    probe, reading, plan = context.probe, context.reading, context.plan
    layers = range(0, probe.num_layers, plan.stride)
    compared = scores.compare_scores(probe, reading, layers[::2], plan.scored)  # in fewer layers: this is the dearest
    more = scores.compare_scores(probe, reading, layers, plan.budgets, ["influence"])
    return {"scores": compared.to_dict(), "budgets": more.to_dict()}


def _lens(context: Context) -> dict[str, Any]:
    found = gaze.logit_lens(context.probe, context.reading)
    decode = context.tokenizer.decode
    words = [[decode([token]) for token in layer] for layer in found["top"].values.tolist()]
    heads = []
    for layer in gaze.value_lens(context.probe, context.reading, top=3):
        surest = max(layer, key=lambda head: head.probability[0])
        heads.append({"head": surest.head, "words": [decode([token]) for token in surest.tokens]})
    return {**_named(found), "words": words, "heads": heads, "leading_layer": gaze.leading_layer(found)}


PARTS: dict[str, Callable[[Context], dict[str, Any]]] = {
    # Where the last row looks, sinks, norms of values.
    "attention": lambda context: _named(gaze.visual_attention(context.reading)),
    # Text -> visual edges cut below a layer, from a layer on, and in a window.
    "sweeps": lambda context: _named(
        knockout.sweep(context.probe, context.reading, "shallow_to_deep"),
        knockout.discard(context.probe, context.reading),
        knockout.sweep(context.probe, context.reading, "window", window=context.plan.window),
    ),
    # Text sees another picture's tokens, in a window and in all layers: what changes then is due to their content.
    "control": _control,
    # Mass or content: the paper's ablations in the first layers.
    "shallow": lambda context: _named(knockout.shallow_ablations(context.probe, context.reading, context.plan.shallow)),
    # Visual rows do not run in one layer, unseen in it or seen; or in several in a row, as losses do not add up.
    "skip": lambda context: _named(knockout.skip(context.probe, context.reading, context.some_layers)),
    "freeze": lambda context: _named(knockout.freeze(context.probe, context.reading, context.some_layers)),
    "freeze_blocks": _freeze_blocks,
    # Visual keys gone while decoding, by thirds of the layers (as many as there are layers) and everywhere.
    "cache": _cache,
    # The paper's score of every token in every layer.
    "influence": lambda context: _named(scores.token_influence(context.reading)),
    # Influence at every budget, and scores against each other at some.
    "scores": _scores,
    # What each layer would say, and the surest heads of each layer.
    "lens": _lens,
}
NEEDED_FOR_STAGES = ("sweeps", "control", "influence", "scores")


def check_parts(names: Iterable[str]) -> None:
    """Raises ConfigError for a part that does not exist."""
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"There is no part {', '.join(unknown)!r} of the analysis; parts are {', '.join(PARTS)}.")
