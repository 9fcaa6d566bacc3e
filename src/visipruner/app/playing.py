"""One round: a picture and a question, answered densely and with one or two methods, word by word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from visipruner import specs
from visipruner.accounting import dense_kv_bytes, dense_macs
from visipruner.analysis.gaze import visual_attention
from visipruner.analysis.probe import Probe
from visipruner.asking.answered import Answered, pruned, recorded
from visipruner.chat import ChatPrompt, Reply, chat_inputs, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError, VisiPrunerError, explain
from visipruner.evaluation.contenders import EVERY, Wanted, with_share
from visipruner.evaluation.samples import Sample, load_samples, spread
from visipruner.images import open_image
from visipruner.models import packaged
from visipruner.models.loading import LoadedModel
from visipruner.questions import check_signs, check_text

SAMPLES = 6


@dataclass(frozen=True)
class Choice:
    """A method: its spec, as `visipruner run --method` takes it, and its budget.

    Attributes:
        share: of the visual tokens to be kept where the method filters; None for the method's own budget.
    """

    spec: str
    share: float | None = None


@dataclass(frozen=True)
class Looks:
    """How the dense model's last row looks at the picture.

    Attributes:
        weights: `[layer, token]`, heads averaged; each row sums to what the image gets of the row's attention.
        grid: rows and columns of the tokens, None where they are no single grid.
    """

    weights: Any
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Side:
    """What one method did. Attributes: `spec` as the user wrote it; `answered` without a dense answer beside it."""

    spec: str
    pruner: Pruner
    source: str
    answered: Answered
    trace: PruneTrace


@dataclass(frozen=True)
class Played:
    """A round, as far as it went; the page shows every step of it.

    Attributes:
        dense: None until it is answered. sides: one for every method that is answered.
        said: what is being said: `dense`, or the number of a side, and the text so far.
        looks: None where the model cannot be watched, `unseen` is why.
        dense_flops, dense_kv: what the plain model needs to read the prompt.
    """

    path: Path
    picture: Image.Image
    question: str
    image_processor: Any
    max_new_tokens: int
    looks: Looks | None = None
    unseen: str = ""
    dense: Reply | None = None
    sides: tuple[Side, ...] = ()
    said: dict[str, str] = field(default_factory=dict)
    dense_flops: int = 0
    dense_kv: int = 0


class Playground:
    """A model that plays rounds, one at a time."""

    def __init__(self, loaded: LoadedModel, load: Mapping[str, Any] | None = None, max_new_tokens: int = 32) -> None:
        """`load`: how it was loaded, for the code that does the same."""
        self.loaded, self.load, self.max_new_tokens = loaded, dict(load or {}), max_new_tokens
        self._lock = threading.Lock()
        self._read: tuple[Any, Looks] | None = None

    @property
    def methods(self) -> list[str]:
        """Names that one would choose."""
        return Wanted([EVERY]).specs()

    def samples(self) -> list[tuple[Path, str]]:
        """Pictures and questions to try it with: the model's own, or those of the model that a package brings."""
        brought = packaged.find(self.loaded.name) or packaged.find(packaged.default())
        if brought is None:
            return []
        found: Sequence[Sample] = [] if brought.questions is None else load_samples(brought.questions)
        asked = [(sample.image, sample.question) for sample in spread(found, SAMPLES, per_image=1)]
        return [*asked, *((path, "What is in the picture?") for path in brought.pictures)]

    def play(self, path: str | Path | None, question: str, choices: Sequence[Choice]) -> Iterator[Played]:
        """A round, step by step: each step holds all before it, the last one everything.

        The dense model reads the prompt once before answers are timed, which warms it up and shows where it looks.
        Raises what `explain` makes a sentence of.
        """
        if not path:
            raise ConfigError("There is no picture yet; drop one, or take a sample.")
        check_text(question, "The question")
        check_signs(self.loaded.processor, question, "The question")
        picture = open_image(Path(path))
        layers = self.loaded.num_layers
        methods = [specs.resolve(choice.spec.strip(), self.loaded.name, layers) for choice in choices]
        for method in methods:
            method.pruner.check(layers)
        with closing(
            _streamed(lambda tell: self._round(Path(path), picture, question, choices, methods, tell))
        ) as told:
            yield from told

    def _round(
        self,
        path: Path,
        picture: Image.Image,
        question: str,
        choices: Sequence[Choice],
        methods: Sequence[specs.Chosen],
        tell: Callable[[Played], None],
    ) -> None:
        with self._lock:
            loaded, length = self.loaded, self.max_new_tokens
            played = Played(path, picture, question, loaded.processor.image_processor, length)
            prompt = chat_inputs(loaded.model, loaded.processor, picture, question)
            pruners = [
                method.pruner
                if choice.share is None
                else with_share(method.pruner, choice.share, loaded.model, [prompt])
                for choice, method in zip(choices, methods, strict=True)
            ]
            tell(played)
            try:
                played = replace(played, looks=self._looks(prompt))
            except VisiPrunerError as error:
                played = replace(played, unseen=explain(error))

            def saying(who: str) -> Callable[[str], None]:
                return lambda text: tell(replace(played, said={**played.said, who: text}))

            dense = greedy_reply(loaded.model, loaded.processor.tokenizer, prompt, length, saying("dense"))
            played = replace(played, dense=dense, said={"dense": dense.text})
            tell(played)
            for number, (choice, method, pruner) in enumerate(zip(choices, methods, pruners, strict=True)):
                found = pruned(loaded, pruner, prompt, length, saying(str(number)))
                trace, answered = found.trace, recorded(path.name, question, found)
                budget = "" if choice.share is None else f"; budget {choice.share:.0%}"
                side = Side(choice.spec, pruner, method.source + budget, answered, trace)
                played = replace(
                    played,
                    sides=(*played.sides, side),
                    said={**played.said, str(number): answered.answer},
                    dense_flops=dense_macs(trace.shape, prompt.length).flops,
                    dense_kv=dense_kv_bytes(trace.shape, prompt.length, trace.dtype_bytes),
                )
                tell(played)

    def _looks(self, prompt: ChatPrompt) -> Looks:
        """Of the dense model; the last prompt's again where only the method is another."""
        asked = prompt.question, prompt.picture
        if self._read is None or self._read[0] != asked:
            with Probe(self.loaded.model) as probe:
                reading = probe.read(prompt, self.loaded.processor.tokenizer, max_new_tokens=1)
            grids = reading.layout.grids
            looks = Looks(visual_attention(reading)["map"].values, grids[0] if len(grids) == 1 else None)
            self._read = asked, looks
        return self._read[1]


def _streamed(work: Callable[[Callable[[Any], None]], None]) -> Generator[Any]:
    """What `work(tell)` tells, while it works in a thread of its own; then what it raises. A reader who leaves stops it
    at the next word."""
    told: SimpleQueue[Any] = SimpleQueue()
    left = threading.Event()

    def tell(item: Any) -> None:
        if left.is_set():
            raise _ReaderLeftError
        told.put((item, None))

    def run() -> None:
        try:
            work(tell)
        except BaseException as error:
            told.put((None, error))
        else:
            told.put((None, None))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            item, error = told.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        left.set()


class _ReaderLeftError(Exception):
    """Nobody reads the answer any more."""
