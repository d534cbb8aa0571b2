"""Every frame of every kind of video, in any order: against a plain decoding from first to last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from drawn_videos import (
    draw,
    draw_open_gop,
    draw_plain,
    draw_rotated,
    draw_transport_stream,
    draw_trimmed,
    draw_variable_rate,
    draw_webm,
    read_stamps,
    stamped_frame,
    stamped_frames,
)
from tada.errors import OptionError
from tada.video import reader
from tada.video.reader import Video, open_video, probe

N = 40
X265 = "log-level=none:keyint=10:min-keyint=10:bframes=3"

KINDS: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": draw_plain,
    "no_b_frames.mp4": lambda path: draw_plain(path, options={"bf": "0"}),
    "all_key_frames.mp4": lambda path: draw_plain(path, gop=1),
    "one_key_frame.mp4": lambda path: draw_plain(path, gop=250),
    "fast_start.mp4": lambda path: draw_plain(path, container_options={"movflags": "+faststart"}),
    "fragments.mp4": lambda path: draw_plain(path, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "open_gop.mp4": draw_open_gop,
    "open_gop.mkv": draw_open_gop,
    "open_gop.ts": lambda path: draw_open_gop(path, format="mpegts"),
    "intra_refresh.mp4": lambda path: draw_plain(path, options={"x264-params": "intra-refresh=1:bframes=0:keyint=10"}),
    "interlaced.mp4": lambda path: draw_plain(path, height=64, options={"x264-params": "interlaced=1"}),
    "plain.ts": draw_transport_stream,
    # Its seeks land after the key frame, and its decoder does not mind.
    "mpeg4.ts": lambda path: draw_transport_stream(path, 200, codec="mpeg4", options={"bf": "2"}),
    "plain.mkv": draw_plain,
    "with_sound.mkv": lambda path: draw_plain(path, with_sound_seconds=3.0),
    "with_sound.mp4": lambda path: draw_plain(path, with_sound_seconds=3.0),
    "ntsc.mp4": lambda path: draw_plain(path, fps=Fraction(30_000, 1001)),
    "vp9.webm": draw_webm,
    "vp8.webm": lambda path: draw_webm(path, codec="libvpx"),
    "av1.mp4": lambda path: draw_plain(path, codec="libsvtav1", options={"preset": "12"}),
    "hevc.mp4": lambda path: draw_plain(path, codec="libx265", options={"x265-params": X265}),
    "hevc_open_gop.ts": lambda path: draw_plain(
        path, codec="libx265", format="mpegts", options={"x265-params": X265 + ":open-gop=1"}
    ),
    "mpeg2.mpg": lambda path: draw_plain(path, codec="mpeg2video", options={"bf": "2"}),
    "mpeg4.avi": lambda path: draw_plain(path, codec="mpeg4", options={"bf": "2"}),
    "motion_jpeg.avi": lambda path: draw_plain(path, codec="mjpeg", pix_fmt="yuvj420p"),
    "plain.flv": draw_plain,
    "plain.wmv": lambda path: draw_plain(path, codec="wmv2"),
    "plain.gif": lambda path: draw_plain(path, codec="gif", pix_fmt="rgb8", fps=25),
    "trimmed.mp4": lambda path: draw_trimmed(path, first=18),
    "variable_rate.mp4": lambda path: draw_variable_rate(
        path, np.cumsum([0.02 + 0.3 * (i % 7 == 3) for i in range(N)])
    ),
    "variable_rate.webm": lambda path: draw(
        path,
        stamped_frames(N),
        codec="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8"},
        times_seconds=np.cumsum([0.02 + 0.3 * (i % 7 == 3) for i in range(N)]),
    ),
}
UNTIMED: dict[str, Callable[[Path], Path]] = {
    "raw.h264": lambda path: draw_plain(path, format="h264"),
    "h264.avi": draw_plain,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The video called so, drawn once."""
    folder = tmp_path_factory.mktemp("videos")

    def draw_once(name: str) -> Path:
        path = folder / name
        return path if path.exists() else {**KINDS, **UNTIMED}[name](path)

    return draw_once


