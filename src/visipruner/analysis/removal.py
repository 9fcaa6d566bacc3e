"""Taking visual rows away: for good, for one layer, or only from what decoding sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from visipruner.analysis.knockout import outcome_arrays, sweep
from visipruner.analysis.outcome import Outcome
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.result import Result
from visipruner.analysis.variants import Variant, combined, knockout
from visipruner.errors import ConfigError


def discard(probe: Probe, reading: Reading) -> Result:
    """Visual rows leave before layer k and do not come back, for k = 0 .. L (paper, section 3: the deep stage).

    By the design's invariant this is the same as cutting every edge to them from layer k on, and is computed so.
    Arrays `[layer]`: kl, agrees, right, logprob.
    """
    result = sweep(probe, reading, "deep_to_shallow")
    return Result("discard", result.arrays, result.not_covered)


def skip(probe: Probe, reading: Reading, layers: Iterable[int] | None = None, batch: int = 8) -> Result:
    """Visual rows pass one layer by, unseen in it and unchanged by it, and are back in the next.

    Args:
        layers: which to try, one at a time; all by default. batch: how many run at once (every row runs again).

    Arrays `[layer]`: kl, agrees, right, logprob.
    """
    return _passing(probe, reading, layers, batch, "skip")


def freeze(probe: Probe, reading: Reading, layers: Iterable[int] | None = None, batch: int = 8) -> Result:
    """Visual rows pass one layer by unchanged, but text rows see them in it: what is lost is the layer's work on them.

    ShortV (Yuan et al., ICCV 2025, arXiv 2504.00502) measures a layer's contribution so. Arguments and arrays are those
    of `skip`.
    """
    return _passing(probe, reading, layers, batch, "freeze")


def _passing(
    probe: Probe, reading: Reading, layers: Iterable[int] | None, batch: int, name: Literal["skip", "freeze"]
) -> Result:
    chosen = list(range(probe.num_layers)) if layers is None else list(layers)
    variants = [_resting(reading, [layer]) for layer in chosen]
    if name == "skip":
        variants = [
            combined(knockout(reading, "all", "visual", [layer]), variant)
            for layer, variant in zip(chosen, variants, strict=True)
        ]
    return outcome_arrays(name, _outcomes(probe, reading, variants, batch), chosen)


def freeze_blocks(probe: Probe, reading: Reading, starts: Iterable[int], size: int, batch: int = 8) -> Result:
    """Visual rows pass layers k .. k + size - 1 by unchanged, seen by text rows, for every k of `starts`.

    What layers lose together is more than the sum of what each loses alone, so blocks are tried as blocks. Arrays
    `[layer]`, labelled by k: kl, agrees, right, logprob.

    Raises ConfigError for a block that reaches beyond the last layer, or is empty.
    """
    chosen = list(starts)
    if size < 1 or any(not 0 <= start <= probe.num_layers - size for start in chosen):
        raise ConfigError(f"Blocks of {size} layers must lie within the model's {probe.num_layers}.")
    variants = [_resting(reading, range(start, start + size)) for start in chosen]
    return outcome_arrays("freeze_blocks", _outcomes(probe, reading, variants, batch), chosen)


def _resting(reading: Reading, layers: Sequence[int]) -> Variant:
    """Visual rows leave these layers, in ascending order, as they entered them."""
    visual = reading.rows("visual")
    return Variant(start=layers[0], resting=dict.fromkeys(layers, visual))


def _outcomes(probe: Probe, reading: Reading, variants: Sequence[Variant], batch: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for first in range(0, len(variants), batch):
        outcomes += probe.rerun(reading, variants[first : first + batch])
    return outcomes


def remove_from_cache(probe: Probe, reading: Reading, windows: Sequence[tuple[int, int]]) -> Result:
    """Visual keys and values of layers first .. end-1 are gone once the prompt is read (paper: visual KV in decoding).

    Only rows after the prompt are affected, so answers of a single token cannot change.

    Arrays `[window]`, a window being "first-end": kl, agrees, right, logprob.
    """
    variants = [knockout(reading, "answer", "visual", range(*window)) for window in windows]
    labels = [f"{first}-{end}" for first, end in windows]
    result = outcome_arrays("cache", probe.rerun(reading, variants), labels, "window")
    covered = ["The first answer token is predicted while the prompt is read and cannot change."]
    return Result("cache", result.arrays, [*result.not_covered, *covered])


def keep_only(probe: Probe, reading: Reading, choices: Sequence[tuple[int, Tensor]], batch: int = 32) -> list[Outcome]:
    """Only some visual tokens go on from a layer: what a pruner does, computed as one.

    Args:
        choices: pairs (layer, tokens): after `layer`, of the prompt's visual tokens only `tokens`, `[k]` long, are
            left. All choices must have equally many tokens.

    Raises ConfigError for unlike or doubled tokens.
    """
    counts = {len(tokens) for _, tokens in choices}
    if len(counts) > 1 or any(len(set(tokens.tolist())) != len(tokens) for _, tokens in choices):
        raise ConfigError("Every choice must keep the same number of distinct visual tokens.")
    first = int(reading.visual[0])
    context = torch.arange(first)
    text = reading.rows("text")
    outcomes: list[Outcome] = []
    for begin in range(0, len(choices), batch):
        rows, variants = [], []
        for layer, tokens in choices[begin : begin + batch]:
            present = text.clone()
            present[reading.visual[tokens]] = True
            rows.append(present[first:].nonzero().flatten() + first)
            variants.append(Variant(start=layer + 1))
        outcomes += probe.rerun(reading, variants, rows, context)
    return outcomes
