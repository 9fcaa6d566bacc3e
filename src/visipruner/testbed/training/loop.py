"""The training run: warm start, then LoRA and projector on packed questions; checkpoints, resuming, a JSONL log."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visipruner.errors import ConfigError
from visipruner.testbed.assembly.trained import PROJECTOR, RECIPE_FILE, TRAINED_FILE
from visipruner.testbed.scenes import TRAIN_STYLES, EmojiArt, LayoutOptions, draw_example
from visipruner.testbed.training.lora import LoraLinear, add_lora
from visipruner.testbed.training.sequence import PackedBatch, Packer
from visipruner.testbed.training.warmstart import vision_features, warm_start

_STATE_FILE = "optimizer.pt"
_WARM_FILE = "warm_start.safetensors"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the number of images."""

    seed: str = "train-0"
    rank: int = 32
    questions: int = 10
    batch: int = 2
    lora_rate: float = 8e-4
    projector_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_images: int = 60
    easy_images: int = 240
    decay_share: float = 0.2
    warm_images: int = 900
    warm_steps: int = 1500

    def rate(self, image: int, images: int) -> float:
        """Learning-rate factor: linear warm-up, constant, linear decay over the last `decay_share` of all images."""
        return min(1.0, (image + 1) / self.warmup_images, (images - image) / (self.decay_share * images))

    def options(self, image: int) -> LayoutOptions:
        """Pictures hold at most three things at first."""
        return LayoutOptions(styles=TRAIN_STYLES, max_items=3 if image < self.easy_images else 6)


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
        # bfloat16 halves the time of a step where the processor has it; what is learnt stays in float32.
        model.model.language_model.to(torch.bfloat16)
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
        indices = range(self.images_seen, self.images_seen + recipe.batch)
        examples = [draw_example(recipe.seed, i, self.art, recipe.options(i), recipe.questions) for i in indices]
        packed = self.packer.pack([example.questions for example in examples])
        pixels = self.processor.image_processor([example.picture for example in examples], return_tensors="pt")[
            "pixel_values"
        ]
        factor = recipe.rate(self.images_seen, images)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        loss, right = self._loss(vision_features(self.model, pixels), packed)
        types = [question.type for example in examples for question in example.questions]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.images_seen += recipe.batch
        return {"loss": round(loss.item(), 4), "rate": round(factor, 4), "right": _count_by_type(types, right)}

    def _loss(self, features: Tensor, packed: PackedBatch) -> tuple[Tensor, list[bool]]:
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
        labels, weights = packed.labels[learnt], packed.weights[learnt]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(dim=-1) == labels
        return (losses * weights).sum() / weights.sum(), _answers_right(
            right, labels, self.processor.tokenizer.eos_token_id
        )

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
        self.projector.load_state_dict(
            {k.removeprefix(PROJECTOR): v for k, v in state.items() if k.startswith(PROJECTOR)}
        )
        with torch.no_grad():
            for name, module in self.adapted.items():
                module.lora_a.copy_(state[f"{name}.lora_a"])
                module.lora_b.copy_(state[f"{name}.lora_b"])
        saved = torch.load(folder / _STATE_FILE, weights_only=True)
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
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    log.write_text("".join(line for line in lines if json.loads(line)["images"] <= images_seen))


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
) -> Path:
    """Run or continue a training of `images` pictures; writes checkpoints, `log.jsonl` and `recipe.json` to `folder`
    and returns the weights' path.

    `stop_at` leaves a run of `images` early, to be resumed later with the same result. Resuming with another `images`
    moves the decay: a run can be cut short or prolonged as long as its decay has not begun.

    Raises ConfigError when `folder` holds a run already and `resume` is not set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"recipe": asdict(recipe), "images": images}
    continued = (folder / _STATE_FILE).exists()
    if continued and not resume:
        raise ConfigError(f"{folder} holds a training already; continue it with --resume or choose another folder.")
    projector = model.model.multi_modal_projector
    if not (folder / _WARM_FILE).exists():
        warm = warm_start(model, processor, emoji, recipe.warm_images, recipe.warm_steps)
        (folder / "warm_start.json").write_text(json.dumps(warm))
        save_file(projector.state_dict(), folder / _WARM_FILE)
    projector.load_state_dict(load_file(folder / _WARM_FILE))
    record["warm_start"] = json.loads((folder / "warm_start.json").read_text())
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=1))
    trainer = Trainer(model, processor, recipe, emoji)
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
