"""Check every file of a data set before training.

Each file is opened, hashed and partly decoded in worker processes, so that a crash or hang of the decoder costs one
file. Results are cached per file: a second or interrupted check reads only files that are new or have changed.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tada.data.csv_rows import guarded
from tada.data.identity import sha256_of
from tada.data.table import LabeledVideo, VideoTable, stamp_of
from tada.data.workers import Lost, Pool, in_processes
from tada.errors import ChangedVideoError, OptionError, VideoError, counted, listed
from tada.system.devices import check_num_workers
from tada.system.documents import parse_json, read_json, typed
from tada.system.files import check_not_there, whole_file, write_whole, writing
from tada.system.locks import holds
from tada.system.progress import track
from tada.video.frames import check_pictures, open_footage
from tada.video.numbered import FrameFolder, frame_folder
from tada.video.sampling import segment_frames
from tada.video.shards import member_of

USUAL_FPS = (10.0, 121.0)
"""Frame rates outside of this range are reported, in frames per second."""
_REPORT, _FINDINGS = "report.json", "findings.csv"
_ODD_RATIO = 1.9  # from a file's frame rate to the median
_LONG_GAP = 5.0  # multiple of the usual time between two frames
_LATE_SECONDS = 0.25  # from sound to first frame; in an ordinary recording it is less

FAULTS = {
    "lost": "the decoder crashed or took too long",
    "too_short": "fewer frames than wanted",
    "segment_outside": "a segment that its video does not hold",
    "leak": "the same content in two splits",
    "two_labels": "the same content under two labels",
}
"""Kinds of findings that must be mended, and what they mean; the reasons of ``VideoError`` are others."""
NOTES = {
    "odd_rate": "a frame rate unlike the others'",
    "uneven": "frames that stay several times as long as others",
    "late_start": "pictures that begin well after the sound",
    "hdr": "high dynamic range, which is cut",
    "other_files": "other files in a folder of frames, which are ignored",
    "no_rate": "folders of frames without a frame rate",
    "double": "the same content twice in one split",
    "missing": "listed, but not there",
    "no_videos": "a class that a split has no videos of",
}
"""Kinds of findings that may be as intended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Properties and faults of one file, as found by opening and decoding it."""

    path: str
    size_bytes: int
    mtime_ns: int
    thorough: bool
    """Every frame was decoded, not only the first, the middle and the last."""
    sha256: str = ""
    """Of the file's content; empty where it could not be read."""
    reason: str = ""
    """The word for what is wrong (``VideoError.reason``, or "lost"); empty if nothing is."""
    message: str = ""
    num_frames: int = 0
    start_seconds: float
    """Time of the first frame. Lines of probes.jsonl without it are from an older release and are not used."""
    duration_seconds: float = 0.0
    fps: float = 0.0
    """Frame rate; 0 for a folder of frames without one."""
    others: str = ""
    """Other files in a folder of frames, in words."""
    longest_gap: float = 0.0
    """The longest time between two frames, as a multiple of the usual one."""
    width: int = 0
    height: int = 0
    codec: str = ""
    is_hdr: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault or note about one file or class of a data set."""

    kind: str
    """A word of ``FAULTS`` or ``NOTES``, or the reason of a ``VideoError``."""
    path: str
    source: str
    """File and row that name the video."""
    message: str

    @property
    def is_fault(self) -> bool:
        """Whether it must be mended."""
        return self.kind not in NOTES


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The result of checking a data set."""

    table: VideoTable
    probes: dict[str, Probe]
    """By path."""
    findings: tuple[Finding, ...]
    num_cached: int
    """Files whose results an earlier check had cached, and that have not changed."""
    data: str = ""
    """Where the table was read from, as an absolute path."""

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What must be mended."""
        return tuple(finding for finding in self.findings if finding.is_fault)

    def counts(self) -> dict[str, int]:
        """Findings of each kind, faults first."""
        count = Counter(finding.kind for finding in sorted(self.findings, key=lambda found: not found.is_fault))
        return dict(count)

    def class_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Videos by head, class and split ("all" where there are no splits)."""
        parts = {split: self.table.of_split(split) for split in self.table.splits} or {"all": self.table}
        return {
            head.name: {label: {split: part.counts(i)[label] for split, part in parts.items()} for label in head.labels}
            for i, head in enumerate(self.table.heads)
        }

    def spread(self) -> dict[str, dict[str, int]]:
        """How many of the readable files have each rate, size and codec, the most frequent first."""
        readable = [probe for probe in self.probes.values() if not probe.reason]
        values: dict[str, Callable[[Probe], str]] = {
            "fps": lambda probe: f"{probe.fps:.4g}" if probe.fps else "unknown",
            "size": lambda probe: f"{probe.width}x{probe.height}",
            "codec": lambda probe: probe.codec,
        }
        return {name: dict(Counter(map(value, readable)).most_common()) for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data,
            "kind": self.table.kind,
            "videos": len(self.table),
            "files": len(self.probes),
            "coverage": self.table.coverage(),
            "hours": sum(probe.duration_seconds for probe in self.probes.values()) / 3600,
            "bytes": sum(probe.size_bytes for probe in self.probes.values()),
            "counts": self.counts(),
            "classes": self.class_counts(),
            **self.spread(),
            "findings": [{**asdict(finding), "is_fault": finding.is_fault} for finding in self.findings],
        }

    def save(self, folder: Path) -> None:
        """Write report.json and findings.csv."""
        text = json.dumps(self.as_dict(), indent=2).encode("utf-8", "surrogateescape")
        write_whole(folder / _REPORT, text + b"\n")
        with (
            whole_file(folder / _FINDINGS) as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["kind", "is_fault", "path", "source", "message"])
            for found in self.findings:
                cells = map(guarded, (found.path, found.source, found.message))
                writer.writerow([found.kind, int(found.is_fault), *cells])


