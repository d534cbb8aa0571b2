"""Processor time of a training clip, from original videos and from a copy by `tada prepare`.

    python benchmarks/loader.py [DATA] --out OUT [--clips 60]

DATA is any data set that tada reads (a folder, clips.csv, ...); without it, videos are drawn: 1280x720, 30 frames a
second, 10 seconds, a key frame every 250 frames, moving textures and noise, as from phone cameras. The copy is written
to OUT/prepared. Both sets are read by the same loader, a clip of each video in turn: 8 frames 8 apart (Kinetics), and 8
of equal parts (Something-Something). Times are processor times, so other work on the machine changes them little. Then
the loader's worker processes run beside training steps of tada2d_tiny, to see which of the two waits. Prints a table,
writes OUT/loader.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from run_lines import ends_in_a_line, output_folder
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, ResumableBatches, ResumableLoader, TrainingClips, open_labeled
from tada.data.prepare import PrepareOptions, prepare
from tada.data.table import VideoTable
from tada.models import create_model
from tada.video.sampling import ClipSpec, train_indices
from tada.video.transforms import normalize
from tada.video.writer import write_video

SPECS = {
    "8x8": ClipSpec(num_frames=8, interval=8),
    "8 segments": ClipSpec(num_frames=8, sampling="segment"),
}


@ends_in_a_line()
def main() -> None:
    """Draw or read the data, prepare them, and measure both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a data set; without it, videos are drawn")
    parser.add_argument("--out", type=output_folder, default=Path("runs/loader"))
    parser.add_argument("--clips", type=int, default=24, help="clips to measure of each set and sampling")
    parser.add_argument("--videos", type=int, default=4, help="videos to draw")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the drawn videos last")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    data = arguments.data
    if data is None:
        data = arguments.out / "drawn"
        draw_videos(data, arguments.videos, arguments.seconds)
    raw = read_dataset(data)
    started = time.perf_counter()
    prepared = prepare(raw, arguments.out / "prepared", PrepareOptions(short_side=arguments.short_side))
    seconds = time.perf_counter() - started
    sets = {"raw": raw, "prepared": read_dataset(prepared.table)}

    results: dict[str, dict[str, float]] = {}
    table = Table("frames", "set", "decode ms (p50)", "p95", "whole clip ms", "clips/s per core", "times faster")
    for sampling, spec in SPECS.items():
        for name, videos in sets.items():
            found = measure(videos, spec, arguments.clips)
            results[f"{sampling}, {name}"] = found
            ratio = results[f"{sampling}, raw"]["decode_ms_mean"] / found["decode_ms_mean"]
            found["times_faster"] = ratio
            table.add_row(
                *(sampling, name, f"{found['decode_ms_p50']:.1f}", f"{found['decode_ms_p95']:.1f}"),
                *(f"{found['clip_ms_mean']:.1f}", f"{1000 / found['clip_ms_mean']:.1f}", f"{ratio:.1f}"),
            )
    Console().print(table)
    megabytes = [prepared.source_bytes / 1e6, sum(copy.size_bytes for copy in prepared.copies) / 1e6]
    print(f"{megabytes[0]:.1f} MB became {megabytes[1]:.1f} MB in {seconds:.0f} s")
    race = beside_training(sets["prepared"], arguments.num_workers)
    print(
        f"prepared, {arguments.num_workers} workers: {race['loader_clips_per_second']:.1f} clips/s; "
        f"a training step of tada2d_tiny takes {race['step_clips_per_second']:.1f} clips/s"
    )
    report = {"data": data.name, "megabytes": megabytes, "prepare_seconds": seconds, "clips": results, "race": race}
    (arguments.out / "loader.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def draw_videos(folder: Path, count: int, seconds: float) -> None:
    """Two classes of 720p videos: a texture that moves left or right, under noise that differs in every frame."""
    for number in range(count):
        label = ("left", "right")[number % 2]
        path = folder / label / f"{number}.mp4"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        coarse = torch.from_numpy(rng.uniform(40, 215, (1, 3, 45, 160)).astype(np.float32))
        texture = F.interpolate(coarse, size=(720, 2560), mode="bicubic")[0].permute(1, 2, 0).numpy()
        noise = rng.normal(0, 5, (8, 720, 1280, 1)).astype(np.float32)
        step = 4 if label == "left" else -4

        def frames(texture: np.ndarray = texture, noise: np.ndarray = noise, step: int = step):
            for i in range(round(seconds * 30)):
                view = np.roll(texture, -step * i, axis=1)[:, :1280] + np.roll(noise[i % 8], 37 * i, axis=1)
                yield np.clip(view, 0, 255).astype(np.uint8)

        write_video(path, frames(), fps=30, crf=23, keyframe_interval_frames=250)


def measure(videos: VideoTable, spec: ClipSpec, num_clips: int) -> dict[str, float]:
    """Processor milliseconds of a clip: to open and decode it, and with its augmentation."""
    augmentation = Augmentation(short_side_range=(256, 320), flip_probability=0.5, flip_swaps=[{}], reverse_swaps=[{}])
    decode_ms, clip_ms = [], []
    for i in range(num_clips):
        video = videos.videos[i % len(videos)]
        rng = np.random.default_rng(i)
        started = time.thread_time()
        with open_labeled(video) as (reader, own):
            times = reader.times_seconds[own.start : own.stop]
            chosen = train_indices(spec, times, rng, container_fps=reader.container_fps)
            frames = reader.frames([own[index] for index in chosen])
        decoded = time.thread_time()
        augmentation(torch.from_numpy(frames), (0,), spec, rng)
        decode_ms.append((decoded - started) * 1000)
        clip_ms.append((time.thread_time() - started) * 1000)
    median, slow = np.percentile(decode_ms, [50, 95])
    return {
        "decode_ms_mean": statistics.mean(decode_ms),
        "decode_ms_p50": float(median),
        "decode_ms_p95": float(slow),
        "clip_ms_mean": statistics.mean(clip_ms),
    }


def beside_training(videos: VideoTable, num_workers: int) -> dict[str, float]:
    """Clips a second that the loader delivers, and that tada2d_tiny trains on, each by itself."""
    spec = ClipSpec(num_frames=8, sampling="segment", short_side=128, crop=112, antialias=True)
    augmentation = Augmentation(short_side_range=(112, 144), flip_probability=0.5, flip_swaps=[{}], reverse_swaps=[{}])
    some = replace(videos, videos=(videos.videos * 64)[: max(len(videos), 64)])
    clips = TrainingClips(some, spec, augmentation, seed=0)
    loader = ResumableLoader(
        clips, ResumableBatches(len(some), batch_size=8, last_batch="drop", seed=0), num_workers=num_workers
    )
    model = create_model("tada2d_tiny", num_classes=10, num_frames=8)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = iter(loader)
    batch = next(batches)  # the workers have started
    started, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.labels)
    loader_rate = count / (time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(4):
        loss = F.cross_entropy(model(normalize(batch.clips)), batch.labels[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "loader_clips_per_second": loader_rate,
        "step_clips_per_second": 4 * len(batch.labels) / (time.perf_counter() - started),
    }


if __name__ == "__main__":
    main()
