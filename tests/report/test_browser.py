"""The page in a real browser: `make browser-test` (needs Chromium, so it is not part of the default tests)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report import cases
from tests.report.browser import Browser, chromium
from visipruner.analysis.report import write_report

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)
_HASH = """(() => {
  const canvas = document.getElementById("overlay");
  return canvas.toDataURL();
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Browser:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(folder / "report.html", 1280)
    return browser


def _set(browser: Browser, selector: str, action: str, event: str = "input") -> None:
    browser.run(
        f"(() => {{ const found = document.querySelector({selector!r}); found.{action};"
        f" found.dispatchEvent(new Event({event!r}, {{bubbles: true}})); }})()"
    )
    browser.settle()


@pytest.mark.parametrize("width", WIDTHS)
def test_loads_without_complaint_and_without_network(browser: Browser, folder: Path, width: int) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(folder / "report.html", width)
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_page(browser: Browser, folder: Path, width: int) -> None:
    browser.open(folder / "report.html", width)
    assert browser.run("document.documentElement.scrollWidth") == width
    beyond = browser.run(
        """[...document.querySelectorAll("body *")].filter(found => {
             if (found.closest(".scroll, pre, svg")) return false;
             return found.getBoundingClientRect().right > innerWidth + 1;
           }).map(found => found.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_that_scroll_sideways_say_so(browser: Browser, folder: Path, width: int) -> None:
    browser.open(folder / "report.html", width)
    tables = browser.run(
        """[...document.querySelectorAll(".table .scroll")].map(frame => {
             const hint = frame.parentElement.querySelector(".more");
             const shown = hint !== null && hint.getBoundingClientRect().height > 0;
             return [frame.scrollWidth > frame.clientWidth + 1, shown];
           })"""
    )
    assert any(scrolls for scrolls, _ in tables) == (width == 390)
    assert all(scrolls == shown for scrolls, shown in tables)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_can_be_seen(browser: Browser, folder: Path, width: int) -> None:
    browser.open(folder / "report.html", width)
    figures = browser.run(
        """[...document.querySelectorAll("figure")].map(figure => {
             const seen = [...figure.querySelectorAll("svg, canvas")].map(part => part.getBoundingClientRect())
               .filter(box => box.width > 0 && box.height > 0);
             return seen.length === 1 ? [seen[0].width, seen[0].height] : [0, seen.length];
           })"""
    )
    assert len(figures) > 15
    assert all(width >= 200 and height >= 80 for width, height in figures)


@pytest.mark.parametrize("width", WIDTHS)
def test_words_in_figures_can_be_read(browser: Browser, folder: Path, width: int) -> None:
    browser.open(folder / "report.html", width)
    heights = browser.run(
        """[...document.querySelectorAll("svg text")].map(text => {
             const size = parseFloat(getComputedStyle(text).fontSize);
             const matrix = text.getScreenCTM();
             return matrix ? size * Math.hypot(matrix.c, matrix.d) : 99;
           }).filter(size => size > 0)"""
    )
    assert min(heights) >= 8


def test_controls_change_the_overlay(opened: Browser) -> None:
    pictures = [opened.run(_HASH)]
    _set(opened, "#layer", "value = 1")
    pictures.append(opened.run(_HASH))
    assert opened.run('document.querySelector("#lens-rows tr.now").dataset.layer') == "1"
    _set(opened, 'input[value="influence"]', "checked = true")
    pictures.append(opened.run(_HASH))
    assert "‖c_j‖" in opened.run('document.getElementById("view-caption").textContent')
    _set(opened, "#kept", "checked = true")
    pictures.append(opened.run(_HASH))
    question = opened.run('document.getElementById("exchange").textContent')
    _set(opened, "#sample", "value = 1", "change")
    pictures.append(opened.run(_HASH))
    assert opened.run('document.getElementById("exchange").textContent') != question
    opened.run('document.querySelectorAll("#lens-rows tr")[4].click()')
    opened.settle()
    pictures.append(opened.run(_HASH))
    assert opened.run('document.getElementById("layer-name").textContent') == "4"
    assert len(set(pictures)) == len(pictures)
    assert opened.problems == []


def test_words_of_the_layer_are_in_view(opened: Browser) -> None:
    opened.run('document.querySelector(".tall").style.maxHeight = "7rem"')
    for layer in (5, 0, 3):
        before = opened.run("scrollY")
        _set(opened, "#layer", f"value = {layer}")
        row, frame, head = opened.run(
            """[".tall tr.now", ".tall", ".tall thead th"].map(name => {
                 const box = document.querySelector(name).getBoundingClientRect();
                 return [box.top, box.bottom];
               })"""
        )
        assert head[1] - 1 <= row[0]
        assert row[1] <= frame[1] + 1
        assert opened.run("scrollY") == before


def test_overlay_colors_the_right_cells(opened: Browser) -> None:
    """The largest weight of a layer is drawn lighter than the smallest, each in its own cell."""
    light = opened.run(
        """(async () => {
          const sample = JSON.parse(document.getElementById("explorer-data").textContent).samples[0];
          const canvas = document.getElementById("overlay"), brush = canvas.getContext("2d");
          const layer = Number(document.getElementById("layer").value);
          const bytes = Uint8Array.from(atob(sample.attention.data), letter => letter.charCodeAt(0))
            .subarray(layer * sample.tokens, (layer + 1) * sample.tokens);
          const light = token => {
            const [rows, columns] = sample.grid;
            const x = (token % columns + 0.5) * canvas.width / columns;
            const y = (Math.floor(token / columns) + 0.5) * canvas.height / rows;
            const [red, green, blue] = brush.getImageData(x, y, 1, 1).data;
            return red + green + blue;
          };
          return [light(bytes.indexOf(255)), light(bytes.indexOf(Math.min(...bytes)))];
        })()"""
    )
    assert light[0] > light[1] + 100


def test_text_of_data_stays_text(opened: Browser) -> None:
    assert opened.run('document.querySelectorAll("script").length') == 2
    assert opened.run('document.querySelectorAll("#exchange script, #lens-rows i").length') == 0
    assert "<script>" in opened.run('document.getElementById("exchange").textContent')


def test_prints(opened: Browser, tmp_path: Path) -> None:
    opened.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_shows_tokens_without_grid_and_without_image(browser: Browser, tmp_path: Path) -> None:
    found = cases.records(tmp_path, 2, parts=("attention",))
    (tmp_path / "picture-0.png").unlink()
    found[0]["grids"] = [[2, 5], [2, 5]]
    write_report(tmp_path / "report.html", cases.document(found), found)
    browser.problems.clear()
    browser.open(tmp_path / "report.html", 390)
    captions, sizes = [], []
    for sample in range(2):
        _set(browser, "#sample", f"value = {sample}", "change")
        captions.append(browser.run('document.getElementById("view-caption").textContent'))
        sizes.append(browser.run("[overlay.width, overlay.height]"))
        colors = browser.run(
            """(() => {
                 const copy = new OffscreenCanvas(overlay.width, overlay.height);
                 const brush = copy.getContext("2d", {willReadFrequently: true});
                 brush.drawImage(overlay, 0, 0);
                 return new Set(new Uint32Array(brush.getImageData(0, 0, copy.width, copy.height).data.buffer)).size;
               })()"""
        )
        assert colors > 2
    assert all("picture-0.png can no longer be read" in caption for caption in captions)
    assert ["form no single grid" in caption for caption in captions].count(True) == 1
    assert sorted(sizes) == [[800, 400], [800, 640]]
    assert browser.problems == []
