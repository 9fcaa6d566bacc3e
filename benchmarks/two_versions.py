"""Two versions of this library in turns on the same model: did anything get slower?

    git worktree add ../old 56c0c4e
    visipruner testbed build          # a folder to give as --model, for the cases `answer` and `words alone`
    python benchmarks/two_versions.py --old ../old [--case NAME ...] [--model FOLDER] [--rounds 9] [--json FILE]

One process imports both versions, and both prune the same model and prompt, as times also depend on where a process
puts its tensors. Seconds are one thread's processor time, so that other work on the machine counts little. The order
changes from round to round; a ratio is old over new within a round: above 1, the new version is faster. `plain` is the
control: nothing is attached. All cases but those with a checkpoint have random weights and prompts of embeddings (35 +
576 + 13 rows).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

BEFORE, VISUAL, AFTER = 35, 576, 13
OURS = "visipruner"
Pruning = Callable[[Any], Any] | None


@dataclass(frozen=True)
class Case:
    """A model, what prunes it (None: nothing is attached), its visual rows where the prompt is of embeddings, and the
    work that is timed, given the handle."""

    model: Any
    pruner: Pruning
    mask: torch.Tensor | None
    work: Callable[[Any], object]


def small() -> Any:
    """The 0.5B shape: LLaVA-OneVision's 24 layers, without its vocabulary."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, num_hidden_layers=24, vocab_size=1024, tie_word_embeddings=True)
    return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def large() -> Any:
    """Eight layers of LLaVA-1.5-7B."""
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=8, vocab_size=1024)).to(torch.bfloat16).eval()


def tiny() -> Any:
    """32 layers whose products cost next to nothing, so that what remains is the libraries' own work."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=32)).eval()


def fixed(depth: int) -> Pruning:
    """VisiPruner with its paper's mean layers, at the same depth."""
    places = {"filter_layer": round(14 * depth / 32), "exit_layer": round(20 * depth / 32)}
    return lambda vp: vp.VisiPruner(stages=("middle", "deep"), keep_tokens=10, **places)


