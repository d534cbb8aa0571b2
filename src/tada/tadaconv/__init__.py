"""TAdaConv: a convolution whose kernel is calibrated for every frame (section 3 of arXiv 2110.06178).

``y_t = (alpha_t * W) (conv) x_t``: the kernel ``W`` is shared by all frames; ``alpha_t`` is one number per channel,
computed from the features by a small ``Routing`` function. The released code builds one kernel per frame and runs
N*T*g groups; here the input or the output is scaled instead of the kernel, which is exact and leaves one ordinary
convolution:

    calibrate="in":   (alpha_t * W) (conv) x_t  =  W (conv) (alpha_t * x_t)
    calibrate="out":  (alpha_t * W) (conv) x_t  =  alpha_t * (W (conv) x_t)

A 3-D kernel, kt x k x k, sees kt frames at a time; TAdaConv3d explains how that stays one convolution.

Shapes: N clips, T frames, C channels in, D channels out, g groups, H x W pixels. "Frames" are the T frames of all
clips as one batch of images, [N*T, C, H, W], each clip's frames in a row: the layout inside the networks.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.errors import OptionError

Calibrate = Literal["in", "out"]
RoutingNorm = Literal["batch", "layer"]
TemporalPool = Literal["avg", "max", "mix"]


class Calibration(NamedTuple):
    """The scales that a routing function computes for every frame."""

    alpha: Tensor
    """[N, C or D, T]: the factor on each input or output channel of the kernel."""
    beta: Tensor | None = None
    """[N, D, T]: the factor on the bias; None leaves the bias as it is."""


class _TAdaConv(nn.Module):
    """Base of TAdaConv2d and TAdaConv3d: their arguments, parameters, and the computation of alpha."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        bias: bool,
        calibrate: Calibrate,
        routing: Routing | None,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise OptionError(f"{groups = } must divide {in_channels = } and {out_channels = }")
        if calibrate not in get_args(Calibrate):
            raise OptionError(f"{calibrate = } should be 'in' or 'out'")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.calibrate: Calibrate = calibrate
        self.routing = routing
        if routing is not None:
            self._check_routing(routing, bias)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def calibrated_channels(self) -> int:
        """Entries of alpha for each frame: C or D."""
        return self.in_channels if self.calibrate == "in" else self.out_channels

    def reset_parameters(self) -> None:
        """Draw kernel and bias as nn.Conv2d and nn.Conv3d do."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def _calibration(self, x: Tensor, given: Tensor | Calibration | None, num_frames: int) -> Calibration:
        """Take or compute the scales of every frame of x (clips or frames), and check their shapes."""
        if x.ndim == 4 and x.shape[0] % num_frames:
            raise ValueError(f"{num_frames = } should divide the {x.shape[0]} frames of x")
        if given is None:
            if self.routing is None:
                raise ValueError("give alpha [N, channels, T] with each call, or a Routing at construction")
            calibration: Calibration = self.routing(frame_descriptors(x, num_frames))
        else:
            calibration = given if isinstance(given, Calibration) else Calibration(given)
        n = x.shape[0] // num_frames if x.ndim == 4 else x.shape[0]
        wanted = (n, self.calibrated_channels, num_frames)
        if calibration.alpha.shape != wanted:
            raise ValueError(
                f"alpha of shape {tuple(calibration.alpha.shape)} should be {wanted}: [N, channels, T] of "
                f"{'frames' if x.ndim == 4 else 'clips'} {tuple(x.shape)}"
            )
        if calibration.beta is not None:
            wanted = (n, self.out_channels, num_frames)
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


class TAdaConv2d(_TAdaConv):
    """A convolution over each frame of a clip, its kernel scaled per frame.

    Args:
        calibrate: the side of the kernel that alpha scales: its input channels (TAda2D) or its output channels
            (TAdaConvNeXt).
        routing: computes alpha from the input. Without it, alpha is an argument of every call.

    Raises:
        OptionError: groups does not divide the channels, or the routing function has other channels.

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
        super().__init__(
            in_channels,
            out_channels,
            _sides(kernel_size, 2),
            stride=_sides(stride, 2),
            padding=_sides(padding, 2),
            dilation=_sides(dilation, 2),
            groups=groups,
            bias=bias,
            calibrate=calibrate,
            routing=routing,
        )

    def forward(self, x: Tensor, alpha: Tensor | Calibration | None = None, *, num_frames: int | None = None) -> Tensor:
        """Convolve clips, or the frames of clips.

        Args:
            x: clips [N, C, T, H, W]; or frames [N*T, C, H, W] together with ``num_frames``.
            alpha: [N, C or D, T], or both scales as a Calibration; by default the routing function computes them.
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


class TAdaConv3d(_TAdaConv):
    """A 3-D convolution over clips, its kernel scaled for every output frame.

    ``y_t = sum_j W_j (conv) (alpha_t * x_{t+j})``: all taps of the kernel, which see different frames, are scaled by
    the alpha of one frame, that at the kernel's middle. With stride 1 and padding kt//2 this is the output's own frame;
    in general it is frame ``t * stride - padding + dilation * (kt - 1) // 2`` of x, or the nearest that x has.

    Kernels kt x k x k, 1 x k x k and kt x 1 x 1 are one operator. "out" is a plain convolution, then a scale. For "in"
    the frames of x cannot be scaled in place, since kt kernels of different scales see each frame. Instead each kernel
    gets its own scaled copy: the kt frames that an output frame sees are laid out in a row, scaled, and ONE convolution
    with a stride of kt in time runs over all rows::

        x:  0 1 2 3      kt = 3      windows:  . 0 1 | 0 1 2 | 1 2 3 | 2 3 .      (. is zeros)

    No kernel is built and no multiplication is repeated; the cost is memory of kt times x. A depthwise "in" is computed
    as "out", which is equal there.

    Args and errors are those of TAdaConv2d; sizes are in the order time, height, width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        *,
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        dilation: int | tuple[int, int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        calibrate: Calibrate = "in",
        routing: Routing | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            _sides(kernel_size, 3),
            stride=_sides(stride, 3),
            padding=_sides(padding, 3),
            dilation=_sides(dilation, 3),
            groups=groups,
            bias=bias,
            calibrate=calibrate,
            routing=routing,
        )

    def forward(self, x: Tensor, alpha: Tensor | Calibration | None = None) -> Tensor:
        """Convolve clips.

        Args:
            x: [N, C, T, H, W].
            alpha: [N, C or D, T], or both scales as a Calibration; by default the routing function computes them. Of
                its T entries, those at the middle of a kernel are used.

        Returns:
            [N, D, T', H', W'].

        Raises:
            ValueError: x and alpha do not fit together, or the clip is shorter than the kernel.
        """
        if x.ndim != 5:
            raise ValueError(f"x of shape {tuple(x.shape)} should be clips [N, C, T, H, W]")
        calibration = self._calibration(x, alpha, x.shape[2])
        middles = self._middle_frames(x)
        scale = calibration.alpha.index_select(2, middles)[..., None, None]  # [N, C or D, T', 1, 1]
        depthwise = self.groups == self.in_channels
        if self.calibrate == "in" and not depthwise:
            windows = self._windows(x, scale)
            stride, dilation = (self.kernel_size[0], *self.stride[1:]), (1, *self.dilation[1:])
            y = F.conv3d(windows, self.weight, None, stride, (0, *self.padding[1:]), dilation, self.groups)
        else:
            if self.calibrate == "in":  # each input channel has D/C output channels
                scale = scale.repeat_interleave(self.out_channels // self.in_channels, dim=1)
            y = F.conv3d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
            y = y * scale.to(y.dtype)
        if self.bias is None:
            return y
        bias = self.bias[:, None, None, None].to(y.dtype)
        if calibration.beta is None:
            return y + bias
        return y + bias * calibration.beta.index_select(2, middles)[..., None, None].to(y.dtype)

    def _middle_frames(self, x: Tensor) -> Tensor:
        """The index of the frame of x at the kernel's middle, for every output frame: [T']."""
        kernel, stride, padding, dilation = self.kernel_size[0], self.stride[0], self.padding[0], self.dilation[0]
        span = dilation * (kernel - 1)
        t = x.shape[2]
        if t + 2 * padding <= span:
            raise ValueError(
                f"a clip of {t} frames, padded by {padding}, is shorter than the kernel: {span + 1} frames"
            )
        num_outputs = (t + 2 * padding - span - 1) // stride + 1
        middles = torch.arange(num_outputs, device=x.device) * stride + (span // 2 - padding)
        return middles.clamp(0, t - 1)

    def _windows(self, x: Tensor, scale: Tensor) -> Tensor:
        """The kt frames that each output frame sees, times its scale, in a row: [N, C, T'*kt, H, W]."""
        n, c, _, h, w = x.shape
        padding, span = self.padding[0], self.dilation[0] * (self.kernel_size[0] - 1)
        padded = F.pad(x, (0, 0, 0, 0, padding, padding)) if padding else x
        windows = padded.unfold(2, span + 1, self.stride[0])[..., :: self.dilation[0]]  # [N, C, T', H, W, kt]
        return (windows.movedim(-1, 3) * scale[:, :, :, None].to(x.dtype)).reshape(n, c, -1, h, w)


class Routing(nn.Module):
    """The routing function G: frame descriptors -> the scales of each frame's kernel (section 3.2).

    The clip's descriptor u is added to each frame's descriptor v_t (global context); convolutions over time see the
    neighboring frames (local context)::

        h = v + Linear(u);  h = act(norm(Conv1d(h)));  alpha = 1 + Conv1d(h)

    The last convolution is initialized to zero, so a new layer computes the plain convolution and pretrained kernels
    work unchanged. The other two are initialized as in the authors' releases: TAda2D's ("batch") normal with variance
    2 / fan_out and biases 0 (init_helper.py, c2_msra_fill), TAdaConvNeXt's ("layer") as PyTorch draws them.

    Args:
        out_channels: entries of alpha per frame, by default C.
        bias_channels: entries of beta per frame, where the bias is calibrated too (TAdaConvNeXt).
        ratio: r; the hidden layer has C/r channels.
        hidden_channels: width of the hidden layer instead of C / r, for kernels with few parameters (depthwise). No
            layer is C x C then: the clip's descriptor is added in the hidden layer,
            ``h = act(norm(Conv1d(v) + Linear(u)))``. Except at a clip's ends this can compute the same.
        kernel_sizes: frames that each convolution over time sees: (3, 3) in the paper; (1, 1) has no local context;
            one number makes the function linear, a single convolution C -> out.
        global_context: whether u is added.
        norm: "batch" goes with ReLU (TAda2D), "layer", over the channels of a frame, with GELU (TAdaConvNeXt).
    """

    joins_hidden_layer = False
    """Whether the clip's descriptor is added in the hidden layer. (On the class, for modules pickled before it was.)"""
    offset = 1.0
    """What is added to the output of the last layers, which start at zero."""

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int | None = None,
        bias_channels: int | None = None,
        ratio: int = 4,
        hidden_channels: int | None = None,
        kernel_sizes: tuple[int, int] | tuple[int] = (3, 3),
        global_context: bool = True,
        norm: RoutingNorm = "batch",
    ) -> None:
        super().__init__()
        if len(kernel_sizes) not in (1, 2):
            raise OptionError(f"{kernel_sizes = } should be one or two numbers")
        if not all(size % 2 for size in kernel_sizes):
            raise OptionError(f"{kernel_sizes = } should be odd, so that alpha has one entry for every frame")
        if norm not in get_args(RoutingNorm):
            raise OptionError(f"{norm = } should be 'batch' or 'layer'")
        if ratio < 1:
            raise OptionError(f"{ratio = } should be at least 1")
        if hidden_channels is not None and (hidden_channels < 1 or len(kernel_sizes) == 1):
            raise OptionError(f"{hidden_channels = } should be at least 1, and needs two {kernel_sizes = }")
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.bias_channels = bias_channels
        self.context = nn.Linear(in_channels, hidden_channels or in_channels) if global_context else None
        self.joins_hidden_layer = hidden_channels is not None
        hidden = in_channels
        self.reduce: nn.Conv1d | None = None
        self.norm: nn.Module | None = None
        if len(kernel_sizes) == 2:
            hidden = hidden_channels or max(in_channels // ratio, 1)
            self.reduce = nn.Conv1d(in_channels, hidden, kernel_sizes[0], padding=kernel_sizes[0] // 2)
            self.norm = nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden, eps=1e-6)
        self.alpha = _zero_conv1d(hidden, self.out_channels, kernel_sizes[-1])
        self.beta = None if bias_channels is None else _zero_conv1d(hidden, bias_channels, kernel_sizes[-1])
        if norm == "batch":
            for layer in (self.context, self.reduce):
                if layer is not None and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(self, descriptors: Tensor) -> Calibration:
        """Compute the scales of every frame.

        Args:
            descriptors: [N, C, T], each frame's mean over its pixels (``frame_descriptors``).
        """
        h = descriptors
        context = None if self.context is None else self.context(descriptors.mean(2))[:, :, None]
        if context is not None and not self.joins_hidden_layer:
            h = h + context
        if self.reduce is not None:
            h = self.reduce(h)
            if context is not None and self.joins_hidden_layer:
                h = h + context
            h = self._normalized(h)
        return Calibration(self.offset + self.alpha(h), None if self.beta is None else self.offset + self.beta(h))

    def _normalized(self, h: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return F.gelu(self.norm(h.transpose(1, 2)).transpose(1, 2))
        assert self.norm is not None
        if isinstance(self.norm, nn.BatchNorm1d) and self.norm.training and h.shape[0] * h.shape[2] == 1:
            # One clip with one frame (the last batch of an epoch on images, for example) has no variance: it is
            # normalized by the running statistics, as in evaluation, and does not change them.
            norm = self.norm
            return F.relu(F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
        return F.relu(self.norm(h))


def depthwise_hidden_channels(channels: int, ratio: int | None = None) -> int:
    """Width of the hidden layer of a depthwise convolution's routing function (``hidden_channels``).

    C / r where r is given; else C / 4, but at most 6: so MobileNetV2 grows by 13 %, and with C / 4 by 350 %.

    Raises:
        OptionError: r is below 1.
    """
    if ratio is not None and ratio < 1:
        raise OptionError(f"{ratio = } should be at least 1")
    hidden = max(channels // (4 if ratio is None else ratio), 1)
    return min(hidden, 6) if ratio is None else hidden


class TemporalAggregation(nn.Module):
    """The two norms after a calibrated convolution: of each frame, and of its pool with the neighboring frames.

    ``norm(y) + pooled_norm(pool_t(y))`` (section 3.4). The pooled norm's weight starts at zero, so a new layer computes
    the plain norm. The pool sees three frames; at a clip's ends the average counts the zero padding, so it divides by
    three there too.

    Args:
        pool: "avg" (the paper's choice), "max", or "mix", the mean of both.
        norm: "batch" (TAda2D, TAdaFormer), or "layer", over the channels of each pixel (TAdaConvNeXtV2).
    """

    def __init__(self, channels: int, *, pool: TemporalPool = "avg", norm: RoutingNorm = "batch") -> None:
        super().__init__()
        if pool not in get_args(TemporalPool):
            raise OptionError(f"{pool = } should be 'avg', 'max' or 'mix'")
        if norm not in get_args(RoutingNorm):
            raise OptionError(f"{norm = } should be 'batch' or 'layer'")
        self.pool: TemporalPool = pool
        self.norm, self.pooled_norm = (
            nn.BatchNorm2d(channels) if norm == "batch" else nn.LayerNorm(channels, eps=1e-6) for _ in range(2)
        )
        nn.init.zeros_(self.pooled_norm.weight)

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        """Frames [N*T, C, H, W] -> the same shape, before the activation."""
        pooled = pool_over_time(frames, num_frames, self.pool)
        if isinstance(self.norm, nn.LayerNorm):
            frames, pooled = frames.permute(0, 2, 3, 1), pooled.permute(0, 2, 3, 1)
        y: Tensor = self.norm(frames) + self.pooled_norm(pooled)
        return y.permute(0, 3, 1, 2) if isinstance(self.norm, nn.LayerNorm) else y


def pool_over_time(frames: Tensor, num_frames: int, pool: TemporalPool) -> Tensor:
    """Pool each pixel with the same pixel of the frame before and after: [N*T, C, H, W] -> the same shape.

    The average counts the zero padding at a clip's ends; the maximum leaves it out.
    """
    if torch.compiler.is_exporting():  # in operators that every runtime has; memory layout is the runtime's matter
        rows = frames.reshape(-1, 1, num_frames, frames[0].numel())
        pooled = F.max_pool2d(rows, (3, 1), 1, (1, 0)) if pool != "avg" else F.avg_pool2d(rows, (3, 1), 1, (1, 0))
        if pool == "mix":
            pooled = (F.avg_pool2d(rows, (3, 1), 1, (1, 0)) + pooled) / 2
        return pooled.view(frames.shape)
    # With channels last, a frame is contiguous in memory.
    pixels = frames.permute(0, 2, 3, 1)  # [N*T, H, W, C]
    rows = pixels.reshape(-1, num_frames, pixels[0].numel())  # [N, T, H*W*C]
    if pool == "avg":
        pooled = _mean_of_three(rows)
    elif pool == "max":
        pooled = F.max_pool2d(rows[:, None], (3, 1), 1, (1, 0))
    else:
        pooled = (_mean_of_three(rows) + F.max_pool2d(rows[:, None], (3, 1), 1, (1, 0))[:, 0]) / 2
    return pooled.view(pixels.shape).permute(0, 3, 1, 2)


def _mean_of_three(rows: Tensor) -> Tensor:
    """Each row's mean with the row before and after, [N, T, P] -> the same shape."""
    mean: Tensor = _MeanOfThree.apply(rows)  # type: ignore[no-untyped-call]  # torch does not type it
    return mean


class _MeanOfThree(torch.autograd.Function):
    """The mean of three rows by additions in place: 15 times as fast as avg_pool2d on a CPU, forward and backward.

    The operator is symmetric, so its gradient is the same mean and no tensor is saved for it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        mean = rows.clone()
        mean[:, 1:] += rows[:, :-1]
        mean[:, :-1] += rows[:, 1:]
        return mean.div_(3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean_of_three(gradient)


def frame_descriptors(x: Tensor, num_frames: int) -> Tensor:
    """Each frame's mean over its pixels: clips [N, C, T, H, W], or frames [N*T, C, H, W] -> [N, C, T]."""
    means = x.mean((-2, -1))
    if x.ndim == 5:
        return means
    return means.view(-1, num_frames, means.shape[1]).transpose(1, 2)


def frame_scale(scale: Tensor, frames: Tensor) -> Tensor:
    """Reshape [N, C, T] to multiply frames [N*T, C, H, W]: [N*T, C, 1, 1], in the frames' dtype.

    Channels are contiguous in memory, as in the frames: the product then takes an eighth of the time.
    """
    return scale.transpose(1, 2).flatten(0, 1).contiguous()[:, :, None, None].to(frames.dtype)


def _zero_conv1d(channels: int, out_channels: int, kernel_size: int) -> nn.Conv1d:
    conv = nn.Conv1d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.zeros_(conv.weight)
    return conv


def _sides(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """One number per dimension: a single number is repeated."""
    return (value,) * count if isinstance(value, int) else tuple(value)
