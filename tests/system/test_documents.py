"""Files that others wrote are read within bounds: what is beyond them is said in a line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from mutations import BOMBS, DIGITS
from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.errors import DataError, OptionError, UserError
from tada.localization.annotations.table import read_segments
from tada.recognition.recipe import Recipe, load_recipe
from tada.system.documents import MAX_YAML_BYTES, open_regular, parse_json, read_bytes, read_json, read_yaml, typed
from tada.training.recipe import named_recipes, read_recipe, recipe_yaml

# --- files ------------------------------------------------------------------------------------------------------------


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe that nobody writes into would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "link") == b"12345"
    with pytest.raises(ValueError, match="at most 0 MB are read"):
        read_bytes(tmp_path / "file", max_bytes=4)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("model.json", ["predict", "FOLDER", "x.mp4"]),
        ("localizer.json", ["localize", "x.mp4", "--model", "FOLDER"]),
        ("recipe.yaml", ["train", "x", "--recipe", "FILE"]),
        ("list.csv", ["train", "FILE"]),
        ("train.json", ["check", "FILE"]),
        ("segments.json", ["localize", "evaluate", "--predictions", "p.json", "--segments", "FILE"]),
        ("v.json", ["localize", "train", "--features", "FOLDER", "--segments", "s.csv"]),
    ],
)
def test_a_pipe_in_the_place_of_a_document_is_named(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / name)
    (tmp_path / "folder" / "v.npz").touch()
    (tmp_path / "p.json").write_text('{"results": {}}')
    (tmp_path / "s.csv").write_text("video,start,end,label\nv,0,1,x\n")
    where = {"FOLDER": "folder", "FILE": f"folder/{name}"}
    assert main([where.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said or "folder" in said
    assert any(words in said for words in ("pipe", "no file", "not a regular file", "nor a regular file"))


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ("[" * 31 + "]" * 31, "nested more than 30 deep"),
        ('{"a":' * 31 + "1" + "}" * 31, "nested more than 30 deep"),
        (DIGITS, "a number of 5000 digits, 9999999999"),
        ("-" + DIGITS, "a number of 5000 digits"),
        ("9223372036854775808", "a number of 19 digits"),
        ("NaN", "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("1e999", "1e999 is no finite number"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_json_beyond_the_bounds(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_within_them(tmp_path: Path) -> None:
    document = {"a": [1, -(2**62), 0.5, 1e300, None, True, "x"], "b": {"c": []}}
    assert parse_json(json.dumps(document)) == document
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    assert parse_json(json.dumps(deep)) == deep
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode())
    assert read_json(tmp_path / "bom.json") == document


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOMBS)
def test_recipes_that_are_traps(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(BOMBS[name])
    with pytest.raises(OptionError, match=name):
        read_recipe(Path(name), Recipe)
    assert main(["train", "nowhere", "--recipe", name]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 2100
    assert name in said


def test_yaml_says_what_pyyaml_says(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for name in named_recipes():
        file.write_text(recipe_yaml(load_recipe(name)))
        for path in (file, named_recipes()[name]):
            assert read_yaml(path) == yaml.safe_load(path.read_text())
    file.write_text("a: &x [1, 0x1F, 1_000, .5, -1.5e+3, ~, yes, 'no', \"a\\nb\"]\nb: *x\nc: {d: '', e: 017}\n")
    assert read_yaml(file) == yaml.safe_load(file.read_text())
    file.write_text("day: 2001-01-01\n")
    assert read_yaml(file) == {"day": "2001-01-01"}
    file.write_text("")
    assert read_yaml(file) is None
    file.write_bytes(b"a" * (MAX_YAML_BYTES + 1))
    with pytest.raises(ValueError, match="at most 0 MB"):
        read_yaml(file)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"path,label\n{'x' * 200_000},a\n",
        f"path,{'x' * 200_000}\na.mp4,a\n",
        'path,label\n"a.mp4,b\n' + "c.mp4,d\n" * 50_000,
    ],
    ids=["row", "header", "open quote"],
)
def test_a_cell_longer_than_any_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(text)
    with pytest.raises(DataError, match=r"long.csv row \d+: field larger than field limit .*; save it as CSV"):
        read_dataset(tmp_path / "long.csv")
    (tmp_path / "long.csv").write_text(text.replace("path,", "video,start,end,", 1))
    with pytest.raises(DataError, match=r"long.csv row \d+: field larger than field limit"):
        read_segments(tmp_path / "long.csv")


def test_a_table_of_columns_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("path,label" + "," * 200_000 + "\n")
    with pytest.raises(DataError, match=r"wide.csv row 1 names 200002 columns, more than 1000"):
        read_dataset(tmp_path / "wide.csv")


# --- types ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    rate: float | None
    pairs: tuple[tuple[float, float], ...] = ()
    three: tuple[int, int, int] = (1, 2, 3)
    parts: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    inner: Inner | None = None
    more: tuple[Inner, ...] = ()
    any: Any = None
    on: bool = False


def test_values_of_the_right_types() -> None:
    values = {
        "name": "x",
        "rate": 5,
        "pairs": [[0, 1.5], [2, 3]],
        "parts": {"a": 1},
        "names": ["b"],
        "inner": {"size": 3},
        "more": [{"size": 1, "kind": "b"}],
        "any": [None],
        "on": True,
        "format": 1,
    }
    found = typed(Outer, values, ignore=["format"])
    assert found == Outer(
        name="x",
        rate=5,
        pairs=((0, 1.5), (2, 3)),
        parts={"a": 1},
        names=["b"],
        inner=Inner(size=3),
        more=(Inner(size=1, kind="b"),),
        any=[None],
        on=True,
    )
    assert type(found.rate) is int  # as it was written, so that hashes of it stay
    assert typed(Outer, {"name": "x", "rate": None, "inner": None}) == Outer(name="x", rate=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "entry 'name' should be a text, and is null"),
        ({"rate": "5"}, "entry 'rate' should be a number or null, and is \"5\""),
        ({"rate": True}, "entry 'rate' should be a number or null, and is true"),
        ({"pairs": [[1]]}, r"entry 'pairs\[0\]' should be a list of 2 entries, and is a list"),
        ({"pairs": {"a": 1}}, "entry 'pairs' should be a list, and is a dict"),
        ({"three": [1, 2]}, "entry 'three' should be a list of 3 entries"),
        ({"three": [1, 2, 3.5]}, r"entry 'three\[2\]' should be a whole number, and is 3.5"),
        ({"parts": {"a": "x" * 99}}, r"entry 'parts.a' should be a whole number, and is \"xxx[x]+\.\.\."),
        ({"names": "ab"}, "entry 'names' should be a list"),
        ({"inner": {}}, "entry 'inner.size' is missing"),
        ({"inner": {"size": 1, "kind": "c"}}, "entry 'inner.kind' should be one of a, b, and is \"c\""),
        ({"inner": {"size": 1, "other": 1}}, "entry 'inner.other' is not known here"),
        ({"inner": 5}, "entry 'inner' should be a mapping or null, and is 5"),
        ({"more": [5]}, r"'more\[0\]' should be a mapping, and is 5"),
        ({"on": 1}, "entry 'on' should be true or false, and is 1"),
        ({"x": 1}, "entry 'x' is not known here"),
    ],
)
def test_values_of_wrong_types_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed(Outer, {"name": "x", "rate": 1.0, **change})


def test_what_is_no_mapping_is_no_dataclass() -> None:
    with pytest.raises(ValueError, match="it should be a mapping, and is a list"):
        typed(Outer, [1])


def test_a_message_that_fills_a_screen_loses_its_middle() -> None:
    message = str(UserError("begin " + "x" * 10_000 + " end"))
    assert len(message) < 2001
    assert message.startswith("begin x")
    assert message.endswith("x end")
    assert str(UserError("short")) == "short"
