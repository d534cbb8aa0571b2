"""Effect of export: accuracy, size and time of networks, their ONNX files, and those in 8-bit integers.

    tada quickstart
    python benchmarks/quantization.py quickstart/tada2d quickstart/tsn --data quickstart/videos --out OUT

Accuracy is on videos that the runs were not trained on; time is that of one clip, the minimum over --repeats (other
work on the machine only adds to it), with as many threads as PyTorch has (OMP_NUM_THREADS). It prints a table and
writes OUT/quantization.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tada.data.annotations import read_dataset
from tada.export import export
from tada.models.weights import WEIGHTS_FILE
from tada.recognition.evaluation import choose_videos, evaluate
from tada.recognition.recognizer import load_recognizer
from tada.video.sampling import ClipSpec


def main() -> None:
    """Export, test and time every run, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that know the data's classes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the exported files")
    parser.add_argument("--calibration-clips", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()

    rows: dict[str, dict[str, Any]] = {}
    for run in arguments.runs:
        recognizer = load_recognizer(run, device="cpu")
        name = f"{run.name}: {recognizer.card.model}"
        table = read_dataset(arguments.data).numbered_as(recognizer.heads)
        files = {form: arguments.out / f"{run.name}_{form}.onnx" for form in ("float32", "int8")}
        export(run, files["float32"])
        done = export(
            run, files["int8"], int8=table, calibration_clips=arguments.calibration_clips, show_progress=False
        )
        assert done.int8 is not None
        tested = evaluate(files["float32"], choose_videos(table, run, None, print), show_progress=False)
        for form, metrics, file in (
            ("PyTorch", done.int8.float_metrics, run / WEIGHTS_FILE),
            ("ONNX float32", tested.metrics(), files["float32"]),
            ("ONNX int8", done.int8.metrics, files["int8"]),
        ):
            network = recognizer.network if form == "PyTorch" else load_recognizer(file).network
            rows[f"{name}, {form}"] = {
                "metrics": metrics,
                "bytes": file.stat().st_size,
                "milliseconds": milliseconds(network, recognizer.clip, arguments.repeats),
            }
        rows[f"{name}, ONNX int8"] |= {"agreement": done.int8.agreement, "videos": done.int8.num_videos}
        (arguments.out / "quantization.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(rows)


@torch.inference_mode()
def milliseconds(network: nn.Module, clip: ClipSpec, repeats: int) -> float:
    """Minimum time of one clip."""
    clips = torch.randn(1, 3, clip.num_frames, clip.crop, clip.crop)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        network(clips)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    names = list(next(iter(rows.values()))["metrics"])
    table = Table("", *names, "same answer", "MB", "ms for a clip")
    for name, row in rows.items():
        agreement = f"{row['agreement']:.3f} of {row['videos']}" if "agreement" in row else ""
        metrics = [f"{row['metrics'][metric]:.4f}" for metric in names]
        table.add_row(name, *metrics, agreement, f"{row['bytes'] / 1e6:.2f}", f"{row['milliseconds']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
