"""``tada demo``: a page in the browser."""

from __future__ import annotations

import sys
import threading

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.commands.arguments import Command, add_device, say_aside
from tada.system.signals import advise
from tada.system.terminal import say


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=str,
        nargs="*",
        default=[],
        metavar="RUN",
        help="models to ask, side by side: runs of `tada train` or `tada localize train`, OUT.onnx, weights that ship "
        "with tada, or hf-hub:OWNER/NAME; by default the best weights that ship with tada",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="the address to serve; 0.0.0.0: all of them")
    parser.add_argument(
        "--port", type=NonNegativeInt | None, default=None, help="by default the first free from 7860 on; 0: any"
    )
    parser.add_argument("--max-minutes", type=float, default=30.0, help="longest video, in minutes")
    parser.add_argument("--max-megabytes", type=PositiveInt, default=500, help="largest upload")
    add_device(parser)


def _demo(options: Namespace) -> int:
    """Open a page to try tada in a browser.

    Drop a video, or teach it your gestures. It is at http://127.0.0.1:7860, for this machine alone, until Ctrl-C, and
    calls no other machine.
    """
    from tada.demo.answers import DemoModel
    from tada.demo.page import PageLimits
    from tada.demo.server import check_gradio, find_port, serving
    from tada.loading import load
    from tada.models.weights import BEST_PACKAGED
    from tada.system.listening import is_loopback

    check_gradio()
    limits = PageLimits(max_minutes=options.max_minutes, max_megabytes=options.max_megabytes)
    port = find_port(options.host, options.port)
    runs = options.runs or [BEST_PACKAGED]
    models = [DemoModel(name=run, model=load(run, device=options.device)) for run in dict.fromkeys(runs)]
    if not is_loopback(options.host):
        say_aside(f"anyone who reaches {options.host} may open the page and upload videos")
    with serving(models, host=options.host, port=port, limits=limits) as address:
        advise(lambda state: "the page is closed, and its uploads are deleted")
        say(f"{address}  (Ctrl-C ends it)")
        sys.stdout.flush()
        threading.Event().wait()
    return 0


COMMANDS: dict[str, Command] = {
    "demo": (_demo_arguments, _demo),
}
