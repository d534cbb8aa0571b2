"""TAdaConv in its cheap exact form against the literal one, its routing and its aggregation against the formulas."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference.tadaconv import literal_tadaconv, looped_tadaconv, slow_temporal_conv, slow_temporal_pool
from tada.errors import OptionError
from tada.tadaconv import (
    Calibration,
    Routing,
    TAdaConv2d,
    TemporalAggregation,
    depthwise_hidden_channels,
    pool_over_time,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomize(module: nn.Module) -> None:
    """No weight is left at 0 or 1, where it would hide a mistake."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5)


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), inputs)


class TestAgainstTheLiteralForm:
    @pytest.mark.parametrize("calibrate", ["in", "out"])
    @pytest.mark.parametrize(("groups", "d"), [(1, 4), (1, 6), (2, 4), (2, 8), (4, 4), (4, 8)])
    @pytest.mark.parametrize("bias", ["none", "plain", "calibrated"])
    def test_values_and_gradients(self, calibrate: str, groups: int, d: int, bias: str) -> None:
        n, c, t = 2, 4, 3
        for stride, dilation, kernel, padding in product((1, 2), (1, 2), (1, 3), (0, 1)):
            options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
            conv = TAdaConv2d(c, d, kernel, bias=bias != "none", calibrate=calibrate, **options)  # type: ignore[arg-type]
            x = torch.randn(n, c, t, 7, 6, requires_grad=True)
            alpha = torch.randn(n, conv.calibrated_channels, t, requires_grad=True)
            beta = torch.randn(n, d, t, requires_grad=True) if bias == "calibrated" else None
            inputs = [v for v in (x, alpha, beta, conv.weight, conv.bias) if v is not None]

            fast = conv(x, Calibration(alpha, beta))
            literal = literal_tadaconv(x, conv.weight, conv.bias, alpha, beta, calibrate=calibrate, **options)
            looped = looped_tadaconv(x, conv.weight, conv.bias, alpha, beta, calibrate=calibrate, **options)
            torch.testing.assert_close(fast, literal, **EXACT)
            torch.testing.assert_close(fast, looped, **EXACT)
            torch.testing.assert_close(gradients(fast, inputs), gradients(literal, inputs), **EXACT)

    def test_sides_that_differ(self) -> None:
        """Kernel, stride, padding and dilation may each differ between rows and columns."""
        conv = TAdaConv2d(4, 4, (3, 1), stride=(1, 2), padding=(1, 0), dilation=(2, 1), bias=False)
        x, alpha = torch.randn(2, 4, 3, 7, 6), torch.randn(2, 4, 3)
        y = [
            F.conv2d(x[:, :, t] * alpha[:, :, t, None, None], conv.weight, None, (1, 2), (1, 0), (2, 1))
            for t in range(3)
        ]
        torch.testing.assert_close(conv(x, alpha), torch.stack(y, 2), **EXACT)


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_frames_are_clips_laid_out_otherwise(t: int, calibrate: str) -> None:
    conv = TAdaConv2d(4, 6, 3, padding=1, calibrate=calibrate)  # type: ignore[arg-type]
    conv.routing = Routing(4, out_channels=conv.calibrated_channels, bias_channels=6)
    randomize(conv)
    clips = torch.randn(2, 4, t, 5, 5)
    frames = clips.transpose(1, 2).flatten(0, 1)
    expected = conv(clips).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(conv(frames, num_frames=t), expected, **EXACT)
    channels_last = frames.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv(channels_last, num_frames=t), expected, **EXACT)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize(("calibrate", "groups"), [("in", 1), ("out", 2), ("out", 4)])
def test_a_new_layer_is_the_plain_convolution(norm: Any, t: int, calibrate: Any, groups: int) -> None:
    routing = Routing(4, out_channels=4 if calibrate == "in" else 8, bias_channels=8, norm=norm)
    conv = TAdaConv2d(4, 8, 3, padding=1, groups=groups, calibrate=calibrate, routing=routing).eval()
    plain = nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    x = torch.randn(2, 4, t, 6, 5)
    expected = torch.stack([plain(frame) for frame in x.unbind(2)], 2)
    torch.testing.assert_close(conv(x), expected, **EXACT)


