"""A tiny random LLaVA of the testbed's kind with a byte-level tokenizer, for its tests and those of research."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from visipruner_testbed.assembly.language import CHAT_TEMPLATE, IMAGE_TOKEN

IMAGE_SIZE = 56
VISUAL_TOKENS = 16


def make_processor() -> LlavaProcessor:
    """Stock processor with 16 visual tokens and one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", IMAGE_TOKEN]})
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """A fresh random model of the testbed's kind: two vision layers read, two decoder layers, tied embeddings."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE_SIZE, use_mask_token=False
        ),
        text_config=LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=True,
        ),
        image_token_index=processor.image_token_id,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=[1, 2],
        tie_word_embeddings=True,
    )
    made = LlavaForConditionalGeneration(config).eval()
    made.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    made.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return made
