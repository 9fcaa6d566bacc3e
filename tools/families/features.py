"""What works with which family, declared by the adapters and tried by `tests/families`, as the table of the docs."""

from __future__ import annotations

from collections.abc import Sequence

from tools.families.methods import row
from tools.families.methods import table as methods_table
from visipruner.adapters.base import Adapter

# Feature to what it means; every test in tests/families names the features it tries.
FEATURES: dict[str, str] = {
    "image": "one image in a prompt, of any size and number of crops the family has",
    "several images": "several unlike images in a prompt",
    "video": "a video in a prompt",
    "no image": "prompts without an image: the plain model to the last bit, or to float rounding beside prompts of a "
    "batch that are pruned",
    "batch": "unlike prompts in a batch, padded on either side: each gets what it gets alone",
    "cache": "decoding with a cache equals one full forward, and decoding without one",
    "beams": "beam search, with and without a cache",
    "next turn": "further text on the same cache",
    "new image": "a further image on the same cache",
    "sdpa": "attn_implementation='sdpa'",
    "eager": "attn_implementation='eager'",
    "prefix": "VisiPruner with shallow_visual='prefix'",
    "ffn": "VisiPruner with shallow_visual='ffn'",
    "late": "VisiPruner with shallow_visual='late'",
    "each image": 'a budget for each image of a prompt (`scope="image"`)',
    "methods": "the registry's methods that look at the text decoder",
    "vision methods": "the registry's methods that look at the vision tower (`Adapter.vision`)",
    "probe": "analysis: knockouts, lenses and the like through `visipruner.analysis.probe.Probe`",
    "run": "`visipruner run` with the stock processor",
}

# Ways of calling that do not depend on the family: (does it work, how or what to do instead).
USES: dict[str, tuple[str, str]] = {
    "sampling": (
        "yes",
        "with a seed: the same tokens as the plain model where nothing is pruned, and again when pruned",
    ),
    "chat": (
        "yes",
        "questions about an image of the first turn, in one prompt by the processor's chat template, and turn by turn "
        "on the same cache: what was kept of the image stays as it is",
    ),
    "streaming": (
        "yes",
        "`TextStreamer`, `TextIteratorStreamer`: the words are those of plain `generate`; ask for `handle.trace` in "
        "the thread that runs `generate`, as another thread has a trace of its own",
    ),
    "hidden states": (
        "yes",
        "`output_hidden_states`: entry i > 0 holds the rows that layer i - 1 ran, the examples' one after another "
        "once some are gone; the last entry is in the prompt's places again, zeros where rows are gone",
    ),
    "attention maps": (
        "error",
        "`output_attentions` under eager attention, as soon as a layer runs on fewer rows; attach `NoPruning()` to see "
        "the plain model's",
    ),
    "flash attention": (
        "yes",
        "`flash_attention_2` and kernels registered with its masks: packed rows are one call of variable length. Tried "
        "with a stand-in for the kernel in plain torch, never on a GPU. What takes a mask is an error: "
        '`shallow_visual="ffn"`, frozen rows, training, sliding windows shorter than the prompt',
    ),
    "flex attention": (
        "yes",
        "`flex_attention`: the same edges as blocks of rows and keys; what sdpa takes but for `Probe` and "
        "training. Tried on CPUs, mostly uncompiled, never on a GPU. Masks are made densely first, a byte an edge. A "
        "function of your own works if it is registered with the mask function of sdpa, eager, flex or flash attention "
        "and takes the masks that it takes",
    ),
    "assisted decoding": (
        "error",
        "`assistant_model`, `prompt_lookup_num_tokens`: guesses would be read as the end of the prompt; nor "
        "`prefill_chunk_size`",
    ),
    "static cache": (
        "yes",
        '`cache_implementation="static"` of `generate`, with its compiled step, which runs without the engine; with '
        "sdpa and eager, for one answer. Not with `recall`, nor offloaded; PaliGemma 2 fails in transformers itself",
    ),
    "torch.compile": (
        "yes",
        "the decoder runs uncompiled as long as a pruner is attached, for its row counts change from prompt to prompt "
        "(but for the steps of an answer from a static cache); `attach` takes compiled and peft models, too",
    ),
    "device_map": (
        "yes",
        "through accelerate, layers on the disk or on several accelerators included: the same numbers to the last bit. "
        "Several accelerators were tried on a CPU, with tensors that say they are on unlike devices and may not meet",
    ),
    "8- and 4-bit weights": (
        "yes",
        "the engine only calls linear layers; the tests replace LLaVA's by int8 layers of their own. "
        "Those with torchao (0.18.0, int8) and bitsandbytes (0.50.2, 8 and 4 bits), on a CPU, run only where these are "
        "installed, which no extra does: they were run by hand",
    ),
}


def table(adapters: Sequence[Adapter]) -> str:
    """Families by features in Markdown: yes, no, and numbered notes below."""
    notes: list[str] = []
    lines = [row(["family", "`model_type`", *FEATURES]), row(["---"] * (2 + len(FEATURES)))]
    for adapter in adapters:
        types = ", ".join(f"`{kind}`" for kind in adapter.model_types)
        lines.append(row([adapter.family, types, *(_cell(adapter, feature, notes) for feature in FEATURES)]))
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1)), ""]
    lines += [row(["family", "which rows are visual tokens"]), row(["---"] * 2)]
    lines += [row([adapter.family, adapter.visual]) for adapter in adapters]
    lines += ["", *(f"* *{feature}*: {meaning}." for feature, meaning in FEATURES.items())]
    lines += ["", "With every family:", "", row(["use", "works", "how"]), row(["---"] * 3)]
    lines += [row([use, works, how]) for use, (works, how) in USES.items()]
    lines += ["", "Methods by families, with the numbers of the invariants that are checked:", ""]
    lines += methods_table(adapters)
    return "\n".join(lines) + "\n"


def _cell(adapter: Adapter, feature: str, notes: list[str]) -> str:
    note = adapter.lacks.get(feature) or adapter.remarks.get(feature)
    word = "no" if feature in adapter.lacks or (feature == "vision methods" and not adapter.vision) else "yes"
    if note is None:
        return word
    if note not in notes:
        notes.append(note)
    return f"{word} ({notes.index(note) + 1})"
