"""Questions: answers are true of the scene, and the wording does not give them away."""

from collections import Counter, defaultdict

import pytest

from research.scenes import MIXES, SCOPES, TRAIN_STYLES, LayoutOptions, draw_example
from research.scenes.vocabulary import NUMBER_WORDS, plural
from visipruner.evaluation.scoring import is_right, normalize
from visipruner_testbed.evaluate import majority_right

OPTIONS = LayoutOptions(styles=TRAIN_STYLES)


@pytest.fixture(scope="module")
def examples(art):
    return [draw_example("questions", index, art, OPTIONS, 10) for index in range(400)]


def _asked(examples, kind):
    return [(example.scene, q) for example in examples for q in example.questions if q.type == kind]


def test_every_type_is_asked_and_has_a_scope(examples):
    kinds = Counter(q.type for example in examples for q in example.questions)
    assert set(kinds) == set(SCOPES)
    assert min(kinds.values()) >= 20
    assert {SCOPES[kind] for kind in kinds} == {"local", "global"}


def test_counts_are_true(examples):
    for scene, question in _asked(examples, "count"):
        names = Counter(item.name for item in scene.items)
        about = [name for name in names if f" {plural(name)} " in question.question]
        expected = names[about[0]] if about else len(scene.items)
        assert question.answer == NUMBER_WORDS[expected]
        assert question.worked_out == f"{question.tally}: {question.answer}"
        assert is_right(question.worked_out, question.answer)


def test_tallies_number_what_is_counted_row_by_row(examples):
    counts = Counter()
    for scene, question in _asked(examples, "count"):
        names = {plural(item.name): item.name for item in scene.items}
        about = [names[name] for name in names if f" {name} " in question.question]
        places = sorted((item.row, item.column) for item in scene.items if not about or item.name == about[0])
        said, numbers = [], []
        for row, (name, *words) in enumerate(part.split() for part in question.tally.split(", ")):
            assert name == ("top", "middle", "bottom")[row]
            if words != ["none"]:
                said += [(row, ("left", "middle", "right").index(column)) for column in words[::2]]
                numbers += words[1::2]
        assert said == places
        assert numbers == list(NUMBER_WORDS[1 : len(places) + 1])
        counts[len(places)] += 1
    assert min(counts[count] for count in range(1, 7)) > 3
    assert not any(q.tally for example in examples for q in example.questions if q.type != "count")


def test_places_are_true(examples):
    for scene, question in _asked(examples, "where-is"):
        [item] = [item for item in scene.items if f"the {item.name}?" in question.question]
        assert item.position == question.answer
    for scene, question in _asked(examples, "what-where"):
        [item] = [item for item in scene.items if f"the {item.position}?" in question.question]
        assert item.name == question.answer


def test_presence_is_true_and_balanced(examples):
    answers = Counter()
    for scene, question in _asked(examples, "presence"):
        asked = question.question.rstrip("?").removesuffix(" in the image")
        inside = any(asked.endswith(f" {item.name}") for item in scene.items)
        assert question.answer == ("yes" if inside else "no")
        answers[question.answer] += 1
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_the_kind_of_thing_does_not_tell_presence(examples):
    """Shapes and objects are present equally often when asked for."""
    yes = defaultdict(list)
    for _, question in _asked(examples, "presence"):
        is_shape = any(shape in question.question for shape in ("circle", "square", "triangle", "star", "cross"))
        yes[is_shape].append(question.answer == "yes")
    assert abs(sum(yes[True]) / len(yes[True]) - sum(yes[False]) / len(yes[False])) < 0.25


def test_relations_and_sizes_are_true_and_balanced(examples):
    answers = Counter(q.answer for _, q in _asked(examples, "relation") if q.answer in ("yes", "no"))
    assert 0.4 < answers["yes"] / answers.total() < 0.6
    first = []
    for scene, question in _asked(examples, "larger"):
        sizes = {item.name: item.size for item in scene.items}
        if " or the " in question.question:
            one, two = question.question.split(", the ")[1].rstrip("?").split(" or the ")
            pick = max if "larger" in question.question else min
            assert question.answer == pick((one, two), key=lambda name: sizes[name])
            first.append(question.answer == one)
    assert 0.3 < sum(first) / len(first) < 0.7


def test_open_answers_are_not_in_the_question(examples):
    for kind in ("identify", "what-where", "where-is", "shape-color", "text", "count", "background"):
        for _, question in _asked(examples, kind):
            assert f" {normalize(question.answer)} " not in f" {normalize(question.question)} "


def test_majority_answers_are_weak(examples):
    by_type = defaultdict(list)
    for example in examples:
        for question in example.questions:
            by_type[question.type].append(question.answer)
    right = sum(majority_right(answers) for answers in by_type.values())
    assert right / sum(len(answers) for answers in by_type.values()) < 0.45


