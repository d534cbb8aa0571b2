"""Videos drawn for the tests: every frame carries its own number, large enough to survive compression.

No test needs a video from elsewhere, nor a system ffmpeg: PyAV draws them all, small and fast.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3] RGB

MOTIONS_OF_TESTS = ("left", "right", "up")
"""The classes of the fixture ``motion_videos``."""

STAMP_ROWS, STAMP_COLUMNS = 3, 4  # 12 bits: frames 0 to 4095


def stamped_frame(number: int, *, width: int = 64, height: int = 48) -> Frames:
    """A frame [H, W, 3] whose 3 x 4 blocks, row by row, are the bits of ``number``: bright is 1."""
    rows = np.arange(height) * STAMP_ROWS // height
    columns = np.arange(width) * STAMP_COLUMNS // width
    bits = number >> (rows[:, None] * STAMP_COLUMNS + columns[None, :]) & 1
    slope = (np.arange(width) + 3 * number) % width * 24 // width  # moves, so that no two frames are alike
    level = 50 + 140 * bits + slope[None, :]
    return np.stack([level + 16, level, level - 16], axis=-1).astype(np.uint8)


def stamped_frames(num_frames: int, *, width: int = 64, height: int = 48, first: int = 0) -> Frames:
    """Frames [T, H, W, 3] numbered from ``first``."""
    return np.stack([stamped_frame(first + i, width=width, height=height) for i in range(num_frames)])


def read_stamps(frames: Iterable[npt.NDArray[np.uint8]]) -> list[int]:
    """The number that each frame carries, read from the middle of its blocks."""
    return [_read_stamp(frame) for frame in frames]


def _read_stamp(frame: npt.NDArray[np.uint8]) -> int:
    height, width = frame.shape[:2]
    number = 0
    for row in range(STAMP_ROWS):
        for column in range(STAMP_COLUMNS):
            y, x = int((row + 0.5) * height / STAMP_ROWS), int((column + 0.5) * width / STAMP_COLUMNS)
            block = frame[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2]
            number |= int(block.mean() > 130) << (row * STAMP_COLUMNS + column)
    return number


def draw(
    path: Path,
    frames: Iterable[npt.NDArray[Any]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source_format: str = "rgb24",
    fps: Fraction | int = 30,
    times_seconds: Sequence[float] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
    with_sound_seconds: float = 0.0,
    sound_from_seconds: float = 0.0,
    sound_rate: int = 8000,
) -> Path:
    """Encode ``frames`` to ``path`` in the container its suffix names; ``times_seconds`` makes the rate vary."""
    stack = list(frames)
    times = [i / Fraction(fps) for i in range(len(stack))] if times_seconds is None else times_seconds
    time_base = time_base or (1 / Fraction(fps) if times_seconds is None else Fraction(1, 90_000))
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.height, stream.width = stack[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=sound_rate) if with_sound_seconds else None
        for time, array in zip(times, stack, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=source_format)
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            for start in range(0, int(with_sound_seconds * sound_rate), 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.time_base = sound_rate, Fraction(1, sound_rate)
                silence.pts = start + round(sound_from_seconds * sound_rate)
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def draw_plain(path: Path, num_frames: int = 40, *, width: int = 64, height: int = 48, **options: Any) -> Path:
    """H.264 (by default) with B-frames and a key frame every 12; numbered frames at 30 a second."""
    return draw(path, stamped_frames(num_frames, width=width, height=height), **options)


def draw_variable_rate(
    path: Path, times_seconds: Sequence[float], *, width: int = 64, height: int = 48, **options: Any
) -> Path:
    """Frame i, numbered i, is shown from ``times_seconds[i]``."""
    frames = stamped_frames(len(times_seconds), width=width, height=height)
    return draw(path, frames, times_seconds=times_seconds, **options)


def draw_open_gop(path: Path, num_frames: int = 40, **options: Any) -> Path:
    """Key frames have B-frames before them that need the group before: a naive seek decodes those wrongly."""
    x264 = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0"}
    return draw(path, stamped_frames(num_frames), options=x264, gop=10, **options)


def draw_transport_stream(path: Path, num_frames: int = 40, **options: Any) -> Path:
    """MPEG-TS, whose seeks land near the target rather than on it."""
    return draw(path, stamped_frames(num_frames), format="mpegts", **options)


def draw_webm(
    path: Path, num_frames: int = 40, *, codec: str = "libvpx-vp9", width: int = 64, height: int = 48, **options: Any
) -> Path:
    """WebM with VP9, or ``codec="libvpx"``: VP8, whose hidden reference frames are packets of their own."""
    chosen = {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1", "b": "300k"}
    frames = stamped_frames(num_frames, width=width, height=height)
    return draw(path, frames, codec=codec, options=chosen, format="webm", **options)


def draw_rotated(path: Path, quarter_turns_clockwise: int, num_frames: int = 5, **options: Any) -> Path:
    """An MP4 that asks players to turn it clockwise, as telephones write it (ISO 14496-12, 8.3.2)."""
    draw_plain(path, num_frames, **options)
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][quarter_turns_clockwise % 4]
    content = bytearray(path.read_bytes())
    matrix_at = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    struct.pack_into(">9i", content, matrix_at, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def draw_trimmed(path: Path, *, first: int, num_frames: int = 40) -> Path:
    """An MP4 whose edit list starts the video at frame ``first``: the frames before are there but not shown."""
    whole = draw_plain(path.with_suffix(".whole.mp4"), num_frames, options={"bf": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w", format="mp4") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                shift = int(first / (30 * stream.time_base))
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    whole.unlink()
    return path


def draw_sound(path: Path, *, cover: bool = False) -> Path:
    """Sound without a video: a WAV, M4A or MP3, the latter with cover art if ``cover``."""
    if path.suffix == ".wav":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(16_000))
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44_100)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic.value
        for start in range(0, 44_100, 1152):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 44_100, start, Fraction(1, 44_100)
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
        if picture is not None:
            frame = av.VideoFrame.from_ndarray(stamped_frame(1), format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1)
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Keep the first ``fraction`` of the file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def flip_bits(path: Path, *, num_flips: int, seed: int = 0, start_fraction: float = 0.3) -> Path:
    """Flip ``num_flips`` bits at places drawn from ``seed``, all after ``start_fraction`` of the file."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    places = rng.integers(int(len(content) * start_fraction), len(content), num_flips)
    content[places] ^= (1 << rng.integers(0, 8, num_flips)).astype(np.uint8)
    path.write_bytes(content.tobytes())
    return path


