"""Accuracy against time: published top-1 on Kinetics-400, and how long the networks take here, each in its best form.

    python benchmarks/landscape.py [--rows 'TAda*' 'X3D*' ...] [--packages DIR]
    python benchmarks/landscape.py --report                 # the page alone, of the stored numbers

Networks: tada's; those of transformers; and of pytorchvideo, which is installed for this benchmark alone, best into a
folder of its own:

    pip install --no-deps --target DIR pytorchvideo fvcore iopath yacs portalocker tabulate termcolor

Networks whose package is missing are left out, and named. Each runs with random weights in its inference form
(``tada.models.fuse``, which folds the batch norms of the others too, and checks that their output stays), eager and
compiled, convolutional ones also with channels last, in fp32 and, where the processor has it, bf16. The fastest of a
precision counts. All networks take about 25 minutes of two cores, most of it for compiling.

The networks do not fit into memory all at once. So they are measured one after the other, each in turns with the same
reference, TAda2D-R50 with 8 frames in fp32, in every round: times are ratios to the reference within a round, times
the reference's median over the whole run. A slow hour of a shared machine slows both, and moves no row.

Each network becomes a line of runs/landscape.jsonl as soon as it is measured. One that has a line is not measured
again, so an interrupted run goes on; lines of another machine, or another PyTorch, are refused. When all are there,
runs/landscape.json is written, with a table and a picture beside it. To publish a run, copy the JSON to benchmarks/ and
call --report, which writes PAGE/landscape.md and PAGE/landscape.png.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from landscape_networks import INSTALL, LEFT_OUT, Contender, contenders
from landscape_report import show_landscape
from run_lines import read_runs, run_all
from tada.models.fuse import fuse
from timing import (
    PRECISIONS,
    Run,
    Spread,
    choose,
    device_of,
    interleaved,
    machine,
    own_precisions,
    parser_of,
    write_report,
)

HERE = Path(__file__).parent
OWN_NUMBERS = HERE / "landscape.json"
REFERENCE = "TAda2D-R50 8f"
MOST_TO_COMPILE = 4e11
"""Multiply-adds. In fp32, matrix products take nearly all the time of larger networks: the compiler saves none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a network is run."""

    precision: str
    compiled: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """In a table, behind the precision."""
        return ("compiled" if self.compiled else "eager") + (", channels last" if self.channels_last else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what has no line yet; then show everything."""
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="such as 'TAda*' 'X3D-M'")
    parser.add_argument("--packages", type=Path, help="folder of packages that were installed for this benchmark")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="by default those that the processor has")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--seconds",
        type=float,
        default=12.0,
        help="for a network's rounds: slow ones have fewer, at least three (12)",
    )
    parser.add_argument("--page", type=Path, help="a folder for the table; by default beside the numbers, or docs")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.report:
        file = arguments.json or OWN_NUMBERS
        if not file.exists():
            raise SystemExit(f"{file} does not exist: measure first, without --report, and copy the numbers there")
        page = HERE.parent / "docs" if file == OWN_NUMBERS else file.parent
        show_landscape(json.loads(file.read_text()), arguments.page or page)
        return
    device = device_of(arguments)
    file = write_report(arguments, "landscape", device, **measure_missing(arguments, device))
    show_landscape(json.loads(file.read_text()), arguments.page or file.parent)


