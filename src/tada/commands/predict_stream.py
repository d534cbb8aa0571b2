"""``tada predict RUN --stream SOURCE``: print each class when its score has settled, with the latencies."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tada.commands.arguments import say_aside
from tada.commands.localize_stream import (
    Latencies,
    add_stream_flag,
    below,
    check_one_source,
    check_only_for,
    latencies_in_words,
    stopping,
)
from tada.errors import counted
from tada.system.progress import Work
from tada.system.terminal import is_screen, print_text, printable

if TYPE_CHECKING:
    from tada.recognition.recognizer import Recognizer
    from tada.recognition.streaming import LiveLook, LiveSettings

_SETTINGS = ("every_seconds", "smooth_seconds", "settle_seconds", "min_score")
_ONLY_FOR_STREAMS = (*_SETTINGS, "idle_seconds", "skip_late")
_ONLY_FOR_FILES = ("fps", "clips", "plots", "explain", "explain_label", "save_video")


def add_live(parser: ArgumentParser) -> None:
    add_stream_flag(parser, "what happens is printed when it has settled. --window-seconds says what a look sees")
    parser.add_argument("--every-seconds", type=float | None, default=None, help="from one look to the next; else 0.5")
    parser.add_argument("--smooth-seconds", type=float | None, default=None, help="scores are means over this; else 1")
    parser.add_argument(
        "--settle-seconds", type=float | None, default=None, help="how long a class is ahead before it counts; else 1"
    )
    parser.add_argument("--min-score", type=float | None, default=None, help="that it has to reach; else 0.5")
    parser.add_argument("--idle-seconds", type=float | None, default=None, help="silence that ends it; else 10")
    parser.add_argument(
        "--skip-late",
        type=bool | None,
        default=None,
        metavar="{true,false}",
        help="leave out looks that come too late; by default of cameras, which do not wait",
    )


def check_live_options(options: Namespace, videos: Sequence[str]) -> None:
    """Refuse options that would do nothing.

    Raises:
        UserError: one of streams without --stream, one of finished videos with it, or several sources.
    """
    check_only_for(options, streams=_ONLY_FOR_STREAMS, files=_ONLY_FOR_FILES)
    check_one_source(options, videos)


def recognize_live(recognizer: Recognizer, source: str, options: Namespace) -> int:
    """Print the events that a recognizer finds in a stream, until the stream ends or is interrupted."""
    from tada.recognition.streaming import LiveSettings, recognize_stream
    from tada.video.stream import FrameStream

    idle = {} if options.idle_seconds is None else {"idle_seconds": options.idle_seconds}
    stream = FrameStream(source, **idle)
    settings = LiveSettings(
        window_seconds=options.window_seconds,
        skip_late=options.skip_late,
        **{name: options[name] for name in _SETTINGS if options[name] is not None},
    )
    # Check the settings before the source is opened, which may wait for a writer.
    window = settings.clips(recognizer.card).window_seconds
    if options.window_seconds is None and recognizer.card.typical_seconds is not None:
        say_aside(f"a look sees {window:.3g} s, as long as the videos of the training; --window-seconds says otherwise")
    say = _WRITERS[options.format](source, options.top)
    latencies = Latencies()
    num_events = num_skipped = 0
    best: tuple[str, float] | None = None
    with stopping(stream), Work("waiting for frames", is_shown=is_screen(sys.stderr)) as work:
        for look in recognize_stream(recognizer, stream, settings):
            latencies.add(look.seen_seconds, look.latency_seconds, is_last=look.is_last)
            num_events += sum(event.kind == "begins" for event in look.events)
            num_skipped += look.num_skipped
            say(look)
            print(end="", flush=True)
            top = look.top(3)
            best = max(filter(None, (best, top[0])), key=lambda pair: pair[1])
            shown = ", ".join(f"{label} {score:.2f}" for label, score in top)
            now = look.label if look.label is not None else "nothing"
            work.words = f"{look.seen_seconds:.1f} s: {now} ({shown})"
    end = {"num_events": num_events, **latencies.summary(stream), "num_skipped": num_skipped}
    if options.format in ("json", "jsonl"):
        print(json.dumps({"event": "end", **end}))
    else:
        words = counted(num_events, "thing")
        words += f" happened in {end['seen_seconds']:.1f} s, {counted(end['num_frames'], 'frame')}"
        if num_skipped:
            words += f"; {counted(num_skipped, 'look')} left out, which came too late"
        lines = [words, *latencies_in_words(end)]
        print("\n".join(lines), file=sys.stdout if options.format == "table" else sys.stderr)
    if not num_events and best is not None:
        say_aside(_why_nothing(best, settings))
    return 0


def _why_nothing(best: tuple[str, float], settings: LiveSettings) -> str:
    """The note that no class has settled, and the option to change; ``best`` is the highest score with its label."""
    label, score = best
    if score < settings.min_score:
        reached = f"the highest score was {score:.2f} ({label}), below {settings.min_score:g}"
        return f"no class was said to happen: {reached}; --min-score says what counts"
    return (
        f"no class was said to happen: {label} reached {score:.2f}, but not for {settings.settle_seconds:g} s; "
        "--settle-seconds says how long it has to"
    )


# -- the forms, line by line ------------------------------------------------------------------------------------------


def _write_table(source: str, top: int) -> Callable[[LiveLook], None]:
    head = f"{'since':>10}  {'':6}  {'score':>5}  {'behind':>8}  {'latency':>8}  what happens"

    def write(look: LiveLook) -> None:
        for event in look.events:
            late = f"{event.behind_seconds:>6.2f} s  {look.latency_seconds:>6.2f} s"
            print(f"{event.seconds:>8.2f} s  {event.kind:6}  {event.score:>5.2f}  {late}  {printable(event.label)}")

    return below(head, write)


def _write_json(source: str, top: int) -> Callable[[LiveLook], None]:
    def write(look: LiveLook) -> None:
        latency = {"latency_seconds": round(look.latency_seconds, 4)}
        for event in look.events:
            entry = {
                "event": event.kind,
                "video": source,
                "label": event.label,
                "seconds": round(event.seconds, 3),
                "score": round(event.score, 6),
                "behind_seconds": round(event.behind_seconds, 3),
            }
            print(json.dumps(entry | latency))
        scores = {label: round(score, 6) for label, score in look.top(top)}
        about = {"seen_seconds": round(look.seen_seconds, 3), "label": look.label, "scores": scores}
        print(json.dumps({"event": "look", **about, **latency}))

    return write


def _write_csv(source: str, top: int) -> Callable[[LiveLook], None]:
    from tada.data.csv_rows import guarded

    writer = csv.writer(SimpleNamespace(write=print_text), lineterminator="\n")
    writer.writerow(["video", "event", "seconds", "label", "score", "behind_seconds", "latency_seconds"])

    def write(look: LiveLook) -> None:
        for event in look.events:
            times = [f"{event.score:.6f}", f"{event.behind_seconds:.3f}", f"{look.latency_seconds:.4f}"]
            writer.writerow([guarded(source), event.kind, f"{event.seconds:.3f}", guarded(event.label), *times])

    return write


_WRITERS = {"table": _write_table, "json": _write_json, "jsonl": _write_json, "csv": _write_csv}
