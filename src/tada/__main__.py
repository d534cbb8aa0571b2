"""``python -m tada``, and the program ``tada``: the command line, which handles Ctrl-C from its first import on.

The imports of the command line take a while, and a Ctrl-C in one of them would print a traceback. So almost nothing is
imported before a handler for it is installed.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command, and end the process."""
    if callable(signal.getsignal(signal.SIGINT)):  # not where this process was started to ignore Ctrl-C
        signal.signal(signal.SIGINT, _end_at_once)
    from tada.system.signals import end, say_last_words, told, watching
    from tada.system.terminal import occupy_closed_streams

    occupy_closed_streams()
    try:
        with watching():
            from tada.commands.cli import main as run

            code = run()
    except BaseException:
        if told() is None:
            raise
        code = say_last_words()
    end(code)


def _end_at_once(number: int, frame: object) -> None:
    """Handler of a Ctrl-C that comes before the command has begun: exit with 130."""
    ends_line = b"\n" if os.isatty(2) else b""  # the terminal has printed "^C" on this line
    try:
        os.write(2, ends_line + b"tada: interrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
