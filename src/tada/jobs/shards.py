"""The output folder of a job: shards of rows (Parquet) and of arrays (safetensors), each written whole or not at all.

    job.json                            what the rows are: kind, weights, settings
    rows/done-000001.parquet            rows of videos with a result
    rows/faults-000001.parquet          rows of videos without one, and why; remove these files to try them again
    arrays/done-000001.safetensors      the arrays of the shard of the same number, by id and name: "a.mp4:features"
    summary.json                        what the last run did

Only one process, which holds the folder's lock, writes here; results of other machines come to it. A shard is complete
when its file in ``rows`` is there, which is written last: so a row is there once or not at all, whatever is killed.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tada.errors import DataError, OptionError, changed_values, listed
from tada.jobs.videos import more_than_once
from tada.jobs.work import Done, Values
from tada.system.documents import read_json
from tada.system.files import remove_dead_parts, whole_file, write_whole, writing
from tada.system.locks import is_used, names_in

if TYPE_CHECKING:
    import pyarrow as pa

_JOB, _SUMMARY = "job.json", "summary.json"
_ROWS, _ARRAYS = "rows", "arrays"
_DONE, _FAULTS = "done", "faults"
_SHARD_NAME = re.compile(r"(?:done|faults)-(\d{6,})\.parquet")


def check_same_job(out: Path, about: Mapping[str, Any]) -> None:
    """Check that a folder is new, or belongs to this job.

    Args:
        about: plain values that all rows of the folder depend on.

    Raises:
        OptionError: the folder holds another job's results, or other files.
    """
    for name in (_ROWS, _ARRAYS):
        if os.path.lexists(out / name) and not (out / name).is_dir():
            raise OptionError(f"{str(out / name)!r} is no folder, and results are written there: remove it")
    file = out / _JOB
    if not file.exists():
        if is_used(out):
            raise OptionError(f"{str(out)!r} holds other files ({names_in(out)[0]}, ...): give a folder of its own")
        return
    try:
        known = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} cannot be read ({error}); give another folder") from error
    if not isinstance(known, dict):
        raise DataError(f"{str(file)!r} is no JSON object; give another folder")
    if changed := changed_values(known, _plain(about)):
        raise OptionError(
            f"{str(out)!r} holds results of a job with another {listed(changed, quote=False)}: give another folder, or "
            "these options as they were"
        )


def begin(out: Path, about: Mapping[str, Any]) -> None:
    """Write job.json into a folder of ``check_same_job``; remove what a killed process has left half-written."""
    write_whole(out / _JOB, (json.dumps(about, indent=2) + "\n").encode())
    for name in (_ROWS, _ARRAYS):
        if (out / name).exists():
            remove_dead_parts(out / name)


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """As it is in a JSON file: lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(about))
    return found


def read_rows(out: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The complete shards of rows of a job's folder, one at a time.

    Raises:
        DataError: there is no job's folder, or a shard is damaged.
    """
    if not (out / _JOB).is_file():
        raise DataError(f"{str(out)!r} is no folder of tada predict --out or tada extract --shards: it has no {_JOB}")
    for file in _shard_files(out):
        yield _read_shard(file, columns)


def _read_shard(file: Path, columns: list[str] | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{str(file)!r} is damaged ({str(error).splitlines()[0]}); remove it, and its videos are done again"
        ) from error


def known_videos(out: Path, *, has_arrays: bool = False) -> pa.Table:
    """The columns ``id`` and ``path`` of all rows, and ``is_fault``: the video has no result.

    Args:
        has_arrays: each shard of rows with results has one of arrays.

    Raises:
        DataError: a shard is damaged, or its arrays are not there; or a video has two rows.
    """
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), ("path", pa.string())])
    tables = []
    for file in _shard_files(out):
        table = _read_shard(file, schema.names)
        try:
            table = table.cast(schema)  # another program may have written it anew, with other types of text
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"{str(file)!r} has an id or a path that is no text; remove it, and its videos are done again"
            ) from error
        arrays = out / _ARRAYS / f"{file.stem}.safetensors"
        if has_arrays and file.name.startswith(_DONE) and not arrays.is_file():
            raise DataError(f"{str(arrays)!r} is not there; remove {str(file)!r}, and its videos are done again")
        is_fault = pa.array([file.name.startswith(_FAULTS)] * len(table), pa.bool_())
        tables.append(table.append_column("is_fault", is_fault))
    found = pa.concat_tables(tables) if tables else schema.append(pa.field("is_fault", pa.bool_())).empty_table()
    twice = more_than_once(found.column("id"))
    if len(twice):
        raise DataError(
            f"{str(out / _ROWS)!r} has more than one row of {twice[0].as_py()!r}: a file there is a copy of another, "
            "or of another run; remove it"
        )
    return found


def _shard_files(out: Path) -> list[Path]:
    """The complete shards of rows; copies of them, such as "done-000001 (1).parquet", are none."""
    folder = out / _ROWS
    return sorted(file for file in folder.glob("*.parquet") if _SHARD_NAME.fullmatch(file.name))


def read_arrays(out: Path, row: Mapping[str, Any]) -> dict[str, Values]:
    """The arrays of a row of ``read_rows``: features float32 [N, D], and scores [N, K] if the network has classes.

    Raises:
        DataError: the row has none, or its file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not row.get("file"):
        raise DataError(f"{row['id']!r} has no features: {row.get('message') or 'its row names no file'}")
    file = out / _ARRAYS / row["file"]
    try:
        with safe_open(file, framework="numpy") as arrays:
            names = (f"{row['id']}:features", f"{row['id']}:scores")
            known = set(arrays.keys())
            return {name.rpartition(":")[2]: arrays.get_tensor(name) for name in names if name in known}
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{str(file)!r} cannot be read ({error}); remove it and its shard in {_ROWS}, and its videos are done again"
        ) from error


