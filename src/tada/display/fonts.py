"""Fonts for class names in pictures: a name is drawn in a font that has its letters, or as a number with a legend.

Matplotlib reads "$" as mathematics, draws a box for a letter that the font lacks, and warns of each. Its own font has
the letters of Europe, Arabic and Hebrew; for others the machine's fonts are searched.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tada.system.terminal import printable

_LONGEST = 32  # letters of a name; longer ones lose their middle
_LIKELY = ("CJK", "Unicode", "Noto Sans", "PingFang", "Hiragino", "YaHei", "SimHei", "WenQuanYi", "Gothic", "Emoji")
_JOINED_LETTERS = range(0x0900, 0x1100)  # of India to Myanmar, whose letters change with their neighbors


@dataclass(frozen=True, slots=True)
class Lettering:
    """The text and style to draw names with."""

    shown: tuple[str, ...]
    """The text to draw for each name."""
    style: dict[str, Any]
    """Arguments of matplotlib's Text."""
    legend: dict[str, str] = field(default_factory=dict)
    """Number ("#3") -> name, for names that are drawn as numbers."""


def lettering(names: Sequence[str]) -> Lettering:
    """Choose text and fonts for class names; each name gets a distinct text."""
    shown: list[str] = []
    legend: dict[str, str] = {}
    families: list[str] = [_default()]
    for number, name in enumerate(names, start=1):
        text = _shortened(printable(name))
        found = _families(text)
        if found is None or not text.strip() or text in shown:
            text, found = f"#{number}", []
            legend[text] = printable(name)
        shown.append(text)
        families += [family for family in found if family not in families]
    return Lettering(tuple(shown), _style(families), legend)


def title_lettering(text: str) -> tuple[str, dict[str, Any]]:
    """Choose text and fonts for a title; letters that no font has are written as escapes."""
    text = _shortened(printable(text), 2 * _LONGEST)
    families = [_default()]
    letters = []
    for letter in text:
        found = _families(letter)
        letters.append(letter.encode("unicode_escape").decode() if found is None else letter)
        families += [family for family in found or () if family not in families]
    return "".join(letters), _style(families)


def _style(families: Sequence[str]) -> dict[str, Any]:
    # A single family is matplotlib's default, which need not be named.
    return {"parse_math": False} | ({"fontfamily": list(families)} if len(families) > 1 else {})


def _shortened(text: str, longest: int = _LONGEST) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"


def font_file(letter: str) -> str:
    """The file of a font that has a letter; matplotlib's default font where none has."""
    return _letters_of(_family(letter) or _default())[0]


# -- which font has a letter ------------------------------------------------------------------------------------------


def _families(text: Iterable[str]) -> list[str] | None:
    """The font families that have the letters of a text; None where a letter is in no font."""
    found: list[str] = []
    for letter in text:
        family = _family(letter)
        if family is None:
            return None
        if family not in found:
            found.append(family)
    return found


@cache
def _family(letter: str) -> str | None:
    if _is_joined(letter) and not _can_join():
        return None
    own = _default()
    others = (family for family in _all_families() if family != own)
    return next((family for family in (own, *others) if _draws(family, letter)), None)


def _is_joined(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL", "AN") or ord(letter) in _JOINED_LETTERS


@cache
def _can_join() -> bool:
    """Whether matplotlib joins letters and writes right to left, as it does from 3.11 on."""
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")


@cache
def _default() -> str:
    """The family that matplotlib draws with."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    family: str = get_font(findfont(FontProperties())).family_name
    return family


@cache
def _all_families() -> tuple[str, ...]:
    """The machine's font families, the likely ones first; without Last Resort, which has a box for every letter."""
    from matplotlib.font_manager import fontManager

    names = sorted({entry.name for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")})
    return tuple(sorted(names, key=lambda name: not any(part in name for part in _LIKELY)))


@cache
def _letters_of(family: str) -> tuple[str, frozenset[int]]:
    """A family's file and its code points; none where matplotlib cannot draw with it, such as bitmap fonts."""
    from matplotlib.ft2font import FT2Font

    try:
        file = _file_of(family)
        return file, frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return "", frozenset()


def _file_of(family: str) -> str:
    """The file of a font family.

    Raises:
        ValueError: there is none.
    """
    from matplotlib.font_manager import FontProperties, findfont

    with quiet_fonts():
        return str(findfont(FontProperties(family=[family]), fallback_to_default=False))


@contextmanager
def quiet_fonts() -> Iterator[None]:
    """Silence matplotlib's warning that a family lacks the usual weight; it takes the nearest weight."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _draws(family: str, letter: str) -> bool:
    from matplotlib.ft2font import FT2Font

    file, letters = _letters_of(family)
    if ord(letter) not in letters:
        return False
    try:
        font = FT2Font(file)
        font.set_size(12, 72)
        font.load_char(ord(letter))
    except (OSError, RuntimeError):  # fonts of colored pictures
        return False
    return True
