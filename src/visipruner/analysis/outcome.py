"""How an altered run's answer compares with the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visipruner.analysis.arrays import Told
from visipruner.analysis.reading import Reading

ROWS_AT_ONCE = 256  # 150 MB of logits for a vocabulary of 150,000


@dataclass(frozen=True)
class Outcome(Told):
    """One variant's effect on the answer.

    Attributes:
        kl: KL(dense || variant) in nats, mean over the dense answer's tokens, each given the dense ones before it.
        logprob: log-probability of the dense answer, in nats; dense_logprob: the same without the change.
        agrees: greedy decoding would give the dense answer, token for token.
        right: greedy decoding would give the right answer: the dense one where that is right, else the known one,
            token for token. None where no right answer is known.
    """

    kl: float
    logprob: float
    dense_logprob: float
    agrees: bool
    right: bool | None


def outcomes(
    reading: Reading, final: Tensor, rows: Sequence[Tensor], unembed: Callable[[Tensor], Tensor]
) -> list[Outcome]:
    """Outcomes of states `final`, `[variants, r, d]`, of the rows `rows` (per variant `[r]`)."""
    answer, right = reading.answer, reading.right
    told_apart = right is not None and right is not answer
    dense = reading.logprobs
    picked = torch.arange(len(answer.tokens))
    wanted = [answer.rows, right.rows] if right is not None and told_apart else [answer.rows]
    places = [[_places(part, present) for part in wanted] for present in rows]
    speaking = [states[torch.cat(found)] for states, found in zip(final, places, strict=True)]
    result = []
    # The head is as large as many layers: reading it once for many rows is what makes a sweep fast.
    for first in range(0, len(speaking), at_once := max(1, ROWS_AT_ONCE // len(speaking[0]))):
        for logits in unembed(torch.stack(speaking[first : first + at_once])):
            logprobs = logits[: len(answer.tokens)].log_softmax(-1)
            kl = (dense.exp() * (dense - logprobs)).sum(-1).mean()
            agrees = bool((logprobs.argmax(-1) == answer.tokens).all())
            is_right: bool | None = None
            if right is not None:
                said = logits[len(answer.tokens) :].argmax(-1)
                is_right = bool((said == right.tokens).all()) if told_apart else agrees
            result.append(
                Outcome(
                    kl=max(0.0, float(kl)),
                    logprob=float(logprobs[picked, answer.tokens].sum()),
                    dense_logprob=float(dense[picked, answer.tokens].sum()),
                    agrees=agrees,
                    right=is_right,
                )
            )
    return result


def _places(wanted: Tensor, present: Tensor) -> Tensor:
    """Positions of row numbers among ascending `present` ones."""
    return torch.searchsorted(present, wanted)
