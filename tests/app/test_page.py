"""The page in a real browser: `make app-test` (needs Gradio and Chromium, so it is not part of the default tests)."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.cli.tiny_llava import save_llava
from tests.report.browser import Browser, chromium
from visipruner.app.playing import Playground
from visipruner.models import loading

pytestmark = pytest.mark.browser
EARLY = "visipruner:shallow_end=2,filter_layer=3,exit_layer=5,keep_tokens=4"
PHONE, DESK = 390, 1280
# Gradio's client warns so whenever it closes a finished stream.
GRADIOS_OWN = "Method not implemented."
# As typing does: the page hears of the text, may list what fits, then of Enter, then that the field is left.
_TYPED = """(async () => {
  const found = document.querySelector(SELECTOR), kind = Object.getPrototypeOf(found);
  const drawn = () => new Promise(done => setTimeout(done, 100));
  found.focus();
  Object.getOwnPropertyDescriptor(kind, "value").set.call(found, VALUE);
  for (const event of ["input", "change"]) found.dispatchEvent(new Event(event, {bubbles: true}));
  await drawn();
  found.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  await drawn();
  found.blur();
  await drawn();
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Playground:
    return Playground(loading.load(str(save_llava(tmp_path_factory.mktemp("llava")))), max_new_tokens=8)


@pytest.fixture(scope="module")
def address(playground: Playground) -> Iterator[str]:
    from visipruner.app.page import start

    began = time.process_time()
    blocks, found = start(playground)
    urllib.request.urlopen(found).read()
    seconds = time.process_time() - began
    assert seconds < 5, f"the page took {seconds:.1f} s of work to open"
    yield found
    blocks.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (120, 80), "navy")
    ImageDraw.Draw(picture).ellipse((40, 20, 80, 60), fill="orange")
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class Page:
    """What a person does with the page."""

    def __init__(self, browser: Browser, address: str, width: int) -> None:
        self.browser, self.address = browser, address
        browser.open("about:blank", width)  # the last page's streams end here, with complaints of their own
        browser.problems.clear()
        browser.requests.clear()
        browser.open(address, width, 1400)
        browser.wait("document.querySelectorAll('#vp-ask, #vp-in input[type=file]').length == 2")

    def text(self, selector: str) -> str:
        return str(self.browser.run(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def value(self, selector: str) -> str:
        return str(self.browser.run(f"document.querySelector({selector!r})?.value ?? ''"))

    def type(self, selector: str, value: Any) -> None:
        self.browser.run(_TYPED.replace("SELECTOR", repr(selector)).replace("VALUE", repr(str(value))))
        assert self.value(selector) == str(value)

    def click(self, selector: str) -> None:
        self.browser.run(f"document.querySelector({selector!r}).click()")

    def upload(self, path: Path) -> None:
        self.browser.choose_file("#vp-in input[type=file]", path)
        self.browser.wait("document.querySelector('#vp-in img') !== null")

    def ask(self, question: str, method: str = EARLY) -> None:
        self.type("#vp-method-0 input", method)
        self.type("#vp-question textarea, #vp-question input", question)
        self.click("#vp-ask")

    def picture(self, number: int) -> str:
        """The address of a kept-tokens picture, a new one for every picture."""
        found = f"document.querySelector('#vp-kept-{number} img')?.src"
        self.browser.wait(f"{found} || document.querySelector('.vp-problem')")
        assert self.browser.run(found), self.text("#vp-status")
        return str(self.browser.run(found))

    def problem(self) -> str:
        """The sentence about what went wrong, once there is one and the page can be used again."""
        self.browser.wait("document.querySelector('.vp-problem') && !document.querySelector('#vp-ask').disabled")
        return self.text("#vp-status")

    def check(self) -> None:
        """Nothing on the console, nothing asked of other machines."""
        assert [problem for problem in self.browser.problems if GRADIOS_OWN not in problem] == []
        own = (self.address, "data:", "blob:", "about:")
        assert [url for url in self.browser.requests if not url.startswith(own)] == []


def test_upload_ask_and_slide(browser: Browser, address: str, photo: Path) -> None:
    page = Page(browser, address, DESK)
    page.upload(photo)
    page.ask("what is this ?")
    pictures = [page.picture(0)]
    assert page.value("#vp-dense textarea")
    assert page.value("#vp-answer-0 textarea")
    assert "Layer 4: 4 of 25 visual tokens" in page.text("#vp-bar-0")
    assert "layers 0–1: text does not look at the image, 25" in page.text("#vp-bar-0")
    assert "25 -> 4 (trigger layer 3) -> 0 (exit layer 5)" in page.text("#vp-table")
    assert "keep_tokens=4" in page.text("#vp-code")
    for layer, words in ((1, "Layer 1: 25 of 25"), (5, "Layer 5: 0 of 25")):
        page.type("#vp-layer input[type=range]", layer)
        browser.wait(f"document.querySelector('#vp-bar-0').innerText.includes({words!r})")
        browser.wait(f"document.querySelector('#vp-kept-0 img').src != {pictures[-1]!r}")
        pictures.append(page.picture(0))
    assert len(set(pictures)) == 3
    page.check()


def test_two_methods_beside_each_other_on_a_phone(browser: Browser, address: str, photo: Path) -> None:
    page = Page(browser, address, PHONE)
    page.upload(photo)
    page.click("#vp-compare button")
    page.type("#vp-method-1 input", "divprune")
    page.type("#vp-share-1 input[type=number]", 20)
    page.ask("what is this ?")
    assert page.picture(0) != page.picture(1)
    assert "layers 0–5: some tokens, 5" in page.text("#vp-bar-1")
    assert "divprune:keep_ratio=0.2" in page.text("#vp-code")
    assert page.value("#vp-answer-1 textarea")
    assert browser.run("document.documentElement.scrollWidth") == PHONE
    beyond = browser.run(
        """[...document.querySelectorAll("body *")].filter(found => {
             const box = found.getBoundingClientRect();
             return box.width && box.right > innerWidth + 1 && !found.closest("#vp-table, #vp-code, #vp-samples");
           }).map(found => found.outerHTML.slice(0, 120))"""
    )
    assert beyond == []
    page.type("#vp-method-1 input", "nothing")  # and alone again
    page.ask("where is the dog ?")
    browser.wait("!document.querySelector('#vp-bar-1')?.checkVisibility()")
    page.check()


def test_every_answer_shows_its_picture_however_fast_it_comes(browser: Browser, address: str, photo: Path) -> None:
    page = Page(browser, address, DESK)
    page.upload(photo)
    page.ask("what is this ?")
    for _ in range(12):
        page.picture(0)
        browser.wait("!document.querySelector('#vp-ask').disabled")
        page.click("#vp-ask")
        time.sleep(1)
    page.picture(0)


def test_a_sample_is_taken(browser: Browser, address: str, playground: Playground) -> None:
    page = Page(browser, address, DESK)
    page.click("#vp-samples button.thumbnail-item, #vp-samples .grid-container button")
    browser.wait("document.querySelector('#vp-in img') !== null")
    question = "document.querySelector('#vp-question textarea, #vp-question input').value"
    assert browser.wait(question) == playground.samples()[0][1]
    browser.run("document.querySelector('#vp-question textarea, #vp-question input').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    page.picture(0)
    page.check()


def test_what_is_wrong_is_told_in_a_sentence(browser: Browser, address: str, photo: Path, tmp_path: Path) -> None:
    page = Page(browser, address, DESK)
    page.ask("what is this ?")
    assert page.problem() == "There is no picture yet; drop one, or take a sample."
    (tmp_path / "notes.png").write_text("hello")
    page.upload(tmp_path / "notes.png")
    page.ask("what is this ?")
    browser.wait("document.querySelector('#vp-status').innerText.includes('notes.png')")
    assert page.problem() == "notes.png is not an image that Pillow can read; convert it to PNG or JPEG."
    page = Page(browser, address, DESK)
    page.upload(photo)
    page.ask("what is this ?", "visipruner:keep_token=3")
    assert page.problem() == "visipruner has no setting 'keep_token'; did you mean 'keep_tokens'?"
    page.ask("what is this ?")
    page.picture(0)
    browser.wait("document.querySelector('#vp-status').innerText == ''")
    page.check()
