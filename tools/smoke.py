"""What an installed visipruner must do: prune a tiny model, know its methods, and find the small model's package.

python tools/smoke.py 0.1.0    # the version that must be installed; run it outside of a checkout
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import visipruner as vp
import visipruner_testbed


def check(expected: str) -> None:
    """Raises AssertionError or CalledProcessError where something is missing."""
    site = Path(sys.prefix)
    assert version("visipruner") == version("visipruner-testbed") == vp.__version__ == expected
    for module in (vp, visipruner_testbed):
        assert site in Path(str(module.__file__)).parents, f"{module.__file__} is not what was installed"
    command = Path(sys.executable).with_name("visipruner")
    for words in (["list"], ["list", "fastv"], ["run", "--help"], ["testbed", "--help"]):
        subprocess.run([command, *words], check=True, stdout=subprocess.DEVNULL)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=32, patch_size=8),
        text_config=LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=40),
        image_token_id=39,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 5, *[39] * 16, 6, 7]])
    with vp.attach(model, vp.FastV(layer=2, keep_tokens=3)) as handle:
        model.generate(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), max_new_tokens=2, do_sample=False)
        assert [len(kept) for kept in handle.trace[0].kept] == [16, 16, 3, 3, 3]


if __name__ == "__main__":
    check(sys.argv[1])
    print(f"visipruner {sys.argv[1]} works on Python {sys.version.split()[0]}, torch {torch.__version__}")
