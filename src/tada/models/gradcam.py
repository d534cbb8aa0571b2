"""Which pixels of a clip speak for a class (Grad-CAM), and how TAdaConv's kernels were calibrated meanwhile.

Grad-CAM (arXiv 1610.02391) on a feature map A: ``relu(sum_c w_tc * A_tc)``, where w_tc, the weight of a channel in a
frame, is the mean over the frame's pixels of the gradient of the class's logit. A cell of the map is drawn in the
middle of the pixels that the convolutions before it see: with padded kernels of odd sides that is not the middle of an
equal part of the frame but up to half a cell further up and left.

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

from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models.resnet3d import Host
from tada.models.tada2d import TAda2D
from tada.models.tadaconvnext import TAdaConvNeXt
from tada.tadaconv import Calibration, TAdaConv2d, TAdaConv3d

MIN_CELLS = 7
"""Rows and columns that a feature map should have to show where something is: those of a ResNet's last stage at 224
pixels. Where a stage has fewer, one before it is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a network looked at in a clip."""

    heat: Tensor
    """[T, h, w], in [0, 1]: what speaks for the class, 1 where most does in the clip. All 0 where nothing does."""
    rows: Tensor
    """[h], the pixel row of the clip that each row of cells has its middle on."""
    columns: Tensor
    """[w], the pixel column."""
    layers: tuple[str, ...]
    """The modules whose output the heat is of: one, or one of each pathway (SlowFast)."""
    calibrations: dict[str, Tensor]
    """For each TAdaConv layer alpha - 1 by frame and channel, [T', C]; in the order in which the clip passes them."""


def look(network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], *, layer: str | None = None) -> Look:
    """Find what speaks for a class in a clip, and how the kernels were calibrated.

    The network should be in evaluation mode. It runs twice; gradients reach back to the feature map and no further.
    Not for two threads at a time on one network.

    Args:
        network: clips [N, 3, T, H, W] -> logits [N, K], or [N, T, K] for each frame, of which the mean counts.
        clip: [1, 3, T, H, W], normalized.
        choose: the logits [K] -> the number that is explained, such as ``lambda logits: logits[3]``.
        layer: name of the module whose output is looked at, as in ``named_modules``. By default the last stage's, or
            that of an earlier stage where it has fewer than ``MIN_CELLS`` rows or columns; of a network that is not
            one of tada's, the last feature map.

    Raises:
        UnknownNameError: no module has this name.
        OptionError: the module gives no feature map; or none in the network does.
        CheckpointError: the network computes NaN.
    """
    with torch.inference_mode(False):  # or nothing could be differentiated
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


# -- the first run: what there is -------------------------------------------------------------------------------------


class _Resizing(NamedTuple):
    """A convolution or a pool that changes the number of rows or columns."""

    before: tuple[int, int]
    after: tuple[int, int]
    module: nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    """What happened in a network, in the order in which modules were done."""

    maps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rows and columns of every module's output that is a feature map."""
    resizings: dict[str, list[_Resizing]] = field(default_factory=dict)
    """Up to each of them."""
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
            survey.maps.pop(name, None)  # of a module that is called twice the second time counts
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
    """The last stage's output that is fine enough, in each pathway; else the finest there is."""
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
    """The last module of each stage of our networks, of every pathway; none for those that are not known."""
    if isinstance(network, TAda2D | TAdaConvNeXt):
        return [(name,) for name in _last_blocks("stages", network.stages)]
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


# -- the second run: what the class's logit owes to it ----------------------------------------------------------------


def _cams(network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], layers: Sequence[str]) -> list[Tensor]:
    """For each layer the weighted sum of its channels, [T', h, w]; added up, the parts of a pathway count alike."""
    features: dict[str, Tensor] = {}

    def cut(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        features[name] = output.detach().requires_grad_()
        torch.set_grad_enabled(True)  # from here on; no_grad below ends it
        return features[name].clone()  # what follows may write over it

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
        # A mean over many frames and pixels leaves each a small gradient: times their number, so that pathways compare.
        cam = (weights * _frames(features[name].detach())).sum(1)
        cams.append(cam * cam.numel())
    return cams


def _frames(features: Tensor) -> Tensor:
    """[T', C, h, w], of a clip [1, C, T', h, w] or of frames."""
    return features[0].transpose(0, 1) if features.ndim == 5 else features


def _at_frames(cam: Tensor, num_frames: int) -> Tensor:
    """[T', h, w] -> [T, h, w]: the map t' lies on frame t' * stride; frames between two have some of both."""
    stride = -(-num_frames // len(cam))
    place = (torch.arange(num_frames, device=cam.device) / stride).clamp(max=len(cam) - 1)
    before = place.floor().long()
    part = (place - before).to(cam.dtype)[:, None, None]
    return cam[before] * (1 - part) + cam[(before + 1).clamp(max=len(cam) - 1)] * part


# -- where its cells are ----------------------------------------------------------------------------------------------


def _middles(survey: _Survey, layer: str, pixels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pixel row and column that each cell's middle is on, [h] and [w].

    The middle of a kernel at place i lies on ``i * stride - padding + dilation * (kernel - 1) / 2`` of what it reads.
    Where rows become fewer in another way, each is taken for the middle of an equal part (a patch).
    """
    middles = []
    for axis in (0, 1):
        first, step, size = 0.0, 1.0, pixels[axis]
        for before, after, module in survey.resizings[layer]:
            if before[axis] > size:
                continue  # a shortcut, or another pathway: this step is taken already
            first, step = _patches(first, step, size / before[axis])
            kernel, stride, padding, dilation = (_side(module, name, axis) for name in _GEOMETRY)
            first, step = first + (dilation * (kernel - 1) / 2 - padding) * step, step * stride
            size = after[axis]
        count = survey.maps[layer][axis]
        first, step = _patches(first, step, size / count)
        middles.append(first + step * torch.arange(count))
    return middles[0], middles[1]


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def _side(module: nn.Module, name: str, axis: int) -> int:
    value = getattr(module, name, 1)  # average pools have no dilation
    if isinstance(value, str):  # "valid": "same" resizes nothing
        return 0
    return value if isinstance(value, int) else value[axis - 2]


def _patches(first: float, step: float, factor: float) -> tuple[float, float]:
    whole = max(round(factor), 1)
    return first + (whole - 1) / 2 * step, step * whole
