"""Methods compared fairly: the same samples, budgets that match, paired intervals and tests.

import visipruner as vp

methods = {"FastV": vp.FastV(keep_ratio=0.3), "VisiPruner": vp.VisiPruner(filter_layer=10, keep_tokens=64)}
records = list(vp.evaluate(model, processor, samples, methods))
for row in vp.evaluation.summarize(records):
    print(row["method"], row["accuracy"], row["flops_cut"])
"""

from visipruner.evaluation.matching import AXES, matched, share_cut
from visipruner.evaluation.runner import DENSE, evaluate
from visipruner.evaluation.significance import TEST
from visipruner.evaluation.summary import INTERVALS, as_markdown, summarize

__all__ = ["AXES", "DENSE", "INTERVALS", "TEST", "as_markdown", "evaluate", "matched", "share_cut", "summarize"]
