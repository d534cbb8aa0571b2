"""Fonts with the letters that a test needs."""

from __future__ import annotations

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from tada.display import fonts


def forget() -> None:
    for function in (fonts._family, fonts._all_families, fonts._letters_of):
        function.cache_clear()


def install_font(file: Path, family: str, letters: str) -> None:
    """A font whose letters are filled squares."""
    pen = TTGlyphPen(None)
    for move, point in (
        (pen.moveTo, (50, 0)),
        (pen.lineTo, (50, 700)),
        (pen.lineTo, (750, 700)),
        (pen.lineTo, (750, 0)),
    ):
        move(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 50)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    font.setupPost()
    font.save(file)
    font_manager.fontManager.addfont(file)
    forget()
