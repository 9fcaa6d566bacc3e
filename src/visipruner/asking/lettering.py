"""Text on pictures that always shows: each letter in the first font that has it, and its number where none has."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

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
