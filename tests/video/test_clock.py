"""Times count from the container's start, as in players and in ``ffmpeg -ss``, even if the first frame is late."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from drawn_videos import draw, draw_plain, draw_trimmed, read_stamps, stamped_frames
from tada.data.annotations import read_dataset
from tada.data.check import check_dataset, probe_file
from tada.data.clips import open_labeled
from tada.data.prepare import PrepareOptions, prepare
from tada.data.table import VideoTable
from tada.data.views import Views, read_views
from tada.errors import OptionError, SegmentOutsideError, TruncatedVideoError
from tada.video.reader import open_video, probe
from tada.video.sampling import ClipSpec, segment_frames
from tada.video.sliding_windows import SlidingWindows, clips_as_they_come, clips_of
from tada.video.stream import FrameStream
from tada.video.writer import write_video

FPS = 25
N = 100
LATE = 2.0  # seconds
PRIMING = 1024 / 8000  # what AAC writes to start itself: at 8 kHz an eighth of a second


def draw_late(path: Path, late_seconds: float = LATE, **options: object) -> Path:
    """Pictures 0 to 99 at 25 a second, which begin ``late_seconds`` after the sound."""
    times = [late_seconds + i / FPS for i in range(N)]
    return draw_plain(path, N, times_seconds=times, fps=FPS, with_sound_seconds=6.5, **options)


# When the first picture appears. MP4, QuickTime and MKV say that the sound's first samples are not to be heard.
LATE_KINDS = {
    "late.mp4": (LATE, {}),
    "late.mov": (LATE, {}),
    "no_b_frames.mp4": (LATE, {"options": {"bf": "0"}}),
    "one_key_frame.mp4": (LATE, {"gop": 250}),
    "mpeg4.mp4": (LATE, {"codec": "mpeg4", "options": {"bf": "2"}, "time_base": Fraction(1, FPS)}),
    "late.mkv": (LATE, {}),
    "late.flv": (LATE + PRIMING, {}),
    "late.ts": (LATE + PRIMING, {"format": "mpegts"}),
    "hevc.ts": (LATE + PRIMING, {"format": "mpegts", "codec": "libx265", "options": {"x265-params": "log-level=none"}}),
    "mpeg2.ts": (LATE + PRIMING, {"codec": "mpeg2video", "format": "mpegts", "time_base": Fraction(1, FPS)}),
}


@pytest.mark.parametrize("name", LATE_KINDS)
def test_the_first_picture_is_as_late_as_it_is(name: str, tmp_path: Path) -> None:
    late, options = LATE_KINDS[name]
    path = draw_late(tmp_path / name, **options)  # type: ignore[arg-type]
    with open_video(path) as video:
        # FLV and MKV round to milliseconds.
        np.testing.assert_allclose(video.times_seconds, late + np.arange(N) / FPS, rtol=0, atol=1.01e-3)
        info = video.info
        assert info.start_seconds == video.times_seconds[0]
        assert info.duration_seconds == pytest.approx(late + N / FPS, abs=2e-3)
        assert info.fps == pytest.approx(FPS, abs=0.02)
        assert read_stamps(frame for _, frame in video) == list(range(N))
        asked = [late - 0.5, 0.0, late + 0.01, late + 1.01, info.duration_seconds, late + 0.41]
        assert read_stamps(video.frames_played_at(asked)) == [0, 0, 0, 25, 99, 10]
        with pytest.raises(OptionError, match=r"shows nothing at 6.4 s; it lasts from 0 to 6(.128)? s"):
            video.frames_played_at([6.4])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sound_first.mp4", {"with_sound_seconds": 2.0}),
        ("no_sound.mp4", {}),
        ("sound_later.mp4", {"with_sound_seconds": 2.0, "sound_from_seconds": 1.5}),
        ("sound_later.mkv", {"with_sound_seconds": 2.0, "sound_from_seconds": 1.5, "sound_rate": 48_000}),
        ("sound_later.ts", {"with_sound_seconds": 2.0, "sound_from_seconds": 1.5, "format": "mpegts"}),
        # AVI says when packets are decoded, which with B-frames is before they are shown; and counts sound that is not.
        ("no_sound.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("h264.avi", {}),
        ("sound_later.avi", {"codec": "mpeg4", "with_sound_seconds": 2.0, "sound_from_seconds": 1.5}),
        ("no_sound.ts", {"format": "mpegts"}),
        ("no_sound.mkv", {}),
        # Without an edit list a picture that waits for others in the decoder is late to nothing.
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_an_ordinary_video_begins_at_0(name: str, options: dict[str, object], tmp_path: Path) -> None:
    info = probe(draw_plain(tmp_path / name, fps=FPS, **options))
    assert info.start_seconds == 0.0
    assert info.duration_seconds == pytest.approx(40 / FPS, abs=1e-3)


@pytest.mark.parametrize("format", ["mpegts", "matroska", "mp4"])
def test_times_may_begin_anywhere(format: str, tmp_path: Path) -> None:
    """A recording of an hour ago: all its times begin where it does."""
    times = [3600 + i / FPS for i in range(N)]
    path = draw_plain(tmp_path / "later", N, times_seconds=times, fps=FPS, format=format)
    assert probe(path).start_seconds == 0.0
    path = draw_late(tmp_path / "late", 3600.0, format=format, sound_from_seconds=3598.0, sound_rate=48_000)
    assert probe(path).start_seconds == pytest.approx(LATE + 1024 / 48_000 * (format != "matroska"), abs=1.01e-3)


def test_what_an_edit_list_cuts_off_is_before_the_start(tmp_path: Path) -> None:
    assert probe(draw_trimmed(tmp_path / "trimmed.mp4", first=18)).start_seconds == 0.0


def test_a_file_cut_between_key_frames_begins_where_it_was_cut(tmp_path: Path) -> None:
    whole = draw_plain(tmp_path / "whole.ts", 60, gop=30, format="mpegts", options={"bf": "0"}).read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[int(len(whole) * 0.1) :])
    with av.open(str(tmp_path / "cut.ts")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        first_key = next(i for i, packet in enumerate(packets) if packet.is_keyframe)
    assert first_key > 0
    assert probe(tmp_path / "cut.ts").start_seconds == pytest.approx(first_key / 30, abs=1e-4)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
def test_a_pause_in_an_avi_is_a_pause(codec: str, tmp_path: Path) -> None:
    """Programs that capture leave packets empty for frames that they missed."""
    times = [i / FPS + (1.0 if i >= 10 else 0.0) for i in range(40)]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = stamped_frames(40)
    path = draw(tmp_path / "pause.avi", frames, codec=codec, pix_fmt=pix_fmt, fps=FPS, times_seconds=times,
                time_base=Fraction(1, FPS))  # fmt: skip
    with open_video(path) as video:
        np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-6)
        assert read_stamps(video.frames_played_at([0.38, 0.9, 1.41, 1.45])) == [9, 9, 10, 11]
        assert read_stamps(frame for _, frame in video) == list(range(40))


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_a_last_frame_that_stands_long_is_no_file_that_breaks_off(name: str, tmp_path: Path) -> None:
    """Captured screens end so. MKV says how long the whole lasts, and not how long the last frame does."""
    codec = "libvpx" if name == "a.webm" else "libx264"
    times = [i / FPS for i in range(40)]
    path = draw_plain(tmp_path / name, codec=codec, times_seconds=times, with_sound_seconds=0)
    with av.open(str(path)) as source, av.open(str(tmp_path / f"still_{name}"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        last = max(range(40), key=lambda i: packets[i].pts or 0)
        for i, packet in enumerate(packets):
            if i == last:
                packet.duration = round(3 / stream.time_base)
            packet.stream = copy
            target.mux(packet)
    with open_video(tmp_path / f"still_{name}") as video:
        assert video.info.num_frames == 40
    if name == "a.mp4":  # without its end it has no index
        return
    cut = tmp_path / f"cut_{name}"
    content = (tmp_path / f"still_{name}").read_bytes()
    cut.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(TruncatedVideoError, match=r"breaks off: \d+ frames can be read"):
        open_video(cut)


# --- who counts by these times ----------------------------------------------------------------------------------------


def test_the_frames_of_a_segment_where_the_first_is_late() -> None:
    times = 2.0 + np.arange(100) / 25
    assert segment_frames(times, 3.0, 5.0) == range(25, 75)
    assert segment_frames(times, 1.0, 3.0) == range(25)
    assert segment_frames(times, 0.0, 6.0) == range(100)
    assert segment_frames(times, 5.9, 6.03) == range(98, 100)
    assert segment_frames(times, 3.01, 3.02) == range(25, 26)
    assert segment_frames(times, 1.0, 1.97) == range(1)  # a frame's length before it
    assert segment_frames(times, None, None) == range(100)
    with pytest.raises(
        OptionError, match=r"segment from 0 to 1.5 s lies before the video's first frame, which appears at 2.00 s"
    ):
        segment_frames(times, 0.0, 1.5)
    with pytest.raises(OptionError, match=r"segment from 4 to 6.1 s is not within the video, which lasts 6.00 s"):
        segment_frames(times, 4.0, 6.1)


@pytest.fixture
def table(tmp_path: Path) -> VideoTable:
    """Rows of one late video."""
    draw_late(tmp_path / "late.mp4")
    rows = "late.mp4,3,5,a\nlate.mp4,1,3,b\nlate.mp4,0,1,a\n"
    (tmp_path / "clips.csv").write_text("path,start_seconds,end_seconds,label\n" + rows)
    return read_dataset(tmp_path / "clips.csv")


def test_a_row_shows_what_players_show_then(table: VideoTable) -> None:
    rows = {video.start_seconds: video for video in table.videos}
    for start, pictures in ((3.0, range(25, 75)), (1.0, range(25))):
        with open_labeled(rows[start]) as (reader, own):
            assert read_stamps(reader.frames(own)) == list(pictures)
    with pytest.raises(
        SegmentOutsideError, match=r"late.mp4': the segment from 0 to 1 s lies before .*clips.csv row 4"
    ):
        read_views(rows[0.0], ClipSpec(num_frames=4, short_side=32, crop=32), Views())


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "uneven.mkv"])
def test_a_prepared_copy_keeps_the_clock(name: str, tmp_path: Path) -> None:
    (tmp_path / "videos/x").mkdir(parents=True)
    if name == "uneven.mkv":
        times = LATE + np.cumsum(np.random.default_rng(0).uniform(0.01, 0.12, 60))
        draw_plain(tmp_path / "videos/x" / name, 60, times_seconds=times.tolist(), with_sound_seconds=6.0)
    else:
        draw_late(tmp_path / "videos/x" / name)
    table = read_dataset(tmp_path / "videos")
    done = prepare(table, tmp_path / "copy", PrepareOptions(short_side=32), num_processes=1, show_progress=False)
    (copy,) = read_dataset(done.table).videos
    with open_video(table.videos[0].path) as original, open_video(copy.path) as small:
        assert small.times_seconds[0] >= LATE
        np.testing.assert_allclose(small.times_seconds, original.times_seconds, rtol=0, atol=1 / 90_000)
        assert small.info.fps == pytest.approx(original.info.fps, rel=0.01)
        assert read_stamps(frame for _, frame in small) == list(range(small.info.num_frames))


def test_a_written_video_begins_when_it_is_told_to(tmp_path: Path) -> None:
    times = [1.5, 1.6, 1.75, 2.0]
    contents = set()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, stamped_frames(4), times_seconds=times)
        contents.add((tmp_path / name).read_bytes())
        with open_video(tmp_path / name) as video:
            np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-5)
            assert video.info.duration_seconds == pytest.approx(2.25, abs=1e-5)
    assert len(contents) == 1
    with pytest.raises(OptionError, match=r"times_seconds\[0\]=-0.5 must be 0 or more"):
        write_video(tmp_path / "c.mp4", stamped_frames(2), times_seconds=[-0.5, 0.0])


@pytest.mark.parametrize("name", ["late.mkv", "late.ts", "late.mp4"])
def test_a_stream_counts_as_the_file_does(name: str, tmp_path: Path) -> None:
    options = {"container_options": {"movflags": "faststart"}} if name == "late.mp4" else {}
    path = draw_late(tmp_path / "a", format={"mkv": "matroska", "ts": "mpegts", "mp4": "mp4"}[name[5:]], **options)
    path = shutil.copy(path, tmp_path / name)
    stream = FrameStream(path, idle_seconds=0.05)
    seconds = [frame.seconds for frame in stream]
    with open_video(path) as video:
        assert seconds == video.times_seconds.tolist()  # to the last bit
        assert seconds[0] > LATE - 0.01
        assert stream.duration_seconds == pytest.approx(video.info.duration_seconds)


def test_features_are_of_what_is_shown_at_their_time(tmp_path: Path) -> None:
    path = draw_late(tmp_path / "late.mp4")
    spec = ClipSpec(num_frames=3, sampling="segment", short_side=32, crop=32)
    settings = SlidingWindows(window_seconds=0.6, stride_seconds=0.3)
    with open_video(path) as reader:
        count = settings.count(reader.info.duration_seconds)
        assert count == 20  # 6 s
        clips = list(clips_of(reader, spec, settings, range(count)))
        times = [np.clip(settings.clip_times(i, 3), 0, 6.0) for i in range(count)]
        shown = [read_stamps(reader.frames_played_at(of_clip.tolist())) for of_clip in times]
    wanted = [[max(0, min(99, int((t - LATE) * FPS + 1e-6))) for t in of_clip] for of_clip in times]
    assert shown == wanted
    assert wanted[5] == [0, 0, 0]  # from 1.35 s to 1.95 s
    pixels: dict[int, bytes] = {}  # the same picture gives the same pixels, another picture others
    for clip, numbers in zip(clips, wanted, strict=True):
        for picture, number in zip(clip[0], numbers, strict=True):
            assert pixels.setdefault(number, picture.numpy().tobytes()) == picture.numpy().tobytes()
    assert len(set(pixels.values())) == len(pixels) > 30
    streamed = list(clips_as_they_come(FrameStream(path, idle_seconds=0.05), spec, settings))
    assert all(np.array_equal(a.frames, b) for a, b in zip(streamed, clips, strict=True))


def test_check_tells_of_a_late_start(tmp_path: Path) -> None:
    (tmp_path / "videos/x").mkdir(parents=True)
    draw_late(tmp_path / "videos/x/late.mp4")
    draw_plain(tmp_path / "videos/x/usual.mkv", N, fps=FPS, with_sound_seconds=4.0)  # its sound is primed
    assert probe_file(str(tmp_path / "videos/x/late.mp4"), thorough=False).start_seconds == LATE
    table = read_dataset(tmp_path / "videos")
    report = check_dataset(table, tmp_path / "out", num_processes=1, show_progress=False)
    (finding,) = report.findings
    assert (finding.kind, finding.is_fault, Path(finding.path).name) == ("late_start", False, "late.mp4")
    assert "shows its first frame at 2.00 s, since its sound begins earlier" in finding.message


def test_check_looks_for_segments_where_the_pictures_are(table: VideoTable, tmp_path: Path) -> None:
    report = check_dataset(table, tmp_path / "out", num_processes=1, show_progress=False)
    outside = [(f.kind, f.source) for f in report.findings if f.kind == "segment_outside"]
    assert outside == [("segment_outside", "clips.csv row 4")]
