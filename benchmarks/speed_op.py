"""Speed of one TAdaConv layer: as released, in its exact cheap form, and compared with the plain convolution.

    python benchmarks/speed_op.py [--layers PATTERN ...] [--precisions fp32 bf16] [--passes forward both]

The layers are all 3x3 of TAda2D-R50 on clips of 8 frames (kernels calibrated on their input) and all 7x7 of
TAdaConvNeXt-T on clips of 16, of which its stem leaves 8 (depthwise, calibrated on the output, with a bias that is
calibrated too). Rows:

    literal        a kernel for each frame, all frames as groups of one convolution, clips [N, C, T, H, W]
    exact          tada's TAdaConv2d with given scales, frames [N*T, C, H, W] with channels last
    exact, routed  the same, its scales found by the routing function
    plain          the convolution without scales, frames with channels last

"forward" is without gradients, "both" with those of input, kernel and scales. Prints milliseconds, how many times
faster than the literal form a row is, and how many times the plain convolution's time it takes. Writes
runs/speed_op.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from reference.tadaconv import literal_tadaconv
from tada.tadaconv import Calibrate, Calibration, Routing, TAdaConv2d
from timing import (
    PRECISIONS,
    Run,
    Spread,
    choose,
    device_of,
    interleaved,
    measure_chip,
    parser_of,
    show,
    write_report,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution of a network."""

    channels: int
    """Channels of input and output."""
    side: int
    """Pixels of a frame's side, before the stride."""
    kernel: int
    """Pixels of the kernel's side."""
    stride: int = 1
    calibrate: Calibrate = "in"
    depthwise: bool = False
    """Whether it is depthwise, with a bias that is calibrated, too."""


LAYERS: dict[str, Layer] = {
    f"{channels} at {side}{', stride 2' if stride == 2 else ''}": Layer(
        channels=channels, side=side, kernel=3, stride=stride
    )
    for channels, after in ((64, 56), (128, 28), (256, 14), (512, 7))
    for side, stride in ((2 * after, 2), (after, 1))
} | {
    f"{channels} at {side}, depthwise": Layer(channels=channels, side=side, kernel=7, calibrate="out", depthwise=True)
    for channels, side in ((96, 56), (192, 28), (384, 14), (768, 7))
}
"""Channels and pixels of TAda2D-R50's and TAdaConvNeXt-T's layers on clips of 224 x 224 pixels."""

FORMS = ("literal", "exact", "exact, routed", "plain")


def main(argv: Sequence[str] | None = None) -> None:
    """Time every layer in every form."""
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("--layers", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(LAYERS)}")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--passes", nargs="+", choices=("forward", "both"), default=["forward", "both"])
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--least-ms", type=float, default=20.0, help="a number is taken over at least so long")
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    chip = measure_chip(device, arguments.precisions)
    results, lines = [], []
    for (name, layer), precision, which in product(
        choose(LAYERS, arguments.layers).items(), arguments.precisions, arguments.passes
    ):
        runs = runs_of(layer, which, arguments, precision, device)
        seconds = interleaved(runs, rounds=arguments.rounds, device=device, least_seconds=arguments.least_ms / 1000)
        for form in FORMS:
            result = measured(layer, form, seconds, arguments, precision, which)
            own = Spread.of(seconds[form]).median
            result["matrix_share"] = chip.matrix_share(result["multiply_adds"], own, precision)
            result["copy_share"] = chip.copy_share(result["least_bytes"], own)
            results.append({"layer": name, "precision": precision, "pass": which, "form": form} | result)
            lines.append(
                (
                    *(name, which, precision, form, result["ms"].text(), result["times_faster_than_literal"].text(1)),
                    *(result["times_plain"].text(), f"{result['matrix_share']:.0%}", f"{result['copy_share']:.0%}"),
                )
            )
    title = f"TAdaConv layers, {arguments.batch} clips of {arguments.frames} frames on {arguments.device}"
    columns = ("layer", "pass", "", "form", "ms (quartiles)", "x faster than literal", "x plain's time")
    show(title, (*columns, "of the matrix rate", "of the copy rate"), lines)
    rows = [{key: asdict(v) if isinstance(v, Spread) else v for key, v in row.items()} for row in results]
    write_report(arguments, "speed_op", device, chip=asdict(chip), rows=rows)


