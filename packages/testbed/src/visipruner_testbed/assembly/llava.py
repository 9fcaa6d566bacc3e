"""Joins vision tower and language model in a stock `LlavaForConditionalGeneration`, and makes its `LlavaProcessor`."""

from dataclasses import dataclass

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from visipruner.errors import ConfigError
from visipruner_testbed.assembly.language import CHAT_TEMPLATE, IMAGE_TOKEN, load_language_model, load_tokenizer
from visipruner_testbed.assembly.sources import language_weights, vision_weights
from visipruner_testbed.assembly.vision import load_vision_tower

PATCH_SIZE = 14
# The last two of the twelve layers were tuned for saliency and lost what an object is; early layers keep colour and
# place.
VISION_LAYERS = (2, 6, 9)
_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Assembled:
    """A model whose projector is untrained, and its processor."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def assemble(image_size: int) -> Assembled:
    """Build the model in memory, float32, with `(image_size / 14) ** 2` visual tokens per image.

    Raises MissingWeightsError without the weight packages, ConfigError for an image size the patches do not divide.
    """
    if image_size <= 0 or image_size % PATCH_SIZE:
        raise ConfigError(f"image_size must be a positive multiple of {PATCH_SIZE}, got {image_size}")
    vision_path, language_path = vision_weights(), language_weights()
    processor = _make_processor(image_size)
    vision = load_vision_tower(vision_path, max(VISION_LAYERS), image_size)
    language = load_language_model(language_path, len(processor.tokenizer))
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // PATCH_SIZE) ** 2,
        vision_feature_layer=list(VISION_LAYERS),
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Assembled(model.to(torch.float32).eval(), processor)


def _make_processor(image_size: int) -> LlavaProcessor:
    square = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(
        size=square, crop_size=square, do_center_crop=False, image_mean=_IMAGENET_MEAN, image_std=_IMAGENET_STD
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=load_tokenizer(language_weights()),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