def test_weights_are_drawn_as_those_of_a_plain_convolution() -> None:
    torch.manual_seed(1)
    conv = TAdaConv2d(4, 6, 3, groups=2)
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, 3, groups=2)
    torch.testing.assert_close(conv.state_dict(), plain.state_dict(), **EXACT)


@given(t=st.integers(1, 5), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_frame_sees_only_its_own_scale(t: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, t - 1), label="changed frame")
    calibrate = data.draw(st.sampled_from(["in", "out"]), label="calibrate")
    conv = TAdaConv2d(4, 4, 3, padding=1, calibrate=calibrate)  # type: ignore[arg-type]
    x, alpha = torch.randn(2, 4, t, 5, 5), torch.rand(2, 4, t) + 0.5
    other = alpha.clone()
    other[1, :, changed] *= 2
    difference = (conv(x, alpha) - conv(x, other)).abs().amax((1, 3, 4))  # [N, T]
    assert difference[1, changed] > 0
    difference[1, changed] = 0
    assert not difference.any()


class TestRouting:
    @pytest.mark.parametrize("norm", ["batch", "layer"])
    @pytest.mark.parametrize("kernel_sizes", [(3, 3), (1, 1), (3,), (1,), (5, 1)])
    @pytest.mark.parametrize("global_context", [True, False])
    @pytest.mark.parametrize("bias_channels", [None, 5])
    @pytest.mark.parametrize("training", [True, False])
    def test_formula(
        self, norm: Any, kernel_sizes: Any, global_context: bool, bias_channels: int | None, training: bool
    ) -> None:
        routing = Routing(
            8,
            out_channels=6,
            bias_channels=bias_channels,
            ratio=2,
            kernel_sizes=kernel_sizes,
            global_context=global_context,
            norm=norm,
        ).train(training)
        randomize(routing)
        weights = {name: value.clone() for name, value in routing.state_dict().items()}
        for t in (1, 4):
            routing.load_state_dict(weights)
            v = torch.randn(3, 8, t)
            h = v
            if global_context:
                u = v.mean(2)
                h = h + (u @ weights["context.weight"].T + weights["context.bias"])[:, :, None]
            if len(kernel_sizes) == 2:
                h = slow_temporal_conv(h, weights["reduce.weight"], weights["reduce.bias"])
                gain, shift = weights["norm.weight"][:, None], weights["norm.bias"][:, None]
                if norm == "layer":
                    mean, variance, eps = h.mean(1, keepdim=True), h.var(1, correction=0, keepdim=True), 1e-6
                elif training:
                    mean, variance, eps = h.mean((0, 2))[:, None], h.var((0, 2), correction=0)[:, None], 1e-5
                else:
                    mean, variance, eps = (
                        weights["norm.running_mean"][:, None],
                        weights["norm.running_var"][:, None],
                        1e-5,
                    )
                h = (h - mean) / (variance + eps).sqrt() * gain + shift
                h = h.clamp(min=0) if norm == "batch" else h * (1 + torch.erf(h / 2**0.5)) / 2
            alpha, beta = routing(v)
            torch.testing.assert_close(alpha, 1 + slow_temporal_conv(h, weights["alpha.weight"]), **EXACT)
            if bias_channels is None:
                assert beta is None
            else:
                torch.testing.assert_close(beta, 1 + slow_temporal_conv(h, weights["beta.weight"]), **EXACT)

    @pytest.mark.parametrize("norm", ["batch", "layer"])
    def test_with_a_hidden_layer_of_given_width_it_computes_the_same_but_at_the_ends(self, norm: Any) -> None:
        whole, narrow = Routing(8, ratio=2, norm=norm).eval(), Routing(8, hidden_channels=4, norm=norm).eval()
        randomize(whole)
        assert whole.context is not None
        assert whole.reduce is not None
        taps = whole.reduce.weight.sum(2)  # [h, C]
        context = {"context.weight": taps @ whole.context.weight, "context.bias": taps @ whole.context.bias}
        narrow.load_state_dict(whole.state_dict() | context)
        v = torch.randn(2, 8, 7)
        ours, theirs = narrow(v).alpha, whole(v).alpha
        torch.testing.assert_close(ours[:, :, 2:-2], theirs[:, :, 2:-2], **EXACT)
        assert not torch.allclose(ours[:, :, 0], theirs[:, :, 0])

    def test_one_clip_of_one_frame_is_normalized_by_the_running_statistics(self) -> None:
        routing = Routing(8)
        randomize(routing)
        before = {name: value.clone() for name, value in routing.state_dict().items()}
        v = torch.randn(1, 8, 1)
        alpha = routing.train()(v).alpha
        torch.testing.assert_close(alpha, routing.eval()(v).alpha, **EXACT)
        assert all(torch.equal(value, before[name]) for name, value in routing.state_dict().items())
        alpha.sum().backward()
        assert all(parameter.grad is not None for parameter in routing.parameters())
        routing.train()(torch.randn(1, 8, 2))  # two frames have a variance
        assert not torch.equal(routing.state_dict()["norm.running_mean"], before["norm.running_mean"])

    def test_modules_that_were_pickled_before_hidden_layers_were_joined(self) -> None:
        routing = Routing(8)
        v = torch.randn(2, 8, 3)
        expected = routing(v).alpha
        del routing.__dict__["joins_hidden_layer"]
        assert torch.equal(pickle.loads(pickle.dumps(routing))(v).alpha, expected)
        with pytest.raises(OptionError, match=r"ratio = 0 should be at least 1"):
            depthwise_hidden_channels(8, 0)

    def test_starts_at_one(self) -> None:
        alpha, beta = Routing(8, bias_channels=5)(torch.randn(2, 8, 3))
        assert torch.equal(alpha, torch.ones(2, 8, 3))
        assert beta is not None
        assert torch.equal(beta, torch.ones(2, 5, 3))

    def test_sees_each_frames_mean(self) -> None:
        conv = TAdaConv2d(4, 4, 1, routing=Routing(4), bias=False).eval()
        randomize(conv)
        x = torch.randn(2, 4, 3, 5, 6)
        assert conv.routing is not None
        alpha = conv.routing(x.mean((3, 4))).alpha
        torch.testing.assert_close(conv(x), conv(x, alpha), **EXACT)


