"""The command line: reads arguments, calls the library, prints what came of it.

Exit codes: 0 done; 1 done in part (some videos could not be read, something is missing); 2 a mistake in what was
asked, said in one line; 130 interrupted (Ctrl-C); 143 told to end by SIGTERM, 129 because the terminal was closed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from tada.commands import datasets, library, localization, recognition
from tada.commands.arguments import Command
from tada.errors import UserError
from tada.interruption import end, say_last_words, told, watching, way_on
from tada.localization.recipe import LocalizationRecipe
from tada.machine import Machine, is_first_process
from tada.recipe import RECIPE_FILE, Recipe

COMMANDS: dict[str, Command] = {
    **recognition.COMMANDS,
    **datasets.COMMANDS,
    **localization.COMMANDS,
    **library.COMMANDS,
}
"""In the order of ``tada --help``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code says how it went."""
    with watching():
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except BaseException as error:
            # What is raised after a signal came of it: work that was torn apart says many things.
            if not isinstance(error, KeyboardInterrupt) and told() is None:
                raise
            return say_last_words()


def _run(arguments: Sequence[str]) -> int:
    try:
        parsed = _parser().parse_args(_normalised(arguments) if arguments else ["--help"])
        run = COMMANDS[parsed.command][1]
        return run(parsed[parsed.command])
    except ArgumentError as error:
        message = " ".join(str(error.message).split())
    except UserError as error:
        if told() is not None:
            raise
        message = "; ".join(filter(None, (str(error), way_on())))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stdout = None  # nothing is left to flush
        return 0
    if is_first_process():  # the others meet the same mistake
        print(f"tada: {message}", file=sys.stderr)
    return 2


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="tada",
        description="Understand video with temporally-adaptive convolutions (TAdaConv).",
        exit_on_error=False,
        allow_abbrev=False,
        version=_version(),
    )
    subcommands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, run) in COMMANDS.items():
        assert run.__doc__ is not None
        own = ArgumentParser(description=run.__doc__, exit_on_error=False, allow_abbrev=False)
        add_arguments(own)
        subcommands.add_subcommand(name, own, help=run.__doc__.splitlines()[0])
    return parser


def _version() -> str:
    from importlib.metadata import version

    return version("tada-video")


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Let fields be written with dashes, and read the recipe before the options that change it.

    A run that is resumed brings its own recipe.
    """
    names = {field.name for kind in (Recipe, LocalizationRecipe, Machine) for field in fields(kind)}
    if arguments[0] == "localize" and arguments[1:2] and arguments[1] in ("train", "evaluate", "import"):
        arguments = [f"localize-{arguments[1]}", *arguments[2:]]
    recipe: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        field = option.removeprefix("--").replace("-", "_")
        if option == "--recipe":
            recipe = [argument] if equals else [argument, *islice(rest, 1)]
        elif option == "--resume":
            run = value if equals else next(rest, "")
            others += ["--resume", run]
            file = Path(run) / RECIPE_FILE
            recipe = recipe or (["--recipe", str(file)] if file.exists() else [])
        elif option.startswith("--") and field.split(".")[0] in names:
            others.append(f"--{field}{equals}{value}")
        else:
            others.append(argument)
    return others[:1] + recipe + others[1:]


if __name__ == "__main__":
    end(main())
