"""A page for every method of the registry, made of its file and of what docs/comparison measured on the small model."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from visipruner.contract.pruner import DroppingPruner, Pruner
from visipruner.contract.settings import declared
from visipruner.pruners.registry import available, method_class
from visipruner.tables import Table

COMPARISON = Path(__file__).parents[1] / "docs" / "comparison"
_WIDTH, _HEIGHT = 720, 150


def write(folder: Path) -> None:
    """One page and perhaps one picture a method."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in available():
        (folder / f"{name}.md").write_text(page(method_class(name), folder), encoding="utf-8")


def linked(text: str) -> str:
    """The page of methods, each name in its table leading to the method's own page."""
    for name in available():
        text = text.replace(f"\n| `{name}` |", f"\n| [`{name}`](methods/{name}.md) |")
    return text


def page(cls: type[Pruner], folder: Path) -> str:
    """The method's idea, picture, formula, settings, cost and numbers; the picture is written into `folder`."""
    about, rows = cls.about, measured(cls.name)
    idea = _prose(inspect.getmodule(cls).__doc__ or "")
    parts = [f"# {cls.name}", idea, f"**Paper:** {_paper(about.paper)}" if about.paper else "A control, of no paper."]
    if rows:
        (folder / f"{cls.name}.svg").write_text(picture(rows), encoding="utf-8")
        parts += [f"![Visual tokens in each layer]({cls.name}.svg)", f"*{_caption(rows)}*"]
    parts += ["## Formula", _prose(cls.__doc__ or ""), _code(cls), "## Settings", _settings(cls), "## Cost", _cost(cls)]
    parts += ["## Measured", _numbers(rows) if rows else "Not part of [the comparison](../comparison.md)."]
    parts.append(f'```bash\nvisipruner run photo.jpg -q "What is this?" --method {cls.name} --compare\n```')
    return "\n\n".join(parts) + "\n"


# ---- words ----------------------------------------------------------------------------------------------------------


def _prose(docstring: str) -> str:
    """A docstring's text before its lists of attributes and errors, as Markdown."""
    text = inspect.cleandoc(docstring)
    text = re.split(r"\n\n?(?:Attributes|Args|Returns|Raises):?[ \n]", text)[0]
    return re.sub(r"([<>*_])", r"\\\1", re.sub(r"``?([^`]+)``?", r"`\1`", text)) if "`" not in text else text


def _paper(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})(v\d)?", r"[arXiv \1\2](https://arxiv.org/abs/\1\2)", paper)


def _code(cls: type[Pruner]) -> str:
    source = inspect.cleandoc(inspect.getsource(cls))
    indented = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
    return f'??? quote "The class"\n\n    ```python\n{indented}\n    ```'


def _settings(cls: type[Pruner]) -> str:
    told = _attributes(cls)
    rows = [(name, one) for name, one in declared(cls).items()]
    if not rows:
        return "None."
    return Table.of(
        {
            "`--set`": lambda row: f"`{row[0]}`",
            "published": lambda row: f"`{row[1]['default']!r}`" if "default" in row[1] else "must be given",
            "takes": lambda row: row[1]["takes"],
            "what it is": lambda row: told.get(row[0], ""),
        },
        rows,
    ).markdown()


def _attributes(cls: type[Pruner]) -> dict[str, str]:
    """`{setting: what the docstrings of the class and of those it is made from say}`."""
    names = {item.name for item in fields(cls)}
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, listed = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", re.split(r"\n\S", listed)[0]):
            name, _, text = entry.strip().partition(":")
            if name in names:
                found[name] = " ".join(text.split())
    return found


def _cost(cls: type[Pruner]) -> str:
    about = cls.about
    told = [f"* Tokens leave {about.acts}.", f"* It looks at: {about.needs}."]
    if cls.reads_last_row_only:
        told.append("* Of the queries it needs the last row's only: one query row, no attention map.")
    if cls.merges:
        told.append("* Kept tokens take over what others held.")
    if issubclass(cls, DroppingPruner):
        how = {"keep": "keep their positions", "compact": "are counted anew, without gaps"}[cls.published_positions]
        told.append(f"* As published, the rows that stay {how} ([positions](../methods.md#positions)).")
    return "\n".join([*told, "", "What a look costs: [the price of choosing](../accounting.md#the-price-of-choosing)."])


# ---- numbers --------------------------------------------------------------------------------------------------------


@cache
def _comparison() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document = json.loads((COMPARISON / "results.json").read_text(encoding="utf-8"))
    lines = (COMPARISON / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return document, [json.loads(line)["given"] for line in lines]


def measured(name: str) -> dict[str, dict[str, Any]]:
    """The comparison's rows of a method by their names in its table, each with `layers`, mean tokens per layer."""
    document, given = _comparison()
    ours = [label for label, one in document["methods"].items() if one["method"] == name]
    rows = {row["method"]: row for row in document["rows"]}
    return {
        label: {**rows[label], "layers": _means([one[label]["tokens_per_layer"] for one in given])} for label in ours
    }


def _means(counts: list[list[int]]) -> list[float]:
    return [sum(layer) / len(layer) for layer in zip(*counts, strict=True)]


def _numbers(rows: dict[str, dict[str, Any]]) -> str:
    document, _ = _comparison()
    right = next(row["accuracy"]["value"] for row in document["rows"] if row["method"] == "dense")
    table = Table.of(
        {
            "setting": lambda row: f"`{row['method']}`",
            "FLOPs cut": lambda row: f"{row['flops_cut']:.1%}",
            "accuracy against dense (95 %)": _difference,
            "significant": lambda row: "yes" if row["is_significant"] else "no",
            "to the first token": lambda row: f"{row['prefill_ratio']:.2f}x as fast",
        },
        rows.values(),
    )
    return (
        f"`make compare`: {document['samples']} questions to the small model, which answers {right:.1%} of them "
        f"unpruned. So few show large losses only; [read this first](../comparison.md).\n\n{table.markdown()}"
    )


def _difference(row: dict[str, Any]) -> str:
    found = row["difference"]
    value = f"{100 * found['value']:+.1f}"
    return value if found["low"] is None else f"{value} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _caption(rows: dict[str, dict[str, Any]]) -> str:
    label, row = _shown(rows)
    return (
        f"Visual tokens in each layer of the small model, `{label}`, mean over the comparison's prompts: "
        f"{row['flops_cut']:.1%} of the decoder's FLOPs are cut."
    )


def _shown(rows: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The row that the picture shows: the cut nearest to 70 %."""
    return min(rows.items(), key=lambda item: abs(item[1]["flops_cut"] - 0.7))


def picture(rows: dict[str, dict[str, Any]]) -> str:
    """Bars over layers as SVG: grey what the model has unpruned, blue what is left."""
    _, row = _shown(rows)
    layers, most = row["layers"], max(576.0, *row["layers"])
    step, base = _WIDTH / len(layers), _HEIGHT - 22
    bars = []
    for layer, count in enumerate(layers):
        bar = f'<rect x="{layer * step + 1:.1f}" width="{step - 2:.1f}" rx="2" '
        height = (base - 4) * count / most
        bars.append(f'{bar} y="4" height="{base - 4}" fill="#8884"/>')
        bars.append(f'{bar} y="{base - height:.1f}" height="{height:.1f}" fill="#3f6fd8">')
        bars.append(f"<title>layer {layer}: {count:.0f} visual tokens</title></rect>")
    marks = "".join(
        f'<text x="{(layer + 0.5) * step:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{layer}</text>'
        for layer in range(0, len(layers), 5)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#777">{"".join(bars)}{marks}</svg>\n'
    )
