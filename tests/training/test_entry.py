"""The fitted projector against a plain least-squares solution, and what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import GRID, llava_inputs, llava_model
from visipruner import ConfigError, attach
from visipruner.errors import UnsupportedModelError, VisiPrunerError
from visipruner.pruners.vtw import VTW
from visipruner.training import align, fit_entry

VISUAL = GRID * GRID


def pictures(count: int = 6) -> Iterator[dict[str, Any]]:
    """Batches of two prompts, the first with two pictures."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        inputs = llava_inputs([[4, 0, 6, 0], [3, 0, 2]])
        shape = inputs["pixel_values"].shape
        yield {**inputs, "pixel_values": torch.randn(shape, generator=generator)}


def rows_at(model: Any, layer: int, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the projector's last map reads, and the visual rows at the entrance of `layer`."""
    seen: list[Tensor] = []
    last = model.model.multi_modal_projector.linear_2
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    hook.remove()
    visual = batch["input_ids"] == model.config.image_token_id
    return seen[0].flatten(0, -2), states[layer][visual]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_it_is_the_weighted_ridge_solution(attn: str) -> None:
    ridge, layer = 1e-3, 2
    model = llava_model(attn=attn)
    parts = [rows_at(model, layer, batch) for batch in pictures()]
    inputs, rows = (torch.cat(part).double() for part in zip(*parts, strict=True))
    weights = 1 / rows.norm(dim=-1, keepdim=True)
    left = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1) * weights
    damping = (ridge * (left.T @ left).diagonal().mean()).sqrt() * torch.eye(left.shape[1])
    wanted = torch.linalg.lstsq(
        torch.cat([left, damping]), torch.cat([rows * weights, torch.zeros(left.shape[1], rows.shape[1])])
    ).solution
    missed = fit_entry(model, layer, pictures(), ridge=ridge)
    last = model.model.multi_modal_projector.linear_2
    torch.testing.assert_close(last.weight, wanted[:-1].T.float(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(last.bias, wanted[-1].float(), atol=1e-5, rtol=1e-3)
    again = (left @ wanted - rows * weights).pow(2).sum() / len(rows)
    assert missed == pytest.approx(float(again), rel=1e-6)


def test_layers_that_change_nothing_give_the_projector_back() -> None:
    model = llava_model()
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    batch = next(pictures())
    before = model.model.get_image_features(batch["pixel_values"]).pooler_output
    assert fit_entry(model, 3, pictures(12), ridge=1e-9) < 1e-6
    after = model.model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.cat(list(after)), torch.cat(list(before)), atol=1e-4, rtol=1e-3)


def test_late_rows_are_then_nearer_to_the_plain_model() -> None:
    """On pictures that were not fitted; all else untouched."""
    *fitted, held_out = pictures(25)
    model, layer = llava_model(), 3
    _, wanted = rows_at(model, layer, held_out)

    def missed() -> float:
        """What the projector says and the plain model's rows of the layer are apart, relative to the latter."""
        said = torch.cat(list(model.model.get_image_features(held_out["pixel_values"]).pooler_output))
        return float(((said.detach() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).mean())

    before = missed()
    others = {name: p.clone() for name, p in model.named_parameters() if "linear_2" not in name}
    fit_entry(model, layer, fitted)
    for name, parameter in others.items():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert missed() < 0.75 * before


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ConfigError, match="1 to 5"):
        fit_entry(llava_model(), 0, pictures())
    with pytest.raises(ConfigError, match="no visual rows"):
        fit_entry(llava_model(), 2, [])
    with pytest.raises(UnsupportedModelError, match="before align"):
        fit_entry(align(llava_model(), inject_layer=2), 2, pictures())
    model = llava_model()
    with attach(model, VTW(layer=2)), pytest.raises(VisiPrunerError, match="attached already"):
        fit_entry(model, 2, pictures())
    with pytest.raises(ConfigError, match="no visual rows"):
        fit_entry(model, 2, [{"input_ids": torch.tensor([[3, 4, 5]])}])
    assert not model.model.multi_modal_projector.linear_2._forward_pre_hooks
    model.model.multi_modal_projector.linear_2.bias = None
    with pytest.raises(UnsupportedModelError, match="without a bias"):
        fit_entry(model, 2, pictures())