def decode_plainly(path: Path) -> tuple[npt.NDArray[np.uint8], list[float]]:
    """All frames from first to last, without a seek, and their times from the first one's."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float((frame.pts - frames[0].pts) * stream.time_base) for frame in frames if frame.pts is not None]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times


# --- the same frames, however they are asked for ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, *UNTIMED])
def test_frames_in_any_order_are_those_of_a_plain_decoding(name: str, drawn: Callable[[str], Path]) -> None:
    path = drawn(name)
    expected, times = decode_plainly(path)
    with open_video(path) as video:
        assert video.info.num_frames == len(expected) == len(video.times_seconds)
        if name in KINDS:
            np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-9)
        assert np.all(np.diff(video.times_seconds) > 0)
        first = 18 if name == "trimmed.mp4" else 0
        assert read_stamps(expected) == list(range(first, first + len(expected)))

        order = np.random.default_rng(0).permutation(len(expected)).tolist()
        assert np.array_equal(video.frames(order), expected[order])
        for index in [*order[:20], len(order) - 1]:  # each a seek
            assert np.array_equal(video.frames([index])[0], expected[index]), index
        backwards = list(range(len(expected)))[::-3]
        assert np.array_equal(video.frames(backwards), expected[backwards])

        seconds, frames = zip(*video, strict=True)
        assert list(seconds) == video.times_seconds.tolist()
        assert np.array_equal(np.stack(frames), expected)
        assert video.corrupt_frames == set()


def test_indices_may_repeat_or_be_empty(drawn: Callable[[str], Path]) -> None:
    with open_video(drawn("plain.mp4")) as video:
        assert read_stamps(video.frames([7, 3, 7, 7, 0])) == [7, 3, 7, 7, 0]
        assert video.frames([]).shape == (0, 48, 64, 3)
        assert read_stamps(video.frames(np.array([2, 1]))) == [2, 1]  # type: ignore[arg-type]


def test_iterations_may_be_mixed_with_frames(drawn: Callable[[str], Path]) -> None:
    with open_video(drawn("plain.mp4")) as video:
        for index, (_, frame) in enumerate(video):
            assert read_stamps([frame]) == [index]
            if index % 10 == 5:
                assert read_stamps(video.frames([39, 2])) == [39, 2]


# --- no more decoding than needed -------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the frames that are decoded, as they are."""
    numbers: list[int] = []
    plain = Video._decode

    def noted(self: Video, *arguments: Any) -> Iterator[tuple[int, av.VideoFrame]]:
        for number, frame in plain(self, *arguments):
            numbers.append(number)
            yield number, frame

    monkeypatch.setattr(Video, "_decode", noted)
    return numbers


def test_opening_decodes_nothing(drawn: Callable[[str], Path], decoded: list[int]) -> None:
    with open_video(drawn("plain.mp4")) as video:
        assert len(video.times_seconds) == N
        assert decoded == []
        assert video.info.num_frames == N
        assert decoded == [0]
        assert len(video.frames(range(4))) == 4
        assert decoded == [0, 1, 2, 3]


def test_each_frame_is_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    path = draw_plain(tmp_path / "video.mp4", options={"sc_threshold": "0"})
    with open_video(path) as video:  # key frames at 0, 12, 24, 36
        video.frames([30, 3, 26, 3])
        assert decoded == [0, 1, 2, 3, 24, 25, 26, 27, 28, 29, 30]
        decoded.clear()
        video.frames([31, 32])  # reads on
        assert decoded == [31, 32]
        decoded.clear()
        video.frames([38])  # from the key frame
        assert decoded == [36, 37, 38]
        decoded.clear()
        video.frames([22, 25])  # the next key frame is so near that reading on costs less than a seek
        assert decoded == [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25]
        decoded.clear()
        video.frames([14])
        assert decoded == [12, 13, 14]
        decoded.clear()
        assert len(list(video)) == N
        assert decoded == list(range(N))


# --- times ------------------------------------------------------------------------------------------------------------


