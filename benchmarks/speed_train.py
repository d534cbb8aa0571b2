"""Speed of a training step: TAda networks as released, as they are here, and without TAdaConv.

    python benchmarks/speed_train.py [--networks tada2d_r50 tadaconvnext_t] [--rows PATTERN ...] [--compiled]

A step is forward pass, cross-entropy, gradients and the optimizer's update (SGD with momentum for TAda2D, AdamW for
TAdaConvNeXt, as published), on clips that lie in memory; bf16 is autocast. Rows are called "network form precision":

    literal       the released computation (tests/reference/released.py)
    eager         tada's networks as ``tada train`` runs them
    checkpointed  the same with --checkpoint-gradients: blocks are computed again for their gradients
    compiled      the same as eager, with torch.compile (only with --compiled)

Prints time of a step, clips per second, ratios to the literal form and to the plain twin (of the same form), and peak
memory with its ratio to the plain twin's. Memory is that of a process of its own for each row, weights, gradients and
the optimizer's state included; --no-memory leaves it out. Writes runs/speed_train.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from forms import network, released
from tada.models.parallel import checkpoint_blocks
from timing import (
    PRECISIONS,
    Run,
    Spread,
    choose,
    device_of,
    interleaved,
    parser_of,
    peak_bytes,
    peaks_of_rows,
    show,
    write_report,
)

PLAIN = {"tada2d_r50": "tsn_r50", "tadaconvnext_t": "convnext_t"}
FRAMES = {"tada2d_r50": 8, "tadaconvnext_t": 16}
"""Of the published clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A network, and how it is trained."""

    network: str
    form: str
    precision: str

    @property
    def name(self) -> str:
        """In a table."""
        return f"{self.network} {self.form} {self.precision}"


def main(argv: Sequence[str] | None = None) -> None:
    """Time the training steps of each network."""
    parser = parser_of(__doc__, rounds=10)
    parser.add_argument("--networks", nargs="+", choices=PLAIN, default=list(PLAIN))
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="such as '*literal*' 't* bf16'")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--compiled", action="store_true", help="with rows of torch.compile")
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--frames", type=int, help="by default those of the published clips")
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    rows = {name: rows_of(name, arguments) for name in arguments.networks}
    if arguments.memory_of:
        own, row = next((n, r[arguments.memory_of]) for n, r in rows.items() if arguments.memory_of in r)
        print(peak_bytes(lambda: step_of(row, clip_shape(own, arguments), device), device))
        return
    chosen = choose({name: row for of_network in rows.values() for name, row in of_network.items()}, arguments.rows)
    report = []
    for own, of_network in rows.items():
        shape = clip_shape(own, arguments)
        asked = {name: row for name, row in of_network.items() if name in chosen}
        if not asked:
            continue
        steps = {name: step_of(row, shape, device) for name, row in asked.items()}
        seconds = interleaved(steps, rounds=arguments.rounds, device=device)
        steps.clear()
        given = list(sys.argv[1:] if argv is None else argv)
        peaks = {} if arguments.no_memory else peaks_of_rows(__file__, given, list(asked))
        lines = []
        for name, row in asked.items():
            result = compared(own, row, seconds, peaks)
            clips_per_second = arguments.batch / Spread.of(seconds[name]).median
            lines.append(line(name, result, clips_per_second))
            values = {key: asdict(v) if isinstance(v, Spread) else v for key, v in result.items()}
            samples = {"clips_per_second": clips_per_second, "samples_ms": [1000 * s for s in seconds[name]]}
            report.append({"row": name, "clip": shape[2:]} | asdict(row) | values | samples)
        columns = ("", "ms of a step (quartiles)", "clips/s", "x faster than literal", "x plain's time", "peak MB")
        title = f"Training {own}: {' x '.join(map(str, shape))} on {arguments.device}"
        show(title, (*columns, "x plain's memory"), lines)
    write_report(arguments, "speed_train", device, rows=report)


def rows_of(own: str, arguments: argparse.Namespace) -> dict[str, Training]:
    """The rows of a network and its plain twin by their names."""
    forms = ["eager", "checkpointed", *(["compiled"] if arguments.compiled else [])]
    rows = [
        Training(network=name, form=form, precision=precision)
        for precision in arguments.precisions
        for name in (own, PLAIN[own])
        for form in (["literal", *forms] if name == own else forms)
    ]
    return {row.name: row for row in rows}


def clip_shape(own: str, arguments: argparse.Namespace) -> tuple[int, ...]:
    """[N, 3, T, H, W] of the clips."""
    return arguments.batch, 3, arguments.frames or FRAMES[own], arguments.side, arguments.side


def step_of(row: Training, shape: Sequence[int], device: torch.device) -> Run:
    """A step of training on clips of this shape."""
    model: nn.Module = network(row.network, shape[2])
    if row.form == "literal":
        model = released(model)
    elif row.form == "checkpointed":
        checkpoint_blocks(model)
    model = model.to(device).train()
    if "convnext" in row.network:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    clips = torch.randn(*shape, device=device)
    labels = torch.arange(shape[0], device=device)
    answer: Any = torch.compile(model) if row.form == "compiled" else model

    def step() -> object:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=row.precision == "bf16"):
            loss = F.cross_entropy(answer(clips), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def compared(
    own: str, row: Training, seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int]
) -> dict[str, Any]:
    """Time and memory of a row, and their ratios to the rows it is measured against, where those were run."""
    literal = Training(network=own, form="literal", precision=row.precision).name
    form = "eager" if row.form == "literal" else row.form
    plain = Training(network=PLAIN[own], form=form, precision=row.precision).name
    times = seconds[row.name]
    return {
        "ms": Spread.of([1000 * s for s in times]),
        "times_faster_than_literal": Spread.of_ratio(seconds[literal], times) if literal in seconds else None,
        "times_plain": Spread.of_ratio(times, seconds[plain]) if plain in seconds else None,
        "peak_bytes": peaks.get(row.name),
        "peak_times_plain": peaks[row.name] / peaks[plain] if plain in peaks else None,
    }


def line(name: str, result: Mapping[str, Any], clips_per_second: float) -> tuple[str, ...]:
    """A row of the table."""
    ratios = (result["times_faster_than_literal"], result["times_plain"])
    peak, times_plain = result["peak_bytes"], result["peak_times_plain"]
    return (
        name,
        result["ms"].text(0),
        f"{clips_per_second:.2f}",
        *("" if ratio is None else ratio.text() for ratio in ratios),
        "" if peak is None else f"{peak / 1e6:.0f}",
        "" if times_plain is None else f"{times_plain:.2f}",
    )


if __name__ == "__main__":
    main()
