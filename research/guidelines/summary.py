"""From records to the table: accuracy with intervals over seeds and pictures, and what each arm costs beside plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from research.guidelines.arms import PLAIN, PRUNED

_RESAMPLES = 4000
Numbers = npt.NDArray[np.float64]


def summarize(found: Mapping[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """One row an arm, JSON-ready; fractions.

    `accuracy` and `difference` (to plain, the same seeds and pictures) are `{"value", "low", "high"}`: 95 % percentile
    intervals of a bootstrap that draws seeds and, within, pictures with replacement, so that both count. With three
    seeds the share of the seeds in it is coarse. `by_type` has the same per type. Ratios are to plain: below 1 is
    cheaper. `entry`: per seed what fitting the projector to a late layer took and missed; empty where not fitted.
    """
    tables = _by_arm(found["records"])
    pictures = _pictures(found["records"])
    draws = _draws(len(tables[PLAIN]), pictures.shape[1], seed)
    plain = _resampled(tables[PLAIN], pictures, draws)
    types = np.array([one["type"] for one in found["records"][0]["answers"]])
    rows = []
    for name, table in tables.items():
        mine = _resampled(table, pictures, draws)
        rows.append(
            {
                "arm": name,
                "letters": _letters(found["records"], name),
                "accuracy": _interval(table.mean(), mine),
                "per_seed": [float(value) for value in table.mean(1)],
                "difference": None if name == PLAIN else _interval(table.mean() - tables[PLAIN].mean(), mine - plain),
                "by_type": {str(kind): _of_type(table, pictures, types == kind, draws) for kind in np.unique(types)},
                "entry": [record["entry"] for record in found["records"] if record["arm"] == name and record["entry"]],
                **_ratios(found["costs"], name),
            }
        )
    return rows


def _by_arm(records: Sequence[Mapping[str, Any]]) -> dict[str, Numbers]:
    """Per arm `[seeds, questions]`, 1 for right."""
    tables: dict[str, list[list[float]]] = {}
    for record in records:
        tables.setdefault(record["arm"], []).append([float(one["right"]) for one in record["answers"]])
        if "pruned_answers" in record:
            tables.setdefault(PRUNED, []).append([float(one["right"]) for one in record["pruned_answers"]])
    return {name: np.array(rows) for name, rows in tables.items()}


def _pictures(records: Sequence[Mapping[str, Any]]) -> Numbers:
    """`[questions, pictures]`, 1 where a question is about a picture."""
    names = np.array([one["picture"] for one in records[0]["answers"]])
    return np.stack([(names == name).astype(float) for name in dict.fromkeys(names.tolist())], axis=1)


def _draws(seeds: int, pictures: int, seed: int) -> tuple[Numbers, Numbers]:
    """How often each seed and each picture is drawn, `[resamples, seeds]` and `[resamples, pictures]`."""
    generator = np.random.default_rng(seed)
    chosen = [generator.multinomial(size, [1 / size] * size, _RESAMPLES) for size in (seeds, pictures)]
    return chosen[0].astype(float), chosen[1].astype(float)


def _resampled(table: Numbers, pictures: Numbers, draws: tuple[Numbers, Numbers]) -> Numbers:
    """`[resamples]` accuracies."""
    seeds, weights = draws
    right: Numbers = ((seeds @ (table @ pictures)) * weights).sum(1)
    asked: Numbers = weights @ pictures.sum(0) * seeds.sum(1)
    shares: Numbers = right / asked
    return shares


def _interval(value: float, resampled: Numbers) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _of_type(
    table: Numbers, pictures: Numbers, chosen: npt.NDArray[np.bool_], draws: tuple[Numbers, Numbers]
) -> dict[str, float]:
    """Counts of all seeds together, and the interval of their share over resamples that hold the type."""
    with np.errstate(invalid="ignore"):
        shares = _resampled(table[:, chosen], pictures[chosen], draws)
    value = float(table[:, chosen].mean())
    return {
        "right": int(table[:, chosen].sum()),
        "total": int(table[:, chosen].size),
        **_interval(value, shares[~np.isnan(shares)]),
    }


def _letters(records: Sequence[Mapping[str, Any]], name: str) -> str:
    return next((record["letters"] for record in records if record["arm"] == name), "training-free")


def _ratios(costs: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("training", "inference"):
        mine, plain = costs[kind].get(PLAIN if kind == "training" and name == PRUNED else name), costs[kind][PLAIN]
        found[kind] = None if mine is None else {**mine, "ratio": {key: mine[key] / plain[key] for key in mine}}
    return found


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: accuracy and costs, and accuracy by question type, intervals in brackets."""
    lines = [
        "| arm | guidelines | accuracy (95 %) | difference to plain | training s/step | training FLOPs | activations "
        "| prefill s | prefill FLOPs | KV cache |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_ratio(row, "training", key) for key in ("seconds", "flops", "activation_bytes")]
        cells += [_ratio(row, "inference", key) for key in ("seconds", "flops", "kv_bytes")]
        difference = "" if row["difference"] is None else _points(row["difference"], signed=True)
        lines.append(
            f"| {row['arm']} | {row['letters']} | {_points(row['accuracy'])} | {difference} | {' | '.join(cells)} |"
        )
    types = sorted({kind for row in rows for kind in row["by_type"]})
    lines += ["", "| type | " + " | ".join(row["arm"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for kind in types:
        counts = [row["by_type"][kind] for row in rows]
        shares = [f"{100 * cell['value']:.0f} ({100 * cell['low']:.0f}-{100 * cell['high']:.0f})" for cell in counts]
        lines.append(f"| {kind} ({counts[0]['total']}) | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _ratio(row: Mapping[str, Any], kind: str, key: str) -> str:
    return "" if row[kind] is None else f"{row[kind]['ratio'][key]:.2f}x"


def _points(interval: Mapping[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (format(100 * interval[key], f"{sign}.1f") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def draw(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Any) -> None:
    """Writes a PNG: loss while training, tokens kept, and accuracy against prefill FLOPs."""
    import matplotlib
    from matplotlib.figure import Figure

    from visipruner.files import write_atomic

    colors = {row["arm"]: matplotlib.colormaps["tab20"](number) for number, row in enumerate(rows)}
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in dict.fromkeys(record["arm"] for record in found["records"]):
        logs = [record["log"] for record in found["records"] if record["arm"] == name]
        if not logs[0]:
            continue
        pictures = [line["pictures"] for line in logs[0]]
        left.plot(pictures, _smooth([[line["loss"] for line in log] for log in logs]), color=colors[name])
        if all("kept_tokens" in line for line in logs[0]):
            kept = np.array([[line["kept_tokens"] for line in log] for log in logs]).mean(0)
            middle.plot(pictures, kept, color=colors[name])
    for row in rows:
        value, low, high = (100 * row["accuracy"][key] for key in ("value", "low", "high"))
        x, color = row["inference"]["ratio"]["flops"], colors[row["arm"]]
        right.errorbar([x], [value], [[value - low], [high - value]], fmt="o", capsize=3, color=color, label=row["arm"])
    left.set(xlabel="pictures seen", ylabel="loss (mean of seeds, smoothed)", title="while learning", ylim=(0, None))
    middle.set(xlabel="pictures seen", ylabel="tokens kept per question", title="sparse middle", ylim=(0, None))
    right.set(xlabel="prefill FLOPs beside plain", ylabel="accuracy, % (95 %)", title="afterwards", xlim=(0, 1.1))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=110))


def _smooth(values: Sequence[Sequence[float]], over: int = 8) -> Numbers:
    """The mean of the seeds, averaged over the last `over` steps."""
    mean = np.array(values).mean(0)
    return np.array([mean[max(0, index - over + 1) : index + 1].mean() for index in range(len(mean))])
