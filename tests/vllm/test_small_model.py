"""The small model with its real weights; vLLM has no class for its vision tower, so images come as features.

Skipped where nobody built the model (`make demo` does).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, LlavaForConditionalGeneration

import visipruner
from tests.vllm.answers import NEW, Answer, answer_of
from tests.vllm.engines import Served
from tests.vllm.models import rename_tower
from visipruner.pruners.registry import make_from_spec
from visipruner_testbed.build import cache_root
from visipruner_testbed.calibration import calibrated
from visipruner_testbed.testset import DATA_FOLDER

BUILT = sorted(cache_root().glob("testbed-336-*"))
CHATS = [("photos/coffee.jpg", "Is there a coffee in the image?"), ("test/scenes-053.jpg", "Where is the cross?")]
METHODS = {
    "calibrated, but for the shallow stage": replace(calibrated(), stages=("middle", "deep")),
    "the same, detecting": replace(calibrated(), stages=("middle", "deep"), filter_layer=None, exit_layer=None),
    "fastv": make_from_spec("fastv:layer=2,keep_tokens=144"),
    "dart": make_from_spec("dart:keep_tokens=144"),
}


class Small:
    """The model in transformers, and a folder in which vLLM finds the same decoder below a tower of no use."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(built, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(built)
        config = type(self.model.config).from_dict(self.model.config.to_dict())
        config.vision_config = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
        )
        config.vision_feature_layer = -1
        other = LlavaForConditionalGeneration(config)
        other.model.language_model.load_state_dict(self.model.model.language_model.state_dict())
        other.tie_weights()
        other.save_pretrained(folder)
        rename_tower(folder / "model.safetensors")
        self.processor.save_pretrained(folder)

    def inputs(self, file: str, question: str) -> Any:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(text=text, images=Image.open(DATA_FOLDER / file).convert("RGB"), return_tensors="pt")

    def answer(self, inputs: Any, pruner: Any) -> Answer:
        with visipruner.attach(self.model, pruner):
            found = self.model.generate(
                **inputs,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        chances = [step[0].float().log_softmax(-1) for step in found.logits]
        return Answer(tokens, [float(each[token]) for each, token in zip(chances, tokens, strict=True)])

    def asked(self, inputs: Any) -> dict[str, Any]:
        """The prompt with the image's features, one token in their place."""
        with torch.no_grad():
            (features,) = self.model.model.get_image_features(inputs["pixel_values"]).pooler_output
        image, ids = self.model.config.image_token_id, inputs["input_ids"][0]
        first = torch.cat([ids.new_tensor([-1]), ids[:-1]])
        return {
            "prompt_token_ids": ids[(ids != image) | (first != image)].tolist(),
            "multi_modal_data": {"image": [features]},
        }


@pytest.mark.skipif(not BUILT, reason="the small model is not built; make demo builds it")
def test_the_small_model_answers_as_in_transformers(tmp_path: Path) -> None:
    from vllm import SamplingParams

    small = Small(BUILT[-1], tmp_path)
    served = Served(tmp_path, enable_mm_embeds=True, max_model_len=1024, num_gpu_blocks_override=80)
    prompts = [small.inputs(*chat) for chat in CHATS]
    dense = [small.answer(inputs, make_from_spec("none")) for inputs in prompts]
    how = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW, logprobs=1)
    for name, pruner in METHODS.items():
        expected = [small.answer(inputs, pruner) for inputs in prompts]
        assert any(not each.is_as(other, 1e-4) for each, other in zip(expected, dense, strict=True)), name
        served.choose(pruner)
        outputs = served.llm.generate([small.asked(inputs) for inputs in prompts], how, use_tqdm=False)
        for output, right in zip(outputs, expected, strict=True):
            assert answer_of(output.outputs[0]).is_as(right), name
        assert served.numbers()["visual_tokens_dropped"] > 576
