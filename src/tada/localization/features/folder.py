"""Feature files of untrimmed videos; ``tada.localization.features.importing`` converts published features to them.

A folder of features holds for each video::

    NAME.npz    "feats" [T, C], float16 or float32; and, if the backbone has classes, "scores_action" [T, K] (or
                scores_verb and scores_noun): the class probabilities of each clip
    NAME.json   the card (``FeatureCard``): time grid, duration, hash of the backbone, settings, content of the video

NAME includes folders (monday/0) if several videos have the same file name. NAME.json is written last, and each file is
written whole or not at all: features with a NAME.json are complete. All cards of a folder have the same key, a hash of
backbone and settings; features without a card are not used.

Shapes: T features, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tada.data.table import composed
from tada.errors import DataError
from tada.localization.classifiers import VideoScores
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.sources import Source
from tada.system.array_files import read_npz
from tada.system.documents import read_json, typed
from tada.system.files import write_whole

_FORMAT = 1
PUBLISHED_ENDINGS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".csv", ".pkl")

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCard:
    """Card of a feature file: video, time grid, backbone, settings."""

    video: str
    """Name of the video, without file extension; with its folder only if another video has the same name."""
    duration_seconds: float
    """Duration of the video."""
    grid: FeatureGrid
    """Times of the features."""
    num_features: int
    channels: int
    backbone: str
    """SHA-256 of the network's weights; for published features, a description of their origin."""
    settings: dict[str, Any]
    """Settings of the extraction: plain values, as in JSON."""
    score_labels: dict[str, list[str]] = field(default_factory=dict)
    """Class names of the columns of ``scores``, by head."""
    source: Source | None = None
    """The video file; None for published features, and for those that an older tada extracted."""

    @property
    def key(self) -> str:
        """Equal only for features of the same backbone and settings."""
        grid = asdict(self.grid) | {"start_seconds": None}  # in the settings; after resizing it differs by video
        about = json.dumps([self.backbone, self.settings, grid, self.channels], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFeatures:
    """The features of one video."""

    card: FeatureCard
    features: Array
    """[T, C]"""
    scores: dict[str, Array]
    """Class probabilities by head: [T, K], or [1, K] of the whole video; empty if there are none."""


# -- files ------------------------------------------------------------------------------------------------------------


def write_features(folder: Path, found: VideoFeatures) -> None:
    """Write NAME.npz and then NAME.json, each whole or not at all.

    Raises:
        DataError: values that are not finite, or features that never change: the backbone is broken.
    """
    name = found.card.video
    if not np.isfinite(found.features).all():
        raise DataError(f"the features of {name!r} are not all finite numbers; see whether the backbone is sound")
    if len(found.features) > 4 and float(found.features.std(0).max()) == 0:
        raise DataError(f"the features of {name!r} are the same at all times; see whether the backbone is sound")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    arrays = {"feats": found.features} | {f"scores_{s}": rows for s, rows in found.scores.items()}
    data = io.BytesIO()
    fits = np.abs(found.features).max() < np.finfo(np.float16).max
    np.savez(data, **{key: rows.astype(np.float16 if fits else np.float32) for key, rows in arrays.items()})  # type: ignore[arg-type]  # its last option is no array
    write_whole(folder / f"{name}.npz", data.getvalue())
    write_card(folder, found.card)


def write_card(folder: Path, card: FeatureCard) -> None:
    """Write NAME.json, whole or not at all."""
    about = {"format": _FORMAT, "key": card.key, **asdict(card)}
    write_whole(folder / f"{card.video}.json", (json.dumps(about, indent=2) + "\n").encode())


def read_card(file: Path) -> FeatureCard:
    """Read NAME.json.

    Raises:
        DataError: the file is damaged, or not of this format.
    """
    try:
        about = read_json(file)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise ValueError("of another version of tada")
        card = typed(FeatureCard, about, ignore=("format", "key"))
        if card.num_features < 1 or card.channels < 1 or card.duration_seconds <= 0:
            raise ValueError("sizes and durations are positive")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(file)!r} is no card of features ({error}); remove it, and extract the video again"
        ) from error
    if about.get("key") != card.key:
        raise DataError(f"{str(file)!r} was changed by hand: its key does not fit; extract the video again")
    return card


