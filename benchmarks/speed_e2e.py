"""Time from a video file to a prediction: decoding, transforms, network.

    python benchmarks/speed_e2e.py [--out runs/speed_e2e] [--models tada2d_r50 ...] [--videos 32]

Draws videos of 10 s, 340 x 256 pixels and 30 frames a second, with a key frame every 250 frames (as encoders leave
them) and every 16 (as ``tada prepare`` does). One clip of 8 frames 8 apart, center crop of 224, is classified by a
network with random weights: tada2d_r50 as it is trained ("unfolded") and "fused", in fp32 and bf16. Each part is timed
by itself, in turns with ``Recognizer.predict``, which does all of them.

Then ``tada predict`` runs over many such files, in this process, and every call of the network is timed: videos
per second, and the fraction of the time, from its first output to its last, that the network waits for clips.

Prints both tables, writes runs/speed_e2e.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from forms import Form, build
from run_lines import ends_in_a_line, output_folder
from tada.commands.cli import main as tada
from tada.data.motion import draw_motion
from tada.models import create_model
from tada.models.weights import ModelCard, save_model
from tada.recognition.recognizer import Recognizer
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec, view_indices
from tada.video.transforms import normalize, test_crops
from tada.video.writer import write_video
from timing import PRECISIONS, Spread, device_of, interleaved, parser_of, show, synchronize, write_report

PARTS = ("decode", "transform", "network")


@ends_in_a_line()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw videos, and time one of them and many."""
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument(
        "--out", type=output_folder, default=Path("runs/speed_e2e"), help="a folder for videos and weights"
    )
    parser.add_argument("--models", nargs="+", default=["tada2d_r50"], help="of tada.list_models()")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--compiled", action="store_true", help="with rows of torch.compile")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a video lasts")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--side", type=int, default=224, help="pixels of a clip")
    parser.add_argument("--keyframe-intervals", type=int, nargs="+", default=[250, 16], help="frames")
    parser.add_argument("--videos", type=int, default=32, help="files to classify one after the other")
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    clip = ClipSpec(num_frames=arguments.frames, interval=8, crop=arguments.side, short_side=arguments.side * 8 // 7)
    report: dict[str, list[dict[str, Any]]] = {"one": [], "many": []}
    lines, many_lines = [], []
    for model in arguments.models:
        for interval in arguments.keyframe_intervals:
            video = drawn_video(arguments.out / "videos", arguments.seconds, interval)
            for form in forms_of(model, arguments):
                result = one_video(form, video, clip, arguments.rounds, device)
                shares = result["share_before_network"]
                spreads = [result[part] for part in (*PARTS, "predict")]
                lines.append((form.name, str(interval), *(s.text(1) for s in spreads), f"{shares.median:.1%}"))
                values = {key: asdict(value) for key, value in result.items()}
                report["one"].append({"row": form.name, "keyframe_interval": interval} | values)
            many = many_videos(model, video, clip, arguments, device)
            report["many"].append({"model": model, "keyframe_interval": interval} | many)
            numbers = (
                f"{many['videos_per_second']:.2f}",
                f"{many['wait_share']:.1%}",
                f"{many['longest_wait_ms']:.0f}",
            )
            many_lines.append((model, str(interval), str(arguments.videos), *numbers))
    columns = ("", "key frame every", *(f"{part} ms" for part in PARTS), "predict ms", "decode + transform")
    size = f"a video of {arguments.seconds:g} s, 340 x 256, clip {clip.num_frames} x {clip.crop} x {clip.crop}"
    show(f"One view of {size}, on {arguments.device}", columns, lines)
    columns = ("tada predict", "key frame every", "files", "videos/s", "network waits", "longest wait ms")
    show(f"Many files, on {arguments.device}", columns, many_lines)
    write_report(arguments, "speed_e2e", device, **report)


def forms_of(model: str, arguments: argparse.Namespace) -> list[Form]:
    """How the network is run."""
    return [Form(network=model, kind="unfolded")] + [
        Form(network=model, kind="fused", precision=precision, compiled=compiled)
        for precision in arguments.precisions
        for compiled in ((False, True) if arguments.compiled else (False,))
    ]


def drawn_video(folder: Path, seconds: float, keyframe_interval: int) -> Path:
    """A patch that moves over a textured scene, with noise."""
    file = folder / f"{seconds:g}s_{keyframe_interval}.mp4"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        frames = draw_motion("left", rng, num_frames=round(30 * seconds), width=340, height=256)
        write_video(file, frames, fps=30, crf=23, keyframe_interval_frames=keyframe_interval)
    return file


def card_of(model: str, clip: ClipSpec) -> ModelCard:
    """A network with Kinetics' number of classes and random weights."""
    return ModelCard(model=model, labels=tuple(f"class {i}" for i in range(400)), clip=clip, trained_from="nothing")


# --- one video --------------------------------------------------------------------------------------------------------


def one_video(form: Form, video: Path, clip: ClipSpec, rounds: int, device: torch.device) -> dict[str, Spread]:
    """Milliseconds of each part and of all together, and the share of what comes before the network."""
    model = build(form, clip.num_frames, device)
    dtype = PRECISIONS[form.precision]
    recognizer = Recognizer(InPrecision(model, dtype), card_of(form.network, clip), device=device)

    def decode() -> torch.Tensor:
        with open_video(video) as reader:
            chosen = view_indices(clip, reader.times_seconds, 0, 1, container_fps=reader.container_fps)
            return torch.from_numpy(reader.frames(chosen))

    def transform() -> torch.Tensor:
        views = test_crops(frames, short_side=clip.short_side, crop=clip.crop, num_crops=1, antialias=clip.antialias)
        return normalize(torch.stack(views).to(device), dtype=dtype)

    @torch.inference_mode()
    def answer() -> object:
        return model(clips)

    frames = decode()
    clips = transform()
    runs = {"decode": decode, "transform": transform, "network": answer}
    runs["predict"] = lambda: recognizer.predict(video, num_clips=1)
    seconds = interleaved(runs, rounds=rounds, device=device)
    before = [a + b for a, b in zip(seconds["decode"], seconds["transform"], strict=True)]
    every = [a + b for a, b in zip(before, seconds["network"], strict=True)]
    found = {name: Spread.of([1000 * s for s in values]) for name, values in seconds.items()}
    return found | {"share_before_network": Spread.of_ratio(before, every)}


class InPrecision(nn.Module):
    """A network whose input is converted to its precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model(clips.to(self.dtype))


# --- many videos ------------------------------------------------------------------------------------------------------


def many_videos(
    model: str, video: Path, clip: ClipSpec, arguments: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """``tada predict`` on copies of a video: its speed, and how long the network waits."""
    run = arguments.out / f"{model}_{clip.num_frames}x{clip.crop}"
    if not run.exists():
        save_model(run, create_model(model), card_of(model, clip))
    folder = arguments.out / f"many_{video.stem}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i in range(arguments.videos):
        shutil.copy(video, folder / f"{i:04d}.mp4")
    command = ["predict", run, folder, "--clips", "1", "--format", "csv", "--device", arguments.device]
    with noted_calls(device) as calls, redirect_stdout(StringIO()):
        if tada([str(word) for word in command]) != 0:
            raise RuntimeError(f"tada {' '.join(map(str, command))} failed")
    shutil.rmtree(folder)
    waits = [after - before for (_, before), (after, _) in pairwise(calls.times)]
    answers_from, until = (
        calls.times[0][1],
        calls.times[-1][1],
    )  # what comes before the first has nothing to overlap with
    return {
        "videos": arguments.videos,
        "network_calls": len(calls.times),
        "videos_per_second": arguments.videos * (1 - 1 / len(calls.times)) / (until - answers_from),
        "wait_share": sum(waits) / (until - answers_from),
        "longest_wait_ms": 1000 * max(waits),
    }


@dataclass(slots=True)
class Calls:
    """Start and end times of a network's calls."""

    times: list[tuple[float, float]] = field(default_factory=list)
    depth: int = 0
    started: float = 0.0


@contextmanager
def noted_calls(device: torch.device) -> Iterator[Calls]:
    """Record the times of the outermost calls of a module."""
    calls = Calls()

    def before(module: nn.Module, inputs: Any) -> None:
        if calls.depth == 0:
            calls.started = time.perf_counter()
        calls.depth += 1

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.depth -= 1
        if calls.depth == 0:
            synchronize(device)
            calls.times.append((calls.started, time.perf_counter()))

    handles = (register_module_forward_pre_hook(before), register_module_forward_hook(after))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
