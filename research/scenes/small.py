"""Scenes in which few tokens decide, beside some in which many do: small things, words and numbers on busy grounds,
crowds and mosaics, pages of short lines. Each question comes with the items that hold its answer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from research.scenes.layout import photographed
from research.scenes.questions import Question, counted
from research.scenes.render import SIGN_HEIGHT, text_size
from research.scenes.scene import Background, Item, Scene
from research.scenes.vocabulary import COLORS, LABELS, OBJECTS, SHAPES, WORDS, plural

# What stands out from every ground, and what can be read on it.
_COLORS = tuple(color for color in COLORS if color not in ("gray", "white"))
_INKS = ("black", "blue", "purple", "brown")
_SIZES = (0.072, 0.107)
"""Of a small thing: 24 to 36 of 336 pixels."""
_GAP = 0.012
_TRIES = 80
# Where a thing is in one of nine places and nowhere between two.
_CLEAR = ((0.0, 0.31), (0.43, 0.57), (0.69, 1.0))
_KIN = 10
"""So many names before and after a name are near in kind: the vocabulary lists like beside like."""


@dataclass(frozen=True)
class Look:
    """What may be drawn: drawing `styles`, `fonts`, `grounds` of busy scenes, `papers` of pages, `tiles` along the
    side of a mosaic. Things are in loose rows and columns, or `scattered`; the words of a page follow their labels, or
    are `scattered` to the right margin. Every fourth picture has up to `noise` grey levels of noise. Every third thing
    that `photographs` has files of is shown by one of them."""

    styles: tuple[str, ...]
    fonts: tuple[str, ...]
    grounds: tuple[str, ...]
    papers: tuple[str, ...]
    tiles: tuple[int, ...]
    scattered: bool
    noise: float = 0.0
    photographs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question, and the indices of the items that hold its answer."""

    question: Question
    items: tuple[int, ...]


def draw_small(rng: Random, part: str, look: Look, number: int | None = None) -> tuple[Scene, list[Asked]]:
    """A scene of one of the `PARTS`, of its `number`-th kind (in turn) or any, and all that can be asked about it."""
    kinds = PARTS[part]
    kind = rng.choice(kinds) if number is None else kinds[number % len(kinds)]
    background, items, asked = kind(rng, look)
    noise = rng.uniform(0, look.noise) if rng.random() < 0.25 else 0.0
    return Scene(background, tuple(items), blur=0.0, noise=noise, noise_seed=rng.getrandbits(32)), asked


def places_told(rng: Random, scene: Scene) -> list[Question]:
    """What else a busy scene can tell: where each thing is of which there is one, what is where one thing is alone.
    For training, where a picture costs more than its questions."""
    things = [item for item in scene.items if item.kind == "emoji" and _is_clear(item)]
    names = Counter(item.name for item in scene.items)
    near = Counter(item.position for item in scene.items)
    questions = [one.question for one in _where(rng, things) if names[things[one.items[0]].name] == 1]
    for thing in things:
        if near[thing.position] == 1:
            question = rng.choice(("What is in the {}?", "What object is in the {}?")).format(thing.position)
            questions.append(Question(question, thing.name, "what-where"))
    return questions


def box_of(item: Item) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the square that a thing was given, or of the letters of a text, in fractions of
    the picture's side."""
    if item.kind == "text":
        width, height = text_size(item)
    else:
        width, height = item.size, item.size * (SIGN_HEIGHT if item.kind == "sign" else 1.0)
    return item.x - width / 2, item.y - height / 2, item.x + width / 2, item.y + height / 2


Drawn = tuple[Background, Sequence[Item], list[Asked]]


def _places(rng: Random, look: Look) -> Drawn:
    """Many small things; where is one of them?"""
    items = _placed(rng, look, _things(rng, look, rng.randint(10, 16)))
    return _ground(rng, look), items, _where(rng, items)


def _shapes(rng: Random, look: Look) -> Drawn:
    """Small shapes among things: what colour is one of them?"""
    names = rng.sample(SHAPES, rng.randint(3, 5))
    shapes = [Item("shape", name, 0, 0, rng.uniform(0.055, 0.09), color=rng.choice(_COLORS)) for name in names]
    items = _placed(rng, look, shapes + _things(rng, look, rng.randint(5, 9)))
    asked = []
    for index, item in enumerate(items):
        if item.kind == "shape":
            question = rng.choice(("What color is the {}?", "What is the color of the {}?")).format(item.name)
            asked.append(Asked(Question(question, str(item.color), "small-color"), (index,)))
    return _ground(rng, look), items, asked


def _word(rng: Random, look: Look) -> Drawn:
    """One small word among things."""
    word = Item(
        "text", rng.choice(WORDS), 0, 0, rng.uniform(0.13, 0.19), color=rng.choice(_INKS), style=rng.choice(look.fonts)
    )
    items = _placed(rng, look, [word, *_things(rng, look, rng.randint(8, 12))])
    asked = [
        Asked(Question(question, word.name, "small-word"), (0,))
        for question in rng.sample(("What word is written?", "What does the text say?", "Read the word."), 1)
    ]
    return _ground(rng, look), items, asked + _where(rng, items)


