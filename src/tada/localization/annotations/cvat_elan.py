"""Segments from labeling tools that write XML: CVAT's tracks and tags, ELAN's tiers.

The XML parser is safe for untrusted files: a DOCTYPE, and so entities, is refused, and so are files that are larger or
nested deeper than these tools write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tada.errors import DataError, counted, why_unread
from tada.localization.annotations.formats import Content, Row
from tada.localization.annotations.frame_clock import FrameClock, frame_runs
from tada.localization.annotations.video_names import video_path

_MAX_BYTES = 256 * 2**20
_MAX_ELEMENTS = 5_000_000
_MAX_DEPTH = 32
_KEPT = {  # attributes that are kept; all those of millions of boxes would fill the memory
    *("id", "task_id", "label", "frame", "outside", "name"),
    *("FORMAT", "TIME_UNITS", "MEDIA_URL", "RELATIVE_MEDIA_URL", "MIME_TYPE", "TIME_ORIGIN"),
    *("TIME_SLOT_ID", "TIME_VALUE", "TIER_ID", "ANNOTATION_ID", "TIME_SLOT_REF1", "TIME_SLOT_REF2"),
}


def read_xml(file: Path, clock: FrameClock) -> Content:
    """Read an export of CVAT, or a document of ELAN.

    Raises:
        DataError: the file is neither, or of another version, or has a fault.
    """
    root = _parse(file)
    if root.tag == "ANNOTATION_DOCUMENT":
        return _read_elan(file, root)
    if root.tag == "annotations" and root.find("meta") is not None:
        return _read_cvat(file, root, clock)
    raise DataError(
        f"{file.name} is XML of <{root.tag[:50]}>; what is read is CVAT's export as 'CVAT for video 1.1' "
        "(<annotations> with <meta>) and ELAN's .eaf (<ANNOTATION_DOCUMENT>)"
    )


def _parse(file: Path) -> Element:
    """Parse a file into an element tree, with the attributes in ``_KEPT`` only."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    count, depth = 0, 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count, depth
        count, depth = count + 1, depth + 1
        if count > _MAX_ELEMENTS or depth > _MAX_DEPTH:
            raise DataError(f"{file.name} has too many elements, or too deep ones, for an export of CVAT or ELAN")
        builder.start(tag, {name: value for name, value in attributes.items() if name in _KEPT})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def doctype(*arguments: object) -> None:
        raise DataError(f"{file.name} has a DOCTYPE, which neither CVAT nor ELAN writes: export it anew")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    parser.buffer_text = True
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file.name} is larger than {_MAX_BYTES >> 20} MB; export fewer videos at a time")
        with file.open("rb") as raw:
            parser.ParseFile(raw)
        return builder.close()
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {why_unread(error)}") from error
    except (expat.ExpatError, AssertionError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.name} is no whole XML: {error}; export it again") from error


def _shorten(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}..."


# -- CVAT -------------------------------------------------------------------------------------------------------------


def _read_cvat(file: Path, root: Element, clock: FrameClock) -> Content:
    """CVAT's XML 1.0 and 1.1, of tasks and jobs on videos: tracks, or tags if it was exported "for images".

    A track gives a segment for each time that its object is visible; a tag, one for each run of frames that have it.
    Frame numbers are those of the video, from 0, also if the task shows only every second frame.
    """
    version = (root.findtext("version") or "").strip()
    if not re.fullmatch(r"1(\.\d+)?", version):
        raise DataError(f"{file.name} is CVAT's XML of version {version!r}; 1.0 and 1.1 are read")
    tasks = [task for kind in ("task", "job") for task in root.iterfind(f".//meta//{kind}")]
    by_id = {(task.findtext("id") or "").strip(): task for task in tasks}
    content = Content()
    found: dict[str, list[tuple[int, int, int, str, str]]] = {}
    for number, track in enumerate(root.iterfind("track")):
        where = f"{file.name} track {track.get('id', number)}"
        video, step = _find_cvat_video(where, track.get("task_id"), by_id)
        shapes = [(_frame(where, shape), shape.get("outside") == "1") for shape in track if "frame" in shape.attrib]
        for first, end in _visible_ranges(sorted(shapes), step):
            found.setdefault(video, []).append((first, end, step, _parse_label(where, track), where))
    tags: dict[tuple[str, int, str], set[int]] = {}
    has_shapes = False
    for number, image in enumerate(root.iterfind("image")):
        where = f"{file.name} image {image.get('id', number)}"
        numbered = re.fullmatch(r"(?:.*/)?frame_(\d{1,12})(\.\w+)?", image.get("name", ""))
        if numbered is None:
            raise DataError(f"{where} is a single image, {image.get('name')!r}; export a task whose data is a video")
        video, step = _find_cvat_video(where, image.get("task_id"), by_id)
        for entry in image:
            has_shapes |= entry.tag != "tag"
            if entry.tag == "tag":
                tags.setdefault((video, step, _parse_label(where, entry)), set()).add(int(numbered[1]))
    for (video, step, label), frames in tags.items():
        for first, end in frame_runs(frames, step):
            found.setdefault(video, []).append((first, end, step, label, f"{file.name} tag {label!r}"))
    if not found:
        shapes_only = "shapes on single frames" if has_shapes else "no tracks and no tags"
        raise DataError(f"{file.name} holds {shapes_only}: export the task as 'CVAT for video 1.1', which has tracks")
    for video, segments in found.items():
        content.splits[video_path(video)] = None
        for first, end, step, label, where in segments:
            start_seconds, end_seconds = clock.span(video, first, end, f"{where}, of CVAT,", step=step)
            row = Row(video=video_path(video), start=start_seconds, end=end_seconds, labels=(label,), source=where)
            content.rows.append(row)
        content.durations[video_path(video)] = clock.duration(video, file.name)
    return content


