"""Each fault of a video raises its own error of one line: never a hang, a crash or FFmpeg's own error."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest

from drawn_videos import (
    draw,
    draw_plain,
    draw_sound,
    draw_transport_stream,
    draw_webm,
    flip_bits,
    read_stamps,
    stamped_frame,
    stamped_frames,
    truncate,
)
from hang import HANG_SECONDS
from tada import errors
from tada.errors import (
    CorruptVideoError,
    DecodeTimeoutError,
    EmptyFileError,
    NotARegularFileError,
    NotAVideoError,
    NoVideoStreamError,
    TooLargeError,
    TruncatedVideoError,
    UnsupportedCodecError,
    VideoError,
    VideoNotFoundError,
)
from tada.video.reader import open_video, probe


def refused(path: Path | str, error: type[VideoError], message: str, **options: float) -> VideoError:
    """Open and read all of the file; expect ``error``, in one line that names the file, and soon."""
    start = time.monotonic()
    with pytest.raises(error, match=message) as caught, open_video(path, **options) as video:  # type: ignore[arg-type]
        for _ in video:
            pass
    assert time.monotonic() - start < HANG_SECONDS
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert caught.value.path == str(path)
    return caught.value


# --- not a file (V1, V20 to V23) --------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.mp4", VideoNotFoundError, r"no such video \(No such file or directory\); check the path")
    refused(tmp_path / "none" / "a.mp4", VideoNotFoundError, "No such file")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "a.mp4", VideoNotFoundError, "Not a directory")
    refused(tmp_path / ("a" * 300), VideoNotFoundError, "File name too long")
    refused(str(tmp_path / "zero\0byte.mp4"), VideoNotFoundError, "embedded null byte")
    refused(str(tmp_path / "new\nline.mp4"), VideoNotFoundError, r"new\\nline")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", VideoNotFoundError, "cannot be read: it is a symbolic link that leads back to itself")


def test_an_address_is_a_path_to_nothing() -> None:
    for address in ("http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "data:,x", "tcp://127.0.0.1:9"):
        refused(address, VideoNotFoundError, "no such video")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_plain(tmp_path / "video.mp4", 2)
    path.chmod(0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read all
    refused(path, VideoNotFoundError, "cannot be read: no permission; give this user the right")


def test_folders_pipes_and_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, NotARegularFileError, "is a folder; only regular files")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", NotARegularFileError, "is a pipe, socket or device")
    refused("/dev/zero", NotARegularFileError, "is a pipe, socket or device")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s.mp4")
        refused("s.mp4", NotARegularFileError, "is a pipe, socket or device")


@pytest.mark.parametrize("name", ["empty.mp4", "empty.h264"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, EmptyFileError, r"is empty \(0 bytes\); copy or download it again")


# --- not a video (V2, and section 2) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "avi", "h264", "ts", "m3u8"])
def test_text_and_noise_are_refused(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    contents = [b"hello world\n" * 500, b"x", b"<html><body>404</body></html>" * 20, bytes(10_000)]
    contents += [rng.integers(0, 256, 20_000, dtype=np.uint8).tobytes() for _ in range(5)]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(content)
        start = time.monotonic()
        with pytest.raises(VideoError) as caught:
            probe(path)
        assert time.monotonic() - start < HANG_SECONDS
        # Noise may look like a raw stream to FFmpeg; then no frame can be read.
        assert isinstance(caught.value, NotAVideoError | TruncatedVideoError | NoVideoStreamError | TooLargeError)
        if suffix == "mp4":
            assert type(caught.value) is NotAVideoError
            assert "is not a video in a format that is opened (such as MP4" in str(caught.value)


def test_lists_of_other_files_are_not_followed(tmp_path: Path) -> None:
    """With FFmpeg's defaults each of these shows the neighbor's video."""
    secret = draw_transport_stream(tmp_path / "secret.ts", 10)
    lists = {
        "concat.mp4": "ffconcat version 1.0\nfile secret.ts\n",
        "concat.ffconcat": "ffconcat version 1.0\nfile secret.ts\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "remote.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "session.sdp": "v=0\nm=video 9 RTP/AVP 96\nc=IN IP4 127.0.0.1\na=rtpmap:96 H264/90000\n",
        "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    }
    with av.open(str(tmp_path / "secret.ts")) as container:
        assert container.streams.video
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        refused(tmp_path / name, NotAVideoError, "is not a video in a format")


def test_a_still_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "rgb24", 1
    (packet,) = codec.encode(av.VideoFrame.from_ndarray(stamped_frame(1), format="rgb24"))
    path.write_bytes(bytes(packet))
    refused(path, NotAVideoError, "is not a video in a format")


# --- no video that can be decoded (V7, V8, V16, V17, V35) -------------------------------------------------------------


def test_sound_without_video(tmp_path: Path) -> None:
    for name, cover in (("a.wav", False), ("a.m4a", False), ("a.mp3", False), ("cover.mp3", True)):
        path = draw_sound(tmp_path / name, cover=cover)
        refused(path, NoVideoStreamError, "holds no video, only sound or cover art")
    with av.open(str(tmp_path / "cover.mp3")) as container:
        assert len(container.streams.video) == 1  # so it was there to be mistaken


def test_an_unknown_codec_is_named(tmp_path: Path) -> None:
    for name, known, unknown in (("a.mp4", b"avc1", b"zzz1"), ("a.mkv", b"V_MPEG4/ISO/AVC", b"V_NOPEX/ISO/AVC")):
        path = draw_plain(tmp_path / name, 5)
        path.write_bytes(path.read_bytes().replace(known, unknown))
        refused(path, UnsupportedCodecError, f"no decoder for its codec '{unknown.decode()}'; convert it to H.264")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    """100 KB that would become 100 MB."""
    path = draw(tmp_path / "bomb.mov", [np.zeros((6144, 6144, 3), np.uint8)], codec="png", pix_fmt="rgb24")
    assert path.stat().st_size < 300_000
    refused(path, TooLargeError, r"its frames (of 6144x6144 )?exceed max_pixels=33177600; resize")

    path = draw_plain(tmp_path / "plain.mp4", 3)
    refused(path, TooLargeError, "its frames (of 64x48 )?exceed max_pixels=3071", max_pixels=3071)
    with open_video(path, max_pixels=3072) as video:
        assert read_stamps(video.frames([2])) == [2]
    path = draw_transport_stream(tmp_path / "plain.ts", 20)
    refused(path, TooLargeError, "its frames of 64x48 exceed max_pixels=3071; resize", max_pixels=3071)


def test_strips_are_refused(tmp_path: Path) -> None:
    """Brought to a short side of 256 pixels, a picture of 65535x1 takes 13 GB."""
    for width, height in ((65535, 1), (1, 65535), (102, 2), (2, 102)):
        for name in ("a.gif", "a.mov"):
            options = {"codec": "gif", "pix_fmt": "rgb8"} if name == "a.gif" else {"codec": "png", "pix_fmt": "rgb24"}
            path = draw(tmp_path / name, [np.zeros((height, width, 3), np.uint8)] * 3, **options)
            message = rf"{name}': its frames of {width}x{height} are strips, more than 50 times as long as wide; cut"
            refused(path, TooLargeError, message)
    path = draw(tmp_path / "a.gif", [np.zeros((2, 100, 3), np.uint8)] * 3, codec="gif", pix_fmt="rgb8")
    assert probe(path).width == 100


def test_frames_whose_decoder_takes_more_memory_are_refused_earlier(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.mkv", stamped_frames(2), codec="jpeg2000", pix_fmt="rgb24")
    refused(path, TooLargeError, "by which those of jpeg2000 count 2 times; resize", max_pixels=2 * 64 * 48 - 1)
    with open_video(path, max_pixels=2 * 64 * 48) as video:
        assert read_stamps(video.frames([0, 1])) == [0, 1]


def test_frames_that_grow_past_the_limit_are_refused(tmp_path: Path) -> None:
    small = draw_transport_stream(tmp_path / "small.ts", 10).read_bytes()
    large = draw(tmp_path / "large.ts", stamped_frames(10, width=640, height=480), format="mpegts").read_bytes()
    (tmp_path / "both.ts").write_bytes(small + large)
    refused(tmp_path / "both.ts", CorruptVideoError, "10 frames decode, but 10 packets do not", max_pixels=64 * 48)


def test_too_many_frames_are_refused(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "video.mp4", 11)
    refused(path, TooLargeError, "has more than max_frames=10 frames; cut it into parts", max_frames=10)
    with open_video(path, max_frames=11) as video:
        assert video.info.num_frames == 11


def test_too_many_streams_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "streams.mp4"
    with av.open(str(path), "w") as container:
        streams = []
        for _ in range(101):
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            streams.append(stream)
        for stream in streams:
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    refused(path, TooLargeError, "has more than 100 streams")


def test_a_disk_that_stalls(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "video.mp4", 3)
    message = r"reading took longer than timeout_seconds=1e-09; is its disk slow or away\? Copy it to a local disk"
    refused(path, DecodeTimeoutError, message, timeout_seconds=1e-9)


# --- cut off (V3 to V5) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_an_mp4_without_its_index_is_truncated(tmp_path: Path, fraction: float) -> None:
    path = truncate(draw_plain(tmp_path / "video.mp4"), fraction)
    refused(path, TruncatedVideoError, "begins as a video, but 0 frames can be read: its end, or the index")


@pytest.mark.parametrize("fraction", [0.6, 0.7, 0.85])
@pytest.mark.parametrize("name", ["fast.mp4", "fragments.mp4", "plain.mkv", "sound.mkv", "vp9.webm", "mpeg4.avi"])
def test_a_truncated_file_is_refused_and_read_on_demand(tmp_path: Path, name: str, fraction: float) -> None:
    """The frames that are there are counted, and can be had on demand: the same as in the whole file."""
    path = tmp_path / name
    if name == "vp9.webm":
        draw_webm(path, 100)
    else:
        flags = {"fast.mp4": "+faststart", "fragments.mp4": "frag_keyframe+empty_moov"}.get(name)
        draw_plain(
            path,
            100,
            codec="mpeg4" if name.endswith("avi") else "libx264",
            container_options={"movflags": flags} if flags else {},
            with_sound_seconds=3.0 if name == "sound.mkv" else 0.0,
        )
    with open_video(path) as video:
        whole = video.frames(range(100))
    truncate(path, fraction)
    error = refused(
        path, TruncatedVideoError, r"breaks off: \d+ (of 100 )?frames can be read; copy or download it again"
    )
    with open_video(path, allow_damaged=True) as video:
        num_frames = video.info.num_frames
        assert f"breaks off: {num_frames} " in str(error)
        assert 10 < num_frames < 100
        kept = video.frames(range(num_frames - 4))  # the last ones may lack those they refer to
        assert read_stamps(kept) == read_stamps(whole[: num_frames - 4])
        assert np.array_equal(kept, whole[: num_frames - 4])


@pytest.mark.parametrize("name", ["plain.mkv", "vp9.webm", "mpeg4.avi", "fragments.mp4"])
def test_a_cut_that_loses_no_more_than_three_frames_may_pass(tmp_path: Path, name: str) -> None:
    """Here only the table at the file's end, with which players seek, is lost."""
    path = tmp_path / name
    if name == "vp9.webm":
        draw_webm(path, 100)
    elif name == "mpeg4.avi":
        draw_plain(path, 100, codec="mpeg4")
    else:
        flags = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else {}
        draw_plain(path, 100, container_options=flags)
    truncate(path, 0.99)
    with open_video(path) as video:
        num_frames = video.info.num_frames
        assert num_frames >= 97
        assert read_stamps(video.frames(range(num_frames))) == list(range(num_frames))
        assert read_stamps(video.frames([50, 3])) == [50, 3]


