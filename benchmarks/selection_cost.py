"""What the selection costs beside the layer it looks at, at LLaVA-1.5-7B's shape.

    python benchmarks/selection_cost.py [--layers 3] [--rounds 5] [--json FILE]

Builds a few decoder layers of the 7B shape with random bfloat16 weights (about 0.4 GB a layer), runs a prompt of
35 + 576 + 13 rows through them, and times each layer and the pruner's look at it in the same run. It looks at all
layers but the first and the last; a real prompt pays only up to the filter layer, so the share is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import visipruner as vp
from visipruner.engine.session import PromptSession

BEFORE, VISUAL, AFTER = 35, 576, 13


def build(layers: int) -> LlamaForCausalLM:
    """Decoder layers of LLaVA-1.5-7B's shape with random weights."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=64,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are computed, not loaded
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    return model


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """`function`, adding the seconds of each call to `into`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        into.append(time.perf_counter() - began)
        return result

    return run


def measure(layers: int, rounds: int) -> dict[str, float]:
    """Median seconds of a layer and of a look, and the look's share of the layer."""
    model = build(layers)
    mask = torch.zeros(1, BEFORE + VISUAL + AFTER, dtype=torch.bool)
    mask[:, BEFORE : BEFORE + VISUAL] = True
    embeds = torch.randn(*mask.shape, model.config.hidden_size, dtype=model.dtype)
    # Nothing is below a cosine of -1: every layer is looked at, none triggers, all rows stay.
    pruner = vp.VisiPruner(stages=("middle",), shallow_end=0, filter_threshold=-1.0)
    looks: list[float] = []
    whole: list[float] = []
    original = PromptSession._ask
    PromptSession._ask = timed(original, looks)  # type: ignore[method-assign]
    try:
        with vp.attach(model, pruner, mask), torch.inference_mode():
            run = timed(lambda: model(inputs_embeds=embeds, logits_to_keep=1), whole)
            for _ in range(1 + rounds):
                run()
    finally:
        PromptSession._ask = original  # type: ignore[method-assign]
    look = statistics.median(looks[len(looks) // (1 + rounds) :])  # without the first run's, which warms up
    layer = statistics.median(whole[1:]) / layers
    return {"layer_seconds": layer, "look_seconds": look, "share": look / layer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers",
        type=int,
        default=3,
        help="decoder layers to build, 0.4 GB each; at least 3",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    result = measure(arguments.layers, arguments.rounds)
    print(f"a layer   {1000 * result['layer_seconds']:8.1f} ms")
    print(f"a look    {1000 * result['look_seconds']:8.1f} ms")
    print(f"share     {100 * result['share']:8.2f} %  of every layer that is looked at")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
