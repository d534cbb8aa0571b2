"""Wrong media files made of right ones, and a program that reads many of them and tells what came of each.

Run as a program it has a process of its own: a crash ends it, a hang too, and its memory can be measured. The last line
that it printed names the file it was at. ::

    python tests/mutated_media.py FOLDER COUNT SEED [FORM ...]
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from drawn_fields import draw_fields
from drawn_videos import draw_packed, draw_plain, draw_rotated, draw_trimmed, draw_webm
from tada.errors import VideoError
from tada.models import create_model
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.annotate import annotate_video
from tada.video.reader import open_video, probe
from tada.video.sampling import ClipSpec
from tada.video.transforms import shrink_to

HANG_SECONDS = 600
"""A guard against hanging: how long one file may take on a machine that is busy with other things."""
N = 24  # pictures of a video

FORMS: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": lambda path: draw_plain(path, N, with_sound_seconds=0.8),
    "fast.mp4": lambda path: draw_plain(path, N, container_options={"movflags": "+faststart"}),
    "fragments.mp4": lambda path: draw_plain(path, N, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "late.mov": lambda path: _draw_late(path),
    "trimmed.mp4": lambda path: draw_trimmed(path, first=5, num_frames=N),
    "turned.mp4": lambda path: draw_rotated(path, 1, N),
    "hevc.mp4": lambda path: draw_plain(path, N, codec="libx265", options={"x265-params": "log-level=none"}),
    "av1.mp4": lambda path: draw_plain(path, 12, codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "fields.mp4": lambda path: draw_fields(path, N),
    "fields.ts": lambda path: draw_fields(path, N),
    "plain.mkv": lambda path: draw_plain(path, N, with_sound_seconds=0.8),
    "alpha.mkv": lambda path: draw_plain(path, N, codec="ffv1", pix_fmt="bgra"),
    "vp8.webm": lambda path: draw_webm(path, N, codec="libvpx"),
    "vp9.webm": lambda path: draw_webm(path, N),
    "mpeg4.avi": lambda path: draw_plain(path, N, codec="mpeg4", with_sound_seconds=0.8),
    "packed.avi": lambda path: draw_packed(path, N, num_at_start=1, pauses=(9,)),
    "mjpeg.avi": lambda path: draw_plain(path, N, codec="mjpeg", pix_fmt="yuvj420p"),
    "plain.ts": lambda path: draw_plain(path, N, format="mpegts", with_sound_seconds=0.8),
    "mpeg2.mpg": lambda path: draw_plain(path, N, codec="mpeg2video", options={"bf": "2"}),
    "plain.gif": lambda path: draw_plain(path, 10, codec="gif", pix_fmt="rgb8"),
    "plain.flv": lambda path: draw_plain(path, N, codec="flv", with_sound_seconds=0.8, sound_rate=44_100),
    "plain.wmv": lambda path: draw_plain(path, N, codec="wmv2", with_sound_seconds=0.8),
    "vp8.ogg": lambda path: draw_plain(path, N, codec="libvpx", format="ogg"),
    "plain.ivf": lambda path: _draw_ivf(path),
    "plain.h264": lambda path: draw_plain(path, N, format="h264"),
}
"""A right file of each kind: what draws it, by its name."""


def _draw_late(path: Path) -> Path:
    """Sound, and after two seconds pictures too."""
    times = [2 + i / 30 for i in range(N)]
    return draw_plain(path, N, codec="mpeg4", times_seconds=times, time_base=Fraction(1, 30), with_sound_seconds=2.5)


def _draw_ivf(path: Path) -> Path:
    """VP9 in IVF, into which the packets of a WebM are copied."""
    whole = draw_webm(path.with_suffix(".whole.webm"), N)
    with av.open(str(whole)) as source, av.open(str(path), "w", format="ivf") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    whole.unlink()
    return path


# --- what is changed --------------------------------------------------------------------------------------------------

Change = Callable[[bytes, np.random.Generator, list[bytes]], bytes]
HUGE = (
    0xFFFFFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0x10000000,
    0x00FFFFFF,
    85_000_000,
    1_000_000,
    0x7FFF,
    0xFFFF,
    0,
)
"""Numbers of 32 bits that a header may claim."""


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Anywhere, and as often within the first or the last kilobyte, where headers and indices are."""
    kind, size = rng.integers(3), len(content)
    if kind == 0:
        return int(rng.integers(size))
    return int(rng.integers(min(size, 1024))) if kind == 1 else size - 1 - int(rng.integers(min(size, 1024)))


