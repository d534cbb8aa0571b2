"""TAdaConv over several frames against its sum of taps, its plain convolution, and its form over single frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.tadaconv import looped_tadaconv3d
from tada.errors import OptionError
from tada.tadaconv import Calibration, Routing, TAdaConv2d, TAdaConv3d

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), inputs)


def compare(conv: TAdaConv3d, x: Tensor, *, beta: bool, **options: Any) -> None:
    """Values and gradients of a convolution and of its sum of taps."""
    n, t = x.shape[0], x.shape[2]
    x = x.requires_grad_()
    alpha = torch.randn(n, conv.calibrated_channels, t, requires_grad=True)
    scale = torch.randn(n, conv.out_channels, t, requires_grad=True) if beta else None
    inputs = [v for v in (x, alpha, scale, conv.weight, conv.bias) if v is not None]
    fast = conv(x, Calibration(alpha, scale))
    slow = looped_tadaconv3d(x, conv.weight, conv.bias, alpha, scale, calibrate=conv.calibrate, **options)
    torch.testing.assert_close(fast, slow, **EXACT)
    torch.testing.assert_close(gradients(fast, inputs), gradients(slow, inputs), **EXACT)


SLOW = pytest.mark.slow
MORE_GROUPS = [(1, 4), (2, 4), (4, 4), (4, 8)]


@pytest.mark.parametrize("calibrate", ["in", "out"])
@pytest.mark.parametrize(("groups", "d"), [(1, 6), (2, 8), *(pytest.param(g, d, marks=SLOW) for g, d in MORE_GROUPS)])
@pytest.mark.parametrize("bias", ["none", "plain", "calibrated"])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (1, 1, 1), (2, 1, 1), (5, 1, 1)])
def test_is_the_sum_of_its_taps(calibrate: Any, groups: int, d: int, bias: str, kernel: tuple[int, int, int]) -> None:
    strides, dilations = ((1, 1, 1), (2, 2, 2)), ((1, 1, 1), (2, 1, 1), (1, 2, 2))
    paddings = {(0, 0, 0), (kernel[0] // 2, 1, 0)}
    for stride, dilation, padding in product(strides, dilations, paddings):
        if 6 + 2 * padding[0] <= dilation[0] * (kernel[0] - 1):
            continue  # the kernel is longer than the clip
        options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
        conv = TAdaConv3d(4, d, kernel, bias=bias != "none", calibrate=calibrate, **options)
        compare(conv, torch.randn(2, 4, 6, 5, 6), beta=bias == "calibrated", **options)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, 2, 3])
def test_ends_of_short_clips(t: int, padding: int) -> None:
    """With more padding than kt//2 a kernel's middle can lie beyond the clip; the nearest frame stands for it."""
    for calibrate in ("in", "out"):
        conv = TAdaConv3d(4, 4, (3, 1, 1), padding=(padding, 0, 0), calibrate=calibrate)  # type: ignore[arg-type]
        compare(conv, torch.randn(2, 4, t, 2, 2), beta=False, padding=(padding, 0, 0))


@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_channels_last(calibrate: Any) -> None:
    conv = TAdaConv3d(4, 6, 3, padding=1, stride=(2, 1, 1), calibrate=calibrate)
    x = torch.randn(2, 4, 5, 6, 5).contiguous(memory_format=torch.channels_last_3d)
    compare(conv, x, beta=True, padding=(1, 1, 1), stride=(2, 1, 1))


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize(("calibrate", "groups"), [("in", 1), ("in", 2), ("in", 4), ("out", 1), ("out", 4)])
def test_a_new_layer_is_the_plain_convolution(norm: Any, t: int, calibrate: Any, groups: int) -> None:
    routing = Routing(4, out_channels=4 if calibrate == "in" else 8, bias_channels=8, norm=norm)
    options: dict[str, Any] = {"stride": (2, 1, 2), "padding": 1, "dilation": (1, 1, 2), "groups": groups}
    conv = TAdaConv3d(4, 8, 3, calibrate=calibrate, routing=routing, **options).eval()
    plain = nn.Conv3d(4, 8, 3, **options)
    plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    x = torch.randn(2, 4, t, 6, 5)
    torch.testing.assert_close(conv(x), plain(x), **EXACT)