def test_a_damaged_header_is_no_matter_of_rights(tmp_path: Path) -> None:
    """Of an ASF that does not say which kind a stream is FFmpeg says that it is not permitted."""
    path = draw_plain(tmp_path / "a.wmv", codec="wmv2")
    content = bytearray(path.read_bytes())
    content[content.index(b"WMV2") - 81] = 0xFF
    path.write_bytes(content)
    with pytest.raises(PermissionError):
        av.open(str(path))
    refused(path, TruncatedVideoError, "begins as a video, but 0 frames can be read: its end, or the index")


def test_a_cut_that_loses_every_frame(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "video.mp4", container_options={"movflags": "+faststart"})
    truncate(path, (path.read_bytes().index(b"mdat") + 20) / path.stat().st_size)
    error = refused(path, TruncatedVideoError, "breaks off: 0 of 40 frames can be read; copy or download it again$")
    assert not hasattr(error, "__notes__")  # nothing that allow_damaged could use
    with pytest.raises(TruncatedVideoError, match="0 of 40 frames"):
        open_video(path, allow_damaged=True)


def test_a_raw_stream_that_is_cut_off(tmp_path: Path) -> None:
    path = truncate(draw_plain(tmp_path / "raw.h264", format="h264"), 0.9)
    refused(path, CorruptVideoError, r"3\d frames decode, but 1 packets do not")


