"""The weights that ship say how they were made."""

import json
from dataclasses import asdict

from research.training.recipe import EARLIER_PARTS, LAST_PART
from visipruner_testbed.assembly.trained import RECIPE_FILE, WEIGHTS_FOLDER


def test_the_shipped_recipe_is_that_of_the_course():
    """The parts that they went through, in their order; recipes have changed their fields since, but no value."""
    record, recorded = json.loads((WEIGHTS_FOLDER / RECIPE_FILE).read_text()), []
    while record:
        recorded.append(record["recipe"])
        record = record.get("continued_from")
    course = [json.loads(json.dumps(asdict(part))) for part in (*EARLIER_PARTS.values(), LAST_PART)]
    assert len(course) - len(recorded) in (0, 1)  # the last part may be newer than the weights
    for there, here in zip(reversed(recorded), course, strict=False):
        assert {name: here[name] for name in there if name in here} == {n: v for n, v in there.items() if n in here}