def test_frames_played_at_are_those_shown_then(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 1.2, 1.3, 3.0]
    with open_video(draw_variable_rate(tmp_path / "video.mp4", times)) as video:
        np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-9)
        assert not video.times_seconds.flags.writeable
        asked = [0.0, 0.05, 0.1, 0.199, 0.2, 1.19, 1.2, 2.9, 3.0, video.info.duration_seconds, 0.3]
        assert read_stamps(video.frames_played_at(asked)) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 5, 2]
        with pytest.raises(OptionError, match=r"shows nothing at -0.1 s; it lasts from 0 to 4.7 s"):
            video.frames_played_at([-0.1])
        with pytest.raises(OptionError, match="shows nothing at 99 s"):
            video.frames_played_at([99])


def test_a_time_that_is_a_rounding_short_counts(drawn: Callable[[str], Path]) -> None:
    with open_video(drawn("plain.mp4")) as video:
        assert read_stamps(video.frames_played_at([i / 30 for i in range(N)])) == list(range(N))
        assert read_stamps(video.frames_played_at([0.1 * i for i in range(13)])) == list(range(0, 39, 3))


@pytest.mark.parametrize(
    ("name", "fps", "num_frames", "seconds"),
    [
        ("plain.mp4", 30.0, 40, 40 / 30),
        ("ntsc.mp4", 30_000 / 1001, 40, 40 * 1001 / 30_000),
        ("plain.mkv", 30.0, 40, 1.333),
        ("plain.ts", 30.0, 40, 40 / 30),
        ("trimmed.mp4", 30.0, 22, 22 / 30),  # the header counts 40
        ("raw.h264", 30.0, 40, 40 / 30),
        ("plain.gif", 25.0, 40, 1.6),
    ],
)
def test_info_of_each_kind_of_video(
    name: str, fps: float, num_frames: int, seconds: float, drawn: Callable[[str], Path]
) -> None:
    info = probe(drawn(name))
    assert info.fps == pytest.approx(fps, abs=1e-3)
    assert info.num_frames == num_frames
    assert info.duration_seconds == pytest.approx(seconds, abs=1e-3)
    assert (info.width, info.height, info.rotation_degrees) == (64, 48, 0)
    assert info.path == str(drawn(name))


def test_codec_names(drawn: Callable[[str], Path]) -> None:
    codecs = {name: probe(drawn(name)).codec for name in ("plain.mp4", "av1.mp4", "hevc.mp4", "vp9.webm", "vp8.webm")}
    assert list(codecs.values()) == ["h264", "av1", "hevc", "vp9", "vp8"]


def test_one_frame(tmp_path: Path) -> None:
    with open_video(draw_plain(tmp_path / "video.mp4", 1)) as video:
        assert video.info.num_frames == 1
        assert video.times_seconds.tolist() == [0.0]
        assert read_stamps(video.frames([0, 0])) == [0, 0]


# --- unusual pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_frames_come_as_players_turn_them(tmp_path: Path, quarter_turns: int) -> None:
    steady = {"mbtree": "0"}  # the same bytes for both: see tada.video.writer
    upright, _ = decode_plainly(draw_plain(tmp_path / "stored.mp4", 5, options=steady))
    path = draw_rotated(tmp_path / "turned.mp4", quarter_turns, options=steady)
    with open_video(path) as video:
        turned = np.rot90(upright, -quarter_turns, axes=(1, 2))  # negative: clockwise
        assert np.array_equal(video.frames(range(5)), turned)
        assert (video.info.height, video.info.width) == turned.shape[1:3]
        assert video.info.rotation_degrees == 90 * quarter_turns
        assert np.array_equal(np.stack([frame for _, frame in video]), turned)
        assert video.frames([]).shape == (0, *turned.shape[1:])


def test_alpha_is_composited_on_black(tmp_path: Path) -> None:
    colors = stamped_frames(3)
    alpha = np.full((3, 48, 64, 1), 128, np.uint8)
    alpha[:, :16], alpha[:, 16:32] = 0, 255
    path = draw(
        tmp_path / "alpha.mov",
        np.concatenate([colors, alpha], axis=-1),
        codec="qtrle",
        pix_fmt="argb",
        source_format="rgba",
    )
    with open_video(path) as video:
        frames = video.frames([0, 1, 2])
    assert np.all(frames[:, :16] == 0)
    assert np.array_equal(frames[:, 16:32], colors[:, 16:32])
    assert np.array_equal(frames[:, 32:], np.round(colors[:, 32:] * (128 / 255)).astype(np.uint8))


