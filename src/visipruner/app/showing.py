"""What a round shows: pictures, bars, tables and code, as pictures and text; no page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from visipruner.accounting.record import ExampleTrace
from visipruner.app.playing import Played, Playground, Side
from visipruner.asking import overlay
from visipruner.pruners.registry import spec_of
from visipruner.tables import Table
from visipruner.words import figures

# What visual tokens do in a layer: its color, and its words.
STAGES = {
    "later": ("#b9bec7", "not yet in"),
    "unread": ("#6f9bd1", "text does not look at the image"),
    "all": ("#ffc400", "all tokens"),
    "some": ("#f08a24", "some tokens"),
    "frozen": ("#3fae8f", "give keys and values only"),
    "none": ("#3a3d44", "no image"),
}


def stages(example: ExampleTrace) -> list[tuple[str, int]]:
    """For every layer its stage, a key of `STAGES`, and how many visual tokens are in it."""
    counts = [len(kept) for kept in example.kept[:-1]]
    first = next((layer for layer, count in enumerate(counts) if count), len(counts))

    def stage(layer: int, count: int) -> str:
        if not count:
            return "later" if layer < first < len(counts) else "none"
        if not example.visual_attention[layer]:
            return "unread"
        if layer in example.frozen:
            return "frozen"
        return "all" if count == example.dense_visual else "some"

    return [(stage(layer, count), count) for layer, count in enumerate(counts)]


def bar(side: Side, layer: int) -> str:
    """The stages as HTML: a cell a layer, `layer` marked, and in words which layers are in which."""
    found = stages(side.trace[0])
    cells = "".join(
        f'<i class="{"vp-here" if number == layer else ""}" style="background:{STAGES[stage][0]}" '
        f'title="layer {number}: {count} visual tokens, {STAGES[stage][1]}"></i>'
        for number, (stage, count) in enumerate(found)
    )
    words, first = [], 0
    for (stage, count), group in groupby(found):
        last = first + len(list(group)) - 1
        where = f"{first}" if first == last else f"{first}–{last}"
        number = "" if stage in {"none", "later"} else f", {count}"
        words.append(
            f'<li><i style="background:{STAGES[stage][0]}"></i>layer{"" if first == last else "s"} {where}: '
            f"{STAGES[stage][1]}{number}</li>"
        )
        first = last + 1
    return f'<div class="vp-bar">{cells}</div><ul class="vp-stages">{"".join(words)}</ul>'


def layer_picture(played: Played, side: Side, layer: int) -> Image.Image:
    """The visual tokens that enter `layer`, outlined on the picture, and how the dense model's last row looks at each.

    Tokens that are no single grid are drawn in their order, without the picture.
    """
    example, looks = side.trace[0], played.looks
    if len(example.grids) == 1 and example.grids[0] is not None:
        weights = None if looks is None or looks.grid is None else looks.weights[layer].reshape(looks.grid)
        box = overlay.seen_box(played.picture.size, played.image_processor)
        return overlay.draw(played.picture, example.kept_grid(0, layer), box, (), weights)
    width = math.ceil(math.sqrt(example.num_visual))
    height = math.ceil(example.num_visual / width)
    kept = np.zeros(height * width, dtype=bool)
    kept[example.kept[layer]] = True
    glow = None
    if _same_tokens(played, side):
        assert looks is not None
        glow = np.pad(looks.weights[layer], (0, height * width - example.num_visual)).reshape(height, width)
    paper = Image.new("RGB", (width * 24, height * 24), (214, 214, 210))
    return overlay.draw(paper, kept.reshape(height, width).tolist(), (0, 0, paper.width, paper.height), (), glow)


def layer_words(played: Played, side: Side, layer: int) -> str:
    example = side.trace[0]
    here = example.kept[layer]
    words = f"Layer {layer}: {len(here)} of {example.dense_visual} visual tokens."
    if played.looks is None:
        return f"{words} {played.unseen}"
    weights = played.looks.weights[layer]
    words += f" In the dense model the last row gives the image {weights.sum():.1%} of its attention here"
    if _same_tokens(played, side) and weights.sum() > 0:
        words += f", of which these tokens have {weights[here].sum() / weights.sum():.0%}"
    if len(example.grids) != 1 or example.grids[0] is None:
        words += ". The model's tokens form no single grid and are drawn in their order"
    return f"{words}."


def _same_tokens(played: Played, side: Side) -> bool:
    """Whether a token of the method's prompt is the same piece of the picture as in the dense one."""
    return played.looks is not None and played.looks.weights.shape[1] == side.trace[0].num_visual


