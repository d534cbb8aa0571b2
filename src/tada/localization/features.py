"""Features of untrimmed videos in files: our own form, and the published ones brought into it.

A folder of features holds for each video::

    NAME.npz    "feats" [T, C], float16 or float32; and, where the backbone names classes, "scores_action" [T, K] (or
                scores_verb and scores_noun): the probabilities of each clip
    NAME.json   whose they are: the time grid, the duration, the backbone's hash and the settings (``FeatureCard``)

NAME.json is written last, each file whole or not at all: a video with a NAME.json is complete. All of a folder have the
same key, a hash of backbone and settings, and nothing is trained on features without one.

Shapes: T features, C channels, K classes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tada.errors import DataError
from tada.files import write_whole
from tada.localization.forms import video_name
from tada.localization.grid import FeatureGrid

_FORMAT = 1
PUBLISHED_ENDINGS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".csv", ".pkl")

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCard:
    """What a file of features is."""

    video: str
    """The video's name, without folder and ending."""
    duration_seconds: float
    """Of the video."""
    grid: FeatureGrid
    """When each feature was taken."""
    num_features: int
    channels: int
    backbone: str
    """SHA-256 of the network's weights; for published features where they are from, in words."""
    settings: dict[str, Any]
    """How clips were cut: plain values, as JSON has them."""
    score_labels: dict[str, list[str]] = field(default_factory=dict)
    """The classes that the columns of each scores stand for."""

    @property
    def key(self) -> str:
        """Equal only for features of the same backbone and settings."""
        grid = asdict(self.grid) | {"start_seconds": None}  # as the settings say; resized ones differ by video
        about = json.dumps([self.backbone, self.settings, grid, self.channels], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFeatures:
    """The features of one video."""

    card: FeatureCard
    features: Array
    """[T, C]"""
    scores: dict[str, Array]
    """[T, K] probabilities by label set; empty where the backbone names no classes."""


# -- our own form -----------------------------------------------------------------------------------------------------


def write_features(folder: Path, found: VideoFeatures) -> None:
    """Write NAME.npz and then NAME.json, each whole or not at all.

    Raises:
        DataError: values that are no finite numbers, or channels that are all alike: a broken backbone.
    """
    name = found.card.video
    if not np.isfinite(found.features).all():
        raise DataError(f"the features of {name!r} are not all finite numbers; see whether the backbone is sound")
    if len(found.features) > 4 and float(found.features.std(0).max()) == 0:
        raise DataError(f"the features of {name!r} are the same at all times; see whether the backbone is sound")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"feats": found.features} | {f"scores_{s}": rows for s, rows in found.scores.items()}
    data = io.BytesIO()
    fits = np.abs(found.features).max() < np.finfo(np.float16).max
    np.savez(data, **{key: rows.astype(np.float16 if fits else np.float32) for key, rows in arrays.items()})  # type: ignore[arg-type]  # its last option is no array
    about = {"format": _FORMAT, "key": found.card.key, **asdict(found.card)}
    write_whole(folder / f"{name}.npz", data.getvalue())
    write_whole(folder / f"{name}.json", (json.dumps(about, indent=2) + "\n").encode())