def test_whole_files_are_not_taken_for_cut_off(tmp_path: Path) -> None:
    """Headers that promise more than is shown: sound that is longer, an encoder's delay, a late first frame."""
    draw_plain(tmp_path / "sound.mkv", 10, with_sound_seconds=3.0)
    draw_plain(tmp_path / "sound.mp4", 10, with_sound_seconds=3.0)
    draw_plain(tmp_path / "slow.mkv", 5, fps=1)
    draw_plain(tmp_path / "one.mkv", 1)
    draw(tmp_path / "late.mkv", stamped_frames(5), times_seconds=[5.0, 5.1, 5.2, 5.3, 5.4])
    draw(tmp_path / "late.mp4", stamped_frames(5), times_seconds=[5.0, 5.1, 5.2, 5.3, 5.4])
    for path in tmp_path.iterdir():
        with open_video(path) as video:
            assert read_stamps(frame for _, frame in video) == list(range(video.info.num_frames))


# --- damaged (V6) -----------------------------------------------------------------------------------------------------


def damaged(path: Path) -> Path:
    """100 frames of which those from 30 on have wrong bits; the index is whole."""
    draw_plain(path, 100, width=128, height=96, container_options={"movflags": "+faststart"}, gop=25)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for pos, size in packets[30:90:7]:
        for place in range(pos + size // 2, pos + size - 2, 3):
            content[place] ^= 0x5A
    path.write_bytes(content)
    return path


def test_a_frame_that_decodes_with_errors_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path / "video.mp4")
    with open_video(path) as video:
        assert video.info.num_frames == 100
        assert read_stamps(video.frames(range(20))) == list(range(20))
        with pytest.raises(
            CorruptVideoError, match=r"frame \d+ of 100 decodes with errors; .*\nallow_damaged=True"
        ) as raised:
            video.frames(range(100))
        assert "allow_damaged" not in str(raised.value)  # a note for programs: a command has no such option
        assert read_stamps(video.frames([5, 3])) == [5, 3]  # the rest can still be had
        assert read_stamps(video.frames([99])) == [99]
        assert video.corrupt_frames == set()
    refused(path, CorruptVideoError, r"frame \d+ of 100 decodes with errors")


