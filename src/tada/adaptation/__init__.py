"""Make the convolutions of any network temporally adaptive, and keep its weights.

A new routing function returns 1 for every frame, so the adapted network computes what it computed before, until it is
trained. A network of 3-D convolutions takes clips, before and after. A network of 2-D convolutions takes images; it is
wrapped in a ``ClipNetwork``, which takes clips, runs the network on all their frames as one batch of images, and tells
the adapted convolutions how many frames of the batch are one clip.

Shapes: N clips, T frames, C channels in, D channels out, g groups, H x W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from tada.adaptation.own_padding import FramePadding, find_own_padding, pad_frames
from tada.errors import OptionError, listed
from tada.system.calls import checked
from tada.tadaconv import (
    Calibrate,
    Calibration,
    Routing,
    RoutingNorm,
    TAdaConv2d,
    TAdaConv3d,
    depthwise_hidden_channels,
)
from tada.tadaconv.routing_v2 import RoutingV2

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


@checked(num_frames=1, ratio=1)
def adapt(
    network: nn.Module,
    *,
    num_frames: int | None = None,
    where: Where | None = None,
    folds_frames: bool = False,
    ratio: int | None = None,
    attention: bool = False,
) -> tuple[nn.Module, AdaptReport]:
    """Make convolutions of a network temporally adaptive, in place.

    Kernels and biases stay the same parameters under the same names; each changed convolution gains ``routing``. To
    load an adapted network's weights again, build the network, adapt it with the same arguments, and load them.

    Args:
        num_frames: T, where it is fixed: 2-D convolutions then refuse clips of another T. Networks of 3-D convolutions
            read T from their input, whatever is given here.
        where: which convolutions to change: names or patterns as in ``"layer3.*.conv2"``, or a function of name and
            module. By default those with a kernel larger than 1 and than its stride that lie in a stacked block: a
            module whose name ends in a number and whose class occurs more than once. Stems, heads and downsamplings
            between stages are skipped.
        folds_frames: True for a network of 2-D convolutions that takes clips and folds their frames into the batch
            itself, each clip's frames in a row (TSN, TSM). Its input is then passed on unchanged.
        ratio: r; the hidden layers of the routing functions have C / r channels. Default: 4, as in the paper; for
            depthwise convolutions, whose kernels have few parameters, C / 4 channels but at most 6. With attention: 2.
        attention: True: the routing functions of the second paper (``RoutingV2``), in which the frames attend to each
            other; False: those of the first, which add the clip's mean to each frame.

    Returns:
        The network, and a report of what was changed, what was skipped and why, and the cost. A network of 2-D
        convolutions is wrapped in a ``ClipNetwork``, unless T is fixed and the network folds frames itself.

    Raises:
        OptionError: an argument is of another type or out of its range; nothing was changed, or a pattern matches no
            convolution; the network is then unchanged. Or it has lazy layers, or is already compiled or wrapped for
            parallel training, which has to come after ``adapt``.
    """
    _check_ready(network)
    found = dict(_convolutions(network))
    picked, reasons = _pick(network, found, where)
    only_images = not any(isinstance(module, nn.Conv3d | TAdaConv3d) for module in found.values())
    t_is_known = only_images or num_frames is not None
    paddings: dict[str, _Padding] = {}
    for name in sorted(picked):
        padding = _padding_or_reason(found[name])
        if not isinstance(padding, str) and isinstance(found[name], nn.Conv2d) and not t_is_known:
            padding = "2-D among 3-D convolutions: give num_frames, as many as one clip has there"
        if isinstance(padding, str):
            picked.remove(name)
            reasons[name] = padding
        else:
            paddings[name] = padding
    skipped = tuple(SkippedConvolution(name=name, reason=reasons[name]) for name in found if name in reasons)
    if not picked:
        refused = [convolution for convolution in skipped if convolution.reason != _NOT_PICKED] or skipped
        raise OptionError(
            f"no convolution of this {_class_name(network)} was changed: {_list_by_reason(refused) or 'it has none'}; "
            "pick others with where"
        )

    clip = network.clip if isinstance(network, ClipNetwork) else ClipLength(num_frames)
    norm: RoutingNorm = "batch" if any(isinstance(module, _BatchNorm) for module in network.modules()) else "layer"
    parameters_before = _num_parameters(network)
    changed = []
    replacements: dict[nn.Module, TAdaConv2d | TAdaConv3d] = {}
    for name, module in found.items():
        if name in picked:
            assert isinstance(module, nn.Conv2d | nn.Conv3d)
            new = _temporally_adaptive(module, paddings[name], _new_routing(module, norm, ratio, attention), clip)
            replacements[module] = new
            changed.append(AdaptedConvolution.of(name, new))
    routings = [conv.routing for conv in replacements.values() if conv.routing is not None]
    network = _replace(network, replacements)
    report = AdaptReport(
        changed=tuple(changed),
        skipped=skipped,
        parameters_before=parameters_before,
        parameters_after=_num_parameters(network),
        parameters_unbounded=parameters_before + sum(_parameters_by_ratio(routing, 4) for routing in routings),
    )
    images_changed = any(isinstance(module, FrameConv2d) for module in replacements.values())
    if not images_changed or isinstance(network, ClipNetwork):
        return network, report
    if num_frames is not None and (folds_frames or not only_images):
        return network, report
    return ClipNetwork(network, clip, folds_frames=folds_frames), report


# -- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptedConvolution:
    """A convolution that was changed, and the cost of its routing function."""

    name: str
    """Its name in the network."""
    kernel_size: tuple[int, ...]
    """Frames (of a 3-D kernel), height and width."""
    in_channels: int
    """C."""
    out_channels: int
    """D."""
    parameters: int
    """Added parameters."""
    multiply_adds_per_frame: int
    """Multiply-adds of the routing function's layers over time, for one frame."""
    multiply_adds_per_clip: int
    """Multiply-adds of its global context, for one clip."""

    @classmethod
    def of(cls, name: str, conv: TAdaConv2d | TAdaConv3d) -> AdaptedConvolution:
        """Count the parameters and multiply-adds of a convolution's routing function."""
        assert conv.routing is not None
        per_clip = conv.routing.context
        layers = [m for m in conv.routing.modules() if isinstance(m, nn.Conv1d | nn.Linear) and m is not per_clip]
        return cls(
            name=name,
            kernel_size=conv.kernel_size,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            parameters=_num_parameters(conv.routing),
            multiply_adds_per_frame=sum(layer.weight.numel() for layer in layers),
            multiply_adds_per_clip=0 if per_clip is None else per_clip.weight.numel(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedConvolution:
    """A convolution that was not changed."""

    name: str
    """Its name in the network."""
    reason: str
    """Why it was not changed, in words."""


_LARGE_GROWTH = 0.15
"""The share of added parameters above which a report says how to add fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptReport:
    """What ``adapt`` changed and skipped; ``str`` makes it a table."""

    changed: tuple[AdaptedConvolution, ...]
    """In the network's order."""
    skipped: tuple[SkippedConvolution, ...]
    """In the network's order."""
    parameters_before: int
    """Parameters of the whole network before."""
    parameters_after: int
    """Parameters of the whole network now."""
    parameters_unbounded: int
    """What ``parameters_after`` would be with ``ratio=4`` for all changed convolutions; with attention
    ``parameters_after`` itself, since its layers are never bounded."""

    def multiply_adds(self, num_frames: int) -> int:
        """Multiply-adds that the routing functions add for a clip of T frames of any size.

        They see one number per channel and frame, whatever the frames' size. A network that drops frames in between
        needs fewer. The product of features and alpha is not counted, as in the paper, nor those between the frames of
        an attention.
        """
        return sum(c.multiply_adds_per_frame * num_frames + c.multiply_adds_per_clip for c in self.changed)

    def __str__(self) -> str:
        """Lay out the table."""
        width = max(len(c.name) for c in self.changed)
        are = "convolution is" if len(self.changed) == 1 else "convolutions are"
        lines = [f"{len(self.changed)} {are} temporally adaptive now, {len(self.skipped)} are unchanged"]
        lines.append(f"  {'':{width}}  {'kernel':>7}  {'channels':>12}  {'parameters':>12}  {'mult-adds/frame':>15}")
        lines += [
            f"  {c.name:{width}}  {'x'.join(map(str, c.kernel_size)):>7}  {f'{c.in_channels}->{c.out_channels}':>12}  "
            f"{f'+{c.parameters:,}':>12}  {f'+{c.multiply_adds_per_frame:,}':>15}"
            for c in self.changed
        ]
        lines.append(f"unchanged: {_list_by_reason(self.skipped) or 'none'}")
        lines.append(f"parameters: {self.parameters_before:,} -> {self._grown(self.parameters_after)}")
        if self.parameters_after > (1 + _LARGE_GROWTH) * self.parameters_before:
            lines.append(f"more than {_LARGE_GROWTH:.0%}: a larger ratio, or fewer convolutions (where), add less")
        if self.parameters_after != self.parameters_unbounded:
            lines.append(f"with ratio=4: {self._grown(self.parameters_unbounded)}")
        lines.append(f"multiply-adds: +{self.multiply_adds(8):,} for a clip of 8 frames of any size")
        return "\n".join(lines)

    def _grown(self, parameters: int) -> str:
        return f"{parameters:,} (+{(parameters - self.parameters_before) / self.parameters_before:.1%})"


def _list_by_reason(skipped: Sequence[SkippedConvolution]) -> str:
    names: dict[str, list[str]] = {}
    for convolution in skipped:
        names.setdefault(convolution.reason, []).append(convolution.name or "the network itself")
    return "; ".join(f"{reason} ({listed(group, quote=False, at_most=4)})" for reason, group in names.items())


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- which convolutions -----------------------------------------------------------------------------------------------


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules that are convolutions, or whose class name says so, each once and with its first name."""
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, TAdaConv2d | TAdaConv3d):
            inside += (f"{name}.",)  # skip the convolutions of its routing function
            yield name, module
        elif isinstance(module, _ConvNd) or ("Conv" in _class_name(module) and not any(module.children())):
            inside += (f"{name}.",) if name else ()
            yield name, module


def _class_name(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return str(getattr(module, "original_name", ""))
    return type(module).__name__


def _pick(network: nn.Module, found: Mapping[str, nn.Module], where: Where | None) -> tuple[set[str], dict[str, str]]:
    """The names that ``where`` picks, and the reasons why others are not picked."""
    if where is None:
        return _pick_by_default(network, found)
    if callable(where):
        picked = {name for name, module in found.items() if where(name, module)}
    else:
        given: list[object] = [where] if isinstance(where, str) or not isinstance(where, Iterable) else list(where)
        picked = set()
        for pattern in given:
            if not isinstance(pattern, str):
                raise OptionError(f"{where = } should be names or patterns, or a function of name and module")
            fitting = {name for name in found if fnmatchcase(name, pattern)}
            if not fitting:
                there = listed(found, quote=False, at_most=4) or "none"
                raise OptionError(f"no convolution is called {pattern!r}; there are {there}")
            picked |= fitting
    return picked, {name: _NOT_PICKED for name in found if name not in picked}


_NOT_PICKED = "not picked by where"


def _pick_by_default(network: nn.Module, found: Mapping[str, nn.Module]) -> tuple[set[str], dict[str, str]]:
    modules = dict(network.named_modules())
    occurrences = Counter(type(module) for module in modules.values())
    # The names of the modules around each convolution, the outermost first.
    around = {name: [name[:i] for i, letter in enumerate(name) if letter == "."] for name in found}
    stacked = {
        outer
        for outers in around.values()
        for outer in outers
        if outer[-1].isdigit()
        and type(modules[outer]) not in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        and occurrences[type(modules[outer])] > 1
    }
    # A module that holds stacked modules is a stage; a convolution in a stage but in none of its blocks is a
    # downsampling.
    blocks = {name for name in stacked if not any(other.startswith(f"{name}.") for other in stacked)}
    picked, reasons = set(), {}
    for name, module in found.items():
        innermost = [outer for outer in around[name] if outer in stacked][-1:]
        kernel, stride = getattr(module, "kernel_size", (2,)), getattr(module, "stride", (1,))
        if max(kernel) == 1:
            reasons[name] = "a kernel of 1"
        elif not any(k > s for k, s in zip(kernel, stride, strict=True)):
            reasons[name] = "a kernel no larger than its stride, which cuts patches"
        elif isinstance(module, _ConvNd) and module.in_channels <= 3:
            reasons[name] = "a stem, which reads images"
        elif not blocks.intersection(innermost):
            reasons[name] = "outside of the stacked blocks"
        else:
            picked.add(name)
    return picked, reasons


def _padding_or_reason(module: nn.Module) -> _Padding | str:
    """How a picked convolution pads; or, where it cannot be changed, the reason in words."""
    if isinstance(module, TAdaConv2d | TAdaConv3d):
        return "temporally adaptive already"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: adapt first, then script"
    if not isinstance(module, nn.Conv2d | nn.Conv3d):
        quantized = "quantized" in type(module).__module__
        return "quantized: adapt first, then quantize" if quantized else f"a {_class_name(module)}"
    if is_parametrized(module):
        return "parametrized, as by weight_norm: remove that, adapt, and add it again"
    if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "with hooks, as by the old weight_norm or pruning: remove them, adapt, and add them again"
    if type(module.weight) is not nn.Parameter or not module.weight.is_floating_point():
        return f"with a weight that is no plain parameter of floats but a {type(module.weight).__name__}"
    if module.padding_mode != "zeros":
        return f"padded by {module.padding_mode!r} instead of zeros"
    if _own_forward(module) and not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__}, with a forward of its own"
    padding = _padding(module)
    if padding is not None:
        return padding
    if _own_forward(module):
        return f"a {type(module).__name__}, with a forward of its own that does more than pad and convolve"
    return "padded more on one side than on the other, by 'same', in 3-D"


def _own_forward(conv: nn.Conv2d | nn.Conv3d) -> bool:
    plain = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv3d
    if vars(conv).keys() & {"forward", "_conv_forward"}:  # set on this one convolution
        return True
    return type(conv).forward is not plain.forward or type(conv)._conv_forward is not plain._conv_forward


class _Padding(NamedTuple):
    """How a convolution pads."""

    in_conv: tuple[int, ...]
    """The convolution's own padding, the same on both sides."""
    before: FramePadding | None = None
    """Zeros added to frames before the convolution, if they differ between sides."""


def _padding(conv: nn.Conv2d | nn.Conv3d) -> _Padding | None:
    """Find how a convolution pads; None if a TAdaConv cannot pad so."""
    if isinstance(conv, nn.Conv2d) and _own_forward(conv):
        padding = find_own_padding(conv)
        return None if padding is None else _around_frames(padding)
    if not isinstance(conv.padding, str):
        return _Padding(conv.padding)
    if conv.padding == "valid":
        return _Padding((0,) * len(conv.kernel_size))
    spans = [dilation * (kernel - 1) for kernel, dilation in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv, nn.Conv2d):
        rows, columns = spans
        return _around_frames((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return None if any(span % 2 for span in spans) else _Padding(tuple(span // 2 for span in spans))


def _around_frames(padding: FramePadding) -> _Padding:
    if padding == "same" or padding[0] != padding[1] or padding[2] != padding[3]:
        return _Padding((0, 0), padding)
    return _Padding((padding[2], padding[0]))


def _check_ready(network: nn.Module) -> None:
    lazy = [name for name, parameter in network.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise OptionError(
            f"{listed(lazy, quote=False, at_most=4)}: lazy layers have no weights yet; run the network once, then "
            "adapt it"
        )
    for module in network.modules():
        name = type(module).__name__
        if isinstance(module, DistributedDataParallel) or name.startswith(("FSDP", "FullySharded", "OptimizedModule")):
            raise OptionError(f"this network is wrapped by {name}, which would not know of new weights: adapt it first")


# -- the change -------------------------------------------------------------------------------------------------------


def _new_routing(conv: Any, norm: RoutingNorm, ratio: int | None, attention: bool) -> Routing:
    """Build a convolution's routing function: a paper's, or, for depthwise ones, one without a C x C layer."""
    channels: int = conv.in_channels
    if attention:
        ratio = ratio or 2
        hidden = max(channels // ratio, 1)
        head_channels = max(width for width in range(1, 65) if hidden % width == 0)  # 64 and 48 in the paper
        return RoutingV2(channels, ratio=ratio, head_channels=head_channels)
    if conv.groups == channels > 1:
        return Routing(channels, hidden_channels=depthwise_hidden_channels(channels, ratio), norm=norm)
    return Routing(channels, ratio=ratio or 4, norm=norm)


def _parameters_by_ratio(routing: Routing, ratio: int) -> int:
    """Count the parameters that a routing function would have with another r."""
    if routing.context is None:  # of attention
        return _num_parameters(routing)
    assert routing.reduce is not None
    fixed = 0 if routing.joins_hidden_layer else _num_parameters(routing.context)
    of_a_hidden_channel = (_num_parameters(routing) - fixed) // routing.reduce.out_channels
    return fixed + of_a_hidden_channel * max(routing.in_channels // ratio, 1)


def _temporally_adaptive(
    conv: nn.Conv2d | nn.Conv3d, padding: _Padding, routing: Routing, clip: ClipLength
) -> TAdaConv2d | TAdaConv3d:
    """The same convolution, with its parameters and a new routing function."""
    weight = conv.weight
    assert isinstance(weight, nn.Parameter)
    # For a depthwise kernel "in" and "out" are equal; with a stride, scaling the (smaller) output is cheaper.
    calibrate: Calibrate = "out" if conv.groups == conv.in_channels == conv.out_channels else "in"
    options: dict[str, Any] = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": padding.in_conv,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "calibrate": calibrate,
    }
    new: TAdaConv2d | TAdaConv3d
    with torch.device("meta"):  # its weights are replaced below
        if isinstance(conv, nn.Conv2d):
            new = FrameConv2d(conv.in_channels, conv.out_channels, **options)
            new.clip, new.padded_before = clip, padding.before
        else:
            new = TAdaConv3d(conv.in_channels, conv.out_channels, **options)
    new.weight = weight
    new.bias = None if conv.bias is None else cast(nn.Parameter, conv.bias)
    new.routing = routing.to(device=weight.device, dtype=weight.dtype)
    return new.train(conv.training)


def _replace(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module wherever the old one is; a module that the network shares stays shared."""
    for module in network.modules():
        for name, child in module._modules.items():
            if child is not None and child in replacements:
                module._modules[name] = replacements[child]
    return replacements.get(network, network)


class ClipLength:
    """T, the number of frames in a clip: fixed, or set by the ClipNetwork at each call and read by the convolutions."""

    def __init__(self, num_frames: int | None) -> None:
        self.fixed = num_frames is not None
        self.num_frames = num_frames

    def set(self, num_frames: int) -> None:
        """Set the T of the next clips.

        Raises:
            ValueError: another T than the fixed one.
        """
        if self.fixed and num_frames != self.num_frames:
            raise ValueError(f"clips of {num_frames} frames; the network was adapted to {self.num_frames}")
        self.num_frames = num_frames


class FrameConv2d(TAdaConv2d):
    """A TAdaConv2d in a network of images: frames in, frames out; T comes from ``clip``."""

    clip: ClipLength
    padded_before: FramePadding | None = None
    """Zeros added to frames before the convolution, if they differ between sides."""

    def forward(self, x: Tensor, alpha: Tensor | Calibration | None = None, *, num_frames: int | None = None) -> Tensor:
        """Frames [N*T, C, H, W] -> [N*T, D, H', W'].

        Raises:
            ValueError: T is not known, or does not divide the number of frames.
        """
        num_frames = self.clip.num_frames if num_frames is None else num_frames
        if num_frames is None:
            raise ValueError("T is not known: call the network that adapt returned, or adapt with num_frames")
        if self.padded_before is not None:
            alpha = self._calibration(x, alpha, num_frames)  # of the frames as they are, without the zeros
            x = pad_frames(x, self.padded_before, self)
        return super().forward(x, alpha, num_frames=num_frames)


class ClipNetwork(nn.Module):
    """An image network wrapped to take clips: it runs on their frames as one batch of images.

    T is set at each call and kept until the next, so that activation checkpointing, which runs a part of the network
    again in the backward pass, finds it. Calls from two threads at the same time need a fixed T, or clips of equal T.
    """

    def __init__(self, network: nn.Module, clip: ClipLength, *, folds_frames: bool = False) -> None:
        super().__init__()
        self.network = network
        self.clip = clip
        self.folds_frames = folds_frames

    def forward(self, clips: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the network on the frames of clips.

        Args:
            clips: [N, C, T, H, W], of as many colors as the network's images have; or, where T is fixed, also frames
                [N*T, C, H, W], each clip's frames in a row.
            args: passed to the network, as are kwargs.

        Returns:
            The network's output, each tensor of it reshaped from [N*T, ...] to [N, T, ...]. For frames, and where the
            network folds frames itself, its output unchanged.

        Raises:
            ValueError: another number of dimensions, no frames, or another T than the fixed one.
        """
        if clips.ndim == 4 and self.clip.fixed:
            return self.network(clips, *args, **kwargs)
        if clips.ndim != 5 or clips.shape[2] == 0:
            raise ValueError(f"clips of shape {tuple(clips.shape)} should be [N, C, T, H, W], of at least one frame")
        n, _, t = clips.shape[:3]
        self.clip.set(t)
        if self.folds_frames:
            return self.network(clips, *args, **kwargs)
        return _unfold(self.network(clips.transpose(1, 2).flatten(0, 1), *args, **kwargs), n, t)


def _unfold(output: Any, n: int, t: int) -> Any:
    """Reshape every tensor in a network's output from [N*T, ...] to [N, T, ...]; tensors of other lengths stay."""
    if isinstance(output, Tensor):
        return output.reshape(n, t, *output.shape[1:]) if output.ndim and output.shape[0] == n * t else output
    if isinstance(output, Mapping):
        unfolded = {key: _unfold(value, n, t) for key, value in output.items()}
        return type(output)(unfolded)  # type: ignore[call-arg]  # mappings can be built from a dict
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_unfold(value, n, t) for value in output))
    if isinstance(output, list | tuple):
        return type(output)(_unfold(value, n, t) for value in output)
    return output
