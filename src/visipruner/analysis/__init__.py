"""See how a multimodal model uses its visual tokens: knockouts, lenses, influence, stages.

    from visipruner import analysis

    with analysis.Probe(model) as probe:
        reading = probe.read(inputs, processor.tokenizer, right="a cat")
        analysis.attention_knockout(probe, reading, layers=range(6))       # kl, agrees, right, logprob
        analysis.sweep(probe, reading, "window", window=3)["kl"].values    # [layers]
    stages = analysis.find_stages(model, processor, samples)
    stages.pruner.save_pretrained("calibrated")

Every experiment of the paper's first half is one function here; `analyze` (and `visipruner analyze`) runs them all on
data and writes a report.
"""

from visipruner.analysis.gaze import attention_weights, leading_layer, logit_lens, value_lens, visual_attention
from visipruner.analysis.knockout import (
    attention_knockout,
    discard,
    freeze,
    freeze_blocks,
    keep_only,
    remove_from_cache,
    shallow_ablations,
    skip,
    sweep,
)
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.rerun import Outcome
from visipruner.analysis.result import Labelled, Result
from visipruner.analysis.run import Analysis, analyze, find_stages
from visipruner.analysis.scores import compare_scores, token_influence
from visipruner.analysis.stages import Stages
from visipruner.analysis.study import Study

__all__ = [
    "Analysis",
    "Labelled",
    "Outcome",
    "Probe",
    "Reading",
    "Result",
    "Stages",
    "Study",
    "analyze",
    "attention_knockout",
    "attention_weights",
    "compare_scores",
    "discard",
    "find_stages",
    "freeze",
    "freeze_blocks",
    "keep_only",
    "leading_layer",
    "logit_lens",
    "remove_from_cache",
    "shallow_ablations",
    "skip",
    "sweep",
    "token_influence",
    "value_lens",
    "visual_attention",
]