class Shards:
    """Writes results into shards, in a ``with``: what was added is written when the block ends, however it does."""

    def __init__(self, out: Path, schema: pa.Schema, *, rows_per_shard: int, seconds_per_shard: float) -> None:
        """Set up.

        Args:
            rows_per_shard: most rows of a shard.
            seconds_per_shard: after so long a shard is written, however few rows it has: a process that is killed
                loses no more work than this.
        """
        self._out, self._schema = out, schema
        self._rows_per_shard, self._seconds_per_shard = rows_per_shard, seconds_per_shard
        self._waiting: dict[str, list[Done]] = {_DONE: [], _FAULTS: []}
        self._since = time.monotonic()
        self._writing = threading.Lock()  # a last chance writes in another thread

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *fault: object) -> None:
        self.write()

    def add(self, done: Done) -> None:
        """Add a result."""
        kind = _FAULTS if done.result is None else _DONE
        self._waiting[kind].append(done)
        if len(self._waiting[kind]) >= self._rows_per_shard:
            self._write(kind)
        elif time.monotonic() - self._since >= self._seconds_per_shard:
            self.write()

    def write(self) -> None:
        """Write what was added so far."""
        for kind in self._waiting:
            self._write(kind)
        self._since = time.monotonic()

    def _write(self, kind: str) -> None:
        # Whatever interrupts a write, even just after its end, its rows are not written again under another number.
        with self._writing:
            waiting, self._waiting[kind] = self._waiting[kind], []
            if waiting:
                self._write_shard(kind, waiting)

    def _write_shard(self, kind: str, waiting: list[Done]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = _made(self._out / _ROWS)
        name = f"{kind}-{_last_number(folder, kind) + 1:06d}"
        rows = [done.row() for done in waiting]
        arrays = {
            f"{done.video.id}:{key}": array
            for done in waiting
            if done.result is not None
            for key, array in done.result.arrays.items()
        }
        if arrays:
            self._write_arrays(f"{name}.safetensors", arrays)
            rows = [row | {"file": f"{name}.safetensors"} for row in rows]
        table = pa.Table.from_pylist(rows, schema=self._schema)
        with whole_file(folder / f"{name}.parquet") as part:
            pq.write_table(table, part, compression="zstd")

    def _write_arrays(self, name: str, arrays: dict[str, Values]) -> None:
        from safetensors.numpy import save

        folder = _made(self._out / _ARRAYS)
        with whole_file(folder / name) as part:  # one that a killed run has left without rows is replaced
            part.write_bytes(save(arrays))


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json."""
    write_whole(out / _SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def _made(folder: Path) -> Path:
    with writing(folder):
        folder.mkdir(exist_ok=True)
    return folder


def _last_number(folder: Path, kind: str) -> int:
    names = [_SHARD_NAME.fullmatch(file.name) for file in folder.glob(f"{kind}-*.parquet")]
    return max((int(name[1]) for name in names if name is not None), default=0)
