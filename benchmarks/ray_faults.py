"""A job on a Ray cluster of four nodes whose nodes, workers and driver are killed at random: is each video done once?

    python benchmarks/ray_faults.py --out OUT [--videos 10000] [--minutes 10]

Videos are drawn into OUT/videos, 3 % of them broken in ten ways. One process does them all first (`tada predict --out`,
the process pool): these are the answers to compare with. Then a cluster of four nodes runs on this machine (Ray's own
``cluster_utils``: one raylet each, a head without CPUs beside them), and the same command with `--ray` works there,
while for some minutes a node, a worker process or the command itself is killed every few seconds. After that it is left
alone until it is done; a last run has to find nothing to do, and one with 100 new videos only those. Prints what was
killed, and OUT/ray_faults.json has the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from run_lines import ends_in_a_line, output_folder
from tada.video.writer import write_video

NODES = 4
RUN = "tada2d_tiny_motion"
BROKEN_SHARE = 0.03
TADA = [sys.executable, "-m", "tada"]


@ends_in_a_line()
def main() -> None:
    """Draw the videos, do them with the pool and with the cluster, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/ray_faults"))
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long processes are killed")
    parser.add_argument("--clips", type=int, default=6, help="clips of each video: the more, the longer it lasts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    videos, out = arguments.out / "videos", arguments.out
    draw_videos(videos, arguments.videos)
    shutil.rmtree(out / "pool", ignore_errors=True)
    shutil.rmtree(out / "cluster", ignore_errors=True)
    predict = ["predict", RUN, str(videos), "--clips", str(arguments.clips), "--top", "20"]
    run_tada([*predict, "--out", str(out / "pool")])
    pool = json.loads((out / "pool" / "summary.json").read_text())
    with cluster(NODES) as nodes:
        job = [*predict, "--out", str(out / "cluster"), "--ray", nodes.address]
        started = time.monotonic()
        summary = out / "cluster" / "summary.json"
        kills = run_with_faults(job, summary, nodes, arguments.minutes * 60, random.Random(arguments.seed))
        seconds = time.monotonic() - started
        found = compare(out / "pool", out / "cluster", arguments.videos)
        again = timed(lambda: run_tada(job))
        nothing = json.loads((out / "cluster" / "summary.json").read_text())
        draw_videos(videos, arguments.videos + 100)
        run_tada(job)
        more = json.loads((out / "cluster" / "summary.json").read_text())
    report = {
        "videos": arguments.videos,
        "clips_of_each": arguments.clips,
        "killed": kills,
        "seconds_with_faults": seconds,
        "pool": pool,
        **found,
        "second_run": {**nothing, "seconds_in_all": again},
        "with_100_new": more,
    }
    (out / "ray_faults.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    assert nothing["done"] == 0
    assert not nothing["faults"]
    assert more["done"] + sum(more["faults"].values()) == 100


# --- the videos ---


def draw_videos(folder: Path, count: int) -> None:
    """Draw videos of a second or two, 96x64, with a texture that moves; each hundredth video on has three broken."""
    for number in track(range(count), "drawing"):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.mp4"
        if file.exists() or file.is_symlink():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        step = int(rng.integers(-6, 7))
        frames = np.stack([np.roll(blocks, step * time, 1) for time in range(int(rng.integers(10, 26)))])
        whole = file.with_suffix(".part.mp4")
        write_video(whole, frames, fps=12)
        place = number % 1000
        if place < 1000 * BROKEN_SHARE:
            BREAKS[place % len(BREAKS)](whole)
        whole.replace(file)


def _write(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere.mp4")


def _noise(file: Path) -> None:
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = np.random.default_rng(0).bytes(len(content) - start)
    _write(file, bytes(content))


BREAKS: list[Callable[[Path], None]] = [
    lambda file: _write(file, b""),
    lambda file: _write(file, b"this is no video\n" * 50),
    lambda file: _write(file, file.read_bytes()[:40]),
    lambda file: _write(file, file.read_bytes()[: file.stat().st_size // 2]),
    lambda file: _write(file, file.read_bytes()[100:]),
    lambda file: _write(file, file.read_bytes().replace(b"moov", b"free")),
    lambda file: _write(file, b"\xff\xd8\xff\xe0" + bytes(2000)),
    lambda file: _write(file, bytes(5000)),
    _link,
    _noise,
]
"""Empty, text, a cut header, cut in the middle, without its beginning, without its index, half a picture, zeros, a link
to nothing, noise for pixels."""


# --- the cluster ---


class Nodes:
    """The cluster's nodes, which can be killed and come back."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self.workers: list[Any] = []

    def add(self) -> None:
        self.workers.append(self._cluster.add_node(num_cpus=1, object_store_memory=300 * 2**20))

    def kill_one(self, dice: random.Random) -> None:
        """Kill a node at once, with all its processes, and start another."""
        node = self.workers.pop(dice.randrange(len(self.workers)))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()


@contextmanager
def cluster(count: int) -> Iterator[Nodes]:
    """A cluster on this machine with ``count`` nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    # All nodes share this machine: one that is slow to answer is not dead.
    patient = {"health_check_failure_threshold": 30, "health_check_timeout_ms": 30_000}
    head = {"num_cpus": 0, "object_store_memory": 300 * 2**20, "_system_config": patient}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = Nodes(found)
        for _ in range(count):
            nodes.add()
        yield nodes
    finally:
        found.shutdown()


def run_with_faults(job: list[str], summary: Path, nodes: Nodes, seconds: float, dice: random.Random) -> dict[str, int]:
    """Run a command to its end, again and again if it was killed; kill things at random in the first ``seconds``."""
    kills: Counter[str] = Counter()
    end = time.monotonic() + seconds
    command = start_tada(job)
    while True:
        if time.monotonic() >= end:
            code = command.wait()
        else:
            with suppress(subprocess.TimeoutExpired):
                command.wait(dice.uniform(4.0, 16.0))
            code = command.returncode
        if code is not None:
            if summary.exists():  # written at the end of the work
                return dict(kills)
            command = start_tada(job)
            continue
        what = dice.choices(["node", "worker", "decoder", "driver"], [2, 3, 3, 1])[0]
        if what == "node":
            nodes.kill_one(dice)
        elif what == "driver":
            os.killpg(command.pid, signal.SIGKILL)
        else:
            found = pids_of("ray::" if what == "worker" else "tada.data.workers")
            if not found:
                continue
            with suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
        kills[what] += 1
        print(f"{end - time.monotonic():5.0f} s left, killed a {what}", flush=True)


def pids_of(text: str) -> list[int]:
    """Processes whose command line holds a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def start_tada(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TADA, *arguments], start_new_session=True)


def run_tada(arguments: list[str]) -> None:
    code = subprocess.run([*TADA, *arguments], check=False).returncode
    assert code in (0, 1), f"tada {' '.join(arguments)} ended with {code}"


def timed(call: Callable[[], None]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


# --- the comparison ---


def compare(pool: Path, cluster: Path, count: int) -> dict[str, Any]:
    """Compare the rows of two folders; each has to have every id once."""
    tables = [rows_of(folder) for folder in (pool, cluster)]
    for rows in tables:
        assert len(rows) == count, f"{len(rows)} rows of {count} videos"
        assert len({row["id"] for row in rows}) == count
    one, other = ({row["id"]: row for row in rows} for rows in tables)
    assert one.keys() == other.keys()
    differences = []
    for id, row in one.items():
        twin = other[id]
        assert row["fault"] == twin["fault"], f"{id}: {row['fault']} with the pool, {twin['fault']} on the cluster"
        if row["fault"] is None:
            scores = {entry["label"]: entry["score"] for entry in row["scores"]}
            twins = {entry["label"]: entry["score"] for entry in twin["scores"]}
            differences += [abs(scores[label] - twins[label]) for label in scores.keys() & twins.keys()]
    faults = Counter(row["fault"] for row in one.values() if row["fault"] is not None)
    return {"faults": dict(faults), "largest_difference_of_scores": max(differences)}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows; a torn shard could not be read."""
    import pyarrow.parquet as pq

    return [row for file in sorted((folder / "rows").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


if __name__ == "__main__":
    main()
