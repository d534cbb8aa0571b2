"""Wrong documents made of right ones: each is one change away from what a reader expects.

Values are exchanged at every place of a document, for those that readers trip over; keys are left out and renamed;
texts are cut, and lines, bytes and bits in them changed. Everything is drawn from a seed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

DIGITS = "9" * 5000


class Raw(str):
    """What stands in a JSON text as it is."""


WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**63,
    10**30,
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw(DIGITS),
    Raw("2001-99-99"),
    "",
    " ",
    "x",
    "x" * 200_000,
    "\0",
    "\n",
    "=1+1",
    "../../etc/passwd",
    "nan",
    DIGITS,
    [],
    {},
    [None],
    [[]],
    ["x"],
    {"": ""},
    {"x": {"y": [1]}},
    [0] * 10_000,
    Raw("[" * 5000 + "]" * 5000),
    Raw('{"a":' * 500 + "1" + "}" * 500),
)


def dump(document: Any) -> str:
    """As JSON, ``Raw`` texts as they are."""
    raw: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(value)
            return f"@raw{len(raw) - 1}@"
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        return [marked(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(marked(document), indent=1)
    for number, value in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', value)
    return text


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document, itself first; of long lists to their first ones."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:3]):
            yield from places(value, (*path, number))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at one place."""
    if not path:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def wrong_documents(document: Any, count: int, seed: int) -> Iterator[str]:
    """JSON (which is YAML too) of ``count`` wrong documents."""
    rng = np.random.default_rng(seed)
    where = list(places(document))
    text = dump(document)
    for _ in range(count):
        path = where[rng.integers(len(where))]
        kind = rng.integers(10)
        if kind < 7:
            yield dump(changed(document, path, WRONG[rng.integers(len(WRONG))]))
        elif kind == 7 and path:
            yield dump(_without(document, path))
        elif kind == 8 and path and isinstance(path[-1], str):
            name = str(rng.choice(["", "x", path[-1].upper(), f" {path[-1]}", "x" * 5000, "__class__"]))
            yield dump(_renamed(document, path, name))
        else:
            yield wrong_text(text.encode(), rng).decode("utf-8", "surrogateescape")


def _inside(document: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    return document, inner


def _without(document: Any, path: tuple[Any, ...]) -> Any:
    document, inner = _inside(document, path)
    del inner[path[-1]]
    return document


def _renamed(document: Any, path: tuple[Any, ...], name: str) -> Any:
    document, inner = _inside(document, path)
    inner[name] = inner.pop(path[-1])
    return document


def wrong_text(content: bytes, rng: np.random.Generator) -> bytes:
    """A text that was damaged in one of many ways."""
    place = int(rng.integers(len(content) + 1))
    lines = content.split(b"\n")
    line = int(rng.integers(len(lines)))
    kind = rng.integers(15)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[place:]
    if kind == 2:
        return content[:place] + bytes(rng.integers(0, 256, int(rng.integers(1, 20)), np.uint8)) + content[place:]
    if kind == 3:
        return content[:place] + content[place + int(rng.integers(1, 50)) :]
    if kind in (4, 5):
        flipped = bytearray(content)
        for _ in range(int(rng.integers(1, 8))):
            flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 6:
        return b"\n".join([*lines[:line], lines[line], *lines[line:]])
    if kind == 7:
        return b"\n".join([*lines[:line], *lines[line + 1 :]])
    if kind == 8:
        return content.decode("utf-8", "replace").encode("utf-16")
    if kind == 9:
        return content[:place] + b"\0" + content[place:]
    if kind == 10:  # a cell, a word or a number longer than any
        return content[:place] + bytes(rng.choice([b"x", b'"', b"9", b" ", b","])) * 200_000 + content[place:]
    if kind == 11:
        return (
            content[:place]
            + bytes(rng.choice([b'"', b"'", b",", b";", b"\t", b"\r", b"-", b"&a ", b"*a"]))
            + content[place:]
        )
    if kind == 12:
        return content.replace(b"\n", b"\r")
    if kind == 13:
        numbers = [n for n, byte in enumerate(content) if 48 <= byte <= 57] or [0]
        at = numbers[int(rng.integers(len(numbers)))]
        word = rng.choice(
            [b"-1", b"nan", b"inf", b"1e999", DIGITS.encode(), b"2001-99-99", b"", b"1,5", b"9" * 20, "٣".encode()]
        )
        return content[:at] + bytes(word) + content[at + 1 :]
    return content * int(rng.integers(2, 5))


BOMBS = {
    "aliases.yaml": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    ),
    "itself.yaml": "epochs: &a [*a]\n",
    "merged.yaml": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\n<<: *b\n",
    "date.yaml": "epochs: 2001-99-99\n",
    "digits.yaml": f"epochs: {DIGITS}\n",
    "hexadecimal.yaml": f"epochs: 0x{'f' * 5000}\n",
    "minutes.yaml": f"epochs: 1{':59' * 2000}\n",
    "tag.yaml": "epochs: !!python/object/apply:os.system [ls]\n",
    "tag_int.yaml": "epochs: !!int x\n",
    "tag_binary.yaml": "epochs: !!binary x\n",
    "set.yaml": "epochs: !!set {a, b}\n",
    "deep.yaml": "epochs: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep_block.yaml": "".join(" " * i + f"k{i}:\n" for i in range(400)),
    "documents.yaml": "epochs: 3\n---\nepochs: 4\n",
    "twice.yaml": "epochs: 3\nepochs: 30\n",
    "keys.yaml": "? [a, b]\n: 1\n1: 2\nnull: 3\n",
    "long.yaml": "epochs: " + "1" * 300_000 + "\n",
    "many.yaml": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "nothing.yaml": "",
    "nan.yaml": "learning_rate: .nan\n",
    "infinite.yaml": "learning_rate: .inf\n",
    "tab.yaml": "epochs:\t3\n\tbatch_size: 4\n",
}
"""Recipes that PyYAML never ends with, or crashes of, or which mean something else than they say."""
