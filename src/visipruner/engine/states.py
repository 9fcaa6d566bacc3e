"""Layers that pass a state from row to row (linear attention, convolutions) in place of attending.

To such a layer a dropped row was never there: it runs on the shortened sequence, and its cache keeps the state of that.
A state must not run from one example into the next, so examples that are packed one after another are parted and padded
on the left while the state passes through them. What a method would look at here it looks at in the next layer that
attends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from visipruner.contract.entry_view import Recurrence
from visipruner.contract.layer_view import LayerView
from visipruner.contract.layout import uploaded
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.training_run import TrainingPruner
from visipruner.engine.host import Host
from visipruner.engine.live_rows import LiveRows
from visipruner.errors import UnsupportedModelError


class StateLayers:
    """Those of one forward after `past` older rows; of one session."""

    def __init__(self, host: Host, pruner: Pruner, live: LiveRows, past: int) -> None:
        self._host, self._layers, self._live, self._past = host, host.states, live, past
        self._may_wait, self._is_blind = pruner.in_states == "next", pruner.in_states == "ask"

    def __contains__(self, layer: int) -> bool:
        return layer in self._layers

    # ---- the state passes -------------------------------------------------------------------------------------------

    @property
    def are_parted(self) -> bool:
        """Whether examples are packed one after another, and must be parted."""
        return self._live.is_packed and len(self._live.layouts) > 1

    def enter(self, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Packed rows `[1, n, d]` as `[batch, longest, d]`, padded on the left, and the mask that says so."""
        places, _, real = self._padded()
        batch = len(self._live.layouts)
        wide = hidden[0].index_select(0, places).view(batch, -1, hidden.shape[-1])
        return wide, {**kwargs, "attention_mask": real}

    def leave(self, output: Tensor) -> Tensor:
        """`[batch, longest, d]` back to `[1, n, d]`."""
        return output.flatten(0, 1).index_select(0, self._padded()[1]).unsqueeze(0)

    def _padded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where every row of the padded batch is among the packed ones, where every packed row is in the padded batch,
        and `[batch, longest]` bool, which rows are no padding: None for all."""
        return self._live.once("states", self._found)

    def _found(self) -> tuple[Tensor, Tensor, Tensor | None]:
        one, rows = self._host.layers[min(self._layers)], self._live.rows
        if torch.is_grad_enabled() and one.training and getattr(one, "gradient_checkpointing", False):
            raise UnsupportedModelError(
                "Gradient checkpointing repeats layers when it is no longer known where one prompt of a batch ends, "
                "and states would run on into the next; pass one prompt at a time, or turn it off."
            )
        stops = np.array([[span.stop] for span in rows.spans])
        places = stops - max(rows.lengths) + np.arange(max(rows.lengths))
        real = places >= np.array([[span.start] for span in rows.spans])
        if self._past and not real.all():
            raise UnsupportedModelError(
                "These prompts go on from states of earlier turns and keep unlike numbers of rows, so padding would "
                "change their states; pass them one by one."
            )
        device = rows.flat.device
        taken, given = np.where(real, places, 0).flatten(), np.flatnonzero(real)
        mask = None if real.all() else uploaded(real, device)
        return uploaded(taken, device), uploaded(given, device), mask

    def rows(self, seq: int) -> int:
        """Rows of an example that the state passes through, padding included; `seq` where those of the host run."""
        return max(self._live.rows.lengths) if self._live.is_packed else seq

    # ---- what a method looks at -------------------------------------------------------------------------------------

    def looked_at(self, layer: int, run: PromptRun) -> int | None:
        """The layer whose attention a run looks at once that of `layer` ran: this one, or the last before it that has
        none; None where it does not look."""
        if run.observes(layer):
            return layer
        before = layer - 1
        while self._may_wait and before in self._layers:
            if run.observes(before):
                return before
            before -= 1
        return None

    def select(self, layer: int, run: PromptRun, view: LayerView) -> Tensor | None:
        """The run's answer after the attention of `layer`."""
        asked = self.looked_at(layer, run)
        assert asked is not None
        kept = run.select(asked, view)
        if run.trigger_layer == asked:  # said by the run itself; rows leave after the layer that was looked at
            run.trigger_layer = layer
        return kept

    def blind_view(self, layer: int, example: int, run: PromptRun) -> LayerView | None:
        """What a method is shown here that looks at nothing but which tokens are present; None where it is not asked.

        There are no keys: tensors without memory stand in their place, with which nothing can be computed.
        """
        live = self._live
        if not (self._is_blind and live.tokens[example].numel() and run.observes(layer)):
            return None
        none = torch.empty(1, live.rows.lengths[example], 1, device="meta")
        rows = torch.arange(live.rows.lengths[example], device=live.rows.flat.device)
        where = (rows, rows, live.visual_among(example))
        return LayerView(none, none, none, *where, live.tokens[example], live.layouts[example], 1.0, lambda _: None)


