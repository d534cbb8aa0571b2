"""The videos of a job: what they are called, wherever they are listed, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tada.errors import DataError, OptionError, UserError, VideoNotFoundError
from tada.jobs.videos import JobVideo, list_videos, videos_in
from tada.system.object_store import ObjectStore

STORE = ObjectStore(allowed=("s3://videos/",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a/c.mp4", "a/d.mkv", "notes.txt"):
        file = tmp_path / "clips" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "clips"


def listed(*names: object) -> list[tuple[str, str]]:
    return [(video.id, video.address) for video in videos_in(list_videos([str(name) for name in names], STORE, print))]


def test_ids_of_a_folder_are_paths_below_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(name, str(folder / name)) for name in ("a/c.mp4", "a/d.mkv", "b.mp4")]
    assert listed(folder) == expected
    monkeypatch.chdir(folder.parent)
    assert listed("clips") == listed("./clips/") == expected


def test_a_file_and_a_pattern_are_called_as_they_are_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert listed("clips/b.mp4", "clips/*/*.mkv") == [
        ("clips/b.mp4", str(folder / "b.mp4")),
        ("clips/a/d.mkv", str(folder / "a/d.mkv")),
    ]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_names_paths_addresses_and_ids(folder: Path, ending: str) -> None:
    file = folder.parent / f"list{ending}"
    rows = {"path": ["clips/b.mp4", "s3://videos/x.mp4", "gone.mp4"], "id": ["one", "", "three"], "label": ["a"] * 3}
    if ending == ".csv":
        file.write_text("path,id,label\n" + "".join(",".join(row) + "\n" for row in zip(*rows.values(), strict=True)))
    else:
        pq.write_table(pa.table(rows), file)
    assert listed(file) == [
        ("one", str(folder / "b.mp4")),
        ("s3://videos/x.mp4", "s3://videos/x.mp4"),
        ("three", str(folder.parent / "gone.mp4")),  # it becomes a row with its fault
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "file,id\na.mp4,1\n", r"list.csv has the columns .*, and none is called path"),
        ("list.csv", "path,id\n,1\n", r"list.csv row 2: no path; fill in the cell or remove the row"),
        ("list.csv", "path\n../a.mp4\n", r"list.csv row 2: '../a.mp4' leaves the folder"),
        ("list.csv", "path\n", r"list.csv has no rows below its header"),
        ("list.parquet", "no parquet", r"list.parquet' cannot be read as Parquet"),
        ("list.csv", "path\na.mp4\nb.mp4\na.mp4\n", r"a.mp4' is named 2 times: name each video once"),
        ("list.csv", "path\na.mp4\n./a.mp4\nb.mp4\nb.mp4\n", r"times, and 1 other id is there more than once: name"),
        ("list.csv", "path,id\na.mp4,1\nb.mp4,1\n", r"2 videos have the id '1': '.*a.mp4' and '.*b.mp4'; results"),
        ("list.csv", "path\ns3://other/a.mp4\n", r"s3://other/a.mp4"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        listed(tmp_path / name)


@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.string()), pa.float64()])
def test_a_parquet_column_of_another_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"path": pa.array([None], kind)}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"list.parquet: the column path is of .*, and should be text; convert it"):
        listed(tmp_path / "list.parquet")


def test_a_name_that_is_not_utf8(folder: Path) -> None:
    os.close(os.open(os.fsencode(folder) + b"/bad\xff.mp4", os.O_CREAT))
    with pytest.raises(DataError, match=r"bad.udcff.mp4' is not UTF-8, as rows are: rename it, or leave it out"):
        listed(folder)


def test_no_message_shows_the_secret_of_a_signed_address(tmp_path: Path) -> None:
    store = ObjectStore(allowed=("https://h.example/",))
    signed = [f"https://h.example/a.mp4?sig=SECRET{n}" for n in range(2)]
    (video,) = videos_in(list_videos(signed[:1], store, print))
    assert video == JobVideo("https://h.example/a.mp4?***", signed[0])
    for names in (signed, ["https://user:SECRET@h.example/a.csv"], ["ftp://u:SECRET@h/a.mp4"]):
        with pytest.raises(UserError) as told:
            list_videos(names, store, print)
        assert "SECRET" not in str(told.value)


@pytest.mark.parametrize(
    "path",
    [
        " https://me:SECRET@h.example/a.mp4?sig=SECRET",
        "\ufeffhttps://me:SECRET@h.example/a.mp4?sig=SECRET",
        "\nhttps://me:SECRET@h.example/a.mp4?sig=SECRET",
        "'https://me:SECRET@h.example/a.mp4?sig=SECRET",
        "https:/me:SECRET@h.example/a.mp4?sig=SECRET",
        "https:///me:SECRET@h.example/a.mp4?sig=SECRET",
    ],
)
def test_no_message_shows_the_secret_of_an_address_that_is_written_oddly(tmp_path: Path, path: str) -> None:
    pq.write_table(pa.table({"path": [path]}), tmp_path / "list.parquet")
    store = ObjectStore(allowed=("https://h.example/",))
    for name in (str(tmp_path / "list.parquet"), path):
        with pytest.raises(UserError) as told:
            list_videos([name], store, print)
        assert "SECRET" not in str(told.value)
    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "id": [path, path]}), tmp_path / "list.parquet")
    with pytest.raises(DataError) as told_twice:
        list_videos([str(tmp_path / "list.parquet")], store, print)
    assert "SECRET" not in str(told_twice.value)


def test_absolute_paths_in_a_table_may_lie_anywhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text(f"path\n{folder}/b.mp4\n")
    assert listed(tmp_path / "lists" / "list.csv") == [(str(folder / "b.mp4"), str(folder / "b.mp4"))]


def test_tables_without_rows_with_a_column_twice_and_with_endless_ids(tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    for table, message in (
        (pa.table({"path": pa.array([], pa.string())}), r"list.parquet has no rows; check that it is the right file"),
        (pa.Table.from_arrays([["a"], ["b"]], ["path", "path"]), r"list.parquet: the column 'path' appears twice"),
        (pa.table({"path": ["a.mp4"], "id": ["x" * 5000]}), r"has an id of 5000 characters, more than 4096: give it"),
    ):
        pq.write_table(table, file)
        with pytest.raises(DataError, match=message):
            listed(file)
    pq.write_table(pa.table({"path": pa.array(["a.mp4"], pa.string_view())}), file)
    assert listed(file) == [("a.mp4", str(tmp_path / "a.mp4"))]


def test_names_that_are_not_there(folder: Path) -> None:
    with pytest.raises(VideoNotFoundError, match=r"'nowhere.mp4' is not there: give a video, a folder"):
        listed("nowhere.mp4")
    with pytest.raises(OptionError, match=r"a table of videos is read from a local file; fetch it"):
        listed("s3://videos/list.csv")


def test_two_folders_with_the_same_names(folder: Path) -> None:
    (folder.parent / "more").mkdir()
    (folder.parent / "more" / "b.mp4").touch()
    with pytest.raises(DataError, match=r"2 videos have the id 'b.mp4': .*give the folder that holds them all"):
        listed(folder, folder.parent / "more")


def test_a_video_of_two_ids_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    said: list[str] = []
    table = list_videos(["clips", "./clips//b.mp4"], STORE, said.append)
    assert table.column("id").to_pylist() == ["a/c.mp4", "a/d.mkv", "b.mp4", "clips/b.mp4"]
    assert said == [f"1 video has more than one id, as {str(folder / 'b.mp4')!r}, and will be done once for each"]


def test_many_are_listed_in_their_order() -> None:
    ids = [f"v{number}" for number in range(10_000)]
    table = pa.table({"id": ids, "address": [f"/{id}" for id in ids]})
    assert list(videos_in(table)) == [JobVideo(id, os.path.join("/", id)) for id in ids]
