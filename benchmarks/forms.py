"""The networks that the speed benchmarks compare, each in the forms in which it can be run.

Shapes: N clips, T frames, C channels, H x W pixels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from reference.released import released, stir
from tada.models import create_model
from tada.models.efficientnet_lite import InvertedResidual
from tada.models.fuse import fuse
from tada.models.tada2d import BasicBlock, Bottleneck
from tada.models.tadaconvnext import Stem
from tada.tadaconv import TAdaConv2d
from timing import PRECISIONS

FormName = Literal["literal", "unfolded", "fused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A network, and how it is run."""

    network: str
    """By the name that ``create_model`` knows; or tsm_r50, or clip_b16, CLIP's image transformer on frames."""
    kind: FormName
    """As released; ours as it is trained; or ready for inference, its norms folded."""
    precision: str = "fp32"
    compiled: bool = False

    @property
    def name(self) -> str:
        """In a table."""
        return f"{self.network} {self.kind} {self.precision}{' compiled' if self.compiled else ''}"


def build(form: Form, num_frames: int, device: torch.device, **options: Any) -> nn.Module:
    """The network of a form, in evaluation mode; it takes clips [N, 3, T, H, W] of the form's precision.

    Args:
        num_frames: T, which a TSM has to know.
        options: of ``create_model``.
    """
    dtype = PRECISIONS[form.precision]
    model = network(form.network, num_frames, **options).eval()
    if form.kind == "fused":
        return fuse(model, dtype=dtype, compile=form.compiled).to(device)
    model = (released(model) if form.kind == "literal" else model).to(device, dtype)
    return torch.compile(model) if form.compiled else model


def network(name: str, num_frames: int, **options: Any) -> nn.Module:
    """A network by its name, with norms and routing functions as if it were trained."""
    torch.manual_seed(0)
    if name == "clip_b16":
        return stir(create_model("tadaformer_b16", tada_blocks=0, **options))
    if name != "tsm_r50":
        return stir(create_model(name, **options))
    model = stir(create_model("tsn_r50", **options))
    add_shifts(model, num_frames)
    return model


def add_shifts(model: nn.Module, num_frames: int) -> None:
    """Make a network of frames a TSM: shift channels before the first convolution of each residual block."""
    for block in model.modules():
        if isinstance(block, Bottleneck | BasicBlock):
            first = block.conv1.conv if isinstance(block, BasicBlock) else block.conv1
        elif isinstance(block, InvertedResidual) and block.adds:  # as TSM has it in MobileNetV2
            assert block.expand is not None
            first = block.expand
        else:
            continue
        first.register_forward_pre_hook(partial(shift_channels, num_frames))


def shift_channels(num_frames: int, conv: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    """Let a convolution see an eighth of the channels one frame late and another eighth one frame early.

    So does TSM (arXiv 1811.08383) before the first convolution of each block. Beyond a clip's ends there are zeros.
    Takes and gives frames [N*T, C, H, W].
    """
    (frames,) = arguments
    pixels = frames.permute(0, 2, 3, 1)  # as they lie
    clips = pixels.reshape(-1, num_frames, *pixels.shape[1:])
    late, early, rest = clips.split([clips.shape[-1] // 8] * 2 + [clips.shape[-1] * 3 // 4], dim=-1)
    late = torch.cat([torch.zeros_like(late[:, :1]), late[:, :-1]], dim=1)
    early = torch.cat([early[:, 1:], torch.zeros_like(early[:, :1])], dim=1)
    return torch.cat([late, early, rest], dim=-1).reshape(pixels.shape).permute(0, 3, 1, 2)


def least_values_moved(model: nn.Module, clips: Tensor) -> int:
    """Values read and written by the network's layers, if each reads input and weights once and writes its output.

    All else (norms, activations, sums) could be done on the way. Nothing is computed where both are on "meta".
    """
    moved: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        weights = sum(p.numel() for p in module.parameters())
        moved.append(inputs[0].numel() + out.numel() + weights)

    layers = [m for m in model.modules() if isinstance(m, Stem | TAdaConv2d | nn.Linear | _ConvNd)]
    inner = {part for layer in layers for part in layer.modules() if part is not layer}  # a routing function's
    handles = [layer.register_forward_hook(count) for layer in layers if layer not in inner]
    with torch.no_grad():
        model(clips)
    for handle in handles:
        handle.remove()
    return sum(moved)
