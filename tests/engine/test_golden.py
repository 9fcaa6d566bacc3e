"""Recorded runs of the unmodified reference implementation; see data/golden/README.md for their origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import visipruner as vp

FOLDER = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("case_*.json"))
_ARGUMENTS = ("shallow_mid_layer", "layer_threshold", "tokens_threshold")


def _model(case: dict[str, Any], attn: str) -> LlamaForCausalLM:
    config = json.loads((FOLDER / case["config"]).read_text())
    config = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "torch_dtype")}
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation=attn)).eval()
    model.load_state_dict(load_file(FOLDER / case["weights"]))
    return model


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_reproduced(name: str, attn: str) -> None:
    case = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = np.load(FOLDER / f"{name}.npz")
    settings = case["pruning_config"] or {"mode": []}
    pruner = vp.VisiPruner.reference(
        size=case["model_size_name"],
        stages=tuple(settings["mode"]),
        **{key: settings[key] for key in _ARGUMENTS if key in settings},
    )
    mask = torch.zeros(1, case["seq_len"], dtype=torch.bool)
    mask[:, slice(*case["visual_span"])] = True
    model = _model(case, attn)
    with vp.attach(model, pruner, visual_mask=mask) as handle:
        output = model.generate(
            inputs_embeds=torch.from_numpy(arrays["inputs_embeds"]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    # The reference divides by sqrt(head_dim), transformers multiplies by its inverse; 1e-4 leaves room for that.
    logits = torch.stack(output.logits)[:, 0].numpy()
    np.testing.assert_allclose(logits, arrays["step_logits"], atol=1e-4, rtol=0)
    assert output.sequences[0].tolist() == case["greedy_tokens"]
    trace = handle.trace[0]
    assert trace.trigger_layer == case["trigger_layer"]
    assert trace.exit_votes == case["exit_increment_layers"]
    assert trace.exit_layer == case["vision_gone_from_layer"]
    assert trace.query_lengths == case["q_len"]
    assert trace.key_lengths == case["kv_len_prefill"]
    if trace.trigger_layer is not None:
        assert trace.kept[trace.trigger_layer + 1] == case["selected_visual"]
    held = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert held == case["kv_len_after_decode"]


def test_every_recorded_case_is_run() -> None:
    assert len(CASES) >= 11
