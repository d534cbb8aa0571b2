"""Readers of files of labeling tools: segments are read to the same rows as those of other formats.

    CVAT           "CVAT for video 1.1" (XML): tracks, a segment each time that their object is visible; or the tags of
                   frames of a video task ("CVAT for images 1.1"). Times are frame numbers, so the video is needed.
    ELAN           .eaf (XML), formats 2 and 3: time-aligned annotations; their values are the classes
    Label Studio   the JSON export: TimelineLabels (frame numbers), Labels on sound or video (seconds), VideoRectangle
                   (the time that the box is visible)
    VIA            VGG's Video Annotator 3, its project (JSON): temporal segments
    BORIS          a project (.boris) or its aggregated events (CSV or TSV): state events

A folder may hold several of these files, for example one for each video. The format is recognized by the content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tada.data.csv_rows import csv_columns, csv_rows, has_decimal_commas
from tada.errors import DataError, listed, why_unread
from tada.localization.annotations.cvat_elan import read_xml
from tada.localization.annotations.formats import Content, Row, load_json, with_seconds
from tada.localization.annotations.frame_clock import FrameClock
from tada.localization.annotations.video_names import video_path
from tada.video.numbered import VIDEO_EXTENSIONS

_SUFFIXES = {".xml", ".eaf", ".json", ".boris", ".csv", ".tsv"}


def read_tool_files(path: Path, videos: Path | None = None, *, fps: float | None = None) -> Content | None:
    """Read a file of a labeling tool, or a folder of such files; None if there is none.

    Args:
        videos: the folder of the videos, for tools that count frames; the annotations' folder is searched, too.
        fps: frame rate of folders of frames.

    Raises:
        DataError: a fault in a file, or one of an unsupported version or export.
    """
    folders = [folder for folder in (videos, path if path.is_dir() else path.parent) if folder is not None]
    clock = FrameClock(folders, fps=fps)
    if not path.is_dir():
        read = _choose_reader(path) if path.is_file() else None
        return None if read is None else read(path, clock)
    found = [(file, read) for file in sorted(path.rglob("*")) if _is_candidate(file) and (read := _choose_reader(file))]
    return _join([read(file, clock) for file, read in found]) if found else None


def _is_candidate(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()


_Read = Callable[[Path, FrameClock], Content]


def _choose_reader(file: Path) -> _Read | None:
    """Choose the reader of a file by its first bytes; None if it is of no known tool."""
    try:
        with file.open("rb") as raw:
            head = raw.read(4096).removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip()
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {why_unread(error)}") from error
    if head.startswith("<"):
        return read_xml
    if file.suffix.lower() == ".boris" or ('"project_format_version"' in head and head.startswith("{")):
        return _read_boris
    if head.startswith("{") and ('"vid_list"' in head or '"_via_' in head):
        return _read_via
    if re.match(r"\[\s*\{", head):
        return _read_label_studio
    if head.startswith("#") and "VIA" in head.partition("\n")[0]:
        raise DataError(f"{file.name} is a CSV that VIA exported; save the project instead, which is JSON")
    columns = {cell.strip().strip('"').lower() for cell in re.split(r"[,;\t]", head.partition("\n")[0])}
    if {"behavior", "start (s)", "stop (s)"} <= columns:
        return _read_boris_table
    if {"behavior", "behavior type", "time"} <= columns:
        raise DataError(f"{file.name} holds BORIS's tabular events; export aggregated events, or give the project")
    return None


def _join(contents: list[Content]) -> Content:
    """Merge contents into the first."""
    first, *others = contents
    for other in others:
        first.rows += other.rows
        first.splits |= other.splits
        first.durations |= other.durations
        first.notes += other.notes
    return first


def _add_video(content: Content, video: str, where: str) -> str:
    """Add a video without a split; return its ``video_path``."""
    path = video_path(video)
    if not path:
        raise DataError(f"{where} names no video: choose one in the tool, and save again")
    content.splits[path] = None
    return path


# -- Label Studio -----------------------------------------------------------------------------------------------------


def _read_label_studio(file: Path, clock: FrameClock) -> Content:
    """Tasks with annotations. If a task has several annotations, the ground truth counts, else the last one."""
    tasks = load_json(file)
    content = Content()
    for number, task in enumerate(tasks, start=1):
        parts = (task.get("data"), task.get("annotations")) if isinstance(task, dict) else (None, None)
        if not isinstance(parts[0], dict) or not isinstance(parts[1], list):
            raise DataError(
                f"{file.name} entry {number} is no task of Label Studio with 'data' and 'annotations': export as JSON, "
                "not as JSON-MIN, CSV or predictions"
            )
        where = f"{file.name} task {task.get('id', number)}"
        made = [a for a in task["annotations"] if isinstance(a, dict) and not a.get("was_cancelled")]
        if not made:
            continue
        chosen = next((a for a in made if a.get("ground_truth")), made[-1])
        if len(made) > 1:
            content.notes.append(f"{where}: of {len(made)} annotations one counts (the ground truth, or the last)")
        video = _find_label_studio_video(task["data"], where)
        path = _add_video(content, video, where)
        regions = chosen.get("result") or []
        if not isinstance(regions, list):
            raise DataError(f"{where}: its result is no list of regions; export again from Label Studio")
        for region in regions:
            value = region.get("value") if isinstance(region, dict) else None
            if not isinstance(value, dict):
                continue
            source = f"{where} region {region.get('id', '?')}"
            for start, end, labels in _label_studio_spans(value, video, source, clock):
                if not isinstance(labels, list):
                    raise DataError(f"{source}: its labels are no list; export again from Label Studio")
                content.rows += [
                    Row(video=path, start=start, end=end, labels=(str(label),), source=source) for label in labels
                ]
    return content


def _label_studio_spans(
    value: Mapping[str, Any], video: str, source: str, clock: FrameClock
) -> Iterator[tuple[float, float, Any]]:
    """Yield start, end and labels of a region, in seconds."""
    try:
        if "ranges" in value:  # frames from 1 on, both ends included
            for part in value["ranges"]:
                first, last = int(part["start"]), int(part["end"])
                yield *clock.span(video, first - 1, last, f"{source}, of Label Studio,"), value["timelinelabels"]
        elif "sequence" in value:
            rate = float(value["framesCount"]) / float(value["duration"])
            for first, last in _visible_ranges(value["sequence"], int(value["framesCount"])):
                yield (first - 1) / rate, last / rate, value["labels"]
        elif {"start", "end", "labels"} <= value.keys():
            yield float(value["start"]), float(value["end"]), value["labels"]
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{source}: {error!r}; give it times and a label in Label Studio, and export again") from error


def _visible_ranges(sequence: list[Mapping[str, Any]], last_frame: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last frames between which a box is visible, including the frame that switches it off."""
    first = None
    for key in sorted(sequence, key=lambda key: int(key["frame"])):
        first = int(key["frame"]) if first is None else first
        if not key.get("enabled", True):
            yield first, int(key["frame"])
            first = None
    if first is not None:
        yield first, last_frame


