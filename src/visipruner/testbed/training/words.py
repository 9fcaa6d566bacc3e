"""Teaches a projector in use to name written words: patches of a word become the word's embedding, patches of a digit
the digit's, and all other patches stay what they were."""

from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visipruner.testbed.scenes import TRAIN_STYLES, EmojiArt, LayoutOptions, draw_example
from visipruner.testbed.training.warmstart import PatchSet, PatchTargets, fit_projector, right_names, vision_features

_WORDY = LayoutOptions(
    styles=TRAIN_STYLES, layouts=(0.1, 0.2, 0.7), shape_share=0.5, text_share=1.0, most_texts=3, repeat_share=0.2
)
# Patches kept as they were for each patch of a word.
_OTHERS = 1.0


@torch.no_grad()
def collect_words(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, art: EmojiArt, seed: str, images: int
) -> PatchSet:
    """Patches of written words of `images` scenes with their names, and about as many others with label -1 and the
    projector's own output as their target."""
    targets = PatchTargets(model, processor, by_digit=True)
    first_word = targets.names.index("0")
    generator = torch.Generator().manual_seed(0)
    kept: list[tuple[torch.Tensor, ...]] = []
    for index in tqdm(range(images), desc="words: patches", disable=None):
        example = draw_example(seed, index, art, _WORDY, questions=0)
        pixels = processor.image_processor(example.picture, return_tensors="pt")["pixel_values"]
        features = vision_features(model, pixels)[0]
        labels, target = targets.of(example, int(features.shape[0] ** 0.5))
        written = labels >= first_word
        share = _OTHERS * written.sum() / max(1, int((~written).sum()))
        keep = written | (torch.rand(labels.shape, generator=generator) < share)
        target = torch.where(written[:, None], target, model.model.multi_modal_projector(features))
        kept.append((features[keep], target[keep], labels.where(written, -1)[keep], ~written[keep]))
    return PatchSet(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def learn_words(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, emoji: Path, images: int, steps: int
) -> dict[str, float]:
    """Refit the projector on `images` scenes of its own seed; returns the fraction of word patches of other scenes
    that are nearest to their own name."""
    art = EmojiArt(emoji)
    names = PatchTargets(model, processor, by_digit=True).embeddings
    fit_projector(model, collect_words(model, processor, art, "words", images), names, steps, afresh=False)
    check = collect_words(model, processor, art, "words-check", max(4, images // 10))
    return {"words": right_names(model, check, names)["things"]}
