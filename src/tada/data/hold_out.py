"""Which videos are held out: by the data's own splits, by groups, or by lot, the same lot for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tada.data.table import LabeledVideo, VideoTable
from tada.errors import DataError, OptionError, UnknownNameError, listed


def with_splits(table: VideoTable, *, val_fraction: float, val_groups: Sequence[str], seed: int) -> VideoTable:
    """The data's own split where it has one; else a part of it is held out, or nothing where the fraction is 0."""
    if val_groups:
        return hold_out_groups(table, val_groups)
    if table.splits:
        return table
    if val_fraction == 0:
        return replace(table, videos=tuple(replace(video, split="train") for video in table.videos))
    return hold_out(table, fraction=val_fraction, seed=seed)


def hold_out(table: VideoTable, *, fraction: float, seed: int) -> VideoTable:
    """Make part of the training videos the "val" split: the same part of every class, at least one video of each.

    A file's lot is drawn from ``seed`` and its path below the root alone, so it does not change with the order of
    files, and hardly with videos that are added. All segments of a file fall on one side. Groups play no part: where
    clips of one recording could fall on both sides, use ``hold_out_groups``.

    Raises:
        DataError: there is a "val" split already, a class has one video only, or videos have several labels.
        OptionError: ``fraction`` outside of (0, 1).
    """
    if not 0 < fraction < 1:
        raise OptionError(f"{fraction = } should lie between 0 and 1")
    _check_no_val(table)
    if len(table.heads) > 1:
        raise DataError(
            "videos with several labels are not held out by class: give the data set's own validation list too, or "
            "hold out groups"
        )
    of_file: dict[str, list[LabeledVideo]] = {}
    for video in table.videos:
        if video.split != "test":
            of_file.setdefault(video.path, []).append(video)
    of_label: dict[int, list[LabeledVideo]] = {label: [] for label in range(len(table.labels))}
    for segments in of_file.values():
        for video in segments:
            for label in video.labels:
                of_label[label].append(video)
    still_wanted = {}
    for label, name in enumerate(table.labels):
        videos = of_label[label]
        if not videos:
            raise DataError(f"no video is of class {name!r}; take its column away, or add videos of it")
        if len(videos) == 1:
            raise DataError(
                f"class {name!r} has one video ({videos[0].path!r}); to hold out a part, each class needs two: "
                "add one, leave the class out, or hold nothing out (--val-fraction 0)"
            )
        still_wanted[label] = min(max(round(fraction * len(videos)), 1), len(videos) - 1)
    files = [path for path, some in sorted(of_file.items(), key=lambda f: _lot(seed, table.relative(f[1][0])))]
    taken = {path: Counter(label for video in segments for label in video.labels) for path, segments in of_file.items()}
    if table.several:
        return _with_val(table, _drawn_of_several(files, taken, still_wanted, fraction))
    held: set[str] = set()
    for path in files:
        if all(still_wanted[label] >= count for label, count in taken[path].items()):
            held.add(path)
            still_wanted = {label: count - taken[path][label] for label, count in still_wanted.items()}
    return _with_val(table, held)


def _drawn_of_several(
    files: Sequence[str], taken: Mapping[str, Counter[int]], wanted: Mapping[int, int], fraction: float
) -> set[str]:
    """The files that are held out where videos have several labels: of the rarest class first, then of the next.

    So each class has about its part, and a rare one has it too, which a draw over all videos might pass over (iterative
    stratification: Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011). Of videos without a label the part is held out
    at the end.

    Args:
        files: in the order of their lots.
        taken: how many videos of each class a file has.
        wanted: how many of each class should be held out.
    """
    left = sum(taken.values(), Counter[int]())
    held, count = set[str](), Counter[int]()

    def take(path: str) -> None:
        held.add(path)
        count.update(taken[path])
        left.subtract(taken[path])

    for label in sorted(wanted, key=lambda label: (left[label], label)):
        for path in files:
            own = taken[path]
            leaves_some = all(left[other] > number for other, number in own.items())
            if own[label] and path not in held and count[label] + own[label] <= wanted[label] and leaves_some:
                take(path)
    without = [path for path in files if not taken[path]]
    held.update(without[: round(fraction * len(without))])
    return held


def hold_out_groups(table: VideoTable, groups: Sequence[str]) -> VideoTable:
    """Make all training videos of some groups the "val" split.

    Raises:
        DataError: no groups in the data, a "val" split already, or a class that is then on one side only.
        UnknownNameError: a group that is not in the data.
    """
    _check_no_val(table)
    if not table.groups:
        raise DataError("the data have no groups; add a column 'group' to the CSV file, or hold out a fraction")
    for group in groups:
        if group not in table.groups:
            raise UnknownNameError.of("group", group, table.groups)
    held = {video.path for video in table.videos if video.group in groups}
    if all(video.path in held for video in table.videos if video.split != "test"):
        raise DataError(f"the groups {listed(groups)} hold all training videos; leave one group to train on")
    return _with_val(table, held)


def _check_no_val(table: VideoTable) -> None:
    if "val" in table.splits:
        raise DataError("the data have a 'val' split already; use it, or take the split column (or folders) away")


def _with_val(table: VideoTable, held: set[str]) -> VideoTable:
    videos = []
    for video in table.videos:
        if video.split != "test":
            video = replace(video, split="val" if video.path in held else "train")
        videos.append(video)
    table = replace(table, videos=tuple(videos))
    check_each_label_in_each_split(table)
    return table


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def check_each_label_in_each_split(table: VideoTable) -> None:
    """What is tested must have been trained, and what is trained is tested too: else a score means little.

    Where videos have several labels, rare ones may be on one side, as in EPIC-KITCHENS itself.

    Raises:
        DataError: a class is in one split only.
    """
    if "train" not in table.splits or len(table.heads) > 1:
        return
    of_split = {
        split: {label for video in table.videos if video.split == split for label in video.labels}
        for split in table.splits
    }
    for split in table.splits[1:]:
        for has, lacks in (("train", split), (split, "train")):
            only = sorted(table.labels[label] for label in of_split[has] - of_split[lacks])
            if only:
                example = next(v for v in table.videos if v.split == has and only[0] in table.label_names(v))
                raise DataError(
                    f"{example.source}: {listed(only)} {_is(only)} in {has!r} but not in {lacks!r}; each class needs "
                    "videos in both: add some, leave the class out, or take the splits away, and a part of each "
                    "class is held out"
                )


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
