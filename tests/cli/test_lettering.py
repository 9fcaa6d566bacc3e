"""Captions that always show."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from visipruner.asking import overlay
from visipruner.asking.overlay import Lettering


def _drawn(text: str) -> bytes:
    page = Image.new("RGB", (400, 60), "white")
    fonts = Lettering(24)
    fonts.draw(ImageDraw.Draw(page), (5, 5), fonts.shown(text), (0, 0, 0))
    return page.tobytes()


def test_umlauts_are_letters() -> None:
    assert Lettering(24).shown("Größe, naïve, Žluťoučký") == "Größe, naïve, Žluťoučký"
    assert len({_drawn(letter) for letter in "aäáåà"}) == 5


@pytest.mark.parametrize("text", ["猫が好き", "고양이", "🐈", "\ue000", "a\u200bb"])
def test_what_no_font_has_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with no font but ours; on others these letters are drawn."""
    monkeypatch.setattr(overlay, "_OTHERS", ())
    overlay._fonts.cache_clear()
    shown = Lettering(24).shown(text)
    assert shown == "".join(letter if letter.isascii() else f"[U+{ord(letter):04X}]" for letter in text)
    assert _drawn("[U+732B]") != _drawn("[U+732C]")
    overlay._fonts.cache_clear()


def test_a_width_is_that_of_what_is_drawn() -> None:
    fonts = Lettering(24)
    assert fonts.width("ab") == pytest.approx(fonts.width("a") + fonts.width("b"), abs=2)
    assert fonts.width("") == 0
