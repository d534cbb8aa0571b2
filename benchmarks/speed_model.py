"""Speed of whole networks: TAda models as released, as they are here, without TAdaConv, and other video networks.

    python benchmarks/speed_model.py [--networks tada2d_r50 tadaconvnext_t] [--rows PATTERN ...] [--eager]
    python benchmarks/speed_model.py --scaling

Rows are called "network form precision", and "compiled" where torch.compile was used. Forms:

    literal   the released computation (tests/reference/released.py): kernels for each frame, 3-D layers, norms unfolded
    unfolded  tada's network as it is trained
    fused     ready for inference, by ``tada.models.fuse``; a TSM is a ResNet-50 that shifts an eighth of its channels
              by a frame, clip_b16 a TAdaFormer without TAda blocks: CLIP's image transformer behind the same stem

Prints time of a clip batch, clips per second, ratios to the literal form and to the plain twin in the same precision,
peak memory, multiply-adds, the part of the chip's measured rates that this is, and published accuracy. A row's memory
is measured in a process of its own, in which the network is built (and compiled) again; --no-memory leaves it out.
"best" is the faster of eager and compiled.

--scaling instead prints time against batch, frames, pixels and channels at 112 x 112 pixels, and how it grows: the
slope of log(time) over log(size), 1 where the cost is linear. Rows are then those of fp32, eager.

Writes runs/speed_model.json, or runs/speed_scaling.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cost_table import count
from forms import Form, build, least_values_moved, network
from tada.models import create_model
from timing import (
    PRECISIONS,
    Run,
    Spread,
    choose,
    device_of,
    interleaved,
    measure_chip,
    parser_of,
    peak_bytes,
    peaks_of_rows,
    show,
    write_report,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A TAda network, and what it is measured against."""

    plain: str
    """The same network without TAdaConv."""
    others: tuple[str, ...] = ()
    """Other video networks."""
    frames: int
    """Shape of the published clip."""
    published: str
    """Top-1 accuracy, and where."""
    literal: bool = True
    """Whether it was released, and so has a literal form."""


FAMILIES = {
    "tada2d_r50": Family(
        plain="tsn_r50",
        others=("tsm_r50", "slowonly_r50", "r2plus1d_r50", "r3d_r50"),
        frames=8,
        published="K400 76.7, SSv2 64.0",
    ),
    "tadaconvnext_t": Family(plain="convnext_t", frames=16, published="K400 78.4"),
    "tadaconvnextv2_t": Family(plain="convnext_t", frames=16, published="K400 79.6, SSv2 67.2"),
    "tadaformer_b16": Family(plain="clip_b16", frames=16, published="K400 84.5"),
    "tada_lite0": Family(plain="efficientnet_lite0", frames=8, published="", literal=False),
}

