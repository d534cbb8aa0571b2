"""The list of videos that a localizer was trained on, which decides the videos it may be tested on.

A run keeps the list in videos.csv: name, split, content, path, and the contents of the originals of a copy. Videos are
identified by their content; copies that `tada prepare` made also by their original's content; by name if one of both
contents is unknown, as for published features.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tada.data.csv_rows import csv_rows, guarded
from tada.data.identity import size_of
from tada.data.run_videos import KnownVideo, add_sha256, line_of_namesakes, sha256_identities, splits_of
from tada.data.times_and_splits import split_name
from tada.errors import DataError, counted, listed
from tada.localization.annotations.table import VAL_FRACTION, SegmentTable, with_splits
from tada.localization.features.folder import FeatureFolder
from tada.localization.features.sources import Source
from tada.localization.recipe import LocalizationRecipe
from tada.system.documents import read_json
from tada.system.files import write_whole
from tada.training.recipe import recipe_of_run

VIDEOS_FILE, DATA_FILE = "videos.csv", "data.json"
_COLUMNS = ("video", "split", "content", "path")
_ORIGINAL = "original"
"""A column that older runs do not have."""


def write_trained_videos(run: Path, table: SegmentTable, folder: FeatureFolder) -> None:
    """Write videos.csv of a run from a table with splits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, _ORIGINAL))
    for video in table.videos:
        source = folder.cards[video.name].source
        row = [guarded(video.name), video.split, "", "", ""]
        if source is not None:
            row[2:] = source.content, guarded(source.path), " ".join(source.with_originals().originals)
        writer.writerow(row)
    write_whole(run / VIDEOS_FILE, text.getvalue().encode("utf-8", "surrogateescape"))


class _Trained(NamedTuple):
    split: str
    content: str


class TrainedVideos:
    """The videos that a run was trained on and held out."""

    def __init__(self, run: Path) -> None:
        """Read the run's videos.csv.

        Raises:
            DataError: the file is damaged.
        """
        self.run = run
        self._by_name: dict[str, _Trained] = {}
        self._files: list[KnownVideo] = []
        file = run / VIDEOS_FILE
        self.is_known = file.exists()
        if self.is_known:
            for source, row in csv_rows(file, (*_COLUMNS, _ORIGINAL)):
                try:
                    self._add(row)
                except (KeyError, ValueError) as error:
                    raise DataError(f"{source} of {str(run)!r} is not as tada writes it; copy the run again") from error

    def _add(self, row: Mapping[str, str]) -> None:
        self._by_name[row["video"].removeprefix("v_")] = _Trained(row["split"], row["content"])
        if row["content"]:
            noted = Source(
                path=row["path"],
                content=row["content"],
                mtime_ns=0,
                originals=tuple(row.get(_ORIGINAL, "").split()),
            ).with_originals()
            self._files.append(
                KnownVideo(
                    path=noted.path, labels=(), split=row["split"], content=noted.content, originals=noted.originals
                )
            )

    def recall(self, table: SegmentTable) -> None:
        """Reconstruct the splits of a run of an older tada, which has no videos.csv.

        The table is split as that run would have; the result counts only if its hash is the one in data.json.
        """
        noted = self.run / DATA_FILE
        if self.is_known or table.splits or len(table) < 2 or not noted.exists():
            return
        seed = recipe_of_run(self.run, LocalizationRecipe).seed
        parted = with_splits(table, val_fraction=VAL_FRACTION, seed=seed)
        try:
            about = read_json(noted)
        except (OSError, ValueError) as error:
            raise DataError(f"{str(noted)!r} is damaged ({error}); copy the run again") from error
        if isinstance(about, dict) and about.get("segments") == parted.fingerprint():
            self._by_name = {video.name.removeprefix("v_"): _Trained(video.split or "", "") for video in parted.videos}
            self.is_known = True

    def splits_among(self, names: Iterable[str], folder: FeatureFolder) -> dict[str, str | None]:
        """The run's split of each video, found by the sources of its features and its name; None if it is unknown."""
        sources = {
            name: card.source.with_originals()
            for name in names
            if (card := folder.cards.get(name)) is not None and card.source is not None
        }
        splits = splits_of(self._files)
        add_sha256(splits, self._files, (identity for source in sources.values() for identity in source.originals))

        def split_of(name: str) -> str | None:
            noted, source = self._by_name.get(name.removeprefix("v_")), sources.get(name)
            # If both contents are known, they decide; the name alone does not.
            by_name = noted.split if noted is not None and not (noted.content and source) else None
            if source is None:
                return by_name
            identities = list(source.identities)
            if size_of(source.content) in splits.sha256_sizes:
                identities += sha256_identities(source.path)
            return splits.of(identities, None, None) or by_name

        return {name: split_of(name) for name in names}

    def names_of(self, split: str) -> list[str]:
        """Names of the videos of a split."""
        return [name for name, noted in self._by_name.items() if noted.split == split]

    def changed(self, table: SegmentTable, folder: FeatureFolder) -> list[str]:
        """Names of videos whose content is not the one that the run noted."""
        names = []
        for video in table.videos:
            noted, source = self._by_name.get(video.name.removeprefix("v_")), folder.cards[video.name].source
            if noted is not None and noted.content and source is not None and source.content != noted.content:
                names.append(video.name)
        return names