def read_card(file: Path) -> FeatureCard:
    """Read NAME.json.

    Raises:
        DataError: it is damaged, or not of this format.
    """
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about.pop("format") != _FORMAT:
            raise ValueError("of another version of tada")
        key = about.pop("key")
        card = FeatureCard(**about | {"grid": FeatureGrid(**about["grid"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(file)!r} is no card of features ({error}); remove it, and extract the video again"
        ) from error
    if key != card.key:
        raise DataError(f"{str(file)!r} was changed by hand: its key does not fit; extract the video again")
    return card


class FeatureFolder:
    """A folder of features, all of one backbone and one setting."""

    def __init__(self, folder: Path) -> None:
        """Read all cards.

        Raises:
            DataError: no features there, without cards, or of several backbones or settings.
        """
        self.folder = folder
        files = sorted(file for file in folder.glob("*.json") if file.with_suffix(".npz").exists())
        if not files:
            hint = "make some with `tada extract`"
            if folder.is_dir() and any(file.suffix in PUBLISHED_ENDINGS for file in folder.iterdir()):
                hint = "bring published ones into our form with `tada localize import`, which says when each was taken"
            raise DataError(f"{str(folder)!r} holds no features with their cards; {hint}")
        self.cards = {file.stem: read_card(file) for file in files}
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

    def read(self, name: str) -> VideoFeatures:
        """The features of one video.

        Raises:
            DataError: there are none, or they are damaged.
        """
        if name not in self.cards:
            raise DataError(
                f"{str(self.folder)!r} has no features of the video {name!r}; extract them, or leave it out"
            )
        file = self.folder / f"{name}.npz"
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                found = {key: arrays[key].astype(np.float32) for key in arrays.files}
            features = found.pop("feats")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{str(file)!r} is damaged ({error}); remove it, and extract the video again") from error
        card = self.cards[name]
        if features.shape != (card.num_features, card.channels) or not np.isfinite(features).all():
            raise DataError(f"{str(file)!r} does not fit its card; remove both, and extract the video again")
        scores = {key.removeprefix("scores_"): rows for key, rows in found.items()}
        return VideoFeatures(card=card, features=features, scores=scores)


# -- published forms --------------------------------------------------------------------------------------------------


def read_published(file: Path, *, allow_pickle: bool = False) -> Array:
    """Read one file of features, [T, C].

    .npy; .npz ("feats", or its only array); .pt and .pth (a tensor, or a mapping with one); .safetensors and .h5 (the
    only tensor, or "feats"); .csv with a header row (BSN, mmaction2); .pkl.

    Args:
        allow_pickle: read files whose reading may run code. Only for those you made, or trust whoever did.

    Raises:
        DataError: another form, a damaged file, or one that needs ``allow_pickle``.
    """
    ending = file.suffix.lower()
    readers: dict[str, Callable[[], Any]] = {
        ".npy": lambda: np.load(file, allow_pickle=allow_pickle),
        ".npz": lambda: _only(_read_npz(file, allow_pickle)),
        ".pt": lambda: _only(torch.load(file, map_location="cpu", weights_only=not allow_pickle)),
        ".pth": lambda: _only(torch.load(file, map_location="cpu", weights_only=not allow_pickle)),
        ".safetensors": lambda: _only(_read_safetensors(file)),
        ".h5": lambda: _only(_read_hdf5(file)),
        ".hdf5": lambda: _only(_read_hdf5(file)),
        ".csv": lambda: _read_csv(file),
        ".pkl": lambda: _only(_unpickle(file, allow_pickle)),
    }
    if ending not in readers:
        raise DataError(f"{str(file)!r}: features are read from {', '.join(readers)}")
    try:
        found = np.asarray(readers[ending]())
        features = found.astype(np.float32)
    except DataError:
        raise
    except Exception as error:  # what the bytes of a damaged file lead to has no end of names
        hint = "" if allow_pickle else "; where it is a pickle that you trust, allow it with --allow-pickle"
        raise DataError(f"{str(file)!r} cannot be read as features ({type(error).__name__}: {error}){hint}") from error
    if features.ndim != 2 or 0 in features.shape:
        raise DataError(f"{str(file)!r} holds an array of {list(found.shape)}; features are [T, C]: one row for each")
    if not np.isfinite(features).all():
        raise DataError(f"{str(file)!r} holds values that are not finite numbers; download it again")
    return features


def _only(content: Any) -> Any:
    """The one array of a mapping, or "feats"; what is no mapping stays."""
    if not isinstance(content, Mapping):
        return content
    if "feats" in content:
        return content["feats"]
    if len(content) != 1:
        raise ValueError(f"it holds {', '.join(map(str, content))}, and none is called 'feats'")
    return next(iter(content.values()))


def _read_npz(file: Path, allow_pickle: bool) -> dict[str, Any]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=allow_pickle) as arrays:
        return dict(arrays)


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)


def _read_hdf5(file: Path) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{str(file)!r}: HDF5 needs the package h5py: pip install h5py") from error
    with h5py.File(file, "r") as opened:
        found: dict[str, Any] = {}
        opened.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def _read_csv(file: Path) -> list[list[float]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.reader(lines))
    return [[float(cell) for cell in row] for row in rows[1:]]  # the first names the channels