def rows(model: Any, batch: int, count: int) -> torch.Tensor:
    """Random embeddings, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, count, model.config.hidden_size, generator=generator).to(model.dtype) * 0.02


def marked(batch: int, visual: int) -> torch.Tensor:
    """The visual rows of a prompt."""
    mask = torch.zeros(batch, BEFORE + visual + AFTER, dtype=torch.bool)
    mask[:, BEFORE : BEFORE + visual] = True
    return mask


def prompt(model: Any, pruner: Pruning, *, visual: int = VISUAL, batch: int = 1, tokens: int = 1) -> Case:
    """One call of `generate`; the examples of a batch have unlike lengths."""
    embeds = rows(model, batch, BEFORE + visual + AFTER)
    seen = torch.ones(embeds.shape[:2], dtype=torch.long)
    for number in range(batch):
        seen[number, : 3 * number] = 0
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0, "do_sample": False}
    return Case(
        model,
        pruner,
        marked(batch, visual),
        lambda _: model.generate(inputs_embeds=embeds, attention_mask=seen, **length),
    )


def again() -> Case:
    """Eight prompts of one image under `image_cache()`."""
    model = small()
    image, words = rows(model, 1, BEFORE + VISUAL), rows(model, 8, AFTER)

    def work(handle: Any) -> None:
        with handle.image_cache():
            for question in torch.split(words, 1):
                model.generate(inputs_embeds=torch.cat([image, question], 1), max_new_tokens=1, pad_token_id=0)

    return Case(model, fixed(24), marked(1, VISUAL), work)


def answer(folder: str, pictured: bool) -> Case:
    """A checkpoint's whole answer to a question about a picture, or to words alone."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    image = Image.effect_mandelbrot((336, 336), (-1, -1, 1, 1), 60).convert("RGB") if pictured else None
    content = [*([{"type": "image"}] if pictured else []), {"type": "text", "text": "What color is the circle?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt").to(torch.bfloat16)
    return Case(
        model,
        lambda vp: vp.VisiPruner(shallow_end=1, filter_layer=6, keep_tokens=144, exit_layer=24),
        None,
        lambda _: model.generate(**inputs, do_sample=False, max_new_tokens=8),
    )


def cases(folder: str | None) -> dict[str, Callable[[], Case]]:
    """By name, what builds each."""
    built: dict[str, Callable[[], Case]] = {
        "plain": lambda: prompt(small(), None),
        "nothing pruned": lambda: prompt(small(), lambda vp: vp.NoPruning()),
        "host work": lambda: prompt(tiny(), fixed(32), tokens=8),
        "prefill, 0.5B": lambda: prompt(small(), fixed(24)),
        "prefill, 0.5B, detecting": lambda: prompt(small(), lambda vp: vp.VisiPruner()),
        "prefill, 7B": lambda: prompt(large(), fixed(8)),
        "fastv, 7B": lambda: prompt(large(), lambda vp: vp.FastV(layer=2, keep_ratio=0.5)),
        "divprune, 7B": lambda: prompt(large(), lambda vp: vp.DivPrune(keep_tokens=64)),
        "batch of 8": lambda: prompt(small(), fixed(24), batch=8),
        "decoding": lambda: prompt(small(), fixed(24), tokens=24),
        "2,304 tokens": lambda: prompt(small(), fixed(24), visual=2304),
        "8 questions, one image": again,
    }
    if folder is not None:
        built |= {"answer": lambda: answer(folder, True), "words alone": lambda: answer(folder, False)}
    return built


class Version:
    """The modules of one checkout, which are imported only while it is the one `in_use`."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / "src" / OURS).is_dir():
            sys.exit(f"{checkout} is no checkout of this project: it has no src/{OURS}.")
        self._source = str(checkout.resolve() / "src")
        self._modules: dict[str, ModuleType] = {}

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        sys.modules.update(self._modules)
        sys.path.insert(0, self._source)
        try:
            library = importlib.import_module(OURS)
            assert str(library.__file__).startswith(self._source)
            yield library
        finally:
            sys.path.remove(self._source)
            for name in [name for name in ALL_ATTENTION_FUNCTIONS if OURS in name]:
                del AttentionInterface._global_mapping[name]  # the other version registers its own under the same name
            names = [name for name in sys.modules if name.partition(".")[0] == OURS]
            self._modules = {name: sys.modules.pop(name) for name in names}

    def seconds(self, case: Case) -> float:
        """Of the case's work, with this version's pruner attached."""
        with self.in_use() as library:
            if case.pruner is None:
                return timed(lambda: case.work(None))
            with library.attach(case.model, case.pruner(library), case.mask) as handle:
                return timed(lambda: case.work(handle))


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(versions: dict[str, Version], case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of each version by round, and quartiles of their ratios."""
    spent: dict[str, list[float]] = {name: [] for name in versions}
    for number in range(1 + rounds):
        for name in sorted(versions, reverse=bool(number % 2)):
            seconds = versions[name].seconds(case)
            if number:  # the first warms up
                spent[name].append(seconds)
    ratios = [old / new for old, new in zip(spent["old"], spent["new"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {**spent, "low": low, "ratio": middle, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the other version")
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[1], help="by default this one")
    parser.add_argument("--case", action="append", help="may be repeated; all by default")
    parser.add_argument("--model", help="a LLaVA checkpoint on disk, for the cases `answer` and `words alone`")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the result here, after every case")
    arguments = parser.parse_args()
    known = cases(arguments.model)
    if unknown := set(arguments.case or ()) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    versions = {"old": Version(arguments.old), "new": Version(arguments.new)}
    found: dict[str, Any] = {}
    print(f"{'':26}{'old, s':>9}{'new, s':>9}   old over new (middle half)")
    for name in arguments.case or known:
        torch.manual_seed(0)
        with torch.no_grad():
            found[name] = row = measure(versions, known[name](), arguments.rounds)
        spent = "".join(f"{statistics.median(row[version]):9.3f}" for version in versions)
        print(f"{name:26}{spent}{row['ratio']:8.3f} ({row['low']:.3f}-{row['high']:.3f})", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
