"""Errors by kind, precision by length, and the page that shows both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tada.errors import DataError
from tada.localization.annotations.table import SegmentTable, read_segments
from tada.localization.evaluation import score
from tada.localization.metrics import DetectionScores
from tada.localization.report import errors_by_kind, map_by_length, write_report

ROWS = "video,start,end,label\nv,0,10,a\nv,20,30,b\nv,40,44,a\nw,5,6,a\n"
FOUND = [
    ("v", [0, 10], "a", 0.9),  # right
    ("v", [1, 10], "a", 0.8),  # duplicate
    ("v", [20, 29], "a", 0.7),  # wrong class
    ("v", [42, 50], "a", 0.6),  # boundary: overlap 2 of 10
    ("v", [60, 70], "b", 0.5),  # background
    ("w", [5, 6], "a", 0.1),  # right, but below the threshold: so w's segment is missed
]


def case(tmp_path: Path) -> tuple[SegmentTable, dict[str, Any]]:
    (tmp_path / "s.csv").write_text(ROWS)
    results: dict[str, list[dict[str, object]]] = {"v": [], "w": []}
    for video, segment, label, value in FOUND:
        results[video].append({"segment": segment, "label": label, "score": value})
    return read_segments(tmp_path / "s.csv"), {"results": results}


def test_errors_by_kind(tmp_path: Path) -> None:
    table, results = case(tmp_path)
    errors = errors_by_kind(table, results, {"a": 0.2})
    assert errors.counts["a"] == {"right": 1, "duplicate": 1, "wrong class": 1, "boundary": 1, "missed": 2}
    assert errors.counts["b"] == {"background": 1, "missed": 1}
    assert errors.total()["missed"] == 3
    assert errors_by_kind(table, results, {}).counts["a"]["right"] == 2


def test_precision_by_length(tmp_path: Path) -> None:
    """Lengths 1, 4, 10, 10: the long third is found by a, not by b; the short one is found."""
    table, results = case(tmp_path)
    found = map_by_length(table, results, (0.5,))
    assert list(found) == ["short (1.0 to 4.0 s)", "middling (4.0 to 10.0 s)", "long (10.0 to 10.0 s)"]
    assert found["long (10.0 to 10.0 s)"] == pytest.approx(0.5)
    assert found["short (1.0 to 4.0 s)"] == pytest.approx(0.5)  # one of two a's


def test_the_page_holds_all_of_it(tmp_path: Path) -> None:
    table, results = case(tmp_path)
    scores = score(table, results, (0.5,))
    assert isinstance(scores, DetectionScores)
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    write_report(
        tmp_path / "r.html",
        table,
        results,
        {"action": scores},
        {"a": 0.2},
        title="doors <1>",
        pictures={"v": tmp_path / "x.png"},
    )
    page = (tmp_path / "r.html").read_text()
    for text in ("doors &lt;1&gt;", "wrong class", f"{scores.average:.4f}", "By length", "data:image/png;base64,"):
        assert text in page
    with pytest.raises(DataError, match=r"gone.png' cannot be read"):
        write_report(
            tmp_path / "r.html",
            table,
            results,
            {"action": scores},
            {},
            title="",
            pictures={"v": tmp_path / "gone.png"},
        )


def test_a_third_without_segments_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("video,start,end,label\nv,0,10,a\nv,20,40,a\n")
    found = {"results": {"v": [{"segment": [0, 10], "label": "a", "score": 0.5}]}}
    parts = map_by_length(read_segments(tmp_path / "s.csv"), found, (0.5,))
    assert parts == {"short (10.0 to 13.3 s)": 1.0, "long (16.7 to 20.0 s)": 0.0}
