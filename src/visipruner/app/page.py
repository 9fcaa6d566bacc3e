"""The page itself. Gradio lays it out and carries events; what it shows is made in `showing`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

# Before the import: Gradio would look for a newer version of itself, and tell its makers of the start.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from visipruner.app import showing
from visipruner.app.playing import Choice, Played, Playground
from visipruner.errors import explain
from visipruner.models import loading as models
from visipruner.models.loading import LoadedModel
from visipruner.progress import SILENT, Progress
from visipruner.specs import DEFAULT

CSS = """
.vp-bar { display: flex; height: 26px; gap: 1px; }
.vp-bar i { flex: 1 1 0; min-width: 2px; }
.vp-bar i.vp-here { outline: 3px solid var(--body-text-color); outline-offset: -1px; z-index: 1; }
ul.vp-stages { list-style: none; margin: .4em 0; padding: 0; font-size: .85rem; }
ul.vp-stages li { display: inline-block; margin-right: 1em; }
ul.vp-stages li i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
.vp-problem { padding: .7em 1em; border-left: 4px solid #d33; background: #d331; overflow-wrap: anywhere; }
#vp-table { overflow-x: auto; }
#vp-table :is(td, th) { word-break: normal; overflow-wrap: normal; }
[id^=vp-answer] [data-testid=block-info] { overflow-wrap: anywhere; }
"""
_SIDES = 2
_METHOD = "A name, name:key=value,... or first+second, as visipruner run --method takes it"
_BUDGET = "% of the visual tokens that go on; 0: as many as the method itself lets"


class _Page:
    """The parts of the page that change, and what happens to them."""

    def __init__(self, playground: Playground) -> None:
        self.playground, self.samples = playground, playground.samples()
        with gr.Blocks(title="visipruner", analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            gr.Markdown(f"## visipruner: {Path(playground.loaded.name).name}")
            with gr.Row():
                self._lay_out_inputs()
            self.status = gr.HTML(elem_id="vp-status")
            with gr.Column(visible=False) as self.results:
                self._lay_out_results()
            self._connect()

    def _lay_out_inputs(self) -> None:
        with gr.Column(min_width=300):
            self.picture = gr.Image(
                type="filepath", label="Picture", sources=["upload", "clipboard"], height=300, elem_id="vp-in"
            )
            # Gradio would open the file and show a trace where it cannot; `open_image` has a sentence for each case.
            self.picture.preprocess = lambda payload: payload and payload.path
            self.gallery = gr.Gallery(
                [*self.samples],
                label="Samples",
                columns=4,
                allow_preview=False,
                interactive=False,
                visible=bool(self.samples),
                elem_id="vp-samples",
            )
        with gr.Column(min_width=300):
            self.question = gr.Textbox(label="Question", lines=1, max_lines=1, elem_id="vp-question")
            first = self._lay_out_method(0)
            with gr.Accordion("Compare with a second method", open=False, elem_id="vp-compare"):
                second = self._lay_out_method(1)
            self.ask = gr.Button("Ask", variant="primary", elem_id="vp-ask")
        self.chosen = [*first, *second]

    def _lay_out_method(self, number: int) -> list[Any]:
        names = self.playground.methods
        method = gr.Dropdown(
            [("nothing", ""), *names] if number else names,
            value="" if number else DEFAULT,
            allow_custom_value=True,
            label="Method",
            info=_METHOD,
            elem_id=f"vp-method-{number}",
        )
        return [method, gr.Slider(0, 100, 0, step=1, label="Budget", info=_BUDGET, elem_id=f"vp-share-{number}")]

    def _lay_out_results(self) -> None:
        self.played = gr.State(None)
        self.dense = gr.Textbox(label="Dense answer", interactive=False, elem_id="vp-dense")
        last = self.playground.loaded.num_layers - 1
        self.layer = gr.Slider(0, last, 0, step=1, label="Layer", elem_id="vp-layer")
        self.sides: list[tuple[gr.Column, gr.Textbox, gr.Image, gr.HTML]] = []
        with gr.Row():
            for number in range(_SIDES):
                with gr.Column(min_width=300) as column:
                    said = gr.Textbox(interactive=False, elem_id=f"vp-answer-{number}")
                    kept = gr.Image(
                        format="jpeg",
                        height=420,
                        interactive=False,
                        buttons=["fullscreen"],
                        label="Visual tokens",
                        elem_id=f"vp-kept-{number}",
                    )
                    self.sides.append((column, said, kept, gr.HTML(elem_id=f"vp-bar-{number}")))
        self.table = gr.Markdown(elem_id="vp-table")
        self.code = gr.Code(language="python", label="The same in Python", max_lines=12, elem_id="vp-code")

    def _connect(self) -> None:
        rest: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        parts = [part for side in self.sides for part in side]
        results = [self.results, self.dense, self.played, self.layer, self.table, self.code, *parts]
        gr.on(
            [self.ask.click, self.question.submit],
            self.answer,
            [self.picture, self.question, *self.chosen],
            [self.status, self.ask, *results],
            concurrency_limit=1,
            **rest,
        )
        self.layer.input(self.slide, [self.played, self.layer], parts, trigger_mode="always_last", **rest)
        self.gallery.select(self.take_sample, None, [self.picture, self.question], **rest)

    def take_sample(self, event: gr.SelectData) -> tuple[str, str]:
        path, question = self.samples[event.index]
        return str(path), question

    def slide(self, played: Played | None, layer: int) -> dict[Any, Any]:
        updates: dict[Any, Any] = {}
        for side, (_, _, kept, bar) in zip(played.sides if played else (), self.sides, strict=False):
            assert played is not None
            updates[kept] = showing.layer_picture(played, side, layer)
            updates[bar] = f"{showing.bar(side, layer)}<p>{escape(showing.layer_words(played, side, layer))}</p>"
        return updates

    def answer(self, path: str | None, question: str, *chosen: Any) -> Iterator[dict[Any, Any]]:
        """The page while a question is answered; whatever goes wrong is told in a sentence."""
        pairs = [(spec or "", percent) for spec, percent in zip(chosen[::2], chosen[1::2], strict=True)]
        choices = [
            Choice(spec, (percent or 0) / 100 or None) for spec, percent in (pairs[0], *(p for p in pairs[1:] if p[0]))
        ]
        yield {self.status: "<p>Reading the picture ...</p>", self.ask: gr.update(interactive=False)}
        played, ready = None, {self.status: "", self.ask: gr.update(interactive=True)}
        try:
            for played in self.playground.play(path, question or "", choices):
                yield self._so_far(played, choices)
            assert played is not None
            layer = showing.first_layer_to_show(played)
            # All in one: of two updates that follow each other at once, the page may show the second alone.
            yield {
                **self._so_far(played, choices),
                **self.slide(played, layer),
                self.played: played,
                self.layer: layer,
                self.table: showing.table(played),
                self.code: showing.code(self.playground, played),
                **ready,
            }
        except Exception as error:
            sentence = explain(error)
            if path:  # the file's name, not Gradio's folder of uploads
                sentence = sentence.replace(path, Path(path).name)
            yield ready | {self.status: f'<p class="vp-problem" role="alert">{escape(sentence)}</p>'}

    def _so_far(self, played: Played, choices: list[Choice]) -> dict[Any, Any]:
        updates: dict[Any, Any] = {self.results: gr.update(visible=True), self.dense: played.said.get("dense", "")}
        for number, (column, said, kept, bar) in enumerate(self.sides):
            is_asked = number < len(choices)
            updates[column] = gr.update(visible=is_asked)
            updates[said] = gr.update(
                value=played.said.get(str(number), ""), label=choices[number].spec if is_asked else ""
            )
            updates |= {kept: None, bar: ""}
        return updates


def start(playground: Playground, host: str | None = None, port: int | None = None) -> tuple[gr.Blocks, str]:
    """The page about one model, served from now on, and its address; `close()` ends it. See `serve`."""
    # A page that ends deletes its uploads; in Gradio's common folder also those of another page about the same picture.
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="visipruner-app-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    page = _Page(playground)
    _, address, _ = page.blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        css=CSS,
        allowed_paths=[str(path) for path, _ in page.samples],
    )
    return page.blocks, address


def serve(
    model: str | LoadedModel,
    load: Mapping[str, Any] | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    max_new_tokens: int = 32,
    ready: Callable[[str], object] = print,
    progress: Progress = SILENT,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        model: a name, as `models.load` takes it with the options `load`, or what that returned.
        host: where to listen; None for this machine alone, or what GRADIO_SERVER_NAME says.
        port: None for the first free one from 7860 on, or what GRADIO_SERVER_PORT says.
        ready: called with the page's address once it answers.
    """
    loaded = models.ready(model, load, progress)
    blocks, address = start(Playground(loaded, load, max_new_tokens), host, port)
    ready(address)
    blocks.block_thread()
