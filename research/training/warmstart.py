"""The warm start: vision tower and projector learn on drawn scenes to say what each patch shows; checkpoints, resuming.

From a random projector nothing is seen within hundreds of pictures; after this the pictures already read as words
(`targets`). It costs little: no language model is run, and each picture has hundreds of patches to learn from. A later
part of the training may begin with more of it, from what was learnt before.
"""

import math
import time
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.scenes import TRAIN_STYLES, EmojiArt, Example, LayoutOptions, draw_example, draw_small_example
from research.scenes.photographs import TRAINED
from research.training.recipe import LARGE, SMALL, Recipe, WarmRound
from research.training.sight import Sight, as_pixels
from research.training.targets import PatchLabels
from visipruner.files import write_atomic, write_json
from visipruner_testbed.assembly.lora import remove_lora

KINDS = {
    "plain": LayoutOptions(styles=TRAIN_STYLES),
    "crowded": LayoutOptions(styles=TRAIN_STYLES, crowded=True),
    "wordy": LayoutOptions(
        styles=TRAIN_STYLES, layouts=(0.1, 0.2, 0.7), shape_share=0.5, text_share=1.0, most_texts=3, repeat_share=0.3
    ),
    "page": LayoutOptions(styles=TRAIN_STYLES, crowded=True, page=True),
    "photographs": LayoutOptions(
        styles=TRAIN_STYLES, objects=tuple(TRAINED), photographs=TRAINED, photograph_share=0.8, text_share=0.0
    ),
}
"""What the scenes of a warm start may hold, beside those of `small.PARTS`."""

_NORMED_OVER = 24
_CHECKED = 60
_SAVE_EVERY = 120.0


