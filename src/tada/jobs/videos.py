"""The videos of a job: an id and an address of each, from folders, files, CSV, Parquet or an object store."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tada.data.csv_rows import csv_columns, csv_rows, path_inside, required
from tada.errors import DataError, OptionError, VideoNotFoundError, counted, listed
from tada.system.addresses import parse_address
from tada.system.files import absolute_path
from tada.system.object_store import ObjectStore, is_address, masked, refuse_other_schemes
from tada.video.find import find_videos
from tada.video.numbered import VIDEO_EXTENSIONS

if TYPE_CHECKING:
    import pyarrow as pa

_TABLES = (".csv", ".parquet")
_COLUMNS = ("path", "id")
_MAX_ID_LENGTH = 4096  # ids of 10,000 videos stand in the header of a file of arrays, which has a limit


@dataclass(frozen=True, slots=True)
class JobVideo:
    """A video of a job."""

    id: str
    """What the results call it; no other video of the job has it."""
    address: str
    """Absolute path of the file or the folder of frames, or address in an object store."""


def list_videos(names: Sequence[str], store: ObjectStore, say: Callable[[str], None]) -> pa.Table:
    """List the videos of a job: a table with the columns ``id`` and ``address``.

    The id of a video in a folder is its path below the folder, so that it is the same wherever the command is typed; in
    a CSV or Parquet file it is the column ``id``, or else the path as it is written there; else it is the name as
    given. Ids that are paths have no "./" and no "//" in them.

    Args:
        names: files, folders, patterns such as ``a/*.mp4``, CSV or Parquet files with a column ``path``, and addresses
            such as ``s3://bucket/a.mp4`` or ``s3://bucket/videos/``.
        store: from where addresses may be fetched.
        say: called with notices, such as of a video that has two ids.

    Raises:
        DataError: two videos have the same id; or a table has no column of paths, or an empty one.
        OptionError: an address that ``store`` does not allow, or of a scheme that is not supported.
        StoreAccessError: a folder of a store cannot be listed.
        VideoNotFoundError: a folder or pattern without videos.
    """
    import pyarrow as pa

    ids: list[str] = []
    addresses: list[str] = []
    for name in names:
        for video in _videos_of(name, store, say):
            _check_text(video)
            ids.append(video.id)
            addresses.append(video.address)
    table = pa.table({"id": pa.array(ids, pa.string()), "address": pa.array(addresses, pa.string())})
    _check_distinct(table, say)
    return table


def _check_text(video: JobVideo) -> None:
    try:
        f"{video.id}{video.address}".encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{video.address!r} is not UTF-8, as rows are: rename it, or leave it out with a CSV"
        ) from error
    if "\0" in video.address:
        raise DataError(f"{video.address!r} is no path: it holds a zero byte; correct it")
    if len(video.id) > _MAX_ID_LENGTH:
        raise DataError(
            f"{masked(video.address)!r} has an id of {len(video.id)} characters, more than {_MAX_ID_LENGTH}: give it "
            "another in a CSV with a column id"
        )


def videos_in(table: pa.Table) -> Iterator[JobVideo]:
    """The rows of a table of ``list_videos``, a few thousand at a time in memory."""
    for batch in table.to_batches(max_chunksize=4096):
        columns = batch.to_pydict()
        for id, address in zip(columns["id"], columns["address"], strict=True):
            yield JobVideo(id, address)


def _videos_of(name: str, store: ObjectStore, say: Callable[[str], None]) -> Iterator[JobVideo]:
    refuse_other_schemes(name)
    if is_address(name):
        ending = Path(re.split("[?#]", name)[0]).suffix.lower()  # signed addresses have a query string
        if ending in _TABLES:
            raise OptionError(
                f"{masked(name)!r}: a table of videos is read from a local file; fetch it, and give its path"
            )
        if ending in VIDEO_EXTENSIONS:
            store.check_allowed(name)
            yield JobVideo(masked(name), name)
            return
        parsed = parse_address(name)
        folder = f"{parsed.scheme}://{parsed.place}/{parsed.path}".rstrip("/") + "/"
        for file in store.files_below(name, VIDEO_EXTENSIONS, say):
            yield JobVideo(file.address.removeprefix(folder), file.address)
    elif is_table(name):
        yield from _videos_of_table(Path(name), store)
    else:
        if not (os.path.lexists(name) or glob.has_magic(name)):
            raise VideoNotFoundError(f"{name!r} is not there: give a video, a folder, a pattern, a table or an address")
        for path in find_videos([name], say):
            is_below = Path(name).is_dir() and Path(path) != Path(name)
            id = Path(path).relative_to(name).as_posix() if is_below else _plain(path)
            yield JobVideo(id, absolute_path(path))


def _plain(path: str) -> str:
    """A path as an id: the same for "a.mp4" and "./a.mp4". ".." stays: LINK/.. may be anywhere."""
    return Path(path).as_posix()


def is_table(name: str) -> bool:
    """Whether a name is of a file that lists videos."""
    return Path(name).suffix.lower() in _TABLES and Path(name).is_file()


def _videos_of_table(file: Path, store: ObjectStore) -> Iterator[JobVideo]:
    root = absolute_path(file.parent)
    for source, cells in _parquet_rows(file) if file.suffix.lower() == ".parquet" else _csv_rows(file):
        path = required(source, cells, "path")
        id = masked(cells.get("id", ""))  # somebody may have written the address there, too
        refuse_other_schemes(path)
        if is_address(path):
            store.check_allowed(path)
            yield JobVideo(id or masked(path), path)
        elif os.path.isabs(path):
            yield JobVideo(id or _plain(path), absolute_path(path))
        else:
            yield JobVideo(id or _plain(path), path_inside(root, path, source))


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    _check_columns(file, csv_columns(file, _COLUMNS, example="path,id"))
    yield from csv_rows(file, _COLUMNS)


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            _check_columns(file, names)
            _check_types(file, parquet.schema_arrow)
            number = 0
            for batch in parquet.iter_batches(columns=[name for name in _COLUMNS if name in names]):
                for row in batch.to_pylist():
                    number += 1
                    cells = {name: "" if value is None else str(value).strip() for name, value in row.items()}
                    yield f"{file.name} row {number}", cells
            if not number:
                raise DataError(f"{file.name} has no rows; check that it is the right file")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(file)!r} cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _check_types(file: Path, schema: pa.Schema) -> None:
    import pyarrow as pa

    for name in _COLUMNS:
        for place in schema.get_all_field_indices(name):
            kind = schema.field(place).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            if not (is_text or (name == "id" and pa.types.is_integer(kind))):
                raise DataError(f"{file.name}: the column {name} is of {kind}, and should be text; convert it")


def _check_columns(file: Path, names: Sequence[str]) -> None:
    if "path" not in names:
        raise DataError(
            f"{file.name} has the columns {listed(names, at_most=8)}, and none is called path: name the one with paths "
            "or addresses of videos so (and one of ids, if there is one, id)"
        )
    twice = [name for name in _COLUMNS if list(names).count(name) > 1]
    if twice:
        raise DataError(f"{file.name}: the column {twice[0]!r} appears twice; keep one")


def _check_distinct(table: pa.Table, say: Callable[[str], None]) -> None:
    """Raise DataError where two videos have the same id; tell of videos that have two."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, addresses = more_than_once(table.column("id")), more_than_once(table.column("address"))
    if len(ids):
        id = ids[0].as_py()
        same = table.filter(pc.equal(table.column("id"), pa.scalar(id))).column("address").to_pylist()
        others = f", and {counted(len(ids) - 1, 'other id')} {'are' if len(ids) > 2 else 'is'} there more than once"
        others = others if len(ids) > 1 else ""
        if len(set(same)) == 1:
            raise DataError(f"{masked(same[0])!r} is named {len(same)} times{others}: name each video once")
        first, second = list(dict.fromkeys(same))[:2]
        raise DataError(
            f"{len(same)} videos have the id {id!r}: {masked(first)!r} and {masked(second)!r}{others}; results are "
            "kept by id: give the folder that holds them all, or a CSV with a column id"
        )
    if len(addresses):
        say(
            f"{counted(len(addresses), 'video')} {'has' if len(addresses) == 1 else 'have'} more than one id, as "
            f"{masked(addresses[0].as_py())!r}, and will be done once for each"
        )


def more_than_once(column: pa.ChunkedArray) -> pa.Array:
    """The values that a column has more than once."""
    import pyarrow.compute as pc

    counts = column.value_counts()
    return pc.struct_field(counts, "values").filter(pc.greater(pc.struct_field(counts, "counts"), 1))