def measure_missing(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure the chosen networks that have no line; return the rows of all that have one, and what was left out."""
    _use(arguments.packages)
    file = (arguments.json or Path("runs/landscape.json")).with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    here = conditions(device)
    done = read_runs(file)
    for line in done:
        if line["conditions"] != here:
            raise SystemExit(
                f"{file}: {line['row']} was measured under other conditions ({line['conditions']}, now {here}); ratios "
                "are of one machine: name another file with --json, or remove this one"
            )
    names = {line["row"] for line in done}
    wanted = [c for c in choose(contenders(), arguments.rows).values() if c.name not in names]
    left_out = dict(LEFT_OUT)
    for package, how in INSTALL.items():
        missing = [c.name for c in wanted if c.package == package and not c.is_installed]
        if missing:
            left_out[", ".join(missing)] = f"{package} is not installed: {how}"
            print(f"left out: {', '.join(missing)}: {package} is not installed: {how}", file=sys.stderr)
    jobs = [(c.name, arguments) for c in wanted if c.is_installed]
    run_all(measure, jobs, file, num_workers=1, in_words=in_words)
    return {"rows": rows_of(read_runs(file)), "reference": REFERENCE, "left_out": left_out}


def conditions(device: torch.device) -> dict[str, Any]:
    """What all lines of a run have in common."""
    facts = machine(device)
    same = ("processor", "threads", "vector_instructions", "gpu")
    return {key: facts[key] for key in same if key in facts} | {"torch": facts["versions"]["torch"]}


def _use(packages: Path | None) -> None:
    if packages is None:
        return
    if not packages.is_dir():
        raise SystemExit(f"--packages {packages} is no folder")
    sys.path.append(str(packages))  # behind the others: it may hold older versions of what is installed


def in_words(line: Mapping[str, Any]) -> str:
    """A line, for the terminal."""
    times = {way: Spread.of(ms).text(1) for way, ms in line["ms"].items()}
    failed = [f"{way}: {reason}" for way, reason in line["failed"].items()]
    return f"{line['row']}: " + "; ".join([*(f"{way} {ms} ms" for way, ms in times.items()), *failed])


# --- one network ------------------------------------------------------------------------------------------------------


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a network in each way, in turns with the reference: its line."""
    _use(arguments.packages)
    device = device_of(arguments)
    every = contenders()
    contender = every[name]
    model, clips = contender.build().eval(), clips_of(contender)
    with torch.no_grad():
        expected = model(clips)
    base = model if contender.is_ours else fuse(model, example_clips=clips).network
    costs = cost(model if base is not model else copy.deepcopy(model), clips)
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for way in ways(contender, arguments.precisions or own_precisions(device), compiles=not arguments.eager):
        key = f"{way.precision} {way.name}"
        if way == Way(precision="fp32", compiled=True) and costs["multiply_adds"] > MOST_TO_COMPILE:
            failed[key] = f"not tried with more than {MOST_TO_COMPILE / 1e9:.0f} G multiply-adds"
            continue
        try:
            run = run_of(base, way, clips, device)
            check(run(), expected, way.precision)
            runs[key] = run
        except Exception as error:  # whatever a compiler may raise; the row says so
            failed[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    reference = every[REFERENCE]
    own = run_of(reference.build().eval(), Way(precision="fp32"), clips_of(reference), device)
    seconds = interleaved(
        {"reference": own} | runs, rounds=arguments.rounds, device=device, most_seconds=arguments.seconds
    )
    runs.clear()
    line = {
        "row": name,
        "conditions": conditions(device),
        **costs,
        "reference_ms": in_ms(seconds.pop("reference")),
        "ms": {key: in_ms(times) for key, times in seconds.items()},
        "failed": failed,
    }
    torch.compiler.reset()  # the next network's layers would count as further versions of these
    gc.collect()
    return line


def clips_of(contender: Contender) -> Tensor:
    """A clip as in the published test, of noise."""
    torch.manual_seed(0)
    return torch.randn(1, 3, contender.frames, contender.pixels, contender.pixels)


def ways(contender: Contender, precisions: Sequence[str], *, compiles: bool) -> Iterator[Way]:
    """All ways to run a network. The compiler chooses layouts by itself."""
    for precision in precisions:
        yield Way(precision=precision)
        if contender.convolutional:
            yield Way(precision=precision, channels_last=True)
        if compiles:
            yield Way(precision=precision, compiled=True)


def run_of(base: nn.Module, way: Way, clips: Tensor, device: torch.device) -> Run:
    """The logits of a network for clips."""
    dtype = PRECISIONS[way.precision]
    network, own = fuse(base, dtype=dtype, compile=way.compiled).to(device), clips.to(device, dtype)
    if way.channels_last:
        own = own.contiguous(memory_format=torch.channels_last_3d)
        for weight in network.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def run() -> Any:
        return network(own)

    return run


def check(found: Tensor, expected: Tensor, precision: str) -> None:
    """Whether a form answers as the network; in bf16, whether it answers.

    Raises:
        ValueError: it does not.
    """
    found = found.float().cpu()
    if precision == "fp32" and not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(f"its logits differ by {float((found - expected).abs().max()):.3g}")
    if not found.isfinite().all():
        raise ValueError("its logits are not finite")


def cost(model: nn.Module, clips: Tensor) -> dict[str, int]:
    """Parameters, and the multiply-adds of a clip by PyTorch's counter. The model is moved to the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(clips.to("meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


def in_ms(seconds: Sequence[float]) -> list[float]:
    """Milliseconds."""
    return [round(1000 * s, 3) for s in seconds]


# --- all networks -----------------------------------------------------------------------------------------------------


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The networks that have a line: times in every way, the fastest way in each precision, and published results.

    Times are the ratios to the reference within each round, times the reference's median over all lines.
    """
    measured = {line["row"]: line for line in lines}
    reference_ms = Spread.of([ms for line in lines for ms in line["reference_ms"]]).median if lines else 0.0
    rows = []
    for name, contender in contenders().items():
        if name not in measured:
            continue
        line = measured[name]
        times = {}
        for way, samples in line["ms"].items():
            ratio = Spread.of_ratio(samples, line["reference_ms"])
            times[way] = {"ms": {key: value * reference_ms for key, value in asdict(ratio).items()}}
            times[way] |= {"samples_ms": samples, "times_reference": asdict(ratio)}
        fastest: dict[str, str] = {}
        for way in times:
            precision = way.split()[0]
            best = fastest.setdefault(precision, way)
            if times[way]["ms"]["median"] < times[best]["ms"]["median"]:
                fastest[precision] = way
        rows.append(
            {
                "row": name,
                "family": contender.family,
                "ours": contender.is_ours,
                "frames": contender.frames,
                "pixels": contender.pixels,
                "parameters": line["parameters"],
                "multiply_adds": line["multiply_adds"],
                "results": [asdict(result) | {"num_views": result.num_views} for result in contender.results],
                "fastest": fastest,
                "ways": times,
                "failed": line["failed"],
                "reference_ms": line["reference_ms"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
