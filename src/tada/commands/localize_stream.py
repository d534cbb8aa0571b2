"""``tada localize RUN SOURCE --stream``: print each segment when it has settled, with the latencies."""

from __future__ import annotations

import csv
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from tada.errors import EmptyFileError, UserError, counted
from tada.system.progress import Work
from tada.system.signals import deferring
from tada.system.terminal import is_screen, print_text, printable

if TYPE_CHECKING:
    from tada.localization.localizer import Localizer
    from tada.localization.streaming import Look
    from tada.video.stream import FrameStream

AnyLook = TypeVar("AnyLook")

_SETTINGS = ("every_seconds", "settle_seconds", "span_seconds")
_ONLY_FOR_STREAMS = (*_SETTINGS, "idle_seconds")
_ONLY_FOR_FILES = ("fps", "plots", "segments", "save_video")


def add_stream_flag(parser: ArgumentParser, printed: str) -> None:
    """Add ``--stream`` for either task; ``printed`` ends its help: what is printed, and when."""
    parser.add_argument(
        "--stream",
        action="store_true",
        help="of one video that is still being written: a file, a named pipe, - (standard input) or a camera "
        f"(/dev/video0); {printed}",
    )


def add_stream(parser: ArgumentParser) -> None:
    add_stream_flag(parser, "segments are printed as soon as they have settled, JSON and CSV line by line")
    parser.add_argument("--every-seconds", type=float | None, default=None, help="from one look to the next; else 1")
    parser.add_argument(
        "--settle-seconds", type=float | None, default=None, help="how long to wait after an end; else 2"
    )
    parser.add_argument("--span-seconds", type=float | None, default=None, help="what the detector sees at once")
    parser.add_argument("--idle-seconds", type=float | None, default=None, help="silence that ends it; else 10")


def check_stream_options(options: Namespace) -> None:
    """Refuse options that would do nothing.

    Raises:
        UserError: one of streams without --stream, one of finished videos with it, or several sources.
    """
    check_only_for(options, streams=_ONLY_FOR_STREAMS, files=_ONLY_FOR_FILES)
    check_one_source(options, options.videos)


def check_only_for(options: Namespace, *, streams: Sequence[str], files: Sequence[str]) -> None:
    """Refuse options that would do nothing.

    Args:
        streams: those that are only for --stream.
        files: those that are only for finished videos.

    Raises:
        UserError: one of them is given where it does nothing.
    """
    for name in files if options.stream else streams:
        if options[name] is not None:
            rule = "is for finished videos" if options.stream else "is for --stream"
            raise UserError(f"--{name.replace('_', '-')} {rule}: leave it away")


def check_one_source(options: Namespace, videos: Sequence[str]) -> None:
    """Refuse several sources of --stream, and "-" (standard input) without --stream.

    Raises:
        UserError: there are several, or "-" is given without --stream.
    """
    if "-" in videos and not options.stream:
        raise UserError("- is the standard input, which is read with --stream")
    if options.stream and len(videos) > 1:
        raise UserError(f"--stream takes one source, not {len(videos)}: start one command for each")


@contextmanager
def stopping(stream: FrameStream) -> Iterator[None]:
    """End the stream in order at the first Ctrl-C or SIGTERM, however long the last look takes.

    A second signal ends the command at once. A signal before the first frame raises KeyboardInterrupt.
    """
    is_told = threading.Event()

    def stop() -> None:
        is_told.set()
        stream.stop()

    with deferring(at_once=stop, seconds=math.inf, is_the_end=False):
        try:
            yield
        except EmptyFileError:
            if not is_told.is_set():
                raise
            raise KeyboardInterrupt from None


def localize_live(localizer: Localizer, options: Namespace) -> int:
    """Print the segments that a localizer finds in a stream, until the stream ends or is interrupted."""
    from tada.localization.streaming import StreamSettings, localize_stream
    from tada.video.stream import FrameStream

    (source,) = options.videos
    idle = {} if options.idle_seconds is None else {"idle_seconds": options.idle_seconds}
    stream = FrameStream(source, **idle)
    settings = StreamSettings(**{name: options[name] for name in _SETTINGS if options[name] is not None})
    say = _WRITERS[options.format](source)
    latencies = Latencies()
    num_segments = 0
    with stopping(stream), Work("waiting for frames", is_shown=is_screen(sys.stderr)) as work:
        for look in localize_stream(localizer, stream, settings, min_score=options.min_score):
            latencies.add(look.seen_seconds, look.latency_seconds, is_last=look.is_last)
            num_segments += len(look.settled)
            say(look)
            print(end="", flush=True)
            now = ", ".join(f"{s.label} ({s.score:.2f})" for s in look.pending)
            work.words = f"{look.seen_seconds:.1f} s seen{'; perhaps: ' + now if now else ''}"
    end = {"num_segments": num_segments, **latencies.summary(stream)}
    if options.format in ("json", "jsonl"):
        print(json.dumps({"event": "end", **end}))
    else:
        seen = f"{end['seen_seconds']:.1f} s, {counted(end['num_frames'], 'frame')}"
        words = f"{counted(num_segments, 'segment')} in {seen}"
        lines = [words, *latencies_in_words(end)]
        print("\n".join(lines), file=sys.stdout if options.format == "table" else sys.stderr)
    return 0


