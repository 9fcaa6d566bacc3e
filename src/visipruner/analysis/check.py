"""Do proposed settings hold on images that were not analysed? Real pruning, real generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from visipruner.analysis.intervals import Bootstrap
from visipruner.chat import chat_inputs, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import is_right, normalize
from visipruner.images import open_image
from visipruner.pruners.none import NoPruning


def check(
    model: Any,
    processor: Any,
    pruners: Mapping[str, Pruner],
    samples: Sequence[Sample],
    max_new_tokens: int = 32,
) -> Iterator[dict[str, Any]]:
    """Yields one row a method, the dense model first: accuracy, agreement with dense, FLOPs cut.

    Accuracy (None where an answer is not known) and agreement come with 95 % intervals over images; `flops_cut` is
    the mean share of the prompt's multiply-adds that was not done.
    """
    images = [sample.image for sample in samples]
    bootstrap = Bootstrap(images)
    dense: list[str] = []
    for name, pruner in {"dense": NoPruning(), **pruners}.items():
        texts, cuts = [], []
        for sample in samples:
            inputs = chat_inputs(model, processor, open_image(sample.image), sample.question)
            with attach(model, pruner) as handle:
                texts.append(greedy_reply(model, processor.tokenizer, inputs, max_new_tokens).text)
                cuts.append(handle.trace.flops_cut(0))
        dense = dense or texts
        same = np.array([[float(normalize(a) == normalize(b))] for a, b in zip(texts, dense, strict=True)])
        accuracy = None
        if all(sample.answers for sample in samples):
            right = [[float(any(is_right(t, a) for a in s.answers))] for t, s in zip(texts, samples, strict=True)]
            accuracy = bootstrap.interval(lambda curve: float(curve[0]), np.array(right)).to_dict()
        agreement = bootstrap.interval(lambda curve: float(curve[0]), same).to_dict()
        yield {
            "name": name,
            "samples": len(samples),
            "images": len(set(images)),
            "settings": pruner.settings(),
            "accuracy": accuracy,
            "agreement": agreement,
            "flops_cut": float(np.mean(cuts)),
        }
