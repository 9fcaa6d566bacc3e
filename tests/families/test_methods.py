"""Every method of the registry with families that differ most: the rows it drops are edges cut, whoever chose them."""

from __future__ import annotations

import pytest
import torch

import visipruner as vp
from tests.families.test_matrix import CLOSE
from tests.families.tried import tries
from tests.families.zoo import EACH_ADAPTER, LAYERS, adapter_of, built, inputs, prompt, visual_rows
from tests.oracle import oracle, pruned_edit
from visipruner.pruners.registry import available, method_class

# Those that show the picture smaller are not attached: tests/pruners/test_downsample.py has them.
_SHRINK = {name for name in available() if method_class(name).shrinks}
_BY_HAND = {"none", "schedule", "visipruner", "visipruner-reference"}  # test_matrix has them, at settings of their own
METHODS = {name: method_class(name).for_depth(LAYERS) for name in available() if name not in _BY_HAND | _SHRINK}
SELECTS = {name: method for name, method in METHODS.items() if not method.merges}


@tries("methods")
@pytest.mark.parametrize("method", SELECTS)
@pytest.mark.parametrize("name", ["llava-next", "qwen3-vl", "idefics3", "mistral3", "paligemma", "gemma3"])
def test_methods_that_select(name: str, method: str) -> None:
    model, pruner = built(name), SELECTS[method]
    prepared = inputs(name, [prompt(name, [3, 0, 2, 0, 5])])
    visual = visual_rows(prepared["input_ids"])[0]
    if pruner.vision_layers(24) and not adapter_of(name).vision:
        with pytest.raises(vp.UnsupportedModelError, match="vision tower"):
            vp.attach(model, pruner)
        return
    with vp.attach(model, pruner) as handle, torch.no_grad():
        logits = model(**prepared).logits[0]
        kept = handle.trace[0].kept
    assert len(kept[-1]) < int(visual.sum())
    with oracle(model, pruned_edit(visual, kept, pruner)), torch.no_grad():
        expected = model(**prepared, use_cache=False).logits[0]
    torch.testing.assert_close(logits[~visual], expected[~visual], **CLOSE)


@tries("methods", "vision methods")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_ADAPTER)
def test_methods_run_or_say_why_not(name: str, method: str) -> None:
    model, pruner = built(name, "eager"), METHODS[method]
    layouts = [[3, 0, 6], [7], [2, 0, 2, 0, 4]]
    prepared = inputs(name, [prompt(name, layout, seed) for seed, layout in enumerate(layouts)])
    # Pixtral's encoder reads all images as one sequence and masks them from each other.
    readable = bool(adapter_of(name).vision) and name != "pixtral"
    if pruner.vision_layers(24) and not readable:
        with pytest.raises(vp.UnsupportedModelError, match="vision tower"), vp.attach(model, pruner):
            model(**prepared)
        return
    with vp.attach(model, pruner), torch.no_grad():
        logits = model(**prepared).logits
    assert torch.isfinite(logits[:, -1]).all()
