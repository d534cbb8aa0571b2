"""Parts of fused networks: routing functions on rows, filters over time, depthwise convolutions with both scales.

Shapes as in ``fuse``: N clips, T frames, C channels in, D channels out, H x W pixels. Frames are [N*T, C, H, W],
channels last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tada.models.fold_norms import factor_and_shift
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation
from tada.tadaconv.routing_v2 import RoutingV2, quick_gelu


class FusedRouting(nn.Module):
    """A routing function with its batch norm folded: frames [N*T, C, H, W] -> their scales [N*T, D].

    Its convolutions over time become linear layers: each row of their input holds a frame's descriptor and those of
    the frames before and after it. The scales are channels last, like the frames that they multiply.

    Args:
        bias: the bias of the convolution, [D], where the routing function scales it too: then the output is the scales
            and ``beta * bias``, [N*T, 2*D].
    """

    def __init__(self, routing: Routing, bias: Tensor | None = None) -> None:
        super().__init__()
        self.norm = routing.norm if isinstance(routing.norm, nn.LayerNorm) else None
        self.attention = routing.attention if isinstance(routing, RoutingV2) else None
        weight = routing.alpha.weight.detach()
        shift = torch.full_like(weight[:, 0, 0], routing.offset)
        if routing.beta is not None:
            assert bias is not None
            weight = torch.cat([weight, routing.beta.weight.detach() * bias[:, None, None]])
            shift = torch.cat([shift, routing.offset * bias])
        layers = [(weight, shift.detach())]
        if routing.reduce is not None:
            assert routing.reduce.bias is not None
            layers.insert(0, (routing.reduce.weight.detach(), routing.reduce.bias.detach()))
        self.context_bias: nn.Parameter | None = None
        self.hidden_context = routing.context if routing.joins_hidden_layer else None
        if routing.context is not None and self.hidden_context is None:
            # The context, a linear layer on the clip's mean, is multiplied into the kernel that reads it: the kernel
            # gets C more inputs, the clip's mean. The context's bias is added to the frames, since the zero padding
            # beyond the clip's ends has none.
            kernel, its_bias = layers[0]
            of_clip = torch.einsum("dck,cb->dbk", kernel.double(), routing.context.weight.detach().double())
            layers[0] = torch.cat([kernel, of_clip.to(kernel)], dim=1), its_bias
            self.context_bias = nn.Parameter(routing.context.bias.detach())
        *reduce, scales = (LayerOverTime(*layer) for layer in layers)
        self.reduce = reduce[0] if reduce else None
        self.scales = scales

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        means = _means_of_frames(frames)
        h = means.view(-1, num_frames, means.shape[1])  # [N, T, C]
        if self.context_bias is not None:
            h = torch.cat([h + self.context_bias, h.mean(1, keepdim=True).expand_as(h)], dim=2)
        if self.reduce is not None:
            context = 0 if self.hidden_context is None else self.hidden_context(h.mean(1, keepdim=True))
            h = self.reduce(h) + context
            if self.attention is not None and self.norm is not None:
                h = self.attention(quick_gelu(self.norm(h)))
            else:
                h = F.relu(h) if self.norm is None else F.gelu(self.norm(h))
        scales: Tensor = self.scales(h)
        return scales.flatten(0, 1)


class LayerOverTime(nn.Module):
    """A convolution over time, with kernel [D, C, k], as a linear layer on rows of k frames: [N, T, C] -> [N, T, D]."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.num_frames = kernel.shape[2]
        self.weight = nn.Parameter(kernel.detach().transpose(1, 2).flatten(1).contiguous())
        self.bias = nn.Parameter(bias.detach())

    def forward(self, h: Tensor) -> Tensor:
        t, beside = h.shape[1], self.num_frames // 2
        padded = F.pad(h, (0, 0, beside, beside))
        seen = torch.cat([padded[:, i : i + t] for i in range(self.num_frames)], dim=2)
        return F.linear(seen, self.weight, self.bias)


def _means_of_frames(frames: Tensor) -> Tensor:
    """Each frame's mean over its pixels, [N*T, C, H, W] -> [N*T, C]."""
    if frames.device.type == "cpu":  # a pool is faster than a mean there, in bf16 five times
        return F.avg_pool2d(frames, frames.shape[2:]).flatten(1)
    return frames.mean((2, 3))


class FusedCalibratedDepthwise(nn.Module):
    """A depthwise TAdaConv that scales its kernel and its bias: frames [N*T, C, H, W] -> the same shape."""

    def __init__(self, conv: TAdaConv2d) -> None:
        super().__init__()
        assert conv.routing is not None
        self.weight = conv.weight
        self.padding = conv.padding
        self.routing = FusedRouting(conv.routing, conv.bias)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        c = frames.shape[1]
        y = F.conv2d(frames, self.weight, None, padding=self.padding, groups=c)
        # In a depthwise convolution, scaling the input channels equals scaling the output channels.
        scale, bias = self.routing(frames, num_frames)[:, None, None].split(c, dim=3)
        y = y.permute(0, 2, 3, 1).contiguous()  # a view where y is channels last
        return torch.addcmul(bias, y, scale, out=y).permute(0, 3, 1, 2)


class FilterOverTime(nn.Module):
    """``norm(y) + pooled_norm(mean of three frames)`` of the temporal aggregation, as one filter.

    With the norms' factors a and b, a channel's three taps are b/3, a + b/3, b/3: a depthwise convolution of an "image"
    with a row for each frame of the clip and a column for each pixel. In channels-last memory this is only a view.

    A ReLU that follows is computed on this image, so that a compiler can merge it into the convolution.
    """

    def __init__(self, aggregation: TemporalAggregation, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        assert isinstance(aggregation.norm, _BatchNorm)
        assert isinstance(aggregation.pooled_norm, _BatchNorm)
        factor, shift = factor_and_shift(aggregation.norm)
        pooled_factor, pooled_shift = factor_and_shift(aggregation.pooled_norm)
        beside = pooled_factor / 3
        taps = torch.stack([beside, factor + beside, beside], dim=1)  # [C, 3]
        like = aggregation.norm.weight
        self.weight = nn.Parameter(taps[:, None, :, None].to(like))
        self.bias = nn.Parameter((shift + pooled_shift).to(like))

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        pixels = frames.permute(0, 2, 3, 1)  # [N*T, H, W, C]
        c = pixels.shape[-1]
        images = pixels.reshape(-1, num_frames, pixels[0, ..., 0].numel(), c).permute(0, 3, 1, 2)  # [N, C, T, H*W]
        filtered = F.conv2d(images, self.weight, self.bias, padding=(1, 0), groups=c)
        if self.relu:
            filtered = filtered.relu_()
        return filtered.permute(0, 2, 3, 1).reshape(pixels.shape).permute(0, 3, 1, 2)

    def summed(self, frames: Tensor, num_frames: int) -> Tensor:
        """The same by sums, which a compiler merges into what follows; it misreads the images of a single clip."""
        before, middle, _ = (self.weight[:, 0, tap].view(-1, 1, 1) for tap in range(3))
        clips = frames.unflatten(0, (-1, num_frames))  # type: ignore[no-untyped-call]  # torch does not type it
        padded = F.pad(clips, (0, 0, 0, 0, 0, 0, 1, 1))
        y: Tensor = middle * clips + before * (padded[:, :-2] + padded[:, 2:]) + self.bias.view(-1, 1, 1)
        return (y.relu() if self.relu else y).flatten(0, 1)
