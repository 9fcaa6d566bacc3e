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
from visipruner.fitting import Trials
from visipruner.pruners.fitprune import plain_masses, recipe
from visipruner.pruners.registry import make

FOLDER = Path(os.environ.get("PARITY_FOLDER", Path(__file__).parents[1] / "data" / "parity"))
RECORDED = {path.stem: json.loads(path.read_text())["cases"] for path in sorted(FOLDER.glob("*.json"))}
RUNS = [(name, number) for name, cases in RECORDED.items() if name != "fitprune_fit" for number in range(len(cases))]
METHODS = {
    "divprune",
    "fastervlm",
    "fastv",
    "fastv_cached",
    "fitprune",
    "fitprune_fit",
    "hiprune",
    "pyramiddrop",
    "shortv",
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


def test_a_case_of_every_method_is_there() -> None:
    assert set(RECORDED) == METHODS
    assert all(RECORDED.values())
