"""Frames are the pictures that come out of the decoder, in the order shown, also where packets are no pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from drawn_fields import draw_fields
from drawn_videos import NOT_CODED, draw, draw_packed, draw_plain, read_stamps
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, TrainingClips
from tada.video import reader
from tada.video.pictures import Meaning, pictures_of
from tada.video.reader import open_video, probe
from tada.video.sampling import ClipSpec

N = 81


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the videos that are decoded to be opened."""
    paths: list[str] = []
    counted = reader.index_by_decoding

    def noted(media: Any, *arguments: Any) -> Any:
        paths.append(media.path)
        return counted(media, *arguments)

    monkeypatch.setattr(reader, "index_by_decoding", noted)
    return paths


PACKED: dict[str, dict[str, Any]] = {
    "one_b": {},
    "two_b": {"num_b_frames": 2},
    "three_b": {"num_b_frames": 3},
    "not_coded": {"num_b_frames": 2, "placeholder": NOT_CODED},
    "as_xvid": {"num_b_frames": 2, "num_at_start": 2},
    "as_xvid_not_coded": {"num_b_frames": 2, "num_at_start": 2, "placeholder": NOT_CODED},
    "all_key_frames": {"gop": 1},
    "one_key_frame": {"gop": 250},
}


def assert_all_frames(path: Path, count: int, times: np.ndarray[Any, Any], *, tolerance: float = 1e-6) -> None:
    """The frames are 0 to ``count`` - 1 at ``times``, in whichever way they are asked for."""
    with open_video(path) as video:
        assert video.info.num_frames == count
        np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=tolerance)
        assert read_stamps(frame for _, frame in video) == list(range(count))
        order = np.random.default_rng(0).permutation(count).tolist()
        for index in order[:12]:
            assert read_stamps(video.frames([index])) == [index]
        assert read_stamps(video.frames(order)) == order
        middles = (times[order] + 0.3 / 30).tolist()
        assert read_stamps(video.frames_played_at(middles)) == order
        assert video.corrupt_frames == set()


@pytest.mark.parametrize("name", PACKED)
def test_packed_pictures_are_frames_of_their_own(name: str, tmp_path: Path) -> None:
    path = draw_packed(tmp_path / "packed.avi", N, **PACKED[name])
    assert_all_frames(path, N, np.arange(N) / 30)


def test_a_pause_between_packed_pictures_is_a_pause(tmp_path: Path) -> None:
    path = draw_packed(tmp_path / "packed.avi", 40, pauses=[20, 20, 20])
    with open_video(path) as video:
        assert video.info.num_frames == 40
        gaps = np.diff(video.times_seconds) * 30
        assert gaps.round(6).tolist() == [4.0 if i == np.argmax(gaps) else 1.0 for i in range(39)]
        assert read_stamps(video.frames([39, 0, 20])) == [39, 0, 20]
        assert video.info.duration_seconds == pytest.approx(43 / 30)


