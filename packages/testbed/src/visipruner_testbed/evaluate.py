"""Accuracy on the test set per question type, beside two baselines: the same model with a blank picture, and the
majority answer."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from visipruner.engine.calls import cache_name
from visipruner.evaluation.scoring import is_right, normalize
from visipruner_testbed.testset import Sample

# The mean colour that the image processor maps to zero.
_BLANK = (124, 116, 104)
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Row:
    """One line of the table: counts of right answers of `total`, `interval` is the model's 95 % interval.

    `blank` is None when the questions were not asked without the picture.
    """

    name: str
    scope: str
    total: int
    right: int
    interval: tuple[float, float]
    blank: int | None
    majority: int


def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    batch_size: int = 8,
    blank: bool = False,
    on_picture: Callable[[Sequence[Sample], Sequence[str]], object] = lambda asked, given: None,
    known: Callable[[Sequence[Sample]], list[str] | None] = lambda asked: None,
) -> list[str]:
    """The model's greedy answers; `blank` hides every picture behind one grey one.

    What comes before the question is the same for all questions about a picture and is computed once for them
    (`samples` are grouped by picture), which changes nothing but the rounding. `on_picture` is told a picture's samples
    and answers; `known` may have the answers already.
    """
    answers: list[str] = []
    seen: Seen | None = None
    for _, group in groupby(samples, key=lambda sample: sample.image):
        asked = list(group)
        given = known(asked) or []
        if not given:
            picture = _picture(asked[0], blank)
            if seen is None or seen.picture != picture:
                seen = see(model, processor, picture)
            for start in range(0, len(asked), batch_size):
                batch = [sample.question for sample in asked[start : start + batch_size]]
                given += _answer_seen(model, processor, seen, batch)
        answers += given
        on_picture(asked, given)
    return answers


@dataclass(frozen=True)
class Seen:
    """A picture the model has looked at: the token ids [1, length] up to the question and their keys and values."""

    picture: Image.Image
    ids: torch.Tensor
    cache: DynamicCache


@torch.inference_mode()
def see(model: Any, processor: Any, picture: Image.Image) -> Seen:
    """Run the model on the part of a prompt that ends with the picture."""
    inputs = dict(processor(images=[picture], text=[_prompt(processor, "")], return_tensors="pt"))
    length = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1
    ids = inputs["input_ids"][:, :length]
    cache = DynamicCache(config=model.config.get_text_config())
    pixels = inputs["pixel_values"].to(model.dtype)
    model(input_ids=ids, pixel_values=pixels, **{cache_name(model): cache}, logits_to_keep=1)
    return Seen(picture, ids, cache)


def _answer_seen(model: Any, processor: Any, seen: Seen, questions: Sequence[str]) -> list[str]:
    blocks = [_prompt(processor, question).split(processor.image_token)[-1] for question in questions]
    padded = processor.tokenizer(
        blocks, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )
    ids = torch.cat((seen.ids.expand(len(blocks), -1), padded["input_ids"]), dim=1)
    mask = torch.cat((torch.ones_like(seen.ids).expand(len(blocks), -1), padded["attention_mask"]), dim=1)
    cache = copy.deepcopy(seen.cache)
    cache.batch_repeat_interleave(len(blocks))
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **{cache_name(model): cache},
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
    return decode(processor, {"input_ids": ids}, output)


def batch_inputs(model: Any, processor: Any, batch: Sequence[Sample]) -> dict[str, Any]:
    """Left-padded tensors for one batch of whole prompts, pictures in the model's dtype."""
    prompts = [_prompt(processor, sample.question) for sample in batch]
    pictures = [_picture(sample, blank=False) for sample in batch]
    inputs = dict(processor(images=pictures, text=prompts, padding=True, return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def decode(processor: Any, inputs: dict[str, Any], output: torch.Tensor) -> list[str]:
    """The answers in what `generate` returned, prompts left out."""
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def tabulate(samples: Sequence[Sample], answers: Sequence[str], blanks: Sequence[str | None]) -> list[Row]:
    """A row per type of the "scenes" split, or of all where there is none, then local, global and overall, then the
    other splits.

    `blanks` are the answers without the picture, None where it was not asked.
    """
    scenes = [i for i, sample in enumerate(samples) if sample.split == "scenes"]
    own = scenes or list(range(len(samples)))
    types = dict.fromkeys(samples[i].type for i in own)
    groups: list[tuple[str, str, list[int]]] = [
        (
            kind,
            next(samples[i].scope for i in own if samples[i].type == kind),
            [i for i in own if samples[i].type == kind],
        )
        for kind in sorted(types)
    ]
    groups += [(f"all {scope}", scope, [i for i in own if samples[i].scope == scope]) for scope in ("local", "global")]
    groups.append(("overall", "", own))
    others = sorted({sample.split for sample in samples} - {"scenes"})
    groups += [(split, "", [i for i, sample in enumerate(samples) if sample.split == split]) for split in others]
    return [_row(name, scope, chosen, samples, answers, blanks) for name, scope, chosen in groups if chosen]


def as_records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects with accuracies beside the counts."""
    return [asdict(row) | {"accuracy": row.right / row.total} for row in rows]


def _row(
    name: str,
    scope: str,
    chosen: list[int],
    samples: Sequence[Sample],
    answers: Sequence[str],
    blanks: Sequence[str | None],
) -> Row:
    right = sum(is_right(answers[i], samples[i].answer) for i in chosen)
    by_type: dict[str, list[str]] = {}
    for i in chosen:
        by_type.setdefault(samples[i].type, []).append(samples[i].answer)
    return Row(
        name=name,
        scope=scope,
        total=len(chosen),
        right=right,
        interval=wilson_interval(right, len(chosen)),
        blank=_right_blanks(chosen, samples, blanks),
        majority=sum(majority_right(expected) for expected in by_type.values()),
    )


def _right_blanks(chosen: list[int], samples: Sequence[Sample], blanks: Sequence[str | None]) -> int | None:
    given = [(blanks[i], samples[i].answer) for i in chosen]
    return None if any(blank is None for blank, _ in given) else sum(is_right(str(b), right) for b, right in given)


def _prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _picture(sample: Sample, blank: bool) -> Image.Image:
    with Image.open(sample.image) as opened:
        return Image.new("RGB", opened.size, _BLANK) if blank else opened.convert("RGB")


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); (0, 1) for no observations."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def majority_right(answers: Sequence[str]) -> int:
    """How many of these are answered right by always giving the most frequent one."""
    return Counter(normalize(answer) for answer in answers).most_common(1)[0][1] if answers else 0
