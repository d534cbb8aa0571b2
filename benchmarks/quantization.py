"""Effect of export: accuracy, size and time of networks, their ONNX files, and those in 8-bit integers.

    tada quickstart
    python benchmarks/quantization.py quickstart/tada2d quickstart/tsn --data quickstart/videos --out OUT

Accuracy is on videos that the runs were not trained on; so is the share of them for which a form gives the same answer
as PyTorch in fp32. Times are of one clip of noise, as large as the run's or, with ``--clip 8x224``, of other frames and
pixels, in turns: medians and quartiles over the rounds. ONNX files are run by ONNX Runtime and, where it is installed,
by OpenVINO, which needs no other package and may lie in a folder of its own, named by ``--packages``:

    pip install --no-deps --target DIR openvino

It prints a table and writes runs/quantization.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from run_lines import ends_in_a_line, output_folder
from tada.data.annotations import read_dataset
from tada.data.table import VideoTable
from tada.errors import OptionError
from tada.export import export
from tada.models.fuse import fuse
from tada.models.onnx_model import INPUT, OUTPUT, OnnxNetwork, open_session
from tada.models.weights import WEIGHTS_FILE
from tada.recognition.evaluation import choose_videos, evaluate_alone
from tada.recognition.recognizer import Recognizer, load_recognizer
from timing import Spread, device_of, interleaved, own_precisions, parser_of, show, write_report

OPENVINO = "pip install --no-deps --target DIR openvino, then --packages DIR"


class OpenVinoSession:
    """An ONNX file in OpenVINO, called as ONNX Runtime's session is; compiled anew for each shape of clips.

    Args:
        precision: f32, or bf16; layers in 8-bit integers stay that.
    """

    def __init__(self, file: Path, precision: str) -> None:
        import openvino

        self.core = openvino.Core()
        self.file = file
        threads = torch.get_num_threads()
        self.options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        self.compiled: dict[tuple[int, ...], Any] = {}

    def run(self, outputs: list[str], inputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The logits."""
        clips = inputs[INPUT]
        if clips.shape not in self.compiled:
            model = self.core.read_model(self.file)
            model.reshape({INPUT: list(clips.shape)})
            self.compiled[clips.shape] = self.core.compile_model(model, "CPU", self.options)
        answer = self.compiled[clips.shape](clips)
        return [np.array(answer[OUTPUT])]  # a copy: it hands out its own memory


@ends_in_a_line()
def main(argv: list[str] | None = None) -> None:
    """Export, test and time every run, and print them."""
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that know the data's classes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=output_folder, required=True, help="a folder for the exported files")
    parser.add_argument("--calibration-clips", type=int, default=128)
    parser.add_argument("--clip", type=frames_and_pixels, metavar="FRAMESxPIXELS", help="to time; by default the run's")
    parser.add_argument("--packages", type=Path, help="a folder with openvino")
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    if device.type != "cpu":
        raise OptionError(f"--device {arguments.device}: ONNX files run on the CPU here")
    if arguments.packages is not None:
        sys.path.append(str(arguments.packages))
    with_openvino = find_spec("openvino") is not None
    if not with_openvino:
        print(f"left out: OpenVINO, which is not installed: {OPENVINO}", file=sys.stderr)

    rows: dict[str, dict[str, Any]] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in arguments.runs:
        recognizer = load_recognizer(run, device="cpu")
        table = read_dataset(arguments.data).numbered_as(recognizer.heads)
        files = {form: arguments.out / f"{run.name}_{form}.onnx" for form in ("float32", "int8")}
        export(run, files["float32"], overwrite=True)
        more = {"calibration_clips": arguments.calibration_clips, "show_progress": False, "overwrite": True}
        export(run, files["int8"], int8=table, **more)
        networks = forms_of(recognizer, files, with_openvino=with_openvino)
        tested = choose_videos(table, run, None, print)
        sizes = {form: files["int8" if "int8" in form else "float32"] for form in networks if "PyTorch" not in form}
        own = recognizer.clip
        frames, pixels = arguments.clip or (own.num_frames, own.crop)
        clips = torch.randn(1, 3, frames, pixels, pixels)
        calls = {form: partial(in_inference_mode, network, clips) for form, network in networks.items()}
        seconds = interleaved(calls, rounds=arguments.rounds, device=device, least_seconds=0.05)
        for form, result in accuracy(recognizer, networks, tested).items():
            name = f"{run.name}: {recognizer.card.model}, {form}"
            rows[name] = result | {
                "clip": [frames, pixels],
                "bytes": sizes.get(form, run / WEIGHTS_FILE).stat().st_size,
                "ms": asdict(Spread.of([1000 * s for s in seconds[form]])),
                "times_pytorch": asdict(Spread.of_ratio(seconds[form], seconds["PyTorch fp32"])),
            }
    show_rows(rows)
    arguments.clip = None if arguments.clip is None else "x".join(map(str, arguments.clip))
    arguments.runs = [str(run) for run in arguments.runs]
    write_report(arguments, "quantization", device, rows=rows)


