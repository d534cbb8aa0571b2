"""Pages of trainings and tests: one file each, with all that is in it, whatever names are; curves from logs."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tada.commands import cli
from tada.data.table import Head, Unreadable
from tada.data.views import Views
from tada.display.page import Picture, Section, Table, write_page
from tada.recognition.recipe import Recipe
from tada.recognition.report import filmstrip, write_test_page
from tada.recognition.results import Evaluation, load_scores
from tada.recognition.training import train
from tada.training.recipe import recipe_yaml
from tada.training.run_page import Curve, draw_curves, read_curves
from tada.video.sampling import ClipSpec, clip_in_words

AWKWARD = ["<b>&\"'", "{{ 1 + 1 }}", "two\nlines", "\x1b[2J", "\ud800", "名前"]


class Reader(HTMLParser):
    """The texts of a page, its links, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def read(file: Path) -> Reader:
    return Reader(file.read_text(encoding="utf-8"))


def png(width: int = 3) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 2)).save(out, "PNG")
    return out.getvalue()


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    shown = name.encode("unicode_escape").decode() if name in AWKWARD[2:5] else name
    section = Section(
        heading=name,
        texts=[name],
        tables=[Table(header=[name], rows=[[name, name]])],
        lines=[name],
        pictures=[Picture(data=png(), caption=name)],
    )
    write_page(tmp_path / "p.html", name, [section], lead=name)
    page = read(tmp_path / "p.html")
    assert page.texts.count(shown) == 9 + 1  # the title stands in the window's bar too
    assert "b" not in page.tags


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", "t", [Section(heading="a", pictures=[Picture(data=png(), caption="c")])] * 3)
    sources = read(tmp_path / "p.html").sources
    assert [source for source in sources if not source.startswith(("#s", "data:image/png;base64,"))] == []
    assert len(sources) == 6


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_go_on_over_several_starts(tmp_path: Path) -> None:
    """What a later start says counts, the tenth comes behind the second, and torn lines are left out."""
    for start, rows in {
        0: "epoch,step,train_loss,val_top1\n0,1,3.0,\n0,1,,0.1\n1,2,2.5,\n",
        2: "epoch,step,train_loss,loader_x\n1,2,2.0,9\n2,3,1.5,9\n,3,1.5,\n",
        10: "epoch,step,train_loss\n2,3,1.0\n3,4,0.",
    }.items():
        (tmp_path / f"logs/start_{start}").mkdir(parents=True)
        (tmp_path / f"logs/start_{start}/metrics.csv").write_text(rows)
    assert read_curves(tmp_path) == {
        "train_loss": Curve(epochs=(1, 2, 3, 4), values=(3.0, 2.0, 1.0, 0.0)),
        "val_top1": Curve(epochs=(1,), values=(0.1,)),
    }
    draw_curves(read_curves(tmp_path), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > picture.height  # two diagrams
    assert read_curves(tmp_path / "nothing") == {}


# --- a test -----------------------------------------------------------------------------------------------------------


def test_the_worst_mistakes_come_first_with_the_frames_that_were_seen(motion_videos: Path, tmp_path: Path) -> None:
    videos = [str(file) for file in sorted(motion_videos.rglob("*.mp4"))[:4]]
    labels = ("a", "<b>", "c")
    result = Evaluation(
        heads=(Head(name="action", labels=labels),),
        ids=tuple("1234"),
        paths=(*videos[:3], "/gone.mp4"),
        groups=(None,) * 4,
        targets=np.array([[0], [1], [2], [2]]),
        scores=np.array([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.9, 0.0, 0.1]], np.float32),
        unreadable=(Unreadable("/5.mp4", "5 is empty"),),
        views=(Views(),),
        segments=((None, None), (None, None), (0.0, 0.2), (None, None)),
        clip=ClipSpec(num_frames=4, sampling="segment", short_side=48, crop=40),
    )
    result.save(tmp_path / "r")
    write_test_page(tmp_path / "r", result, title="run on data", command="tada evaluate run data")
    page = read(tmp_path / "r" / "report.html")
    captions = [text for text in page.texts if ") was taken for" in text]
    assert captions == [
        f"c (0.10) was taken for <b> (0.80): {videos[2]}, 0.00 s to 0.20 s",
        f"<b> (0.30) was taken for a (0.40): {videos[1]}",
    ]  # what is gone meanwhile is left out
    for text in ("top-1 0.250, of 4 videos that the network was not trained on.", "5 is empty",
                 "tada evaluate run data", "0.2500", "Worst mistakes"):  # fmt: skip
        assert text in page.texts
    assert load_scores(tmp_path / "r").segments == result.segments
    assert load_scores(tmp_path / "r").clip == result.clip


def test_a_filmstrip_shows_frames_beside_each_other() -> None:
    frames = [np.full((20, 30, 3), value, np.uint8) for value in (0, 120, 250)]
    with Image.open(io.BytesIO(filmstrip(frames))) as strip:
        assert strip.size == (3 * 30 + 2 * 3, 20)
        middles = [strip.getpixel((15 + 33 * i, 10)) for i in range(3)]
    for value, seen in zip((0, 120, 250), middles, strict=True):
        assert isinstance(seen, tuple)
        assert all(abs(channel - value) < 5 for channel in seen)


def test_clips_in_words() -> None:
    assert clip_in_words(ClipSpec(num_frames=8, interval=5, fps=30)) == (
        "8 frames, one of every 5 at 30 a second: 1.33 s of video; short side 256, crop 224 x 224 pixels"
    )
    assert clip_in_words(ClipSpec(num_frames=8, sampling="segment", short_side=56, crop=48)) == (
        "8 frames, one of each of 8 equal parts of the video; short side 56, crop 48 x 48 pixels"
    )
    assert clip_in_words(ClipSpec(num_frames=8, interval=5, fps=None)).startswith("8 frames, one of every 5 of the")


# --- a training -------------------------------------------------------------------------------------------------------


def test_a_run_says_by_which_commands_it_came(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my videos").symlink_to(motion_videos)
    Path("small.yaml").write_text(recipe_yaml(replace(small_recipe, epochs=1, warmup_epochs=0.0)))
    words = ["train", "my videos", "--recipe", "small.yaml", "--num-workers", "0", "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["tada", *words])
    assert cli.main() == 0
    command = "tada train 'my videos' --recipe small.yaml --num-workers 0 --out run"
    assert Path("run/commands.txt").read_text() == f"{command}\n"
    page = read(Path("run/report.html"))
    assert command in page.texts
    assert any(re.fullmatch(r"top-1 \d\.\d{3}, of 3 videos .*", text) for text in page.texts)
    assert "model: tada2d_tiny" in "\n".join(page.texts)
    for name in ("curves.png", "validation/evaluation.json", "validation/scores.npz", "validation/confusion.png"):
        assert Path("run", name).stat().st_size > 0
    # The network as it was saved says of the held-out videos what the last epoch's test said.
    told = json.loads(Path("run/metrics.json").read_text())["val_top1"]
    assert json.loads(Path("run/validation/evaluation.json").read_text())["top1"] == pytest.approx(told)


def test_a_run_with_nothing_held_out_has_its_page(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(small_recipe, epochs=1, warmup_epochs=0.0)
    out = tmp_path / "run"
    train(recipe, motion_videos, out, val_fraction=0, num_workers=0, show_progress=False, say=lambda line: None)
    assert "No videos were held out, so nothing says how good the network is." in read(out / "report.html").texts
    assert not (out / "validation").exists()
    assert not (out / "commands.txt").exists()  # nobody has typed one