def _bits(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(int(2 ** rng.uniform(0, 6))):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _bits_of_headers(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        changed[_place(content, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _without_end(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    return content[: max(int(rng.integers(len(content))), 1)]


def _without_middle(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    begin = _place(content, rng)
    return content[:begin] + content[begin + int(2 ** rng.uniform(0, 12)) :] or b"\0"


def _part_twice(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    begin = _place(content, rng)
    end = begin + int(2 ** rng.uniform(0, 13))
    return content[:end] + content[begin:end] * int(rng.integers(1, 9)) + content[end:]


def _ones_in_head(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    begin, count = int(rng.integers(min(len(content), 1500))), int(rng.integers(1, 17))
    return content[:begin] + b"\xff" * count + content[begin + count :]


def _huge_number(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One to three numbers; where the file has boxes or elements, they begin at some distance from a name."""
    changed = bytearray(content)
    names = [found.end() for found in re.finditer(rb"[a-z0-9]{4}|[\x42-\x57][\x80-\xff]", content)]
    for _ in range(int(rng.integers(1, 4))):
        place = _place(content, rng)
        if names and rng.random() < 0.6:
            place = names[int(rng.integers(len(names)))] + int(rng.integers(-8, 24))
        number = HUGE[int(rng.integers(len(HUGE)))]
        form = ">I" if rng.random() < 0.6 else "<I"
        place = min(max(place, 0), max(len(changed) - 4, 0))
        changed[place : place + 4] = struct.pack(form, number)
    return bytes(changed)


def _huge_size(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Width or height, wherever 64 and 48 stand in 16 or 32 bits, beside each other or not."""
    places = [found.start() for found in re.finditer(rb"\0[\x40\x30\x3f\x2f]|[\x40\x30]\0", content[:4000])]
    if not places:
        return _huge_number(content, rng, others)
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        place = places[int(rng.integers(len(places)))]
        changed[place : place + 2] = struct.pack(">H", int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x1E00, 0x4000, 7680])))
    return bytes(changed)


def _spliced(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    other = others[int(rng.integers(len(others)))]
    end, begin = int(rng.integers(1, len(content))), int(rng.integers(len(other)))
    return content[:end] + other[begin:]


CHANGES: tuple[Change, ...] = (
    _bits,
    _bits_of_headers,
    _without_end,
    _without_middle,
    _part_twice,
    _ones_in_head,
    _huge_number,
    _huge_number,
    _huge_size,
    _spliced,
)


def wrong_media(form: str, right: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` wrong files of a form, and what was changed; the same ones for a seed."""
    rng = np.random.default_rng([seed, sum(form.encode())])
    for number in range(count):
        change = CHANGES[number % len(CHANGES)]
        content = change(right[form], rng, list(right.values()))
        if rng.random() < 0.2:
            content = _bits_of_headers(content, rng, [])
        yield change.__name__.strip("_"), content


# --- reading them -----------------------------------------------------------------------------------------------------


def read(path: Path, rng: np.random.Generator) -> str:
    """Probe a file, and read at random times; the word for what came of it.

    Raises:
        Exception: nothing that one may raise.
    """
    allow_damaged = bool(rng.random() < 0.5)
    try:
        info = probe(path)
        with open_video(path, allow_damaged=allow_damaged) as video:
            assert np.all(np.diff(video.times_seconds) > 0)
            assert np.isfinite([info.fps, info.duration_seconds]).all()
            seconds = rng.uniform(0, info.duration_seconds, 3)
            small = video.frames_played_at(seconds.tolist(), shrink=lambda frames: shrink_to(frames, short_side=16))
            assert small.shape[0] == 3
            assert small.ndim == 4
            for number in {0, info.num_frames // 2, info.num_frames - 1}:
                assert video.frames([number]).shape == (1, video.info.height, video.info.width, 3)
    except VideoError as error:
        is_told_well = error.path == str(path) and "\n" not in str(error) and len(str(error)) < 2000
        return error.reason if is_told_well else "told badly"
    return "pictures"


def predict(path: Path, recognizer: Recognizer) -> None:
    with suppress(VideoError):
        assert sum(recognizer.predict(path).scores) > 0.99


def annotate(path: Path, target: Path) -> None:
    """Read it with its sound, and write it anew."""
    with suppress(VideoError):
        annotate_video(path, target, [], overwrite=True)


def _recognizer() -> Recognizer:
    torch.manual_seed(0)
    options = {"widths": [8, 8], "depths": [1, 1], "stem_width": 8}
    spec = ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True)
    card = ModelCard(model="tada2d_tiny", options=options, labels=("a", "b"), clip=spec, trained_from="nothing")
    return Recognizer(create_model("tada2d_tiny", num_classes=2, num_frames=4, **options), card, device="cpu")


def _memory(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak of all files before is told then
        return


def main(folder: Path, count: int, seed: int, forms: list[str]) -> None:
    """Print a line of JSON for each file, before it is read and after."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "a video is HDR")
    warnings.filterwarnings("ignore", "the sound of .* cannot be decoded")
    recognizer = _recognizer()
    right = {}
    for form, draw in FORMS.items():
        path = draw(folder / form)
        assert read(path, np.random.default_rng(0)) == "pictures", form
        right[form] = path.read_bytes()
    predict(folder / "plain.mp4", recognizer)
    annotate(folder / "plain.mp4", folder / "annotated" / "right.mp4")
    open_files, base = len(os.listdir("/proc/self/fd")), _memory("VmRSS")
    for form in forms:
        for number, (change, content) in enumerate(wrong_media(form, right, count, seed)):
            path = folder / f"wrong_{number}_{form}"
            path.write_bytes(content)
            print(json.dumps({"at": path.name, "change": change}), flush=True)
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            _forget_peak()
            started = time.process_time()
            try:
                kind = read(path, np.random.default_rng(number))
                if number % 3 == 0:
                    predict(path, recognizer)
                if number % 5 == 0:
                    annotate(path, folder / "annotated" / "wrong.mp4")
            except Exception:
                kind = "fault"
                traceback.print_exc()
                path.with_name(f"kept_{path.name}").write_bytes(content)
            told = {"form": form, "kind": kind, "seconds": round(time.process_time() - started, 3)}
            told["megabytes"] = (_memory("VmHWM") - base) // 1_000_000
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(told | {"name": path.name, "change": change}), flush=True)
            path.unlink()
    assert len(os.listdir("/proc/self/fd")) == open_files, "a file was left open"
    print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or list(FORMS))
