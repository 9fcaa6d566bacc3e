"""Warm start of the projector: each patch is mapped to the language model's own embedding of what the patch shows.

From a random projector nothing is seen within hundreds of pictures; after this the pictures already read as words.
The target of a patch is the embedding of its thing's name, plus, smaller, those of its colour (where it has one) and
of its place ("top", "left", ...).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from visipruner.testbed.scenes import TRAIN_STYLES, EmojiArt, Example, LayoutOptions, draw_example
from visipruner.testbed.scenes.vocabulary import COLORS, OBJECTS, SHAPES, WORDS

_PLACE_SHARE = 0.5
_COLOR_SHARE = 0.7
_TEXTURE = "texture"


@dataclass(frozen=True)
class PatchSet:
    """Features [n, channels], target embeddings [n, d_model], label index [n] (-1 where only the target counts) and
    whether the patch is background [n]."""

    features: Tensor
    targets: Tensor
    labels: Tensor
    background: Tensor


class PatchTargets:
    """The label set and the target embedding of every patch of an example.

    A number is one label of a hundred, or with `by_digit` the patches of each digit have that digit's label.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, by_digit: bool = False) -> None:
        self._by_digit = by_digit
        self._table = model.get_input_embeddings().weight.detach().float()
        self._tokenizer = processor.tokenizer
        words = [str(number) for number in range(10 if by_digit else 100)] + list(WORDS)
        self.names = [*OBJECTS, *SHAPES, *COLORS, _TEXTURE, *words]
        # "orange" is an object and a colour: labels are looked up by what kind of thing they name.
        starts = (0, len(OBJECTS), len(OBJECTS) + len(SHAPES), len(self.names) - len(words))
        self._first = dict(zip(("emoji", "shape", "color", "text"), starts, strict=True))
        self.embeddings = torch.stack([self.embed(name) for name in self.names])

    def embed(self, word: str) -> Tensor:
        """[d_model]: mean embedding of the tokens of a word in running text."""
        # The tokenizer writes a number digit by digit, and the space before it as a token of its own.
        spaced = word if self._by_digit and word.isdigit() else " " + word
        ids = self._tokenizer.encode(spaced, add_special_tokens=False)
        embedding: Tensor = self._table[ids].mean(dim=0)
        return embedding

    def of(self, example: Example, side: int) -> tuple[Tensor, Tensor]:
        """Labels [side * side] (-1 where a patch is half one thing, half another) and targets [side * side,
        d_model]."""
        labels = torch.full((side * side,), -1)
        colors = torch.zeros(side * side, self._table.shape[1])
        owner = torch.from_numpy(example.owner)
        cell = owner.shape[0] // side
        cells = owner.reshape(side, cell, side, cell).permute(0, 2, 1, 3).reshape(side * side, -1)
        behind = example.scene.background.color
        background = self._index("color", behind) if behind else self.names.index(_TEXTURE)
        labels[(cells >= 0).float().mean(dim=1) < 0.1] = background
        for number, item in enumerate(example.scene.items):
            mine = (cells == number).float().mean(dim=1) > 0.5
            if self._by_digit and item.name.isdigit():
                digit = self._column(side, item.x, len(item.name))
                numbered = torch.tensor([self._index("text", d) for d in item.name])[digit]
                labels[mine] = numbered.repeat(side)[mine]
            else:
                labels[mine] = self._index(item.kind, item.name)
            if item.kind == "shape" and item.color:
                colors[mine] = _COLOR_SHARE * self.embed(item.color)
        return labels, self.embeddings[labels.clamp(min=0)] + colors + self._places(side)

    @staticmethod
    def _column(side: int, x: float, digits: int) -> Tensor:
        """[side]: which digit of a number of one or two centred at `x` a column of patches shows."""
        right = (torch.arange(side) + 0.5) / side > x
        return right.long() if digits == 2 else torch.zeros(side, dtype=torch.long)

    def _index(self, kind: str, name: str) -> int:
        return self.names.index(name, self._first[kind])

    def _places(self, side: int) -> Tensor:
        centre = (torch.arange(side) + 0.5) / side
        near = torch.stack(
            ((1 - 2 * centre).clamp(min=0), 1 - (2 * centre - 1).abs(), (2 * centre - 1).clamp(min=0)), dim=1
        )
        rows = near @ torch.stack([self.embed(word) for word in ("top", "middle", "bottom")])
        columns = near @ torch.stack([self.embed(word) for word in ("left", "middle", "right")])
        return _PLACE_SHARE * (rows[:, None] + columns[None, :]).reshape(side * side, -1)


