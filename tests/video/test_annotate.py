"""Annotated copies of videos: frames, times and sound are kept; what is drawn where; a complete file or none."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from numpy.typing import NDArray

from drawn_fonts import forget, install_font
from drawn_sound import draw_clicking, heard, remuxed
from drawn_videos import (
    draw,
    draw_packed,
    draw_plain,
    draw_rotated,
    draw_transport_stream,
    draw_variable_rate,
    read_stamps,
    stamped_frames,
    truncate,
)
from tada.commands.cli import main
from tada.errors import CorruptVideoError, OptionError, VideoError
from tada.localization.localizer import Localization, LocalizedSegment
from tada.recognition.prediction import ClipScores, Prediction
from tada.video.annotate import annotate_video
from tada.video.captions import Captions, Lane
from tada.video.reader import open_video

SEGMENTS = [
    Lane(label="open door", spans=((0.2, 0.5, 0.9), (0.9, 1.0, 0.4)), is_curve=False),
    Lane(label="close door", spans=((0.4, 0.8, 0.7),), is_curve=False),
]


def pictures_of(path: Path, height: int, width: int) -> list[NDArray[np.uint8]]:
    """The frames' upper right quarters, where nothing is drawn, as far as they are that of a frame of this size."""
    with open_video(path) as video:
        return [frame[:height, :width] for _, frame in video]


