"""Normalize the typed words of a command: dashes or underscores, short names, any order.

jsonargparse needs each option in one spelling, and the recipe before the options that change it; Python 3.11's argparse
loses optional positional arguments between options. So the words are rewritten before they are parsed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from jsonargparse import ArgumentParser

from tada.errors import UserError
from tada.system.typed_input import Typed, by_name, check_inner_command, missing
from tada.training.recipe import RECIPE_FILE

_INNER_COMMANDS = {"localize": ("train", "evaluate", "import")}
"""Commands of two words: first word -> second words; their parsers are called "localize-train" and so on."""

_ALIASES = {
    "num_workers": "--workers",
    "batch_size": "--batch",
    "learning_rate": "--lr",
    "accelerator": "--device",
    "license": "--licence",
    "normaliser": "--normalizer",
}
"""Aliases of options by ``dest``: short names, and names of earlier versions."""


def add_aliases(parser: ArgumentParser) -> None:
    """Add the aliases to a command's options, where no other option has that name."""
    for action in parser._actions:
        alias = _ALIASES.get(action.dest)
        if alias is not None and action.option_strings and alias not in parser._option_string_actions:
            action.option_strings.append(alias)
            parser._option_string_actions[alias] = action


def normalized(arguments: Sequence[str], of_command: Mapping[str, ArgumentParser]) -> list[str]:
    """Rewrite the typed words for the parsers.

    Options get the spelling of their parser; the recipe comes first (for --resume the run's own), then the positional
    arguments, then the options. A call for help drops all other words.

    Raises:
        UserError: --recipe, --resume or an argument given by name has no value, another argument is missing beside it,
            or the second word of a command is misspelled.
    """
    command, *rest = arguments
    inner = _INNER_COMMANDS.get(command, ())
    if rest and rest[0] in inner:
        command, *rest = f"{command}-{rest[0]}", *rest[1:]
    elif rest and inner:
        check_inner_command(command, rest[0], inner)
    own = of_command.get(command)
    if own is None:
        return [command, *rest]
    words = _Words.of(rest, own)
    if words.help:
        return [command, *words.help]
    places = words.in_place(Typed(command=command, parser=own, arguments=words.places))
    if words.literal:
        return [command, *words.recipe, *words.options, "--", *places]
    return [command, *words.recipe, *places, *words.options]


@dataclass(kw_only=True, slots=True)
class _Words:
    """The words after a command, sorted by kind."""

    places: list[str] = field(default_factory=list)
    """Positional arguments, in their order."""
    by_name: dict[str, str] = field(default_factory=dict)
    """Positional arguments that were given as options ("--model RUN"), by ``dest``."""
    recipe: list[str] = field(default_factory=list)
    """The option --recipe and its value; for --resume the run's recipe."""
    options: list[str] = field(default_factory=list)
    """The other options, with their values."""
    help: list[str] = field(default_factory=list)
    """A call for help."""
    literal: bool = False
    """Whether there was a "--", after which no word is an option."""

    @classmethod
    def of(cls, arguments: Sequence[str], parser: ArgumentParser) -> _Words:
        """Sort the typed words of a command."""
        found = cls()
        of_resumed: list[str] = []
        known = {name.replace("_", "-"): name for action in parser._actions for name in action.option_strings}
        named = by_name(parser)
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                found.literal = True
                found.places += rest
                break
            if not _is_option(word):
                found.places.append(word)
                continue
            option, equals, value = word.partition("=")
            option = option.replace("_", "-")
            if option in ("-h", "--help", "--help-all"):
                found.help = [option, *(rest[:1] if option == "--help-all" and not equals else [])]
                break
            if option in ("--recipe", "--resume") and option in known:
                given = _value(option, equals, value, rest, _NEEDED[option])
                if option == "--recipe":
                    found.recipe = ["--recipe", given]
                    continue
                found.options += ["--resume", given]
                file = Path(given) / RECIPE_FILE
                of_resumed = ["--recipe", str(file)] if file.exists() else []
            elif option in named:
                found.by_name[named[option].dest] = _value(option, equals, value, rest, named[option].help or "a value")
            else:
                group, dot, inner = option.partition(".")
                name = known.get(option) or (
                    f"{known[group]}{dot}{inner.replace('-', '_')}" if group in known else word.partition("=")[0]
                )
                found.options.append(f"{name}{equals}{value}")
                action = parser._option_string_actions.get(name)
                if not equals and _is_switch(action) and _stands_alone(rest):
                    found.options.append("true")
                elif not equals:
                    taken = _values_of(action, group in known, rest)
                    found.options += taken
                    del rest[: len(taken)]
        found.recipe = found.recipe or of_resumed
        return found

    def in_place(self, typed: Typed) -> list[str]:
        """The positional arguments in the parser's order, including those that were given by name.

        Raises:
            UserError: one of them is missing.
        """
        if not self.by_name:
            return self.places
        others = [a for a in typed.positionals() if a.dest not in self.by_name]
        lacking = [a for a in others if a.nargs in (None, "+")][len(self.places) :]
        if lacking:
            raise UserError(missing([lacking[0].dest], typed))
        places, left = [], list(self.places)
        for argument in typed.positionals():
            if argument.dest in self.by_name:
                places.append(self.by_name[argument.dest])
            else:
                number = len(left) if argument.nargs in ("+", "*") else 1
                places += left[:number]
                del left[:number]
        return [*places, *left]


def _is_option(word: str) -> bool:
    """Whether a word is an option; "-" and negative numbers are values."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _is_switch(action: argparse.Action | None) -> bool:
    """Whether an option is true or false; its name alone, as in "--compile", means true."""
    return getattr(action, "_typehint", None) is bool


def _stands_alone(rest: Sequence[str]) -> bool:
    """Whether the word after a switch is no value of it: another option, or a file or folder that is there."""
    return not rest or _is_option(rest[0]) or (rest[0].lower() not in _SWITCHED and Path(rest[0]).exists())


def _value(option: str, equals: str, value: str, rest: list[str], needed: str) -> str:
    """The value of an option: the part after "=", else the next word, which is removed from ``rest``."""
    if equals:
        return value
    if not rest or rest[0].startswith("--"):
        raise UserError(f"{option} needs a value: {needed}")
    return rest.pop(0)


def _values_of(action: argparse.Action | None, is_known: bool, rest: Sequence[str]) -> list[str]:
    """The next words that are values of the option."""
    if action is None:
        number = 1 if is_known else 0  # an entry of a mapping, as in --model-options.dropout 0.5
    elif action.nargs in ("+", "*"):
        return list(takewhile(lambda word: not _is_option(word), rest))
    elif action.nargs == "?":  # --ray, whose value is left out where the next word is something else
        number = 1 if rest and _RAY_ADDRESS.fullmatch(rest[0]) else 0
    else:
        number = 1 if action.nargs is None else 0
    return [word for word in rest[:number] if not word.startswith("--")]


_SWITCHED = ("true", "false", "yes", "no", "on", "off")
_RAY_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.\[\]:-]+:\d+")
"""What `--ray` takes for an address."""
_NEEDED = {"--recipe": "one of `tada recipes`, or a YAML file", "--resume": "the folder of the run that goes on"}
