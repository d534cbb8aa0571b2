"""Readers of the lists of published data sets: each format is read to the same rows, without looking for the videos.

    Kinetics       train.csv validate.csv       label,youtube_id,time_start,time_end,split      ID_000010_000020.mp4
    Something-v2   ...train.json ...            id, template ("Holding [something]"), labels.json          78687.webm
    EPIC-KITCHENS  EPIC_100_train.csv ...       narration_id,video_id,start_timestamp,verb_class,...       P01_01.MP4
    UCF101         trainlist01.txt ...          ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1, classInd.txt
    HMDB51         wave_test_split1.txt ...     April_09_wave_..._0.avi 1 (1 train, 2 test, 0 neither)

Sources: the data sets' own documents; alibaba-mmai-research/TAdaConv datasets/base for the columns it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tada.data.csv_rows import check_known, check_text, class_number, csv_columns, csv_rows, required, text_lines
from tada.data.table import ACTION, SPLITS, Head
from tada.data.times_and_splits import segment, split_name
from tada.errors import DataError, OptionError
from tada.system.documents import MAX_LIST_BYTES, open_regular, read_json

KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
EPIC_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
KINETICS_PUBLISHED = frozenset((*KINETICS_COLUMNS, "label", "split", "is_cc"))
EPIC_PUBLISHED = frozenset(
    (
        *EPIC_COLUMNS,
        *("narration_timestamp", "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class"),
        *("all_nouns", "all_noun_classes", "narration_sentence", "narration_timestamp_sentence"),
    )
)
COLUMNS = frozenset((*KINETICS_COLUMNS, *EPIC_COLUMNS, "label", "split", "verb_class", "noun_class", "id", "key"))
"""Columns by which published lists are recognized."""

_UCF_LIST = re.compile(r"(train|test)list0*(\d+)\.txt")
_HMDB_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of a list."""

    id: str
    stem: str
    """Name of its file without the extension."""
    labels: tuple[str, ...]
    """Names of the classes; empty if the list keeps them secret."""
    split: str | None
    group: str | None
    source: str
    folder: str | None = None
    """Name of the folder of its file, used if several files have this name."""
    segment: tuple[float, float] | None = None
    """Start and end in the file ``stem``, in seconds."""
    cut_stem: str | None = None
    """Name, without the extension, of a file cut to the segment alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One published format: how its lists are found and read."""

    kind: str
    lists: Callable[[Path, int], list[Path]]
    """Finds the labeled lists in a folder, of the given fold."""
    is_list: Callable[[Path], bool]
    """Whether a file is such a list."""
    read: Callable[[Path, str | None], Iterator[Entry]]
    """Reads the rows of a list, given the split in its file name."""
    heads: Callable[[Path, Sequence[Entry]], tuple[Head, ...]]
    """Reads the classes from files in the lists' folder, or from the rows."""
    columns: frozenset[str] = frozenset()
    """Columns of a CSV list as published; others, added by its users, are not read."""


def _sorted_classes(folder: Path, entries: Sequence[Entry]) -> tuple[Head, ...]:
    names = {label for entry in entries for label in entry.labels}
    return (Head(name=ACTION, labels=tuple(sorted(names))),)


def _has_columns(file: Path, columns: Sequence[str]) -> bool:
    if file.suffix.lower() != ".csv" or not file.is_file():
        return False
    try:
        return set(columns) <= set(csv_columns(file, COLUMNS))
    except DataError:  # not a published list; the reader of another form reports the error
        return False


def _in_folder(data: Path, pattern: str) -> list[Path]:
    return sorted(file for file in data.glob(pattern) if not file.name.startswith("."))


# -- Kinetics ---------------------------------------------------------------------------------------------------------


def _kinetics_lists(data: Path, fold: int) -> list[Path]:
    files = [file for file in _in_folder(data, "*.csv") if _has_columns(file, KINETICS_COLUMNS)]
    return [file for file in files if "label" in csv_columns(file, COLUMNS)]


