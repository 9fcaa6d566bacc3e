"""Questions about a scene, with their answers. Everything asked is decided by the picture and cannot be guessed from
the wording.

Types are `local` when one region of the picture holds the answer, `global` when several regions or all of it are
needed.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from research.scenes.mixes import EVEN, Mix
from research.scenes.scene import Item, Scene
from research.scenes.vocabulary import NUMBER_WORDS, SHAPES, plural, with_article

SCOPES: dict[str, str] = {
    "identify": "local",
    "what-where": "local",
    "where-is": "local",
    "shape-color": "local",
    "text": "local",
    "presence": "global",
    "count": "global",
    "background": "global",
    "relation": "global",
    "larger": "global",
    "compare": "global",
    "describe": "global",
}

SMALL_SCOPES: dict[str, str] = {
    "small-place": "local",
    "small-color": "local",
    "small-word": "local",
    "small-number": "local",
    "plate": "local",
    "odd-one": "local",
    "odd-place": "local",
    "after-label": "local",
    "before-word": "local",
    "count-many": "global",
    "most-things": "global",
    "most-ground": "global",
}
"""The types that scenes of small things ask (`small`)."""

SIZE_WORDS = ("tiny", "small", "medium", "large", "huge")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_SIZE_STEPS = (0.19, 0.24, 0.30, 0.42)  # of the picture's side
_MOST_PER_TYPE, _SAME_NAME, _SAME_YES_OR_NO = 6, 1, 3
_ATTEMPTS_PER_QUESTION = 12


@dataclass(frozen=True)
class Question:
    """One question about one picture; `type` is a key of `SCOPES` or `SMALL_SCOPES`.

    `tally` says where the things that are counted are, numbered in reading order; empty for other types.
    """

    question: str
    answer: str
    type: str
    tally: str = ""

    @property
    def scope(self) -> str:
        """`local` or `global`."""
        return (SCOPES | SMALL_SCOPES)[self.type]

    @property
    def worked_out(self) -> str:
        """The answer after the tally: "top middle one, middle none, bottom left two right three: three"."""
        return f"{self.tally}: {self.answer}" if self.tally else self.answer


def ask(scene: Scene, rng: Random, count: int, names: tuple[str, ...], mix: Mix = EVEN) -> list[Question]:
    """Up to `count` different questions about a scene, mixed over the types it allows, few of one type or with one
    answer.

    `names` are the object names that absent things are drawn from.
    """
    asked: dict[str, Question] = {}
    makers = {kind: maker for kind, maker in _MAKERS.items() if kind in mix.weights}
    vain = Counter[str]()
    ones = mix.ones == 1 or rng.random() < mix.ones
    for _ in range(_ATTEMPTS_PER_QUESTION * count):
        if len(asked) == count or not makers:
            break
        kind = rng.choices(tuple(makers), [mix.weights[k] for k in makers])[0]
        made = makers[kind](scene, rng, names)
        if made is None or (kind == "count" and made[1] == NUMBER_WORDS[1] and not ones):
            vain[kind] += 1
            if kind not in ("presence", "count") and vain[kind] >= mix.vain:
                del makers[kind]
            continue
        same_type = [other.answer for other in asked.values() if other.type == kind]
        most = mix.same.get(kind, _SAME_YES_OR_NO if made[1] in ("yes", "no") else _SAME_NAME)
        if len(same_type) < mix.most.get(kind, _MOST_PER_TYPE) and same_type.count(made[1]) < most:
            asked.setdefault(made[0], Question(made[0], made[1], kind, *made[2:]))
    return list(asked.values())


Tallied = tuple[str, str, str]
Made = tuple[str, str] | Tallied | None


def counted(question: str, items: Iterable[Item]) -> Tallied:
    """How many `items` there are, and the tally."""
    places = sorted((item.row, item.column) for item in items)
    rows = []
    for row, name in enumerate(_ROWS):
        inside = [f"{_COLUMNS[place[1]]} {NUMBER_WORDS[n]}" for n, place in enumerate(places, 1) if place[0] == row]
        rows.append(" ".join([name, *(inside or ["none"])]))
    return question, NUMBER_WORDS[len(places)], ", ".join(rows)


def _unique(scene: Scene) -> list[Item]:
    """Items whose name occurs once; texts are asked about by their own type only."""
    counts = Counter(item.name for item in scene.items)
    return [item for item in scene.items if counts[item.name] == 1 and item.kind != "text"]


def _has_text(scene: Scene) -> bool:
    return any(item.kind == "text" for item in scene.items)


def _identify(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    kinds = {item.name for item in scene.items}
    if len(kinds) != 1 or _has_text(scene):
        return None
    question = rng.choice(("What is this?", "What is in the image?", "What does the picture show?", "What do you see?"))
    return question, kinds.pop()


def _what_where(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    places = Counter(item.position for item in scene.items)
    items = [item for item in scene.items if places[item.position] == 1 and item.kind != "text" and item.size < 0.6]
    if not items:
        return None
    item = rng.choice(items)
    template = rng.choice(
        ("What is in the {}?", "What object is in the {}?", "What do you see in the {}?", "What is at the {}?")
    )
    return template.format(item.position), item.name


def _where_is(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    items = [item for item in _unique(scene) if item.size < 0.6]
    if not items:
        return None
    item = rng.choice(items)
    template = rng.choice(
        ("Where is the {}?", "Where in the image is the {}?", "In which part of the picture is the {}?")
    )
    return template.format(item.name), item.position


def _shape_color(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    shapes = [item for item in _unique(scene) if item.kind == "shape"]
    if not shapes:
        return None
    item = rng.choice(shapes)
    colors = Counter(other.color for other in scene.items if other.kind == "shape")
    if colors[item.color] == 1 and rng.random() < 0.35:
        return rng.choice(("What shape is {}?", "Which shape is {}?")).format(item.color), item.name
    return rng.choice(("What color is the {}?", "What is the color of the {}?")).format(item.name), str(item.color)


def _text(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    texts = [item for item in scene.items if item.kind == "text"]
    if not texts:
        return None
    item = texts[0]
    if len(texts) > 1:  # told apart by their place; no two share a row
        item = rng.choice(texts)
        kind = "number" if item.name.isdigit() else "word"
        return rng.choice(("What {} is in the {}?", "Read the {} in the {}.")).format(kind, item.position), item.name
    if item.name.isdigit():
        return rng.choice(
            ("What number is written?", "Which number do you see?", "What number is in the image?")
        ), item.name
    return rng.choice(
        ("What word is written?", "What does the text say?", "Which word do you see?", "Read the word.")
    ), item.name


def _presence(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    inside = {item.name for item in scene.items if item.kind != "text"}
    present = bool(inside) and rng.random() < 0.5
    if not inside and rng.random() < 0.5:
        return None  # keeps "no" at one half over all pictures
    outside = [name for name in (*names, *SHAPES) if name not in inside]
    # Shapes are asked about as often when absent as they are when present, or the word itself would give the answer
    # away.
    shape_rate = sum(item.kind == "shape" for item in scene.items) / max(1, len(scene.items))
    if present:
        name = rng.choice(sorted(inside))
    elif rng.random() < max(shape_rate, 0.1):
        name = rng.choice([shape for shape in SHAPES if shape not in inside] or outside)
    else:
        name = rng.choice([other for other in outside if other not in SHAPES])
    template = rng.choice(("Is there {} in the image?", "Is there {}?", "Can you see {}?", "Does the picture show {}?"))
    return template.format(with_article(name)), "yes" if present else "no"


def _count(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    if rng.random() < 0.5:
        if _has_text(scene) or (len(scene.items) == 1 and rng.random() < 0.8):
            return None
        return counted(rng.choice(("How many objects are there?", "How many things are in the image?")), scene.items)
    counts = Counter(item.name for item in scene.items if item.kind != "text")
    if not counts:
        return None
    # A kind that is there once is asked for rarely: "one" must not become the safe guess.
    name = rng.choice(sorted(counts))
    if counts[name] == 1 and rng.random() < 0.9:
        return None
    template = rng.choice(("How many {} are there?", "How many {} do you see?"))
    return counted(
        template.format(plural(name)), (item for item in scene.items if item.name == name and item.kind != "text")
    )


def _part(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    """How many things are in a row or a column, not of a kind, or shapes (which alone have one colour)."""
    if _has_text(scene):
        return None
    parts: dict[str, list[Item]] = {}
    for item in scene.items:
        parts.setdefault(f"in the {_ROWS[item.row]} row", []).append(item)
    for item in scene.items:
        parts.setdefault(f"in the {_COLUMNS[item.column]} column", []).append(item)
    for name in dict.fromkeys(item.name for item in scene.items):
        parts[f"not {plural(name)}"] = [item for item in scene.items if item.name != name]
    parts["shapes"] = [item for item in scene.items if item.kind == "shape"]
    part, items = rng.choice([(part, items) for part, items in parts.items() if items])
    # Most rows have one thing, and "one" would be learnt first.
    if len(items) == 1 and rng.random() < 0.9:
        return None
    return counted(rng.choice(("How many things are {}?", "How many of the objects are {}?")).format(part), items)


def _background(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    if scene.background.color is None:
        return None
    question = rng.choice(
        ("What color is the background?", "What is the background color?", "Which color is behind the objects?")
    )
    return question, scene.background.color


def _relation(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    items = _unique(scene)
    if len(items) < 2:
        return None
    first, second = rng.sample(items, 2)
    horizontal = abs(first.x - second.x) > 0.25
    vertical = abs(first.y - second.y) > 0.25
    if not (horizontal or vertical):
        return None
    if horizontal and (not vertical or rng.random() < 0.5):
        relation, inverse, holds = "to the left of", "to the right of", first.x < second.x
    else:
        relation, inverse, holds = "above", "below", first.y < second.y
    if len(scene.items) == 2 and rng.random() < 0.5:
        return f"What is {relation if holds else inverse} the {second.name}?", first.name
    if rng.random() < 0.5:
        relation, holds = inverse, not holds
    return f"Is the {first.name} {relation} the {second.name}?", "yes" if holds else "no"


def _larger(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    unique = _unique(scene)
    ranked = sorted(scene.items, key=lambda item: -item.size)
    clear = len(ranked) > 1 and ranked[0] in unique and ranked[0].size > 1.25 * ranked[1].size
    if clear and not _has_text(scene) and rng.random() < 0.5:
        return rng.choice(("What is the largest object?", "Which object is the biggest?")), ranked[0].name
    if len(unique) < 2:
        return None
    first, second = rng.sample(unique, 2)
    if max(first.size, second.size) < 1.3 * min(first.size, second.size):
        return None
    larger, smaller = (first, second) if first.size > second.size else (second, first)
    word, answer = ("larger", larger) if rng.random() < 0.5 else ("smaller", smaller)
    return f"Which is {word}, the {first.name} or the {second.name}?", answer.name


def _size(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    items = _unique(scene)
    if not items:
        return None
    item = rng.choice(items)
    question = rng.choice(("How large is the {}?", "How big is the {}?", "What size is the {}?"))
    return question.format(item.name), SIZE_WORDS[bisect(_SIZE_STEPS, item.size)]


def _compare(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    """Two things in one respect: size, colour of shapes, or how many there are of each. Yes and no equally often."""
    return rng.choice((_compare_sizes, _compare_colors, _compare_counts))(scene, rng)


def _compare_sizes(scene: Scene, rng: Random) -> Made:
    unique = _unique(scene)
    if len(unique) < 2:
        return None
    first, second = rng.sample(unique, 2)
    if max(first.size, second.size) < 1.3 * min(first.size, second.size):
        return None
    word = rng.choice(("larger", "smaller"))
    return (
        f"Is the {first.name} {word} than the {second.name}?",
        "yes" if (first.size > second.size) == (word == "larger") else "no",
    )


def _compare_colors(scene: Scene, rng: Random) -> Made:
    shapes = [item for item in _unique(scene) if item.kind == "shape"]
    pairs = [(one, two) for one in shapes for two in shapes if one is not two]
    same = rng.random() < 0.5
    fits = [(one, two) for one, two in pairs if (one.color == two.color) == same]
    if not fits:
        return None
    one, two = rng.choice(fits)
    return f"Do the {one.name} and the {two.name} have the same color?", "yes" if same else "no"


def _compare_counts(scene: Scene, rng: Random) -> Made:
    counts = Counter(item.name for item in scene.items if item.kind != "text")
    pairs = [(one, two) for one in sorted(counts) for two in sorted(counts) if counts[one] > counts[two]]
    if not pairs:
        return None
    more, fewer = rng.choice(pairs)
    if rng.random() < 0.5:
        return f"Are there more {plural(more)} than {plural(fewer)}?", "yes"
    return f"Are there more {plural(fewer)} than {plural(more)}?", "no"


def _describe(scene: Scene, rng: Random, names: tuple[str, ...]) -> Made:
    columns = [item.column for item in scene.items]
    if len(scene.items) > 3 or len(set(columns)) < len(columns) or _has_text(scene) or scene.background.color is None:
        return None
    phrases = [with_article(item.name) for item in sorted(scene.items, key=lambda item: item.x)]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    question = rng.choice(("Describe the image.", "Describe the picture from left to right.", "Describe what you see."))
    return question, f"{listed} on {with_article(scene.background.color)} background"


_MAKERS: dict[str, Callable[[Scene, Random, tuple[str, ...]], Made]] = {
    "identify": _identify,
    "what-where": _what_where,
    "where-is": _where_is,
    "shape-color": _shape_color,
    "text": _text,
    "presence": _presence,
    "count": _count,
    "background": _background,
    "relation": _relation,
    "larger": _larger,
    "compare": _compare,
    "describe": _describe,
    "size": _size,
    "part": _part,
}
