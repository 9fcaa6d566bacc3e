"""Methods compared fairly: the same samples, budgets that match, paired intervals and tests.

import visipruner as vp

methods = {"FastV": vp.FastV(keep_ratio=0.3), "VisiPruner": vp.VisiPruner(filter_layer=10, keep_tokens=64)}
records = list(vp.evaluate(model, processor, samples, methods))
for row in vp.evaluation.summarize(records):
    print(row["method"], row["accuracy"], row["flops_cut"])
"""

from visipruner.evaluation.certainty import INTERVALS, TEST
from visipruner.evaluation.comparison import Compared, compare
from visipruner.evaluation.contenders import AXES, matched, share_cut
from visipruner.evaluation.rows import as_markdown, summarize
from visipruner.evaluation.runner import DENSE, evaluate

__all__ = [
    "AXES",
    "DENSE",
    "INTERVALS",
    "TEST",
    "Compared",
    "as_markdown",
    "compare",
    "evaluate",
    "matched",
    "share_cut",
    "summarize",
]
