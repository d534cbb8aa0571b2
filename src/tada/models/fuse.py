"""Fuse a network for inference: the same output, with fewer passes over the features.

    a batch norm after a convolution     is folded into its kernel and bias
    the two norms of the aggregation     become one depthwise convolution over three frames
    the routing functions                become linear layers, whose input [N*T, C] has a row for each frame
    ReLU, scales, sums                   work in place where no other layer reads their input
    the wide layers of TAdaConvNeXt      process the pixels, on a CPU, in chunks that fit into its cache
    many clips on a CPU                  are processed a few at a time

``fuse`` does not change the network it is given. The simple form in the network's own file defines what is computed
here; tests compare the two.

Shapes: N clips, T frames, C channels in, D channels out, H x W pixels, P pixels of all frames, K classes. Frames are
[N*T, C, H, W], channels last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from tada.adaptation.own_padding import pad_frames
from tada.errors import OptionError
from tada.models import efficientnet_lite, tada2d, tadaconvnext, tadaformer
from tada.models.fold_norms import factor_and_shift, fold, fold_norms
from tada.models.fused_parts import FilterOverTime, FusedCalibratedDepthwise, FusedRouting
from tada.system.compiling import told_if_not_compiled
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation, pool_over_time
from tada.tadaconv.routing_v2 import QUICK, quick_gelu

# Values of the widened features in one chunk: 8 MB in fp32. More would not fit into the cache, and need new memory that
# the system clears first, which takes longer than the GELU.
_PART = 2**21

# Pixels per thread that our networks process at a time on a CPU: with two threads one clip of 8 x 224 x 224. With more
# pixels the features of a ResNet-50 exceed 32 MB; from that size on glibc requests new memory, which the system clears,
# for each tensor, and a clip takes up to 1.5 times as long.
_PIXELS_OF_A_THREAD = 2**18

_OURS = (tada2d.TAda2D, tadaconvnext.TAdaConvNeXt, tadaformer.TAdaFormer, efficientnet_lite.EfficientNetLite)


def fuse(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    example_clips: Tensor | None = None,
) -> FusedNetwork:
    """Make a fused copy of a network for inference; the network itself is not changed.

    Args:
        model: TAda2D, TSN, TAdaConvNeXt, TAdaFormer, EfficientNetLite; or any other network that takes clips, such as
            one that ``tada.adapt`` changed: of these only the norms are folded.
        dtype: dtype of weights and features, such as torch.bfloat16; by default the model's. Clips may have any dtype;
            the logits have that of the clips.
        compile: compile the result by torch.compile at its first clips. Takes a minute, and on a CPU a C++ compiler. If
            the network is on a CUDA device, its kernels are recorded for each size of clips and then started together
            (CUDA graphs), since starting them one by one takes longer than small clips need; call it from one thread.
        example_clips: clips that another network can read, to find which norm follows which convolution; by default
            [1, 3, 8, 64, 64], or as many frames as the network was adapted to.

    Raises:
        OptionError: dtype is no floating type, or another network cannot run on the example, or cannot be folded.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise OptionError(f"{dtype = } should be a floating type, such as torch.bfloat16")
    network = copy.deepcopy(model).eval()
    device = next(network.parameters(), torch.empty(0)).device
    if device.type == "mps":
        network.to("cpu")  # norms are folded in float64, which Apple's GPUs lack
    for module in network.modules():
        if isinstance(module, Routing) and module.reduce is not None and isinstance(module.norm, nn.BatchNorm1d):
            if module.joins_hidden_layer and module.context is not None:  # which the norm scales too
                factor, _ = factor_and_shift(module.norm)
                module.context.weight.data *= factor[:, None].to(module.context.weight)
                module.context.bias.data *= factor.to(module.context.bias)
            fold(module.reduce, module.norm)
            module.norm = nn.Identity()
    if isinstance(network, tada2d.TAda2D):
        assert isinstance(network.stem_norm, nn.BatchNorm2d)
        fold(network.stem_conv, network.stem_norm)
        network.stem_norm = nn.Identity()
        _fuse_blocks(network.stages)
    elif isinstance(network, efficientnet_lite.EfficientNetLite):
        assert isinstance(network.stem_norm, nn.BatchNorm2d)
        assert isinstance(network.last_norm, nn.BatchNorm2d)
        fold(network.stem_conv, network.stem_norm)
        fold(network.last_conv, network.last_norm)
        network.stem_norm = network.last_norm = nn.Identity()
        _fuse_blocks(network.stages)
    elif isinstance(network, tadaconvnext.TAdaConvNeXt):
        _fuse_blocks(network.stages)
    elif isinstance(network, tadaformer.TAdaFormer):
        network.blocks = nn.ModuleList(map(FusedFormerBlock, network.blocks))
    elif any(isinstance(module, _BatchNorm) for module in network.modules()):
        fold_norms(network, example_clips)
    network.requires_grad_(False).to(device=device, dtype=dtype)
    return FusedNetwork(network, compile=compile)


