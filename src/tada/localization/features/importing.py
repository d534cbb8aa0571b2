"""Import of published features, and of classification scores beside them.

Published files contain neither the features' times nor the network's name: the caller gives both. Scores are read in
the form that TAdaConv's authors released for EPIC-KITCHENS-100: files with the same names as the features', each with
"verb_class" [T, V * 97] and "noun_class" [T, V * 300], the concatenated logits of V crops.

Shapes: T features, C channels, V crops, K classes.
"""

from __future__ import annotations

import csv
import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tada.errors import DataError
from tada.localization.annotations.formats import NUM_EPIC_NOUNS, NUM_EPIC_VERBS
from tada.localization.annotations.video_names import video_name
from tada.localization.features.folder import (
    PUBLISHED_ENDINGS,
    Array,
    FeatureCard,
    FeatureFolder,
    VideoFeatures,
    has_features,
    write_features,
)
from tada.localization.features.grid import FeatureGrid
from tada.system.array_files import MAX_BYTES, check_memory, check_unpacked, read_hdf5, read_npy, read_npz
from tada.system.documents import open_regular, read_bytes
from tada.system.locks import holds

_MAX_CSV_BYTES = 1 << 26
_EPIC_SIZES = {"verb": NUM_EPIC_VERBS, "noun": NUM_EPIC_NOUNS}


def read_feature_file(file: Path, *, allow_pickle: bool = False) -> Array:
    """Read one file of features, [T, C].

    .npy; .npz ("feats", or its only array); .pt and .pth (a tensor, or a mapping with one); .safetensors and .h5 (the
    only tensor, or "feats"); .csv with a header row (BSN, mmaction2); .pkl.

    Args:
        allow_pickle: also read pickles, which can run any code. Only for files from a source that you trust.

    Raises:
        DataError: another form, a damaged file, or one that needs ``allow_pickle``.
    """
    return _read(file, lambda content: {"feats": _pick_array(content)}, allow_pickle)["feats"]


def read_epic_scores(file: Path, *, allow_pickle: bool = False) -> dict[str, Array]:
    """Read one file of EPIC-KITCHENS-100's classification scores: probabilities [T, K] of "verb" and "noun".

    The softmax is taken for each crop, and the crops are averaged, as in the released evaluation.

    Raises:
        DataError: as ``read_feature_file``; "verb_class" or "noun_class" is missing or of another width.
    """

    def logits(content: Any) -> dict[str, Any]:
        keys = {name: f"{name}_class" for name in _EPIC_SIZES}
        if not isinstance(content, Mapping) or not set(keys.values()) <= content.keys():
            raise ValueError(f"scores are a mapping of {' and '.join(keys.values())} to arrays")
        return {name: content[key] for name, key in keys.items()}

    found = {}
    for name, rows in _read(file, logits, allow_pickle).items():
        size = _EPIC_SIZES[name]
        if rows.shape[1] % size:
            raise DataError(f"{str(file)!r}: {name}_class has {rows.shape[1]} columns, no multiple of {size} classes")
        crops = torch.from_numpy(rows).view(len(rows), -1, size)
        found[name] = crops.softmax(2).mean(1).numpy()
    return found


def _read(file: Path, choose: Callable[[Any], dict[str, Any]], allow_pickle: bool) -> dict[str, Array]:
    """Read a file, let ``choose`` pick arrays of its content, and check them: [T, C], finite."""
    try:
        arrays = {name: np.asarray(rows) for name, rows in choose(_read_content(file, allow_pickle)).items()}
        check_memory((rows.shape, rows.dtype) for rows in arrays.values())
        found = {name: rows.astype(np.float32, copy=False) for name, rows in arrays.items()}
    except DataError:
        raise
    except Exception as error:  # damaged files raise all kinds of exceptions
        hint = "" if allow_pickle else "; where it is a pickle that you trust, allow it with --allow-pickle"
        raise DataError(f"{str(file)!r} cannot be read as features ({type(error).__name__}: {error}){hint}") from error
    for rows in found.values():
        if rows.ndim != 2 or 0 in rows.shape:
            raise DataError(
                f"{str(file)!r} holds an array of {list(rows.shape)}; features are [T, C]: one row for each"
            )
        if not np.isfinite(rows).all():
            raise DataError(f"{str(file)!r} holds values that are not finite numbers; download it again")
    return found


