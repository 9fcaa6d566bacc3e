"""The sparse middle: top-n visual tokens by influence, as gates that harden while the temperature falls.

Influence is the paper's (section 4.2): the length of what token j brings to the last prompt row's attention output,
||c_j|| = ||concat_h a_hj v_hj||.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12


def log_influence(attention: Tensor, values: Tensor, visual: Tensor) -> Tensor:
    """`[rows, n_v]` float32, log ||c_j|| for every row, differentiable.

    Args:
        attention: `[heads, rows, n]` float32 softmax weights. values: `[kv_heads, n, head_dim]`.
        visual: `[n_v]` long, columns of the visual tokens.
    """
    weights = attention[..., visual].square()
    lengths = values[:, visual].float().square().sum(-1)
    groups = weights.view(lengths.shape[0], -1, *weights.shape[1:])
    return 0.5 * ((groups * lengths[:, None, None]).sum((0, 1)) + _LEAST).log()


def log_gates(scores: Tensor, keep: int, temperature: float) -> Tensor:
    """`[rows, n_v]`: log of sigmoid((score - threshold) / temperature), the threshold halfway between the n-th and
    the next score. Its exponentials sum to about `keep`; at temperature 0 they are the top n."""
    if keep >= scores.shape[-1]:
        return torch.zeros_like(scores)
    best = scores.detach().topk(keep + 1, dim=-1).values
    threshold = (best[..., keep - 1] + best[..., keep])[..., None] / 2
    return torch.nn.functional.logsigmoid((scores - threshold) / temperature)


def top_tokens(scores: Tensor, keep: int) -> Tensor:
    """`[k]` long, ascending positions of the `keep` largest of `[n_v]` scores, ties to the first."""
    order = scores.sort(descending=True, stable=True).indices
    return order[:keep].sort().values
