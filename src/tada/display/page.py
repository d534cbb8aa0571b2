"""HTML reports: headings, tables and pictures in one file, which opens without a network.

The layout is in page.html, a Jinja template; all texts are escaped.
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
"""The file name of a report, in the folder of its run or evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of texts."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    """Column names; a table without them is laid out as words, not as numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture with a caption."""

    data: bytes
    """A PNG or JPEG file."""
    caption: str

    @classmethod
    def of_file(cls, file: Path, caption: str) -> Picture:
        """Read a picture from a file.

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
        """The file's bytes in base64, to embed it in the page."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section of a report: a heading, then its contents in the order of the fields."""

    heading: str
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    """Lines of code, such as commands."""
    pictures: Sequence[Picture] = ()


def write_page(file: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> None:
    """Write a report as HTML, atomically.

    Args:
        lead: the line below the title, which states the result.

    Raises:
        OutputError: the file cannot be written.
    """
    from jinja2 import Environment

    # Jinja escapes markup; control characters and lone surrogates, which HTML forbids, are escaped by _escape.
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_escape)
    template = environment.from_string(files("tada.display").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        lead=lead,
        sections=sections,
        version=version("tada-video"),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_whole(file, page.encode())


def _escape(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
