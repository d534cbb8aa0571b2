"""Time of localization in a long video: total, and its parts.

    python benchmarks/localize_speed.py [--out runs/localize_speed] [--seconds 600] [--models tada2d_r18 ...]

Draws a video of 340 x 256 pixels and 25 frames a second (patches in motion over textured scenes, a shaking camera and
noise, a new scene every five seconds), with a key frame every 250 frames as encoders leave them. A localizer with
random weights is used: the network's clips have 8 frames, 64/30 s long, 8/15 s apart, cut to 224 pixels; the default
ActionFormer has 20 classes and six levels. How long it takes does not depend on the weights.

The parts are timed one after the other on the video's first seconds, each as a share of the video's time; then
``Localizer.localize`` does all of it, with a separate thread for decoding and a progress bar.

Prints a table, writes runs/localize_speed.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from run_lines import ends_in_a_line, output_folder
from tada.data.motion import MOTIONS, draw_motion
from tada.data.table import Head
from tada.localization.detectors.actionformer import ActionFormerConfig, ActionFormerDetector
from tada.localization.features.extraction import clip_outputs, join_outputs, settings_as_dict
from tada.localization.features.grid import FeatureGrid
from tada.localization.localizer import Localizer, LocalizerCard
from tada.localization.recipe import LocalizationRecipe
from tada.models import create_model
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows, clips_of
from tada.video.writer import write_video
from timing import PRECISIONS, device_of, parser_of, show, synchronize, write_report

WIDTH, HEIGHT, FPS = 340, 256, 25
SCENE_SECONDS = 5
PARTS = ("decode", "transform", "network", "detector")
LABELS = Head(name="action", labels=tuple(f"class {i}" for i in range(20)))


@ends_in_a_line()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the video, time the parts and the whole for each network."""
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--out", type=output_folder, default=Path("runs/localize_speed"), help="a folder for the video")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the video lasts")
    parser.add_argument("--parts-seconds", type=float, default=60.0, help="how much of it the parts are timed on")
    parser.add_argument("--models", nargs="+", default=["tada2d_r18"], help="of tada.list_models()")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--side", type=int, default=224, help="pixels of a clip")
    parser.add_argument("--batch-size", type=int, default=16, help="clips that pass the network at a time")
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    video = drawn_video(arguments.out, arguments.seconds)
    lines, rows = [], []
    for model in arguments.models:
        for precision in arguments.precisions:
            localizer = localizer_of(model, arguments.side, precision, device)
            parts = time_parts(localizer, video, arguments, device)
            for _ in range(arguments.rounds):
                seconds = time_whole(localizer, video, f"{model} {precision}", device)
                rows.append({"model": model, "precision": precision, "seconds": seconds, "parts": parts})
                shares = [f"{parts[part]:.1%}" for part in (*PARTS, "together")]
                speed = f"{arguments.seconds / seconds:.2f}"
                lines.append((f"{model} {precision}", *shares, f"{seconds:.1f}", speed))
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else "one device"
    show(
        f"A video of {arguments.seconds:g} s, {WIDTH} x {HEIGHT}, {FPS} frames a second, on {device} ({threads})",
        ("", *PARTS, "together", "localize s", "video s per s"),
        lines,
    )
    print(f"Parts are shares of the video's time, one after the other, on its first {arguments.parts_seconds:g} s.")
    write_report(arguments, "localize_speed", device, rows=rows)


def drawn_video(folder: Path, seconds: float) -> Path:
    """Scenes one after the other, each with another motion; drawn once."""
    file = folder / f"{seconds:g}s.mp4"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    num_frames = round(seconds * FPS)

    def frames() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        with Progress() as progress:
            bar = progress.add_task("drawing", total=num_frames)
            for number, begin in enumerate(range(0, num_frames, SCENE_SECONDS * FPS)):
                count = min(SCENE_SECONDS * FPS, num_frames - begin)
                motion, rng = MOTIONS[number % len(MOTIONS)], np.random.default_rng(number)
                yield from draw_motion(motion, rng, num_frames=max(count, 2), width=WIDTH, height=HEIGHT)[:count]
                progress.advance(bar, count)

    write_video(file, frames(), fps=FPS, crf=23, keyframe_interval_frames=250)
    return file