@pytest.mark.parametrize(
    ("options", "width", "height", "tolerance"),
    [
        ({"pix_fmt": "yuv444p"}, 321, 241, 3),
        ({"pix_fmt": "yuv422p"}, 66, 49, 4),
        ({"pix_fmt": "yuv420p10le"}, 64, 48, 6),
        ({"pix_fmt": "yuvj420p"}, 64, 48, 6),  # full range
        ({"pix_fmt": "yuv420p", "codec": "ffv1"}, 65, 47, 6),
        ({"pix_fmt": "yuv422p10le", "codec": "prores_ks"}, 64, 48, 4),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, options: dict[str, str], width: int, height: int, tolerance: int) -> None:
    name = "video.mkv" if options.get("codec") == "ffv1" else "video.mov"
    path = draw_plain(tmp_path / name, 12, width=width, height=height, **options)
    with open_video(path) as video:
        frames = video.frames(range(12))
    assert frames.shape == (12, height, width, 3)
    error = np.abs(frames.astype(int) - stamped_frames(12, width=width, height=height))
    assert error.mean() < tolerance
    assert read_stamps(frames) == list(range(12))


def test_pixels_that_are_not_square_stay_as_stored(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "anamorphic.mp4", 5, options={"x264-params": "sar=2/1"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (64, 48)
        assert read_stamps(video.frames([0, 4])) == [0, 4]


def test_gray_has_three_equal_channels(tmp_path: Path) -> None:
    with open_video(draw_plain(tmp_path / "gray.mkv", 5, codec="ffv1", pix_fmt="gray")) as video:
        frames = video.frames(range(5))
    assert np.array_equal(frames[..., 0], frames[..., 1])
    assert np.array_equal(frames[..., 0], frames[..., 2])
    assert read_stamps(frames) == list(range(5))


@pytest.mark.parametrize("matrix", ["ITU709", "ITU601"])
@pytest.mark.parametrize("range_", ["MPEG", "JPEG"])
def test_the_matrix_and_range_of_colors_are_heeded(tmp_path: Path, matrix: str, range_: str) -> None:
    color = np.array([30, 200, 60], np.uint8)
    path = tmp_path / "color.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[matrix]
        stream.codec_context.color_range = {"MPEG": 1, "JPEG": 2}[range_]
        frame = av.VideoFrame.from_ndarray(np.broadcast_to(color, (48, 64, 3)).copy(), format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=range_)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        assert np.abs(video.frames([0])[0].astype(int) - color).max() <= 3


def test_high_dynamic_range_warns(tmp_path: Path) -> None:
    path = draw_plain(
        tmp_path / "hdr.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": "log-level=none:transfer=smpte2084"},
    )
    with pytest.warns(UserWarning, match=r"a video is HDR \(PQ\).*without tone mapping"):
        video = open_video(path)
    with video:
        assert read_stamps(video.frames([5])) == [5]


def test_a_change_of_size_is_brought_to_the_first(tmp_path: Path) -> None:
    small = draw_transport_stream(tmp_path / "small.ts", 20).read_bytes()
    frames = stamped_frames(20, width=128, height=96, first=20)
    large = draw(tmp_path / "large.ts", frames, format="mpegts").read_bytes()
    for name, content, size in [("grows.ts", small + large, (64, 48)), ("shrinks.ts", large + small, (128, 96))]:
        (tmp_path / name).write_bytes(content)
        with open_video(tmp_path / name) as video:
            assert (video.info.width, video.info.height) == size
            assert video.info.num_frames == 40
            stamps = list(range(40)) if name == "grows.ts" else [*range(20, 40), *range(20)]
            assert read_stamps(frame for _, frame in video) == stamps
            assert read_stamps(video.frames([39, 5, 25])) == [stamps[39], stamps[5], stamps[25]]
        with open_video(tmp_path / name) as video:  # the size does not hang on what is asked for first
            assert video.frames([39]).shape[1:3] == size[::-1]


# --- unusual streams --------------------------------------------------------------------------------------------------


def test_a_recording_that_begins_between_key_frames(tmp_path: Path) -> None:
    whole = draw_transport_stream(tmp_path / "whole.ts", 60).read_bytes()
    for cut in (0.15, 0.3):
        path = tmp_path / f"from_{cut}.ts"
        path.write_bytes(whole[int(len(whole) * cut) :])
        with open_video(path) as video:
            frames = np.stack([frame for _, frame in video])
            first = 60 - video.info.num_frames
            assert first % 12 == 0
            assert read_stamps(frames) == list(range(first, 60))
            assert read_stamps(video.frames([20, 3])) == [first + 20, first + 3]


def test_the_first_of_two_video_streams_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width in (64, 128):
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            streams.append(stream)
        for i in range(10):
            for stream, number in zip(streams, (i, 100 + i), strict=True):
                picture = stamped_frame(number, width=stream.width)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 30)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with open_video(path) as video:
        assert video.info.width == 64
        assert read_stamps(video.frames(range(10))) == list(range(10))


def test_hidden_reference_frames_of_vp8_do_not_count(tmp_path: Path, drawn: Callable[[str], Path]) -> None:
    path = tmp_path / "hidden.webm"
    hidden = (5, 6, 20)
    with av.open(str(drawn("vp8.webm"))) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is None:
                continue
            if number in hidden:
                content = bytearray(bytes(packet))
                content[0] &= ~(1 << 4)  # RFC 6386, 9.1: show_frame
                changed = av.Packet(bytes(content))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                packet = changed
            packet.stream = copy
            target.mux(packet)
    shown = [i for i in range(N) if i not in hidden]
    with open_video(path) as video:
        assert video.info.num_frames == N - 3
        assert read_stamps(video.frames(range(N - 3))) == shown
        assert read_stamps(video.frames([30, 4, 5])) == [shown[30], shown[4], shown[5]]


# --- names and life ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("with space.mp4", "video:1.mp4", "100%d.mp4", "quote'\".mp4", "new\nline.mp4", "ünï.mp4", "no_suffix", "-"),
        *("wrong.avi", "file:x.mp4", "http:--x.mp4", os.fsdecode(b"latin-\xe9.mp4"), "concat:a|b.mp4", ".mp4"),
    ],
)
def test_any_file_name_opens(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, drawn: Callable[[str], Path]
) -> None:
    path = tmp_path / name
    path.write_bytes(drawn("plain.mp4").read_bytes())
    assert probe(path).num_frames == N
    monkeypatch.chdir(tmp_path)
    assert probe(name).path == name
    link = tmp_path / "link"
    link.symlink_to(path)
    assert probe(link).num_frames == N