class TestTemporalAggregation:
    @pytest.mark.parametrize("pool", ["avg", "max", "mix"])
    @pytest.mark.parametrize("t", [1, 2, 5])
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_formula(self, pool: Any, t: int, training: bool, memory_format: torch.memory_format) -> None:
        aggregation = TemporalAggregation(4, pool=pool).train(training)
        randomize(aggregation)
        weights = {name: value.clone() for name, value in aggregation.state_dict().items()}
        clips = torch.randn(3, 4, t, 5, 6)
        frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=memory_format)

        def normalized(x: Tensor, name: str) -> Tensor:
            gain, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
            if training:
                mean, variance = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), correction=0)
            else:
                mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
            a = gain / (variance + 1e-5).sqrt()
            return x * a[:, None, None, None] + (shift - mean * a)[:, None, None, None]

        expected = normalized(clips, "norm") + normalized(slow_temporal_pool(clips, pool), "pooled_norm")
        y = aggregation(frames, t).view(3, t, 4, 5, 6).transpose(1, 2)
        torch.testing.assert_close(y, expected, **EXACT)

    def test_the_ends_divide_by_three(self) -> None:
        frames = torch.tensor([3.0, 6.0, 9.0]).view(3, 1, 1, 1)
        assert pool_over_time(frames, 3, "avg").flatten().tolist() == [3.0, 6.0, 5.0]
        assert pool_over_time(-frames, 3, "max").flatten().tolist() == [-3.0, -3.0, -6.0]

    def test_clips_do_not_mix(self) -> None:
        frames = torch.randn(6, 2, 3, 3)
        apart = torch.cat([pool_over_time(frames[:3], 3, "avg"), pool_over_time(frames[3:], 3, "avg")])
        torch.testing.assert_close(pool_over_time(frames, 3, "avg"), apart, **EXACT)

    @pytest.mark.parametrize("training", [True, False])
    def test_a_new_one_is_the_plain_norm(self, training: bool) -> None:
        aggregation, norm = TemporalAggregation(4).train(training), nn.BatchNorm2d(4).train(training)
        frames = torch.randn(6, 4, 5, 5)
        torch.testing.assert_close(aggregation(frames, 3), norm(frames), **EXACT)


