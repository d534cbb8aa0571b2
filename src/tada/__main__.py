"""``python -m tada``, and the program ``tada``: the command line, guarded from its first import on.

Loading what the command line needs takes a while, in which a Ctrl-C would end in the traceback of an import.
"""

from __future__ import annotations

from tada.interruption import end, say_last_words, told, watching


def main() -> None:
    """Run the command that was asked for, and end the process."""
    with watching():
        try:
            from tada.cli import main as run

            code = run()
        except BaseException:
            if told() is None:
                raise
            code = say_last_words()
    end(code)


if __name__ == "__main__":
    main()
