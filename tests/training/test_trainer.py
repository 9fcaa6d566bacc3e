"""Learning with aligned models: the gates, the sparse middle, peft and the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import LAYERS, llava_inputs, llava_model
from tests.training.test_align import aligned, with_labels
from visipruner.contract.choosing import top
from visipruner.errors import ConfigError
from visipruner.training import AnnealGates, Asked, align, gates_of
from visipruner.training.guide import log_gates, log_influence


def test_log_influence_is_the_papers() -> None:
    from visipruner.contract.influence import influence

    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(4, 3, 12, generator=generator).softmax(-1)
    values, visual = torch.randn(2, 12, 8, generator=generator), torch.tensor([2, 3, 5, 9])
    got = log_influence(attention, values, visual)
    for row in range(3):
        torch.testing.assert_close(got[row].exp(), influence(attention[:, row], values, visual).norm)


def test_gates_are_the_top_tokens_once_cold() -> None:
    scores = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    warm, cold = log_gates(scores, 5, 1.0).exp(), log_gates(scores, 5, 1e-4).exp()
    assert cold.round().sum(-1).tolist() == [5, 5]
    for row in range(2):
        assert cold[row].nonzero().flatten().tolist() == top(scores[row], 5).tolist()
    assert ((warm > 0.01) & (warm < 0.99)).all()


@pytest.mark.parametrize("layer", [0, 2])
def test_a_certain_start_and_exit_are_the_fixed_ones(layer: int) -> None:
    """Soft layers converge to the hard ones exactly: probability 0 is a layer without visual rows, 1 a plain one."""
    inputs = with_labels(llava_inputs([[4, 0, 6]], "right"))
    model = aligned(inject_layer="learnt", exit_layer="learnt").train()
    with torch.no_grad():
        model.visual_gates.start.logits[layer] = 60.0
        model.visual_gates.exit.logits[4 - model.visual_gates.exit.first] = 60.0
    fixed = aligned(inject_layer=layer, exit_layer=4)
    got, wanted = model(**inputs).logits, fixed(**inputs).logits
    text = inputs["input_ids"][0] != model.config.image_token_id
    torch.testing.assert_close(got[0, text], wanted[0, text], rtol=1e-3, atol=1e-3)
    assert model.eval().visual_gates.inject_layer == layer
    assert model.visual_gates.exit_layer == 4


def test_the_cost_of_layers_moves_a_learnt_start_up_and_a_learnt_exit_down() -> None:
    model = aligned(inject_layer="learnt", exit_layer="learnt", filter_layer=3, keep_tokens=4, layer_cost=1.0).train()
    gates = model.visual_gates
    optimizer = torch.optim.SGD(gates.parameters(), lr=5.0)
    spans = []
    for _ in range(40):
        optimizer.zero_grad()
        model.regularizer().backward()
        optimizer.step()
        spans.append(float(model.regularizer().detach()))
    assert spans == sorted(spans, reverse=True)
    assert (gates.inject_layer, gates.exit_layer) == (3, 4)


def test_learnt_layers_that_contradict_leave_one_layer() -> None:
    gates = aligned(inject_layer="learnt", exit_layer="learnt").visual_gates
    with torch.no_grad():
        gates.start.logits[3], gates.exit.logits[0] = 5.0, 5.0
    assert (gates.inject_layer, gates.exit_layer) == (3, 4)


def test_both_learnt_layers_have_a_gradient_from_the_answer_alone() -> None:
    model = aligned(inject_layer="learnt", exit_layer="learnt", layer_cost=0.0).train()
    model(**with_labels(llava_inputs([[4, 0, 6]], "right"))).loss.backward()
    for gate in (model.visual_gates.start, model.visual_gates.exit):
        assert gate.logits.grad.abs().max() > 0


def packed(questions: list[Tensor]) -> tuple[dict[str, Any], list[Asked]]:
    """Questions about one image in one row: they see the image and themselves, each at its own positions."""
    start = llava_inputs([[4, 0]])
    prefix = start["input_ids"][0]
    blocks = [torch.zeros(len(prefix), dtype=torch.long)]
    blocks += [torch.full_like(ids, number) for number, ids in enumerate(questions, 1)]
    block = torch.cat(blocks)
    seen = (block[:, None] == block[None]) | (block == 0)[None]
    seen &= torch.ones_like(seen).tril()
    positions = torch.cat([torch.arange(len(prefix)), *(len(prefix) + torch.arange(len(ids)) for ids in questions)])
    ends = [int((block <= number).sum()) for number in range(1, len(questions) + 1)]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    inputs = {
        "input_ids": torch.cat([prefix, *questions])[None],
        "pixel_values": start["pixel_values"],
        "attention_mask": mask[None, None],
        "position_ids": positions[None],
    }
    return inputs, [Asked(torch.tensor([len(block) - end for end in ends]), block - 1)]


@pytest.mark.parametrize("settings", [{}, {"frozen_layers": (1, 2)}, {"keep_tokens": 4, "filter_layer": LAYERS - 2}])
def test_questions_that_share_an_image_are_answered_as_if_asked_alone(settings: dict[str, Any]) -> None:
    """With a choice at the last but one layer the sharing is exact: only visual rows of the last layer see more."""
    questions = [torch.randint(3, 90, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 7, 4)]
    model = aligned(inject_layer=1, **settings).train()
    model.visual_gates.progress = 1.0
    inputs, asked = packed(questions)
    with torch.no_grad(), model.visual_gates.asking(asked):
        together = model(**inputs).logits[0]
    if "keep_tokens" in settings:
        assert model.visual_gates.kept == [4.0] * 3
    first = inputs["input_ids"].shape[1] - sum(map(len, questions))
    for ids in questions:
        prefix = inputs["input_ids"][0, :20]
        alone = {"input_ids": torch.cat([prefix, ids])[None], "pixel_values": inputs["pixel_values"]}
        with torch.no_grad():
            wanted = model.eval()(**alone).logits[0, 20:]
        model.train()
        torch.testing.assert_close(together[first : first + len(ids)], wanted, rtol=1e-4, atol=1e-4)
        first += len(ids)


class Prompts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four prompts whose answer the image decides: too few to need seeing, enough to be learnt by heart."""

    def __init__(self) -> None:
        inputs = with_labels(llava_inputs([[4, 0, 6]] * 4, "right"), learnt=1)
        # Llava's image batch is flat, one image a prompt here, so that the default collator can stack examples.
        self.inputs = inputs

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.inputs.items()}