class FusedNetwork(nn.Module):
    """A network fused for inference: clips -> the logits of the original network.

    It cannot be trained: ``train()`` raises ValueError.
    """

    def __init__(self, network: nn.Module, *, compile: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self.training = False
        self._run: Callable[[Tensor], Any] = network
        self._features: Callable[[Tensor], Tensor] | None = getattr(network, "features", None)
        self._compiles = compile
        self._records = compile and next(network.parameters(), torch.empty(0)).device.type == "cuda"
        if compile:
            options = {"mode": "reduce-overhead"} if self._records else {}
            self._run = torch.compile(network, **options)  # type: ignore[call-overload]  # mypy cannot unpack them
            if self._features is not None:
                self._features = torch.compile(self._features, **options)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Any:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K], or the output of another network."""
        outputs = self._run_in_parts(self._run, clips)
        # The next call of recorded kernels writes to the same memory.
        return tree_map_only(Tensor, lambda tensor: tensor.to(clips.dtype, copy=self._records), outputs)

    @torch.no_grad()
    def features(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> features [N, D].

        Raises:
            ValueError: the original network has no ``features``.
        """
        if self._features is None:
            raise ValueError(f"a {type(self.network).__name__} has no features")
        features: Tensor = self._run_in_parts(self._features, clips)
        return features.to(clips.dtype, copy=self._records)

    def train(self, mode: bool = True) -> FusedNetwork:
        """Keep evaluation mode.

        Raises:
            ValueError: ``mode`` is true.
        """
        if mode:
            raise ValueError("a fused network cannot be trained: train the network it was made from, and fuse it again")
        return self

    def _run_in_parts(self, run: Callable[[Tensor], Any], clips: Tensor) -> Any:
        with self._compiling(clips):
            # The output of another network may have any structure, which torch.cat could not join.
            if not isinstance(self.network, _OURS) or clips.device.type != "cpu":
                return run(self._prepare(clips))
            pixels = _PIXELS_OF_A_THREAD * max(torch.get_num_threads(), 2)
            at_a_time = max(pixels // clips.shape[2:].numel(), 1)
            return torch.cat([run(self._prepare(some)) for some in torch.split(clips, at_a_time)])

    @contextmanager
    def _compiling(self, clips: Tensor) -> Iterator[None]:
        """A context in which torch.compile treats the weights as constants (freezing), on a CPU.

        The compiler then lays the weights out for its convolutions, and merges ReLU, GELU and sums into the layer
        before. It reads this setting while it traces, before the options given to torch.compile, which come too late.
        """
        if not self._compiles:
            yield
            return
        from torch._inductor import config

        frozen = config.patch(freezing=True) if clips.device.type == "cpu" else nullcontext()
        with told_if_not_compiled(), frozen:
            yield

    def _prepare(self, clips: Tensor) -> Tensor:
        clips = clips.to(next(self.network.parameters(), clips).dtype)
        if self._records:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch does not type it
        if self._compiles:
            # Numbers of clips and frames are dynamic. Height and width are static, so that frames of another size are
            # compiled again: dynamic ones, divided by every stride, make the compiler fail.
            for axis in (3, 4):
                torch._dynamo.mark_static(clips, axis)
        return clips


# -- TAda2D and TSN ---------------------------------------------------------------------------------------------------


class FusedBasicBlock(nn.Module):
    """Two temporal 3x3 convolutions and a shortcut."""

    def __init__(self, block: tada2d.BasicBlock) -> None:
        super().__init__()
        self.conv1 = FusedConv3x3(block.conv1, relu=True, overwrites=False)  # the shortcut reads its input too
        self.conv2 = FusedConv3x3(block.conv2, relu=False, overwrites=True)
        self.shortcut = _folded_shortcut(block.shortcut)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        y: Tensor = self.conv1(frames, num_frames)
        y = self.conv2(y, num_frames)
        y += self.shortcut(frames)
        return y.relu_()


class FusedBottleneck(nn.Module):
    """1x1, temporal 3x3, 1x1 and a shortcut."""

    def __init__(self, block: tada2d.Bottleneck) -> None:
        super().__init__()
        self.conv1 = fold(block.conv1, block.norm1)
        self.conv2 = FusedConv3x3(block.conv2, relu=True, overwrites=True)
        self.conv3 = fold(block.conv3, block.norm3)
        self.shortcut = _folded_shortcut(block.shortcut)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        y: Tensor = self.conv1(frames).relu_()
        y = self.conv2(y, num_frames)
        y = self.conv3(y)
        y += self.shortcut(frames)
        return y.relu_()


class FusedConv3x3(nn.Module):
    """A 3x3 convolution with its norm: calibrated for every frame and aggregated over time, or plain.

    Args:
        relu: whether a ReLU follows.
        overwrites: whether it may overwrite its input, which no other layer reads.
    """

    def __init__(self, layer: tada2d.TemporalConv3x3, *, relu: bool, overwrites: bool) -> None:
        super().__init__()
        self.relu, self.overwrites = relu, overwrites
        conv, norm = layer.conv, layer.norm
        if isinstance(norm, nn.BatchNorm2d):
            fold(conv, norm)
        self.stride, self.padding = conv.stride, conv.padding
        self.weight, self.bias = conv.weight, conv.bias
        self.scales_input = self.scales_output = False
        if isinstance(conv, TAdaConv2d):
            assert conv.routing is not None
            self.routing = FusedRouting(conv.routing)
            self.scales_input, self.scales_output = conv.calibrate == "in", conv.calibrate == "out"
        self.aggregation: nn.Module | None = None
        if isinstance(norm, TemporalAggregation):
            self.aggregation = FilterOverTime(norm, relu=relu) if norm.pool == "avg" else norm

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        if self.scales_input:
            scale = self.routing(frames, num_frames)[:, :, None, None]
            frames = frames.mul_(scale) if self.overwrites else frames * scale
        if self.scales_output:
            y = F.conv2d(frames, self.weight, None, self.stride, self.padding)
            y *= self.routing(frames, num_frames)[:, :, None, None]
            if self.bias is not None:
                y += self.bias[:, None, None]
        else:
            y = F.conv2d(frames, self.weight, self.bias, self.stride, self.padding)
        if self.aggregation is not None:
            y = self.aggregation(y, num_frames)
        return y.relu_() if self.relu and not isinstance(self.aggregation, FilterOverTime) else y


def _folded_shortcut(shortcut: nn.Module) -> nn.Module:
    if isinstance(shortcut, nn.Sequential):
        norm = shortcut[1]
        assert isinstance(norm, nn.BatchNorm2d)
        return fold(shortcut[0], norm)
    return shortcut


# -- TAdaConvNeXt -----------------------------------------------------------------------------------------------------


class FusedNextBlock(nn.Module):
    """Depthwise convolution, norm, a layer to four times the channels, GELU, a layer back; added to the input.

    On a CPU the layers process the pixels in chunks, so that the widened features, the largest of the network, never
    exist as a whole; and they add to the sum in place. The layer scale is folded into the last layer.
    """

    def __init__(self, block: tadaconvnext.ConvNeXtBlock) -> None:
        super().__init__()
        self.conv: nn.Module = block.conv
        if isinstance(block.conv, TAdaConv2d):
            self.conv = FusedCalibratedDepthwise(block.conv)
        self.norm: nn.Module = block.norm
        self.pooled_norm: nn.Module | None = None
        if isinstance(block.norm, TemporalAggregation):
            self.norm, self.pooled_norm, self.pool = block.norm.norm, block.norm.pooled_norm, block.norm.pool
        self.activation = torch.ops.aten.gelu_
        self.widen, self.narrow = block.widen, block.narrow
        if block.activation == "quick_gelu":
            self.activation = torch.ops.aten.silu_
            _scale_for_silu(self.widen, self.narrow)
        scale = block.layer_scale.detach()
        self.narrow.weight.data *= scale[:, None]
        self.narrow.bias.data *= scale

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        """Frames [N*T, C, H, W] -> the same shape, where possible in the same memory."""
        c = frames.shape[1]
        y = self.conv(frames, num_frames) if isinstance(self.conv, FusedCalibratedDepthwise) else self.conv(frames)
        pixels = frames.permute(0, 2, 3, 1).contiguous()
        total = pixels.view(-1, c)
        rows = _rows(y)
        pooled = rows if self.pooled_norm is None else _rows(pool_over_time(y, num_frames, self.pool))
        # A compiler merges these layers itself, and would only unroll the loop; a GPU needs all rows to be busy.
        is_whole = torch.compiler.is_compiling() or rows.device.type != "cpu"
        part = len(rows) if is_whole else max(_PART // self.widen.out_features, 1)
        for some, their_pooled, their_total in zip(*(torch.split(x, part) for x in (rows, pooled, total)), strict=True):
            normed = self.norm(some)
            if self.pooled_norm is not None:
                normed += self.pooled_norm(their_pooled)
            their_total += self.narrow(self.activation(self.widen(normed)))
        return pixels.permute(0, 3, 1, 2)


def _rows(frames: Tensor) -> Tensor:
    """Frames [N*T, C, H, W] -> a row for each pixel, [N*T*H*W, C]."""
    return frames.permute(0, 2, 3, 1).reshape(-1, frames.shape[1])


# -- TAdaFormer -------------------------------------------------------------------------------------------------------


class FusedFormerBlock(nn.Module):
    """A block of TAdaFormer that adds to the tokens in place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, tadaformer.FormerBlock)
        self.tada = None if block.tada is None else FusedTAdaBlock(block.tada)
        self.norm1, self.attention = block.norm1, block.attention
        self.tada2 = None if block.tada2 is None else FusedTAdaBlock(block.tada2)
        self.norm2, self.widen, self.narrow = block.norm2, block.widen, block.narrow
        _scale_for_silu(self.widen, self.narrow)

    def forward(self, tokens: Tensor, num_frames: int, h: int, w: int) -> Tensor:
        """Tokens [N*T, 1 + h*w, C] -> the same shape, in the same memory."""
        if self.tada is not None:
            tokens[:, 1:] += self.tada(tokens[:, 1:], num_frames, h, w)
        tokens += self.attention(self.norm1(tokens))
        if self.tada2 is not None:
            tokens[:, 1:] += self.tada2(tokens[:, 1:], num_frames, h, w)
        tokens += self.narrow(F.silu(self.widen(self.norm2(tokens)), inplace=True))
        return tokens


class FusedTAdaBlock(nn.Module):
    """What a TAda block adds: its norms are a filter over time, its routing function has linear layers."""

    def __init__(self, block: tadaformer.TAdaBlock) -> None:
        super().__init__()
        self.reduce = block.reduce
        self.conv = FusedCalibratedDepthwise(block.conv)
        aggregation = block.norm
        self.norm: nn.Module = FilterOverTime(aggregation, relu=False) if aggregation.pool == "avg" else aggregation
        self.expand = block.expand
        if isinstance(self.norm, FilterOverTime):
            _scale_for_silu(self.norm, self.expand)

    def forward(self, patches: Tensor, num_frames: int, h: int, w: int) -> Tensor:
        """Patches [N*T, h*w, C] -> the same shape."""
        frames = patches.reshape(-1, h, w, patches.shape[2]).permute(0, 3, 1, 2)
        y: Tensor = self.conv(tadaformer.reduced(self.reduce, frames, num_frames), num_frames)
        if isinstance(self.norm, FilterOverTime):
            y = self.norm.summed(y, num_frames) if torch.compiler.is_compiling() else self.norm(y, num_frames)
            y = F.silu(y, inplace=True)
        else:
            y = quick_gelu(self.norm(y, num_frames))
        added: Tensor = self.expand(y.permute(0, 2, 3, 1).flatten(1, 2))
        return added


def _scale_for_silu(before: nn.Linear | FilterOverTime, behind: nn.Linear) -> None:
    """Scale the layers beside a QuickGELU so that a SiLU can take its place, which is one pass over the features.

    ``x * sigmoid(1.702 x)`` is ``silu(1.702 x) / 1.702``.
    """
    before.weight.data *= QUICK
    before.bias.data *= QUICK
    behind.weight.data /= QUICK


# -- EfficientNet-Lite ------------------------------------------------------------------------------------------------


class FusedInvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, 1x1 back; added to what came in where sizes agree."""

    def __init__(self, block: efficientnet_lite.InvertedResidual) -> None:
        super().__init__()
        self.expand: nn.Module | None = None
        if block.expand is not None:
            assert isinstance(block.expand_norm, nn.BatchNorm2d)
            self.expand = fold(block.expand, block.expand_norm)
        self.conv = FusedDepthwise(block.conv, block.norm)
        self.project = fold(block.project, block.project_norm)
        self.adds = block.adds

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        wide = frames if self.expand is None else self.expand(frames).clamp_(0, 6)
        y: Tensor = self.project(self.conv(wide, num_frames))
        if self.adds:
            y += frames
        return y


class FusedDepthwise(nn.Module):
    """A depthwise convolution with its norm and ReLU6: scaled for every frame, filtered over time, or plain."""

    def __init__(self, conv: nn.Conv2d | TAdaConv2d, norm: TemporalAggregation | nn.BatchNorm2d) -> None:
        super().__init__()
        if isinstance(norm, nn.BatchNorm2d):
            fold(conv, norm)
        # A depthwise kernel has one channel in and one out: either side's scale is the output's.
        self.routing: FusedRouting | None = None
        if isinstance(conv, TAdaConv2d):
            assert conv.routing is not None
            self.routing = FusedRouting(conv.routing)
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel_size, self.stride, self.padding, self.dilation = conv.kernel_size, conv.stride, conv.padding, (1, 1)
        self.padded_before = getattr(conv, "padded_before", None)
        self.aggregation: nn.Module | None = None
        if isinstance(norm, TemporalAggregation):
            self.aggregation = FilterOverTime(norm, relu=False) if norm.pool == "avg" else norm

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        c = frames.shape[1]
        padded = frames if self.padded_before is None else pad_frames(frames, self.padded_before, self)
        bias = self.bias if self.routing is None else None
        y = F.conv2d(padded, self.weight, bias, self.stride, self.padding, groups=c)
        if self.routing is not None:
            scale = self.routing(frames, num_frames)[:, None, None]
            pixels = y.permute(0, 2, 3, 1)  # as it lies
            pixels = pixels.mul_(scale) if self.bias is None else torch.addcmul(self.bias, pixels, scale, out=pixels)
            y = pixels.permute(0, 3, 1, 2)
        if self.aggregation is not None:
            y = self.aggregation(y, num_frames)
        return y.clamp_(0, 6)


def _fuse_blocks(stages: nn.ModuleList) -> None:
    fused: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        tada2d.BasicBlock: FusedBasicBlock,
        tada2d.Bottleneck: FusedBottleneck,
        tadaconvnext.ConvNeXtBlock: FusedNextBlock,
        efficientnet_lite.InvertedResidual: FusedInvertedResidual,
    }
    for stage in stages:
        assert isinstance(stage, nn.ModuleList)
        for i, block in enumerate(stage):
            stage[i] = fused[type(block)](block)