def test_no_open_fact_is_asked_twice(art):
    for index in range(60):
        questions = draw_example("often", index, art, OPTIONS, 24).questions
        open_answers = Counter((q.type, q.answer) for q in questions if q.answer not in ("yes", "no"))
        assert max(open_answers.values(), default=1) == 1


def test_comparisons_are_true_and_balanced(examples):
    answers = Counter()
    for scene, question in _asked(examples, "compare"):
        counts = Counter(item.name for item in scene.items if item.kind != "text")
        named = {item.name: item for item in scene.items}
        if " more " in question.question:
            more, fewer = question.question.removeprefix("Are there more ").rstrip("?").split(" than ")
            many = {plural(name): count for name, count in counts.items()}
            expected = many[more] > many[fewer]
        elif "same color" in question.question:
            one, two = question.question.removeprefix("Do the ").split(" have ")[0].split(" and the ")
            expected = named[one].color == named[two].color
        else:
            word = " larger" if " larger " in question.question else " smaller"
            one, two = question.question.removeprefix("Is the ").rstrip("?").split(f"{word} than the ")
            expected = (named[one].size > named[two].size) == (word == " larger")
        assert question.answer == ("yes" if expected else "no"), question
        answers[question.answer] += 1
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_several_texts_are_asked_for_by_place(art):
    options = LayoutOptions(styles=TRAIN_STYLES, text_share=1.0, most_texts=3)
    drawn = [draw_example("texts", index, art, options, 24) for index in range(60)]
    several = 0
    for scene, question in _asked(drawn, "text"):
        texts = [item for item in scene.items if item.kind == "text"]
        rows = [item.row for item in texts]
        assert len(set(rows)) == len(rows) <= 3
        if len(texts) > 1:
            [item] = [item for item in texts if f"in the {item.position}" in question.question]
            assert question.answer == item.name
            several += 1
    assert several > 30


def test_a_mix_for_pairs_asks_about_pairs(art):
    asked = {}
    for name in ("hard", "pairs"):
        examples = [draw_example("mixes", index, art, OPTIONS, 24, MIXES[name]) for index in range(100)]
        asked[name] = Counter(q.type for example in examples for q in example.questions)
        for example in examples:
            answers = Counter((q.type, q.answer) for q in example.questions)
            assert all(count <= MIXES[name].same.get(kind, 3) for (kind, _), count in answers.items())
    for kind in ("larger", "compare"):
        assert asked["pairs"][kind] > 2 * asked["hard"][kind]


def test_a_mix_for_counts_rarely_asks_for_one(art):
    one = NUMBER_WORDS[1]
    options = LayoutOptions(styles=TRAIN_STYLES, repeat_share=0.85)
    answers = {}
    for name in ("sizes", "counts"):
        drawn = [draw_example("ones", index, art, options, 32, MIXES[name]) for index in range(150)]
        answers[name] = [[q.answer for q in example.questions if q.type == "count"] for example in drawn]
    shares = {name: sum(given.count(one) for given in per) / sum(map(len, per)) for name, per in answers.items()}
    assert shares["counts"] < 0.25 < shares["sizes"]
    several = {name: sum(len(given) - given.count(one) for given in per) for name, per in answers.items()}
    assert several["counts"] > 1.4 * several["sizes"]
    # None in most pictures, rather than a few in each: the question must be open wherever it is asked.
    assert sum(one in given for given in answers["counts"]) < 0.25 * len(answers["counts"])


def test_counts_of_parts_are_true_and_many(art):
    drawn = [draw_example("parts", index, art, OPTIONS, 32, MIXES["parts"]) for index in range(60)]
    asked = _asked(drawn, "part")
    assert len(asked) > 2 * len(drawn)
    forms = Counter()
    for scene, question in asked:
        part = question.question.rstrip("?").split(" are ")[1]
        row = {f"in the {name} row": number for number, name in enumerate(("top", "middle", "bottom"))}
        column = {f"in the {name} column": number for number, name in enumerate(("left", "middle", "right"))}
        if part in row:
            expected = sum(item.row == row[part] for item in scene.items)
        elif part in column:
            expected = sum(item.column == column[part] for item in scene.items)
        elif part == "shapes":
            expected = sum(item.kind == "shape" for item in scene.items)
        else:
            expected = sum(part != f"not {plural(item.name)}" for item in scene.items)
        assert question.answer == NUMBER_WORDS[expected], question
        forms[part.split()[0]] += 1
    assert set(forms) == {"in", "shapes", "not"}


def test_what_only_training_asks_is_in_no_test_set(examples):
    assert {"size", "part"}.isdisjoint(q.type for example in examples for q in example.questions)