class WarmStart:
    """The course of a warm start, batch by batch through the recipe's rounds: those that go on from `start`, where it
    is given."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        emoji: Path,
        recipe: Recipe,
        start: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.recipe = recipe
        self.rounds = recipe.warm_rounds if start is None else recipe.sight_rounds
        self.art, self.images = EmojiArt(emoji), processor.image_processor
        self.patch = model.config.vision_config.patch_size
        model.model.vision_tower.to(getattr(torch, recipe.dtype))
        first = [self._draw("warm-norm", index, self.rounds[0]) for index in range(_NORMED_OVER)]
        self.sight = Sight(model, processor, recipe.vision_rank, self._pixels(first, SMALL))
        if start is not None:
            self.sight.go_on(start)
        self.round = self.steps_done = 0  # steps of the present round
        self.optimizer = self._optimizer()

    @property
    def total_steps(self) -> int:
        """Of all rounds."""
        return sum(plan.images // self.recipe.warm_batch for plan in self.rounds)

    def step(self) -> float:
        """Learn from the next batch; returns the loss."""
        if self.steps_done == self._steps:
            self.round, self.steps_done = self.round + 1, 0
            self.optimizer = self._optimizer()
        plan, batch = self.rounds[self.round], self.recipe.warm_batch
        factor = min(1.0, (self.steps_done + 1) / 40) * 0.5 * (1 + math.cos(math.pi * self.steps_done / self._steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        examples = [self._draw(plan.seed, self.steps_done * batch + index, plan) for index in range(batch)]
        side = LARGE if self.steps_done % plan.large_every == plan.large_every - 1 else SMALL
        torch.manual_seed(self.steps_done)
        loss = self.sight.train().loss(self.sight(self._pixels(examples, side)), self._labels(examples, side))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.steps_done += 1
        return loss.item()

    @property
    def _steps(self) -> int:
        return self.rounds[self.round].images // self.recipe.warm_batch

    def _optimizer(self) -> torch.optim.AdamW:
        plan, sight = self.rounds[self.round], self.sight
        others = [*sight.first.parameters(), *sight.second.parameters(), sight.gains]
        groups = [
            {"params": sight.lora(), "lr": 0.0, "peak": plan.vision_rate},
            {"params": others, "lr": 0.0, "peak": plan.projector_rate},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    @torch.no_grad()
    def check(self, pictures: int, side: int = SMALL) -> dict[str, float]:
        """Fractions of the patches of unseen scenes whose projection is nearest, by cosine, to their own name: things,
        background, written words, digits; of coloured patches nearest to their colour, of all to their place."""
        sight, targets = self.sight.eval(), self.sight.targets
        examples = [self._draw("warm-check", index, self.rounds[0]) for index in range(pictures)]
        labels = self._labels(examples, side)
        out = torch.cat([sight(self._pixels([example], side)) for example in examples])
        unit = nn.functional.normalize(out - sight.centre, dim=1)
        right = ((unit @ sight.heads["names"].T).argmax(dim=1) == labels.names) & labels.known
        named = labels.names.where(labels.known, -1)
        starts = (0, targets.first_background, targets.first_written, targets.first_written + 10, len(targets.names))
        kinds = zip(("things", "background", "digits", "words"), starts[:-1], starts[1:], strict=True)
        found = {kind: right[(named >= first) & (named < last)] for kind, first, last in kinds}
        found["colors"] = ((unit @ sight.heads["colors"].T).argmax(dim=1) == labels.colors)[labels.colors >= 0]
        third = [(unit @ sight.heads[axis].T).argmax(dim=1) == getattr(labels, axis) for axis in ("rows", "columns")]
        found["places"] = (third[0] & third[1])[labels.known]
        return {kind: round(hits.float().mean().item(), 3) for kind, hits in found.items() if len(hits)}

    def save(self, path: Path) -> None:
        """A checkpoint, replaced at once."""
        state = {
            "parameters": [p.detach() for group in self.optimizer.param_groups for p in group["params"]],
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
            "steps_done": self.steps_done,
        }
        write_atomic(path, lambda part: torch.save(state, part))

    @torch.no_grad()
    def resume(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.round, self.steps_done = state["round"], state["steps_done"]
        self.optimizer = self._optimizer()
        own = [p for group in self.optimizer.param_groups for p in group["params"]]
        for parameter, saved in zip(own, state["parameters"], strict=True):
            parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def _draw(self, seed: str, index: int, plan: WarmRound) -> Example:
        kind = plan.kinds[index % len(plan.kinds)]
        if kind not in KINDS:
            return draw_small_example(seed, index, self.art, kind, questions=0)
        return draw_example(seed, index, self.art, KINDS[kind], questions=0)

    def _pixels(self, examples: list[Example], side: int) -> Tensor:
        return as_pixels(self.images, [example.picture for example in examples], side * self.patch)

    def _labels(self, examples: list[Example], side: int) -> PatchLabels:
        parts = [self.sight.targets.of(example, side) for example in examples]
        joined = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(PatchLabels))
        return PatchLabels(*joined)


def warm_start(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    emoji: Path,
    recipe: Recipe,
    folder: Path,
    start: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train vision tower and projector, from `start` where it is given, or take up what `folder` holds of it.

    Returns what was learnt, as it ships; the model itself comes out as it was. `folder` gets the weights and
    `warm_start.json`, which is `WarmStart.check` on scenes of another seed.
    """
    weights, checkpoint = folder / "warm_start.safetensors", folder / "warm_start.pt"
    if not weights.exists():
        original = {name: value.clone() for name, value in model.model.vision_tower.state_dict().items()}
        course = WarmStart(model, processor, emoji, recipe, start)
        if checkpoint.exists():
            course.resume(checkpoint)
        _run(course, checkpoint)
        found = {str(side): course.check(_CHECKED, side) for side in (SMALL, LARGE)}
        write_json(folder / "warm_start.json", found)
        state = course.sight.state()
        remove_lora(model.model.vision_tower)
        model.model.vision_tower.to(torch.float32).load_state_dict(original)
        write_atomic(weights, lambda part: save_file(state, part))
        checkpoint.unlink(missing_ok=True)
    return dict(load_file(weights))


def _run(course: WarmStart, checkpoint: Path) -> None:
    batch, saved = course.recipe.warm_batch, time.monotonic()
    done = sum(plan.images // batch for plan in course.rounds[: course.round]) + course.steps_done
    with tqdm(total=course.total_steps, initial=done, desc="warm start", unit="step", disable=None) as bar:
        for _ in range(done, course.total_steps):
            bar.set_postfix(loss=f"{course.step():.2f}")
            bar.update()
            if time.monotonic() - saved > _SAVE_EVERY:
                course.save(checkpoint)
                saved = time.monotonic()