def _read_content(file: Path, allow_pickle: bool) -> Any:
    """The content of a file: an array, or a mapping of names to arrays."""
    readers: dict[str, Callable[[], Any]] = {
        ".npy": lambda: read_npy(file, allow_pickle=allow_pickle),
        ".npz": lambda: read_npz(file, allow_pickle=allow_pickle),
        ".pt": lambda: _read_torch(file, allow_pickle),
        ".pth": lambda: _read_torch(file, allow_pickle),
        ".safetensors": lambda: _read_safetensors(file),
        ".h5": lambda: _read_hdf5(file),
        ".hdf5": lambda: _read_hdf5(file),
        ".csv": lambda: _read_csv(file),
        ".pkl": lambda: _unpickle(file, allow_pickle),
    }
    if file.suffix.lower() not in readers:
        raise DataError(f"{str(file)!r}: features are read from {', '.join(readers)}")
    return readers[file.suffix.lower()]()


def _pick_array(content: Any) -> Any:
    """The array "feats" of a mapping, or its only one; anything else is returned unchanged."""
    if not isinstance(content, Mapping):
        return content
    if "feats" in content:
        return content["feats"]
    if len(content) != 1:
        raise ValueError(f"it holds {', '.join(map(str, content))}, and none is called 'feats'")
    return next(iter(content.values()))


def _read_torch(file: Path, allow_pickle: bool) -> Any:
    with open_regular(file, MAX_BYTES) as opened:
        check_unpacked(opened)
        return torch.load(opened, map_location="cpu", weights_only=not allow_pickle)


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load

    return load(read_bytes(file, MAX_BYTES))


def _read_hdf5(file: Path) -> dict[str, Any]:
    try:
        return read_hdf5(file)
    except ImportError as error:
        raise DataError(f"{str(file)!r}: HDF5 needs the package h5py: pip install 'tada-video[hdf5]'") from error


def _read_csv(file: Path) -> Array:
    lines = read_bytes(file, _MAX_CSV_BYTES).decode("utf-8-sig").splitlines()[1:]  # the header names the channels
    return np.stack([np.asarray(row, np.float32) for row in csv.reader(lines)])  # row by row, to save memory


