"""Grad-CAM: which pixels of a clip support a class; with the calibration of TAdaConv's kernels in the same run.

Grad-CAM (arXiv 1610.02391) on a feature map A: ``relu(sum_c w_tc * A_tc)``, where w_tc, the weight of a channel in a
frame, is the mean over the frame's pixels of the gradient of the class's logit. Each cell of the map is drawn at the
center of its receptive field: with strided, padded kernels of odd sizes that is up to half a cell further up and left
than in a regular grid.

Shapes: T frames, T' frames of a feature map, C channels, h x w cells, H x W pixels, K classes. There is one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tada.adaptation.own_padding import FramePadding, sides_of
from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models.efficientnet_lite import EfficientNetLite
from tada.models.resnet3d import Host
from tada.models.tada2d import TAda2D
from tada.models.tadaconvnext import TAdaConvNeXt
from tada.models.tadaformer import TAdaFormer
from tada.tadaconv import Calibration, TAdaConv2d, TAdaConv3d

MIN_CELLS = 7
"""The least rows and columns of a feature map that is shown: those of a ResNet's last stage at 224 pixels. Where a
stage has fewer, an earlier stage is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The Grad-CAM heatmap of a clip, and the calibration of the network's layers."""

    heat: Tensor
    """[T, h, w], in [0, 1]: the support for the class; its maximum over the clip is 1. All 0 where there is none."""
    rows: Tensor
    """[h], the pixel row of the clip at the center of each row of cells."""
    columns: Tensor
    """[w], the pixel column at the center of each column of cells."""
    layers: tuple[str, ...]
    """The modules whose feature maps were used: one, or one per pathway (SlowFast)."""
    calibrations: dict[str, Tensor]
    """TAdaConv layer -> alpha - 1 by frame and channel, [T', C]; in the order of the forward pass."""


def look(network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], *, layer: str | None = None) -> Look:
    """Compute the Grad-CAM of a class for a clip, and record the calibration of the kernels.

    The network should be in evaluation mode. It runs twice; gradients are computed back to the feature map only. Not
    for two threads at a time on one network.

    Args:
        network: clips [N, 3, T, H, W] -> logits [N, K], or [N, T, K] for each frame, which are averaged.
        clip: [1, 3, T, H, W], normalized.
        choose: the logits [K] -> the number to explain, such as ``lambda logits: logits[3]``.
        layer: name of the module whose output is the feature map, as in ``named_modules``. By default the last stage,
            or an earlier one where it has fewer than ``MIN_CELLS`` rows or columns; for a network that is not tada's,
            the last feature map.

    Raises:
        UnknownNameError: no module has this name.
        OptionError: the output of the module is no feature map; or the network has no feature map.
        CheckpointError: the network computes NaN.
    """
    with torch.inference_mode(False):  # else there are no gradients
        clip = clip.clone() if clip.is_inference() else clip
        survey = _survey(network, clip)
        layers = _stage(network, survey) if layer is None else (_with_a_map(layer, network, survey),)
        cams = _cams(network, clip, choose, layers)
    total = torch.stack([_at_frames(cam, clip.shape[2]) for cam in cams]).sum(0).relu()
    peak = total.max()
    if not peak.isfinite():
        raise CheckpointError("the network's numbers grow beyond all bounds for this clip (NaN): train it anew")
    rows, columns = _middles(survey, layers[0], (clip.shape[3], clip.shape[4]))
    return Look(
        heat=(total / peak if peak > 0 else total).cpu(),
        rows=rows,
        columns=columns,
        layers=layers,
        calibrations=survey.calibrations,
    )


# -- the first run: feature maps and calibrations ---------------------------------------------------------------------


