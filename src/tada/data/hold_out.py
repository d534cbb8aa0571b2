"""Validation split: the data's own, or held-out groups, or a random part of each class, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tada.data.table import LabeledVideo, VideoTable
from tada.errors import DataError, OptionError, UnknownNameError, listed


def with_splits(table: VideoTable, *, val_fraction: float, val_groups: Sequence[str], seed: int) -> VideoTable:
    """Give a table a validation split: of ``val_groups``, else its own splits, else ``val_fraction`` of each class.

    With a fraction of 0 all videos are for training.
    """
    if val_groups:
        return hold_out_groups(table, val_groups)
    if table.splits:
        return table
    if val_fraction == 0:
        return replace(table, videos=tuple(replace(video, split="train") for video in table.videos))
    return hold_out(table, fraction=val_fraction, seed=seed)


def hold_out(table: VideoTable, *, fraction: float, seed: int) -> VideoTable:
    """Make part of the training videos the "val" split: the same part of every class, at least one video of each.

    Files are sorted by a hash of ``seed`` and their path below the root, so the choice does not depend on the order of
    files, and adding videos hardly changes it. All segments of a file are put in one split. Groups are ignored: where
    clips of one recording could be put in both splits, use ``hold_out_groups``.

    Raises:
        DataError: there is a "val" split already, a class has no or only one video, or there are several heads.
        OptionError: ``fraction`` is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise OptionError(f"{fraction = } should lie between 0 and 1")
    _check_no_val(table)
    if len(table.heads) > 1:
        raise DataError(
            "videos with a verb and a noun are not held out by class: give the data set's own validation list too, or "
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
            raise DataError(f"no video is of class {name!r}; remove its column, or add videos of it")
        if len(videos) == 1:
            raise DataError(
                f"class {name!r} has one video ({videos[0].path!r}); to hold out a part, each class needs two: "
                "add one, leave the class out, or hold nothing out (--val-fraction 0)"
            )
        still_wanted[label] = min(max(round(fraction * len(videos)), 1), len(videos) - 1)
    files = [path for path, some in sorted(of_file.items(), key=lambda f: _hash_key(seed, table.relative(f[1][0])))]
    taken = {path: Counter(label for video in segments for label in video.labels) for path, segments in of_file.items()}
    if table.several:
        return _with_val(table, _choose_rarest_first(files, taken, still_wanted, fraction))
    held: set[str] = set()
    for path in files:
        if all(still_wanted[label] >= count for label, count in taken[path].items()):
            held.add(path)
            still_wanted = {label: count - taken[path][label] for label, count in still_wanted.items()}
    return _with_val(table, held)


def _choose_rarest_first(
    files: Sequence[str], taken: Mapping[str, Counter[int]], wanted: Mapping[int, int], fraction: float
) -> set[str]:
    """Choose the held-out files of multi-label videos: first those of the rarest class, then of the next.

    So about ``fraction`` of each class is held out, of a rare one too, which a draw over all videos might miss
    (iterative stratification: Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011). Videos without a label are held out
    last.

    Args:
        files: in random order.
        taken: how many videos of each class a file has.
        wanted: how many videos of each class should be held out.
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
        DataError: the data have no groups or a "val" split already, no group is left for training, or a class would be
            in one split only.
        UnknownNameError: a group is not in the data.
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
        raise DataError("the data have a 'val' split already; use it, or remove the split column (or folders)")


def _with_val(table: VideoTable, held: set[str]) -> VideoTable:
    videos = []
    for video in table.videos:
        if video.split != "test":
            video = replace(video, split="val" if video.path in held else "train")
        videos.append(video)
    table = replace(table, videos=tuple(videos))
    check_each_label_in_each_split(table)
    return table


def _hash_key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def check_each_label_in_each_split(table: VideoTable) -> None:
    """Check that each class has videos in every split: a class must be trained to be tested, and tested to be scored.

    Tables with several heads are not checked: in EPIC-KITCHENS itself, rare classes are in one split only.

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
                are = "is" if len(only) == 1 else "are"
                raise DataError(
                    f"{example.source}: {listed(only)} {are} in {has!r} but not in {lacks!r}; each class needs "
                    "videos in both: add some, leave the class out, or remove the splits, so that a part of each "
                    "class is held out"
                )
