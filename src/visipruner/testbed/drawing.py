"""Draws a test set to a folder: pictures as JPEG, questions as JSONL. The emoji are fetched first, see `fetch`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from visipruner.testbed.scenes import TRAIN_STYLES, UNSEEN_STYLE, EmojiArt, LayoutOptions, Question, draw_example
from visipruner.testbed.scenes.vocabulary import UNSEEN_OBJECTS
from visipruner.testbed.testset import QUESTIONS_FILE

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
    splits = [("scenes", i, LayoutOptions(styles=TRAIN_STYLES)) for i in range(pictures)]
    splits += [("unseen-combinations", i, LayoutOptions(styles=TRAIN_STYLES, held_out=True)) for i in range(unseen)]
    splits += [("unseen-style", i, LayoutOptions(styles=(UNSEEN_STYLE,))) for i in range(unseen)]
    strange = tuple(UNSEEN_OBJECTS)
    splits += [
        ("unseen-objects", i, LayoutOptions(styles=TRAIN_STYLES, always=(strange[i % len(strange)],)))
        for i in range(unseen)
    ]
    lines = []
    for split, index, options in splits:
        example = draw_example(f"{seed}/{split}", index, art, options, _CANDIDATES)
        name = f"{split}-{index:03d}.jpg"
        example.picture.save(folder / name, quality=90)
        candidates = example.questions
        if options.always or options.held_out:
            # Only what is asked about the unseen thing, or about the one in an unseen combination: it stands first.
            strange_one = example.scene.items[0].name
            candidates = [q for q in candidates if strange_one in f"{q.question} {q.answer}"]
        for question in _rarest(candidates, asked, questions):
            record = {"image": name, "question": question.question, "answer": question.answer, "type": question.type}
            tally = {"tally": question.tally} if question.tally else {}
            lines.append(json.dumps(record | {"scope": question.scope, "split": split} | tally))
        on_picture()
    (folder / QUESTIONS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _rarest(candidates: list[Question], asked: Counter[tuple[str, ...]], count: int) -> list[Question]:
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
