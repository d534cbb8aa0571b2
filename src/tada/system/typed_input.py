"""Messages for mistakes in options, arguments and recipe fields, in the words that the user typed.

jsonargparse, the parser, says which key of which parser does not validate against which type. Here that becomes
"--epochs must be a whole number, not 'many'". Its message is only searched for the key and the kind of mistake.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.errors import OptionError, UnknownNameError, UserError

_KEY = re.compile(r'Parser key "([^"]+)"')
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_ONE_OPTION = re.compile(r"argument ([-\w./]+): (.*)", re.DOTALL)
_OUT_OF_RANGE = re.compile(r"(?:the recipe's )?([\w.]+)(?: ?= ?(\S+?)| '(\S+)')? (must|should) (be .*)", re.DOTALL)
_DASHES = re.compile(r"-[^-\d.]")


def type_in_words(hint: Any, *, null: bool = False) -> str:
    """A type in words: "a whole number", "sgd or adamw"; with ``null``, "or null" is added for an optional type."""
    if get_origin(hint) in (Union, UnionType):
        words = [type_in_words(part) for part in get_args(hint) if part is not NoneType]
        return " or ".join([*words, *(["null"] if null and NoneType in get_args(hint) else [])])
    if get_origin(hint) is Literal:
        *first, last = map(str, get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            return f"a list such as {_example(parts[0], 3)}"
        kind = "whole numbers" if parts[0] is int else "numbers"
        return f"a list of {len(parts)} {kind}, such as {_example(parts[0], len(parts))}"
    if get_origin(hint) in (dict, Mapping):
        return "a mapping, such as '{name: 0.5}'"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
        PositiveInt: "a whole number from 1 on",
        NonNegativeInt: "a whole number from 0 on",
    }
    if is_dataclass(hint):
        return "a mapping of its fields: " + ", ".join(field.name for field in fields(hint))
    return names.get(hint, "another value")


def _example(part: Any, count: int) -> str:
    return "[" + ", ".join(str(i) if part is int else f"0.{i}" for i in range(1, count + 1)) + "]"


def wrong_value(name: str, hint: Any, value: Any, *, null: bool = False) -> str:
    """The message for a value of the wrong type: "--epochs must be a whole number, not 'many'"."""
    message = f"{name} must be {type_in_words(hint, null=null)}, not {value!r}"
    if isinstance(value, str):
        if float in (hint, *get_args(hint)) and re.fullmatch(r"[-+]?\d+,\d+", value.strip()):
            message += f": write {value.strip().replace(',', '.')}"
        choices = [str(choice) for part in (hint, *get_args(hint)) for choice in _choices(part)]
        near = get_close_matches(value, choices, n=1, cutoff=0.8)
        if near:
            message += f"; did you mean {near[0]}?"
    return message


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


# --- fields of a recipe ----------------------------------------------------------------------------------------------


def check_names(values: Mapping[Any, Any], kind: type, *, inside: str = "") -> None:
    """Check that all keys, also of inner mappings, are fields of the dataclass, and null only where it is allowed.

    Raises:
        OptionError: a key is no text, or a value is null or no mapping where it should not be.
        UnknownNameError: a key is no field; the message suggests the nearest.
    """
    hints: dict[str, Any] = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name, value in values.items():
        if not isinstance(name, str):
            raise OptionError(f"the name of a field is a word, not {name!r}")
        if name not in names:
            raise UnknownNameError.of(f"field of {inside}" if inside else "field", name, names)
        if value is None and hints[name] is not Any and NoneType not in get_args(hints[name]):
            raise OptionError(wrong_value(f"{inside}.{name}" if inside else name, hints[name], None))
        if is_dataclass(hints[name]) and isinstance(value, str | int | float | list):
            raise OptionError(wrong_value(f"{inside}.{name}" if inside else name, hints[name], value))
        if isinstance(value, Mapping) and is_dataclass(hints[name]):
            check_names(value, hints[name], inside=name)


def in_values(error: ArgumentError, parser: ArgumentParser, values: Mapping[str, Any]) -> str:
    """The message for a mistake in a recipe's fields, by their names."""
    text = _one_line(error)
    key, required = _KEY.search(text), _REQUIRED.search(text)
    if key is not None:
        action = _action(parser, key[1])
        if action is not None:
            return wrong_value(key[1], type_of(action), _find_value(values, key[1]), null=True)
    elif required is not None:
        group, _, name = required[1].split(", ")[0].rpartition(".")
        return f"{group or 'the recipe'} lacks {name}"
    return text