_VOP = b"\0\0\1\xb6"  # what a picture begins with in MPEG-4 (ISO 14496-2)
NOT_CODED = _VOP + bytes([0b01010000, 0b01011111])  # "as before": its time has five bits at 30 pictures a second


def draw_packed(
    path: Path,
    num_frames: int = 40,
    *,
    num_b_frames: int = 1,
    gop: int = 12,
    placeholder: bytes = b"\x7f",
    num_at_start: int = 0,
    pauses: Sequence[int] = (),
) -> Path:
    """MPEG-4 in AVI as DivX and XviD pack it: each P picture is one packet with the B picture after it.

    So that there are as many packets as pictures, one follows before the next P picture that never becomes a picture.

    Args:
        placeholder: what stands in that one.
        num_at_start: more of these after the first picture, as XviD writes them: fewer pictures than packets.
        pauses: before which packets another one stands, since nothing has changed.
    """
    options = {"bf": str(num_b_frames), "b_strategy": "0", "flags": "+bitexact"}  # else it would say it is FFmpeg's
    plain = draw_plain(path.with_suffix(".plain.avi"), num_frames, codec="mpeg4", gop=gop, options=options)
    with av.open(str(plain)) as source, av.open(str(path), "w", format="avi") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        contents: list[bytes] = []
        for packet in packets:
            content = bytes(packet)
            if not contents:
                at = content.index(_VOP)
                contents.append(content[:at] + b"\0\0\1\xb2DivX503b1393p" + content[at:])
            elif content[content.index(_VOP) + 4] >> 6 == 2:  # a B picture
                if contents[-1] == placeholder:  # after another one: it takes the place
                    contents.insert(-1, content)
                else:
                    contents[-1] += content
                    contents.append(placeholder)
            else:
                contents.append(content)
        is_key = dict(zip(contents, (packet.is_keyframe for packet in packets), strict=True))
        for pause in sorted(pauses, reverse=True):
            contents.insert(pause, placeholder)
        contents[1:1] = [placeholder] * num_at_start
        for number, content in enumerate(contents):
            changed = av.Packet(content)
            changed.pts = changed.dts = number
            changed.time_base, changed.is_keyframe, changed.stream = Fraction(1, 30), is_key[content], copy
            target.mux(changed)
    plain.unlink()
    return path