def _signs(rng: Random, look: Look) -> Drawn:
    """Small boards in several colours, each with a number of its own."""
    colors = rng.sample(tuple(COLORS), rng.randint(3, 5))
    numbers = rng.sample(range(100), len(colors))
    signs = [
        Item("sign", str(number), 0, 0, rng.uniform(0.122, 0.13), color=color, style=rng.choice(look.fonts))
        for color, number in zip(colors, numbers, strict=True)
    ]
    items = _placed(rng, look, signs + _things(rng, look, rng.randint(4, 8)))
    asked = []
    for index, item in enumerate(items):
        if item.kind == "sign":
            question = rng.choice(("What number is on the {} sign?", "Read the number on the {} sign."))
            asked.append(Asked(Question(question.format(item.color), item.name, "small-number"), (index,)))
    return _ground(rng, look), items, asked


def _plates(rng: Random, look: Look) -> Drawn:
    """Things on plates of several colours: what is on one of them?"""
    colors = rng.sample(_COLORS, rng.randint(4, 6))
    things = _things(rng, look, len(colors) + rng.randint(3, 6))
    plates = [Item("plate", color, 0, 0, _SIZES[1], color=color) for color in colors]
    placed = _placed(rng, look, [*plates, *things[len(colors) :]])
    items, asked = list(placed), []
    for index, plate in enumerate(placed):
        if plate.kind == "plate":
            thing = replace(things[index], x=plate.x, y=plate.y, size=rng.uniform(0.078, 0.086))
            question = rng.choice(("What is on the {} plate?", "Which object is on the {} plate?"))
            asked.append(Asked(Question(question.format(plate.color), thing.name, "plate"), (index,)))
            items.append(thing)
    return _ground(rng, look), items, asked


def _odd(rng: Random, look: Look) -> Drawn:
    """Many alike, and one that is not."""
    common = rng.choice(tuple(OBJECTS))
    odd = rng.choice(_kin(common))
    style = rng.choice(look.styles)
    things = [_thing(rng, name, look) for name in (odd, *[common] * rng.randint(11, 18))]
    items = _placed(rng, look, [replace(thing, style=style) for thing in things], clear=1)
    question = rng.choice(("Which object is different from the others?", "What is the odd one out?"))
    place = rng.choice(("Where is the object that is different?", "Where is the odd one out?"))
    asked = [Question(question, odd, "odd-one"), Question(place, items[0].position, "odd-place")]
    return _ground(rng, look), items, [Asked(one, (0,)) for one in asked]


def _crowd(rng: Random, look: Look) -> Drawn:
    """Several of several kinds: how many are there of one, and of which are there most?"""
    first = rng.choice(tuple(OBJECTS))
    names = [first, *rng.sample(_kin(first), rng.randint(2, 3))]
    numbers = [rng.randint(1, 6), *(rng.randint(1, 4) for _ in names[1:])]
    things = [_thing(rng, name, look) for name, number in zip(names, numbers, strict=True) for _ in range(number)]
    rng.shuffle(things)
    items = _placed(rng, look, things, clear=len(things))
    found = {name: [index for index, item in enumerate(items) if item.name == name] for name in names}
    asked = []
    for name, indices in found.items():
        if indices:
            question = rng.choice(("How many {} are there?", "How many {} do you see?")).format(plural(name))
            text, answer, tally = counted(question, [items[index] for index in indices])
            asked.append(Asked(Question(text, answer, "count-many", tally), tuple(indices)))
    most, second = sorted(found, key=lambda name: -len(found[name]))[:2]
    if len(found[most]) > len(found[second]) + 1:
        question = rng.choice(("What is there most of?", "Which object is there most often?"))
        asked.append(Asked(Question(question, most, "most-things"), tuple(range(len(items)))))
    return _ground(rng, look), items, asked


