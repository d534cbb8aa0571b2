"""Help screens: --help shows the main options, --help-all all options by topic, in plain words.

The text of an option is where the option is defined: in ``add_argument``, or below a field of a recipe. Here it is
formatted: fields are named as they are typed ("--batch-size"), types in words, and defaults are added.
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.errors import nearest
from tada.system.typed_input import by_name, dashed, type_of

_WIDEST = 112
_TEXT_COLUMN = 28
_SHORT_CHOICES = 14  # letters


class CommandParser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not typed
    """The parser of one command, with its help."""

    first: Mapping[str, str | None] = {}
    """The options of the short help by ``dest``, with a shorter text where theirs is long; empty: the short help has
    all options."""
    topics: Mapping[str, Sequence[str]] = {}
    """The other options by topic, as patterns of ``dest``; the last topic should match all that are left."""
    inner: Mapping[str, str] = {}
    """Commands inside this one, as they are typed -> their one-line help."""

    def add_help_all(self) -> None:
        """Add the option --help-all."""
        # While it parses, jsonargparse resets ``required``, so it is noted here.
        self._required = [a for a in self._actions if a.option_strings and a.required and "." not in a.dest]
        topics = list(self.topics)
        example = f"; one topic: --help-all {topics[0]}" if topics else ""
        self.add_argument("--help-all", action=_HelpAll, help=f"all options: {', '.join(topics)}{example}")
        for action in self._actions:
            if action.dest == "print_config":
                action.help = "print all fields as they would be used, as YAML, and end"

    def format_help(self) -> str:
        """The short help."""
        return self.screen()

    def screen(self, topic: str | None = None, *, all_of_it: bool = False) -> str:
        """Help on the main options, on all of them, or on one topic."""
        screen = _Screen(self)
        screen.add_usage(_usage(self), [], [])
        if topic is None:
            screen.add_text(self.description)
            positionals = [a for a in self._actions if not a.option_strings and a.dest != "out"]
            screen.add_rows(None, [a if all_of_it else _with_text(a, self.first.get(a.dest)) for a in positionals])
        for heading, actions in self._sections(topic, all_of_it or not self.first):
            screen.add_rows(heading, actions)
        if topic is None:
            screen.add_rows(None, [_Row(name, text) for name, text in self.inner.items()])
        return screen.format_help()

    def _sections(self, topic: str | None, all_of_it: bool) -> list[tuple[str | None, list[argparse.Action]]]:
        outputs = [action for action in self._actions if not action.option_strings and action.dest == "out"]
        options = [*outputs, *options_of(self)]
        first = [_with_text(a, self.first.get(a.dest)) for a in options if not self.first or a.dest in self.first]
        if self.first:
            first.sort(key=lambda action: list(self.first).index(action.dest))
        calls = [a for a in self._actions if isinstance(a, argparse._HelpAction)]
        if not self.first:
            calls = [a for a in calls if not isinstance(a, _HelpAll)]
        if not all_of_it:
            return [(None, first), (None, [*calls])]
        left = [action for action in options if action.dest not in self.first] if self.first else []
        sections: list[tuple[str | None, list[argparse.Action]]] = []
        for name, patterns in self.topics.items():
            of_topic = [a for a in left if any(fnmatchcase(a.dest, pattern) for pattern in patterns)]
            left = [a for a in left if a not in of_topic]
            sections.append((name, of_topic))
        if topic is not None:
            return [(name, actions) for name, actions in sections if name == topic]
        own = [a for a in options if not self.first or a.dest in self.first]
        return [("main options" if sections else None, own), *sections, (None, [*calls])]


class ProgramParser(ArgumentParser):  # type: ignore[misc]  # as above
    """The parser of the program, whose help lists the commands."""

    chapters: Mapping[str, Mapping[str, str]] = {}
    """Heading -> commands as they are typed -> their one-line help."""

    def format_help(self) -> str:
        """The list of commands."""
        screen = _Screen(self)
        screen.add_usage("tada COMMAND ...", [], [])
        screen.add_text(self.description)
        for heading, commands in self.chapters.items():
            screen.add_rows(heading, [_Row(name, text) for name, text in commands.items()])
        screen.add_text("`tada COMMAND --help` explains a command; `tada --version` names this version.")
        return screen.format_help()


class _HelpAll(argparse._HelpAction):
    """``--help-all [TOPIC]``: print the help on all options, or on one topic."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.nargs = "?"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values is not None and values not in parser.topics:
            near = nearest(str(values), list(parser.topics))
            hint = f"did you mean {near!r}?" if near else "they are " + ", ".join(parser.topics)
            raise argparse.ArgumentError(self, f"the help has no topic {values!r}; {hint}")
        print(parser.screen(values, all_of_it=True), end="")
        parser.exit()


class _Row(argparse.Action):
    """A row of a help screen that is no option: a command."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(option_strings=[], dest=name, metavar=name, help=text)


class _Screen(argparse.HelpFormatter):
    """argparse's formatter, with our texts."""

    def __init__(self, parser: ArgumentParser) -> None:
        width = min(shutil.get_terminal_size().columns - 2, _WIDEST)
        super().__init__(prog=parser.prog, max_help_position=_TEXT_COLUMN, width=width)
        self._parser = parser

    def add_rows(self, heading: str | None, actions: Iterable[argparse.Action]) -> None:
        self.start_section(heading)
        self.add_arguments(actions)
        self.end_section()

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, _Row):
            return action.dest
        if not action.option_strings:
            return f"--out {_value(action)}" if action.dest == "out" else _positional(action)
        value = _value(action)
        help_names = ["-h", "--help"] if action.option_strings[0] == "-h" else [_name(action)]
        return " ".join(filter(None, (", ".join(help_names), value)))

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or "" if isinstance(action, _Row) else in_words(action, self._parser)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = ["\n".join(self._split_lines(" ".join(part.split()), width)) for part in text.split("\n\n")]
        return "\n\n".join(parts)