class _Resizing(NamedTuple):
    """A convolution or a pool that changes the number of rows or columns."""

    before: tuple[int, int]
    after: tuple[int, int]
    module: nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    """What hooks recorded in a forward pass, in the order in which modules returned."""

    maps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Module -> rows and columns of its output, where that is a feature map."""
    resizings: dict[str, list[_Resizing]] = field(default_factory=dict)
    """Module -> the resizing layers up to it."""
    calibrations: dict[str, Tensor] = field(default_factory=dict)


_RESIZING = (nn.Conv2d, nn.Conv3d, TAdaConv2d, TAdaConv3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)


def _survey(network: nn.Module, clip: Tensor) -> _Survey:
    survey = _Survey()
    resizings: list[_Resizing] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (4, 5):
            return
        after = output.shape[-2], output.shape[-1]
        if isinstance(module, _RESIZING) and inputs:
            before = inputs[0].shape[-2], inputs[0].shape[-1]
            if before != after:
                resizings.append(_Resizing(before, after, module))
        if max(after) > 1:
            survey.maps.pop(name, None)  # where a module is called twice, its last output counts
            survey.maps[name] = after
            survey.resizings[name] = list(resizings)

    def calibrated(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Calibration) -> None:
        calls = sum(known == name or known.startswith(f"{name} #") for known in survey.calibrations)
        survey.calibrations[f"{name} #{calls + 1}" if calls else name] = (output.alpha[0].T - 1).cpu()

    with _hooks() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            hooks.append(module.register_forward_hook(partial(note, name)))
            if isinstance(module, TAdaConv2d | TAdaConv3d) and module.routing is not None:
                hooks.append(module.routing.register_forward_hook(partial(calibrated, name)))
        network(clip)
    return survey


@contextmanager
def _hooks() -> Iterator[list[RemovableHandle]]:
    hooks: list[RemovableHandle] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()


# -- which feature map ------------------------------------------------------------------------------------------------


def _stage(network: nn.Module, survey: _Survey) -> tuple[str, ...]:
    """The last stage with a feature map of ``MIN_CELLS``, in each pathway; else the one with the finest map."""
    stages = _stages(network) or [(name,) for name in list(survey.maps)[-1:]]
    sizes = {layers: min(survey.maps[layers[0]]) for layers in stages if layers[0] in survey.maps}
    if not sizes:
        raise OptionError(
            f"this {type(network).__name__} has no feature map of more than one pixel: there is no place in the frame "
            "to show; give it larger frames"
        )
    fine = [layers for layers, size in sizes.items() if size >= MIN_CELLS]
    return fine[-1] if fine else max(sizes, key=lambda layers: sizes[layers])


def _stages(network: nn.Module) -> list[tuple[str, ...]]:
    """The last module of each stage, by pathway, of tada's networks; empty for other networks."""
    if isinstance(network, TAda2D | TAdaConvNeXt | EfficientNetLite):
        return [(name,) for name in _last_blocks("stages", network.stages)]
    if isinstance(network, TAdaFormer):  # the patches before the attention of each block
        if not network.config.tada_blocks:
            raise OptionError(
                "a TAdaFormer without TAda blocks (tada_blocks: 0) has no module that gives a feature map: look at "
                "a model with TAda blocks"
            )
        return [(f"blocks.{i}.tada",) for i in range(len(network.blocks))]
    if isinstance(network, Host):
        slow = _last_blocks("slow.stages", network.slow.stages)
        if network.fast is None:
            return [(name,) for name in slow]
        return list(zip(slow, _last_blocks("fast.stages", network.fast.stages), strict=True))
    return []


def _last_blocks(prefix: str, stages: nn.ModuleList) -> list[str]:
    return [f"{prefix}.{i}.{len(list(stage.children())) - 1}" for i, stage in enumerate(stages)]


def _with_a_map(layer: str, network: nn.Module, survey: _Survey) -> str:
    if layer in survey.maps:
        return layer
    if layer not in dict(network.named_modules()):
        raise UnknownNameError.of("layer with a feature map", layer, survey.maps)
    raise OptionError(
        f"the layer {layer!r} gives no feature map (frames [T, C, h, w] or a clip [1, C, T, h, w]) for this clip; the "
        f"last that does is {next(reversed(survey.maps), 'none')!r}"
    )