@dataclass(kw_only=True, slots=True)
class Latencies:
    """The latencies of the looks, and whether they keep up with the stream."""

    seconds: list[float] = field(default_factory=list)
    """Latency of each look but the last, which waits for the stream's end."""
    seen: list[tuple[float, float]] = field(default_factory=list)
    """At each of these looks: the seconds of the stream seen so far, and the clock's seconds."""
    seen_seconds: float = 0.0
    num_looks: int = 0

    def add(self, seen_seconds: float, latency_seconds: float, *, is_last: bool) -> None:
        """Record a look."""
        self.num_looks += 1
        self.seen_seconds = seen_seconds
        if not is_last:
            self.seconds.append(latency_seconds)
            self.seen.append((seen_seconds, time.perf_counter()))

    def summary(self, stream: FrameStream) -> dict[str, Any]:
        """Median, p95 and maximal latency, speed and counts, as JSON values."""
        ordered = sorted(self.seconds)
        parts = {"median": 0.5, "p95": 0.95, "max": 1.0}
        at = {name: ordered[min(int(part * len(ordered)), len(ordered) - 1)] for name, part in parts.items() if ordered}
        speed = None
        if len(self.seen) > 1:
            (first, began), (last, ended) = self.seen[0], self.seen[-1]
            speed = round((last - first) / (ended - began), 3)
        return {
            "seen_seconds": round(self.seen_seconds, 3),
            "num_frames": stream.num_frames,
            "num_left_out": stream.num_left_out,
            "num_looks": self.num_looks,
            "latency_seconds": {name: round(seconds, 4) for name, seconds in at.items()},
            "speed": speed,
        }


def latencies_in_words(end: dict[str, Any]) -> list[str]:
    """``Latencies.summary`` as lines of text."""
    lines = []
    if end["num_left_out"]:
        lines.append(f"{end['num_left_out']} damaged frames were left out")
    if end["latency_seconds"]:
        times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in end["latency_seconds"].items())
        lines.append(f"from a frame's arrival to the answer: {times} ({end['num_looks']} looks)")
    if end["speed"] is not None:
        lines.append(f"{end['speed']:.2f} s of the stream in a second")
    return lines


# -- the forms, line by line ------------------------------------------------------------------------------------------


def _write_table(source: str) -> Callable[[Look], None]:
    head = f"{'start':>10}  {'end':>10}  {'score':>5}  {'behind':>8}  {'latency':>8}  what happens"

    def write(look: Look) -> None:
        for given in look.settled:
            s = given.segment
            times = f"{s.start_seconds:>8.2f} s  {s.end_seconds:>8.2f} s  {s.score:>5.2f}"
            print(f"{times}  {given.behind_seconds:>6.2f} s  {given.latency_seconds:>6.2f} s  {printable(s.label)}")

    return below(head, write)


def below(head: str, write: Callable[[AnyLook], None]) -> Callable[[AnyLook], None]:
    """``write``, with a heading printed at the first look, so that an error has no heading above it."""
    heads = [head]

    def write_below(look: AnyLook) -> None:
        while heads:
            print(heads.pop())
        write(look)

    return write_below


def _write_json(source: str) -> Callable[[Look], None]:
    def write(look: Look) -> None:
        for given in look.settled:
            late = {
                "behind_seconds": round(given.behind_seconds, 3),
                "latency_seconds": round(given.latency_seconds, 4),
            }
            print(json.dumps({"event": "segment", "video": source, **given.segment.as_dict(), **late}))
        about = {"seen_seconds": round(look.seen_seconds, 3), "latency_seconds": round(look.latency_seconds, 4)}
        print(json.dumps({"event": "look", **about, "pending": [s.as_dict() for s in look.pending]}))

    return write


def _write_csv(source: str) -> Callable[[Look], None]:
    from tada.localization.localizer import CSV_COLUMNS, csv_row

    writer = csv.writer(SimpleNamespace(write=print_text), lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "behind_seconds", "latency_seconds"])

    def write(look: Look) -> None:
        for given in look.settled:
            late = [f"{given.behind_seconds:.3f}", f"{given.latency_seconds:.4f}"]
            writer.writerow([*csv_row(source, given.segment), *late])

    return write


def _write_srt(source: str) -> Callable[[Look], None]:
    number = 0

    def write(look: Look) -> None:
        nonlocal number
        for given in look.settled:
            number += 1
            print_text(given.segment.srt(number) + "\n")

    return write


_WRITERS = {"table": _write_table, "json": _write_json, "jsonl": _write_json, "csv": _write_csv, "srt": _write_srt}