def _unpickle(file: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise DataError(f"{str(file)!r} is a pickle, and reading one can run any code; if you trust it: --allow-pickle")
    try:
        return torch.load(file, map_location="cpu", weights_only=False)  # as TAdaConv's authors wrote theirs
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # a pickle, but not torch's
        with file.open("rb") as opened:
            return pickle.load(opened)


_CHUNK = re.compile(r"(.+)_(\d{7,})_(\d{7,})")


@holds("out")
def import_features(
    source: Path,
    out: Path,
    grid: FeatureGrid,
    *,
    durations: Mapping[str, float] | None = None,
    described_as: str,
    scores: Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> list[FeatureCard]:
    """Convert a folder of published features to feature files (``tada.localization.features.folder``).

    Files may lie at any depth, such as in a folder for each split. Files named VIDEO_START_END, with times in
    milliseconds (EPIC-KITCHENS' chunks of five seconds), are concatenated: a chunk holds the features whose middle is
    within it; one extra feature in the last chunk is dropped.

    Args:
        grid: times of the features. Published files do not contain them; their documentation does.
        durations: of the videos, in seconds; features that contradict them are refused. By default a video ends half a
            stride after its last feature.
        described_as: a description of the features' origin.
        scores: a folder of EPIC-KITCHENS-100's classification scores, with the features' file names; videos without a
            file get no scores.
        overwrite: replace other features of the same videos. Equal ones are always written again, so that an
            interrupted import can be repeated, and scores can be added.

    Raises:
        DataError: no features; a file that cannot be read; a chunk that is missing or has another length; ``out`` has
            features of another kind, or other ones while ``overwrite`` is false.
        OutputError: ``out`` cannot be written, or another process writes into it.
    """
    videos = _group_by_video(source, durations)
    score_files = {} if scores is None else {file.stem: file for file in _find_files(scores)}
    if scores is not None and not any(part.file.stem in score_files for parts in videos.values() for part in parts):
        raise DataError(
            f"none of the scores in {str(scores)!r} is called as a file of features, such as "
            f"{next(iter(videos.values()))[0].file.stem!r}; give the scores of the same videos"
        )
    before = FeatureFolder(out) if has_features(out) else None
    cards: list[FeatureCard] = []
    for name, parts in videos.items():
        features = _concatenate(parts, grid, lambda file: {"": read_feature_file(file, allow_pickle=allow_pickle)})[""]
        ending = float(grid.seconds(float(len(features))) - grid.stride_seconds / 2)
        duration = ending if durations is None else durations.get(name, ending)
        grid.check_length(len(features), duration, f"features of {name!r} in {str(source)!r}")
        found: dict[str, Array] = {}
        scored = [part._replace(file=score_files[part.file.stem]) for part in parts if part.file.stem in score_files]
        if scored:
            found = _concatenate(scored, grid, lambda file: read_epic_scores(file, allow_pickle=allow_pickle))
            if any(len(rows) != len(features) for rows in found.values()):
                raise DataError(
                    f"scores of {name!r} in {str(scores)!r}: {len(found['verb'])} rows, while there are "
                    f"{len(features)} features; take both from the same network and setting"
                )
        card = FeatureCard(
            video=name,
            duration_seconds=duration,
            grid=grid,
            num_features=len(features),
            channels=features.shape[1],
            backbone=described_as,
            settings={"imported": True},
            score_labels={head: [str(i) for i in range(rows.shape[1])] for head, rows in found.items()},
        )
        if cards and card.channels != cards[0].channels:
            raise DataError(
                f"features of {name!r} have {card.channels} channels, those of {cards[0].video!r} {cards[0].channels}; "
                "import each kind into a folder of its own"
            )
        new = VideoFeatures(card=card, features=features, scores=found)
        if before is not None:
            _check_not_lost(before, new, overwrite=overwrite)
        write_features(out, new)
        cards.append(card)
    return cards


def _check_not_lost(before: FeatureFolder, new: VideoFeatures, *, overwrite: bool) -> None:
    """Check that writing new features into a folder loses no existing ones.

    Raises:
        DataError: existing features would be lost.
    """
    if before.key != new.card.key:
        raise DataError(
            f"{str(before.folder)!r} holds features of another kind (of {before.backbone!r}, one every "
            f"{before.grid.stride_seconds:.4g} s): import into another folder, or remove this one"
        )
    name = new.card.video
    if overwrite or name not in before.cards:
        return
    old = before.read(name)
    is_kept = _is_same(old.features, new.features) and all(
        s in new.scores and _is_same(rows, new.scores[s]) for s, rows in old.scores.items()
    )
    if not is_kept:
        raise DataError(
            f"{str(before.folder)!r} holds other features or scores of {name!r} already: import into another folder, "
            "or replace them with --overwrite"
        )


def _is_same(stored: Array, new: Array) -> bool:
    """Whether stored values equal new ones, also if stored as float16."""
    with np.errstate(over="ignore"):
        rounded = new.astype(np.float16).astype(np.float32)
    return np.array_equal(stored, new) or np.array_equal(stored, rounded)


class _Part(NamedTuple):
    """A file, and the part of the video that its features are from."""

    start_seconds: float
    end_seconds: float
    file: Path


def _find_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder; give the folder of the files")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PUBLISHED_ENDINGS)
    if not files:
        raise DataError(f"{str(folder)!r} holds no features; they end in {', '.join(PUBLISHED_ENDINGS)}")
    return files


def _group_by_video(source: Path, durations: Mapping[str, float] | None) -> dict[str, list[_Part]]:
    """The files of each video, sorted by time."""
    found: dict[str, list[_Part]] = {}
    for file in _find_files(source):
        match = _CHUNK.fullmatch(file.stem)
        if match:
            found.setdefault(match[1], []).append(_Part(int(match[2]) / 1000, int(match[3]) / 1000, file))
            continue
        name = video_name(file.stem)
        if durations is not None and name not in durations and name.removeprefix("v_") in durations:
            name = name.removeprefix("v_")  # ActivityNet's features have this prefix, its annotations do not
        if name in found:
            raise DataError(f"{str(file)!r}: features of {name!r} lie there twice; keep one file of each video")
        found[name] = [_Part(0.0, math.inf, file)]
    return {name: sorted(parts) for name, parts in found.items()}


def _concatenate(parts: list[_Part], grid: FeatureGrid, read: Callable[[Path], dict[str, Array]]) -> dict[str, Array]:
    """Read the parts of a video with ``read``, and concatenate their arrays."""
    rows: dict[str, list[Array]] = {}
    ended = 0.0
    for start, end, file in parts:
        if abs(start - ended) > 1e-3:
            before = f"the chunk before ends at {ended} s" if ended else "no chunk is before it"
            raise DataError(f"{str(file)!r} starts at {start} s, {before}; one is missing")
        ended = end
        for name, chunk in read(file).items():
            if math.isfinite(end):
                expected = count_between(grid, start, end)
                if len(chunk) not in (expected, expected + (file == parts[-1].file)):
                    raise DataError(
                        f"{str(file)!r} has {len(chunk)} features, while {expected} have their middles in {start} to "
                        f"{end} s at one every {grid.stride_seconds:.4g} s; give the grid they were made with"
                    )
                chunk = chunk[:expected]
            rows.setdefault(name, []).append(chunk)
    return {name: np.concatenate(chunks) for name, chunks in rows.items()}


def count_between(grid: FeatureGrid, start_seconds: float, end_seconds: float) -> int:
    """Number of features whose middle is in [start, end)."""
    first, last = (max(int(np.ceil(float(grid.index(t)) - 1e-6)), 0) for t in (start_seconds, end_seconds))
    return last - first
