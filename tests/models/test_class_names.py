"""The lists of class names, against literal entries at places that published code and data state."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tada.errors import OptionError, UnknownNameError
from tada.models.class_names import class_lists, class_names

ROOT = Path(__file__).parents[2]
SORTED = ("activitynet", "hmdb51", "k400", "ssv2")
"""Lists in alphabetical order; the others are in the order of their published numbers."""


@pytest.mark.parametrize(
    ("name", "count", "entries"),
    [
        ("activitynet", 200, {0: "Applying sunscreen", 93: "Mooping floor", 102: "Plataform diving", 199: "Zumba"}),
        ("epic100_nouns", 300, {0: "tap", 18: "board:chopping", 250: "machine:sous:vide", 299: "extract:vanilla"}),
        ("epic100_verbs", 97, {0: "take", 1: "put", 2: "wash", 6: "turn-on", 79: "let-go", 96: "unfreeze"}),
        ("hmdb51", 51, {0: "brush_hair", 14: "flic_flac", 22: "kiss", 50: "wave"}),
        # The published ids of the 1000 synsets: n01440764, n02012849 (of the bird), n03126707, n15075141.
        ("imagenet1k", 1000, {0: "tench", 134: "crane bird", 517: "crane", 999: "toilet tissue"}),
        ("k400", 400, {0: "abseiling", 161: "hurling (sport)", 290: "sharpening knives", 399: "zumba"}),
        ("ucf101", 101, {0: "ApplyEyeMakeup", 34: "Hammering", 35: "HammerThrow", 47: "JumpRope", 100: "YoYo"}),
    ],
)
def test_counts_and_entries(name: str, count: int, entries: dict[int, str]) -> None:
    names = class_names(name)
    assert len(names) == len(set(names)) == count
    assert all(label and label == label.strip() and label.isprintable() for label in names)
    assert {number: names[number] for number in entries} == entries
    assert (list(names) == sorted(names)) == (name in SORTED)
    # UCF101's published classInd.txt is sorted without regard to case.
    assert name != "ucf101" or list(names) == sorted(names, key=str.lower)


def test_something_has_the_numbers_that_the_released_code_swaps_when_it_mirrors() -> None:
    names = class_names("ssv2")
    assert len(names) == len(set(names)) == 174
    assert list(names) == sorted(names)
    for left, right in ((86, 87), (93, 94), (166, 167)):
        words = {"left": "right", "right": "left"}
        assert " ".join(words.get(word, word) for word in names[left].split()) == names[right]
    assert names[0] == "Approaching something with your camera"
    assert names[173] == "Wiping something off of something"
    assert not any("[" in name for name in names)


def test_a_list_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match=r"no list of class names is called 'k600'; did you mean 'k400'"):
        class_names("k600")
    with pytest.raises(OptionError, match=r"name = 400 should be a text"):
        class_names(400)  # type: ignore[arg-type]


def test_every_list_is_in_the_wheel() -> None:
    """The build packs all files of the packages but those that .gitignore names."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/tada"]}
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    files = sorted((ROOT / "src/tada/models/class_lists").iterdir())
    assert [file.stem for file in files] == class_lists()
    assert {file.suffix for file in files} == {".txt"}
    for file in files:
        assert not any(fnmatch(part, pattern) for part in file.relative_to(ROOT).parts for pattern in ignored)
