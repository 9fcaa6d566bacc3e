"""The training run: warm start, then LoRA and projector on packed questions; checkpoints, resuming, a JSONL log."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.training.attention import Blocks, use_packed_attention
from research.training.claim import STATE_FILE, check_claim, record_of
from research.training.lessons import Lessons
from research.training.memory import keep_freed_memory
from research.training.recipe import LARGE, SMALL, Recipe
from research.training.sequence import PackedBatch, Packer
from research.training.sight import as_pixels, vision_features
from research.training.warmstart import warm_start
from visipruner.files import whole_lines, write_atomic, write_json
from visipruner_testbed.assembly.lora import LoraLinear, add_lora, load_lora
from visipruner_testbed.assembly.trained import (
    PROJECTOR,
    RECIPE_FILE,
    TRAINED_FILE,
    VISION,
    fold_sight,
    language_part,
    load_trained,
    part_of,
)

LOG_FILE = "log.jsonl"


class Trainer:
    """Holds the model under training; `step` learns from one batch of pictures, which are never repeated.

    `start` is what a warm start, or an earlier training, has learnt: it is folded into the model, except for the
    language model's LoRA factors, which are trained on.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        recipe: Recipe,
        emoji: Path,
        start: dict[str, Tensor],
    ) -> None:
        torch.manual_seed(0)
        self.model, self.processor, self.recipe = model, processor, recipe
        self.lessons = Lessons(recipe, emoji)
        self.packers = {side: Packer(processor, side * side, recipe.tallying) for side in (SMALL, LARGE)}
        model.requires_grad_(False)
        fold_sight(model, start)
        self.sight = {name: value for name, value in start.items() if name.startswith(VISION)}
        # bfloat16 halves the time of a step on a processor that has it and makes it many times longer on one that has
        # not; what is learnt stays in float32.
        dtype = getattr(torch, recipe.dtype)
        model.model.vision_tower.to(dtype)
        model.model.language_model.to(dtype)
        self.adapted: dict[str, LoraLinear] = add_lora(model.model.language_model, recipe.rank)
        load_lora(self.adapted, language_part(start))
        use_packed_attention(model.model.language_model)
        self.projector = model.model.multi_modal_projector.float().requires_grad_(True)
        lora = [p for module in self.adapted.values() for p in (module.lora_a, module.lora_b)]
        projector = list(self.projector.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": lora, "lr": recipe.lora_rate, "peak": recipe.lora_rate},
                {"params": projector, "lr": recipe.projector_rate, "peak": recipe.projector_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.images_seen = 0

    def step(self) -> dict[str, Any]:
        """Learn from the next batch.

        Returns the loss, the rate factor, and per question type how many answers had every token right of how many:
        as no drawn picture comes twice, that is the accuracy on unseen pictures before they are learnt from.
        """
        recipe = self.recipe
        factor = recipe.rate(self.images_seen)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        batch = range(self.images_seen, self.images_seen + recipe.batch)
        lessons = [self.lessons.lesson(image) for image in batch]
        sides = [recipe.side(image) for image in batch]
        rows = [self.packers[side].pack([asked]) for side, (_, asked) in zip(sides, lessons, strict=True)]
        total = sum(float(row.weights.sum()) for row in rows)
        loss, right = 0.0, []
        self.optimizer.zero_grad(set_to_none=True)
        # One picture at a time: rows are of very different lengths, and padding costs as much as questions.
        for side, (picture, _), row in zip(sides, lessons, rows, strict=True):
            size = side * self.model.config.vision_config.patch_size
            with torch.no_grad():
                features = vision_features(self.model, as_pixels(self.processor.image_processor, [picture], size))
            summed, answered = self.loss(features, row, len(self.packers[side].prefix))
            (summed / total).backward()  # type: ignore[no-untyped-call]
            loss += summed.item() / total
            right += answered
        types = [question.type for _, asked in lessons for question in asked]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.images_seen += recipe.batch
        return {"loss": round(loss, 4), "rate": round(factor, 4), "right": _count_by_type(types, right)}

    def loss(self, features: Tensor, packed: PackedBatch, prefix: int) -> tuple[Tensor, list[bool]]:
        """Weighted sum of the answer tokens' losses, and whether each answer had every token right.

        `features` [1, patches, channels] are the vision tower's, `prefix` the rows before the questions.
        """
        model = self.model
        visual = self.projector(features)
        embeds = model.get_input_embeddings()(packed.input_ids)
        is_image = (packed.input_ids == model.config.image_token_id)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(is_image, visual.to(embeds.dtype))
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=packed.position_ids,
            use_cache=False,
            packed=Blocks.of(packed, prefix),
        ).last_hidden_state
        # Logits only where an answer token is predicted: the vocabulary is most of what is left to compute.
        learnt = packed.labels >= 0
        logits = nn.functional.linear(hidden[learnt], model.lm_head.weight.to(hidden.dtype)).float()
        labels = packed.labels[learnt]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        right = _answers_right(logits.argmax(dim=-1) == labels, labels, self.processor.tokenizer.eos_token_id)
        return (losses * packed.weights[learnt]).sum(), right

    def trained_state(self) -> dict[str, Tensor]:
        """What was learnt, float32: projector, LoRA factors of the vision tower, and of the language model by layer."""
        state = {PROJECTOR + name: value.detach() for name, value in self.projector.state_dict().items()}
        state |= self.sight
        for name, module in self.adapted.items():
            state[f"{name}.lora_a"], state[f"{name}.lora_b"] = module.lora_a.detach(), module.lora_b.detach()
        return state

    def save(self, folder: Path) -> None:
        """A checkpoint, replaced at once, and then its weights alone for those who only read them."""
        trained = self.trained_state()
        state = {"trained": trained, "optimizer": self.optimizer.state_dict(), "images_seen": self.images_seen}
        write_atomic(folder / STATE_FILE, lambda part: torch.save(state, part))
        write_atomic(folder / TRAINED_FILE, lambda part: save_file(trained, part))

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder."""
        saved = torch.load(folder / STATE_FILE, weights_only=True)
        # An older checkpoint has its weights beside it.
        trained = saved["trained"] if "trained" in saved else load_file(folder / TRAINED_FILE)
        self.projector.load_state_dict(part_of(trained, PROJECTOR))
        load_lora(self.adapted, language_part(trained))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.images_seen = saved["images_seen"]


def _answers_right(right: Tensor, labels: Tensor, end: int) -> list[bool]:
    ends = (labels == end).nonzero().flatten().tolist()
    starts = [0, *(e + 1 for e in ends[:-1])]
    return [bool(right[a : b + 1].all()) for a, b in zip(starts, ends, strict=True)]


def _count_by_type(types: list[str], right: list[bool]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for kind, correct in zip(types, right, strict=True):
        done, total = counts.get(kind, (0, 0))
        counts[kind] = (done + correct, total + 1)
    return counts


def _forget_after(log: Path, images_seen: int) -> None:
    """Drop the log's lines about steps after the last checkpoint: they are about to be done again."""
    lines = whole_lines(log) if log.exists() else []
    kept = "".join(f"{line}\n" for line in lines if json.loads(line)["images"] <= images_seen)
    write_atomic(log, lambda part: part.write_text(kept))


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    emoji: Path,
    folder: Path,
    recipe: Recipe,
    resume: bool = False,
    stop_at: int | None = None,
    save_every: float = 240.0,
    continue_from: Path | None = None,
) -> Path:
    """Run or continue a training: checkpoints, `log.jsonl` and `recipe.json` in `folder`. Returns the weights' path.

    `stop_at` leaves a run early, to be resumed later with the same result. Resuming with other `recipe.images` moves
    the decay: a run can be cut short or prolonged as long as its decay has not begun. `continue_from` is a folder with
    the weights and recipe of another training, taken in place of a warm start.

    Raises ConfigError when `folder` holds a run already and `resume` is not set, or one with other settings.
    """
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    check_claim(folder, recipe, continue_from, resume)
    if continue_from is None:
        # Recorded before the warm start, which is not to go on with other settings either.
        record = record_of(recipe, None)
        write_json(folder / RECIPE_FILE, record, indent=1)
        start = warm_start(model, processor, emoji, recipe, folder)
        record["warm_start"] = json.loads((folder / "warm_start.json").read_text())
    else:
        start = load_trained(continue_from / TRAINED_FILE)
        record = record_of(recipe, continue_from)
        if recipe.sight_rounds:
            write_json(folder / RECIPE_FILE, record, indent=1)
            start |= warm_start(model, processor, emoji, recipe, folder, start)
            record["warm_start"] = json.loads((folder / "warm_start.json").read_text())
    write_json(folder / RECIPE_FILE, record, indent=1)
    trainer = Trainer(model, processor, recipe, emoji, start)
    if (folder / STATE_FILE).exists():
        trainer.resume(folder)
    _forget_after(folder / LOG_FILE, trainer.images_seen)
    saved = time.monotonic()
    progress = tqdm(total=recipe.images, initial=trainer.images_seen, desc="training", unit="image", disable=None)
    with (folder / LOG_FILE).open("a") as log:
        while trainer.images_seen < min(recipe.images, stop_at or recipe.images):
            began = time.monotonic()
            measured = trainer.step()
            seconds = time.monotonic() - began
            log.write(json.dumps({"images": trainer.images_seen, **measured, "seconds": round(seconds, 2)}) + "\n")
            log.flush()
            progress.update(recipe.batch)
            progress.set_postfix(loss=f"{measured['loss']:.2f}")
            if time.monotonic() - saved > save_every:
                trainer.save(folder)
                saved = time.monotonic()
    progress.close()
    trainer.save(folder)
    return folder / TRAINED_FILE