def _mosaic(rng: Random, look: Look) -> Drawn:
    """Tiles of several colours all over the picture: which is there most of?"""
    side = rng.choice(look.tiles)
    colors = rng.sample(tuple(COLORS), rng.randint(3, 5))
    most = round(side * side * rng.uniform(0.42, 0.6))
    others = [rng.choice(colors[1:]) for _ in range(side * side - most)]
    # No other has two thirds as many.
    others = [color if others[:at].count(color) < most * 0.6 else colors[0] for at, color in enumerate(others)]
    laid = [colors[0]] * most + others
    rng.shuffle(laid)
    items = [
        Item("tile", color, (at % side + 0.5) / side, (at // side + 0.5) / side, 1 / side + 0.003, color=color)
        for at, color in enumerate(laid)
    ]
    question = rng.choice(("Which color covers most of the picture?", "What color is most of the picture?"))
    where = tuple(at for at, color in enumerate(laid) if color == colors[0])
    return Background("paper", None), items, [Asked(Question(question, colors[0], "most-ground"), where)]


def _page(rng: Random, look: Look) -> Drawn:
    """Short lines of a label and a word or number: what stands after, or before, one of them?"""
    count, points = rng.randint(3, 6), rng.randint(25, 30)
    pitch = rng.uniform(0.125, min(0.18, 0.87 / count))
    top, left = rng.uniform(0.08, 0.95 - pitch * count) + pitch / 2, rng.uniform(0.04, 0.1)
    labels = rng.sample(LABELS, count)
    words = rng.sample(WORDS, count)
    numbers = rng.sample(range(100), count)
    values = [str(numbers[at]) if rng.random() < 0.25 else words[at] for at in range(count)]
    font, ink, ragged, gap = rng.choice(look.fonts), rng.choice(_INKS), rng.random() < 0.4, rng.uniform(0.02, 0.15)
    lines = [
        [Item("text", text, 0, top + at * pitch, 0.1, color=ink, style=font, points=points) for text in (f"{a}:", b)]
        for at, (a, b) in enumerate(zip(labels, values, strict=True))
    ]
    column = left + max(text_size(label)[0] for label, _ in lines) + gap
    items: list[Item] = []
    asked = []
    for at, (label, value) in enumerate(lines):
        width, wide = text_size(label)[0], text_size(value)[0]
        start = left + width + gap if ragged else column
        start = 0.95 - wide if look.scattered else min(start, 0.98 - wide)
        items += [replace(label, x=left + width / 2), replace(value, x=start + wide / 2)]
        question = rng.choice(("What is written after {}?", "What does it say after {}?"))
        asked.append(Asked(Question(question.format(labels[at]), values[at], "after-label"), (2 * at + 1,)))
        if not values[at].isdigit():
            question = f"What is written before {values[at]}?"
            asked.append(Asked(Question(question, labels[at], "before-word"), (2 * at,)))
    return Background(rng.choice(look.papers), None), items, asked


PARTS: dict[str, tuple[Callable[[Random, Look], Drawn], ...]] = {
    "local": (_places, _shapes, _word, _signs, _plates, _odd),
    "many": (_crowd, _mosaic),
    "documents": (_page,),
}
"""The kinds of scenes of each part of the test set."""


def _ground(rng: Random, look: Look) -> Background:
    return Background(rng.choice(look.grounds), None)


def _kin(name: str) -> list[str]:
    """Names near in kind."""
    names = tuple(OBJECTS)
    at = names.index(name)
    return [other for other in names[max(0, at - _KIN) : at + _KIN + 1] if other != name]


def _things(rng: Random, look: Look, count: int) -> list[Item]:
    """`count` different things, every other one near in kind to the first."""
    first = rng.choice(tuple(OBJECTS))
    near = rng.sample(_kin(first), min(count // 2, _KIN))
    far = [name for name in OBJECTS if name not in (first, *near)]
    names = [first, *near, *rng.sample(far, count - 1 - len(near))]
    rng.shuffle(names)
    return [_thing(rng, name, look) for name in names]


def _thing(rng: Random, name: str, look: Look) -> Item:
    size = rng.uniform(*_SIZES)
    item = Item("emoji", name, 0, 0, size, flip=rng.random() < 0.5, style=rng.choice(look.styles))
    return photographed(rng, item, look.photographs, 1 / 3)


def _placed(rng: Random, look: Look, items: Sequence[Item], clear: int = 0) -> list[Item]:
    """The items at places of their own, none over another, the first `clear` each in one of nine places; those that
    find no room are left out, never the first."""
    placed: list[Item] = []
    for number, item in enumerate(items):
        for _ in range(_TRIES):
            x, y = (rng.uniform(0, 1) if look.scattered else _lattice(rng) for _ in range(2))
            tried = replace(item, x=x, y=y)
            box = box_of(tried)
            inside = min(box) >= _GAP and max(box) <= 1 - _GAP
            fits = inside and (number >= clear or _is_clear(tried))
            if fits and all(_apart(box, box_of(other)) for other in placed):
                placed.append(tried)
                break
    return placed


def _lattice(rng: Random) -> float:
    return (rng.randrange(7) + 0.5) / 7 + rng.uniform(-0.02, 0.02)


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return any(a[at + 2] + _GAP < b[at] for a, b in ((one, other), (other, one)) for at in (0, 1))


def _is_clear(item: Item) -> bool:
    return all(any(low <= at <= high for low, high in _CLEAR) for at in (item.x, item.y))


def _where(rng: Random, items: Sequence[Item]) -> list[Asked]:
    """Where each thing is that is in one of nine places."""
    return [
        Asked(
            Question(
                rng.choice(("Where is the {}?", "Where in the image is the {}?")).format(item.name),
                item.position,
                "small-place",
            ),
            (index,),
        )
        for index, item in enumerate(items)
        if item.kind == "emoji" and _is_clear(item)
    ]