@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_a_kernel_on_one_frame_is_the_2d_operator(calibrate: Any) -> None:
    conv = TAdaConv3d(4, 6, (1, 3, 3), padding=(0, 1, 1), stride=(1, 2, 1), calibrate=calibrate)
    conv.routing = Routing(4, out_channels=conv.calibrated_channels)
    nn.init.normal_(conv.routing.alpha.weight)
    flat = TAdaConv2d(4, 6, 3, padding=1, stride=(2, 1), calibrate=calibrate, routing=conv.routing)
    flat.weight = nn.Parameter(conv.weight[:, :, 0])
    flat.bias = conv.bias
    x = torch.randn(2, 4, 5, 6, 5)
    torch.testing.assert_close(conv(x), flat(x), **EXACT)


@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_a_stride_in_time_leaves_the_calibration_of_the_frames_that_stay(calibrate: Any) -> None:
    conv = TAdaConv3d(4, 6, 3, padding=1, calibrate=calibrate)
    conv.routing = Routing(4, out_channels=conv.calibrated_channels)
    nn.init.normal_(conv.routing.alpha.weight)
    x = torch.randn(2, 4, 7, 6, 5)
    dense = conv(x)
    conv.stride = (3, 1, 1)
    torch.testing.assert_close(conv(x), dense[:, :, ::3], **EXACT)


def test_an_output_frame_sees_only_the_scale_of_its_own_frame() -> None:
    conv = TAdaConv3d(4, 4, 3, padding=1)
    x, alpha = torch.randn(1, 4, 5, 4, 4), torch.rand(1, 4, 5) + 0.5
    other = alpha.clone()
    other[:, :, 2] *= 2
    changed = (conv(x, alpha) - conv(x, other)).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, False, False]


def test_the_released_form_with_its_groups_gives_the_same() -> None:
    """N*T*g groups, one kernel for each frame, as the released code has it: what the windows save."""
    n, c, t, d = 2, 4, 3, 6
    conv = TAdaConv3d(c, d, 3, padding=1, bias=False)
    x, alpha = torch.randn(n, c, t, 5, 5), torch.randn(n, c, t)
    kernels = (conv.weight * alpha.transpose(1, 2).reshape(n * t, 1, c, 1, 1, 1)).flatten(0, 1)
    frames = F.pad(x, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1).permute(0, 2, 1, 5, 3, 4)  # [N, T, C, kt, H, W]
    y = F.conv3d(frames.reshape(1, n * t * c, 3, 5, 5), kernels, None, 1, (0, 1, 1), groups=n * t)
    torch.testing.assert_close(conv(x, alpha), y.view(n, t, d, 5, 5).transpose(1, 2), **EXACT)


class TestBadInput:
    def test_construction(self) -> None:
        with pytest.raises(OptionError, match=r"groups = 3 must divide in_channels = 4"):
            TAdaConv3d(4, 6, 3, groups=3)
        with pytest.raises(OptionError, match=r"calibrate = 'cin' should be 'in' or 'out'"):
            TAdaConv3d(4, 6, 3, calibrate="cin")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"routing maps 6 to 6 channels; this convolution calibrates 4 from 4"):
            TAdaConv3d(4, 6, 3, routing=Routing(6))

    def test_calls(self) -> None:
        conv = TAdaConv3d(4, 6, 3, padding=(0, 1, 1))
        clips, alpha = torch.randn(2, 4, 3, 5, 5), torch.ones(2, 4, 3)
        with pytest.raises(ValueError, match=r"give alpha \[N, channels, T\] with each call, or a Routing"):
            conv(clips)
        with pytest.raises(ValueError, match=r"x of shape \(2, 4, 5, 5\) should be clips \[N, C, T, H, W\]"):
            conv(clips[:, :, 0], alpha)
        with pytest.raises(
            ValueError, match=r"alpha of shape \(2, 4, 2\) should be \(2, 4, 3\): .* of clips \(2, 4, 3"
        ):
            conv(clips, alpha[:, :, :2])
        with pytest.raises(ValueError, match=r"beta of shape \(2, 1, 3\) should be \(2, 6, 3\): \[N, D, T\]"):
            conv(clips, Calibration(alpha, alpha[:, :1]))
        with pytest.raises(ValueError, match=r"a clip of 2 frames, padded by 0, is shorter than the kernel: 3 frames"):
            conv(clips[:, :, :2], alpha[:, :, :2])


@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_autocast_keeps_the_precision_of_a_convolution(calibrate: Any) -> None:
    conv = TAdaConv3d(4, 4, 3, calibrate=calibrate, routing=Routing(4, bias_channels=4)).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(2, 4, 3, 5, 5, dtype=torch.float32)).dtype == torch.bfloat16