@pytest.mark.parametrize(
    "name", ["plain", "variable rate", "transport stream", "late", "rotated", "odd", "wide pixels", "large"]
)
def test_frames_and_times_are_the_sources(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "source.mp4", tmp_path / "new" / "target.mp4"
    size = (320, 240)
    if name == "plain":
        draw_plain(source, 20)
    elif name == "variable rate":
        draw_variable_rate(source, [0.0, 0.04, 0.05, 0.5, 0.500011, 2.0])
    elif name == "transport stream":
        draw_transport_stream(source, 20)
    elif name == "late":
        draw_clicking(source, "aac", video_start=0.52)
    elif name == "rotated":
        draw_rotated(source, 1)
        size = (240, 320)
    elif name == "odd":
        draw(source, stamped_frames(8, width=331, height=255), pix_fmt="yuv444p")
        size = (332, 256)
    elif name == "wide pixels":
        draw_with_wide_pixels(source)
        size = (480, 240)
    else:
        draw_plain(source, 3, width=2560, height=1440)
        size = (1920, 1080)
    annotate_video(source, target, SEGMENTS)
    with open_video(source) as before, open_video(target) as after:
        assert after.info.num_frames == before.info.num_frames
        np.testing.assert_allclose(after.times_seconds, before.times_seconds, rtol=0, atol=2e-5)
        assert after.info.width == size[0]
        assert size[1] < after.info.height < 1.45 * size[1] + 4
        assert (after.info.codec, after.info.height % 2) == ("h264", 0)
        if name != "late":
            drawn = [frame[: size[1]] for _, frame in after]
            upright = drawn if name != "rotated" else [np.rot90(frame) for frame in drawn]
            assert [stamp & 0xFF8 for stamp in read_stamps(upright)] == [
                stamp & 0xFF8 for stamp in read_stamps(stamped_frames(len(drawn)))
            ]  # but for the bits that the names are drawn over
    with av.open(str(target)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"
    content = target.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is there as a whole


@pytest.mark.parametrize(("width", "height"), [(8, 400), (400, 8), (40, 2000), (2000, 40)])
def test_a_strip_is_made_wide_enough_to_draw_into(tmp_path: Path, width: int, height: int) -> None:
    source = draw(
        tmp_path / "strip.mkv", [np.full((height, width, 3), 90, np.uint8)] * 4, codec="mjpeg", pix_fmt="yuvj444p"
    )
    annotate_video(source, tmp_path / "target.mp4", SEGMENTS)
    with open_video(tmp_path / "target.mp4") as video:
        assert video.info.num_frames == 4
        assert 96 <= video.info.width <= 1920


def draw_with_wide_pixels(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for number, frame in enumerate(stamped_frames(8)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", ["a.mp4", "opus.mkv"])
def test_sound_is_kept(tmp_path: Path, name: str) -> None:
    source = draw_clicking(tmp_path / name, "aac" if name == "a.mp4" else "libopus", video_start=0.32)
    annotate_video(source, tmp_path / "new.mp4", SEGMENTS)
    assert heard(tmp_path / "new.mp4") == pytest.approx(heard(source), abs=0.003)
    with av.open(str(tmp_path / "new.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_sound_that_cannot_be_decoded_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    whole = draw_clicking(tmp_path / "mp3.mp4", "libmp3lame", rate=44100)
    damaged = remuxed(whole, tmp_path / "damaged.mkv", (-1.0, 9.0))
    with pytest.warns(UserWarning, match=r"the sound of '.*damaged\.mkv' \(mp3\w*\) cannot be decoded and is left out"):
        annotate_video(damaged, tmp_path / "new.mp4", SEGMENTS)
    assert heard(tmp_path / "new.mp4") == []


def test_sound_whose_times_go_back_leaves_gaps(tmp_path: Path) -> None:
    source = draw_plain(tmp_path / "a.flv", 24, codec="flv", with_sound_seconds=0.8, sound_rate=44_100)
    content = bytearray(source.read_bytes())
    place, sounds = 13, []
    while place + 15 < len(content):  # tags: kind, size, time, and at the end their size again
        if content[place] == 8:
            sounds.append(place)
        place += 15 + int.from_bytes(content[place + 1 : place + 4], "big")
    content[sounds[9] + 4 : sounds[9] + 7] = (5000).to_bytes(3, "big")
    source.write_bytes(content)
    annotate_video(source, tmp_path / "b.mp4", SEGMENTS)
    with open_video(tmp_path / "b.mp4") as video:
        assert video.info.num_frames == 24
    with av.open(str(tmp_path / "b.mp4")) as container:
        times = [packet.dts for packet in container.demux(audio=0) if packet.size]
    assert 9 <= len(times) < len(sounds)


def test_times_that_an_mp4_cannot_store_are_refused(tmp_path: Path) -> None:
    source = draw_packed(tmp_path / "a.avi", 24)
    content = bytearray(source.read_bytes())
    place = content.index(b"strh") + 4 + 24  # units of a second, and how many units a picture takes: 10 hours
    content[place : place + 8] = struct.pack("<2I", 36_000 * 30, 30)
    source.write_bytes(content)
    with pytest.raises(CorruptVideoError, match=r"a.avi': its sound or its times are damaged and .*; convert it first"):
        annotate_video(source, tmp_path / "b.mp4", SEGMENTS)
    assert list(tmp_path.iterdir()) == [source]


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_plain(Path("a.mp4"), 4)
    before = Path("a.mp4").read_bytes()
    Path("b.mp4").write_bytes(b"mine")
    with pytest.raises(OptionError, match=r"'b\.mp4' is there already: give another name, or overwrite=True"):
        annotate_video("a.mp4", "b.mp4", SEGMENTS)
    assert Path("b.mp4").read_bytes() == b"mine"
    with pytest.raises(OptionError, match=r"'\./a\.mp4'|'a\.mp4' is the video itself: give another name or folder"):
        annotate_video("a.mp4", "./a.mp4", SEGMENTS, overwrite=True)
    assert Path("a.mp4").read_bytes() == before
    annotate_video("a.mp4", "b.mp4", SEGMENTS, overwrite=True)
    with open_video("b.mp4") as video:
        assert video.info.num_frames == 4


def draw_damaged(path: Path) -> Path:
    """A video that opens, and whose frames in the middle cannot be decoded."""
    content = bytearray(truncate(draw_transport_stream(path, 60), 0.5).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    return path


def test_a_damaged_video_leaves_the_target_unchanged(tmp_path: Path) -> None:
    source = draw_damaged(tmp_path / "a.ts")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mp4").write_bytes(b"mine")
    with pytest.raises(VideoError):
        annotate_video(source, tmp_path / "out" / "a.mp4", SEGMENTS, overwrite=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.mp4"]
    assert (tmp_path / "out" / "a.mp4").read_bytes() == b"mine"


def test_frames_are_processed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[int] = set()
    most = 0
    original = Captions.draw

    def counted(self: Captions, frame: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
        nonlocal most
        out = original(self, frame, seconds)
        alive.add(id(out))
        weakref.finalize(out, alive.discard, id(out))
        gc.collect(0)
        most = max(most, len(alive))
        return out

    monkeypatch.setattr(Captions, "draw", counted)
    advanced: list[float] = []
    annotate_video(draw_plain(tmp_path / "a.mp4", 60), tmp_path / "b.mp4", SEGMENTS, advance=advanced.append)
    assert most <= 3
    assert sum(advanced) == pytest.approx(1)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def gray(height: int = 240, width: int = 320) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def test_segments_are_on_the_bar_and_named_while_they_last() -> None:
    captions = Captions(SEGMENTS, width=320, height=240, duration_seconds=1.0)
    rows = {}
    for seconds in (0.1, 0.3, 0.45, 0.6, 0.85):
        out = captions.draw(gray(), seconds)
        assert out.shape == (captions.height, 320, 3)
        named = (out[:240] != 128).any(axis=(1, 2))
        rows[seconds] = int(named.sum())
        assert not (out[:240, -20:] != 128).any()
        # The line of time is where it should be.
        white = np.flatnonzero((out[-3] == 255).all(-1))
        left, right = captions._x(0.0), captions._x(1.0)
        assert white.mean() == pytest.approx(left + seconds * (right - left), abs=2)
    assert rows[0.1] == rows[0.85] == 0
    assert 0 < rows[0.3] == rows[0.6]
    assert rows[0.45] == 2 * rows[0.3]
    bar = captions.draw(gray(), 0.1)[240:]
    first, second = bar[captions._pad + 4], bar[captions._pad + captions._row + 4]
    for row, spans in ((first, [(0.2, 0.5), (0.9, 1.0)]), (second, [(0.4, 0.8)])):
        for seconds in np.arange(0.02, 1.0, 0.02):
            if abs(seconds - 0.1) < 0.02 or min(abs(seconds - edge) for span in spans for edge in span) < 0.01:
                continue
            inside = any(start <= seconds < end for start, end in spans)
            assert (np.ptp(row[captions._x(seconds)].astype(int)) > 40) == inside, seconds


def test_a_curves_height_is_its_score() -> None:
    lane = Lane(label="left", spans=((-9e9, 1.0, 0.25), (1.0, 9e9, 0.75)), is_curve=True)
    captions = Captions([lane], width=640, height=480, duration_seconds=2.0)
    bar = captions.draw(gray(480, 640), 0.0)[480 + captions._pad : 480 + captions._row]
    for seconds, score in ((0.5, 0.25), (1.5, 0.75)):
        column = bar[:, captions._x(seconds)].astype(int)
        colored = int((np.ptp(column, axis=-1) > 40).sum())
        assert colored == pytest.approx(score * len(bar), abs=1)


def test_the_most_probable_are_named_first_and_those_that_are_not_probable_are_not() -> None:
    lanes = [
        Lane(label=f"class {i}", spans=((-9e9, 9e9, score),), is_curve=True)
        for i, score in enumerate((0.001, 0.7, 0.2, 0.05, 0.04))
    ]
    captions = Captions(lanes, width=640, height=480, duration_seconds=2.0)
    captions.draw(gray(480, 640), 0.5)
    assert list(captions._panels) == [((1, "0.70"), (2, "0.20"), (3, "0.05"))]
    sure = [replace(lane, spans=((0.0, 9e9, float(i == 4)),)) for i, lane in enumerate(lanes)]
    captions = Captions(sure, width=640, height=480, duration_seconds=2.0)
    captions.draw(gray(480, 640), 0.5)
    assert list(captions._panels) == [((4, "1.00"),)]


@pytest.mark.parametrize(
    ("width", "height"), [(240, 426), (320, 240), (1280, 720), (1920, 1080), (1920, 240), (240, 1920)]
)
def test_text_can_be_read_and_fits(width: int, height: int) -> None:
    lanes = [
        Lane(label="a very long name of a class " * 8, spans=((0.0, 1.0, 0.5),), is_curve=False),
        *(Lane(label=f"class {i}", spans=((0.0, 1.0, 0.4),), is_curve=False) for i in range(30)),
    ]
    captions = Captions(lanes, width=width, height=height, duration_seconds=7200.0)
    assert captions._text.size >= max(13, min(min(width, height) // 26, 44))
    assert captions.height <= max(1.45 * height, height + 5 * captions._row)
    assert captions.height % 2 == 0
    out = captions.draw(gray(height, width), 0.5)
    assert out[:height, :, 0].std() > 5
    fitted = captions._text.shorten(lanes[0].label, width // 2)
    assert captions._text.width(fitted) <= width // 2
    assert fitted[:3] == "a v"
    assert "…" in fitted


@pytest.fixture
def few_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those that come with matplotlib, whatever this machine has."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    forget()
    yield
    forget()


def test_a_name_that_no_font_can_draw_is_a_number(few_fonts: None, tmp_path: Path) -> None:
    lanes = [*SEGMENTS, replace(SEGMENTS[0], label="跑步")]
    annotate_video(draw_plain(tmp_path / "a.mp4", 6), tmp_path / "b.mp4", lanes)
    assert (tmp_path / "b.classes.txt").read_text(encoding="utf-8") == "#3\t跑步\n"
    annotate_video(tmp_path / "a.mp4", tmp_path / "c.mp4", SEGMENTS)
    assert not (tmp_path / "c.classes.txt").exists()


def test_letters_come_from_a_font_that_has_them(few_fonts: None, tmp_path: Path) -> None:
    lane = Lane(label="ab 跑步", spans=((0.0, 1.0, 0.5),), is_curve=False)
    install_font(tmp_path / "squares.ttf", "Chinese Letters", "跑步")
    captions = Captions([lane], width=320, height=240, duration_seconds=1.0)
    assert captions.legend == {}
    size = captions._text.size
    assert captions._text.width("跑步") == round(2 * 0.8 * size)  # the squares' advance
    row = captions.draw(gray(), 0.5)[240 + captions._pad :][: captions._row]
    name = row[:, captions._pad + captions._text.width("ab ") : captions._pad + captions._text.width("ab 跑步")]
    assert (name.min(-1) > 200).mean() > 0.25  # filled squares; strokes fill less


def test_a_video_in_which_nothing_happens(tmp_path: Path) -> None:
    annotate_video(draw_plain(tmp_path / "a.mp4", 3), tmp_path / "b.mp4", [])
    with open_video(tmp_path / "b.mp4") as video:
        assert video.info.num_frames == 3


# -- answers ----------------------------------------------------------------------------------------------------------


def clip(start: float, end: float, *scores: float) -> ClipScores:
    return ClipScores(start_seconds=start, end_seconds=end, scores=scores)


def test_a_time_has_the_scores_of_the_nearest_clip() -> None:
    prediction = Prediction(
        path="a.mp4",
        labels=("a", "b", "c", "d"),
        scores=(0.2, 0.5, 0.1, 0.2),
        clips=(clip(0.0, 1.0, 0.1, 0.9, 0.0, 0.0), clip(2.0, 3.0, 0.3, 0.1, 0.2, 0.4)),
    )
    lanes = prediction._lanes(1)
    assert [lane.label for lane in lanes] == ["b", "d"]  # best of the video, and best of a clip
    assert [score for _, _, score in lanes[0].spans] == [0.9, 0.1]
    assert [end for _, end, _ in lanes[0].spans] == [1.5, np.inf]
    assert all(lane.is_curve for lane in lanes)


def test_answers_save_videos(tmp_path: Path) -> None:
    source = draw_plain(tmp_path / "a.mp4", 12)
    prediction = Prediction(path=str(source), labels=("a", "b"), scores=(0.2, 0.8), clips=(clip(0.0, 0.3, 0.2, 0.8),))
    segment = LocalizedSegment(start_seconds=0.1, end_seconds=0.2, label="b", score=0.5)
    found = Localization(path=str(source), duration_seconds=0.4, segments=(segment, replace(segment, label="a")))
    prediction.save_video(tmp_path / "prediction.mp4")
    found.save_video(tmp_path / "localization.mp4")
    for name in ("prediction", "localization"):
        with open_video(tmp_path / f"{name}.mp4") as video:
            assert video.info.num_frames == 12
            frames = video.frames([0, 4])
        named = [np.std(f[:240] - e.astype(float)) > 8 for f, e in zip(frames, enlarged(), strict=True)]
        assert named == [name == "prediction", True]


def enlarged() -> list[NDArray[np.uint8]]:
    stamped = stamped_frames(5)
    return [stamped[i].repeat(5, axis=0).repeat(5, axis=1) for i in (0, 4)]


def test_predict_saves_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        draw_clicking(Path(folder) / "x.mp4", "aac")
    command = ["predict", "tada2d_tiny_motion", "a", "b", "--save-video", "out", "--device", "cpu"]
    assert main(command) == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["a_x.mp4", "b_x.mp4"]
    assert len(heard(Path("out/b_x.mp4"))) == 3
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err == "tada: 'out/a_x.mp4' is there already: give another folder, or replace it with --overwrite\n"
    assert printed.out == ""
    assert main([*command, "--overwrite"]) == 0
    assert main(["predict", "tada2d_tiny_motion", "a/x.mp4", "--save-video", "a", "--overwrite"]) == 2
    assert "'a/x.mp4' is the video itself: give --save-video another folder" in capsys.readouterr().err


def test_localize_saves_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose frames cannot all be read is told of, and the others are written."""
    monkeypatch.chdir(tmp_path)
    draw_plain(Path("good.mp4"), 12)
    draw_damaged(Path("bad.ts"))
    remuxed(draw_clicking(Path("mp3.mp4"), "libmp3lame", rate=44100), Path("silent.mkv"), (-1.0, 9.0))

    class Found:
        def localize(self, path: str, **options: object) -> Localization:
            segment = LocalizedSegment(start_seconds=0.1, end_seconds=0.2, label="b", score=0.5)
            return Localization(path=path, duration_seconds=0.4, segments=(segment,))

    monkeypatch.setattr("tada.localization.localizer.load_localizer", lambda *arguments, **options: Found())
    assert main(["localize", "bad.ts", "good.mp4", "silent.mkv", "--model", "run", "--save-video", "out"]) == 1
    assert sorted(file.name for file in Path("out").iterdir()) == ["good.mp4", "silent.mp4"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("tada: out/silent.mp4: the sound of 'silent.mkv' (mp3")
    assert lines[1].startswith("tada: not drawn: out/bad.mp4 was not written: 'bad.ts'")
    assert main(["localize", "good.mp4", "--model", "run", "--stream", "--save-video", "out"]) == 2
    assert "--save-video is for finished videos" in capsys.readouterr().err
