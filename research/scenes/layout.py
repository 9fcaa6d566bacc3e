"""Draws scene specifications at random: how many items, where, how large, on what. Deterministic given its
`random.Random`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from research.scenes.combinations import is_held_out
from research.scenes.photographs import style_of
from research.scenes.scene import Background, Item, Scene, place_of
from research.scenes.vocabulary import COLORS, OBJECTS, SHAPES, WORDS

# Shapes and texts must stand out from what is behind them.
_TOO_CLOSE = {
    ("red", "orange"), ("red", "brown"), ("red", "pink"), ("red", "purple"), ("orange", "yellow"), ("orange", "brown"),
    ("orange", "pink"), ("yellow", "white"), ("blue", "purple"), ("blue", "gray"), ("blue", "black"),
    ("purple", "pink"), ("purple", "black"), ("purple", "brown"), ("gray", "white"), ("gray", "black"),
    ("gray", "brown"), ("black", "brown"), ("pink", "white"), ("green", "gray"), ("green", "brown"),
}  # fmt: skip


@dataclass(frozen=True)
class LayoutOptions:
    """What may be drawn: one to `max_items` (<= 6) things; `styles` are the emoji folders that may be used, `objects`
    the names.

    `crowded` fills all nine cells, `page` with written words alone: many labelled patches per picture, for the warm
    start only. `always` are names that must be there. `layouts` are the shares of single, quadrants and grid; the
    other shares say how often a scene has repeated kinds (half of the time beside others that are not repeated),
    shapes, and written words, of which there are up to `most_texts`, none beside another. `held_out` scenes have one
    thing at a place, or one shape in a colour, that no other scene has (`combinations`). Of the things that
    `photographs` has files of, `photograph_share` are shown by one of them.
    """

    styles: tuple[str, ...]
    objects: tuple[str, ...] = tuple(OBJECTS)
    max_items: int = 6
    crowded: bool = False
    page: bool = False
    always: tuple[str, ...] = ()
    layouts: tuple[float, float, float] = (0.1, 0.25, 0.65)
    repeat_share: float = 0.4
    shape_share: float = 0.35
    text_share: float = 0.3
    most_texts: int = 2
    held_out: bool = False
    photographs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    photograph_share: float = 0.5


def draw_scene(rng: Random, options: LayoutOptions) -> Scene:
    """One random scene: a single object (often very large), up to four in quadrants, or up to `max_items` on a 3 x 3
    grid."""
    background = _background(rng)
    layout = rng.choices(("single", "quadrants", "grid"), options.layouts)[0]
    if options.crowded:
        places = _cells(rng, side=3, count=9, sizes=(0.15, 0.36))
    elif layout == "single":
        size = rng.uniform(0.35, 1.05)
        room = max(0.0, 0.5 - size / 2)
        places = [(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), size)]
    elif layout == "quadrants":
        places = _cells(rng, side=2, count=rng.randint(1, min(4, options.max_items)), sizes=(0.2, 0.46))
    else:
        places = _cells(rng, side=3, count=rng.randint(1, options.max_items), sizes=(0.15, 0.32))
    items = _items(rng, places, background, options)
    finish = rng.random()
    return Scene(
        background=background,
        items=items,
        blur=rng.uniform(0.3, 1.5) if finish < 0.2 else 0.0,
        noise=rng.uniform(2, 14) if finish > 0.75 else 0.0,
        noise_seed=rng.getrandbits(32),
    )


def _background(rng: Random) -> Background:
    kind = rng.choices(("flat", "gradient", "stripes", "blobs"), (0.5, 0.25, 0.1, 0.15))[0]
    return Background(kind, None if kind == "blobs" else rng.choice(tuple(COLORS)))


def _cells(rng: Random, side: int, count: int, sizes: tuple[float, float]) -> list[tuple[float, float, float]]:
    """`count` different cells of a `side` x `side` grid as (x, y, size), jittered but never out of their named
    place."""
    cells = rng.sample([(column, row) for column in range(side) for row in range(side)], count)
    jitter = 0.06 if side == 2 else 0.035
    return [
        (
            (column + 0.5) / side + rng.uniform(-jitter, jitter),
            (row + 0.5) / side + rng.uniform(-jitter, jitter),
            rng.uniform(*sizes),
        )
        for column, row in cells
    ]


def _items(
    rng: Random, places: list[tuple[float, float, float]], background: Background, options: LayoutOptions
) -> tuple[Item, ...]:
    names = rng.sample(options.objects, len(places))
    names[: len(options.always)] = options.always[: len(places)]
    if (
        len(places) > 1 and not options.crowded and rng.random() < options.repeat_share
    ):  # repeats, so that counting one kind is not counting everything
        kinds = names[: rng.randint(1, 2)]
        spared = rng.randint(0, len(names) - 2) if rng.random() < 0.5 else 0
        names = [rng.choice(kinds) for _ in names[spared:]] + names[len(names) - spared :]
    # What is held out stands first; everything else is exchanged where it would be.
    held_out = options.held_out and not options.always
    names = [
        _fitting(rng, name, place_of(x, y), options, held_out and index == 0)
        for index, (name, (x, y, _)) in enumerate(zip(names, places, strict=True))
    ]
    items = [_emoji(rng, name, place, options) for name, place in zip(names, places, strict=True)]
    first = int(held_out and rng.random() < 0.75)  # the item that stays an object; else a shape is held out
    if rng.random() < options.shape_share or (held_out and not first):
        left = range(first, len(items))
        chosen = rng.sample(left, min(len(left), rng.randint(1, 3)))
        for index in {0, *chosen} if held_out and not first else chosen:
            items[index] = _shape(rng, items[index], background, held_out and index == 0)
    if options.page:
        items = [_text(rng, item, background, sizes=(0.2, 0.32)) for item in items]
    elif rng.random() < options.text_share:
        wanted = rng.randint(1, options.most_texts)
        for index in _in_different_rows(items)[:wanted]:
            if index or not held_out:
                items[index] = _text(rng, items[index], background)
    return tuple(items)


def _fitting(rng: Random, name: str, place: str, options: LayoutOptions, held_out: bool) -> str:
    """`name`, or another where its combination with the place is held out and should not be, or the other way round."""
    if name in options.always or is_held_out(name, place) == held_out:
        return name
    return rng.choice([other for other in options.objects if is_held_out(other, place) == held_out])


def _in_different_rows(items: list[Item]) -> list[int]:
    """The last item, then others of rows not yet taken: words are wider than a cell and would run into each other."""
    taken: dict[int, int] = {}
    for index in reversed(range(len(items))):
        taken.setdefault(items[index].row, index)
    return list(taken.values())


def _emoji(rng: Random, name: str, place: tuple[float, float, float], options: LayoutOptions) -> Item:
    x, y, size = place
    item = Item(
        kind="emoji",
        name=name,
        x=x,
        y=y,
        size=size,
        angle=rng.uniform(-20, 20) if rng.random() < 0.6 else 0.0,
        flip=rng.random() < 0.5,
        style=rng.choice(options.styles),
    )
    return photographed(rng, item, options.photographs, options.photograph_share)


def photographed(rng: Random, item: Item, photographs: Mapping[str, tuple[str, ...]], share: float) -> Item:
    """`item`, or with the chance `share` a photograph of it where there is one."""
    if item.name in photographs and rng.random() < share:
        return replace(item, style=style_of(rng.choice(photographs[item.name])))
    return item


def _shape(rng: Random, item: Item, background: Background, held_out: bool = False) -> Item:
    fits = _contrasting(background)
    pairs = [(name, color) for name in SHAPES for color in fits if is_held_out(name, color) == held_out]
    # No colour that stands out may be held out; then any shape will do.
    name, color = rng.choice(pairs or [(name, color) for name in SHAPES for color in fits])
    return replace(item, kind="shape", name=name, color=color, size=min(item.size, 0.6), style="")


def _text(rng: Random, item: Item, background: Background, sizes: tuple[float, float] | None = None) -> Item:
    written = str(rng.randint(0, 99)) if rng.random() < 0.35 else rng.choice(WORDS)
    return replace(
        item,
        kind="text",
        name=written,
        color=rng.choice(_contrasting(background)),
        angle=rng.uniform(-6, 6),
        flip=False,
        size=rng.uniform(*sizes) if sizes else max(item.size, rng.uniform(0.24, 0.4)),
        style=rng.choice(("sans", "bold", "mono")),
    )


def _contrasting(background: Background) -> tuple[str, ...]:
    """The colours that stand out from a background."""
    behind = background.color
    if behind is None:
        return ("black", "white", "red", "blue")
    return tuple(c for c in COLORS if c != behind and (c, behind) not in _TOO_CLOSE and (behind, c) not in _TOO_CLOSE)
