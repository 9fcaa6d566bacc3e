"""Draws a test set to a folder: pictures as JPEG, questions as JSONL. The emoji are fetched first, see `fetch`."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from research.scenes import TRAIN_STYLES, UNSEEN_STYLE, EmojiArt, LayoutOptions, Question, draw_example
from research.scenes.combinations import is_unseen
from research.scenes.scene import Item
from research.scenes.vocabulary import UNSEEN_OBJECTS, plural
from visipruner_testbed.testset import KNOWN, QUESTIONS_FILE

_CANDIDATES = 40


def draw_test_set(
    emoji: Path,
    folder: Path,
    pictures: int = 302,
    unseen: int = 66,
    questions: int = 7,
    seed: str = "test-1",
    on_picture: Callable[[], object] = lambda: None,
) -> int:
    """Draw `pictures` scenes, and `unseen` of each unseen kind; returns the number of questions.

    Raises FileNotFoundError when `emoji` does not hold the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    art, asked = EmojiArt(emoji), Counter[tuple[str, ...]]()
    lines = []
    for split, index, options in plan(pictures, unseen):
        example = draw_example(f"{seed}/{split}", index, art, options, _CANDIDATES)
        name = f"{split}-{index:03d}.jpg"
        example.picture.save(folder / name, quality=90)
        candidates = example.questions
        if options.always or options.held_out:
            # Only what is asked about the unseen thing, or about the one in an unseen combination: it stands first.
            strange_one = example.scene.items[0].name
            candidates = [q for q in candidates if strange_one in f"{q.question} {q.answer}"]
        for question in rarest(candidates, asked, questions):
            record = {"image": name, "question": question.question, "answer": question.answer, "type": question.type}
            tally = {"tally": question.tally} if question.tally else {}
            kept = split if asks_about_the_unseen(question, options, example.scene.items[0]) else KNOWN
            lines.append(json.dumps(record | {"scope": question.scope, "split": kept} | tally))
        on_picture()
    (folder / QUESTIONS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def plan(pictures: int, unseen: int) -> list[tuple[str, int, LayoutOptions]]:
    """Split, number and options of every picture, in the order in which they are drawn."""
    scenes = [("scenes", i, LayoutOptions(styles=TRAIN_STYLES)) for i in range(pictures)]
    unseen_kinds = {
        "unseen-combinations": [LayoutOptions(styles=TRAIN_STYLES, held_out=True)],
        "unseen-style": [LayoutOptions(styles=(UNSEEN_STYLE,))],
        "unseen-objects": [LayoutOptions(styles=TRAIN_STYLES, always=(name,)) for name in UNSEEN_OBJECTS],
    }
    return scenes + [(split, i, kinds[i % len(kinds)]) for split, kinds in unseen_kinds.items() for i in range(unseen)]


def asks_about_the_unseen(question: Question, options: LayoutOptions, first: Item) -> bool:
    """Whether a question is about what its picture was drawn for; `first` is the first thing in the picture.

    False where a shape, a word or a repeated thing took the place of what the picture was drawn for, or no colour
    that is held out stood out from the background.
    """
    if options.always:
        words = re.findall(r"[a-z]+", f"{question.question} {question.answer}".lower())
        return any(name in words or plural(name) in words for name in options.always)
    if options.held_out:
        with_what = first.position if first.kind == "emoji" else first.color
        return first.kind != "text" and with_what is not None and is_unseen(first.name, with_what)
    return True


def rarest(candidates: list[Question], asked: Counter[tuple[str, ...]], count: int) -> list[Question]:
    """`count` of the candidates, each time of the type asked least so far and, within it, with the rarest answer.

    So rare types get enough questions to be measured, and no answer is a safe guess. One picture never has two
    questions of the same type with the same answer.
    """
    chosen: dict[tuple[str, str], Question] = {}
    left = list(candidates)
    while left and len(chosen) < count:
        question = min(left, key=lambda q: (asked[(q.type,)], asked[(q.type, q.answer)]))
        kind = (question.type, question.answer)
        chosen[kind] = question
        asked.update([kind, (question.type,)])
        left = [q for q in left if (q.type, q.answer) not in chosen]
    return list(chosen.values())
