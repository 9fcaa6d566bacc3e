"""A random LLaVA with a processor, small enough to build in a test, saved like any checkpoint; 5 x 5 visual tokens."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = [*SPECIAL, *"user : assistant what is this ? where the cat dog red blue two left right of a yes no".split()]  # noqa: SIM905
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
GRID = 5
# Options of `visipruner run` under which the 25 tokens become 4 after layer 3 and 0 from layer 5 on.
PRUNE_EARLY = ["--set", "shallow_end=2", "--set", "filter_layer=3", "--set", "exit_layer=5", "--set", "keep_tokens=4"]
_PATCH = 8


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, `<unk>` for the others."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def _text_config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _processor(chat_template: str | None) -> LlavaProcessor:
    side = GRID * _PATCH
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer(),
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def save_llava(folder: Path, layers: int = 6, chat_template: str | None = TEMPLATE) -> Path:
    """Writes model and processor to `folder`, the same every time."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=GRID * _PATCH,
        patch_size=_PATCH,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(layers),
        image_token_id=WORDS.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    _processor(chat_template).save_pretrained(folder)
    return folder


def save_text_model(folder: Path) -> Path:
    """A language model that reads no images."""
    torch.manual_seed(0)
    LlamaForCausalLM(_text_config(2)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