class TestFaults:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": 3}, r"groups = 3 must divide in_channels = 4 and out_channels = 6"),
            ({"groups": 4}, r"groups = 4 must divide"),
            ({"calibrate": "cin"}, r"calibrate = 'cin' should be 'in' or 'out'"),
            (
                {"routing": Routing(4, out_channels=6)},
                r"routing maps 4 to 6 channels; this convolution calibrates 4 from 4",
            ),
            ({"routing": Routing(4), "calibrate": "out"}, r"routing maps 4 to 4 channels; .* calibrates 6 from 4"),
            ({"routing": Routing(4, bias_channels=4)}, r"calibrates a bias of 4 channels; this convolution has 6"),
            ({"routing": Routing(4, bias_channels=6), "bias": False}, r"bias of 6 channels; this convolution has none"),
        ],
    )
    def test_construction(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            TAdaConv2d(4, 6, 3, **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kernel_sizes": (3, 2)}, r"kernel_sizes = \(3, 2\) should be odd"),
            ({"norm": "group"}, r"norm = 'group' should be 'batch' or 'layer'"),
            ({"ratio": 0}, r"ratio = 0 should be at least 1"),
            ({"hidden_channels": 0}, r"hidden_channels = 0 should be at least 1"),
            ({"hidden_channels": 2, "kernel_sizes": (3,)}, r"hidden_channels = 2 .* needs two kernel_sizes = \(3,\)"),
        ],
    )
    def test_construction_of_routing(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            Routing(4, **options)

    def test_construction_of_aggregation(self) -> None:
        with pytest.raises(OptionError, match=r"pool = 'sum' should be 'avg', 'max' or 'mix'"):
            TemporalAggregation(4, pool="sum")  # type: ignore[arg-type]

    def test_calls(self) -> None:
        conv = TAdaConv2d(4, 6, 3)
        clips, frames, alpha = torch.randn(2, 4, 3, 5, 5), torch.randn(6, 4, 5, 5), torch.ones(2, 4, 3)
        with pytest.raises(ValueError, match=r"give alpha \[N, channels, T\] with each call, or a Routing"):
            conv(clips)
        with pytest.raises(ValueError, match=r"x of shape \(6, 4, 5, 5\) needs num_frames; or give clips"):
            conv(frames, alpha)
        with pytest.raises(ValueError, match=r"alpha of shape \(2, 4, 2\) should be \(2, 4, 3\): \[N, channels, T\]"):
            conv(clips, alpha[:, :, :2])
        with pytest.raises(ValueError, match=r"alpha of shape \(2, 4, 3\) should be \(3, 4, 2\)"):
            conv(frames, alpha, num_frames=2)
        with pytest.raises(ValueError, match=r"num_frames = 4 should divide the 6 frames of x"):
            conv(frames, alpha, num_frames=4)
        with pytest.raises(ValueError, match=r"beta of shape \(2, 1, 3\) should be \(2, 6, 3\): \[N, D, T\]"):
            conv(clips, Calibration(alpha, alpha[:, :1]))
        with pytest.raises(ValueError, match=r"beta scales a bias, and this convolution has none"):
            TAdaConv2d(4, 6, 3, bias=False)(clips, Calibration(alpha, torch.ones(2, 6, 3)))


@pytest.mark.parametrize("calibrate", ["in", "out"])
def test_autocast_keeps_the_precision_of_a_convolution(calibrate: Any) -> None:
    conv = TAdaConv2d(4, 4, 3, calibrate=calibrate, routing=Routing(4, bias_channels=4)).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(2, 4, 3, 5, 5, dtype=torch.float32)).dtype == torch.bfloat16
