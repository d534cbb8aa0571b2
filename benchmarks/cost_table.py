"""Cost of TAdaConv: parameters and multiply-adds of operators and networks, and those that adapting a network adds.

    python benchmarks/cost_table.py [--json FILE]

Everything is counted twice: by the shapes of kernels and outputs ("by shapes"), and by PyTorch's own counter of
floating point operations, which sees every operation that is run ("by torch", half of its operations). Beside them
are the figures of the paper and of the released code. Those come out to the last digit if, beside kernels, two are
counted for each value that a batch norm writes and, in ConvNeXt, five for each that a block's layer norm writes: the
column "with norms". Nothing is computed: tensors are on the meta device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

import tada
from tada.models.tadaconvnext import ConvNeXtBlock, Stem


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a network or operator for one clip."""

    name: str
    """Name of the network or operator."""
    clip: str
    """Its input: frames and pixels, or a feature map's shape."""
    parameters: int
    """Number of parameters."""
    multiply_adds: int
    """By the shapes of kernels and outputs."""
    by_torch: int
    """By PyTorch's counter."""
    with_norms: int
    """By shapes, norms included."""
    figure: str = ""
    """Figures of the paper and the released code."""


def count(name: str, module: nn.Module, x: Tensor, clip: str, *, figure: str = "") -> Cost:
    """Count a module, on the meta device, in evaluation mode."""
    kernels: list[int] = []
    norms: list[int] = []

    def of_kernel(module: Any, inputs: Any, output: Any) -> None:
        kernels.append(output.numel() * module.weight[0].numel())

    def of_stem(module: Stem, inputs: Any, output: Any) -> None:  # runs its 3-D kernel as a 2-D one
        kernels.append(output[0].numel() * module.conv.weight[0].numel())

    def of_norm(each: int, module: Any, inputs: Any, output: Any) -> None:
        norms.append(each * output.numel())

    layer_norms = {block.norm for block in module.modules() if isinstance(block, ConvNeXtBlock)}
    handles = []
    for part in module.modules():
        if isinstance(part, _ConvNd | nn.Linear | tada.TAdaConv2d | tada.TAdaConv3d):
            handles.append(part.register_forward_hook(of_kernel))
        elif isinstance(part, Stem):
            handles.append(part.register_forward_hook(of_stem))
        elif isinstance(part, _BatchNorm) or part in layer_norms:
            handles.append(part.register_forward_hook(partial(of_norm, 2 if isinstance(part, _BatchNorm) else 5)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    return Cost(
        name=name,
        clip=clip,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=sum(kernels),
        by_torch=counter.get_total_flops() // 2,
        with_norms=sum(kernels) + sum(norms),
        figure=figure,
    )


def operators() -> list[Cost]:
    """A plain convolution and its temporally adaptive forms, on ResNet-50's feature maps of 8 frames."""
    rows = []
    for channels, side in ((64, 56), (256, 14), (512, 7)):
        x, clip = torch.empty(1, channels, 8, side, side, device="meta"), f"{channels} x 8 x {side} x {side}"
        for kernel in ((1, 3, 3), (3, 1, 1), (3, 3, 3)):
            padding, sides = tuple(size // 2 for size in kernel), "x".join(map(str, kernel))
            build: Callable[..., nn.Module] = partial(
                nn.Conv3d, channels, channels, kernel, padding=padding, bias=False, device="meta"
            )
            rows.append(count(f"convolution {sides}", build(), x, clip))
            with torch.device("meta"):
                adaptive = tada.TAdaConv3d(
                    channels, channels, kernel, padding=padding, bias=False, routing=tada.Routing(channels)
                )
            rows.append(count(f"TAdaConv {sides}", adaptive, x, clip))
    return rows


PUBLISHED = (
    ("tsn_r50", 8, 224, ""),
    ("tada2d_r50", 8, 224, "27,485,472 parameters, 33.23 G"),
    ("tada2d_r50", 8, 256, "43.40 G (paper: 43)"),
    ("efficientnet_lite0", 8, 224, "0.385 G an image (d-li14)"),
    ("tada_lite0", 8, 224, ""),
    ("convnext_t", 16, 224, ""),
    ("tadaconvnext_t", 16, 224, "38,661,688 parameters, 36.02 G"),
    ("tadaconvnext_t", 16, 256, "47.02 G (paper: 47)"),
    ("tadaconvnext_t", 32, 224, "72.03 G"),
    ("tadaconvnext_t", 32, 256, "(paper: 94)"),
)
HOSTS = (
    ("tsn_r50", 8, 224),
    ("slowonly_r50", 8, 224),
    ("slowfast_r50", 32, 224),
    ("r2plus1d_r50", 8, 224),
    ("r3d_r50", 8, 224),
    ("slowonly_tiny", 8, 64),
    ("slowfast_tiny", 16, 64),
    ("r2plus1d_tiny", 8, 64),
    ("r3d_tiny", 8, 64),
)


def network(name: str, frames: int, side: int, *, figure: str = "", adapted: bool = False) -> Cost:
    """Count a network of tada."""
    with torch.device("meta"):
        x = torch.empty(1, 3, frames, side, side)
        if adapted and name.startswith("tsn"):
            model, _ = tada.adapt(tada.create_model(name), folds_frames=True)
        else:
            model = tada.create_model(name, **{"adapted": True} if adapted else {})
    return count(f"{name}, adapted" if adapted else name, model, x, f"{frames} x {side} x {side}", figure=figure)


def main() -> None:
    """Count and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    console = Console(width=130)

    maps = operators()
    show(console, "Operators (r = 4), beside the plain convolution", maps, pairs=True)
    published = [network(name, frames, side, figure=figure) for name, frames, side, figure in PUBLISHED]
    show(console, "Networks, 400 classes", published)
    hosts = [network(*host, adapted=adapted) for host in HOSTS for adapted in (False, True)]
    show(console, "Adapted networks, beside themselves as they were, 400 classes", hosts, pairs=True)
    if arguments.json is not None:
        tables = {"operators": maps, "networks": published, "hosts": hosts}
        text = json.dumps({name: [asdict(row) for row in rows] for name, rows in tables.items()}, indent=2)
        arguments.json.write_text(text + "\n")


def show(console: Console, title: str, rows: list[Cost], *, pairs: bool = False) -> None:
    """Print a table; where rows come in pairs, with what the second adds to the first, in per cent."""
    last = "added: parameters, multiply-adds" if pairs else "given as"
    table = Table("", "clip", "parameters", "G by shapes", "G by torch", "G with norms", last, title=title)
    for column in table.columns[2:6]:
        column.justify = "right"
    for i, row in enumerate(rows):
        note = row.figure
        if pairs and i % 2:
            plain = rows[i - 1]
            added = row.parameters / plain.parameters - 1, row.multiply_adds / plain.multiply_adds - 1
            note = f"+{added[0]:.1%}, +{added[1]:.3%}"
        giga = (f"{value / 1e9:.3f}" for value in (row.multiply_adds, row.by_torch, row.with_norms))
        table.add_row(row.name, row.clip, f"{row.parameters:,}", *giga, note)
    console.print(table)


if __name__ == "__main__":
    main()
