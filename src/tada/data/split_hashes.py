"""Hashes of the videos that a model was trained on and of those held out, small enough to be exported with the model.

Each row of a run's list becomes six bytes of a hash of the file's identity (``tada.data.identity``), and the segment in
milliseconds: 1.5 MB for 240,000 whole files. With the hashes one can check whether a given file is known, but not
recover files. Among 240,000 known videos, a new video is wrongly taken for a known one about once in a billion times.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tada.data.identity import is_sha256, size_of
from tada.data.table import SPLITS

PART = "part"
"""Result of ``Splits.of`` for another part of a file that was trained on."""
_KEY_BYTES = 6
_WHOLE = (0, 2**32 - 1)  # milliseconds
MOST_PARTS = 2_000_000
"""Most files and segments in a text. A text that claims more is refused as damaged, before memory is allocated."""
_FORMAT = 1


class Splits:
    """The split of each file or segment of a run, by the file's content.

    Attributes:
        sizes: sizes of the known files, in bytes; None if unknown, as in exported models.
        sha256_sizes: sizes of those files that are known only by their SHA-256.
    """

    def __init__(self) -> None:
        self.sizes: set[int] | None = set()
        self.sha256_sizes: set[int] = set()
        self._parts: dict[bytes, list[tuple[int, int, str]]] = {}

    def __len__(self) -> int:
        """The number of known files and segments."""
        return sum(map(len, self._parts.values()))

    def add(self, identity: str, start_seconds: float | None, end_seconds: float | None, split: str) -> None:
        """Add a file, or a segment of it."""
        self._parts.setdefault(_key(identity), []).append((*_milliseconds(start_seconds, end_seconds), split))
        if self.sizes is not None:
            self.sizes.add(size_of(identity))
        if is_sha256(identity):
            self.sha256_sizes.add(size_of(identity))

    def of(self, identities: Iterable[str], start_seconds: float | None, end_seconds: float | None) -> str:
        """The split that a file or a segment was in.

        Args:
            identities: all identities of the file.

        Returns:
            "train" if it was trained on, or overlaps a segment that was; else the split that it was in; ``PART`` if it
            is another part of a file that was trained on; "" if it is not known.
        """
        start, end = _milliseconds(start_seconds, end_seconds)
        parts = [part for identity in identities for part in self._parts.get(_key(identity), ())]
        same = {split for first, last, split in parts if (first, last) == (start, end)}
        trained = [(first, last) for first, last, split in parts if split == "train"]
        if "train" in same or (not same and any(first < end and start < last for first, last in trained)):
            return "train"
        return min(same, default=PART if trained else "")

    def to_text(self) -> str:
        """Write as JSON, for ``from_text``."""
        rows: dict[str, list[tuple[bytes, int, int]]] = {}
        for key, parts in self._parts.items():
            for start, end, split in parts:
                rows.setdefault(split, []).append((key, start, end))
        about: dict[str, Any] = {
            "format": _FORMAT,
            "hash": f"{_KEY_BYTES} bytes of BLAKE2b of SIZE-HASH, as tada.data.identity has it",
            "splits": {split: _pack(sorted(rows[split])) for split in SPLITS if split in rows},
        }
        if self.sha256_sizes:
            about["sha256_sizes"] = sorted(self.sha256_sizes)
        return json.dumps(about)

    @classmethod
    def from_text(cls, text: str) -> Splits:
        """Read the text that ``to_text`` wrote.

        Raises:
            ValueError: the text is damaged, or from a later version of tada.
        """
        try:
            about = json.loads(text)
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']} instead of {_FORMAT}")
            splits = cls()
            splits.sizes = None
            splits.sha256_sizes = {int(size) for size in about.get("sha256_sizes", ())}
            for split, packed in about["splits"].items():
                for key, start, end in _unpack(packed):
                    splits._parts.setdefault(key, []).append((start, end, split))
        except (KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return splits


def _key(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode(), digest_size=_KEY_BYTES).digest()


def _milliseconds(start_seconds: float | None, end_seconds: float | None) -> tuple[int, int]:
    if start_seconds is None or end_seconds is None:
        return _WHOLE
    return min(round(start_seconds * 1000), _WHOLE[1]), min(round(end_seconds * 1000), _WHOLE[1])


def _pack(rows: list[tuple[bytes, int, int]]) -> dict[str, Any]:
    """Compress all keys, then all starts, then all ends; this order compresses equal times best."""
    keys, starts, ends = zip(*rows, strict=True)
    data = b"".join(keys) + np.array(starts, "<u4").tobytes() + np.array(ends, "<u4").tobytes()
    return {"videos": len(rows), "packed": base64.b64encode(zlib.compress(data, 9)).decode()}


def _unpack(packed: dict[str, Any]) -> list[tuple[bytes, int, int]]:
    count = packed["videos"]
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise ValueError(f"{count} videos")
    size = count * (_KEY_BYTES + 8)
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(packed["packed"], validate=True), size + 1)
    if len(data) != size or not stream.eof:
        raise ValueError(f"not {count} videos")
    keys = [data[i * _KEY_BYTES : (i + 1) * _KEY_BYTES] for i in range(count)]
    times: NDArray[np.uint32] = np.frombuffer(data, "<u4", offset=count * _KEY_BYTES)
    return list(zip(keys, times[:count].tolist(), times[count:].tolist(), strict=True))
