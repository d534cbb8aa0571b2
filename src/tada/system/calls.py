"""What a program gives to a call, checked against the annotations of the function: a mistake is told in one line."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from tada.errors import OptionError, nearest

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {
    "None": "None",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a finite number",
    "str": "a text",
    "Path": "a path",
    "PathLike": "a path",
}
_ANYTHING = ("Any", "VideoInput")
"""Annotations of what has a check of its own."""
_INSTEAD = {
    "top": "its answers have .top(3)",
    "top_k": "its answers have .top(3)",
    "topk": "its answers have .top(3)",
    "stream": "of a generator of videos the answers come one by one",
    "save": "its answers have .plot('a.png') and .save_video('a.mp4')",
}


def checked(**least: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function: arguments that it lacks, or of other types than it says, raise OptionError before it begins.

    Only annotations of plain types, paths and classes count; fps has a check of its own everywhere.

    Args:
        least: the least value of some of its arguments.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        kinds = {
            name: kinds
            for name, parameter in signature.parameters.items()
            if name != "fps" and parameter.kind is not parameter.VAR_KEYWORD
            if (kinds := _kinds(str(parameter.annotation)))
        }

        @functools.wraps(function)
        def calling(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise OptionError(_unfit(function.__name__, signature, kwargs, error)) from error
            for name, value in given.items():
                if name in kinds and not any(_is(value, kind) for kind in kinds[name]):
                    raise OptionError(f"{name} = {_shown(value)} should be {_in_words(kinds[name])}")
                if name in least and value is not None and value < least[name]:
                    raise OptionError(f"{name} = {value} should be at least {least[name]}")
            return function(*args, **kwargs)

        return calling

    return decorate


def _kinds(annotation: str) -> tuple[str, ...]:
    """The names of the types that an annotation allows; none where it is more than a list of such."""
    parts = [part.strip().replace("PathLike[str]", "PathLike").rpartition(".")[2] for part in annotation.split("|")]
    return tuple(parts) if all(part.isidentifier() and part not in _ANYTHING for part in parts) else ()


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind in ("int", "float"):
        if isinstance(value, bool | str | bytes):
            return False
        try:
            return math.isfinite(float(value)) if kind == "float" else operator.index(value) is not None
        except (TypeError, ValueError, RuntimeError):
            return False
    if kind in ("Path", "PathLike"):
        return isinstance(value, str | os.PathLike)
    if kind == "bool":
        return type(value).__name__ in ("bool", "bool_")
    return any(base.__name__ == kind for base in type(value).__mro__)


def _in_words(kinds: tuple[str, ...]) -> str:
    is_path = "PathLike" in kinds or "Path" in kinds
    words = [_WORDS.get(kind, f"a {kind}") for kind in kinds if not (is_path and kind == "str")]
    return " or ".join(dict.fromkeys(words))


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else f"a {type(value).__name__}"


def _unfit(function: str, signature: inspect.Signature, given: Mapping[str, object], error: TypeError) -> str:
    names = [name for name in signature.parameters if name != "self"]
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = None if takes_more else next((name for name in given if name not in names), None)
    call = f"{function}({', '.join(names)})"
    if unknown is None:
        return f"{call}: {error}"
    if unknown in _INSTEAD:
        return f"{function} has no argument {unknown!r}: {_INSTEAD[unknown]}"
    near = nearest(unknown, names)
    return f"{function} has no argument {unknown!r}{f'; did you mean {near!r}?' if near else '.'} It is {call}"