@torch.no_grad()
def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """[batch, 3, height, width] -> [batch, patches, channels]: the hidden states that the projector reads, side by
    side."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][:, 1:] for layer in model.config.vision_feature_layer], dim=-1)


def collect_patches(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, art: EmojiArt, seed: str, images: int
) -> PatchSet:
    """Labelled patches of `images` scenes; of the many background patches about as many are kept as there are
    others."""
    targets = PatchTargets(model, processor)
    plain, crowded = LayoutOptions(styles=TRAIN_STYLES), LayoutOptions(styles=TRAIN_STYLES, crowded=True)
    generator = torch.Generator().manual_seed(0)
    kept: list[tuple[Tensor, ...]] = []
    for index in tqdm(range(images), desc="warm start: patches", disable=None):
        example = draw_example(seed, index, art, plain if index % 3 == 0 else crowded, questions=0)
        pixels = processor.image_processor(example.picture, return_tensors="pt")["pixel_values"]
        features = vision_features(model, pixels)[0]
        side = int(features.shape[0] ** 0.5)
        labels, target = targets.of(example, side)
        background = labels >= len(OBJECTS) + len(SHAPES)
        background &= labels <= targets.names.index(_TEXTURE)
        rare = (labels >= 0) & ~background
        share = min(1.0, max(10, int(rare.sum())) / max(1, int(background.sum())))
        keep = rare | (background & (torch.rand(labels.shape, generator=generator) < share))
        kept.append((features[keep], target[keep], labels[keep], background[keep]))
    return PatchSet(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def fit_projector(
    model: LlavaForConditionalGeneration, patches: PatchSet, names: Tensor, steps: int, afresh: bool = True
) -> None:
    """Fit the stock projector (Linear-GELU-Linear) to the targets: squared distance plus cross-entropy against all
    names [names, d_model]. Starts at random, or with `afresh` false from the projector as it is.

    The channels' means and deviations are folded into the first layer, in place of a layer norm that the stock class
    does not have.
    """
    projector = model.model.multi_modal_projector.float()
    mean, deviation = patches.features.mean(dim=0), patches.features.std(dim=0) + 1e-4
    torch.manual_seed(0)
    first, second = nn.Linear(len(mean), projector.linear_1.out_features), projector.linear_2
    scale = patches.targets.std()
    if afresh:
        second.reset_parameters()
    else:
        _unfold(projector, first, mean, deviation, scale)
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    normed_names = nn.functional.normalize(names - names.mean(dim=0), dim=-1)
    for step in tqdm(range(steps), desc="warm start: projector", disable=None):
        chosen = torch.randint(len(patches.labels), (1024,), generator=torch.Generator().manual_seed(step))
        normed = (patches.features[chosen] - mean) / deviation
        hidden = first(normed + 0.3 * torch.randn_like(normed))
        out = second(nn.functional.gelu(nn.functional.dropout(hidden, 0.2)))
        distance = ((out - patches.targets[chosen] / scale) ** 2).mean()
        logits = 15 * nn.functional.normalize(out - names.mean(dim=0) / scale, dim=-1) @ normed_names.T
        loss = distance + 0.5 * nn.functional.cross_entropy(logits, patches.labels[chosen], ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        projector.linear_1.weight.copy_(first.weight / deviation)
        projector.linear_1.bias.copy_(first.bias - first.weight @ (mean / deviation))
        second.weight.mul_(scale)
        second.bias.mul_(scale)


@torch.no_grad()
def _unfold(
    projector: LlavaMultiModalProjector, first: nn.Linear, mean: Tensor, deviation: Tensor, scale: Tensor
) -> None:
    """The reverse of the folding at the end of `fit_projector`: a first layer for standardised features, outputs
    divided by `scale`."""
    first.weight.copy_(projector.linear_1.weight * deviation)
    first.bias.copy_(projector.linear_1.bias + projector.linear_1.weight @ mean)
    projector.linear_2.weight.div_(scale)
    projector.linear_2.bias.div_(scale)


@torch.no_grad()
def right_names(model: LlavaForConditionalGeneration, patches: PatchSet, names: Tensor) -> dict[str, float]:
    """Fraction of thing and of background patches whose projection is nearest, by cosine, to their own name."""
    out = model.model.multi_modal_projector(patches.features)
    centre = names.mean(dim=0)
    nearest = (
        nn.functional.normalize(out - centre, dim=-1) @ nn.functional.normalize(names - centre, dim=-1).T
    ).argmax(dim=1)
    right = (nearest == patches.labels).float()
    return {"things": right[~patches.background].mean().item(), "background": right[patches.background].mean().item()}


def warm_start(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, emoji: Path, images: int, steps: int
) -> dict[str, float]:
    """Fit the projector on `images` scenes of its own seed; returns `right_names` on scenes of another seed."""
    art = EmojiArt(emoji)
    names = PatchTargets(model, processor).embeddings
    fit_projector(model, collect_patches(model, processor, art, "warm-start", images), names, steps)
    return right_names(model, collect_patches(model, processor, art, "warm-check", max(4, images // 10)), names)