def _find_label_studio_video(data: Mapping[str, Any], where: str) -> str:
    """The video's name in a task's data, without the eight hex digits that Label Studio adds to uploads."""
    texts = {key: text for key, text in data.items() if isinstance(text, str) and _extract_file_path(text)}
    if len(texts) > 1 and "video" in texts:
        texts = {"video": texts["video"]}
    if len(texts) != 1:
        raise DataError(f"{where}: its data ({listed(sorted(data)) or 'none'}) name {len(texts)} videos; one is needed")
    return re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", _extract_file_path(next(iter(texts.values()))))


def _extract_file_path(text: str) -> str:
    """The path of the video file in a path or URL: /data/local-files/?d=a/b.mp4 is a/b.mp4. "" if none."""
    parts = urlsplit(text)
    inside = parse_qs(parts.query).get("d")
    path = inside[0] if inside else unquote(parts.path) if parts.scheme or parts.query else text
    path = re.sub(r"^/?data/upload/(\d+/)?", "", path)
    return path if Path(path).suffix.lower() in VIDEO_EXTENSIONS else ""


# -- VIA --------------------------------------------------------------------------------------------------------------


def _read_via(file: Path, clock: FrameClock) -> Content:
    """A project of VIA 3: metadata with two times are segments; their only attribute is the class."""
    document = load_json(file)
    if any(name in document for name in ("_via_img_metadata", "_via_settings")):
        raise DataError(f"{file.name} is of VIA 2 or older, which labels images; label videos with VIA 3's video tool")
    content = Content()
    try:
        version = str(document["project"].get("data_format_version", "3.1.1"))
        if not version.startswith("3."):
            raise DataError(f"{file.name} is of VIA's format {version}; 3.x is read")
        names = {aid: str(attribute["aname"]) for aid, attribute in document["attribute"].items()}
        used: set[str] = set()
        for mid, entry in document["metadata"].items():
            if len(entry["z"]) != 2:
                continue  # a point in time, a region in a frame, or the whole file
            where = f"{file.name} segment {mid}"
            values = {aid: value for aid, value in entry["av"].items() if str(value).strip()}
            used |= values.keys()
            if len(used) > 1:
                both = ", ".join(sorted(repr(names.get(aid, aid)) for aid in used))
                raise DataError(f"{where}: segments have several attributes ({both}); keep the one that is the class")
            if not values:
                raise DataError(f"{where} has no label; give it one in VIA, or take it away")
            ((aid, value),) = values.items()
            files = document["view"][entry["vid"]]["fid_list"]
            about = document["file"][str(files[0])]
            path = _add_video(content, str(about["fname"]), where)
            for label in _via_labels(document["attribute"][aid], str(value)):
                start, end = entry["z"]
                content.rows.append(Row(video=path, start=start, end=end, labels=(label,), source=where))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.name} is no whole project of VIA 3 ({error!r}); save it again") from error
    return content


