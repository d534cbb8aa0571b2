"""Shell completion of commands, options and files: a script that shtab writes from the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser

from tada.commands.arguments import RecipeFile
from tada.commands.help_screens import choices_of, in_words, options_of
from tada.system.typed_input import by_name, dashed, type_of, typed_name
from tada.training.recipe import named_recipes

Shell = Literal["bash", "zsh", "fish"]


def completion_script(shell: Shell, of_command: Mapping[str, ArgumentParser], purposes: Mapping[str, str]) -> str:
    """The completion script for a shell.

    Args:
        of_command: the parsers of the commands, by name with a dash for a space.
        purposes: the one-line help of each command.
    """
    import shtab

    program = argparse.ArgumentParser(prog="tada", allow_abbrev=False)
    commands = program.add_subparsers(dest="command")
    inside: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    first_words = [typed_name(name).partition(" ")[0] for name in of_command if " " in typed_name(name)]
    for name, parser in of_command.items():
        word, _, second = typed_name(name).partition(" ")
        if second:
            _fill(inside[word].add_parser(second, help=purposes[name], allow_abbrev=False), parser)
            continue
        own = commands.add_parser(word, help=purposes[name], allow_abbrev=False)
        if word in first_words:
            inside[word] = own.add_subparsers(dest="inner")
        _fill(own, parser)
    return str(shtab.complete(program, shell))


def _fill(own: argparse.ArgumentParser, parser: ArgumentParser) -> None:
    """Copy the arguments of one of our parsers to a plain one for shtab, with names as typed, choices and files."""
    import shtab

    for action in parser._actions:
        if not action.option_strings and action.dest != "out":
            choices = _choices(action)
            place = own.add_argument(action.dest, nargs=action.nargs, choices=choices, help=_line(action, parser))
            if choices is None:
                place.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab looks for it
    options = {name: action for action in options_of(parser) for name in map(dashed, action.option_strings)}
    for action in dict.fromkeys([*options.values(), *by_name(parser).values()]):
        names = [name for name, other in (*options.items(), *by_name(parser).items()) if other is action]
        if action.nargs == 0:
            own.add_argument(*names, action="store_true", help=_line(action, parser))
            continue
        nargs = action.nargs if action.option_strings and action.nargs == "+" else None
        option = own.add_argument(*names, nargs=nargs, choices=_choices(action), help=_line(action, parser))
        hint = type_of(action)
        if option.choices is None and (Path in (hint, *get_args(hint)) or action.dest == "run"):
            option.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab looks for it
    own.add_argument("--help-all", action="store_true", help="all options")


def _choices(action: argparse.Action) -> list[str] | None:
    if isinstance(action, RecipeFile):
        return list(named_recipes(action.task))
    hint = type_of(action)
    return choices_of(action) or (["true", "false"] if bool in (hint, *get_args(hint)) else None)


def _line(action: argparse.Action, parser: ArgumentParser) -> str:
    return in_words(action, parser).replace("%", "%%")
