"""The training run: warm start, then LoRA and projector on packed questions; checkpoints, resuming, a JSONL log."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visipruner.errors import ConfigError
from visipruner.testbed.assembly.sources import sha256
from visipruner.testbed.assembly.trained import PROJECTOR, RECIPE_FILE, TRAINED_FILE, load_trained
from visipruner.testbed.scenes import EmojiArt, Example, draw_example
from visipruner.testbed.training.lora import LoraLinear, add_lora
from visipruner.testbed.training.recipe import Recipe
from visipruner.testbed.training.sequence import PackedBatch, Packer
from visipruner.testbed.training.warmstart import vision_features, warm_start
from visipruner.testbed.training.words import learn_words

_STATE_FILE = "optimizer.pt"
_WARM_FILE = "warm_start.safetensors"
LOG_FILE = "log.jsonl"


class Trainer:
    """Holds the model under training; `step` learns from one batch of pictures, which are never repeated."""

    def __init__(
        self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, recipe: Recipe, emoji: Path
    ) -> None:
        torch.manual_seed(0)
        self.model, self.processor, self.recipe = model, processor, recipe
        self.art = EmojiArt(emoji)
        self.packer = Packer(processor, model.config.image_seq_length)
        model.requires_grad_(False)
        # bfloat16 halves the time of a step on a processor that has it and makes it many times longer on one that has
        # not; what is learnt stays in float32.
        model.model.language_model.to(getattr(torch, recipe.dtype))
        self.adapted: dict[str, LoraLinear] = add_lora(model.model.language_model, recipe.rank)
        self.projector = model.model.multi_modal_projector.float().requires_grad_(True)
        lora = [p for module in self.adapted.values() for p in (module.lora_a, module.lora_b)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": lora, "lr": recipe.lora_rate, "peak": recipe.lora_rate},
                {
                    "params": list(self.projector.parameters()),
                    "lr": recipe.projector_rate,
                    "peak": recipe.projector_rate,
                },
            ],
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.images_seen = 0

    def step(self, images: int) -> dict[str, Any]:
        """Learn from the next batch of a run of `images` pictures.

        Returns the loss, the rate factor, and per question type how many answers had every token right of how many:
        as no picture comes twice, that is the accuracy on unseen pictures before they are learnt from.
        """
        recipe = self.recipe
        factor = recipe.rate(self.images_seen, images)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        examples = self._draw()
        rows = [self.packer.pack([example.questions]) for example in examples]
        total = sum(float(row.weights.sum()) for row in rows)
        loss, right = 0.0, []
        self.optimizer.zero_grad(set_to_none=True)
        # One picture at a time: rows are of very different lengths, and padding costs as much as questions.
        for example, row in zip(examples, rows, strict=True):
            pixels = self.processor.image_processor(example.picture, return_tensors="pt")["pixel_values"]
            summed, answered = self._loss(vision_features(self.model, pixels), row)
            (summed / total).backward()  # type: ignore[no-untyped-call]
            loss += summed.item() / total
            right += answered
        types = [question.type for example in examples for question in example.questions]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.images_seen += recipe.batch
        return {"loss": round(loss, 4), "rate": round(factor, 4), "right": _count_by_type(types, right)}

    def _draw(self) -> list[Example]:
        recipe = self.recipe
        return [
            draw_example(recipe.seed, i, self.art, recipe.options(i), recipe.questions, recipe.mix)
            for i in range(self.images_seen, self.images_seen + recipe.batch)
        ]

    def _loss(self, features: Tensor, packed: PackedBatch) -> tuple[Tensor, list[bool]]:
        """Weighted sum of the answer tokens' losses, and whether each answer had every token right."""
        model = self.model
        visual = self.projector(features)
        embeds = model.get_input_embeddings()(packed.input_ids)
        is_image = (packed.input_ids == model.config.image_token_id)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(is_image, visual.to(embeds.dtype))
        mask = torch.zeros(packed.attention_mask.shape, dtype=embeds.dtype).masked_fill(
            ~packed.attention_mask, torch.finfo(embeds.dtype).min
        )
        hidden = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=packed.position_ids, use_cache=False
        ).last_hidden_state
        # Logits only where an answer token is predicted: the vocabulary is most of what is left to compute.
        learnt = packed.labels >= 0
        logits = nn.functional.linear(hidden[learnt], model.lm_head.weight.to(hidden.dtype)).float()
        labels = packed.labels[learnt]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        right = _answers_right(logits.argmax(dim=-1) == labels, labels, self.processor.tokenizer.eos_token_id)
        return (losses * packed.weights[learnt]).sum(), right

    def trained_state(self) -> dict[str, Tensor]:
        """What this run learnt, float32: projector and LoRA factors by layer name."""
        state = {PROJECTOR + name: value.detach() for name, value in self.projector.state_dict().items()}
        for name, module in self.adapted.items():
            state[f"{name}.lora_a"], state[f"{name}.lora_b"] = module.lora_a.detach(), module.lora_b.detach()
        return state

    def save(self, folder: Path) -> None:
        """Checkpoint, each file replaced at once so that an interruption leaves the last one whole."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.trained_state(), folder / f"{TRAINED_FILE}.part")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "images_seen": self.images_seen}, folder / f"{_STATE_FILE}.part"
        )
        for name in (TRAINED_FILE, _STATE_FILE):
            (folder / f"{name}.part").replace(folder / name)

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder."""
        state = load_file(folder / TRAINED_FILE)
        self.projector.load_state_dict(_projector_of(state))
        self.load_lora(state)
        saved = torch.load(folder / _STATE_FILE, weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.images_seen = saved["images_seen"]

    @torch.no_grad()
    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Go on with LoRA factors as `trained_state` gives them; none leave the fresh ones.

        Raises ConfigError for another rank.
        """
        if not state:
            return
        for name, module in self.adapted.items():
            first, second = state[f"{name}.lora_a"], state[f"{name}.lora_b"]
            if first.shape != module.lora_a.shape:
                raise ConfigError(f"The earlier weights have LoRA rank {len(first)}; continue with the same rank.")
            module.lora_a.copy_(first)
            module.lora_b.copy_(second)


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
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    log.write_text("".join(line for line in lines if json.loads(line)["images"] <= images_seen))


def _warm(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    emoji: Path,
    folder: Path,
    recipe: Recipe,
    earlier: dict[str, Tensor],
) -> dict[str, float]:
    """What the projector learns before the language model does, done once per folder: everything, or written words
    where it comes from an earlier training. Returns what was measured."""
    projector = model.model.multi_modal_projector
    if not (folder / _WARM_FILE).exists():
        if earlier:
            projector.load_state_dict(_projector_of(earlier))
            warm = learn_words(model, processor, emoji, recipe.word_images, recipe.word_steps)
        else:
            warm = warm_start(model, processor, emoji, recipe.warm_images, recipe.warm_steps)
        (folder / "warm_start.json").write_text(json.dumps(warm))
        save_file(projector.state_dict(), folder / _WARM_FILE)
    projector.load_state_dict(load_file(folder / _WARM_FILE))
    measured: dict[str, float] = json.loads((folder / "warm_start.json").read_text())
    return measured


def _projector_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PROJECTOR): value.float() for name, value in state.items() if name.startswith(PROJECTOR)}


def _provenance(folder: Path) -> dict[str, Any]:
    """What went before: the recipe of the weights in `folder`, and their hash."""
    recipe: dict[str, Any] = json.loads((folder / RECIPE_FILE).read_text())
    return recipe | {"sha256": sha256(folder / TRAINED_FILE)}


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    emoji: Path,
    folder: Path,
    images: int,
    recipe: Recipe,
    resume: bool = False,
    stop_at: int | None = None,
    save_every: float = 240.0,
    continue_from: Path | None = None,
) -> Path:
    """Run or continue a training of `images` pictures; writes checkpoints, `log.jsonl` and `recipe.json` to `folder`
    and returns the weights' path.

    `stop_at` leaves a run of `images` early, to be resumed later with the same result. Resuming with another `images`
    moves the decay: a run can be cut short or prolonged as long as its decay has not begun. `continue_from` is a folder
    with the weights and recipe of another training, taken in place of a warm start.

    Raises ConfigError when `folder` holds a run already and `resume` is not set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"recipe": asdict(recipe), "images": images}
    continued = (folder / _STATE_FILE).exists()
    if continued and not resume:
        raise ConfigError(f"{folder} holds a training already; continue it with --resume or choose another folder.")
    earlier = {} if continue_from is None else load_trained(continue_from / TRAINED_FILE)
    if continue_from is not None:
        record["continued_from"] = _provenance(continue_from)
    record["warm_start"] = _warm(model, processor, emoji, folder, recipe, earlier)
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=1))
    trainer = Trainer(model, processor, recipe, emoji)
    trainer.load_lora(earlier)
    if continued:
        trainer.resume(folder)
        _forget_after(folder / LOG_FILE, trainer.images_seen)
    saved = time.monotonic()
    progress = tqdm(total=images, initial=trainer.images_seen, desc="training", unit="image", disable=None)
    with (folder / LOG_FILE).open("a") as log:
        while trainer.images_seen < min(images, stop_at or images):
            began = time.monotonic()
            measured = trainer.step(images)
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
