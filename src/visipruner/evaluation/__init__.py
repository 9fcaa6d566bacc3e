"""Methods compared fairly: the same samples, budgets that match, paired intervals.

from visipruner import evaluation

methods = {"FastV": FastV(keep_ratio=0.3), "VisiPruner": VisiPruner(filter_layer=10, keep_tokens=64)}
records = list(evaluation.evaluate(model, processor, samples, methods))
for row in evaluation.summarize(records):
    print(row["method"], row["accuracy"], row["flops_cut"])
"""

from visipruner.evaluation.matching import AXES, matched, share_cut
from visipruner.evaluation.runner import DENSE, evaluate
from visipruner.evaluation.summary import as_markdown, summarize

__all__ = ["AXES", "DENSE", "as_markdown", "evaluate", "matched", "share_cut", "summarize"]