def options_of(parser: ArgumentParser) -> list[argparse.Action]:
    """The options of a command, without --help and --help-all."""
    return [
        action
        for one in parser._actions
        for action in _fields(one)
        if action.option_strings
        and not isinstance(action, argparse._HelpAction)
        and not action.dest.endswith(".help")
        and (action.metavar != "CONFIG" or type_of(action) is not None)  # a group of fields
    ]


def _fields(action: argparse.Action) -> list[argparse.Action]:
    """Split an option whose value is a dataclass into options of its fields; return any other unchanged."""
    kind = next((part for part in get_args(type_of(action)) if is_dataclass(part)), None)
    if kind is None or action.dest.endswith(".help"):
        return [action]
    parser = ArgumentParser()
    parser.add_class_arguments(kind, action.dest)
    return [inner for inner in parser._actions if inner.dest.startswith(f"{action.dest}.")]


def _usage(parser: CommandParser) -> str:
    positionals = [a for a in parser._actions if not a.option_strings]
    words = [f"--out {_value(a)}" if a.dest == "out" else _positional(a) for a in positionals]
    words += [
        f"{_name(a)} {_value(a)}" for a in parser._actions if a.option_strings and a.required and "." not in a.dest
    ]
    return " ".join([parser.prog, *words, "[options]"])


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name}...]", "+": f"{name}..."}.get(str(action.nargs), name)


def _name(action: argparse.Action) -> str:
    """The name of an option in help: its first one, but --device for ``accelerator``."""
    return dashed(action.option_strings[-1 if action.dest == "accelerator" else 0])


def _value(action: argparse.Action) -> str:
    """The placeholder of an option's value: "NUMBER", "a|b"."""
    if action.nargs == 0 or isinstance(action, argparse._HelpAction) or action.dest == "print_config":
        return ""
    own = action.metavar if isinstance(action.metavar, str) else ""
    if re.fullmatch(r"[A-Z][A-Z.:/x]*", own):
        return f"{own}..." if action.nargs == "+" else own
    hint = type_of(action)
    parts = [part for part in (hint, *get_args(hint)) if part is not NoneType]
    choices = "|".join(choices_of(action))
    if choices:
        return choices if len(choices) <= _SHORT_CHOICES else "NAME"
    if action.dest.endswith("_seconds"):
        return "SECONDS"
    if bool in parts:
        return "true|false"
    if get_origin(hint) is tuple or any(get_origin(part) is tuple for part in parts):
        return "LIST"
    if get_origin(hint) in (dict, Mapping):
        return "MAPPING"
    if {int, float, PositiveInt, NonNegativeInt} & set(parts):
        return "NUMBER"
    return "PATH" if Path in parts else "NAME"


def choices_of(action: argparse.Action) -> list[str]:
    """The choices of an option's value; empty where any value is allowed."""
    hint = type_of(action)
    parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return [str(choice) for part in parts for choice in get_args(part)]


def in_words(action: argparse.Action, parser: ArgumentParser) -> str:
    """The help text of an option in one line, with its default and its other names."""
    text = " ".join((action.help or "").split()).replace("``", "")
    text = text if text.endswith("...") else text.removesuffix(".")
    dests = sorted((a.dest for a in parser._actions if a.option_strings), key=len, reverse=True)
    for dest in dests:
        if "_" in dest or "." in dest:
            text = re.sub(rf"(?<![-\w.]){re.escape(dest)}(?![\w.])", f"--{dashed(dest)}", text)
    first, _, rest = text.partition(" ")
    if not re.search(r"[A-Z].*[A-Z]|^[A-Z]$", first.strip(",:;")) or first == "A":
        text = " ".join(filter(None, (first[:1].lower() + first[1:], rest)))
    choices = choices_of(action)
    if len("|".join(choices)) > _SHORT_CHOICES and not all(choice in text for choice in choices):
        text += f": {', '.join(choices[:-1])} or {choices[-1]}"
    default = _in_words(action.default)
    if action.default is None:
        text = re.sub(r"[;,] null: ", "; by default ", text)
    is_told = action.nargs == 0 or not action.option_strings or "default" in text
    notes = [f"default {default}"] if default and not is_told else []
    if action.option_strings and not isinstance(action, argparse._HelpAction):
        others = [dashed(name) for name in action.option_strings if dashed(name) != _name(action)]
        notes += [f"also {', '.join(others)}"] if others else []
    elif not action.option_strings:
        notes += [f"or {name}" for name, other in by_name(parser).items() if other is action and name != "--out"]
    return f"{text} ({'; '.join(notes)})" if notes else text


def _in_words(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:g}"
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_in_words, default))}]" if default else ""
    return str(default) if isinstance(default, str | Path) and default != argparse.SUPPRESS else ""


def _with_text(action: argparse.Action, text: str | None) -> argparse.Action:
    """A copy of the option with another help text, if one is given."""
    if text is None:
        return action
    shown = copy.copy(action)
    shown.help = text
    return shown