def _via_labels(attribute: Mapping[str, Any], value: str) -> list[str]:
    """The labels of an attribute's value: options of a checkbox (type 2), one option (3, 4), or free text (1)."""
    options = attribute.get("options") or {}
    chosen = [part.strip() for part in value.split(",")] if attribute.get("type") == 2 else [value]
    return [str(options.get(part, part)).strip() for part in chosen if part]


# -- BORIS ------------------------------------------------------------------------------------------------------------


def _read_boris(file: Path, clock: FrameClock) -> Content:
    """A project: state events, each from its start to its stop. Point events are left out, with a note."""
    document = load_json(file)
    content = Content()
    try:
        kinds = {str(b["code"]): str(b["type"]).lower() for b in document["behaviors_conf"].values()}
        num_points = 0
        for name, observation in document["observations"].items():
            where = f"{file.name} observation {name!r}"
            if str(observation.get("type", "")).upper() != "MEDIA":
                content.notes.append(f"{where}: of no video: left out")
                continue
            if float(observation.get("time offset") or 0):
                raise DataError(f"{where}: it has a time offset; set it to 0 in BORIS (edit observation) and save")
            media = [str(medium) for medium in observation["file"]["1"]]
            lengths = observation.get("media_info", {}).get("length", {})
            open_since: dict[tuple[str, str, str], float] = {}
            for time, subject, code, modifiers, *_ in sorted(observation["events"], key=lambda event: float(event[0])):
                if not kinds.get(code, "state event").startswith("state"):
                    num_points += 1
                    continue
                key = str(subject), str(code), str(modifiers)
                start = open_since.pop(key, None)
                if start is None:
                    open_since[key] = float(time)
                    continue
                video, first = _find_boris_medium(media, lengths, start, where)
                path = _add_video(content, video, where)
                begin, end = start - first, float(time) - first
                source = f"{where}, {code!r} from {start:g} s"
                content.rows.append(Row(video=path, start=begin, end=end, labels=(str(code),), source=source))
            for (_, code, _), start in open_since.items():
                raise DataError(f"{where}: the state {code!r} starts at {start:g} s and never stops: pair it in BORIS")
            for medium in media:
                path = _add_video(content, medium, where)
                if medium in lengths:
                    content.durations[path] = float(lengths[medium])
        if num_points:
            content.notes.append(f"{file.name}: {num_points} point events, which have no length: left out")
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.name} is no whole project of BORIS ({error!r}); save it again") from error
    return content


def _find_boris_medium(media: list[str], lengths: Mapping[str, Any], start: float, where: str) -> tuple[str, float]:
    """The video of an event, among videos played one after the other, and the time at which it starts."""
    if not media:
        raise DataError(f"{where} names no video: choose its media file in BORIS, and save")
    first = 0.0
    for medium, following in zip(media, [*media[1:], None], strict=True):
        if following is None or start < first + float(lengths[medium]):
            return medium, first
        first += float(lengths[medium])
    raise AssertionError("the last medium is returned")


_BORIS_COLUMNS = (
    "observation id",
    "behavior",
    "behavior type",
    "start (s)",
    "stop (s)",
    "media file name",
    "media file",
    "source",
)


def _read_boris_table(file: Path, clock: FrameClock) -> Content:
    """Aggregated events: a row for each, with start and stop in the time of the observation."""
    header = csv_columns(file, _BORIS_COLUMNS)
    columns = [c for c in ("source", "media file name", "media file path", "media file") if c in header]
    if not columns:
        raise DataError(f"{file.name} row 1: no column 'Source' or 'Media file name': export aggregated events anew")
    content = Content()
    num_points, decimal_comma = 0, has_decimal_commas(file, _BORIS_COLUMNS)
    for source, cells in csv_rows(file, _BORIS_COLUMNS):
        if cells.get("behavior type", "STATE").upper().startswith("POINT"):
            num_points += 1
            continue
        offset = cells.get("time offset (s)", "")
        if offset.strip("0. ") not in ("", "NA"):
            raise DataError(f"{source}: a time offset of {offset} s; set it to 0 in BORIS and export again")
        # "player #1:a.mp4;b.mp4|player #2:c.mp4": a and b one after the other, c at the same time; player 1 counts.
        named = [re.sub(r"^player #\d+:", "", cells[column].partition("|")[0]).strip() for column in columns]
        videos = [name for name in named if name not in ("", "NA", "Not found")]
        if not videos or ";" in videos[0]:
            played = "no video" if not videos else "several videos, one after the other"
            raise DataError(f"{source}: the observation is of {played}; give the project (.boris)")
        row = Row(
            video=_add_video(content, videos[0], source),
            start=cells["start (s)"],
            end=cells["stop (s)"],
            labels=(cells["behavior"],),
            source=source,
        )
        content.rows.append(with_seconds(row, decimal_comma=decimal_comma, may_be_negative=True))
    if num_points:
        content.notes.append(f"{file.name}: {num_points} point events, which have no length: left out")
    return content
