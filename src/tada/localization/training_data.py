"""Training data of a localizer: features and annotated segments, and the check that a resumed run has the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tada.errors import DataError, counted
from tada.localization.annotations.formats import read_names
from tada.localization.annotations.table import (
    SegmentTable,
    check_for_training,
    named_like,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.features.extraction import backbone_hash
from tada.localization.features.folder import FeatureFolder
from tada.localization.naming import scores_for
from tada.localization.recipe import LocalizationRecipe
from tada.localization.trained_videos import (
    DATA_FILE,
    VIDEOS_FILE,
    TrainedVideos,
    check_no_leak,
    write_trained_videos,
)
from tada.recognition.recognizer import Recognizer
from tada.system.documents import read_json
from tada.system.files import write_whole
from tada.training.recipe import resumed

_SHORTEST_STEPS = 2


# No slots: cached_property needs a __dict__.
@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Segments and features of a run's videos."""

    table: SegmentTable
    folder: FeatureFolder

    @cached_property
    def training(self) -> SegmentTable:
        """The training videos."""
        return self.table.of_split("train")

    @cached_property
    def tested(self) -> SegmentTable | None:
        """The held-out videos, if there are any."""
        return next((self.table.of_split(split) for split in ("val", "test") if split in self.table.splits), None)

    @property
    def num_tested(self) -> int:
        """Number of held-out videos."""
        return 0 if self.tested is None else len(self.tested)

    @property
    def classes_in_words(self) -> str:
        """Number of classes in words, such as "20 action classes"."""
        return " and ".join(counted(len(s.labels), f"{s.name} class") for s in self.table.heads)


def training_data(
    recipe: LocalizationRecipe,
    features: Path,
    segments: Path | SegmentTable,
    *,
    backbone: Recognizer | None,
    classifier: Path | None,
    val_fraction: float,
    skip_missing: int,
    leave_out: Path | None,
    say: Callable[[str], None],
) -> TrainingData:
    """Read and check the data of ``train_localizer``; see there for the arguments.

    Raises:
        DataError: the features are of another backbone; or as ``prepare_table``.
    """
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    table = table if leave_out is None else table.leaving_out(read_names(leave_out))
    folder = FeatureFolder(features, classifier=scores_for(recipe, classifier))
    if backbone is not None and backbone_hash(backbone.model) != folder.backbone:
        raise DataError(
            f"{str(features)!r} holds features of another backbone ({folder.backbone[:12]}) than the one given: "
            "extract them with it, into a new folder"
        )
    table = prepare_table(
        table, folder, val_fraction=val_fraction, seed=recipe.seed, skip_missing=skip_missing, say=say
    )
    return TrainingData(table=table, folder=folder)


def prepare_table(
    table: SegmentTable,
    folder: FeatureFolder,
    *,
    val_fraction: float,
    seed: int,
    skip_missing: int,
    say: Callable[[str], None],
) -> SegmentTable:
    """Match annotations with features, and refuse faults in them before hours of training.

    Raises:
        DataError: annotated videos without features, or whose content has changed since; a number of features that
            contradicts the duration; no segments in a split; a video in two splits.
    """
    table = with_splits(named_like(table, folder.places(), say), val_fraction=val_fraction, seed=seed)
    example = next(iter(folder.cards))
    missing = {
        video.name: f"{table.name}: the video {video.name!r} has no features in {str(folder.folder)!r} (there lies "
        f"{example!r}): extract them, or take its rows away"
        for video in table.videos
        if video.segments and video.name not in folder.cards
    }
    table = table.without(missing, allowed=skip_missing, say=say)
    table = replace(table, videos=tuple(video for video in table.videos if video.name in folder.cards))
    folder.check_sources(video.name for video in table.videos)
    check_no_leak(table, folder)
    for card in folder.cards.values():
        card.grid.check_length(card.num_features, card.duration_seconds, f"features of {card.video!r}")
    table = with_durations(table, {name: card.duration_seconds for name, card in folder.cards.items()})
    check_for_training(table, say)
    lengths = [s.seconds for video in table.of_split("train").videos for s in video.segments]
    if np.percentile(lengths, 25) < _SHORTEST_STEPS * folder.grid.stride_seconds:
        say(
            f"a quarter of the segments are shorter than two features ({folder.grid.stride_seconds:.3f} s apart): "
            "extract with a smaller --stride-seconds"
        )
    return table


def _data_hashes(data: TrainingData) -> dict[str, str]:
    """Content of data.json: hashes of the features and segments."""
    return {"features": data.folder.key, "segments": data.table.fingerprint()}


def write_data(data: TrainingData, out: Path) -> None:
    """Write videos.csv and data.json of a run."""
    write_trained_videos(out, data.table, data.folder)
    write_whole(out / DATA_FILE, (json.dumps(_data_hashes(data), indent=2) + "\n").encode())  # last: it completes both


def of_same_run(
    recipe: LocalizationRecipe, data: TrainingData, out: Path, say: Callable[[str], None] = print
) -> LocalizationRecipe:
    """Check that a resumed run has the same recipe and data; return the recipe with the run's numbers.

    Raises:
        OptionError: the run was started with another recipe.
        DataError: the run was started with other data.
    """
    recipe = resumed(recipe, out, or_else="begin another run without --resume", say=say)
    if not (out / DATA_FILE).exists():  # the run was interrupted before it was written
        write_data(data, out)
    try:
        before = read_json(out / DATA_FILE)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(out / DATA_FILE)!r} is damaged ({error}): start anew") from error
    if before != json.loads(json.dumps(_data_hashes(data))):
        raise DataError(f"the features or segments are not those that {out} was started with: start anew")
    replaced = TrainedVideos(out).changed(data.table, data.folder)
    if replaced:
        raise DataError(
            f"the video {replaced[0]!r} is not the one that {out} was started with ({VIDEOS_FILE} there): it was "
            "replaced since; start anew without --resume, into another folder"
        )
    return recipe