def _find_cvat_video(where: str, task_id: str | None, tasks: dict[str, Element]) -> tuple[str, int]:
    """The video of a task, and its frame step."""
    task = tasks.get(task_id or "") or (next(iter(tasks.values())) if len(tasks) == 1 else None)
    if task is None:
        raise DataError(f"{where} does not say of which of {len(tasks)} tasks it is: export each task by itself")
    source = (task.findtext("source") or task.findtext("name") or "").strip()
    if not source:
        raise DataError(f"{where}: the task names no video (<source>): export it again from CVAT")
    step = re.search(r"step\s*=\s*(\d{1,9})", task.findtext("frame_filter") or "")
    return source, max(int(step[1]), 1) if step else 1


def _visible_ranges(shapes: list[tuple[int, bool]], step: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of frames in which a track's object is visible: first frame, and the first after it."""
    first = None
    for frame, is_outside in shapes:
        if is_outside and first is not None:
            yield first, frame
            first = None
        elif not is_outside and first is None:
            first = frame
    if first is not None:
        yield first, shapes[-1][0] + step


def _frame(where: str, shape: Element) -> int:
    text = shape.get("frame", "")
    if not re.fullmatch(r"\d{1,12}", text):
        raise DataError(f"{where}: frame = {_shorten(text)!r} should be a whole number; export it again from CVAT")
    return int(text)


def _parse_label(where: str, element: Element) -> str:
    label = element.get("label", "").strip()
    if not label:
        raise DataError(f"{where} has no label; give it one in CVAT")
    return label


# -- ELAN -------------------------------------------------------------------------------------------------------------


def _read_elan(file: Path, root: Element) -> Content:
    """ELAN's .eaf: time-aligned annotations; the class is the value, or the tier's name if the value is empty.

    Annotations that refer to others, and those whose ends have no time, are left out, with a note.
    """
    version = root.get("FORMAT", "")
    if not re.fullmatch(r"[23](\.\d+)?", version):
        raise DataError(f"{file.name} is of ELAN's format {version!r}; 2.x and 3.x are read: save it with a newer ELAN")
    header = root.find("HEADER")
    media = [] if header is None else header.findall("MEDIA_DESCRIPTOR")
    if header is None or not media:
        raise DataError(
            f"{file.name} names no video (MEDIA_DESCRIPTOR): link it in ELAN (Edit > Linked Files) and save"
        )
    units = header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise DataError(f"{file.name} counts time in {units}, not in milliseconds: save it with a newer ELAN")
    chosen = next((entry for entry in media if entry.get("MIME_TYPE", "").startswith("video")), media[0])
    video = video_path(_path_of_url(chosen.get("RELATIVE_MEDIA_URL") or chosen.get("MEDIA_URL") or ""))
    if not video:
        raise DataError(f"{file.name} names no video (MEDIA_URL): link it in ELAN (Edit, Linked Files)")
    origin = _parse_milliseconds(file.name, chosen.get("TIME_ORIGIN", "0"))
    slots = {
        slot.get("TIME_SLOT_ID", ""): _parse_milliseconds(file.name, slot.attrib["TIME_VALUE"])
        for slot in root.iterfind("TIME_ORDER/TIME_SLOT")
        if "TIME_VALUE" in slot.attrib
    }
    content = Content()
    content.splits[video] = None
    tiers, referring, untimed = set(), 0, 0
    for tier in root.iterfind("TIER"):
        name = tier.get("TIER_ID", "")
        referring += sum(1 for _ in tier.iterfind("ANNOTATION/REF_ANNOTATION"))
        for entry in tier.iterfind("ANNOTATION/ALIGNABLE_ANNOTATION"):
            where = f"{file.name} tier {name!r} annotation {entry.get('ANNOTATION_ID', '')}".rstrip()
            ends = [slots.get(entry.get(f"TIME_SLOT_REF{end}", "")) for end in (1, 2)]
            label = (entry.findtext("ANNOTATION_VALUE") or "").strip() or name.strip()
            if ends[0] is None or ends[1] is None:
                untimed += 1
                continue
            tiers.add(name)
            start, end = ((ms + origin) / 1000 for ms in (ends[0], ends[1]))
            content.rows.append(Row(video=video, start=start, end=end, labels=(label,), source=where))
    if len(tiers) > 1:
        content.notes.append(f"{file.name}: the values of the tiers {', '.join(sorted(tiers))} are classes alike")
    if referring:
        content.notes.append(f"{file.name}: {counted(referring, 'annotation')} of those that refer to others: left out")
    if untimed:
        content.notes.append(f"{file.name}: {counted(untimed, 'annotation')} without times of their own: left out")
    return content


def _parse_milliseconds(name: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,15}", text.strip()):
        raise DataError(f"{name}: the time {_shorten(text)!r} should be whole milliseconds; save it again in ELAN")
    return int(text)


def _path_of_url(url: str) -> str:
    """The path in a URL such as file:///C:/videos/a%20b.mp4, or in "./a b.mp4"."""
    return unquote(urlsplit(url).path) if url.startswith("file:") else url
