"""The tiny models saved like any checkpoint, with a processor, a tokenizer and a chat template of the family's kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.families.prompts import BREAK, END, IMAGE, ROW, START, VIDEO, VOCAB
from tests.families.zoo import PINPOINTS, built
from visipruner.models.processors import images_only, pixtral

_SIDE = {"height": 32, "width": 32}
MROPE_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 48 * 64}


def words_tokenizer(special: dict[int, str], named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Words `w3` to `w92` and the family's special tokens, `named` those the processor asks for by name."""
    vocabulary = {f"w{index}": index for index in range(VOCAB)}
    names = {0: "<pad>", 1: "<s>", 2: "</s>", **special}
    for index, name in names.items():
        del vocabulary[f"w{index}"]
        vocabulary[name] = index
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(special.values()),
        extra_special_tokens=named,
    )


def chat_template(image: str) -> str:
    """Words, and `image` where a picture stands."""
    return (
        "{% for message in messages %} {{ 'w3' if message['role'] == 'user' else 'w4' }} "
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %} {{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}"
    )


def _pil(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


def _llava() -> tuple[Any, str]:
    tokenizer = words_tokenizer({IMAGE: "<image>"}, {"image_token": "<image>"})
    images = _pil("CLIP", size={"shortest_edge": 32}, crop_size=_SIDE)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaProcessor(images, tokenizer, **settings), "<image>"


def _llava_next() -> tuple[Any, str]:
    tokenizer = words_tokenizer({IMAGE: "<image>"}, {"image_token": "<image>"})
    images = _pil("LlavaNext", size={"shortest_edge": 32}, crop_size=_SIDE, image_grid_pinpoints=PINPOINTS)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaNextProcessor(images, tokenizer, **settings), "<image>"


def _llava_next_video() -> tuple[Any, str]:
    tokenizer = words_tokenizer(
        {IMAGE: "<image>", VIDEO: "<video>"}, {"image_token": "<image>", "video_token": "<video>"}
    )
    images = _pil("LlavaNext", size={"shortest_edge": 32}, crop_size=_SIDE, image_grid_pinpoints=PINPOINTS)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    cls = images_only(transformers.LlavaNextVideoProcessor)
    return cls(None, images, tokenizer, **settings), "<image>"


def _pixtral(merge: int) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        special = {IMAGE: "[IMG]", BREAK: "[IMG_BREAK]", END: "[IMG_END]"}
        named = dict(zip(("image_token", "image_break_token", "image_end_token"), special.values(), strict=True))
        images = _pil("Pixtral", size={"longest_edge": 64}, patch_size=8)
        return pixtral()(images, words_tokenizer(special, named), patch_size=8, spatial_merge_size=merge), "[IMG]"

    return make


def _llava_onevision() -> tuple[Any, str]:
    tokenizer = words_tokenizer(
        {IMAGE: "<image>", VIDEO: "<video>"}, {"image_token": "<image>", "video_token": "<video>"}
    )
    images = _pil("LlavaOnevision", size=_SIDE, image_grid_pinpoints=PINPOINTS)
    cls = images_only(transformers.LlavaOnevisionProcessor)
    return cls(images, tokenizer, num_image_tokens=16, vision_feature_select_strategy="full"), "<image>"


def _qwen(cls: Any) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        special = {
            START: "<|vision_start|>",
            IMAGE: "<|image_pad|>",
            VIDEO: "<|video_pad|>",
            END: "<|vision_end|>",
        }
        images = _pil("Qwen2VL", patch_size=8, merge_size=2, size=MROPE_SIZE)
        return images_only(cls)(
            images, words_tokenizer(special, {"image_token": "<|image_pad|>"})
        ), "<|vision_start|><|image_pad|><|vision_end|>"

    return make


def _internvl() -> tuple[Any, str]:
    special = {START: "<img>", IMAGE: "<IMG_CONTEXT>", END: "</img>", VIDEO: "<video>"}
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    images = _pil("GotOcr2", size=_SIDE, crop_to_patches=True, min_patches=1, max_patches=3)
    cls = images_only(transformers.InternVLProcessor)
    return cls(images, words_tokenizer(special, named), image_seq_length=4), "<IMG_CONTEXT>"


def _idefics3() -> tuple[Any, str]:
    rows = {ROW - 10 + place: f"<row_{place // 3 + 1}_col_{place % 3 + 1}>" for place in range(9)}
    special = {
        **rows,
        IMAGE: "<image>",
        START: "<fake_token_around_image>",
        END: "<global-img>",
        BREAK: "<end_of_utterance>",
    }
    images = _pil("Idefics3", size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return transformers.Idefics3Processor(
        images, words_tokenizer(special, {"image_token": "<image>"}), image_seq_len=4
    ), "<image>"


def _smolvlm() -> tuple[Any, str]:
    rows = {ROW - 10 + place: f"<row_{place // 3 + 1}_col_{place % 3 + 1}>" for place in range(9)}
    special = {
        **rows,
        IMAGE: "<image>",
        START: "<fake_token_around_image>",
        END: "<global-img>",
        BREAK: "<end_of_utterance>",
    }
    images = _pil("SmolVLM", size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    cls = images_only(transformers.SmolVLMProcessor)
    return cls(images, words_tokenizer(special, {"image_token": "<image>"}), None, image_seq_len=4), "<image>"


def _paligemma() -> tuple[Any, str]:
    tokenizer = words_tokenizer({IMAGE: "<image>"}, {"image_token": "<image>"})
    images = _pil("Siglip", size=_SIDE)
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, tokenizer), "<image>"


def _gemma3() -> tuple[Any, str]:
    special = {START: "<start_of_image>", IMAGE: "<image_soft_token>", END: "<end_of_image>"}
    named = dict(zip(("boi_token", "image_token", "eoi_token"), special.values(), strict=True))
    images = _pil("Gemma3", size=_SIDE)
    return transformers.Gemma3Processor(
        images, words_tokenizer(special, named), image_seq_length=16
    ), "<start_of_image>"


def _glm(images: str, cls: Any) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        special = {
            START: "<|begin_of_image|>",
            IMAGE: "<|image|>",
            VIDEO: "<|video|>",
            END: "<|end_of_image|>",
            BREAK: "<|begin_of_video|>",
            ROW: "<|end_of_video|>",
        }
        pil = _pil(images, patch_size=8, merge_size=2, size=MROPE_SIZE)
        tokenizer = words_tokenizer(special, {"image_token": "<|image|>"})
        return images_only(cls)(pil, tokenizer), "<|begin_of_image|><|image|><|end_of_image|>"

    return make


# Family of the zoo to (processor, how its chat template writes an image).
PROCESSORS: dict[str, Callable[[], tuple[Any, str]]] = {
    "llava": _llava,
    "llava-mixtral": _llava,
    "llava-qwen3-moe": _llava,
    "llava-next": _llava_next,
    "llava-next-video": _llava_next_video,
    "llava-onevision": _llava_onevision,
    "pixtral": _pixtral(1),
    "mistral3": _pixtral(2),
    "qwen2-vl": _qwen(transformers.Qwen2VLProcessor),
    "qwen2.5-vl": _qwen(transformers.Qwen2_5_VLProcessor),
    "qwen3-vl": _qwen(transformers.Qwen3VLProcessor),
    "qwen3-vl-moe": _qwen(transformers.Qwen3VLProcessor),
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "paligemma2": _paligemma,
    "gemma3": _gemma3,
    "glm4v": _glm("Glm4v", transformers.Glm4vProcessor),
    "glm4v-moe": _glm("Glm4v", transformers.Glm4vProcessor),
    "glm46v": _glm("Glm46V", transformers.Glm46VProcessor),
}


def processor_of(name: str) -> Any:
    """A family's processor with a chat template."""
    processor, image = PROCESSORS[name]()
    processor.chat_template = chat_template(image)
    return processor


def save(name: str, folder: Path) -> Path:
    """Model and processor of a family in `folder`."""
    built(name, "eager").save_pretrained(folder)
    processor_of(name).save_pretrained(folder)
    return folder