NEEDS_LABELS: list[dict[str, Any]] = [
    {"keep_tokens": 4, "filter_layer": 3},
    {"inject_layer": "learnt"},
    {"exit_layer": "learnt"},
]


@pytest.mark.parametrize("settings", NEEDS_LABELS)
def test_what_cannot_be_learnt_without_labels_is_refused(settings: dict[str, Any]) -> None:
    inputs = llava_inputs([[4, 0, 6]])
    model = aligned(**settings).train()
    with pytest.raises(ConfigError, match="must be given labels"):
        model(**inputs)
    with torch.no_grad(), model.gates.asking([Asked(torch.tensor([2]))]):
        model(**inputs)
    model.eval()(**inputs)


@pytest.mark.parametrize("settings", [{"inject_layer": 2}, {"inject_layer": "learnt", "layer_cost": 0.0}])
def test_the_rest_trains_with_any_loss(settings: dict[str, Any]) -> None:
    model = aligned(**settings).train()
    model(**llava_inputs([[4, 0, 6]])).logits.sum().backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("way", ["label_smoothing_factor", "compute_loss_func"])
def test_a_trainer_that_keeps_the_labels_back_is_refused(way: str, tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    smoothing = 0.1 if way == "label_smoothing_factor" else 0.0
    loss = None if smoothing else lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()
    arguments = TrainingArguments(
        tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, label_smoothing_factor=smoothing
    )
    model = aligned(keep_tokens=4, filter_layer=3)
    with pytest.raises(ConfigError, match=f"train without .*{way}"):
        Trainer(model=model, args=arguments, train_dataset=Prompts(), compute_loss_func=loss).train()


@pytest.mark.parametrize("lora", [False, True])
def test_the_trainer_lowers_the_loss(lora: bool, tmp_path: Any) -> None:
    """All at once: learnt start and exit, sparse middle, gradient checkpointing, checkpoints, peft where installed."""
    from transformers import Trainer, TrainingArguments

    model: Any = align(
        llava_model(), "learnt", 6, "learnt", filter_layer=3, start_candidates=(1, 3), exit_candidates=(4, 6)
    )
    if lora:
        peft = pytest.importorskip("peft")
        targets = r".*language_model.*\.(q|k|v|o)_proj"
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["visual_gates"])
        )
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=2,
        num_train_epochs=8,
        learning_rate=5e-3 if lora else 1e-3,
        logging_steps=2,
        save_steps=8,
        report_to=[],
        gradient_checkpointing=True,
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Prompts(), callbacks=[AnnealGates()])
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[-1]["loss"] < 0.7 * logs[0]["loss"]
    assert [log["kept_tokens"] for log in (logs[0], logs[-1])] == [pytest.approx(7, abs=2), 6.0]
    assert 1 <= logs[-1]["inject_layer"] <= 3 < logs[-1]["exit_layer"] <= 6
    assert gates_of(model).progress == 1.0
    if lora:
        assert model.base_model.model.gates is not model.base_model.model.visual_gates.original_module
    resumed = Trainer(model=model, args=arguments, train_dataset=Prompts(), callbacks=[AnnealGates()])
    resumed.train(resume_from_checkpoint=True)