def measured(
    layer: Layer,
    form: str,
    seconds: dict[str, list[float]],
    arguments: argparse.Namespace,
    precision: str,
    which: str,
) -> dict[str, Any]:
    """Time and ratios of a form, and what the plain convolution has to compute and to move."""
    own = seconds[form]
    values = arguments.batch * arguments.frames * layer.channels * layer.side**2  # of the input
    outputs = values // layer.stride**2
    per_output = layer.kernel**2 * (1 if layer.depthwise else layer.channels)
    passes = 1 if which == "forward" else 3  # gradients of the input and of the kernel cost as much as the output
    weights = layer.channels * per_output
    return {
        "ms": Spread.of([1000 * s for s in own]),
        "times_faster_than_literal": Spread.of_ratio(seconds["literal"], own),
        "times_plain": Spread.of_ratio(own, seconds["plain"]),
        "multiply_adds": passes * outputs * per_output,
        "least_bytes": passes * (values + outputs + weights) * PRECISIONS[precision].itemsize,
        "samples_ms": [1000 * s for s in own],
    }


def runs_of(
    layer: Layer, which: str, arguments: argparse.Namespace, precision: str, device: torch.device
) -> dict[str, Run]:
    """A call of the layer in each form, all with the same values."""
    n, t, c, dtype = arguments.batch, arguments.frames, layer.channels, PRECISIONS[precision]
    groups = c if layer.depthwise else 1
    padding = layer.kernel // 2
    routing = Routing(c, bias_channels=c, norm="layer") if layer.depthwise else Routing(c)
    build = partial(
        TAdaConv2d,
        *(c, c, layer.kernel),
        stride=layer.stride,
        padding=padding,
        groups=groups,
        bias=layer.depthwise,
        calibrate=layer.calibrate,
    )
    routed, exact = build(routing=routing).train(which == "both").to(device, dtype), build().to(device, dtype)
    exact.load_state_dict({name: value for name, value in routed.state_dict().items() if "routing" not in name})
    for conv in (exact, routed):
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    clips = torch.randn(n, c, t, layer.side, layer.side, device=device, dtype=dtype)
    frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    alpha, beta = (torch.rand(n, c, t, device=device, dtype=dtype) + 0.5 for _ in range(2))
    kernel = exact.weight.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    for leaf in (clips, frames, alpha, beta):
        leaf.requires_grad_()
    scales = Calibration(alpha, beta if layer.depthwise else None)

    def literal() -> Tensor:
        options = {"calibrate": layer.calibrate, "stride": layer.stride, "padding": padding, "groups": groups}
        return literal_tadaconv(clips, kernel, exact.bias, *scales, **options)

    def plain() -> Tensor:
        return F.conv2d(frames, exact.weight, exact.bias, layer.stride, padding, 1, groups)

    given = [scale for scale in scales if scale is not None]
    biases = [exact.bias] if exact.bias is not None else []
    forms = {
        "literal": (literal, [clips, kernel, *biases, *given]),
        "exact": (lambda: exact(frames, scales, num_frames=t), [frames, exact.weight, *biases, *given]),
        "exact, routed": (lambda: routed(frames, num_frames=t), [frames, *routed.parameters()]),
        "plain": (plain, [frames, exact.weight, *biases]),
    }
    if which == "forward":
        return {form: without_gradients(call) for form, (call, _) in forms.items()}
    return {form: with_gradients(call, leaves) for form, (call, leaves) in forms.items()}


def without_gradients(call: Any) -> Run:
    """The forward pass alone."""

    @torch.no_grad()
    def run() -> object:
        return call()

    return run


def with_gradients(call: Any, leaves: list[Tensor]) -> Run:
    """The forward pass, and the gradients of ``leaves``."""
    gradient = torch.ones_like(call().detach())

    def run() -> object:
        return torch.autograd.grad(call(), leaves, gradient)

    return run


if __name__ == "__main__":
    main()
