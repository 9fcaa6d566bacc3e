"""Experiments: edges cut (which ones, in which layers, does the answer need?), and visual rows taken away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from visipruner.analysis.gaze import attention_weights
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading, Rows
from visipruner.analysis.rerun import How, Outcome, Variant, combined, knockout
from visipruner.analysis.result import Labelled, Result
from visipruner.errors import ConfigError

Tokens = Literal["all", "top", "bottom", "first_half", "second_half", "random"]
Direction = Literal["window", "shallow_to_deep", "deep_to_shallow"]

_TEACHER_FORCED = (
    "Answers are judged token for token against the dense answer, or the right one as spelled; another wording counts "
    "as different."
)


def attention_knockout(
    probe: Probe,
    reading: Reading,
    src: Rows = "text",
    dst: Rows = "visual",
    *,
    layers: Iterable[int],
    how: How = "cut",
    tokens: Tokens = "all",
    share: float = 0.1,
    onto: int | None = None,
    other: Reading | None = None,
    seed: int = 0,
) -> Outcome:
    """Changes the edges from rows `src` to rows `dst` in `layers` and tells what becomes of the answer.

    Args:
        src, dst: named groups (see `Reading.rows`), masks or row numbers.
        how: "cut" (before the softmax), "zero" (after it), "merge" (the summed weight goes to one row), "swap" (`src`
            sees what `dst` is in `other`).
        tokens: which part of `dst`: in every layer the "top" or "bottom" `share` by the attention that `src` pays them
            there in the dense model, a half in order, a "random" `share`, or all.
        onto: the row that a merge moves the weight to; by default the first of `dst`.
        other: for a swap, a reading of the same question with another picture of the same size.
        seed: of the random choice.

    Raises ConfigError for settings without sense.
    """
    edit = edit_of(reading, src, dst, layers, how=how, tokens=tokens, share=share, onto=onto, other=other, seed=seed)
    return probe.rerun(reading, [edit])[0]


def edit_of(
    reading: Reading,
    src: Rows,
    dst: Rows,
    layers: Iterable[int],
    *,
    how: How = "cut",
    tokens: Tokens = "all",
    share: float = 0.1,
    onto: int | None = None,
    other: Reading | None = None,
    seed: int = 0,
) -> Variant:
    """The variant behind `attention_knockout`, to run several in one sweep."""
    layers = sorted(set(layers))
    rows = reading.rows(dst).nonzero().flatten()
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in 0 .. 1, got {share}.")
    if tokens not in get_args(Tokens):
        raise ConfigError(f"tokens must be one of {', '.join(map(repr, get_args(Tokens)))}, got {tokens!r}.")
    if how == "merge" and onto is None:
        onto = int(rows[0])
    if tokens in ("top", "bottom"):
        parts = []
        for layer in layers:
            paid = attention_weights(reading, layer, src).mean((0, 1))[rows]
            order = paid.argsort(descending=tokens == "top", stable=True)
            parts.append(knockout(reading, src, rows[order[: round(share * len(rows))]], [layer], how, onto, other))
        return combined(*parts)
    half = len(rows) // 2
    if tokens == "random":
        generator = torch.Generator().manual_seed(seed)
        rows = rows[torch.randperm(len(rows), generator=generator)[: round(share * len(rows))]]
    elif tokens != "all":
        rows = rows[:half] if tokens == "first_half" else rows[half:]
    return knockout(reading, src, rows, layers, how, onto, other)


def sweep(
    probe: Probe,
    reading: Reading,
    direction: Direction,
    src: Rows = "text",
    dst: Rows = "visual",
    *,
    window: int = 3,
    how: How = "cut",
    other: Reading | None = None,
) -> Result:
    """Knockouts over growing or moving sets of layers (paper, section 3: where fusion happens).

    direction:
        "shallow_to_deep": edges are gone in layers 0 .. k-1, for k = 0 .. L;
        "deep_to_shallow": in layers k .. L-1, for k = 0 .. L. For text -> visual this equals discarding the image's
            rows from layer k on;
        "window": in layers k .. k+window-1, for every k.

    Arrays `[layer]`, layer being k: kl (nats), agrees, right (NaN where no right answer is known), logprob (nats).
    """
    layers = probe.num_layers
    if direction == "window":
        if not 1 <= window <= layers:
            raise ConfigError(f"window must lie in 1 .. {layers}, got {window}.")
        changed = [range(k, k + window) for k in range(layers - window + 1)]
    elif direction == "deep_to_shallow":
        changed = [range(k, layers) for k in range(layers + 1)]
    elif direction == "shallow_to_deep":
        changed = [range(layers)]
    else:
        raise ConfigError(f"direction must be window, shallow_to_deep or deep_to_shallow, got {direction!r}.")
    variants = [knockout(reading, src, dst, part, how, other=other) for part in changed]
    if direction == "shallow_to_deep":
        # All share the run that never has the edges; each leaves it at its layer k.
        variants += [Variant(start=layers), *(Variant(start=k, parent=0) for k in range(1, layers + 1))]
        return outcome_arrays(f"sweep_{direction}", probe.rerun(reading, variants)[1:], range(layers + 1))
    return outcome_arrays(f"sweep_{direction}", probe.rerun(reading, variants), range(len(variants)))


def shallow_ablations(probe: Probe, reading: Reading, window: int, seed: int = 0) -> Result:
    """The paper's experiments on the first layers: is the content of visual tokens used, or only their mass?

    Conditions (text -> visual edges in layers 0 .. window-1 unless said otherwise):
        cut, zero: all gone, before or after the softmax; merge_0/25/50/99: their mass moved to the visual token at that
        per cent of the image; top_10, bottom_90, first_half, second_half, random_half: only those tokens cut;
        layer_0: cut in layer 0 only; after_0: cut in layers 1 .. window-1;
        visual_to_visual: visual rows attend to no visual row; passive: that, and merge_0 on top.

    Arrays `[condition]`: kl, agrees, right, logprob.
    """
    visual = reading.visual

    def edit(layers: Iterable[int] = range(window), **kwargs: object) -> Variant:
        return edit_of(reading, "text", "visual", layers, seed=seed, **kwargs)  # type: ignore[arg-type]

    places = {percent: int(visual[min(len(visual) - 1, len(visual) * percent // 100)]) for percent in (0, 25, 50, 99)}
    merged = {f"merge_{percent}": edit(how="merge", onto=row) for percent, row in places.items()}
    # A visual row without any visual edge still sees the text before it; the diagonal is cut too, as in the paper.
    blind = knockout(reading, "visual", "visual", range(window))
    cheap = {
        "cut": edit(),
        "zero": edit(how="zero"),
        **merged,
        "top_10": edit(tokens="top", share=0.1),
        "bottom_90": edit(tokens="bottom", share=0.9),
        "first_half": edit(tokens="first_half"),
        "second_half": edit(tokens="second_half"),
        "random_half": edit(tokens="random", share=0.5),
        "layer_0": edit([0]),
        "after_0": edit(range(1, window)),
    }
    # Visual rows must run again only for these two.
    dear = {"visual_to_visual": blind, "passive": combined(blind, merged["merge_0"])}
    outcomes = probe.rerun(reading, list(cheap.values())) + probe.rerun(reading, list(dear.values()))
    return outcome_arrays("shallow", outcomes, [*cheap, *dear], "condition")


def outcome_arrays(name: str, outcomes: Sequence[Outcome], labels: Sequence[object], dim: str = "layer") -> Result:
    known = all(outcome.right is not None for outcome in outcomes)
    columns = {
        "kl": ([outcome.kl for outcome in outcomes], "nats"),
        "agrees": ([outcome.agrees for outcome in outcomes], "0 or 1"),
        "right": ([bool(outcome.right) if known else np.nan for outcome in outcomes], "0 or 1"),
        "logprob": ([outcome.logprob - outcome.dense_logprob for outcome in outcomes], "nats, variant minus dense"),
    }
    coords = {dim: list(labels)}
    arrays = {name: Labelled(np.array(column, float), (dim,), unit, coords) for name, (column, unit) in columns.items()}
    return Result(name, arrays, [_TEACHER_FORCED])


def discard(probe: Probe, reading: Reading) -> Result:
    """Visual rows leave before layer k and do not come back, for k = 0 .. L (paper, section 3: the deep stage).

    By the design's invariant this is the same as cutting every edge to them from layer k on, and is computed so.
    Arrays `[layer]`: kl, agrees, right, logprob.
    """
    return replace(sweep(probe, reading, "deep_to_shallow"), name="discard")


def skip(probe: Probe, reading: Reading, layers: Iterable[int] | None = None, batch: int = 8) -> Result:
    """Visual rows pass one layer by, unseen in it and unchanged by it, and are back in the next.

    Args:
        layers: which to try, one at a time; all by default. batch: how many run at once (every row runs again).

    Arrays `[layer]`: kl, agrees, right, logprob.
    """
    chosen = range(probe.num_layers) if layers is None else list(layers)
    unseen = [combined(knockout(reading, "all", "visual", [k]), _paused(reading, [k])) for k in chosen]
    return outcome_arrays("skip", _outcomes(probe, reading, unseen, batch), chosen)


def freeze(probe: Probe, reading: Reading, layers: Iterable[int] | None = None, batch: int = 8) -> Result:
    """Visual rows pass one layer by unchanged, but text rows see them in it: what is lost is the layer's work on them.

    ShortV (Yuan et al., ICCV 2025, arXiv 2504.00502) measures a layer's contribution so. Arguments and arrays are those
    of `skip`.
    """
    found = freeze_blocks(probe, reading, range(probe.num_layers) if layers is None else layers, 1, batch)
    return replace(found, name="freeze")


def freeze_blocks(probe: Probe, reading: Reading, starts: Iterable[int], size: int, batch: int = 8) -> Result:
    """Visual rows pass layers k .. k + size - 1 by unchanged, seen by text rows, for every k of `starts`.

    What layers lose together is more than the sum of what each loses alone, so blocks are tried as blocks. Arrays
    `[layer]`, labelled by k: kl, agrees, right, logprob.

    Raises ConfigError for a block that reaches beyond the last layer, or is empty.
    """
    chosen = list(starts)
    if size < 1 or any(not 0 <= start <= probe.num_layers - size for start in chosen):
        raise ConfigError(f"Blocks of {size} layers must lie within the model's {probe.num_layers}.")
    variants = [_paused(reading, range(start, start + size)) for start in chosen]
    return outcome_arrays("freeze_blocks", _outcomes(probe, reading, variants, batch), chosen)


def _paused(reading: Reading, layers: Sequence[int]) -> Variant:
    """Visual rows leave these layers, in ascending order, as they entered them."""
    return Variant(start=layers[0], resting=dict.fromkeys(layers, reading.rows("visual")))


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
    covered = "The first answer token is predicted while the prompt is read and cannot change."
    return replace(result, not_covered=[*result.not_covered, covered])


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
