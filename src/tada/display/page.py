"""A report as one HTML page: headings, tables and pictures in a single file that opens by itself, without a network.

What it looks like is in page.html, a Jinja template; texts are shown as they are, whatever signs are in them.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from tada.system.files import write_whole
from tada.system.terminal import printable

PAGE = "report.html"
"""What a page is called, in the folder of what it reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of cells."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    """Names of the columns; without any, the cells are words and no numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture, with what it shows."""

    data: bytes
    """A PNG or JPEG file."""
    caption: str

    @classmethod
    def of_file(cls, file: Path, caption: str) -> Picture:
        """A picture from a file.

        Raises:
            OSError: it cannot be read.
        """
        return cls(data=file.read_bytes(), caption=caption)

    @property
    def kind(self) -> str:
        """Its media type."""
        return "image/png" if self.data.startswith(b"\x89PNG") else "image/jpeg"

    @property
    def base64(self) -> str:
        """The file as a page holds it."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, and what stands below it, in this order."""

    heading: str
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    """Such as commands, as they are typed."""
    pictures: Sequence[Picture] = ()


def write_page(file: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> None:
    """Write a page; it is whole, or not there.

    Args:
        lead: the line below the title, which says the result.

    Raises:
        OutputError: the file cannot be written.
    """
    from jinja2 import Environment

    # Text is escaped; control characters and lone halves of characters have no place in HTML at all.
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_shown)
    template = environment.from_string(files("tada.display").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        lead=lead,
        sections=sections,
        version=version("tada-video"),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_whole(file, page.encode())


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