def first_layer_to_show(played: Played) -> int:
    """The first layer after the first cut."""
    trigger = played.sides[0].answered.trigger_layer
    return min(0 if trigger is None else trigger + 1, len(played.sides[0].trace[0].kept) - 2)


def table(played: Played) -> str:
    """Dense against pruned, as Markdown."""
    assert played.dense is not None
    dense = played.dense
    rows: dict[str, tuple[str, Callable[[Side], str]]] = {
        "settings": ("", lambda side: side.source),
        "same answer": ("", lambda side: "yes" if side.answered.answer == dense.text else "no"),
        "visual tokens": (str(played.sides[0].answered.visual_tokens), lambda side: side.answered.tokens_told()),
        "FLOPs to read the prompt": (
            _billions(played.dense_flops),
            lambda side: f"{_billions(side.trace.flops())} ({-side.answered.flops_cut:+.1%})",
        ),
        "keys and values": (
            _megabytes(played.dense_kv),
            lambda side: f"{_megabytes(side.trace.kv_bytes())} ({side.trace.kv_bytes() / played.dense_kv - 1:+.1%})",
        ),
        "seconds to the first token": (
            f"{dense.first_token_seconds:.2f}",
            lambda side: _seconds(side.answered.first_token_seconds, dense.first_token_seconds),
        ),
        "seconds in all": (f"{dense.seconds:.2f}", lambda side: _seconds(side.answered.seconds, dense.seconds)),
    }
    columns = ["", "dense", *(side.spec for side in played.sides)]
    cells = [[name, plain, *map(cell, played.sides)] for name, (plain, cell) in rows.items()]
    return Table(columns, cells).markdown(numbers_right=True)


def _billions(flops: int) -> str:
    return f"{figures(flops / 1e9)} billion"


def _megabytes(count: int) -> str:
    return f"{figures(count / 1e6)} MB"


def _seconds(seconds: float, dense: float) -> str:
    return f"{seconds:.2f} ({dense / seconds:.2f}x as fast)"


def code(playground: Playground, played: Played) -> str:
    """Python that asks the same, and the command line's way as a comment."""
    name, methods = playground.loaded.name, [spec_of(side.pruner) for side in played.sides]
    load = {key: value for key, value in playground.load.items() if value not in ("", "auto", "sdpa", False)}
    options = [f"--{key.replace('_', '-')}{'' if value is True else f' {value}'}" for key, value in load.items()]
    options.append(f"--max-new-tokens {played.max_new_tokens}")
    question = " ".join(played.question.split())  # a comment is one line
    asked = f"visipruner run {shlex.quote(played.path.name)} -q {shlex.quote(question)} --model {shlex.quote(name)}"
    commands = [" ".join([f"# {asked} --method {shlex.quote(method)} --compare", *options]) for method in methods]
    arguments: Sequence[Any] = [name, *(f"{key}={value!r}" for key, value in load.items())]
    loading = ", ".join([repr(arguments[0]), *arguments[1:]])
    return "\n".join(
        [
            *commands,
            "import visipruner as vp",
            "",
            f"model = vp.models.load({loading})",
            f"for method in {methods!r}:",
            f"    asked = vp.ask(model, [{played.path.name!r}], [{played.question!r}], method, repeats=3, "
            f"max_new_tokens={played.max_new_tokens})",
            "    for one in asked.answers:",
            "        print(one.answer, one.dense.text, one.tokens_told(), one.flops_cut, one.time_ratio, sep=' | ')",
        ]
    )
