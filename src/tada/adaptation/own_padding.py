"""Find the padding of convolutions that pad in their own ``forward``, as those of EfficientNets do.

The padding is computed from the input's size (timm's ``Conv2dSame``) or once at construction (efficientnet_pytorch's
``Conv2dStaticSamePadding``). To find it, a copy is run on inputs of several sizes and its calls of conv2d are recorded:
there has to be one, with the convolution's own kernel, on the input with zeros around it, and its output returned, as
has to be the gradient.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sides = tuple[int, int, int, int]
"""Zeros left, right, above and below, in pixels, as in ``F.pad``."""
FramePadding = Sides | Literal["same"]
""""same" is TensorFlow's padding: the output has ceil(size / stride) pixels; an odd zero is right or below."""


def pad_frames(x: Tensor, padding: FramePadding, conv: nn.Module) -> Tensor:
    """Pad frames [N, C, H, W] for a convolution; "same" depends on its kernel size, stride and dilation."""
    return F.pad(x, sides_of(padding, x.shape[-2:], conv))


def sides_of(padding: FramePadding, size: Sequence[int], conv: nn.Module) -> Sides:
    """The zeros around frames of this size, (height, width)."""
    return _same_sides(size, conv) if padding == "same" else padding


def _same_sides(size: Sequence[int], conv: Any) -> Sides:
    rows, columns = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    return *_same_side(*columns), *_same_side(*rows)


def _same_side(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    # In an export, size is a symbol: max() and remainders would make expressions grow with each layer, and ONNX rounds
    # -(-size // stride) to the other side.
    num_outputs, span = (size + stride - 1) // stride, dilation * (kernel - 1) + 1
    total = (num_outputs - 1) * stride + span - size
    total = total if span >= stride else max(total, 0)
    return total // 2, total - total // 2


def find_own_padding(conv: nn.Conv2d) -> FramePadding | None:
    """Find how a convolution with its own ``forward`` pads.

    Returns:
        The padding; None if ``forward`` does anything else than pad with zeros and convolve, in training or in
        evaluation, or if there are weights besides kernel and bias, or arguments besides the input.
    """
    takes_more = len(inspect.signature(conv.forward).parameters) > 1
    if takes_more or conv.state_dict().keys() - {"weight", "bias"}:
        return None
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            twin = _twin(conv)
            found = [(x, _padded_sides(twin.train(training), x)) for training in (True, False) for x in _probes(twin)]
    except Exception:  # forward is not ours, and may raise anything
        return None
    all_sides = [sides for _, sides in found if sides is not None]
    if len(all_sides) < len(found):
        return None
    if len(set(all_sides)) == 1:
        return all_sides[0]
    return "same" if all(sides == _same_sides(x.shape[-2:], conv) for x, sides in found) else None


@torch.no_grad()
def _twin(conv: nn.Conv2d) -> nn.Conv2d:
    """A copy to run, since ``forward`` may have side effects; on the "meta" device it has no numbers, and gets some."""
    if not conv.weight.is_meta:
        return copy.deepcopy(conv).to("cpu", torch.float64)
    twin = copy.deepcopy(conv).to_empty(device="cpu").to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        parameter.uniform_(-1, 1, generator=generator)
    return twin


def _probes(conv: nn.Conv2d) -> Iterator[Tensor]:
    """Inputs without zeros, of both signs, of sizes with every remainder modulo the stride and a larger one.

    The larger one has large values: a forward that cuts them off is found by it.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = (d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    count = 2 * max(conv.stride)
    small = [(2, height + i, width + 2 * count - i, 1.0) for i in range(count)]
    for n, *sides, scale in [*small, (1, height + 17, width + 40, 1000.0)]:
        x = 1 + torch.rand(n, conv.in_channels, *sides, dtype=torch.float64, generator=generator)
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        yield x * signs * scale


def _padded_sides(conv: nn.Conv2d, x: Tensor) -> Sides | None:
    """Find the zeros that a convolution adds around x; None if it does anything else."""
    given = x.clone().requires_grad_()  # a forward that changes its input fails on it
    with _Conv2dCalls() as calls:
        y = conv(given)
    if len(calls.inputs) != 1 or calls.inputs[0][1] is not conv.weight:
        return None
    padded, _, padding = calls.inputs[0]
    padded = padded.detach()
    inside = padded[0, 0].nonzero()  # [pixels, 2]
    if isinstance(padding, str) or not len(inside):
        return None
    (above, left), (bottom, right) = inside[0].tolist(), inside[-1].tolist()
    sides = left, padded.shape[-1] - 1 - right, above, padded.shape[-2] - 1 - bottom
    if not torch.equal(F.pad(x, sides), padded):
        return None
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    sides = sides[0] + columns, sides[1] + columns, sides[2] + rows, sides[3] + rows
    x.requires_grad_()
    ours = F.conv2d(F.pad(x, sides), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    if ours.shape != y.shape or not torch.allclose(ours, y, rtol=1e-9, atol=1e-12):
        return None
    slope = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    (expected,), (found,) = (torch.autograd.grad(out, into, slope) for out, into in ((ours, x), (y, given)))
    return sides if torch.allclose(expected, found, rtol=1e-9, atol=1e-12) else None


class _Conv2dCalls(TorchFunctionMode):
    """Records input, kernel and padding of each call of conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Tensor, Any, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            names = ("input", "weight", "bias", "stride", "padding")
            given = {"padding": 0} | dict(zip(names, args, strict=False)) | (kwargs or {})
            self.inputs.append((given["input"], given["weight"], given["padding"]))
        return func(*args, **(kwargs or {}))
