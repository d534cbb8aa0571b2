"""H.264 whose pictures are coded as two fields each, as camcorders do. No encoder that comes with PyAV codes fields.

So the bits are written here (ITU-T H.264, 7.3): every macroblock holds its pixels as they are (I_PCM).
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from drawn_videos import stamped_frame

SIDE = 64  # pixels, of a square picture


def draw_fields(path: Path, num_frames: int = 40, *, in_one_packet: bool = False, format: str | None = None) -> Path:
    """Numbered pictures at 25 a second. Each field is a packet of its own, half a picture's time after the first.

    Args:
        in_one_packet: both fields are.
    """
    unit, fields = Fraction(1, 50), [_fields(number) for number in range(num_frames)]
    stream_alone = io.BytesIO(b"".join(top + bottom for top, bottom in fields))
    with av.open(stream_alone, format="h264") as source, av.open(str(path), "w", format=format) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = unit
        for number, (top, bottom) in enumerate(fields):
            parts = [(top + bottom, 0, 2)] if in_one_packet else [(top, 0, 1), (bottom, 1, 1)]
            for content, ticks, duration in parts:
                packet = av.Packet(content)
                packet.pts = packet.dts = 2 * number + ticks
                packet.duration, packet.time_base, packet.stream = duration, unit, stream
                packet.is_keyframe = ticks == 0 and number % 10 == 0
                container.mux(packet)
    return path


def _ue(*values: int) -> str:
    codes = [f"{value + 1:b}" for value in values]
    return "".join("0" * (len(code) - 1) + code for code in codes)


def _unit(header: int, content: bytes) -> bytes:
    """A NAL unit with its start code, within which none may occur."""
    guarded = bytearray()
    for byte in content:
        if byte <= 3 and guarded[-2:] == b"\0\0":
            guarded.append(3)
        guarded.append(byte)
    return b"\0\0\0\1" + bytes([header]) + bytes(guarded)


def _bytes(bits: str) -> bytes:
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _ended(bits: str) -> bytes:
    bits += "1"
    return _bytes(bits + "0" * (-len(bits) % 8))


def _headers() -> bytes:
    """Main profile, level 3; 4 bits of frame_num; shown as decoded; 4 macroblocks wide and 2 high in a field."""
    sps = f"{77:08b}{0:08b}{30:08b}" + _ue(0, 0, 2, 1) + "0" + _ue(3, 1) + "0" + "0" + "1" + "0" + "0"
    pps = _ue(0, 0) + "00" + _ue(0, 0, 0) + "000" + _ue(0, 0, 0) + "100"
    return _unit(0x67, _ended(sps)) + _unit(0x68, _ended(pps))


def _fields(number: int) -> tuple[bytes, bytes]:
    """The top and the bottom field of a picture; every tenth begins anew."""
    picture = av.VideoFrame.from_ndarray(stamped_frame(number, width=SIDE, height=SIDE), format="rgb24")
    planes = picture.reformat(format="yuv420p").to_ndarray()
    luma, chroma = planes[:SIDE], planes[SIDE:].reshape(2, SIDE // 2, SIDE // 2)
    return (
        (_headers() if number % 10 == 0 else b"") + _slice(luma[0::2], chroma[:, 0::2], number, bottom=False),
        _slice(luma[1::2], chroma[:, 1::2], number, bottom=True),
    )


def _slice(luma: npt.NDArray[np.uint8], chroma: npt.NDArray[np.uint8], number: int, *, bottom: bool) -> bytes:
    is_new = number % 10 == 0 and not bottom
    bits = _ue(0, 7, 0) + f"{number % 10:04b}" + "1" + str(int(bottom))
    bits += (_ue(number // 10 % 2) + "00") if is_new else "0"
    bits += _ue(0, 1) + _ue(25)  # no change of the quantiser, no smoothing; the first macroblock is I_PCM
    content = _bytes(bits + "0" * (-len(bits) % 8))
    for row in range(2):
        for column in range(4):
            if row or column:
                content += _bytes(_ue(25) + "0" * 7)
            content += luma[16 * row :, 16 * column :][:16, :16].tobytes()
            content += chroma[:, 8 * row :, 8 * column :][:, :8, :8].tobytes()
    return _unit(0x65 if is_new else 0x61, content + b"\x80")
