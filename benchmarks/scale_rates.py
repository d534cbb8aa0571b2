"""Processor time of a whole video's clips, from originals and from copies, and of making a copy: what scale.py needs.

    python benchmarks/scale_rates.py --out OUT [--json benchmarks/scale_rates.json]

The videos are those that loader.py draws (1280x720, 30 frames a second, 10 s, a key frame every 250 frames). A video
is read as `tada evaluate` reads it with 1x1 and with 10x3 views: opened, decoded once for all its clips, resized and
cut, with one thread. Seconds are processor seconds, so that other work on the machine changes them little. A copy's
seconds are the difference between a long and a short `tada prepare`, so that the start of its process does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from loader import draw_videos
from run_lines import ends_in_a_line, output_file, output_folder
from tada.data.annotations import read_dataset
from tada.data.prepare import prepare
from tada.data.table import VideoTable
from tada.data.views import Views, read_views
from tada.video.sampling import ClipSpec
from timing import machine

HERE = Path(__file__).parent
NUM_VIDEOS = 8
SPEC = ClipSpec(num_frames=8, interval=8, short_side=256, crop=256)
"""Clips of the recipe k400_tada2d_r50_8x8 in a test."""


@ends_in_a_line()
def main() -> None:
    """Draw, copy, read, and write the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/scale"))
    parser.add_argument("--json", type=output_file, default=HERE / "scale_rates.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw_videos(arguments.out / "drawn", NUM_VIDEOS, seconds=10.0)
    originals = read_dataset(arguments.out / "drawn")
    some = replace(originals, videos=originals.videos[:2])
    short = seconds_to_prepare(some, arguments.out / "two")
    prepare_seconds = (seconds_to_prepare(originals, arguments.out / "all") - short) / (NUM_VIDEOS - len(some))
    copies = read_dataset(arguments.out / "all" / "videos.csv")
    report = {
        "benchmark": "scale_rates",
        "machine": machine(torch.device("cpu")),
        "decode_seconds": {
            f"{name}, {views}": statistics.mean(seconds_to_read(videos, views))
            for name, videos in (("originals", originals), ("copies", copies))
            for views in (Views(), Views(num_clips=10, num_crops=3))
        },
        "prepare_seconds": prepare_seconds,
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def seconds_to_prepare(videos: VideoTable, out: Path) -> float:
    """Processor seconds of this process and of the one that makes the copies."""
    before = _seconds_of_all()
    made = prepare(videos, out, num_processes=1, show_progress=False)
    if made.num_new != len(videos):
        raise SystemExit(f"{out} has copies already; remove it, they are to be made anew")
    return _seconds_of_all() - before


def _seconds_of_all() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_to_read(videos: VideoTable, views: Views) -> list[float]:
    """Processor seconds of each video, all its views; the first one is read once before, for what only starts once."""
    read_views(videos.videos[0], SPEC, views)
    seconds = []
    for video in videos.videos:
        started = time.process_time()
        read_views(video, SPEC, views)
        seconds.append(time.process_time() - started)
    return seconds


if __name__ == "__main__":
    main()
