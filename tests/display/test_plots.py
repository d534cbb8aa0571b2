"""Pictures: names as they are written, whatever is in them; numbers where no font has their letters; no warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.image import imread

from drawn_fonts import forget, install_font
from tada.commands.arguments import picture_files
from tada.display import fonts
from tada.display.fonts import lettering, title_lettering
from tada.display.plots import is_ours, save_comparison, save_confusion_matrix, save_prediction, save_timeline
from tada.errors import OptionError, OutputError

ODD = (
    "$x$",
    "cost $5 {y} 10% \\frac{",
    "{}",
    "%s %(x)d",
    "[bold]a[/bold]",
    "_hidden",
    "<b>&amp;",
    "Türe öffnen",
    "открыть",
    "فتح الباب",
    "tab\tline\nend",
    "\x1b[31mred",
    "bytes \udcff",
    "w" * 300,
)
CHINESE, JAPANESE = "跑步", "走る"


@pytest.fixture(autouse=True)
def only_matplotlibs_own_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine has."""
    own = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname or e.name.startswith("Last Resort")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    forget()
    yield
    forget()


def test_names_are_shown_as_they_are_written() -> None:
    found = lettering(ODD)
    assert found.shown[:10] == ODD[:10]
    assert found.shown[10:13] == ("tab\\tline\\nend", "\\x1b[31mred", "bytes \\udcff")
    assert found.shown[13] == f"{'w' * 16}…{'w' * 15}"
    assert found.style == {"parse_math": False}
    assert found.legend == {}


def test_letters_that_no_font_has_make_a_name_a_number() -> None:
    found = lettering(["run", CHINESE, "walk", "", "w" * 100, "w" * 101])
    assert found.shown == ("run", "#2", "walk", "#4", f"{'w' * 16}…{'w' * 15}", "#6")
    assert found.legend == {"#2": CHINESE, "#4": "", "#6": "w" * 101}
    assert title_lettering("跑 a$.mp4") == ("\\u8dd1 a$.mp4", {"parse_math": False})


def test_a_font_that_has_the_letters_is_found(tmp_path: Path) -> None:
    install_font(tmp_path / "a.ttf", "Chinese Letters", CHINESE)
    install_font(tmp_path / "b.ttf", "Noto Sans Japanese", JAPANESE)
    found = lettering([CHINESE, JAPANESE, "run", "한"])
    assert found.shown == (CHINESE, JAPANESE, "run", "#4")
    assert found.style["fontfamily"] == ["DejaVu Sans", "Chinese Letters", "Noto Sans Japanese"]
    assert title_lettering("跑.mp4")[0] == "跑.mp4"

    # And they are what is drawn: squares, much darker than the same picture with blanks.
    def darkness(label: str) -> float:
        save_comparison({"model": {label: 0.0}}, tmp_path / "a.png")
        return float((1 - imread(tmp_path / "a.png")[..., :3]).sum())

    assert darkness(CHINESE) > darkness("i") + 100


def test_letters_that_must_be_joined_are_numbers_where_matplotlib_cannot_join_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "_can_join", lambda: False)
    assert lettering(["فتح", "Tür"]).shown == ("#1", "Tür")


def test_every_picture_takes_every_name_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here, matplotlib's of boxes and of pictures that are too narrow among them."""
    labels = [*ODD, CHINESE]
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    k = len(labels)
    title = f"{CHINESE} $x$.mp4"
    save_confusion_matrix(np.arange(k * k).reshape(k, k), labels, tmp_path / "confusion.png")
    save_confusion_matrix(np.eye(2, dtype=np.int64), labels[-2:], tmp_path / "two.png")
    save_confusion_matrix(np.eye(60, dtype=np.int64), [CHINESE] * 60, tmp_path / "many.png")
    save_prediction(frames, [0, 1, 2, 3], [(label, 0.1) for label in labels], tmp_path / "p.png", title=title)
    save_timeline(frames, {"found": [(0, 1, x, 0.5) for x in labels]}, 4.0, tmp_path / "t.png", title=title)
    save_comparison({"a": dict.fromkeys(labels, 0.5)}, tmp_path / "c.png", title=title)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"confusion", "two", "many", "p", "t", "c"}
    with_numbers = pictures - {"many"}  # where no class is named
    assert names == {f"{name}.png" for name in pictures} | {f"{name}.classes.txt" for name in with_numbers}
    assert (tmp_path / "confusion.classes.txt").read_text(encoding="utf-8") == f"#{k}\t{CHINESE}\n"
    for name in pictures:
        assert is_ours(tmp_path / f"{name}.png")


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"a\.png' cannot be written: it is a folder; give the name of a file"):
        save_comparison({"a": {"x": 0.5}}, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pictures_of_videos_of_one_name_are_told_apart_and_others_are_not_lost(tmp_path: Path) -> None:
    videos = ["a/0.mp4", "b/0.mp4", "b/1.mp4"]
    places = picture_files(tmp_path, videos)
    assert [places[video].name for video in videos] == ["a_0.png", "b_0.png", "1.png"]
    assert picture_files(None, videos) == {}
    save_comparison({"a": {"x": 0.5}}, tmp_path / "1.png")
    assert picture_files(tmp_path, videos) == places  # one of ours is drawn anew
    (tmp_path / "a_0.png").write_bytes(b"\x89PNG of a holiday")
    with pytest.raises(
        OptionError, match=r"a_0\.png' is there, and was not drawn by tada: give --plots another folder"
    ):
        picture_files(tmp_path, videos)