AXES: dict[str, tuple[float, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "frames": (4, 8, 16, 32, 64),
    "side": (112, 160, 224, 320),
    "channels": (0.5, 1, 2),
}
"""What --scaling changes, one at a time: clips, frames, pixels of a side, and all widths by a factor."""
START = {"batch": 1, "frames": 8, "side": 112, "channels": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Time the networks of each family."""
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("--networks", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="such as '*literal*' 't* fused*'")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--batch", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, help="by default those of the published clips")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    forms = {name: forms_of(name, arguments) for name in arguments.networks}
    if arguments.memory_of:
        family, form = next((f, rows[arguments.memory_of]) for f, rows in forms.items() if arguments.memory_of in rows)
        print(peak_bytes(lambda: run_of(form, clip_shape(family, arguments), device), device))
    elif arguments.scaling:
        scale(arguments, device)
    else:
        argv = list(sys.argv[1:] if argv is None else argv)
        compare(forms, arguments, argv, device)


def forms_of(family: str, arguments: argparse.Namespace) -> dict[str, Form]:
    """The rows of a family by their names."""
    own = FAMILIES[family]
    forms = [Form(network=family, kind="literal")] if own.literal else []
    forms.append(Form(network=family, kind="unfolded"))
    for name in (family, own.plain, *own.others):
        for precision in arguments.precisions:
            for compiled in (False,) if arguments.eager else (False, True):
                forms.append(Form(network=name, kind="fused", precision=precision, compiled=compiled))
    return {form.name: form for form in forms}


def clip_shape(family: str, arguments: argparse.Namespace) -> tuple[int, ...]:
    """[N, 3, T, H, W] of the clips."""
    return arguments.batch, 3, arguments.frames or FAMILIES[family].frames, arguments.side, arguments.side


def run_of(form: Form, shape: Sequence[int], device: torch.device, **options: Any) -> Run:
    """The network's output for clips of this shape."""
    model = build(form, shape[2], device, **options)
    clips = torch.randn(*shape, device=device, dtype=PRECISIONS[form.precision])

    @torch.inference_mode()
    def run() -> object:
        return model(clips)

    return run


# --- all networks -----------------------------------------------------------------------------------------------------


def compare(
    forms: Mapping[str, Mapping[str, Form]], arguments: argparse.Namespace, argv: Sequence[str], device: torch.device
) -> None:
    """Time every row of every family, print them, and write them down."""
    every = {name: form for rows in forms.values() for name, form in rows.items()}
    chosen = choose(every, arguments.rows)
    chip = measure_chip(device, arguments.precisions)
    report, summaries = [], []
    for family, rows in forms.items():
        shape = clip_shape(family, arguments)
        own = {name: form for name, form in rows.items() if name in chosen}
        if not own:
            continue
        runs = {name: run_of(form, shape, device) for name, form in own.items()}
        seconds = interleaved(runs, rounds=arguments.rounds, device=device)
        runs.clear()
        peaks = {} if arguments.no_memory else peaks_of_rows(__file__, argv, list(own))
        costs = {name: cost(name, shape) for name in {form.network for form in own.values()}}
        lines = []
        for name, form in own.items():
            result = compared(form, family, seconds)
            multiply_adds, values = costs[form.network]
            median = Spread.of(seconds[name]).median
            literal = form.kind == "literal"
            result |= {
                "clips_per_second": arguments.batch / median,
                "peak_bytes": peaks.get(name),
                "multiply_adds": multiply_adds,
                "matrix_share": chip.matrix_share(multiply_adds, median, form.precision)
                if form.precision in chip.multiply_adds_per_second
                else None,
                "copy_share": chip.copy_share(values * PRECISIONS[form.precision].itemsize, median),
                "published": FAMILIES[family].published if form.network == family else "",
                "samples_ms": [1000 * s for s in seconds[name]],
            }
            lines.append(line(name, result, bold=form.network == family and not literal))
            report.append({"row": name, "clip": shape[2:]} | asdict(form) | plain_values(result))
        columns = ("", "ms (quartiles)", "clips/s", "x faster than literal", "x plain's time", "peak MB", "G mult-adds")
        title = f"{family}: {' x '.join(map(str, shape))} on {arguments.device}"
        show(title, (*columns, "matrix rate", "copy rate", "published"), lines, width=190)
        summaries += [best(family, precision, seconds) for precision in arguments.precisions]
    for summary in filter(None, summaries):
        print(summary["text"])
    write_report(
        arguments, "speed_model", device, chip=asdict(chip), rows=report, best=[s for s in summaries if s is not None]
    )


def cost(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds of a call, and the values it has to move at least."""
    with torch.device("meta"):
        clips = torch.empty(*shape)
    model = network(name, shape[2]).to("meta").eval()
    return count(name, model, clips, "").multiply_adds, least_values_moved(model, clips)


def compared(form: Form, family: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Time of a row, and its ratios to the rows it is measured against, where those were timed."""
    own = seconds[form.name]
    result: dict[str, Any] = {"ms": Spread.of([1000 * s for s in own])}
    literal = seconds.get(Form(network=family, kind="literal").name)
    plain = seconds.get(
        Form(network=FAMILIES[family].plain, kind="fused", precision=form.precision, compiled=form.compiled).name
    )
    result["times_faster_than_literal"] = None if literal is None else Spread.of_ratio(literal, own)
    result["times_plain"] = None if plain is None else Spread.of_ratio(own, plain)
    return result


def best(family: str, precision: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """The fastest fused row against the literal form, and against the fastest of the plain twin."""
    fastest = {}
    for name in (family, FAMILIES[family].plain):
        rows = [Form(network=name, kind="fused", precision=precision, compiled=c).name for c in (False, True)]
        fastest[name] = min((r for r in rows if r in seconds), key=lambda r: float(np.median(seconds[r])), default=None)
    own, plain = fastest.values()
    if own is None:
        return None
    found: dict[str, Any] = {"family": family, "precision": precision, "row": own, "plain_row": plain}
    text = f"best in {precision}: {own}"
    literal = seconds.get(Form(network=family, kind="literal").name)
    if literal is not None:
        ratio = Spread.of_ratio(literal, seconds[own])
        found["times_faster_than_literal"] = asdict(ratio)
        text += f", {ratio.text()} times as fast as the literal form"
    if plain is not None:
        ratio = Spread.of_ratio(seconds[own], seconds[plain])
        found["times_plain"] = asdict(ratio)
        text += f", {ratio.text(3)} times the time of {plain}"
    return found | {"text": text}


def line(name: str, result: Mapping[str, Any], *, bold: bool) -> tuple[str, ...]:
    """A row of the table."""
    peak, matrix = result["peak_bytes"], result["matrix_share"]
    ratios = (result["times_faster_than_literal"], result["times_plain"])
    return (
        f"[bold]{name}" if bold else name,
        result["ms"].text(1),
        f"{result['clips_per_second']:.2f}",
        *("" if ratio is None else ratio.text() for ratio in ratios),
        "" if peak is None else f"{peak / 1e6:.0f}",
        f"{result['multiply_adds'] / 1e9:.2f}",
        "" if matrix is None else f"{matrix:.0%}",
        f"{result['copy_share']:.0%}",
        result["published"],
    )


def plain_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return {key: asdict(value) if isinstance(value, Spread) else value for key, value in result.items()}


# --- scaling ----------------------------------------------------------------------------------------------------------


def scale(arguments: argparse.Namespace, device: torch.device) -> None:
    """Time each family and its plain twin against sizes, one size at a time."""
    every = {
        form.name: form
        for family in arguments.networks
        for form in (
            *([Form(network=family, kind="literal")] if FAMILIES[family].literal else []),
            Form(network=family, kind="fused"),
            Form(network=FAMILIES[family].plain, kind="fused"),
        )
    }
    forms = choose(every, arguments.rows)
    report, lines = [], []
    for axis, sizes in AXES.items():
        runs: dict[str, Run] = {}
        for name, form in forms.items():
            for size in sizes:
                at = START | {axis: size}
                shape = (at["batch"], 3, at["frames"], at["side"], at["side"])
                runs[f"{name}, {axis} {size}"] = run_of(form, shape, device, **widths(form.network, at["channels"]))
        seconds = interleaved(runs, rounds=arguments.rounds, device=device)
        for name in forms:
            own = [seconds[f"{name}, {axis} {size}"] for size in sizes]
            units = [size**2 if axis == "side" else size for size in sizes]
            slope = Spread.of([growth(units, times) for times in zip(*own, strict=True)])
            last = Spread.of([growth(units[-2:], times) for times in zip(*own[-2:], strict=True)])
            first = np.array(own[0]) / units[0]
            for i, (size, unit, times) in enumerate(zip(sizes, units, own, strict=True)):
                of_unit = Spread.of_ratio((np.array(times) / unit).tolist(), first.tolist())
                ms = Spread.of([1000 * s for s in times])
                ends = ("", "") if i else (slope.text(), last.text())
                lines.append((name if i == 0 else "", axis, f"{size:g}", ms.text(1), of_unit.text(), *ends))
                report.append(
                    {"row": name, "axis": axis, "size": size, "ms": asdict(ms), "of_unit": asdict(of_unit)}
                    | {"slope": asdict(slope), "last_slope": asdict(last), "samples_ms": [1000 * s for s in times]}
                )
    columns = ("", "", "size", "ms (quartiles)", "per clip, frame, pixel, channel: x the first", "slope", "at the end")
    show(f"Growth from {START} on {arguments.device}", columns, lines)
    write_report(arguments, "speed_scaling", device, rows=report)


def growth(units: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(time) over log(size)."""
    return float(np.polyfit(np.log(units), np.log(seconds), 1)[0])


def widths(name: str, factor: float) -> dict[str, Any]:
    """Options of a network whose layers are wider by a factor."""
    if factor == 1:
        return {}
    with torch.device("meta"):
        config: Any = create_model(name).config
    named = ("widths", "stem_width", "width", "heads", "routing_head_channels")
    fields = [field for field in named if getattr(config, field, None) is not None]
    wider = {field: np.multiply(getattr(config, field), factor).astype(int).tolist() for field in fields}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in wider.items()}


if __name__ == "__main__":
    main()