_DELTA_RULE = ("in_proj_qkv", "in_proj_a", "in_proj_b", "conv1d", "A_log", "dt_bias", "num_v_heads", "num_k_heads")


def recurrence_of(host: Host, layer: int, states: Tensor) -> Recurrence:
    """What hidden states `[n, d]` of one example do to the state of `layer`, a gated delta rule in stock modules."""
    mixer: Any = host.attentions[layer]
    norm = getattr(host.layers[layer], "input_layernorm", None)
    if layer not in host.states or norm is None or not all(hasattr(mixer, name) for name in _DELTA_RULE):
        raise UnsupportedModelError(
            f"Layer {layer} of {host.adapter.family} keeps no state by a gated delta rule, which this method reads; "
            "choose settings with which it reads another layer's, or another method."
        )
    hidden = norm(states)[None]
    mixed = mixer.conv1d(mixer.in_proj_qkv(hidden).transpose(1, 2))[0, :, : len(states)].T
    sizes = [mixer.key_dim, mixer.key_dim, mixer.value_dim]
    queries, keys, values = ACT2FN[mixer.activation](mixed).float().split(sizes, -1)
    heads, each = mixer.num_v_heads, mixer.num_v_heads // mixer.num_k_heads
    queries, keys = (
        functional.normalize(part.unflatten(-1, (mixer.num_k_heads, -1)), dim=-1).repeat_interleave(each, 1)
        for part in (queries, keys)
    )
    fading = mixer.A_log.float().exp() * functional.softplus(mixer.in_proj_a(hidden)[0].float() + mixer.dt_bias.float())
    return Recurrence(
        queries.transpose(0, 1),
        keys.transpose(0, 1),
        values.unflatten(-1, (heads, -1)).transpose(0, 1),
        decay=(-fading).exp().T,
        rate=mixer.in_proj_b(hidden)[0].float().sigmoid().T,
    )


# ---- what is refused ------------------------------------------------------------------------------------------------


def check_states(host: Host, pruner: Pruner) -> None:
    """Raises UnsupportedModelError where a method would do to a layer without attention what only attention has."""
    if not host.states:
        if pruner.reads_states:
            raise UnsupportedModelError(
                f"{pruner.name} reads the state that linear attention passes from row to row, and no layer of "
                f"{host.adapter.family} has one; choose another method."
            )
        return
    is_trained = isinstance(pruner, TrainingPruner)
    routed = [layer for layer in sorted(host.states) if is_trained or not pruner.routing(layer).is_plain]
    if routed:
        raise UnsupportedModelError(
            f"{pruner.name} with these settings changes attention edges, of which layer {routed[0]} of "
            f"{host.adapter.family} has none; choose a method that only drops tokens, or for visipruner stages without "
            "'shallow'."
        )
    run, last = pruner.start(), max(set(range(len(host.layers))) - host.states)
    looks = [layer for layer in range(len(host.layers)) if run.observes(layer)]
    lost = [layer for layer in looks if layer in host.states]
    is_late = pruner.in_states == "next" and bool(looks) and min(looks) > last
    if is_late or (pruner.in_states == "error" and lost):
        raise no_attention(host, lost[0])


def no_attention(host: Host, layer: int) -> UnsupportedModelError:
    """What is said where a method looks at the attention of a layer that has none."""
    others = ", ".join(str(other) for other in range(len(host.layers)) if other not in host.states)
    return UnsupportedModelError(
        f"Layer {layer} of {host.adapter.family} has no attention that a method could look at; choose settings with "
        f"which it looks at one of layers {others}, or a method that does not look."
    )
