"""TAdaConv: a 2-D convolution whose kernel is calibrated anew for every frame (section 3 of arXiv 2110.06178).

``y_t = (alpha_t * W) (conv) x_t``: the kernel ``W`` is shared by all frames, ``alpha_t`` is one number per channel
and comes from the features themselves through a small ``Routing`` function. The released code builds one kernel
per frame and runs N*T*g groups; here the scale is moved off the kernel, which is exact and leaves one ordinary
convolution:

    calibrate="in":   (alpha_t * W) (conv) x_t  =  W (conv) (alpha_t * x_t)
    calibrate="out":  (alpha_t * W) (conv) x_t  =  alpha_t * (W (conv) x_t)

Shapes: N clips, T frames, C channels in, D channels out, g groups, H x W pixels. "Frames" are the T frames of all
clips as one batch of images, [N*T, C, H, W], a clip's frames one after the other: the form inside the networks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.errors import OptionError

Calibrate = Literal["in", "out"]
RoutingNorm = Literal["batch", "layer"]
TemporalPool = Literal["avg", "max", "mix"]


class Calibration(NamedTuple):
    """What a routing function finds for every frame."""

    alpha: Tensor
    """[N, C or D, T]: the factor on each input or output channel of the kernel."""
    beta: Tensor | None = None
    """[N, D, T]: the factor on the bias; None leaves the bias as it is."""


class TAdaConv2d(nn.Module):
    """A convolution over each frame of a clip, its kernel scaled per frame.

    Args:
        calibrate: the side of the kernel that alpha scales: its input channels (TAda2D) or its output channels
            (TAdaConvNeXt).
        routing: finds alpha from the input. Without it, alpha is an argument of every call.

    Raises:
        OptionError: channels that groups do not divide, or a routing function of other channels.

    Differs from the released operator: that fails for D != C with "out", and for g > 1 with "in".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        calibrate: Calibrate = "in",
        routing: Routing | None = None,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise OptionError(f"{groups = } must divide {in_channels = } and {out_channels = }")
        if calibrate not in get_args(Calibrate):
            raise OptionError(f"{calibrate = } should be 'in' or 'out'")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.calibrate: Calibrate = calibrate
        self.routing = routing
        if routing is not None:
            self._check_routing(routing, bias)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def calibrated_channels(self) -> int:
        """How many numbers alpha holds for a frame."""
        return self.in_channels if self.calibrate == "in" else self.out_channels

    def reset_parameters(self) -> None:
        """Draw kernel and bias as nn.Conv2d does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, alpha: Tensor | Calibration | None = None, *, num_frames: int | None = None) -> Tensor:
        """Convolve clips, or the frames of clips.

        Args:
            x: clips [N, C, T, H, W]; or frames [N*T, C, H, W] together with ``num_frames``.
            alpha: [N, C or D, T], or both scales as a Calibration; by default the routing function finds them.
            num_frames: T, where x is frames.

        Returns:
            [N, D, T, H', W'], or frames [N*T, D, H', W'] where x is frames.

        Raises:
            ValueError: x, alpha or num_frames do not fit together.
        """
        if x.ndim == 5:
            n, _, t = x.shape[:3]
            frames = self.forward(x.transpose(1, 2).flatten(0, 1), alpha, num_frames=t)
            return frames.view(n, t, *frames.shape[1:]).transpose(1, 2)
        if num_frames is None:
            raise ValueError(f"x of shape {tuple(x.shape)} needs num_frames; or give clips [N, C, T, H, W]")
        alpha, beta = self._calibration(x, alpha, num_frames)
        if self.calibrate == "in":
            x = x * frame_scale(alpha, x)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        if self.calibrate == "out":
            y = y * frame_scale(alpha, y)
        if self.bias is None:
            return y
        bias = self.bias[:, None, None].to(y.dtype)
        return y + (bias if beta is None else bias * frame_scale(beta, y))

    def _calibration(self, frames: Tensor, given: Tensor | Calibration | None, num_frames: int) -> Calibration:
        if frames.shape[0] % num_frames:
            raise ValueError(f"{num_frames = } should divide the {frames.shape[0]} frames of x")
        if given is None:
            if self.routing is None:
                raise ValueError("give alpha [N, channels, T] with each call, or a Routing at construction")
            calibration: Calibration = self.routing(frame_descriptors(frames, num_frames))
        else:
            calibration = given if isinstance(given, Calibration) else Calibration(given)
        wanted = (frames.shape[0] // num_frames, self.calibrated_channels, num_frames)
        if calibration.alpha.shape != wanted:
            raise ValueError(
                f"alpha of shape {tuple(calibration.alpha.shape)} should be {wanted}: [N, channels, T] of "
                f"frames {tuple(frames.shape)}"
            )
        if calibration.beta is not None:
            wanted = (wanted[0], self.out_channels, num_frames)
            if self.bias is None:
                raise ValueError("beta scales a bias, and this convolution has none")
            if calibration.beta.shape != wanted:
                raise ValueError(f"beta of shape {tuple(calibration.beta.shape)} should be {wanted}: [N, D, T]")
        return calibration

    def _check_routing(self, routing: Routing, bias: bool) -> None:
        have = (routing.in_channels, routing.out_channels)
        if have != (self.in_channels, self.calibrated_channels):
            raise OptionError(
                f"routing maps {have[0]} to {have[1]} channels; this convolution calibrates "
                f"{self.calibrated_channels} from {self.in_channels}"
            )
        if routing.beta is not None and (not bias or routing.bias_channels != self.out_channels):
            raise OptionError(
                f"routing calibrates a bias of {routing.bias_channels} channels; this convolution has "
                f"{self.out_channels if bias else 'none'}"
            )

    def extra_repr(self) -> str:
        """Describe the convolution as nn.Conv2d does, with the calibrated side."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return text + f", padding={self.padding}, groups={self.groups}, calibrate={self.calibrate!r}"


