"""`python tools/paper_costs.py [--json]`: the paper's published costs beside what its formulas give.

It tells how near each comes, and under which reading of the formula.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from visipruner.accounting.paper import (
    LLAVA_1_5_7B,
    LLAVA_1_5_13B,
    LayerSpan,
    PaperModel,
    Schedule,
    cross_attention_macs,
    visual_attention_cut,
    visual_macs,
)
from visipruner.models.shape import ModelShape

# Sizes and the 144 tokens are those of the public MobileVLM V2 3B; VisiPruner prints only the 0.37 T.
MOBILEVLM_V2_3B = PaperModel(
    "MobileVLM-v2-3B", ModelShape(32, 2560, 32, 32, 80, 6912, 32000), visual_tokens=144, text_tokens=74
)
MEAN_KEPT = 10.3
MEAN_EXIT_LAYER = 23.9
SHALLOW_LAYERS = 7
# Not printed in the paper: the mean filter layer that its 1.76 T implies (14.755, rounded).
IMPLIED_FILTER_LAYER = 14.8
IMPLIED_FILTER_LAYER_VISUAL = 12.0

_KEPT = LayerSpan(MEAN_EXIT_LAYER - IMPLIED_FILTER_LAYER, MEAN_KEPT)
_FULL = LayerSpan(IMPLIED_FILTER_LAYER - SHALLOW_LAYERS, LLAVA_1_5_7B.visual_tokens)

MEAN_SCHEDULE = (LayerSpan(SHALLOW_LAYERS, LLAVA_1_5_7B.visual_tokens, visual_attention=False), _FULL, _KEPT)
"""LLaVA-1.5-7B on average: 7 shallow layers, all tokens up to layer 14.8, then 10.3 tokens up to layer 23.9."""


@dataclass(frozen=True)
class Comparison:
    """One published number. `published` and `ours` are in `unit` ("T" = 1e12 multiply-adds, "%" = percent cut)."""

    what: str
    reading: str
    published: float
    ours: float
    unit: str

    @property
    def difference(self) -> float:
        """`ours - published`, in `unit`."""
        return self.ours - self.published

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `difference` included."""
        return {**asdict(self), "difference": self.difference}


def filtered_after(model: PaperModel, layers: float) -> tuple[LayerSpan, ...]:
    """The schedule "no visual attention for `layers` layers, then 10.3 tokens until layer 23.9"."""
    return (
        LayerSpan(layers, model.visual_tokens, visual_attention=False),
        LayerSpan(MEAN_EXIT_LAYER - layers, MEAN_KEPT),
    )


def mean_tokens(model: PaperModel, tokens: float) -> tuple[LayerSpan, ...]:
    """The schedule "`tokens` in every layer": how the paper's attention column treats the other methods."""
    return (LayerSpan(model.shape.num_layers, tokens),)


def total_cut(model: PaperModel, schedule: Schedule) -> float:
    """What the paper calls the reduction of total FLOPs (53.9 % on 7B), a fraction: `1 - visual_macs / dense`.

    53.9 % is `1 - 1.76 / 3.82`, and 3.82 T holds no text: "total" means all terms, not all rows. Every layer counts,
    the ones between the shallow stage and the filter layer at full length. 0 for a prompt without visual tokens.
    """
    whole = visual_macs(model.shape, model.dense_schedule)
    return 1.0 - visual_macs(model.shape, schedule) / whole if whole else 0.0


def visual_flops_cut(model: PaperModel, schedule: Schedule) -> float:
    """The paper's cut of *visual* FLOPs (62.8 % on 7B), a fraction.

    Read as `1 - (visual_macs + cross_attention_macs of the schedule) / (the same, dense)`: the paper gives `n_t` beside
    `n_v` for this number, so the cross term is taken to count; it moves the result by 0.1 point. The paper sums
    shallow layers (`4 n_v d^2 + 3 n_v d m`) and middle layers (`n'` kept tokens) only; layers between the shallow stage
    and the filter layer are in neither sum. Counted as shallow, a filter layer of 12.0 gives 62.8 %, the 14.8 that the
    53.9 % implies gives 54.4 %: the two published numbers do not share one mean schedule.
    """
    dense = model.dense_schedule
    whole = visual_macs(model.shape, dense) + cross_attention_macs(model, dense)
    part = visual_macs(model.shape, schedule) + cross_attention_macs(model, schedule)
    return 1.0 - part / whole if whole else 0.0


