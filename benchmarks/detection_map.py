"""Time of the metrics: 100,000 predictions on 5,000 videos, on one core.

    python benchmarks/detection_map.py [--videos 5000] [--predictions 100000] [--classes 200] [--out FILE.json]

Ground truth and predictions are drawn at random, most predictions near some segment: the slowest case, since
predictions without overlap are discarded at once. Prints the seconds for mAP at ten thresholds and for AR@1..100.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded

import numpy as np

from tada.localization.metrics import average_recall, detection_map


def main() -> None:
    """Draw, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=5_000)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    database, results = {}, {}
    for i in range(arguments.videos):
        label = f"class {rng.integers(arguments.classes)}"
        starts = rng.uniform(0, 100, 3)
        truths = [[start, start + length] for start, length in zip(starts, rng.uniform(2, 30, 3), strict=True)]
        database[f"v{i}"] = {"subset": "val", "annotations": [{"segment": s, "label": label} for s in truths]}
        found = []
        for _ in range(arguments.predictions // arguments.videos):
            near = truths[rng.integers(3)] + rng.normal(0, 3, 2)
            found.append({"segment": sorted(near), "label": label, "score": float(rng.random())})
        results[f"v{i}"] = found
    truth, predictions = {"database": database}, {"results": results}
    seconds = {}
    for name, score in (("detection_map", detection_map), ("average_recall", average_recall)):
        started = time.process_time()
        score(truth, predictions, subset="val")
        seconds[name] = time.process_time() - started
        print(f"{name}: {seconds[name]:.2f} s for {arguments.predictions:,} predictions on {arguments.videos:,} videos")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(seconds, indent=2) + "\n")


if __name__ == "__main__":
    main()
