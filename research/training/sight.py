"""Vision tower (LoRA) and projector, trained to say in the language model's words what each patch shows."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.training.targets import PatchLabels, PatchTargets
from visipruner_testbed.assembly.lora import add_lora, load_lora
from visipruner_testbed.assembly.trained import PROJECTOR, VISION, part_of


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """[batch, 3, height, width] -> [batch, patches, channels]: the hidden states that the projector reads, side by
    side."""
    tower = model.model.vision_tower
    states = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states
    return torch.cat([states[layer][:, 1:] for layer in model.config.vision_feature_layer], dim=-1).float()


class Sight(nn.Module):
    """Vision tower with LoRA and a projector of standardised features, trained to name patches.

    The channels' means and deviations are those of the first pictures; `state` folds them into the projector's first
    layer, in place of a layer norm that the stock class does not have.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, rank: int, first_pixels: Tensor
    ) -> None:
        super().__init__()
        self.model, self.targets = model, PatchTargets(model, processor)
        self.scale = self.targets.embeddings.std()
        with torch.no_grad():
            features = vision_features(model, first_pixels).flatten(0, 1)
        self.mean, self.deviation = features.mean(dim=0), features.std(dim=0) + 1e-4
        model.requires_grad_(False)
        self.adapted = add_lora(model.model.vision_tower, rank)
        projector = model.model.multi_modal_projector
        self.first = nn.Linear(len(self.mean), projector.linear_1.out_features)
        self.second = nn.Linear(projector.linear_2.in_features, projector.linear_2.out_features)
        self.distance_share = 1.0
        self.gains = nn.Parameter(torch.tensor([15.0, 15.0, 15.0, -2.0, 15.0]))
        self.centre = self.targets.embeddings.mean(dim=0) / self.scale
        self.heads = {
            "names": _directions(self.targets.embeddings),
            "colors": _directions(self.targets.colors),
            "rows": _directions(self.targets.rows),
            "columns": _directions(self.targets.columns),
            "mark": nn.functional.normalize(self.targets.mark, dim=0),
        }

    def lora(self) -> list[nn.Parameter]:
        """The vision tower's trained factors."""
        return [factor for module in self.adapted.values() for factor in (module.lora_a, module.lora_b)]

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch * patches, d_model], in units of the embeddings' deviation."""
        normed = (vision_features(self.model, pixels).flatten(0, 1) - self.mean) / self.deviation
        if self.training:
            normed = normed + 0.1 * torch.randn_like(normed)
        out: Tensor = self.second(nn.functional.gelu(self.first(normed)))
        return out

    def loss(self, out: Tensor, labels: PatchLabels) -> Tensor:
        """Squared distance to the targets plus cross-entropies of names, colours, places and marks.

        Things and background weigh alike.
        """
        background = labels.known & (labels.names >= self.targets.first_background)
        background &= labels.names < self.targets.first_written
        things = labels.known & ~background
        weights = things / things.sum().clamp(min=1) + background / background.sum().clamp(min=1)
        centred = out - self.centre
        distance = ((out - labels.vectors / self.scale) ** 2).mean(dim=1)
        unit = nn.functional.normalize(centred, dim=1)
        named = _entropy(self.gains[0] * unit @ self.heads["names"].T, labels.names)
        colored = _entropy(self.gains[1] * unit @ self.heads["colors"].T, labels.colors)
        placed = _entropy(self.gains[4] * unit @ self.heads["rows"].T, labels.rows)
        placed = placed + _entropy(self.gains[4] * unit @ self.heads["columns"].T, labels.columns)
        marks = nn.functional.binary_cross_entropy_with_logits(
            self.gains[2] * unit @ self.heads["mark"] + self.gains[3], labels.marked.float(), reduction="none"
        )
        total: Tensor = (weights * (self.distance_share * distance + 0.5 * (named + colored + placed) + marks)).sum()
        return total

    @torch.no_grad()
    def go_on(self, state: dict[str, Tensor]) -> None:
        """Begin with what was learnt before, the inverse of `state`, and learn directions alone from now on: a language
        model that has learnt with this projector needs no embeddings of the right length, and has moved it away from
        them. Raises ConfigError for another rank."""
        load_lora(self.adapted, part_of(state, VISION))
        projector = part_of(state, PROJECTOR)
        self.first.weight.copy_(projector["linear_1.weight"] * self.deviation)
        self.first.bias.copy_(projector["linear_1.bias"] + projector["linear_1.weight"] @ self.mean)
        self.second.weight.copy_(projector["linear_2.weight"] / self.scale)
        self.second.bias.copy_(projector["linear_2.bias"] / self.scale)
        self.distance_share = 0.0

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """What was learnt, under the names it ships with: stock projector, LoRA factors of the vision tower."""
        weight = self.first.weight / self.deviation
        state = {
            PROJECTOR + "linear_1.weight": weight,
            PROJECTOR + "linear_1.bias": self.first.bias - weight @ self.mean,
            PROJECTOR + "linear_2.weight": self.second.weight * self.scale,
            PROJECTOR + "linear_2.bias": self.second.bias * self.scale,
        }
        for name, module in self.adapted.items():
            state[f"{VISION}{name}.lora_a"] = module.lora_a
            state[f"{VISION}{name}.lora_b"] = module.lora_b
        return {name: value.detach().clone() for name, value in state.items()}


def _directions(embeddings: Tensor) -> Tensor:
    return nn.functional.normalize(embeddings - embeddings.mean(dim=0), dim=-1)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")


def as_pixels(image_processor: Any, pictures: list[Image.Image], size: int) -> Tensor:
    """[pictures, 3, size, size]: the processor's own preparation at another size."""
    square = {"height": size, "width": size}
    pixels: Tensor = image_processor(pictures, size=square, crop_size=square, return_tensors="pt")["pixel_values"]
    return pixels