def _read_kinetics(file: Path, split: str | None) -> Iterator[Entry]:
    """Read ``label,youtube_id,time_start,time_end,split``; the times are those of the YouTube video, before cutting."""
    for source, cells in csv_rows(file, COLUMNS):
        start, end = segment(source, cells["time_start"], cells["time_end"])
        video = required(source, cells, "youtube_id")
        name = f"{video}_{int(start):06d}_{int(end):06d}"
        own_split = split_name(cells.get("split", ""))
        if own_split and own_split not in SPLITS:
            raise DataError(f"{source}: split = {own_split!r} should be train, validate or test")
        yield Entry(
            id=name,
            stem=name,
            cut_stem=video,
            labels=(required(source, cells, "label"),) if "label" in cells else (),
            split=own_split or split,
            group=None,
            source=source,
        )


# -- Something-Something-v2 -------------------------------------------------------------------------------------------


def _something_lists(data: Path, fold: int) -> list[Path]:
    files = [*_in_folder(data, "*train.json"), *_in_folder(data, "*validation.json")]
    return [file for file in files if _is_something(file)]


def _is_something(file: Path) -> bool:
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    try:
        with open_regular(file) as raw:
            beginning = raw.read(4096)
    except OSError:  # as in ``_has_columns``
        return False
    return re.match(rb'\s*\[\s*\{\s*"(id|label|template|placeholders)"', beginning) is not None


def _read_something(file: Path, split: str | None) -> Iterator[Entry]:
    """Read ``[{"id": "78687", "template": "Holding [something] ..."}]``; the class is the template without brackets."""
    rows = _json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file.name} should hold a list of videos, as it was published")
    for number, row in enumerate(rows, start=1):
        source = f"{file.name} entry {number}"
        if not isinstance(row, dict) or not str(row.get("id", "")).strip():
            raise DataError(f"{source}: no id; give the list as it was published")
        template = row.get("template")
        if template is not None and not (isinstance(template, str) and template.strip()):
            raise DataError(f"{source}: template = {template!r} should be a class, such as 'Holding [something]'")
        yield Entry(
            id=str(row["id"]).strip(),
            stem=str(row["id"]).strip(),
            labels=() if template is None else (_without_brackets(template),),
            split=split,
            group=None,
            source=source,
        )


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "").strip()


def _something_heads(folder: Path, entries: Sequence[Entry]) -> tuple[Head, ...]:
    """The classes in the order of labels.json (label: number), if it is beside the lists; else sorted."""
    files = _in_folder(folder, "*labels.json")
    if not files:
        return _sorted_classes(folder, entries)
    numbers = _json(files[0])
    if not isinstance(numbers, dict):
        raise DataError(f'{files[0].name} should hold {{"class": "number", ...}}, as it was published')
    labels = _in_order(files[0].name, [(f"class {name!r}", _without_brackets(name), numbers[name]) for name in numbers])
    for entry in entries:
        if entry.labels and entry.labels[0] not in labels:
            raise DataError(
                f"{entry.source}: the class {entry.labels[0]!r} is not in {files[0].name}; use lists of one release"
            )
    return (Head(name=ACTION, labels=labels),)


