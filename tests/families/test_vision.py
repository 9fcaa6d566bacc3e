"""Families whose vision tower can be looked at: which patches a visual token is made of, and a method that uses it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.families.test_matrix import CELLS
from tests.families.zoo import FAMILIES, adapter_of, built, inputs, prompt, visual_rows
from visipruner.adapters.base import submodule
from visipruner.engine.vision import tower_layers

LOOKED_AT = [name for name in FAMILIES if adapter_of(name).vision and name != "pixtral"]
FASTERVLM = vp.FasterVLM(keep_ratio=0.5, vision_layer=-1)
VISIONZIP = vp.VisionZip(keep_ratio=0.5)


def _entering(name: str, model: Any, prepared: dict[str, Any]) -> Tensor:
    """Hidden states `[n, d]` of the visual rows before layer 0."""
    seen: list[Tensor] = []
    decoder = model.get_decoder()
    assert decoder is not None
    layers: Any = decoder.layers
    hook = layers[0].register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args or (kwargs.get("hidden_states"),))[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(**prepared)
    hook.remove()
    return seen[0][0][visual_rows(prepared["input_ids"])[0]]


# LLaVA takes its features before the last layer; there, a token is a patch.
@pytest.mark.parametrize("name", [name for name in LOOKED_AT if not name.startswith("llava")])
def test_a_token_is_made_of_its_windows_patches(name: str) -> None:
    """One patch is changed after the tower's layers; only its token may change, and the view must say so too."""
    model = deepcopy(built(name, "eager"))
    for parameter in model.parameters():
        if not bool(parameter.any()):  # Gemma 3 starts with a connector of zeros, through which nothing is seen
            torch.nn.init.normal_(parameter)
    tower = submodule(model, adapter_of(name).vision)
    assert tower is not None
    prepared = inputs(name, [prompt(name, [3, 0, 4])])
    plain = _entering(name, model, prepared)
    for patch in (0, 3, 9):

        def bump(_module: Any, _args: Any, output: Any, patch: int = patch) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[0, states.shape[1] % 4 + patch] += 7 * torch.randn(states.shape[-1])
            return (states, *output[1:]) if isinstance(output, tuple) else states

        hook = tower_layers(tower)[-1].register_forward_hook(bump)
        moved = (_entering(name, model, prepared) - plain).abs().amax(-1) > 1e-6
        hook.remove()
        changed = moved.nonzero().flatten().tolist()
        with vp.attach(model, FASTERVLM) as handle, torch.no_grad():
            tap = handle._tap
            assert tap is not None
            tap.clear = lambda: None  # type: ignore[method-assign]
            model(**prepared)
            images, tokens, window = tap.images_of([len(plain)])
            view = tap.view(-1, images[0][0], tokens, window)
            one_hot = torch.zeros(view.queries.shape[1] - view.prefix)
            one_hot[patch] = 1
        assert changed == view._of_tokens(one_hot).nonzero().flatten().tolist(), (patch, window)


@pytest.mark.parametrize("method", [FASTERVLM, VISIONZIP], ids=lambda m: m.name)
@pytest.mark.parametrize(("name", "attn"), [cell for cell in CELLS if cell[0] in LOOKED_AT])
def test_a_batch_gives_what_its_examples_give_alone(name: str, method: vp.Pruner, attn: str) -> None:
    model = built(name, attn)
    prompts = [prompt(name, [3, 0, 4]), prompt(name, [5, 0, 2, 0, 3], seed=2)]
    with vp.attach(model, method) as handle, torch.no_grad():
        model(**inputs(name, prompts))
        together = handle.trace.kept
        model.generate(**inputs(name, prompts), max_new_tokens=2, num_beams=2, do_sample=False)
        beams = handle.trace.kept
        for example, one in enumerate(prompts):
            model(**inputs(name, [one]))
            assert handle.trace.kept[0] == together[example] == beams[2 * example]
            assert 0 < len(together[example][0]) <= handle.trace[0].num_visual // 2 + 1
