"""How often each kind of question is asked, in the parts of the training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Mix:
    """How often each type is drawn for a picture that can answer it; how many questions of a type a picture gets
    (`most`, else 6), and how many of them with the same answer (`same`, else one, and three of yes or no); after how
    many `vain` attempts a type is given up for a picture; in what share of the pictures a count may be one (`ones`)."""

    weights: Mapping[str, float]
    most: Mapping[str, int]
    same: Mapping[str, int] = field(default_factory=dict)
    vain: int = 4
    ones: float = 1.0


# What is hard is asked more often.
_EVENLY = {
    "identify": 0.5, "what-where": 1.2, "where-is": 1.6, "shape-color": 1.2, "text": 2.2, "presence": 0.8,
    "count": 2.4, "background": 0.3, "relation": 1.6, "larger": 2.0, "compare": 2.4, "describe": 0.4,
}  # fmt: skip
EVEN = Mix(_EVENLY, most=dict.fromkeys(_EVENLY, 5))
# For a model that names things already: where they are, how many, and one against another.
HARD = Mix(
    {
        "identify": 0.2, "what-where": 1.0, "where-is": 2.4, "shape-color": 0.8, "text": 1.6, "presence": 0.4,
        "count": 2.6, "background": 0.15, "relation": 2.4, "larger": 2.4, "compare": 3.0, "describe": 0.3,
    },
    most={"identify": 1, "background": 1, "describe": 1, "presence": 2},
)  # fmt: skip
# For a model that knows what a single thing has to tell: every pair of things in turn, and long answers.
PAIRS = Mix(
    {
        "identify": 0.2, "what-where": 0.8, "where-is": 0.8, "shape-color": 0.8, "text": 2.0, "presence": 0.3,
        "count": 2.0, "background": 0.15, "relation": 1.5, "larger": 4.0, "compare": 5.0, "describe": 1.0,
    },
    most={"identify": 1, "background": 1, "describe": 2, "presence": 2, "relation": 5, "larger": 8, "compare": 8},
    same={"larger": 4, "compare": 5, "relation": 3, "describe": 2},
    vain=40,
)  # fmt: skip
# The same, and the size of single things, which comparing them takes. Only for training: the words for it are ours.
SIZES = replace(
    PAIRS,
    weights={**PAIRS.weights, "size": 2.5, "larger": 3.5, "compare": 4.0},
    most={**PAIRS.most, "size": 5},
    same={**PAIRS.same, "size": 2},
)
# For a model that takes every kind for one of a kind: how many there are, in words and in lists of all there is.
COUNTS = replace(
    SIZES,
    weights={
        **SIZES.weights, "size": 1.0, "count": 9.0, "describe": 3.0, "compare": 4.0, "larger": 2.5, "text": 1.5,
    },
    most={**SIZES.most, "count": 6, "size": 3, "larger": 5},
    same={**SIZES.same, "count": 3},
    ones=0.15,
)  # fmt: skip
# The same, and counts of a part of what is there, many about each picture. Only for training, as sizes are.
PARTS = replace(
    COUNTS,
    weights={**COUNTS.weights, "count": 10.0, "part": 12.0, "size": 0.5, "larger": 1.5, "relation": 1.0},
    most={**COUNTS.most, "part": 10, "size": 1, "larger": 3, "relation": 3},
    same={**COUNTS.same, "part": 4},
)
# For the end: answers about as often as they are right in pictures that were not chosen for counting.
SETTLED = replace(
    PARTS,
    weights={**SIZES.weights, "count": 6.0, "size": 0.5, "part": 1.5, "describe": 2.0, "text": 3.0, "compare": 4.0},
    same={**SIZES.same, "describe": 1},
    ones=0.5,
)
# Counts that are worked out need no care for how often a number is right. First little else, to learn how it is done.
ALOUD = replace(
    PARTS,
    weights={"count": 10.0, "part": 10.0, "where-is": 1.0, "what-where": 1.0, "presence": 1.0, "compare": 1.0},
    most={"count": 6, "part": 8, "where-is": 2, "what-where": 2, "presence": 1, "compare": 2},
    ones=1.0,
)
TALLIES = replace(SETTLED, weights={**SETTLED.weights, "count": 9.0, "part": 3.0, "size": 0.5}, ones=1.0)
DESCRIBED = replace(
    TALLIES,
    weights={**TALLIES.weights, "describe": 9.0, "count": 6.0, "part": 1.5},
    same={**TALLIES.same, "describe": 2},
)
# For the end: what lost by learning to count aloud gets the share it had before.
ROUNDED = replace(
    TALLIES,
    weights={
        **SIZES.weights, "describe": 8.0, "count": 5.0, "part": 1.0, "text": 3.0, "larger": 4.0, "compare": 5.0,
    },
    most={**SIZES.most, "count": 4},
    same={**SIZES.same, "count": 3},
)  # fmt: skip
MIXES = {
    "even": EVEN, "hard": HARD, "pairs": PAIRS, "sizes": SIZES, "counts": COUNTS, "parts": PARTS, "settled": SETTLED,
    "aloud": ALOUD, "tallies": TALLIES, "described": DESCRIBED, "rounded": ROUNDED,
}  # fmt: skip