@holds("out")
def check_dataset(
    table: VideoTable,
    out: Path,
    *,
    min_frames: int = 8,
    thorough: bool = False,
    num_processes: int | None = None,
    timeout_seconds: float = 120.0,
    data: Path | None = None,
    overwrite: bool = False,
    pool: Pool | None = None,
    show_progress: bool = True,
) -> CheckReport:
    """Check every file of a data set and write the report to the folder ``out``.

    Args:
        out: folder for the report and for probes.jsonl, the cache that the next check reads. A report of the same
            data is replaced.
        min_frames: videos and segments with fewer frames are faults; training would repeat their last.
        thorough: decode every frame; else the first, the middle and the last.
        num_processes: by default one for each core.
        timeout_seconds: for one file.
        data: where the table was read from; by default the folder of its videos.
        overwrite: replace a report of other data.
        pool: what looks at the files: by default processes of this machine, or ``tada.jobs.ray_tasks.on_cluster``.

    Raises:
        OptionError: an option out of its range, or a report of other data in ``out``.
        OutputError: the folder cannot be written, or another process writes into it.
    """
    if min_frames < 1 or not timeout_seconds > 0:
        raise OptionError(f"{min_frames = } should be at least 1, and {timeout_seconds = } more than 0")
    num_processes = check_num_workers(num_processes or os.cpu_count() or 1)
    name = os.path.abspath(data or table.root)
    check_not_there(out, [_REPORT, _FINDINGS], overwrite=overwrite or _is_report_of(out / _REPORT, name))
    out.mkdir(parents=True, exist_ok=True)
    known = _known_probes(out / "probes.jsonl", thorough)
    rates = {video.path: video.fps for video in table.videos}
    paths = list(rates)
    probes = {path: known[path] for path in paths if path in known and _is_same(known[path], rates[path])}
    num_cached = len(probes)
    new = [(path, rates[path]) for path in paths if path not in probes]
    looks = (pool or in_processes)(
        partial(_probe_task, thorough=thorough),
        new,
        num_processes=num_processes,
        timeout_seconds=timeout_seconds,
    )
    probes_file = out / "probes.jsonl"
    with writing(probes_file), probes_file.open("ab") as file, closing(looks):
        for (path, _), found in track(looks, "looking", len(new), noun="files", is_shown=show_progress):
            if isinstance(found, Lost):
                size, mtime_ns = stamp_of(path)
                message = str(found.error(path))
                found = replace(_nothing_known(path, thorough), size_bytes=size, mtime_ns=mtime_ns)
                found = replace(found, reason="lost", message=message)
            probes[path] = found
            # The newline is written first, so that a line that was cut off before does not spoil this one.
            file.write(b"\n" + json.dumps(asdict(found)).encode("utf-8", "surrogateescape") + b"\n")
            file.flush()
    report = CheckReport(
        table=table,
        probes={path: probes[path] for path in paths},
        findings=tuple(_findings(table, probes, min_frames)),
        num_cached=num_cached,
        data=name,
    )
    report.save(out)
    return report