def localizer_of(model: str, side: int, precision: str, device: torch.device) -> Localizer:
    """A localizer with random weights."""
    clip = ClipSpec(num_frames=8, interval=8, fps=30.0, short_side=side * 8 // 7, crop=side)
    card = ModelCard(model=model, labels=LABELS.labels, clip=clip, trained_from="nothing")
    network = create_model(model, num_classes=len(LABELS.labels))
    backbone = Recognizer(network, card, device=device, dtype=PRECISIONS[precision])
    settings = SlidingWindows.for_clips(clip)
    recipe = LocalizationRecipe()
    example = torch.zeros(1, 1, 8, side, side, 3, dtype=torch.uint8)
    config = ActionFormerConfig(
        in_channels=clip_outputs(backbone, example)[0].shape[1],
        num_classes=(len(LABELS.labels),),
        dim=recipe.dim,
        window=9,
        regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10_000.0)),
    )
    detector = ActionFormerDetector(config, recipe=recipe, heads=(LABELS,))
    about = LocalizerCard(
        detector=recipe.detector,
        shape=detector.config_as_dict(),
        heads=(LABELS,),
        grid=FeatureGrid.of_windows(settings),
        feature_settings=settings_as_dict(backbone, settings),
        backbone="nobody's",
    )
    return Localizer(detector, about, recipe, backbone=backbone)


def time_parts(
    localizer: Localizer, video: Path, arguments: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds that each part takes for a second of video, and all together."""
    backbone, settings = localizer.feature_maker()
    seconds = min(arguments.parts_seconds, arguments.seconds)
    decoding = 0.0
    with open_video(video) as reader:
        decode = reader.frames

        def timed(
            indices: Sequence[int], *, shrink: Callable[[np.ndarray[Any, np.dtype[np.uint8]]], Any]
        ) -> np.ndarray[Any, np.dtype[np.uint8]]:
            nonlocal decoding
            began = time.perf_counter()
            frames = decode(indices)
            decoding += time.perf_counter() - began
            return np.asarray(shrink(frames))  # which counts as cutting

        reader.frames = timed
        began = time.perf_counter()
        clips = list(clips_of(reader, backbone.clip, settings, range(settings.count(seconds))))
        both = time.perf_counter() - began
    began = time.perf_counter()
    for first in range(0, len(clips), arguments.batch_size):
        features, scores = clip_outputs(backbone, torch.stack(clips[first : first + arguments.batch_size]))
    synchronize(device)
    network = time.perf_counter() - began
    # The detector sees the whole video at once: as many features as that has, whatever they are.
    count = settings.count(arguments.seconds)
    many = [np.resize(rows.numpy(), (count, rows.shape[1])) for rows in (features, scores)]
    found = join_outputs(
        backbone, settings, *many, video="drawn", duration_seconds=arguments.seconds, backbone_sha256=""
    )
    began = time.perf_counter()
    localizer.name_detections(localizer.detect(found), "drawn", arguments.seconds)
    detector = time.perf_counter() - began
    parts = {
        "decode": decoding / seconds,
        "transform": (both - decoding) / seconds,
        "network": network / seconds,
        "detector": detector / arguments.seconds,
    }
    return parts | {"together": sum(parts.values())}


def time_whole(localizer: Localizer, video: Path, name: str, device: torch.device) -> float:
    """Seconds from the path to the segments."""
    with Progress() as progress:
        bar = progress.add_task(name, total=1.0)
        began = time.perf_counter()
        localizer.localize(video, advance=lambda part: progress.advance(bar, part))
        synchronize(device)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