def frames_and_pixels(text: str) -> tuple[int, int]:
    """Of the command line: "8x224"."""
    frames, _, pixels = text.partition("x")
    if not (frames.isdigit() and pixels.isdigit() and int(frames) and int(pixels)):
        raise OptionError(f"--clip {text} should be frames x pixels, such as 8x224")
    return int(frames), int(pixels)


def forms_of(recognizer: Recognizer, files: Mapping[str, Path], *, with_openvino: bool) -> dict[str, nn.Module]:
    """The network in every form; each takes clips [N, 3, T, H, W] float32."""
    half = "bf16" in own_precisions(torch.device("cpu"))
    networks: dict[str, nn.Module] = {"PyTorch fp32": recognizer.network}
    if half:
        networks["PyTorch bf16"] = fuse(recognizer.model, dtype=torch.bfloat16)
    networks |= {f"ONNX Runtime {form}": open_session(file) for form, file in files.items()}
    if with_openvino:
        networks["OpenVINO float32"] = OnnxNetwork(OpenVinoSession(files["float32"], "f32"))
        if half:
            networks["OpenVINO bf16"] = OnnxNetwork(OpenVinoSession(files["float32"], "bf16"))
        networks["OpenVINO int8"] = OnnxNetwork(OpenVinoSession(files["int8"], "bf16" if half else "f32"))
    return networks


@torch.inference_mode()
def in_inference_mode(network: nn.Module, clips: Tensor) -> object:
    """The network's logits."""
    return network(clips)


def accuracy(recognizer: Recognizer, networks: Mapping[str, nn.Module], tested: VideoTable) -> dict[str, Any]:
    """Metrics of every form on videos, and the share of them that it answers as the first form does."""
    found: dict[str, dict[str, Any]] = {}
    first: list[NDArray[Any]] = []
    own = recognizer.network
    for form, network in networks.items():
        recognizer.network = network  # type: ignore[assignment]  # another form of the same network
        evaluation = evaluate_alone(recognizer, tested, num_workers=0)
        answers = [evaluation.of_head(head).argmax(1) for head in range(len(evaluation.heads))]
        first = first or answers
        same = np.all([a == b for a, b in zip(answers, first, strict=True)], axis=0)
        found[form] = {"metrics": evaluation.shown_metrics(), "agreement": float(same.mean()), "videos": len(same)}
    recognizer.network = own
    return found


def show_rows(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    names = list(next(iter(rows.values()))["metrics"])
    lines = [
        (
            name,
            *(f"{row['metrics'][metric]:.4f}" for metric in names),
            f"{row['agreement']:.3f} of {row['videos']}",
            f"{row['bytes'] / 1e6:.2f}",
            Spread(**row["ms"]).text(),
            Spread(**row["times_pytorch"]).text(),
        )
        for name, row in rows.items()
    ]
    columns = ("", *names, "same answer", "MB", "ms for a clip (quartiles)", "x PyTorch fp32")
    show("Forms of a network", columns, lines)


if __name__ == "__main__":
    main()
