"""The part of the model that was trained and ships: projector and LoRA factors of vision tower and language model in
one safetensors file, beside the recipe that made them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from visipruner.errors import VisiPrunerError
from visipruner.files import write_atomic, write_json
from visipruner_testbed.assembly.lora import fold_lora

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
TRAINED_FILE = "trained.safetensors"
RECIPE_FILE = "recipe.json"
PROJECTOR, VISION = "multi_modal_projector.", "vision_tower."


def load_trained(path: Path) -> dict[str, Tensor]:
    """The tensors of a trained file. Raises VisiPrunerError when it is missing or damaged."""
    try:
        return dict(load_file(path))
    except (FileNotFoundError, SafetensorError) as error:
        raise VisiPrunerError(
            f"The trained weights {path} are missing or damaged; get them from the repository, "
            "or make them there with `python -m research train`."
        ) from error


def counts_aloud(folder: Path) -> bool:
    """Whether the weights in `folder` were taught to answer a count with its tally (`Recipe.tallying`)."""
    recipe: dict[str, Any] = json.loads((folder / RECIPE_FILE).read_text())["recipe"]
    return bool(recipe.get("tallying", False))


def fold_trained(model: LlavaForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Put the projector in place and add the LoRA updates to the model's own weights: the result is a plain model."""
    fold_sight(model, state)
    fold_lora(model.model.language_model, language_part(state))


def fold_sight(model: LlavaForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Projector and vision tower only."""
    model.model.multi_modal_projector.load_state_dict(part_of(state, PROJECTOR))
    fold_lora(model.model.vision_tower, part_of(state, VISION))


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, in float32 and without the prefix."""
    return {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}


def language_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The language model's LoRA factors."""
    return {name: value.float() for name, value in state.items() if not name.startswith((PROJECTOR, VISION))}


def export_trained(checkpoint: Path, folder: Path = WEIGHTS_FOLDER) -> Path:
    """Copy a training checkpoint's weights, as bfloat16, and its recipe to where the package reads them."""
    state = {
        name: value.to(torch.bfloat16).contiguous() for name, value in load_trained(checkpoint / TRAINED_FILE).items()
    }
    recipe: dict[str, Any] = json.loads((checkpoint / RECIPE_FILE).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "licence": "Apache-2.0"}
    write_atomic(folder / TRAINED_FILE, lambda part: save_file(state, part, metadata=metadata))
    write_json(folder / RECIPE_FILE, recipe, indent=1)
    return folder / TRAINED_FILE