def test_a_forked_process_is_refused(drawn: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(drawn("plain.mp4")) as video:
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(RuntimeError, match=r"was opened before a fork; open it in the process that reads it"):
            video.frames([0])
        with pytest.raises(RuntimeError, match="was opened before a fork"):
            next(iter(video))
        monkeypatch.undo()
        assert read_stamps(video.frames([4])) == [4]


def test_a_closed_video_is_refused(drawn: Callable[[str], Path]) -> None:
    with open_video(drawn("plain.mp4")) as video:
        video.frames([3])
    video.close()
    with pytest.raises(RuntimeError, match=r"plain.mp4' is closed"):
        video.frames([3])


@pytest.mark.parametrize("index", [-1, 40])
def test_a_number_outside_of_the_video_is_refused(index: int, drawn: Callable[[str], Path]) -> None:
    with open_video(drawn("plain.mp4")) as video, pytest.raises(IndexError, match=f"no frame {index}; .* 0 to 39"):
        video.frames([0, index])


def test_reading_does_not_leak_memory(drawn: Callable[[str], Path]) -> None:
    """A thousand openings leave nothing behind (an unclosed container would leave tens of kilobytes each)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc here to tell memory by")

    def resident_bytes() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def use(times: int) -> None:
        for _ in range(times):
            with open_video(drawn("plain.mp4")) as video:
                video.frames([30, 2])

    use(100)
    before = resident_bytes()
    use(500)
    assert resident_bytes() - before < 8 << 20


def test_media_is_opened_in_one_place() -> None:
    """Only the container module opens for reading, the writer for writing."""
    package = Path(reader.__file__).parents[1]
    openers = [path.name for path in package.rglob("*.py") if "av.open(" in path.read_text(encoding="utf-8")]
    assert sorted(openers) == ["container.py", "writer.py"]
