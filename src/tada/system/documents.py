"""Read untrusted JSON and YAML files within limits, and check their values against the fields of dataclasses.

Only regular files of limited size are opened (opening a pipe could wait forever). JSON and YAML may not be nested
deeper than anything tada writes, nor hold numbers over 64 bits. Each fault is a ValueError or an OSError whose message
is written for the user; callers turn it into their own kind of error.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

MAX_CARD_BYTES = 1 << 24
"""Limit for a file about one thing: a model, a recipe, features. Ours have some kilobytes."""
MAX_LIST_BYTES = 1 << 28
"""Limit for a list of many things; the largest published annotations have 150 MB."""
MAX_YAML_BYTES = 1 << 18
"""Limit for a recipe; PyYAML reads 100 KB per second. Ours have three kilobytes."""
_MAX_DEPTH = 30
_MAX_DIGITS = 40
_MAX_INT = 1 << 63
_MAX_NODES = 20_000  # of a YAML file; an aliased node counts each time it is used

D = TypeVar("D")


# -- bytes ------------------------------------------------------------------------------------------------------------


def open_regular(file: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it is missing, may not be read, or is a folder, pipe, socket or device.
        ValueError: it is larger than ``max_bytes``.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes into it.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is a folder, pipe or device, and no regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"it has {status.st_size / 1e6:.0f} MB, and at most {max_bytes / 1e6:.0f} MB are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def read_bytes(file: str | os.PathLike[str], max_bytes: int = MAX_CARD_BYTES) -> bytes:
    """The content of a regular file; raises as ``open_regular``."""
    with open_regular(file, max_bytes) as opened:
        return opened.read()


# -- JSON -------------------------------------------------------------------------------------------------------------


def read_json(file: str | os.PathLike[str], max_bytes: int = MAX_CARD_BYTES) -> Any:
    """The content of a JSON file as Python values; raises as ``read_bytes`` and ``parse_json``."""
    return parse_json(read_bytes(file, max_bytes))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, nested too deep, or holds a number that is not finite or over 64 bits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        document = json.loads(text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_float)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    _check_depth(document)
    return document


def _parse_int(digits: str) -> int:
    value = int(digits) if len(digits) <= _MAX_DIGITS else _MAX_INT
    if not -_MAX_INT < value < _MAX_INT:
        raise ValueError(f"a number of {len(digits.lstrip('-'))} digits, {digits[:10]}...; none has so many")
    return value


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def _check_depth(document: Any) -> None:
    """Limit the nesting, so that later code may walk through the document by recursion."""
    level = [document]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(value for value in item.values() if isinstance(value, dict | list))
            elif isinstance(item, list):
                inner.extend(value for value in item if isinstance(value, dict | list))
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


# -- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Read a YAML file of texts, numbers, booleans and null, in lists and mappings. A date is read as a text.

    Raises:
        OSError: as ``read_bytes``.
        ValueError: as ``parse_json``; also for repeated keys, tags, and references that make it too large.
    """
    text = read_bytes(file, MAX_YAML_BYTES).decode("utf-8-sig")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _PlainValues(loader).value(node, 1)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class _PlainValues:
    """Converts PyYAML's nodes to values.

    PyYAML's own constructor also makes dates and sets, and never ends where a list holds itself.
    """

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._constructors = {
            "null": loader.construct_yaml_null,
            "bool": loader.construct_yaml_bool,
            "int": loader.construct_yaml_int,
            "float": loader.construct_yaml_float,
        }
        self._num_nodes = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        self._num_nodes += 1
        if depth > _MAX_DEPTH or self._num_nodes > _MAX_NODES:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep, or grows by references; write it out")
        line = node.start_mark.line + 1
        kind = node.tag.rpartition(":")[2]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, kind, line)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(inner, depth + 1) for inner in node.value]
        if not isinstance(node, yaml.MappingNode) or kind != "map":
            raise ValueError(f"line {line}: the tag {node.tag!r} is not read; write values plainly")
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise ValueError(f"line {line}: {str(key)[:40]!r} should be a name")
            if key in found:
                raise ValueError(f"line {line}: {key!r} stands there twice; keep one")
            found[key] = self.value(value_node, depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode, kind: str, line: int) -> Any:
        if kind in ("str", "timestamp", "value"):
            return node.value
        if kind not in self._constructors or not node.tag.startswith("tag:yaml.org,2002:"):
            raise ValueError(f"line {line}: the tag {node.tag!r} is not read; write values plainly")
        if len(node.value) > _MAX_DIGITS:
            raise ValueError(f"line {line}: a number of {len(node.value)} digits; none has so many")
        try:
            value = self._constructors[kind](node)
        except (ValueError, KeyError, IndexError, OverflowError) as error:  # after a tag, such as !!int x
            raise ValueError(f"line {line}: {node.value!r} is no {kind}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"line {line}: {node.value!r} is no finite number")
        return value


# -- types ------------------------------------------------------------------------------------------------------------


def typed(kind: type[D], values: Any, *, ignore: Collection[str] = ()) -> D:
    """Build a dataclass from plain values, each checked against its field's type.

    Lists become tuples and mappings become dataclasses where the field has that type. Ints stay ints in float fields.

    Args:
        ignore: names of entries that are not fields.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    found: D = _build_dataclass(kind, values, "", ignore)
    return found


def _build_dataclass(kind: type[Any], values: Any, where: str, ignore: Collection[str] = ()) -> Any:
    if not isinstance(values, Mapping):
        raise _WrongTypeError(f"{where or 'it'} should be a mapping, and is {_short_json(values)}")
    hints = _field_types(kind)  # type: ignore[arg-type]  # a class can be hashed
    unknown = [name for name in values if name not in hints and name not in ignore]
    if unknown:
        raise ValueError(f"entry {_join_names(where, str(unknown[0])[:40])!r} is not known here; remove it")
    found = {}
    for field in fields(kind):
        name = _join_names(where, field.name)
        if field.name in values:
            found[field.name] = _check_value(hints[field.name], values[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"entry {name!r} is missing")
    return kind(**found)


@cache
def _field_types(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _join_names(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _check_value(hint: Any, value: Any, where: str) -> Any:
    """Convert a value to the type of its field; ``where`` is its name for messages."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (hint is float and type(value) is int) or (isinstance(hint, type) and type(value) is hint):
        return value
    if origin in (Union, types.UnionType):
        for one in inner:
            if is_dataclass(one) and isinstance(value, dict):
                return _check_value(one, value, where)
            with suppress(_WrongTypeError):
                return _check_value(one, value, where)
    elif origin is Literal and isinstance(value, str | int) and value in inner:
        return value
    elif origin is dict and isinstance(value, dict):
        return {
            _check_value(inner[0], key, where): _check_value(inner[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    elif origin is list and isinstance(value, list):
        return [_check_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, list) and (inner[-1] is Ellipsis or len(inner) == len(value)):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _check_value(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True))
        )
    elif is_dataclass(hint) and isinstance(value, Mapping):
        assert isinstance(hint, type)
        return _build_dataclass(hint, value, where)
    raise _WrongTypeError(f"entry {where!r} should be {_describe_type(hint)}, and is {_short_json(value)}")


class _WrongTypeError(ValueError):
    """A value of another type than its field's."""


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}


def _describe_type(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe_type, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} entries"
    return _WORDS.get(hint) or ("a list" if origin in (list, tuple) else "a mapping")


def _short_json(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."