def choose_tested(
    table: SegmentTable,
    trained: TrainedVideos | None,
    folder: FeatureFolder,
    split: str | None,
    say: Callable[[str], None],
) -> SegmentTable:
    """Choose the annotated videos to test a localizer on: none that it was trained on, unless ``split`` is "train".

    Args:
        table: all annotations, with the names of the features' videos and their durations.
        split: by default the annotations' test split if it has segments, else val. If they have no splits: the videos
            that the run held out, or that it does not know.

    Raises:
        DataError: there are no such videos, or the split has videos that were trained on.
    """
    chosen = split_name(split) if split else None
    if table.splits:
        table = of_tested_split(table, split)
    if trained is not None:
        trained.recall(table)
    if trained is None or not trained.is_known:
        say("the run does not say which videos it was trained on: if some of these were, the scores are too good")
        return table
    splits = trained.splits_among([video.name for video in table.videos], folder)
    learned = [name for name, own in splits.items() if own == "train"]
    if table.splits:
        if learned and chosen != "train":
            raise DataError(
                f"{len(learned)} of the {len(table)} videos to test on were trained on by {trained.run}, the first: "
                f"{learned[0]!r}; take them out of the split, or list them in a file for --leave-out"
            )
    elif chosen == "train":
        table = _keep_videos(table, learned, f"{trained.run} was trained on none of the videos of {table.name}")
    else:
        others = [video.name for video in table.videos if video.name not in learned]
        table = _keep_videos(
            table,
            others,
            f"{trained.run} was trained on all {len(table)} videos of {table.name}: scores on them would say nothing; "
            "give others, or have them anyway with --split train",
        )
    if chosen == "train":
        trained_on = "which was" if len(table) == 1 else f"{len(learned)} of which were"
        say(f"testing on {counted(len(table), 'video')}, {trained_on} trained on: such scores are too good")
        return table
    held = sum(splits[video.name] is not None for video in table.videos)
    parts = [f"{held} held out of training"] if held else []
    parts += [f"{len(table) - held} that {trained.run} does not know"] if held < len(table) else []
    left_out = f"; {len(learned)} that were trained on are left out" if learned else ""
    say(f"testing on {counted(len(table), 'video')}, {' and '.join(parts)}{left_out}")
    unknown = [video.name for video in table.videos if splits[video.name] is None]
    line = line_of_namesakes(unknown, trained.names_of("train"), trained.run)
    if line:
        say(line)
    return table


def of_tested_split(table: SegmentTable, split: str | None) -> SegmentTable:
    """The videos of a split; by default test if it has segments, else val, else all."""
    chosen = split_name(split) if split else next((name for name in ("test", "val") if table.segments_of(name)), None)
    return table if chosen is None else table.of_split(chosen)


def _keep_videos(table: SegmentTable, names: list[str], fault: str) -> SegmentTable:
    """Keep the videos of these names; raise DataError with ``fault`` if they have no segments."""
    chosen = set(names)
    videos = tuple(video for video in table.videos if video.name in chosen)
    if not any(video.segments for video in videos):
        raise DataError(fault)
    return replace(table, videos=videos)


def check_no_leak(table: SegmentTable, folder: FeatureFolder) -> None:
    """Refuse a recording that has two names, one in training and one in testing.

    Raises:
        DataError: there is such a recording.
    """

    def content_of(name: str) -> str:
        source = folder.cards[name].source
        return "" if source is None else source.content

    first: dict[str, tuple[str, str | None]] = {}
    for video in table.videos:
        source = folder.cards[video.name].source
        if source is None:
            continue
        for identity in source.with_originals().identities:
            name, split = first.setdefault(identity, (video.name, video.split))
            if (split == "train") != (video.split == "train"):
                is_equal = identity == source.content == content_of(name)
                how = "their content is equal" if is_equal else "as copies that tada prepare made"
                raise DataError(
                    f"{table.name}: {name!r} and {video.name!r} are the same video ({how}), one in the split "
                    f"{split!r} and one in {video.split!r}: what is tested would be trained on; keep {listed([name])} "
                    "only, or give both the same split"
                )