# -- the second run: gradients of the logit ---------------------------------------------------------------------------


def _cams(network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], layers: Sequence[str]) -> list[Tensor]:
    """The Grad-CAM of each layer before the ReLU, [T', h, w], scaled so that the pathways' maps can be added."""
    features: dict[str, Tensor] = {}

    def cut(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        features[name] = output.detach().requires_grad_()
        torch.set_grad_enabled(True)  # until the end of the no_grad block below
        return features[name].clone()  # later layers may work in place

    with _hooks() as hooks, torch.no_grad():
        for name in layers:
            hooks.append(network.get_submodule(name).register_forward_hook(partial(cut, name)))
        logits = network(clip)
        with torch.enable_grad():
            chosen = choose(logits.flatten(0, -2).mean(0))
        gradients: Sequence[Tensor | None] = [None] * len(layers)
        if chosen.requires_grad:
            gradients = torch.autograd.grad(chosen, [features[name] for name in layers], allow_unused=True)
    cams = []
    for name, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise OptionError(f"the logits do not depend on the layer {name!r}: look at another")
        weights = _frames(gradient).mean((2, 3), keepdim=True)
        # The head's mean divides gradients by the number of cells, which differs between pathways: multiply by it.
        cam = (weights * _frames(features[name].detach())).sum(1)
        cams.append(cam * cam.numel())
    return cams


def _frames(features: Tensor) -> Tensor:
    """A clip [1, C, T', h, w], or frames -> frames [T', C, h, w]."""
    return features[0].transpose(0, 1) if features.ndim == 5 else features


def _at_frames(cam: Tensor, num_frames: int) -> Tensor:
    """Interpolate [T', h, w] -> [T, h, w] over time; map t' is at frame t' * stride."""
    stride = -(-num_frames // len(cam))
    place = (torch.arange(num_frames, device=cam.device) / stride).clamp(max=len(cam) - 1)
    before = place.floor().long()
    part = (place - before).to(cam.dtype)[:, None, None]
    return cam[before] * (1 - part) + cam[(before + 1).clamp(max=len(cam) - 1)] * part


# -- the positions of cells -------------------------------------------------------------------------------------------


def _middles(survey: _Survey, layer: str, pixels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pixel row and column at each cell's center, [h] and [w].

    The center of the kernel for output i is at ``i * stride - padding + dilation * (kernel - 1) / 2`` of its input.
    Where the size changes in another way, cells are taken for the centers of equal parts (patches).
    """
    middles = []
    for axis in (0, 1):
        first, step, size = 0.0, 1.0, pixels[axis]
        for before, after, module in survey.resizings[layer]:
            if before[axis] > size:
                continue  # a shortcut or another pathway: this resizing is counted already
            first, step = _patches(first, step, size / before[axis])
            kernel, stride, dilation = (_side(module, name, axis) for name in ("kernel_size", "stride", "dilation"))
            padding = _padding(module, axis, before)
            first, step = first + (dilation * (kernel - 1) / 2 - padding) * step, step * stride
            size = after[axis]
        count = survey.maps[layer][axis]
        first, step = _patches(first, step, size / count)
        middles.append(first + step * torch.arange(count))
    return middles[0], middles[1]


def _padding(module: nn.Module, axis: int, size: tuple[int, int]) -> int:
    """Zeros before the first row or column."""
    around: FramePadding | None = getattr(module, "padded_before", None)
    if around is None:
        return _side(module, "padding", axis)
    left, _, above, _ = sides_of(around, size, module)
    return (above, left)[axis]


def _side(module: nn.Module, name: str, axis: int) -> int:
    value = getattr(module, name, 1)  # average pools have no dilation
    if isinstance(value, str):  # "valid": "same" resizes nothing
        return 0
    return value if isinstance(value, int) else value[axis - 2]


def _patches(first: float, step: float, factor: float) -> tuple[float, float]:
    whole = max(round(factor), 1)
    return first + (whole - 1) / 2 * step, step * whole
