"""``python -m tada``, and the program ``tada``: the command line, guarded from its first import on.

Loading what the command line needs takes a while, in which a Ctrl-C would end in the traceback of an import. So almost
nothing is imported before something stands that receives it.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command that was asked for, and end the process."""
    if callable(signal.getsignal(signal.SIGINT)):  # not where this process was started to ignore it
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
    """Ctrl-C before anything was begun."""
    ends_line = b"\n" if os.isatty(2) else b""  # on which the terminal has printed "^C"
    try:
        os.write(2, ends_line + b"tada: interrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
