"""``tada serve``: a trained model over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.commands.arguments import Command, add_device, check_run
from tada.errors import OptionError
from tada.system.terminal import say

if TYPE_CHECKING:
    from tada.serving.server import Running

_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""What the extra installs: name in imports -> on the package index."""


def _serve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=str,
        help="the folder of a run of `tada train` or `tada localize train`, OUT.onnx, weights that ship with tada, or "
        "hf-hub:OWNER/NAME",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; 0.0.0.0: all of them")
    parser.add_argument("--port", type=NonNegativeInt, default=8000, help="port to listen at; 0: any that is free")
    parser.add_argument("--max-megabytes", type=float, default=500.0, help="largest video file, in MB")
    parser.add_argument("--max-video-seconds", type=float, default=600.0, help="longest video")
    parser.add_argument(
        "--max-memory-megabytes", type=float, default=2048.0, help="memory for decoding one video, in MB"
    )
    parser.add_argument("--decode-seconds", type=float, default=30.0, help="time for decoding one video")
    parser.add_argument("--upload-seconds", type=float, default=300.0, help="time for one upload")
    parser.add_argument("--answer-seconds", type=float, default=300.0, help="time from the upload's end to the answer")
    parser.add_argument("--concurrent", type=PositiveInt, default=4, help="videos that are processed at a time")
    parser.add_argument("--max-waiting", type=NonNegativeInt, default=64, help="requests that may wait for these")
    parser.add_argument("--max-batch", type=PositiveInt, default=16, help="clips that pass the network at a time")
    add_device(parser)


def _serve(options: Namespace) -> int:
    """Answer over HTTP what happens in videos, and when.

    POST a video to /predict, and get the JSON that `tada predict` or `tada localize` prints. /docs explains it.
    """
    missing = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    if missing:
        raise OptionError(f"`tada serve` needs {', '.join(missing)}: pip install 'tada-video[serve]'")
    from tada.serving.limits import Limits

    limits = Limits(**{name: options[name] for name in Limits.__dataclass_fields__})
    check_run(options.run, [], command="tada serve")
    from tada.loading import load
    from tada.serving.server import serve
    from tada.system.listening import is_loopback

    def started(running: Running) -> None:
        say(f"{options.run} answers at {running.url}/predict; {running.url}/docs explains how. Ctrl-C ends it")
        if not is_loopback(options.host):
            say("Whoever reaches this machine can send it videos: there is no password")

    serve(
        lambda: load(options.run, device=options.device), limits, host=options.host, port=options.port, started=started
    )
    return 0


COMMANDS: dict[str, Command] = {
    "serve": (_serve_arguments, _serve),
}
