"""One picture of what pruning kept: the image, dark where tokens were dropped, kept cells outlined, a caption below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

# Widely installed fonts with the scripts that DejaVu lacks; Pillow looks for them in the system's folders.
_OTHERS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "Symbola.ttf",
    "seguisym.ttf",
)
_NO_LETTER = "\U0010ffff"


class Lettering:
    """Fonts of one size."""

    def __init__(self, size: float) -> None:
        self._fonts = _fonts(round(size))

    def shown(self, text: str) -> str:
        """`text` with every letter that no font has as its number, `[U+732B]`."""
        return "".join(letter if self._font_of(letter) else f"[U+{ord(letter):04X}]" for letter in text)

    def width(self, text: str) -> float:
        """Of `text` as `shown` gives it, in pixels."""
        return float(sum(font.getlength(part) for font, part in self._runs(text)))

    def draw(self, brush: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
        """Writes `text`, as `shown` gives it, from its upper left corner on."""
        x, y = float(place[0]), place[1]
        top = self._fonts[0].getmetrics()[0]
        for font, part in self._runs(text):
            brush.text((x, y + top), part, font=font, fill=color, anchor="ls")  # all on one baseline
            x += font.getlength(part)

    def _runs(self, text: str) -> list[tuple[Any, str]]:
        runs = groupby(text, lambda letter: self._font_of(letter) or self._fonts[0])
        return [(font, "".join(letters)) for font, letters in runs]

    def _font_of(self, letter: str) -> Any:
        return next((font for font in self._fonts if letter.isspace() or _has(font, letter)), None)


@cache
def _fonts(size: int) -> list[Any]:
    package = find_spec("matplotlib")
    dejavu = Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if package and package.origin else None
    found = []
    for name in (dejavu or "DejaVuSans.ttf", *_OTHERS):
        try:
            found.append(ImageFont.truetype(str(name), size))
        except (OSError, ImportError):
            continue
    return found or [ImageFont.load_default(size)]


@cache
def _has(font: Any, letter: str) -> bool:
    """Whether a font has a letter: else it draws the box that it draws for no letter at all."""
    if not letter.isprintable():
        return False
    drawn, box = (font.getmask(one) for one in (letter, _NO_LETTER))
    return drawn.size != box.size or bytes(drawn) != bytes(box)


LONG_SIDE = 960
KEPT_COLOR = (255, 196, 0)
LOOK_COLOR = (226, 26, 84)
_MOST_LINES = 4
_LEAST_CELL = 4  # pixels; a strip of a picture is drawn longer for it
_DROPPED_LIGHT, _UNSEEN_LIGHT = 0.38, 0.15
_PAPER, _INK, _ANSWER, _FAINT = (250, 250, 248), (25, 25, 28), (150, 92, 0), (105, 105, 112)

Box = tuple[float, float, float, float]
Grid = Sequence[Sequence[bool]]


def seen_box(size: tuple[int, int], image_processor: Any) -> Box:
    """The part of an image of `size` (width, height) that a processor shows its model: left, top, right, bottom.

    In the image's own pixels. It is the whole image for a square resize, the middle of it for a center crop, and
    reaches beyond it where the image is padded to a square first.
    """
    width, height = float(size[0]), float(size[1])
    left, top = 0.0, 0.0
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        side = max(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        width = height = side
    if getattr(image_processor, "do_center_crop", False):
        shown_width, shown_height = _resized(width, height, image_processor)
        crop = image_processor.crop_size
        seen_width, seen_height = width * crop["width"] / shown_width, height * crop["height"] / shown_height
        left, top = left + (width - seen_width) / 2, top + (height - seen_height) / 2
        width, height = seen_width, seen_height
    return left, top, left + width, top + height


def _resized(width: float, height: float, image_processor: Any) -> tuple[float, float]:
    """Size before the crop."""
    size = image_processor.size if getattr(image_processor, "do_resize", False) else {}
    shortest = size.get("shortest_edge")
    if shortest is not None:
        scale = shortest / min(width, height)
        return width * scale, height * scale
    if "width" in size and "height" in size:
        return float(size["width"]), float(size["height"])
    return width, height


def draw(image: Image.Image, kept: Grid, box: Box, caption: Sequence[str], looks: Any = None) -> Image.Image:
    """The picture. `kept` is rows of columns over `box`; `caption` a title line and lines below it, or none.

    `looks`, rows of columns over `box` as well, perhaps of another grid, are weights; the largest glows most.
    """
    cell = min((box[2] - box[0]) / len(kept[0]), (box[3] - box[1]) / len(kept))
    scale = max(LONG_SIDE / max(image.size), _LEAST_CELL / cell)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top, right, bottom = (edge * scale for edge in box)
    columns = _edges(left, right, len(kept[0]))
    rows = _edges(top, bottom, len(kept))
    picture = _shade(scaled, kept, columns, rows)
    if looks is not None:
        _glow(picture, np.asarray(looks), (columns[0], rows[0], columns[-1], rows[-1]))
    _outline(picture, kept, columns, rows)
    return _with_caption(picture, caption) if caption else picture


def _edges(start: float, end: float, cells: int) -> list[int]:
    return [round(start + (end - start) * index / cells) for index in range(cells + 1)]


def _shade(image: Image.Image, kept: Grid, columns: list[int], rows: list[int]) -> Image.Image:
    """Kept cells as they are, dropped ones dark and pale, what the model never saw almost black."""
    pale = ImageEnhance.Color(image).enhance(0.35)
    picture = ImageEnhance.Brightness(pale).enhance(_UNSEEN_LIGHT)
    dropped = ImageEnhance.Brightness(pale).enhance(_DROPPED_LIGHT)
    seen = Image.new("L", image.size)
    ImageDraw.Draw(seen).rectangle((columns[0], rows[0], columns[-1] - 1, rows[-1] - 1), fill=255)
    picture.paste(dropped, mask=seen)
    bright = Image.new("L", image.size)
    brush = ImageDraw.Draw(bright)
    for row, cells in enumerate(kept):
        for column, keep in enumerate(cells):
            if keep:
                brush.rectangle((columns[column], rows[row], columns[column + 1] - 1, rows[row + 1] - 1), fill=255)
    picture.paste(image, mask=bright)
    return picture


def _glow(picture: Image.Image, looks: Any, box: tuple[int, int, int, int]) -> None:
    """Color over the cells by the square root of their weights, as a few weights are much larger than all others."""
    left, top, right, bottom = box
    strength = (215 * np.sqrt(looks / max(float(looks.max()), 1e-12))).astype(np.uint8)
    cells = Image.fromarray(strength).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    mask = Image.new("L", picture.size)
    mask.paste(cells, (left, top))
    picture.paste(LOOK_COLOR, mask=mask)


def _outline(picture: Image.Image, kept: Grid, columns: list[int], rows: list[int]) -> None:
    """A line wherever a kept cell meets one that is not: connected cells get one outline."""
    brush = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 320))
    # Lines along the picture's border would lie half outside of it.
    columns = [
        min(max(x, width // 2), picture.width - 1 - width // 2) if 0 <= x <= picture.width else x for x in columns
    ]
    rows = [min(max(y, width // 2), picture.height - 1 - width // 2) if 0 <= y <= picture.height else y for y in rows]

    def is_kept(row: int, column: int) -> bool:
        return 0 <= row < len(kept) and 0 <= column < len(kept[0]) and kept[row][column]

    for row in range(len(kept) + 1):
        for column in range(len(kept[0]) + 1):
            here = is_kept(row, column)
            x, y = columns[column], rows[row]
            if column < len(kept[0]) and here != is_kept(row - 1, column):
                brush.line((x, y, columns[column + 1], y), fill=KEPT_COLOR, width=width)
            if row < len(kept) and here != is_kept(row, column - 1):
                brush.line((x, y, x, rows[row + 1]), fill=KEPT_COLOR, width=width)


def _with_caption(picture: Image.Image, caption: Sequence[str]) -> Image.Image:
    """Lines of text on a light strip below: the first in ink, the last small and faint, those between in color."""
    unit = LONG_SIDE // 40
    page_width = max(picture.width, LONG_SIDE // 2)
    lines = []
    for index, text in enumerate(caption):
        small = 0 < index == len(caption) - 1
        font = Lettering(unit * (0.75 if small else 1.0))
        color = _FAINT if small else (_ANSWER if index else _INK)
        lines += [(line, font, color) for line in _wrap(font.shown(text), font, page_width - 2 * unit)]
    line_height = round(unit * 1.4)
    page = Image.new("RGB", (page_width, picture.height + line_height * len(lines) + unit), _PAPER)
    page.paste(picture, ((page_width - picture.width) // 2, 0))
    brush = ImageDraw.Draw(page)
    for index, (line, font, color) in enumerate(lines):
        font.draw(brush, (unit, picture.height + unit // 2 + index * line_height), line, color)
    return page


def _wrap(text: str, font: Lettering, width: float) -> list[str]:
    """Breaks between words, and inside a word only where it alone is too long. At most `_MOST_LINES` lines."""
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, font, width):
            joined = f"{lines[-1]} {piece}".strip()
            if font.width(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
        if len(lines) > _MOST_LINES:
            return [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1] + " ..."]
    return lines


def _pieces(word: str, font: Lettering, width: float) -> list[str]:
    """The word, or the longest pieces of it that fit."""
    pieces = [""]
    for letter in word:
        if font.width(pieces[-1] + letter) > width and pieces[-1]:
            pieces.append("")
        pieces[-1] += letter
    return pieces
