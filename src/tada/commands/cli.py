"""The command line: parse the arguments, run the command, and print its result or its error.

Exit codes: 0 done; 1 done in part (some videos could not be read, something is missing), or a file could not be read or
written, told in one line; 2 a mistake of the user, told in one line; 130 interrupted (Ctrl-C); 143 ended by SIGTERM;
129 the terminal was closed. A traceback is a bug of ours.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from yaml import YAMLError

from tada.commands import datasets, demo, library, localize, localize_train, predict, serve, train_and_evaluate
from tada.commands.arguments import Command
from tada.commands.completion import Shell, completion_script
from tada.commands.help_screens import CommandParser, ProgramParser
from tada.commands.spelling import add_aliases, normalized
from tada.errors import OutputError, ReaderGoneError, UserError
from tada.system.devices import is_first_process
from tada.system.signals import end, say_last_words, told, watching, way_on
from tada.system.terminal import accept_all_names, carrying_out, printable, told_output
from tada.system.typed_input import (
    Typed,
    check_dashes,
    in_arguments,
    in_words_typed,
    no_such_option,
    typed_name,
    unknown_command,
)


def _completion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", type=Shell, metavar="SHELL", help="the shell that you type in")


def _completion(options: Namespace) -> int:
    """Print what lets a shell complete commands and options.

    Of bash, in ~/.bashrc: eval "$(tada completion bash)"

    Of zsh, where this folder is in $fpath: tada completion zsh > ~/.zsh/completions/_tada

    Of fish: tada completion fish > ~/.config/fish/completions/tada.fish
    """
    of_command = _parsers()[1]
    purposes = {name: str(parser.description).splitlines()[0] for name, parser in of_command.items()}
    print(completion_script(options.shell, of_command, purposes))
    return 0


COMMANDS: dict[str, Command] = {
    **train_and_evaluate.COMMANDS,
    **predict.COMMANDS,
    **demo.COMMANDS,
    **datasets.COMMANDS,
    **localize.COMMANDS,
    **localize_train.COMMANDS,
    **serve.COMMANDS,
    **library.COMMANDS,
    "completion": (_completion_arguments, _completion),
}
"""Commands by name, with a dash for a space: "localize-train"."""

_CHAPTERS = {
    "what happens in videos": {**train_and_evaluate.COMMANDS, **predict.COMMANDS, **demo.COMMANDS},
    "data sets": datasets.COMMANDS,
    "when it happens": {**localize.COMMANDS, **localize_train.COMMANDS},
    "models and this machine": {**serve.COMMANDS, **library.COMMANDS, "completion": COMMANDS["completion"]},
}
"""Commands under the headings of ``tada --help``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with told_output(), watching(), carrying_out(arguments):
        accept_all_names()
        try:
            return _run(arguments)
        except BaseException as error:
            # After a signal, any exception comes from the interruption.
            if not isinstance(error, KeyboardInterrupt) and told() is None:
                raise
            return say_last_words()


def _run(arguments: Sequence[str]) -> int:
    typed: Typed | None = None
    code = 2
    try:
        parser, of_command = _parsers()
        words = normalized(arguments, of_command) if arguments else ["--help"]
        if not words[0].startswith("-"):
            typed = _typed(words, of_command)
        try:
            parsed = parser.parse_args(words)
        except SystemExit:
            if told() is not None:
                raise
            code = 0  # help was printed
        else:
            run = COMMANDS[parsed.command][1]
            code = run(parsed[parsed.command])
        print(end="", flush=True)  # a failed write (a full disk) raises here
        return code
    except ArgumentError as error:
        message = in_arguments(error, typed, of_command) if typed else no_such_option(error)
    except ReaderGoneError:
        return 0
    except UserError as error:
        if told() is not None:
            raise
        code = 1 if isinstance(error, OutputError) else 2
        message = in_words_typed(str(error), typed) if typed else str(error)
        message = "; ".join(filter(None, (message, way_on())))
    except OSError as error:
        if told() is not None:
            raise
        message, code = _describe_os_error(error), 1
    if is_first_process():  # the other ranks have the same error
        print(f"tada: {printable(message)}", file=sys.stderr)
    return code


def _describe_os_error(error: OSError) -> str:
    """The error of a file or a connection in one line; it is no bug of ours."""
    reason = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if isinstance(error, PermissionError):
        reason += "; give this user the rights to it, and to the folders above it"
    if error.filename is not None:
        return f"{error.filename!r}: {reason}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{reason} ({Path(where.filename).name}, line {where.lineno})"


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the program, and the parsers of the commands by name."""
    # jsonargparse parses each value as YAML first, and fails on file names that are no UTF-8 unless told to go on.
    set_loader("yaml", get_loader("yaml"), (YAMLError, UnicodeEncodeError))
    parser = ProgramParser(
        prog="tada",
        description="Understand video with temporally-adaptive convolutions (TAdaConv).",
        exit_on_error=False,
        allow_abbrev=False,
        version=_version(),
    )
    subcommands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND")
    of_command, purposes = {}, {}
    for name, (add_arguments, run) in COMMANDS.items():
        assert run.__doc__ is not None
        own = CommandParser(description=inspect.cleandoc(run.__doc__), exit_on_error=False, allow_abbrev=False)
        add_arguments(own)
        own.add_help_all()
        add_aliases(own)
        subcommands.add_subcommand(name, own)
        of_command[name], purposes[typed_name(name)] = own, run.__doc__.splitlines()[0]
        own.prog = f"tada {typed_name(name)}"
    parser.chapters = {
        heading: {typed_name(name): purposes[typed_name(name)] for name in chapter}
        for heading, chapter in _CHAPTERS.items()
    }
    for name, own in of_command.items():
        own.inner = {f"tada {typed}": text for typed, text in purposes.items() if typed.startswith(f"{name} ")}
    return parser, of_command


def _typed(words: Sequence[str], of_command: Mapping[str, ArgumentParser]) -> Typed:
    """The typed command and its arguments.

    Raises:
        UserError: there is no such command, or a file name looks like an option.
    """
    if words[0] not in of_command:
        raise UserError(unknown_command(words[0], list(of_command)))
    typed = Typed(command=words[0], parser=of_command[words[0]], arguments=words[1:])
    check_dashes(typed)
    return typed


def _version() -> str:
    from importlib.metadata import version

    return version("tada-video")


if __name__ == "__main__":
    end(main())