def _find_value(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


# --- the command line ------------------------------------------------------------------------------------------------


def typed_name(command: str) -> str:
    """A command as it is typed: "localize train"."""
    return command.replace("localize-", "localize ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Typed:
    """A typed command line: the command and its arguments."""

    command: str
    parser: ArgumentParser
    """The parser of this command."""
    arguments: Sequence[str]
    """The words after the command."""

    def __str__(self) -> str:
        """The command as it is typed."""
        return f"`tada {typed_name(self.command)}`"

    @property
    def help(self) -> str:
        """The command that shows its help."""
        return f"{str(self)[:-1]} --help`"

    def options(self) -> dict[str, argparse.Action]:
        """The options of the command, as they are typed: "--batch-size"."""
        return {
            dashed(name): action
            for action in self.parser._actions
            for name in action.option_strings
            if name.startswith("--") and not name.endswith(".help")
        }

    def inner(self, option: str) -> list[str]:
        """The options of a group's fields: "--clip.num-frames" and others of "--clip"."""
        inside = [name for name in self.options() if name.startswith(f"{option}.")]
        return inside or [f"{option}.{dashed(field.name)}" for field in self._fields(option)]

    def required_inner(self, option: str) -> list[str]:
        """Those of ``inner`` that have no default."""
        return [
            f"{option}.{dashed(field.name)}"
            for field in self._fields(option)
            if field.default is MISSING and field.default_factory is MISSING
        ]

    def _fields(self, option: str) -> list[Field[Any]]:
        options = self.options()
        hint = type_of(options[option]) if option in options else None
        return [field for part in (hint, *get_args(hint)) if is_dataclass(part) for field in fields(part)]

    def knows(self, name: str) -> bool:
        """Whether the command has an option of this name, or a mapping with such entries: "--model-options.dropout"."""
        options, group = self.options(), name.partition(".")[0]
        if name in options or group not in options:
            return name in options
        return name in self.inner(group) if self.inner(group) else True

    def positionals(self) -> list[argparse.Action]:
        """The positional arguments of the command."""
        return [action for action in self.parser._actions if not action.option_strings]

    def given(self) -> list[str]:
        """The words that were typed for the positional arguments."""
        options = self.options()
        found: list[str] = []
        words = iter(self.arguments)
        for word in words:
            if word == "--":
                return [*found, *words]
            if not word.startswith("--"):
                found.append(word)
            elif "=" not in word:
                action = options.get(dashed(word))
                if action is not None and action.nargs is None:
                    next(words, None)
        return found

    def typed_options(self) -> Iterator[tuple[str, str | None]]:
        """Each option that was typed, with its value, if one follows."""
        for i, word in enumerate(self.arguments):
            if word == "--":
                return
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                following = self.arguments[i + 1] if i + 1 < len(self.arguments) else None
                yield dashed(name), value if equals else following

    def value_of(self, option: str) -> str | None:
        """The last value that was typed for an option."""
        values = [value for name, value in self.typed_options() if name == option]
        return values[-1] if values else None


def by_name(parser: ArgumentParser) -> dict[str, argparse.Action]:
    """Arguments of a command that may also be given as options: `tada export --model RUN --out FILE`."""
    known = {name for action in parser._actions for name in action.option_strings}
    positionals = {action.dest: action for action in parser._actions if not action.option_strings}
    names = {"--model": "run", "--data": "data", "--out": "out"}
    return {name: positionals[dest] for name, dest in names.items() if dest in positionals and name not in known}


def check_dashes(typed: Typed) -> None:
    """Refuse words with one dash: options have two (except -h), and a file is written ./-NAME.

    Raises:
        OptionError: there is such a word.
    """
    for word in typed.arguments:
        if word == "--":
            return
        if _DASHES.match(word) and word != "-h":
            raise OptionError(_unknown_option(word, typed, {}))


def in_arguments(error: ArgumentError, typed: Typed, others: Mapping[str, ArgumentParser]) -> str:
    """The message for a mistake in a typed command.

    Args:
        others: the parsers of the other commands, whose options may have been meant.
    """
    text = _one_line(error)
    unknown = [name for name, _ in typed.typed_options() if not typed.knows(name)]
    if unknown:
        return _unknown_option(unknown[0], typed, others)
    key, required, one = _KEY.search(text), _REQUIRED.search(text), _ONE_OPTION.match(text)
    if key is not None:
        action = _action(typed.parser, key[1])
        if action is not None:
            return _wrong_argument(action, typed)
    if required is not None:
        return missing([name.partition(".")[2] for name in required[1].split(", ")], typed)
    if text.startswith("unrecognized arguments: "):
        extra = text.removeprefix("unrecognized arguments: ")
        return f"{typed} takes {_usage(typed.positionals())}, and {extra!r} is too much{_one_folder(typed)}"
    if one is not None:
        names = [dashed(name) for name in one[1].split("/")]
        option = next((name for name, _ in typed.typed_options() if name in names), names[0])
        if "expected" in one[2] and "argument" in one[2]:
            return f"{option} needs a value: {_help(typed.options()[option])}"
        if "ignored explicit argument" in one[2]:
            return f"{option} takes no value: leave {typed.value_of(option)!r} away"
        return one[2]
    return text


def in_words_typed(message: str, typed: Typed) -> str:
    """A message of the library with the name of a field replaced by the option that was typed for it."""
    match = _OUT_OF_RANGE.fullmatch(message)
    if match is None:
        return message
    recipe = typed.value_of("--recipe")
    name, *_, verb, rule = match.groups()
    for option, action in typed.options().items():  # aliases of an option are listed too
        own = typed.value_of(option)
        if own is not None and action.dest.split(".")[-1] == name.split(".")[-1]:
            value = "" if f", not {own}" in rule else f", not {own}"
            return f"{option} {verb} {rule}{value}"
    return message if recipe is None else f"--recipe {recipe}: {message}"


def unknown_command(word: str, commands: Sequence[str]) -> str:
    """The message that no such command exists."""
    known = [typed_name(name) for name in commands]
    if word in _COMMANDS_ELSEWHERE:
        return f"no command is called {word!r}; did you mean {_COMMANDS_ELSEWHERE[word]!r}? `tada --help` lists all"
    return f"{UnknownNameError.of('command', word, known)} (`tada --help` explains them)"


def check_inner_command(command: str, word: str, inner: Sequence[str]) -> None:
    """Refuse a first argument that looks like a misspelled inner command: `tada localize trian`.

    Raises:
        UserError: it is no file, and similar to one of these commands.
    """
    if not word.isalpha() or os.path.exists(word):
        return
    near = [name for name in (_COMMANDS_ELSEWHERE.get(word),) if name in inner] or get_close_matches(word, inner, n=1)
    if near:
        names = [f"{command} {name}" for name in (word, near[0])]
        raise UserError(f"no command is called {names[0]!r}, and no file {word!r}; did you mean {names[1]!r}?")


def no_such_option(error: ArgumentError) -> str:
    """The message for an unknown option before any command."""
    word = _one_line(error).removeprefix("unrecognized arguments: ").split(" ")[0]
    near = get_close_matches(word, ["--help", "--version"], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; options of a command stand behind its name:"
    return f"no option is called {word!r}{hint} `tada --help` lists the commands, `tada COMMAND --help` their options"


_COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("fit", "finetune", "learn"), "train"),
    **dict.fromkeys(("test", "val", "validate", "benchmark"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "recognise", "recognize", "run", "demo"), "predict"),
    **dict.fromkeys(("detect", "spot"), "localize"),
    **dict.fromkeys(("info", "env", "checks"), "doctor"),
}
"""Names of commands in other programs -> ours."""

_OPTIONS_ELSEWHERE = {
    **dict.fromkeys(("-o", "--output", "--output-dir", "--save-dir", "--work-dir", "--project"), ("--out",)),
    **dict.fromkeys(("--weights", "--checkpoint", "--ckpt", "--pretrained"), ("--init", "--model")),
    **dict.fromkeys(("-b", "--bs"), ("--batch-size",)),
    **dict.fromkeys(("-j", "--threads"), ("--num-workers",)),
    **dict.fromkeys(("--gpu", "--gpus"), ("--devices", "--device")),
    **dict.fromkeys(("--cuda", "--cpu"), ("--device",)),
    **dict.fromkeys(("--topk", "--top-k"), ("--top",)),
    **dict.fromkeys(("--conf", "--threshold", "--score-thr"), ("--min-score",)),
    **dict.fromkeys(("--json", "--csv"), ("--format",)),
    **dict.fromkeys(("--config", "--cfg"), ("--recipe",)),
    **dict.fromkeys(("--val-split", "--val-ratio"), ("--val-fraction",)),
}
"""Names of options in other programs -> ours; the first that the command has is suggested."""


def _unknown_option(word: str, typed: Typed, others: Mapping[str, ArgumentParser]) -> str:
    name = word.partition("=")[0]
    file = next((own for own in typed.arguments if own.startswith(name) and os.path.exists(own)), None)
    if file is not None:
        return f"{file!r} looks like an option; a file whose name begins with a dash is written {'./' + file!r}"
    name = name.replace("_", "-")
    near = _near(name, [*typed.options(), *by_name(typed.parser)])
    if near:
        return f"{typed} has no option {name}; did you mean {near}?"
    own = [
        str(Typed(command=command, parser=parser, arguments=()))
        for command, parser in others.items()
        if name in Typed(command=command, parser=parser, arguments=()).options()
    ]
    elsewhere = f", which is one of {' and '.join(own[:3])}" if own else ""
    return f"{typed} has no option {name}{elsewhere}; {typed.help} lists those it has"


def _near(name: str, options: Sequence[str]) -> str | None:
    """The option most similar to a name: by its letters, by one of its words, or by the initials of its words."""
    word = name.lstrip("-")
    close = get_close_matches(name, options, n=1, cutoff=0.75)
    parts = [option for option in options if len(word) > 2 and word in option.lstrip("-").split("-")]
    initials = [option for option in options if len(word) > 1 and word == "".join(re.findall(r"(?<=-)[a-z]", option))]
    elsewhere = [option for option in _OPTIONS_ELSEWHERE.get(name, ()) if option in options]
    return next(iter([*elsewhere, *close, *parts, *initials]), None)


def _wrong_argument(action: argparse.Action, typed: Typed) -> str:
    if not action.option_strings:
        return f"{_metavar(action)} must be {type_in_words(type_of(action))}"
    names = [dashed(name) for name in action.option_strings]
    option = next((name for name, _ in typed.typed_options() if name in names), names[0])
    inner = typed.inner(option)
    if inner:
        given = {name: value for name, value in typed.typed_options() if name in inner}
        if not given:
            return f"{option} has its fields one by one: {', '.join(inner)}"
        lacking = [name for name in typed.required_inner(option) if name not in given]
        if lacking:
            return f"{next(iter(given))} needs {' and '.join(lacking)} beside it"
        words = ", ".join(f"{name} {value}" for name, value in given.items())
        return f"one of {words} has a wrong value; {typed.help[:-1]}-all` explains them"
    return wrong_value(option, type_of(action), typed.value_of(option))


def missing(dests: Sequence[str], typed: Typed) -> str:
    """The message for missing arguments: which they are, and what they mean."""
    actions = [action for action in (_action(typed.parser, dest) for dest in dests) if action is not None]
    positionals = [action for action in actions if not action.option_strings]
    if len(actions) == 1 and not typed.given():
        return f"{typed} needs {_metavar(actions[0])}: {_help(actions[0])}"
    if not positionals:
        return f"{typed} needs {' and '.join(map(_metavar, actions))}; {_explained(actions[0])}"
    given = typed.given()
    there = f" given is {' '.join(map(repr, given))} alone, and {_metavar(positionals[0])} is missing;" if given else ""
    wanted = [*typed.positionals(), *(action for action in actions if action.option_strings)]
    return f"{typed} needs {_usage(wanted)};{there} {_explained(positionals[0])}"


def _usage(actions: Sequence[argparse.Action]) -> str:
    return " ".join(map(_metavar, actions)) or "no arguments"


def _explained(action: argparse.Action) -> str:
    return f"{_metavar(action)} is {_help(action)}"


def _one_folder(typed: Typed) -> str:
    if "data" in [action.dest for action in typed.positionals()]:
        return ": put all classes into one folder, or list the videos in a CSV"
    return ""


def _help(action: argparse.Action) -> str:
    """The type of an argument where that says enough, else its help text."""
    hint = type_of(action)
    parts = {hint, *get_args(hint)} if hint is not None else {str}
    says_enough = not {str, Path} & parts and not any(map(is_dataclass, parts))
    return type_in_words(hint) if says_enough else " ".join((action.help or "a value").split())


def _metavar(action: argparse.Action) -> str:
    if action.option_strings:
        return dashed(action.option_strings[0])
    name = f"{action.metavar or action.dest.upper()}{'...' if action.nargs == '+' else ''}"
    return f"--out {name}" if action.dest == "out" else name


def dashed(option: str) -> str:
    """An option as it is typed: "--batch-size"."""
    return option.partition("=")[0].replace("_", "-")


def _action(parser: ArgumentParser, dest: str) -> argparse.Action | None:
    return next((action for action in parser._actions if action.dest == dest), None)


def type_of(action: argparse.Action) -> Any:
    """The type of an option's values."""
    hint = getattr(action, "_typehint", None)  # of jsonargparse's actions
    return action.type if hint is None else hint


def _one_line(error: ArgumentError) -> str:
    return " ".join(str(error.message).split())