def _json(file: Path) -> object:
    check_text(file, "it should hold JSON, as it was published")
    try:
        return read_json(file, MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{file.name} is not JSON ({error}); copy or download it again") from error


def _in_order(name: str, classes: Sequence[tuple[str, str, object]]) -> tuple[str, ...]:
    """Sort class names by their numbers, which should be 0, 1, 2, ...

    Args:
        name: of the file, for messages.
        classes: (place in the file, class name, number) of each class.

    Raises:
        DataError: a number is missing, or a name or a number appears twice.
    """
    of_number: dict[int, str] = {}
    for where, label, number in classes:
        place = class_number(f"{name} {where}", str(number).strip(), len(classes), "number")
        if place in of_number or label in of_number.values():
            raise DataError(f"{name} {where}: {label!r} or the number {place} appears twice; keep one")
        of_number[place] = label
    return tuple(of_number[place] for place in sorted(of_number))


# -- EPIC-KITCHENS-100 ------------------------------------------------------------------------------------------------


def _epic_lists(data: Path, fold: int) -> list[Path]:
    files = [data / f"EPIC_100_{split}.csv" for split in ("train", "validation")]
    return [file for file in files if _has_columns(file, EPIC_COLUMNS)]


def _read_epic(file: Path, split: str | None) -> Iterator[Entry]:
    """Read an EPIC-KITCHENS-100 list by its column names. Uses times: its frame numbers are of another extraction.

    The file is the whole recording; if only clips cut from it are found (NARRATIONID.MP4, as the released code reads
    them), these are used whole.
    """
    columns = csv_columns(file, COLUMNS)
    check_known(columns, EPIC_COLUMNS, file)
    is_labeled = "verb_class" in columns
    if is_labeled:
        check_known(columns, ["noun_class"], file)
    classes = {f"{head.name}_class": head.labels for head in _epic_heads(file.parent, [])} if is_labeled else {}
    for source, cells in csv_rows(file, COLUMNS):
        labels = tuple(
            names[class_number(source, cells[column], len(names), column)] for column, names in classes.items()
        )
        narration = required(source, cells, "narration_id")
        yield Entry(
            id=narration,
            stem=required(source, cells, "video_id"),
            cut_stem=narration,
            segment=segment(source, cells["start_timestamp"], cells["stop_timestamp"]),
            labels=labels,
            split=split,
            group=cells["participant_id"] or None,
            source=source,
        )


def _epic_heads(folder: Path, entries: Sequence[Entry]) -> tuple[Head, ...]:
    heads = []
    for what in ("verb", "noun"):
        labels = epic_classes(folder, what)
        if labels is None:
            raise DataError(
                f"EPIC_100_{what}_classes.csv is not in {str(folder)!r}; copy it there; it comes with the annotations"
            )
        heads.append(Head(name=what, labels=labels))
    return tuple(heads)


def epic_classes(folder: Path, what: str) -> tuple[str, ...] | None:
    """Read the names ("key") of EPIC-KITCHENS-100's classes, in the order of their ids; None if the file is missing.

    EPIC_100_noun_classes_v2.csv, which has five more nouns for other tasks, is not read.

    Args:
        folder: the folder of the annotations.
        what: "verb" or "noun".

    Raises:
        DataError: an error in the file.
    """
    names = (f"EPIC_100_{what}_classes.csv", f"{what}_classes.csv")
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        return None
    check_known(csv_columns(file, COLUMNS), ("id", "key"), file)
    rows = [
        (source.removeprefix(f"{file.name} "), required(source, cells, "key"), cells["id"])
        for source, cells in csv_rows(file, COLUMNS)
    ]
    return _in_order(file.name, rows)


# -- UCF101 and HMDB51 ------------------------------------------------------------------------------------------------


def _ucf_lists(data: Path, fold: int) -> list[Path]:
    return _lists_of_fold(data, "*list*.txt", _UCF_LIST, fold)


def _hmdb_lists(data: Path, fold: int) -> list[Path]:
    return _lists_of_fold(data, "*_test_split*.txt", _HMDB_LIST, fold)


def _lists_of_fold(data: Path, pattern: str, name: re.Pattern[str], fold: int) -> list[Path]:
    found = [(file, match) for file in _in_folder(data, pattern) if (match := name.fullmatch(file.name))]
    folds = sorted({int(match[2]) for _, match in found})
    if folds and fold not in folds:
        raise OptionError(f"fold {fold}: {str(data)!r} has the folds {', '.join(map(str, folds))}; give one of these")
    return [file for file, match in found if int(match[2]) == fold]


def _read_ucf(file: Path, split: str | None) -> Iterator[Entry]:
    """Read ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``; the class is the folder; test lists have no number."""
    labels = _ucf_classes(file.parent)
    for source, line in text_lines(file):
        path, *rest = line.split()
        label, slash, name = path.partition("/")
        if not slash or len(rest) > 1:
            raise DataError(f"{source}: {line!r} should be CLASS/VIDEO.avi, and in training lists the class's number")
        if label not in labels:
            raise DataError(f"{source}: the class {label!r} is not in classInd.txt; use lists of one release")
        if rest and class_number(source, rest[0], len(labels) + 1, "number") != labels.index(label) + 1:
            raise DataError(
                f"{source}: number {rest[0]}, while classInd.txt has {labels.index(label) + 1} for {label!r}"
            )
        recording = re.search(r"_(g\d+)_c\d+$", Path(name).stem)
        yield Entry(
            id=path,
            stem=Path(name).stem,
            folder=label,
            labels=(label,),
            split=split,
            group=f"{label} {recording[1]}" if recording else None,
            source=source,
        )


def _ucf_classes(folder: Path) -> tuple[str, ...]:
    file = folder / "classInd.txt"
    if not file.is_file():
        raise DataError(f"classInd.txt is not in {str(folder)!r}; copy it there; it comes with the lists")
    classes = []
    for source, line in text_lines(file):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise DataError(f"{source}: {line!r} should be a number and a class")
        classes.append((source.removeprefix(f"{file.name} "), name.strip(), int(number) - 1))
    return _in_order(file.name, classes)


def _ucf_heads(folder: Path, entries: Sequence[Entry]) -> tuple[Head, ...]:
    return (Head(name=ACTION, labels=_ucf_classes(folder)),)


def _read_hmdb(file: Path, split: str | None) -> Iterator[Entry]:
    """Read ``VIDEO.avi 1`` in CLASS_test_split1.txt: 1 is for training, 2 for testing, 0 for neither."""
    match = _HMDB_LIST.fullmatch(file.name)
    assert match is not None
    label = match[1]
    for source, line in text_lines(file):
        name, _, part = line.rpartition(" ")
        if part not in ("0", "1", "2") or not name.strip():
            raise DataError(f"{source}: {line!r} should be VIDEO.avi and 1 (training), 2 (testing) or 0 (neither)")
        if part != "0":
            yield Entry(
                id=f"{label}/{name.strip()}",
                stem=Path(name.strip()).stem,
                folder=label,
                labels=(label,),
                split="train" if part == "1" else "test",
                group=None,
                source=source,
            )


FORMS = (
    Form(
        kind="Kinetics",
        lists=_kinetics_lists,
        is_list=lambda file: _has_columns(file, KINETICS_COLUMNS),
        read=_read_kinetics,
        heads=_sorted_classes,
        columns=KINETICS_PUBLISHED,
    ),
    Form(
        kind="EPIC-KITCHENS-100",
        lists=_epic_lists,
        is_list=lambda file: _has_columns(file, ("narration_id", "video_id")),
        read=_read_epic,
        heads=_epic_heads,
        columns=EPIC_PUBLISHED,
    ),
    Form(
        kind="Something-Something-v2",
        lists=_something_lists,
        is_list=_is_something,
        read=_read_something,
        heads=_something_heads,
    ),
    Form(
        kind="UCF101",
        lists=_ucf_lists,
        is_list=lambda file: _UCF_LIST.fullmatch(file.name) is not None,
        read=_read_ucf,
        heads=_ucf_heads,
    ),
    Form(
        kind="HMDB51",
        lists=_hmdb_lists,
        is_list=lambda file: _HMDB_LIST.fullmatch(file.name) is not None,
        read=_read_hmdb,
        heads=_sorted_classes,
    ),
)