def test_packed_videos_can_be_trained_on(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        draw_packed(tmp_path / label / f"{label}.avi", 30, num_b_frames=2, num_at_start=2)
    spec = ClipSpec(num_frames=4, sampling="segment", short_side=32, crop=32)
    plain = Augmentation(short_side_range=(32, 32), flip_swaps=({},), reverse_swaps=({},))
    clips = TrainingClips(read_dataset(tmp_path), spec, plain, seed=0)
    assert [clips[0, i].unreadable for i in range(2)] == [[], []]


@pytest.mark.parametrize(("name", "num_b_frames"), [("a.mp4", 0), ("a.mkv", 0), ("a.avi", 0), ("b.avi", 2)])
def test_pictures_that_are_not_coded_are_no_frames(
    name: str, num_b_frames: int, tmp_path: Path, decodings: list[str]
) -> None:
    """They say that nothing has changed: the frame before is shown on. No decoding is needed to know them."""
    options = {"bf": str(num_b_frames), "b_strategy": "0", "flags": "+bitexact"}
    plain = draw_plain(tmp_path / "plain.avi", 40, codec="mpeg4", options=options)
    with av.open(str(plain)) as source, av.open(str(tmp_path / name), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        number = 0
        for i, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            for content in [NOT_CODED] * (i in (13, 25)) + [bytes(packet)]:
                changed = av.Packet(content)
                changed.pts = changed.dts = number
                changed.time_base, changed.stream = Fraction(1, 30), copy
                changed.is_keyframe = packet.is_keyframe and content != NOT_CODED
                target.mux(changed)
                number += 1
    times = np.arange(40) + (np.arange(40) >= 13) + (np.arange(40) >= 25)
    if num_b_frames:  # the pictures before are late by one, for those that follow need them
        with open_video(tmp_path / name) as video:
            times = video.times_seconds * 30
            assert (times[0], times[-1]) == (0, pytest.approx(41))
    assert_all_frames(tmp_path / name, 40, times / 30, tolerance=1.1e-3)
    assert decodings == []


@pytest.mark.parametrize("in_one_packet", [False, True])
@pytest.mark.parametrize("name", ["fields.ts", "fields.mp4", "fields.mkv", "fields.avi", "fields.flv", "fields.h264"])
def test_two_fields_are_one_frame(name: str, in_one_packet: bool, tmp_path: Path) -> None:
    path = draw_fields(tmp_path / name, in_one_packet=in_one_packet, format="mpegts" if name == "fields.ts" else None)
    with av.open(str(path)) as container:
        count = sum(1 for packet in container.demux(video=0) if packet.size)
    assert count == (80 if not in_one_packet or name in ("fields.ts", "fields.h264") else 40)
    assert_all_frames(path, 40, np.arange(40) / 25)
    with open_video(path) as video:
        assert (video.info.fps, video.info.duration_seconds) == (pytest.approx(25), pytest.approx(1.6))


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"x264-params": "interlaced=1:bframes=2"}},
        {"options": {"x264-params": "interlaced=1:cqm=jvt:bframes=2"}},  # weights of the quantiser in the header
        {"options": {"x264-params": "fake-interlaced=1"}},
        {"pix_fmt": "yuv444p", "options": {"x264-params": "interlaced=1"}},
        {"pix_fmt": "yuv420p10le", "options": {"x264-params": "interlaced=1:cqm=jvt"}},
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_interlaced_frames_are_no_fields(options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = draw_plain(tmp_path / f"a{suffix}", height=64, format={".ts": "mpegts"}.get(suffix), **options)
    assert_all_frames(path, 40, np.arange(40) / 30)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mpeg2video"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_times_in_the_order_of_decoding_are_not_believed(codec: str, name: str, tmp_path: Path) -> None:
    """Programs that copy an AVI, which says no more, into an MP4 write its times as those of presentation."""
    plain = draw_plain(tmp_path / "plain.mp4", 40, codec=codec, options={"bf": "2"})
    with av.open(str(plain)) as source, av.open(str(tmp_path / name), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 30), copy
            target.mux(packet)
    assert_all_frames(tmp_path / name, 40, np.arange(40) / 30, tolerance=1.1e-3)


def test_two_frames_at_one_time_are_two(tmp_path: Path, decodings: list[str]) -> None:
    """Telephones write such files. All other frames keep their times."""
    plain = draw_plain(tmp_path / "plain.mp4", options={"bf": "2"})
    path = tmp_path / "a.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        frame_ticks = round(1 / (30 * stream.time_base))
        numbers = [round(packet.pts / frame_ticks) for packet in packets]
        moved = [
            i for i, packet in enumerate(packets) if packet.pts - packet.dts >= frame_ticks and numbers[i] % 8 == 4
        ]
        assert len(moved) >= 2
        for i, packet in enumerate(packets):
            packet.pts -= frame_ticks * (i in moved)  # to the time of the frame before
            packet.stream = copy
            target.mux(packet)
    times = np.arange(40) / 30
    times[[numbers[i] for i in moved]] -= 1 / 30
    with open_video(path) as video:
        assert len(decodings) == 1
        np.testing.assert_allclose(video.times_seconds, times, rtol=0, atol=1e-3)
        assert np.all(np.diff(video.times_seconds) > 0)
        assert video.info.num_frames == 40
        shown = read_stamps(frame for _, frame in video)
        assert sorted(shown) == list(range(40))  # of two at one time the file says no order
        assert read_stamps(video.frames([39, 0, 25])) == [shown[39], shown[0], shown[25]]


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize(("width", "num_b_frames", "quantiser"), [(64, 0, 8), (128, 2, 20)])
def test_a_seek_leads_to_the_packet_that_was_sought(
    codec: str, width: int, num_b_frames: int, quantiser: int, tmp_path: Path
) -> None:
    """MPEG-PS says few times, and FFmpeg makes up others after a seek than before it."""
    options = {"bf": str(num_b_frames), "qmin": str(quantiser), "qmax": str(quantiser)}
    path = tmp_path / "a.mpg"
    draw_plain(path, 150, width=width, height=64 if width == 128 else 48, codec=codec, fps=25, options=options)
    with open_video(path) as video:
        for index in np.random.default_rng(0).permutation(150).tolist():
            assert read_stamps(video.frames([index])) == [index]


@pytest.mark.parametrize("num_b_frames", [0, 2])
@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_a_stream_without_a_container_has_no_times(codec: str, num_b_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "a.m2v"
    draw_plain(path, 60, codec=codec, fps=25, options={"bf": str(num_b_frames)}, format=codec)
    assert_all_frames(path, 60, np.arange(60) / 25)


@pytest.mark.parametrize("codec", ["h263p", "mpeg4"])
def test_a_key_frame_that_is_none_is_not_begun_with(codec: str, tmp_path: Path) -> None:
    """FFmpeg's muxer takes each packet of H.263+ for a key frame; others may be written so by mistake."""
    path = plain = draw_plain(tmp_path / "a.avi", 40, codec=codec)
    if codec == "mpeg4":
        path = tmp_path / "a.mp4"
        with av.open(str(plain)) as source, av.open(str(path), "w") as target:
            copy = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.is_keyframe, packet.stream = True, copy
                    target.mux(packet)
    with av.open(str(path)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
        assert sum(frame.key_frame for frame in container.decode(video=0)) < 5
    assert_all_frames(path, 40, np.arange(40) / 30, tolerance=1.1e-3)


# --- what costs a decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "mpeg4", "options": {"bf": "2"}},
        {"codec": "mpeg4"},
        {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        {"codec": "mpeg2video", "options": {"bf": "2"}},
    ],
)
def test_an_ordinary_avi_is_opened_without_decoding(
    options: dict[str, Any], tmp_path: Path, decodings: list[str]
) -> None:
    """A frame of 64x48 may be a packet of some bytes: it is a picture all the same."""
    still = [np.full((48, 64, 3), 90, np.uint8)] * 40
    with open_video(draw(tmp_path / "still.avi", still, **options)) as video:
        assert video.info.num_frames == 40
    assert decodings == []
    with open_video(draw_packed(tmp_path / "packed.avi")) as video:
        assert len(decodings) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_a_video_whose_header_allows_b_frames_and_that_has_none_is_opened_without_decoding(
    codec: str, suffix: str, tmp_path: Path, decodings: list[str]
) -> None:
    """Short and restless clips are so: the encoder would have used some."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    path = draw(tmp_path / f"a{suffix}", noise, codec=codec, format={".ts": "mpegts"}.get(suffix),
                options={"bf": "2" if codec == "libx264" else "0"})  # fmt: skip
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pts = [packet.pts for packet in container.demux(stream) if packet.size]
        assert pts == sorted(pts)
        assert codec != "libx264" or stream.codec_context.has_b_frames
    with open_video(path) as video:
        assert video.info.num_frames == 6
    assert decodings == []


# --- what packets say -------------------------------------------------------------------------------------------------


def meanings(codec: str, extradata: bytes | None, packets: list[bytes]) -> list[Meaning]:
    pictures = pictures_of(codec, extradata)
    return [pictures(memoryview(packet)) for packet in packets]


def test_small_packets_may_be_no_pictures() -> None:
    assert meanings("tscc", None, [b"\0" * 19, b"\0" * 20]) == [Meaning.UNCLEAR, Meaning.PICTURE]
    assert meanings("vp9", None, [b"\x88"]) == [Meaning.PICTURE]


def test_marks_side_by_side_have_no_unit_between_them(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.h264", 20, format="h264")
    content = path.read_bytes()
    for number, more in enumerate((b"\0\0\1", b"\0\0\0\1\0\0\1")):
        place = content.index(b"\0\0\1\x67")
        wrong = tmp_path / f"{number}.h264"
        wrong.write_bytes(content[:place] + more + content[place:] + more)
        assert probe(wrong).num_frames == 20


def test_bits_that_end_are_left_to_the_decoder() -> None:
    assert meanings("h264", b"\0\0\1\x67", [b"\0\0\1\x67\x4d", b"\0\0\1\x65", b"\0\0\0\0"]) == [Meaning.PICTURE] * 3
    assert meanings("h264", b"\1\x64\0\x0a\xff\xe1\0\x17\x67", [b"\0\0\0\1\x65", b"", b"\0"]) == [Meaning.PICTURE] * 3
    headers = b"\0\0\1\x20\0\0\0\0"
    assert meanings("mpeg4", headers, [b"\0\0\1\xb6" + b"\xff" * 30, b"\0\0\1\xb6"]) == [Meaning.PICTURE] * 2
    assert meanings("mpeg4", b"", [b"\0\0\1\xb6\x40", b"\x7f"]) == [Meaning.PICTURE, Meaning.HIDDEN]