def _is_report_of(file: Path, data: str) -> bool:
    """Whether the file is a report of the same data, which a new check may replace."""
    try:
        about = read_json(file)
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("data") == data


def _probe_task(task: tuple[str, float | None], *, thorough: bool) -> Probe:
    return probe_file(task[0], thorough=thorough, fps=task[1])


def probe_file(path: str, *, thorough: bool, fps: float | None = None) -> Probe:
    """Open a file, or a folder of frames of some rate, hash it, and decode some of its frames, or all."""
    probe = _nothing_known(path, thorough)
    try:
        size, mtime_ns = stamp_of(path)
    except OSError as error:  # gone since the table was read
        return replace(probe, reason="not_found", message=str(error))
    probe = replace(probe, size_bytes=size, mtime_ns=mtime_ns)
    try:
        is_folder = os.path.isdir(path)
        if is_folder:
            probe = replace(probe, others=_others(frame_folder(path)))
        with warnings.catch_warnings(record=True) as told, open_footage(path, fps=fps) as video:
            warnings.simplefilter("always")
            with suppress(OSError):  # a picture that is a dangling link, or a pipe: decoding it reports that
                probe = replace(probe, sha256=sha256_of(path))
            member = member_of(path)
            if member is not None and probe.sha256 != member.sha256:
                raise ChangedVideoError(f"{path!r} is not what the index of its shard says: copy the shard again", path)
            times, info = video.times_seconds, video.info
            last = len(times) - 1
            if is_folder and not thorough:
                check_pictures(path)
            for index in range(len(times)) if thorough else sorted({0, last // 2, last}):
                video.frames([index])
        gaps = np.diff(times)
        is_timed = fps is not None or not is_folder
        return replace(
            probe,
            num_frames=info.num_frames,
            start_seconds=info.start_seconds,
            duration_seconds=info.duration_seconds if is_timed else 0.0,
            fps=info.fps if is_timed else 0.0,
            longest_gap=float(gaps.max() / np.median(gaps)) if len(gaps) else 0.0,
            width=info.width,
            height=info.height,
            codec=info.codec,
            is_hdr=any("HDR" in str(warning.message) for warning in told),
        )
    except VideoError as error:
        return replace(probe, reason=error.reason, message=str(error))


def _others(folder: FrameFolder) -> str:
    return listed(folder.others, at_most=3) if folder.others else ""


def _nothing_known(path: str, thorough: bool) -> Probe:
    return Probe(path=path, size_bytes=0, mtime_ns=0, thorough=thorough, start_seconds=0.0)


def _known_probes(file: Path, thorough: bool) -> dict[str, Probe]:
    """Read the probes of earlier checks, by path. Crashes and timeouts are left out, so that they are tried again."""
    known: dict[str, Probe] = {}
    if file.exists():
        for line in file.read_bytes().splitlines():
            try:
                probe = typed(Probe, parse_json(line.decode("utf-8", "surrogateescape")))
            except ValueError:  # an empty line, one that was cut off, or one of another release
                continue
            if (probe.thorough or not thorough) and probe.reason not in ("lost", "timeout"):
                known[probe.path] = probe
    return known


def _is_same(probe: Probe, fps: float | None) -> bool:
    try:
        is_folder = os.path.isdir(probe.path)
        if is_folder and (probe.reason or probe.fps != (fps or 0.0)):  # a folder's faults may be in its names
            return False
        return stamp_of(probe.path) == (probe.size_bytes, probe.mtime_ns)
    except OSError:
        return False


# -- what there is to tell --------------------------------------------------------------------------------------------


def _findings(table: VideoTable, probes: dict[str, Probe], min_frames: int) -> Iterator[Finding]:
    rows: dict[str, list[LabeledVideo]] = {}
    for video in table.videos:
        rows.setdefault(video.path, []).append(video)
    rates = [probe.fps for probe in probes.values() if probe.fps]
    usual_fps = statistics.median(rates) if rates else 0.0
    for path, videos in rows.items():
        probe = probes[path]
        if probe.others:
            message = f"{path!r} holds {probe.others} beside the frames, which is ignored"
            yield Finding(kind="other_files", path=path, source=videos[0].source, message=message)
        if probe.reason:
            yield Finding(kind=probe.reason, path=path, source=videos[0].source, message=probe.message)
        else:
            yield from _about_file(probe, videos[0].source, usual_fps)
            for video in videos:
                yield from _about_length(probe, video, min_frames)
    yield from _about_content(table, probes, rows)
    for missing in table.missing:
        message = f"{missing.id!r} is listed, but its video is not there"
        yield Finding(kind="missing", path="", source=missing.source, message=message)
    for split in table.splits or (None,):
        part = table if split is None else table.of_split(split)
        for i, head in enumerate(table.heads):
            empty = [label for label, count in part.counts(i).items() if count == 0]
            if empty and any(video.labels for video in part.videos):
                where = f"the {split} split has" if split else "there are"
                message = f"{where} no videos of {counted(len(empty), f'{head.name} class')}: {listed(empty)}"
                yield Finding(kind="no_videos", path="", source=split or "", message=message)


def _about_file(probe: Probe, source: str, usual_fps: float) -> Iterator[Finding]:
    if not probe.fps:
        message = (
            f"{probe.path!r} is a folder of frames without a frame rate (give --fps, or a column fps): networks whose "
            "clips are sampled by time need it"
        )
        yield Finding(kind="no_rate", path=probe.path, source=source, message=message)
        return
    ratio = max(probe.fps, usual_fps) / min(probe.fps, usual_fps)
    low, high = USUAL_FPS
    if probe.longest_gap > _LONG_GAP:
        message = f"{probe.path!r}: a frame stays {probe.longest_gap:.0f} times as long as usual; sampled by time"
        yield Finding(kind="uneven", path=probe.path, source=source, message=message)
    elif probe.num_frames > 1 and (not low <= probe.fps <= high or ratio > _ODD_RATIO):
        others = f"the median here is {usual_fps:.4g}" if ratio > _ODD_RATIO else f"{low:g} to {high:g} are usual"
        message = f"{probe.path!r} shows {probe.fps:.4g} frames a second; {others}"
        yield Finding(kind="odd_rate", path=probe.path, source=source, message=message)
    if probe.start_seconds > _LATE_SECONDS:
        message = (
            f"{probe.path!r} shows its first frame at {probe.start_seconds:.2f} s, since its sound begins earlier; "
            "times of segments count from where the sound begins, as in players"
        )
        yield Finding(kind="late_start", path=probe.path, source=source, message=message)
    if probe.is_hdr:
        message = f"{probe.path!r} is HDR and is cut to 8 bits without tone mapping; convert it if that matters"
        yield Finding(kind="hdr", path=probe.path, source=source, message=message)


def _about_length(probe: Probe, video: LabeledVideo, min_frames: int) -> Iterator[Finding]:
    num_frames = probe.num_frames
    if video.start_seconds is not None and probe.fps:
        # As if frames were spread evenly: near enough to tell which segments a video holds.
        times = np.linspace(probe.start_seconds, probe.duration_seconds, num_frames, endpoint=False)
        try:
            num_frames = len(segment_frames(times, video.start_seconds, video.end_seconds))
        except OptionError as error:
            message = f"{video.path!r}: {error}; mend the times"
            yield Finding(kind="segment_outside", path=video.path, source=video.source, message=message)
            return
    if num_frames < min_frames:
        message = f"{video.id!r} has {num_frames} frames, fewer than {min_frames}; leave it out, or allow it"
        yield Finding(kind="too_short", path=video.path, source=video.source, message=message)


def _about_content(
    table: VideoTable, probes: dict[str, Probe], rows: dict[str, list[LabeledVideo]]
) -> Iterator[Finding]:
    """Files that are equal byte for byte."""
    alike: dict[str, list[str]] = {}
    for path in rows:
        if probes[path].sha256:
            alike.setdefault(probes[path].sha256, []).append(path)
    for paths in alike.values():
        for one, other in pairwise(paths):
            first, second = rows[one][0], rows[other][0]
            if first.split != second.split:
                kind, how = "leak", f"there in {first.split!r} and here in {second.split!r}; keep it in one split"
            elif _said_of(table, rows[one]) != _said_of(table, rows[other]):
                kind = "two_labels"
                how = f"there as {_said_of(table, rows[one])} and here as {_said_of(table, rows[other])}; keep one"
            else:
                kind, how = "double", "so it counts twice; keep one"
            message = f"{other!r} has the same content as {one!r} ({first.source}), {how}"
            yield Finding(kind=kind, path=other, source=second.source, message=message)


def _said_of(table: VideoTable, videos: Sequence[LabeledVideo]) -> str:
    return listed(sorted({" ".join(table.label_names(video)) for video in videos}))