def test_damaged_frames_are_counted_where_they_are_allowed(tmp_path: Path) -> None:
    path = damaged(tmp_path / "video.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        flagged = set()
        for packet in container.demux(stream):
            try:
                flagged |= {round(frame.pts * stream.time_base * 30) for frame in packet.decode() if frame.is_corrupt}
            except av.error.InvalidDataError:
                continue
    assert flagged
    with open_video(path, allow_damaged=True) as video:
        for index in range(100):
            try:
                video.frames([index])
            except CorruptVideoError:
                assert index >= 29  # does not decode at all
        assert flagged <= video.corrupt_frames
        assert min(video.corrupt_frames) >= 29


# --- anything at all: a typed error or frames, never more ------------------------------------------------------------


def read_somehow(path: Path, *, allow_damaged: bool) -> None:
    try:
        with open_video(path, allow_damaged=allow_damaged, max_frames=1000, max_pixels=1 << 20) as video:
            num_frames = video.info.num_frames
            assert len(video.times_seconds) == num_frames > 0
            assert np.all(np.diff(video.times_seconds) > 0)
            assert np.isfinite([video.info.fps, video.info.duration_seconds]).all()
            for indices in ([num_frames - 1, 0], range(num_frames), [num_frames // 2]):
                frames = video.frames(indices)
                assert frames.shape == (len(indices), video.info.height, video.info.width, 3)
    except VideoError as error:
        if error.path != str(path) or "\n" in str(error):
            raise


WHOLE = {
    "fast.mp4": lambda path: draw_plain(path, 20, container_options={"movflags": "+faststart"}),
    "plain.mkv": lambda path: draw_plain(path, 20, with_sound_seconds=0.5),
    "plain.ts": lambda path: draw_transport_stream(path, 20),
    "mpeg4.avi": lambda path: draw_plain(path, 20, codec="mpeg4"),
    "vp9.webm": lambda path: draw_webm(path, 20),
    "plain.gif": lambda path: draw_plain(path, 10, codec="gif", pix_fmt="rgb8"),
}


@pytest.mark.filterwarnings("ignore:a video is HDR")
@pytest.mark.parametrize("name", WHOLE)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    content = WHOLE[name](tmp_path / name).read_bytes()
    for percent in range(1, 100, 7):
        path = tmp_path / f"{percent}_{name}"
        path.write_bytes(content[: len(content) * percent // 100])
        read_somehow(path, allow_damaged=percent % 2 == 0)


@pytest.mark.filterwarnings("ignore:a video is HDR")
@pytest.mark.parametrize("name", WHOLE)
def test_wrong_bits_anywhere(tmp_path: Path, name: str) -> None:
    content = WHOLE[name](tmp_path / name).read_bytes()
    for seed in range(16):
        path = tmp_path / f"{seed}_{name}"
        path.write_bytes(content)
        flip_bits(path, num_flips=1 + seed * 2, seed=seed, start_fraction=0.0)
        read_somehow(path, allow_damaged=seed % 2 == 0)


def test_times_at_the_ends_of_their_range(tmp_path: Path) -> None:
    """An MP4 whose table of durations claims the longest that there are."""
    path = draw_plain(tmp_path / "video.mp4", 10, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    table = content.index(b"stts") + 4
    (num_entries,) = struct.unpack_from(">I", content, table + 4)
    for entry in range(num_entries):
        struct.pack_into(">I", content, table + 8 + entry * 8 + 4, 0x7FFFFFFF)
    path.write_bytes(content)
    read_somehow(path, allow_damaged=False)


def draw_ivf(path: Path, times: list[int]) -> Path:
    """VP9, one frame at each of these ticks of 1/30 s."""
    with av.open(str(draw_webm(path.with_suffix(".webm"), len(times)))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = b"DKIF" + struct.pack("<2H4s2H4I", 0, 32, b"VP90", 64, 48, 30, 1, len(times), 0)
    for packet, ticks in zip(packets, times, strict=True):
        content += struct.pack("<IQ", len(packet), ticks) + packet
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("times", [[1 << 62], [0, 1 << 62], [1 << 61, (1 << 61) + 1], [0, 1, 1 << 54]])
def test_extreme_times_are_read(tmp_path: Path, times: list[int]) -> None:
    read_somehow(draw_ivf(tmp_path / "a.ivf", times), allow_damaged=False)
    with open_video(tmp_path / "a.ivf") as video:
        assert video.info.num_frames == len(times)


# --- the errors themselves --------------------------------------------------------------------------------------------


def test_errors_cross_from_worker_processes(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.mp4", VideoNotFoundError, "no such video")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is VideoNotFoundError
    assert str(copy) == str(error)
    assert copy.path == str(tmp_path / "none.mp4")
    assert str(VideoNotFoundError("only this")) == "only this"


def test_every_reason_has_its_own_word() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VideoError)]
    assert len({kind.reason for kind in kinds}) == len(kinds) >= 11