def compare_with_paper() -> list[Comparison]:
    """Every published cost that the formulas can be held against, in the order of the paper's tables."""
    return [*_totals(), *_visual_flops(), *_visual_attention(), *_baselines()]


def _totals() -> list[Comparison]:
    models = ((LLAVA_1_5_7B, 3.82), (LLAVA_1_5_13B, 7.44), (MOBILEVLM_V2_3B, 0.37))
    dense = [
        Comparison(
            f"dense {model.name}",
            f"n = {model.visual_tokens} visual tokens",
            printed,
            visual_macs(model.shape, model.dense_schedule) / 1e12,
            "T",
        )
        for model, printed in models
    ]
    pruned = visual_macs(LLAVA_1_5_7B.shape, MEAN_SCHEDULE) / 1e12
    reading = f"mean schedule, filter layer {IMPLIED_FILTER_LAYER} fitted"
    return [
        *dense,
        Comparison("pruned LLaVA-1.5-7B", reading, 1.76, pruned, "T"),
        Comparison("total FLOPs cut", reading, 53.9, 100 * total_cut(LLAVA_1_5_7B, MEAN_SCHEDULE), "%"),
    ]


def _visual_flops() -> list[Comparison]:
    model = LLAVA_1_5_7B
    readings = (
        (f"shallow until filter layer {IMPLIED_FILTER_LAYER_VISUAL}, fitted", IMPLIED_FILTER_LAYER_VISUAL),
        (f"shallow until the {IMPLIED_FILTER_LAYER} implied by 53.9 %", IMPLIED_FILTER_LAYER),
    )
    return [
        Comparison("visual FLOPs cut", how, 62.8, 100 * visual_flops_cut(model, filtered_after(model, layer)), "%")
        for how, layer in readings
    ]


def _visual_attention() -> list[Comparison]:
    model = LLAVA_1_5_7B
    cuts = (
        ("printed formula, 10.3 tokens in 9.1 layers", visual_attention_cut(model, (_KEPT,), as_printed=True)),
        ("factor 2 restored, 10.3 tokens in 9.1 layers", visual_attention_cut(model, (_KEPT,))),
        ("mean schedule: layers before the filter count too", visual_attention_cut(model, MEAN_SCHEDULE)),
    )
    return [Comparison("visual attention cut", how, 98.3, 100 * cut, "%") for how, cut in cuts]


def _baselines() -> list[Comparison]:
    model, layers = LLAVA_1_5_7B, LLAVA_1_5_7B.shape.num_layers
    full = model.visual_tokens
    methods = (
        ("PDrop-192, SparseVLM-192", 192.0, 86.4),
        ("FastV K=3 r=0.75", (3 * full + (layers - 3) * 0.25 * full) / layers, 87.3),
        ("SparseVLM-64", 64.0, 97.6),
        ("FitPrune 0.9", 0.1 * full, 98.0),
    )
    return [
        Comparison(
            f"visual attention cut, {name}",
            f"{tokens:.1f} tokens, mean over layers",
            printed,
            100 * visual_attention_cut(model, mean_tokens(model, tokens)),
            "%",
        )
        for name, tokens, printed in methods
    ]


def format_table(rows: list[Comparison]) -> str:
    """The comparison as a GitHub-flavoured Markdown table."""
    lines = ["| number | reading | published | formula | difference |", "|---|---|---:|---:|---:|"]
    for row in rows:
        places = 3 if row.unit == "T" else 2
        lines.append(
            f"| {row.what} | {row.reading} | {row.published:g} {row.unit} | {row.ours:.{places}f} {row.unit} "
            f"| {row.difference:+.{places}f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prints the comparison, as a Markdown table or as JSON."""
    parser = argparse.ArgumentParser(prog="python tools/paper_costs.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    rows = compare_with_paper()
    if parser.parse_args(arguments).json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        print(format_table(rows))


if __name__ == "__main__":
    main()
