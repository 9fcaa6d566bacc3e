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
_TYPED = """(() => {
  const found = document.querySelector(SELECTOR), kind = Object.getPrototypeOf(found);
  Object.getOwnPropertyDescriptor(kind, "value").set.call(found, VALUE);
  for (const event of ["input", "change"]) found.dispatchEvent(new Event(event, {bubbles: true}));
  found.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  found.dispatchEvent(new Event("blur", {bubbles: true}));
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
        self.browser.settle()

    def click(self, selector: str) -> None:
        self.browser.run(f"document.querySelector({selector!r}).click()")

    def upload(self, path: Path) -> None:
        self.browser.choose_file("#vp-in input[type=file]", path)
        self.browser.wait("document.querySelector('#vp-in img') !== null")

    def ask(self, question: str, method: str = EARLY) -> None:
        self.type("#vp-question textarea, #vp-question input", question)
        self.type("#vp-method-0 input", method)
        self.click("#vp-ask")

    def picture(self, number: int) -> str:
        """The address of a kept-tokens picture, a new one for every picture."""
        return str(self.browser.wait(f"document.querySelector('#vp-kept-{number} img')?.src"))

    def check(self) -> None:
        """Nothing on the console, nothing asked of other machines."""
        assert self.browser.problems == []
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
