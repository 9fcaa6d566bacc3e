"""Packing: a packed question is computed exactly as if it were asked alone, and learnt tokens are the answers."""

import torch

from research.scenes import TRAIN_STYLES, LayoutOptions, Question, draw_example
from research.training.sequence import Packer, block_mask

QUESTIONS = [Question("What is this?", "cat", "identify"), Question("How many cats are there?", "two", "count")]


def test_blocks_see_the_prefix_and_themselves_only():
    mask = block_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int()
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
    ]
    assert mask[:5].tolist() == expected


def test_labels_are_the_answers_with_their_end(processor):
    packed = Packer(processor, 16).pack([QUESTIONS, QUESTIONS[:1]])
    learnt = packed.labels[0][packed.labels[0] >= 0].tolist()
    assert processor.tokenizer.decode(learnt) == " cat<|im_end|> two<|im_end|>"
    assert (packed.weights[packed.labels < 0] == 0).all()
    assert (packed.weights[packed.labels >= 0] > 0).all()


def test_a_tally_is_learnt_only_where_asked_for(processor):
    question = Question("How many cats are there?", "one", "count", "top left one")
    for tallying, expected in ((True, " top left one: one<|im_end|>"), (False, " one<|im_end|>")):
        packed = Packer(processor, 16, tallying).pack([[question, QUESTIONS[0]]])
        learnt = packed.labels[0][packed.labels[0] >= 0].tolist()
        assert processor.tokenizer.decode(learnt) == expected + " cat<|im_end|>"


def test_packed_equals_alone(model, processor, art):
    picture = draw_example("pack", 0, art, LayoutOptions(styles=TRAIN_STYLES), 0).picture
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    packed = Packer(processor, 16).pack([QUESTIONS])
    mask = torch.zeros(packed.attention_mask.shape).masked_fill(~packed.attention_mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model(
            input_ids=packed.input_ids, pixel_values=pixels, attention_mask=mask, position_ids=packed.position_ids
        ).logits[0]
        together = logits[packed.labels[0] >= 0]
        alone = []
        for question in QUESTIONS:
            content = [{"type": "image"}, {"type": "text", "text": question.question}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            text = f"{prompt} {question.answer}<|im_end|>"
            inputs = processor(images=picture, text=text, return_tensors="pt")
            length = len(processor.tokenizer.encode(f" {question.answer}<|im_end|>"))
            alone.append(model(**inputs).logits[0, -length - 1 : -1])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
