"""Check the arguments of calls to the library against the function's annotations; a mistake is told in one line."""

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
_ANYTHING = ("Any", "VideoInput", "Where")
"""Annotations of arguments that have a check of their own."""
_INSTEAD = {
    "top": "its answers have .top(3)",
    "top_k": "its answers have .top(3)",
    "topk": "its answers have .top(3)",
    "stream": "give a generator of videos, and the answers come one by one",
    "save": "its answers have .plot('a.png') and .save_video('a.mp4')",
}


"""Arguments that users of other libraries try, and what to use instead."""


def checked(**least: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function to check its arguments: missing, unknown or wrongly typed ones raise OptionError.

    Only annotations of plain types, paths and classes are checked; fps has a check of its own everywhere.

    Args:
        least: the least allowed values of arguments, by name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        kinds = {
            name: kinds
            for name, parameter in signature.parameters.items()
            if name != "fps" and parameter.kind is not parameter.VAR_KEYWORD
            if (kinds := _type_names(str(parameter.annotation)))
        }

        @functools.wraps(function)
        def call_checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise OptionError(_describe_misfit(function.__name__, signature, kwargs, error)) from error
            for name, value in given.items():
                if name in kinds and not any(_has_type(value, kind) for kind in kinds[name]):
                    raise OptionError(f"{name} = {_short_repr(value)} should be {_describe_types(kinds[name])}")
                if name in least and value is not None and value < least[name]:
                    raise OptionError(f"{name} = {value} should be at least {least[name]}")
            return function(*args, **kwargs)

        return call_checked

    return decorate


def _type_names(annotation: str) -> tuple[str, ...]:
    """The names of the types in a union; empty where the annotation has a part that is not checked."""
    parts = [part.strip().replace("PathLike[str]", "PathLike").rpartition(".")[2] for part in annotation.split("|")]
    return tuple(parts) if all(part.isidentifier() and part not in _ANYTHING for part in parts) else ()


def _has_type(value: Any, kind: str) -> bool:
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


def _describe_types(kinds: tuple[str, ...]) -> str:
    is_path = "PathLike" in kinds or "Path" in kinds
    words = [_WORDS.get(kind, f"a {kind}") for kind in kinds if not (is_path and kind == "str")]
    return " or ".join(dict.fromkeys(words))


def _short_repr(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else f"a {type(value).__name__}"


def _describe_misfit(function: str, signature: inspect.Signature, given: Mapping[str, object], error: TypeError) -> str:
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
