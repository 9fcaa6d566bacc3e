"""A projector for a late start: its last layer refitted, in closed form, to what visual rows have become by then, as
later layers expect rows that earlier ones have made into something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from visipruner.adapters.llava import ADAPTER
from visipruner.engine.host import Host
from visipruner.engine.patch import check_free
from visipruner.errors import ConfigError, UnsupportedModelError


class _ReachedError(Exception):
    """The forward came to the layer; what follows is not needed."""


@torch.no_grad()
def fit_entry(
    model: LlavaForConditionalGeneration, layer: int, batches: Iterable[Mapping[str, Any]], *, ridge: float = 1e-4
) -> float:
    """Lets the projector say at once what the plain model's first `layer` layers make of its visual rows.

    Ridge regression of the visual rows at the entrance of `layer` on the inputs of the projector's last linear map,
    which is replaced; every row counts by its relative error. Nothing is trained, and one pass through the first
    `layer` layers over a few dozen pictures is enough. Follow it with `align(model, inject_layer=layer)`.

    Args:
        model: a stock LLaVA, as it is when nothing has been injected late.
        layer: the `inject_layer` to be.
        batches: keyword arguments of the model's forward, with `input_ids` and pictures, taken one at a time.
        ridge: added to the diagonal, as a share of its mean.

    Returns:
        The share of the rows' squares that is not met, 0 to 1, on the pictures that were fitted.

    Raises:
        UnsupportedModelError: the model is not a stock LLaVA, or its projector has no bias.
        ConfigError: `layer` is out of range, or `batches` hold no visual rows.
        VisiPrunerError: a pruner is attached to the model.
    """
    reached, last = _fittable(model, layer)
    seen: dict[str, Tensor] = {}
    sums = _Sums()
    with (
        last.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("inputs", inputs[0])),
        reached.register_forward_pre_hook(_reach(seen), with_kwargs=True),
    ):
        for batch in batches:
            try:
                model(**batch)
            except _ReachedError:
                visual = batch["input_ids"] == model.config.image_token_id
                if "inputs" in seen:  # not where a batch has no picture
                    sums.add(seen.pop("inputs").flatten(0, -2), seen["rows"][visual])
    solution, unexplained = sums.solve(ridge)
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])
    return unexplained


def _fittable(model: LlavaForConditionalGeneration, layer: int) -> tuple[nn.Module, nn.Linear]:
    """The layer that rows are to reach, and the projector's last map. Raises what `fit_entry` says."""
    if type(model) is not LlavaForConditionalGeneration:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no projector to fit; give a stock LLaVA, before align."
        )
    host = Host.of(model, ADAPTER)
    check_free(host)
    layers = host.layers
    if not 1 <= layer < len(layers):
        raise ConfigError(f"layer must be 1 to {len(layers) - 1} in this model, got {layer}.")
    last: nn.Linear = model.model.multi_modal_projector.linear_2
    if last.bias is None:
        raise UnsupportedModelError("A projector without a bias (multimodal_projector_bias=False) cannot be fitted.")
    return layers[layer], last


def _reach(seen: dict[str, Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["rows"] = args[0] if args else kwargs["hidden_states"]
        raise _ReachedError

    return hook


class _Sums:
    """Sums of products in double precision, so that memory does not grow with the number of pictures."""

    def __init__(self) -> None:
        self.count = 0
        self.inner: Tensor | None = None  # [d + 1, d + 1]
        self.cross: Tensor | None = None  # [d + 1, d_model]

    def add(self, inputs: Tensor, rows: Tensor) -> None:
        """`inputs` `[n, d]` of the projector's last map and the `rows` `[n, d_model]` that became of them."""
        if len(inputs) != len(rows):
            raise ConfigError(
                f"The pictures give {len(inputs)} visual rows and the prompts have room for {len(rows)}; "
                "make both with the model's processor."
            )
        rows = rows.double()
        scale = 1 / rows.norm(dim=-1, keepdim=True)
        inputs = nn.functional.pad(inputs.double(), (0, 1), value=1.0) * scale
        inner, cross = inputs.T @ inputs, inputs.T @ (rows * scale)
        self.inner = inner if self.inner is None else self.inner + inner
        self.cross = cross if self.cross is None else self.cross + cross
        self.count += len(rows)

    def solve(self, ridge: float) -> tuple[Tensor, float]:
        """`[d + 1, d_model]`, the bias last, and the share of the rows' squares that it misses."""
        if self.inner is None or self.cross is None or not self.count:
            raise ConfigError("There are no visual rows to fit; give batches with pictures.")
        damped = self.inner + ridge * self.inner.diagonal().mean() * torch.eye(len(self.inner)).to(self.inner)
        solution = torch.linalg.solve(damped, self.cross)
        # Every row was scaled to length 1.
        missed = self.count - 2 * (solution * self.cross).sum() + (solution * (self.inner @ solution)).sum()
        return solution, float(missed) / self.count
