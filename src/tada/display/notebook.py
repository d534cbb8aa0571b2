"""HTML of results for notebooks; it needs no other file, no display and no matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from tada.system.terminal import printable

MAX_ROWS = 30
"""The most rows of a table; a line below says how many more there are."""
_COLOR = "#3273a8"
_LEFT = "text-align:left;padding-right:1em"
_NAME = "width:12em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"


class Bar(NamedTuple):
    """A table cell with a number from 0 to 1 and a bar of that length."""

    part: float


Cell = str | Bar
Table = tuple[Sequence[str], Sequence[Sequence[Cell]]]
"""Column names, and rows."""


def results_html(title: str, tables: Iterable[Table], *, lead: str = "", below: str = "") -> str:
    """HTML of a title, the line ``lead`` below it, tables, and the HTML ``below`` them."""
    parts = [f"<div><b>{_text(title)}</b>"]
    if lead:
        parts.append(f"<div>{_text(lead)}</div>")
    parts += [_table(names, rows) for names, rows in tables]
    return "".join([*parts, below, "</div>"])


def timeline_html(rows: Mapping[str, Sequence[tuple[float, float, float]]], duration_seconds: float) -> str:
    """HTML of a timeline for each name, with its segments (start_seconds, end_seconds, score); high scores are dark."""
    lines = []
    for name, spans in list(rows.items())[:MAX_ROWS]:
        boxes = "".join(
            f'<span title="{start:.1f}-{end:.1f} s, {score:.2f}" style="position:absolute;top:0;height:100%;'
            f"left:{100 * start / duration_seconds:.2f}%;width:{max(100 * (end - start) / duration_seconds, 0.2):.2f}%;"
            f'background:{_COLOR};opacity:{0.25 + 0.75 * score:.2f}"></span>'
            for start, end, score in spans
        )
        lines.append(
            f'<div style="display:flex;gap:8px"><span style="{_NAME}">{_text(name)}</span>'
            f'<span style="position:relative;flex:1;border-bottom:1px solid #8888">{boxes}</span></div>'
        )
    return f'<div style="max-width:60em">{"".join(lines)}</div>'


def _table(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f'<th style="{_LEFT}">{_text(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:MAX_ROWS])
    more = f"<div>and {len(rows) - MAX_ROWS} more</div>" if len(rows) > MAX_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f'<td style="{_LEFT}">{_text(cell)}</td>'
    bar = f"display:inline-block;height:0.7em;width:{6 * cell.part:.2f}em;background:{_COLOR};margin-right:0.5em"
    return f'<td style="{_LEFT}"><span style="{bar}"></span>{cell.part:.3f}</td>'


def _text(text: str) -> str:
    return escape(printable(text)).encode("utf-8", "replace").decode()
