"""Draws docs/images/app-*.webp: the page of `visipruner app` about the small model, in an installed Chromium.

python -m tools.app_pictures      (needs the extra `app`)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from tests.app.test_page import DESK, PHONE, Page
from tests.report.browser import Browser, chromium
from visipruner.app.page import start
from visipruner.app.playing import Playground
from visipruner.models import loading

IMAGES = Path(__file__).parents[1] / "docs" / "images"
DRAWING = Path(__file__).parents[1] / "packages/testbed/src/visipruner_testbed/data/test/scenes-053.jpg"


def main() -> None:
    blocks, address = start(Playground(loading.load("testbed")))
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        page = Page(browser, address, DESK)
        page.upload(DRAWING)
        page.click("#vp-compare button")
        page.type("#vp-method-1 input", "fastv")
        page.type("#vp-share-1 input[type=number]", 25)
        page.ask("Where is the cross?", "visipruner")
        _save(browser, page, "app-desk")
        page = Page(browser, address, PHONE)
        page.upload(DRAWING)
        page.ask("What word is written?", "visipruner")
        _save(browser, page, "app-phone")
    blocks.close()


def _save(browser: Browser, page: Page, name: str) -> None:
    page.picture(0)
    browser.wait("document.querySelector('#vp-code').innerText.includes('import visipruner')")
    browser.wait("[...document.images].every(image => image.complete)")
    page.type("#vp-layer input[type=range]", 12)
    browser.wait("document.querySelector('#vp-bar-0').innerText.includes('Layer 12')")
    browser.settle()
    size = browser.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        browser.screenshot(Path(file.name), {"x": 0, "y": 0, "width": size[0], "height": size[1]})
        Image.open(file.name).convert("RGB").save(IMAGES / f"{name}.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
