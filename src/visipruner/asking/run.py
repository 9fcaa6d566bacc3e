"""Every picture asked every question, with and perhaps without pruning; records and drawings of what was kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visipruner import specs
from visipruner.asking import overlay
from visipruner.asking.answered import Answered, Exchange, document, exchange, recorded
from visipruner.chat import chat_inputs
from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.files import held, prepare_folder, write_atomic, write_json
from visipruner.images import open_image
from visipruner.models import loading as models
from visipruner.models.loading import LoadedModel
from visipruner.progress import SILENT, Progress
from visipruner.questions import check_signs, check_text
from visipruner.specs import DEFAULT, Chosen

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Asked:
    """What was answered.

    Attributes:
        document: results.json. answers: one for every picture and question, in their order.
    """

    document: dict[str, Any]
    answers: list[Answered]


def ask(
    model: str | LoadedModel,
    images: Sequence[str | Path | Image.Image],
    questions: Sequence[str],
    method: str | Path | Pruner = DEFAULT,
    settings: Mapping[str, Any] | None = None,
    *,
    repeats: int | None = None,
    max_new_tokens: int = 32,
    out: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    each: Callable[[Answered], object] | None = None,
    progress: Progress = SILENT,
) -> Asked:
    """Asks a model about pictures while its visual tokens are pruned.

    Args:
        model: a name, as `models.load` takes it, or what that returned.
        images: files, pipes or pictures; each is asked each of `questions`.
        method: a spec as `specs` explains them, the path of a saved pruner.json, or a pruner.
        settings: of a method given by its bare name, those to be changed.
        repeats: timed answers of the pruned and the dense model in turns; None for the pruned answer alone.
        out: a folder for results.json and one picture of the kept tokens an answer.
        load: of a named model, `models.load`'s other arguments. each: called with every answer as it comes.

    Raises VisiPrunerError with a sentence for the user.
    """
    for question in questions:
        check_text(question, "A question")
    sources = [_Source(image, number) for number, image in enumerate(images, 1)]
    name = model if isinstance(model, str) else model.name
    folder = None if out is None else Path(out)
    if isinstance(model, str):
        models.check_name(model)
    if folder is not None:
        prepare_folder(folder)
    with progress.busy("Starting"):
        _chosen(method, settings, name, specs.ANY_DEPTH)  # a wrong name is told before the model loads
    with held(folder):
        loaded = models.ready(model, load, progress)
        chosen = _chosen(method, settings, name, loaded.num_layers)
        chosen.pruner.check(loaded.num_layers)
        for question in questions:
            check_signs(loaded.processor, question, "A question")
        answers: list[Answered] = []

        def save(folder: Path) -> None:  # so that an interrupted run keeps what it has
            write_json(folder / RESULTS_FILE, document(loaded, chosen, answers, repeats))

        for source in sources:
            picture = source.open()
            for number, question in enumerate(questions, start=1):
                with progress.busy("Answering"):
                    prompt = chat_inputs(loaded.model, loaded.processor, picture, question)
                    found = exchange(loaded, chosen.pruner, prompt, max_new_tokens, repeats)
                answer = recorded(source.name, question, found)
                answers.append(answer)
                if folder is not None:
                    save(folder)  # the answer first, whatever becomes of its drawing
                    path = folder / source.drawing(number)
                    answer.overlay = _draw(path, picture, loaded.processor.image_processor, found, answer)
                    save(folder)
                if each is not None:
                    each(answer)
        return Asked(document(loaded, chosen, answers, repeats), answers)


def _chosen(method: str | Path | Pruner, settings: Mapping[str, Any] | None, model: str, layers: int) -> Chosen:
    if not settings:
        return specs.resolve(method, model, layers)
    if not isinstance(method, str):
        raise ConfigError("A saved or ready-made method has all its settings; leave out the others, or change it.")
    return specs.adjusted(method, settings, model, layers)


class _Source:
    """A picture, or a file of one. Files are opened at once to complain early, and again later: a hundred photographs
    need not be in memory together. What can be read only once is kept."""

    def __init__(self, image: str | Path | Image.Image, number: int) -> None:
        self.number = number
        self._path = None if isinstance(image, Image.Image) else Path(image)
        self._picture = image.convert("RGB") if isinstance(image, Image.Image) else None
        if self._path is not None:
            picture = open_image(self._path)
            self._picture = None if self._path.is_file() else picture

    @property
    def name(self) -> str:
        return f"picture {self.number}" if self._path is None else str(self._path)

    def open(self) -> Image.Image:
        if self._picture is not None:
            return self._picture
        assert self._path is not None
        return open_image(self._path)

    def drawing(self, question_number: int) -> str:
        """`1-street-q2.png`: numbered, because two images in different folders can share a name."""
        stem = re.sub(r"[^\w.-]+", "_", Path(self.name).stem)[:60]
        return f"{self.number}-{stem}-q{question_number}.png"


def _draw(path: Path, picture: Image.Image, image_processor: Any, found: Exchange, answer: Answered) -> str | None:
    """Writes the picture of the kept tokens; None where the model's tokens are not one grid."""
    example = found.trace[0]
    if len(example.grids) != 1:  # several crops of the picture, of which none is the whole
        return None
    try:
        grid = example.kept_grid(0)
    except ValueError:
        return None
    drawn = overlay.draw(picture, grid, overlay.seen_box(picture.size, image_processor), _caption(answer))
    write_atomic(path, lambda part: drawn.save(part, format="PNG", optimize=True))
    return path.name


def _caption(answer: Answered) -> list[str]:
    kept = f"kept {answer.kept_tokens} of {answer.visual_tokens} visual tokens"
    layer = "" if answer.trigger_layer is None else f", chosen at layer {answer.trigger_layer}"
    gone = "" if answer.exit_layer is None else f"; all gone from layer {answer.exit_layer} on"
    return [answer.question, answer.answer or "(empty answer)", kept + layer + gone]
