"""Fine-tunes a multimodal model with LoRA while its visual tokens are pruned: it learns what it will be run with.

python examples/peft_finetune.py --data pairs.jsonl --method divprune:keep_tokens=144 --steps 100 --out adapter/

`adapter/` then holds peft's adapter and the method's pruner.json. Take a method that looks at the picture: one that
looks at the last row (FastV, VisiPruner) would choose by the end of the answer here, which nobody knows when it asks.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import visipruner as vp
from visipruner import specs
from visipruner.chat import message_inputs, picture_question
from visipruner.evaluation.datasets import open_data
from visipruner.evaluation.samples import Sample
from visipruner.images import open_image
from visipruner.models import loading, packaged

TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"


def example(model: Any, processor: Any, sample: Sample, before: str = "") -> dict[str, Any]:
    """What `model(**...)` learns from: the prompt, the answer after it, and labels that leave the prompt out."""
    prompt = message_inputs(model, processor, picture_question(open_image(sample.image), sample.question))
    words = processor.tokenizer(before + sample.answers[0], add_special_tokens=False)["input_ids"]
    answer = torch.tensor([[*words, processor.tokenizer.eos_token_id]], device=model.device)
    ids = torch.cat([prompt["input_ids"], answer], 1)
    labels = torch.cat([torch.full_like(prompt["input_ids"], -100), answer], 1)
    return {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains and saves; returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed", help="as `visipruner run --model` takes it")
    parser.add_argument("--data", type=Path, help="as `visipruner eval --data` takes it; default: the model's own")
    parser.add_argument("--before", default="", help="what the model begins answers with; the small one: ' '")
    parser.add_argument("--method", default="divprune:keep_tokens=144", metavar="SPEC")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)

    torch.manual_seed(given.seed)
    task = open_data(given.data or packaged.data_of(given.model))
    samples = task.choose(min(given.steps, len(task.samples)), given.seed)
    task.prepare(samples)
    loaded = loading.load(given.model, dtype="float32")
    pruner = specs.resolve(given.method, given.model, loaded.num_layers).pruner
    model = get_peft_model(loaded.model, LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.learning_rate)

    losses = []
    model.train()
    with vp.attach(model, pruner):
        for step in range(given.steps):
            if step % len(samples) == 0:
                random.Random(given.seed + step).shuffle(samples)
            sample = samples[step % len(samples)]
            loss = model(**example(loaded.model, loaded.processor, sample, given.before)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step % 10 == 9 or step == given.steps - 1:
                recent = losses[-10:]
                print(
                    f"step {step + 1}: mean loss {sum(recent) / len(recent):.3f} of the last {len(recent)}", flush=True
                )
    model.save_pretrained(given.out)
    pruner.save_pretrained(given.out)
    return losses


if __name__ == "__main__":
    main()