def _unpickle(file: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise DataError(f"{str(file)!r} is a pickle, and reading one can run any code; if you trust it: --allow-pickle")
    try:
        return torch.load(file, map_location="cpu", weights_only=False)  # as TAdaConv's authors wrote theirs
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # a pickle, but not torch's
        with file.open("rb") as opened:
            return pickle.load(opened)


_CHUNK = re.compile(r"(.+)_(\d{7})_(\d{7})")


def import_features(
    source: Path,
    out: Path,
    grid: FeatureGrid,
    *,
    durations: Mapping[str, float] | None = None,
    described_as: str,
    allow_pickle: bool = False,
) -> list[FeatureCard]:
    """Bring a folder of published features into our form.

    Files called VIDEO_START_END, with times in milliseconds (EPIC-KITCHENS' chunks of five seconds), are put together:
    a chunk holds the features whose middle falls into it; one more in the last chunk is dropped.

    Args:
        grid: when each feature was taken. This is what published files lack: their documentation says it.
        durations: of the videos in seconds; features that contradict them are refused. By default they are taken to
            end half a stride after the last feature.
        described_as: whose features these are, in words.

    Raises:
        DataError: nothing there, a file that cannot be read, a chunk that is missing or has another length.
    """
    if not source.is_dir():
        raise DataError(f"{str(source)!r} is no folder; give the folder of the feature files")
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in PUBLISHED_ENDINGS)
    if not files:
        raise DataError(f"{str(source)!r} holds no features; they end in {', '.join(PUBLISHED_ENDINGS)}")
    chunks: dict[str, list[tuple[float, float, Path]]] = {}
    for file in files:
        match = _CHUNK.fullmatch(file.stem)
        if match:
            chunks.setdefault(match[1], []).append((int(match[2]) / 1000, int(match[3]) / 1000, file))
        else:
            name = video_name(file.stem)
            if durations is not None and name not in durations and name.removeprefix("v_") in durations:
                name = name.removeprefix("v_")  # ActivityNet's features carry it, its annotations do not
            if name in chunks:
                raise DataError(f"{str(file)!r}: features of {name!r} lie there twice; keep one file of each video")
            chunks[name] = [(0.0, np.inf, file)]
    cards: list[FeatureCard] = []
    for name, parts in chunks.items():
        features = _join_chunks(sorted(parts, key=lambda part: part[:2]), grid, allow_pickle=allow_pickle)
        ending = float(grid.seconds(float(len(features))) - grid.stride_seconds / 2)
        duration = ending if durations is None else durations.get(name, ending)
        grid.check_length(len(features), duration, f"features of {name!r} in {str(source)!r}")
        card = FeatureCard(
            video=name,
            duration_seconds=duration,
            grid=grid,
            num_features=len(features),
            channels=features.shape[1],
            backbone=described_as,
            settings={"imported": True},
        )
        if cards and card.channels != cards[0].channels:
            raise DataError(
                f"features of {name!r} have {card.channels} channels, those of {cards[0].video!r} {cards[0].channels}; "
                "import each kind into a folder of its own"
            )
        write_features(out, VideoFeatures(card=card, features=features, scores={}))
        cards.append(card)
    return cards


def _join_chunks(parts: list[tuple[float, float, Path]], grid: FeatureGrid, *, allow_pickle: bool) -> Array:
    arrays: list[Array] = []
    ended = parts[0][0]
    if ended > 0:
        raise DataError(
            f"{str(parts[0][2])!r} is the first chunk, but starts at {ended} s; the ones before are missing"
        )
    for start, end, file in parts:
        if abs(start - ended) > 1e-3:
            raise DataError(f"{str(file)!r} starts at {start} s, the chunk before ends at {ended} s; one is missing")
        features, ended = read_published(file, allow_pickle=allow_pickle), end
        if np.isfinite(end):
            expected = count_between(grid, start, end)
            if len(features) not in (expected, expected + 1):
                raise DataError(
                    f"{str(file)!r} has {len(features)} features, while {expected} have their middles in {start} to "
                    f"{end} s at one every {grid.stride_seconds:.4g} s; give the grid they were made with"
                )
            features = features[:expected]
        arrays.append(features)
    return np.concatenate(arrays)


def count_between(grid: FeatureGrid, start_seconds: float, end_seconds: float) -> int:
    """How many features have their middle in [start, end)."""
    first, last = (max(int(np.ceil(float(grid.index(t)) - 1e-6)), 0) for t in (start_seconds, end_seconds))
    return last - first