class Routing(nn.Module):
    """The routing function G: what every frame holds -> how its kernel is scaled (section 3.2).

    A frame's descriptor v_t joins the clip's descriptor u (global context); convolutions over time see the frames
    beside it (local context)::

        h = v + Linear(u);  h = act(norm(Conv1d(h)));  alpha = 1 + Conv1d(h)

    The last convolution starts at zero, so a new layer is the plain convolution and pretrained kernels keep their
    meaning.

    Args:
        out_channels: entries of alpha for a frame, as many as C by default.
        bias_channels: entries of beta for a frame, where the bias is calibrated too (TAdaConvNeXt).
        ratio: r, by which the hidden layer is narrower than C.
        kernel_sizes: frames that each convolution over time sees: (3, 3) in the paper; (1, 1) has no local context;
            one number makes the function linear, a single convolution C -> out.
        global_context: whether u takes part.
        norm: "batch" goes with ReLU (TAda2D), "layer", over the channels of a frame, with GELU (TAdaConvNeXt).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int | None = None,
        bias_channels: int | None = None,
        ratio: int = 4,
        kernel_sizes: tuple[int, int] | tuple[int] = (3, 3),
        global_context: bool = True,
        norm: RoutingNorm = "batch",
    ) -> None:
        super().__init__()
        if not all(size % 2 for size in kernel_sizes):
            raise OptionError(f"{kernel_sizes = } should be odd, so that alpha has one entry for every frame")
        if norm not in get_args(RoutingNorm):
            raise OptionError(f"{norm = } should be 'batch' or 'layer'")
        if ratio < 1:
            raise OptionError(f"{ratio = } should be at least 1")
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.bias_channels = bias_channels
        self.context = nn.Linear(in_channels, in_channels) if global_context else None
        hidden = in_channels
        self.reduce: nn.Conv1d | None = None
        self.norm: nn.BatchNorm1d | nn.LayerNorm | None = None
        if len(kernel_sizes) == 2:
            hidden = max(in_channels // ratio, 1)
            self.reduce = nn.Conv1d(in_channels, hidden, kernel_sizes[0], padding=kernel_sizes[0] // 2)
            self.norm = nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden, eps=1e-6)
        self.alpha = _zero_conv1d(hidden, self.out_channels, kernel_sizes[-1])
        self.beta = None if bias_channels is None else _zero_conv1d(hidden, bias_channels, kernel_sizes[-1])

    def forward(self, descriptors: Tensor) -> Calibration:
        """Find the scales of every frame.

        Args:
            descriptors: [N, C, T], each frame's mean over its pixels (``frame_descriptors``).
        """
        h = descriptors
        if self.context is not None:
            h = h + self.context(descriptors.mean(2))[:, :, None]
        if self.reduce is not None:
            h = self._normalised(self.reduce(h))
        return Calibration(1 + self.alpha(h), None if self.beta is None else 1 + self.beta(h))

    def _normalised(self, h: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return F.gelu(self.norm(h.transpose(1, 2)).transpose(1, 2))
        assert self.norm is not None
        return F.relu(self.norm(h))


class TemporalAggregation(nn.Module):
    """The two norms after a calibrated convolution: of each frame, and of its mean with the frames beside it.

    ``norm(y) + pooled_norm(pool_t(y))`` (section 3.4). The pooled norm starts at zero, so a new layer is the plain
    norm. The pool sees three frames; the average counts the zeros beyond a clip's ends, so there it divides by three
    too.

    Args:
        pool: "avg" (the paper's choice), "max", or "mix", the mean of both.
    """

    def __init__(self, channels: int, *, pool: TemporalPool = "avg") -> None:
        super().__init__()
        if pool not in get_args(TemporalPool):
            raise OptionError(f"{pool = } should be 'avg', 'max' or 'mix'")
        self.pool: TemporalPool = pool
        self.norm = nn.BatchNorm2d(channels)
        self.pooled_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.pooled_norm.weight)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        """Frames [N*T, C, H, W] -> the same; the activation that follows is the caller's."""
        pooled = pool_over_time(frames, num_frames, self.pool)
        y: Tensor = self.norm(frames) + self.pooled_norm(pooled)
        return y


def pool_over_time(frames: Tensor, num_frames: int, pool: TemporalPool) -> Tensor:
    """Pool each pixel with the same pixel of the frame before and after: [N*T, C, H, W] -> the same.

    An average counts the zeros beyond a clip's ends; a maximum leaves them out.
    """
    # With channels last, the pixels of a frame are one run of memory: time is the rows of a one-channel image.
    pixels = frames.permute(0, 2, 3, 1)  # [N*T, H, W, C]
    rows = pixels.reshape(-1, 1, num_frames, pixels[0].numel())
    if pool == "avg":
        pooled = F.avg_pool2d(rows, (3, 1), 1, (1, 0))
    elif pool == "max":
        pooled = F.max_pool2d(rows, (3, 1), 1, (1, 0))
    else:
        pooled = (F.avg_pool2d(rows, (3, 1), 1, (1, 0)) + F.max_pool2d(rows, (3, 1), 1, (1, 0))) / 2
    return pooled.view(pixels.shape).permute(0, 3, 1, 2)


def frame_descriptors(frames: Tensor, num_frames: int) -> Tensor:
    """Each frame's mean over its pixels: frames [N*T, C, H, W] -> [N, C, T]."""
    means = frames.mean((2, 3))
    return means.view(-1, num_frames, means.shape[1]).transpose(1, 2)


def frame_scale(scale: Tensor, frames: Tensor) -> Tensor:
    """Lay out [N, C, T] so that it multiplies frames [N*T, C, H, W]: [N*T, C, 1, 1], in the frames' dtype."""
    return scale.transpose(1, 2).flatten(0, 1)[:, :, None, None].to(frames.dtype)


def _zero_conv1d(channels: int, out_channels: int, kernel_size: int) -> nn.Conv1d:
    conv = nn.Conv1d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.zeros_(conv.weight)
    return conv


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
