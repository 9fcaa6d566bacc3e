"""Recorded runs of the methods' released codes; data/parity/README.md names the origin of each."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.released import FORCED, embeds, llama, llava, picture_prompt
from visipruner.contract.entry_view import Image
from visipruner.contract.vision_view import Crop, VisionView
from visipruner.fitting import Trials
from visipruner.pruners.fitprune import plain_masses, recipe
from visipruner.pruners.prumerge import PruMerge
from visipruner.pruners.registry import make

FOLDER = Path(os.environ.get("PARITY_FOLDER", Path(__file__).parents[1] / "data" / "parity"))
RECORDED = {path.stem: json.loads(path.read_text())["cases"] for path in sorted(FOLDER.glob("*.json"))}
PARTS = {"fitprune_fit", "prumerge_features"}  # of which no whole run was recorded
RUNS = [(name, number) for name, cases in RECORDED.items() if name not in PARTS for number in range(len(cases))]
METHODS = {
    "divprune",
    "dycoke",
    "evs",
    "fastervlm",
    "fastv",
    "fastv_cached",
    "fitprune",
    "fitprune_fit",
    "hiprune",
    "ivc_prune",
    "priortr",
    "prumerge_features",
    "pyramiddrop",
    "scope",
    "shortv",
    "vidcom2",
    "visipruner",
    "vtw",
}


@cache
def _model(**made_of: Any) -> Any:
    return llava(made_of["llava"]) if "llava" in made_of else llama(**made_of)


def _pruner(method: str, settings: dict[str, Any]) -> vp.Pruner:
    return vp.VisiPruner.reference(**settings) if method == "visipruner-reference" else make(method, **settings)


def _prompt(**made_of: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """What the model is called with, and the mask of visual rows where it does not find them itself."""
    if "llava" in made_of:
        return picture_prompt(made_of["llava"]), None
    rows, mask = embeds(**made_of)
    return {"inputs_embeds": rows}, mask


@pytest.mark.parametrize(("name", "number"), RUNS)
def test_the_released_code_is_reproduced(name: str, number: int) -> None:
    case = RECORDED[name][number]
    model, (prompt, mask) = _model(**case["model"]), _prompt(**case["prompt"])
    with vp.attach(model, _pruner(case["method"], case["settings"]), mask) as handle, torch.no_grad():
        output = model(**prompt, use_cache=True)
        logits = [output.logits[0, -1]]
        trace = handle.trace[0]
        for token in FORCED[: len(case["logits"]) - 1]:
            output = model(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits[0, -1])
    torch.testing.assert_close(torch.stack(logits), torch.tensor(case["logits"]), atol=1e-4, rtol=0)
    for layer, kept in case.get("kept") or []:
        assert trace.kept[layer] == kept, layer
    if case.get("key_lengths"):
        assert trace.key_lengths == case["key_lengths"]


@pytest.mark.parametrize("number", range(len(RECORDED["fitprune_fit"])))
def test_fitprunes_fit_is_reproduced(number: int) -> None:
    """The tokens that the released code removes after each layer for one alpha."""
    case = RECORDED["fitprune_fit"][number]
    model, (rows, mask) = _model(seed=0), embeds(case["seed"], text=20)
    trials = Trials(model, [{"inputs_embeds": rows}], mask)
    removed = recipe(trials, case["alpha"], plain_masses(trials))
    assert [round(576 * part, 6) for part in removed] == case["removed"]


@pytest.mark.parametrize("number", range(len(RECORDED["prumerge_features"])))
def test_what_prumerge_hands_to_the_projector_is_reproduced(number: int) -> None:
    """The released code merges the tower's features; the same here, in the order of the image and not of attention."""
    case = RECORDED["prumerge_features"][number]
    model, (prompt, _) = _model(**case["model"]), _prompt(**case["prompt"])
    tower, held = model.model.vision_tower, dict[str, Tensor]()
    for name in ("q_proj", "k_proj"):
        getattr(tower.encoder.layers[-1].self_attn, name).register_forward_hook(
            lambda _module, _args, output, name=name: held.update({name: output[0].unflatten(-1, (2, -1))})
        )
    with torch.no_grad():
        states = tower(prompt["pixel_values"], output_hidden_states=True).hidden_states[-2][0]
    queries, keys = (held[name].transpose(0, 1) for name in ("q_proj", "k_proj"))
    features, everyone = states[1:], torch.arange(len(states) - 1)
    view = VisionView([Crop(queries, keys, states, keys.shape[-1] ** -0.5)], prefix=1, patches=everyone[:, None])
    merged = PruMerge(plus=case["plus"]).choose_in(Image(everyone, everyone, (24, 24), 576), 576, [view], features)
    expected = torch.tensor(case["features"])
    states = merged.states[:, : expected.shape[1]]
    same = torch.cdist(states, expected).argmin(-1)
    assert sorted(same.tolist()) == list(range(len(expected)))
    torch.testing.assert_close(states, expected[same], atol=1e-4, rtol=0)


def test_a_case_of_every_method_is_there() -> None:
    assert set(RECORDED) == METHODS
    assert all(RECORDED.values())
