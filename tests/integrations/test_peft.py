"""examples/peft_finetune.py on a tiny model: it learns with fewer visual tokens, and only its adapter changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import visipruner as vp
from examples.peft_finetune import example, main
from tests.analysis.planted import pictures, planted
from visipruner.evaluation import evaluate
from visipruner.evaluation.samples import Sample
from visipruner.models import loading

peft = pytest.importorskip("peft")


def test_it_trains_saves_and_answers_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "adapter"
    folder.mkdir()
    planted(folder, 6, (2, 3))[0].save_pretrained(folder)
    data = tmp_path / "pairs.jsonl"
    picture = pictures(tmp_path, 1)[0].image
    data.write_text(f'{{"image": "{picture}", "question": "what is this ?", "answer": "a red dog"}}\n')
    losses = main(
        [
            *("--model", str(folder), "--data", str(data), "--out", str(out), "--steps", "25"),
            *("--method", "divprune:keep_tokens=5", "--learning-rate", "0.005"),
        ]
    )
    assert losses[-1] < 0.5 * losses[0]  # it learns its only answer by heart

    pruner = vp.load_pruner(out)
    assert pruner == vp.DivPrune(keep_tokens=5)
    loaded = loading.load(str(folder), dtype="float32")
    sample = Sample(picture, "what is this ?", ("a red dog",))
    before = {name: weights.clone() for name, weights in loaded.model.state_dict().items()}
    tuned = peft.PeftModel.from_pretrained(loaded.model, out).eval()
    with vp.attach(tuned, pruner) as handle, torch.no_grad():
        said = tuned(**example(loaded.model, loaded.processor, sample))
        assert [len(kept) for kept in handle.trace[0].kept[:-1]] == [5] * 6
    assert said.loss.item() < 1.5 * losses[-1]  # a step further: mostly less
    plain = tuned.unload()
    assert all(torch.equal(weights, before[name]) for name, weights in plain.state_dict().items())
    records = list(evaluate(plain, loaded.processor, [sample], {"pruned": pruner}, max_new_tokens=2))
    assert records[0]["given"]["pruned"]["tokens"] > 0


def test_only_the_answer_is_learnt(tmp_path: Path) -> None:
    model, processor = planted(tmp_path, 6, (2, 3))
    sample = pictures(tmp_path, 1)[0]
    inputs = example(model, processor, Sample(sample.image, "what is this ?", ("a red dog",)))
    learnt = inputs["labels"][0][inputs["labels"][0] != -100]
    assert processor.decode(learnt).replace("</s>", " </s>").split() == ["a", "red", "dog", "</s>"]
    assert torch.equal(learnt, inputs["input_ids"][0, -4:])