def _find_cards(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the cards of all complete features, each with the name that its path gives."""
    for file in sorted(folder.rglob("*.json")):
        if file.with_suffix(".npz").exists():
            yield composed(file.relative_to(folder).with_suffix("").as_posix()), file


def has_features(folder: Path) -> bool:
    """Whether a folder holds features with their cards."""
    return next(_find_cards(folder), None) is not None


class FeatureFolder:
    """A folder of features, all with the same backbone and settings."""

    def __init__(self, folder: Path, *, classifier: VideoScores | None = None) -> None:
        """Read all cards.

        Args:
            classifier: an external classifier's scores, used instead of the backbone's.

        Raises:
            DataError: no features, features without cards, or of several backbones or settings.
        """
        self.folder = folder
        self.classifier = classifier
        self.cards: dict[str, FeatureCard] = {}
        self._files: dict[str, Path] = {}
        for name, file in _find_cards(folder):
            card = read_card(file)
            if "/" not in name or name == card.video:  # else a copy in a subfolder, or an older card
                self.cards[name], self._files[name] = replace(card, video=name), file
        if not self.cards:
            hint = "make some with `tada extract`"
            if folder.is_dir() and any(file.suffix in PUBLISHED_ENDINGS for file in folder.iterdir()):
                hint = "bring published ones into our form with `tada localize import`, which says when each was taken"
            raise DataError(f"{str(folder)!r} holds no features with their cards; {hint}")
        first, *others = self.cards.values()
        for other in others:
            if other.key != first.key:
                raise DataError(
                    f"{str(folder)!r} holds features of two kinds: {first.video!r} (backbone {first.backbone[:8]}, "
                    f"{first.settings}) and {other.video!r} (backbone {other.backbone[:8]}, {other.settings}); extract "
                    "all anew into another folder"
                )
        self.key = first.key
        self.channels = first.channels
        self.grid = first.grid
        self.backbone = first.backbone

    def places(self) -> dict[str, str]:
        """Paths of the videos at extraction, by name; the name itself if the path is unknown."""
        return {name: name if card.source is None else card.source.path for name, card in self.cards.items()}

    def check_sources(self, names: Iterable[str]) -> None:
        """Refuse features of videos that were replaced since; videos that were moved cannot be checked.

        Raises:
            DataError: a video was replaced.
        """
        for name in names:
            source = self.cards[name].source
            if source is not None and source.was_replaced():
                raise DataError(
                    f"{str(self.folder)!r}: the features of {name!r} are not of the video that lies in {source.path!r} "
                    "now: it was replaced after they were extracted; extract again with the same command, which makes "
                    "those anew"
                )

    def score_labels(self, name: str) -> dict[str, list[str]]:
        """Class names of a video's scores, by head.

        Raises:
            DataError: the classifier has no scores of the video.
        """
        if self.classifier is None:
            return self.cards[name].score_labels
        if self.classifier.scores_of(name) is None:
            raise DataError(
                f"{self.classifier.name} has no scores of the video {name!r}; give those of a classifier that has seen "
                "it, or leave it out"
            )
        return {"action": list(self.classifier.classes)}

    def read(self, name: str) -> VideoFeatures:
        """The features of one video.

        Raises:
            DataError: the video has no features, or they are damaged.
        """
        if name not in self.cards:
            raise DataError(
                f"{str(self.folder)!r} has no features of the video {name!r}; extract them, or leave it out"
            )
        file = self._files[name].with_suffix(".npz")
        try:
            found = {key: rows.astype(np.float32, copy=False) for key, rows in read_npz(file).items()}
            features = found.pop("feats")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{str(file)!r} is damaged ({error}); remove it, and extract the video again") from error
        card = self.cards[name]
        if features.shape != (card.num_features, card.channels) or not np.isfinite(features).all():
            raise DataError(f"{str(file)!r} does not fit its card; remove both, and extract the video again")
        scores = {key.removeprefix("scores_"): rows for key, rows in found.items()}
        if self.classifier is not None:
            row = self.classifier.scores_of(name)
            scores = {} if row is None else {"action": row[None]}
            card = replace(card, score_labels={} if row is None else self.score_labels(name))
        return VideoFeatures(card=card, features=features, scores=scores)
