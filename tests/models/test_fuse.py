"""The inference form gives the numbers of the network it was made from, in float64 to rounding."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.modules.batchnorm import _BatchNorm

import tada
from small_networks import LITE
from tada.errors import OptionError
from tada.models import fuse as fuse_module
from tada.models.fuse import fuse
from tada.models.fused_parts import FilterOverTime
from tada.models.tada2d import TAda2D, TAda2DConfig
from tada.models.tadaformer import TAdaBlock
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation

FORMER: dict[str, Any] = {"width": 24, "depth": 2, "patch": 8, "grid": (3, 4), "routing_head_channels": 3}
SECOND_PAPER = ("tadaconvnextv2_mini", "tadaformer_tiny")
BOTTLENECKS: dict[str, Any] = {"block": "bottleneck", "depths": (2, 1), "widths": (8, 12), "stem_width": 8}


def with_drawn_weights(network: nn.Module) -> nn.Module:
    """As after training: no norm at 1 and 0, no routing function or TAda block at 0, no layer scale of one number."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, Routing):
            nn.init.normal_(module.alpha.weight, std=0.1)
            if module.beta is not None:
                nn.init.normal_(module.beta.weight, std=0.1)
        if isinstance(module, TAdaBlock):
            nn.init.normal_(module.expand.weight, std=0.1)
            nn.init.normal_(module.expand.bias, std=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return network.double().eval()


def clips_of(*, n: int = 2, t: int = 4, side: int = 32) -> Tensor:
    return torch.randn(n, 3, t, side, side, generator=torch.Generator().manual_seed(1)).double()


@torch.no_grad()
def assert_same(fused: nn.Module, network: nn.Module, clips: Tensor) -> None:
    kept = clips.clone()
    torch.testing.assert_close(fused(clips), network(clips), rtol=1e-10, atol=1e-12)
    assert torch.equal(clips, kept), "the clips were written over"


def norms_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tada2d_tiny", {}),
        ("tsn_tiny", {}),
        ("tada2d_tiny", {"calibrate": "out"}),
        ("tada2d_tiny", {"calibrate": None}),
        ("tada2d_tiny", {"aggregation": None}),
        ("tada2d_tiny", {"calibrate": "out", "aggregation": None}),
        ("tada2d_tiny", {"routing_kernel_sizes": (1,), "routing_global_context": False}),
        ("tada2d_tiny", {"routing_kernel_sizes": (3,)}),
        ("tadaconvnext_mini", {}),
        ("tadaconvnext_mini", {"calibrate": "in"}),
        ("convnext_mini", {}),
        ("tadaconvnextv2_mini", {}),
        ("tadaconvnextv2_mini", {"aggregation": "mix", "activation": "gelu"}),
        ("tadaformer_tiny", FORMER),
        ("tadaformer_tiny", FORMER | {"tada_blocks": 2, "reduce_over_time": True}),
        ("tadaformer_tiny", FORMER | {"tada_blocks": 0}),
        ("efficientnet_lite0", LITE),
        ("tada_lite0", LITE),
        ("tada_lite0", LITE | {"calibrate": "in", "routing_ratio": 2, "aggregation": "avg"}),
        ("tada_lite0", LITE | {"routing_kernel_sizes": (3,)}),
        ("tada_lite0", LITE | {"routing_global_context": False}),
        ("slowonly_tiny", {"adapted": True}),
        ("slowfast_tiny", {}),
        ("r2plus1d_tiny", {"adapted": True}),
        ("r3d_tiny", {}),
    ],
)
def test_the_same_logits_and_features_and_no_batch_norm_left(name: str, options: dict[str, Any]) -> None:
    network = with_drawn_weights(tada.create_model(name, num_classes=5, **options))
    fused = fuse(network)
    assert not norms_of(fused)
    for clips in (clips_of(), clips_of(n=1, t=8)):
        assert_same(fused, network, clips)
    torch.testing.assert_close(fused.features(clips), network.features(clips), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("calibrate", ["in", "out", None])
@pytest.mark.parametrize("aggregation", ["avg", "max", "mix", None])
def test_bottlenecks_in_all_their_forms(calibrate: Any, aggregation: Any) -> None:
    config = TAda2DConfig(**BOTTLENECKS, calibrate=calibrate, aggregation=aggregation, num_classes=5)
    network = with_drawn_weights(TAda2D(config))
    assert_same(fuse(network), network, clips_of())
    assert_same(fuse(network), network, clips_of(n=1, t=1))


def test_a_tada_block_with_an_aggregation_that_is_no_filter() -> None:
    network = with_drawn_weights(tada.create_model("tadaformer_tiny", num_classes=5, **FORMER, aggregation="max"))
    assert_same(fuse(network), network, clips_of())


def test_a_filter_over_time_by_sums() -> None:
    """The form for a compiler, of single clips too."""
    aggregation = with_drawn_weights(TemporalAggregation(5))
    assert isinstance(aggregation, TemporalAggregation)
    frames = torch.randn(6, 5, 3, 4).double()
    for num_frames in (1, 3, 6):
        for relu in (False, True):
            form = FilterOverTime(aggregation, relu=relu)
            torch.testing.assert_close(
                form.summed(frames, num_frames), form(frames, num_frames), rtol=1e-12, atol=1e-12
            )


def test_wide_layers_take_the_pixels_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network = with_drawn_weights(tada.create_model("tadaconvnextv2_mini", num_classes=5))
    monkeypatch.setattr(fuse_module, "_PART", 7 * 128)  # seven pixels of the first stage, one of the last
    assert_same(fuse(network), network, clips_of())


@pytest.mark.parametrize("name", ["tada2d_tiny", "tadaconvnext_mini"])
def test_many_clips_are_taken_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = with_drawn_weights(tada.create_model(name, num_classes=5))
    fused = fuse(network)
    taken: list[int] = []
    fused.network.register_forward_pre_hook(lambda module, arguments: taken.append(len(arguments[0])))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(fuse_module, "_PIXELS_OF_A_THREAD", 2 * 4 * 32 * 32 // 4)  # of two clips
    clips = clips_of(n=5)
    assert_same(fused, network, clips)
    assert taken == [2, 2, 1]
    torch.testing.assert_close(fused.features(clips), network.features(clips), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(fuse_module, "_PIXELS_OF_A_THREAD", 1)  # less than a clip
    assert_same(fused, network, clips_of())
    assert taken[3:] == [1, 1]


def test_the_network_stays_as_it_is() -> None:
    network = with_drawn_weights(tada.create_model("tada2d_tiny", num_classes=5)).train()
    before = copy.deepcopy(network.state_dict())
    fused = fuse(network)
    fused(clips_of())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_is_made_for_inference_alone() -> None:
    fused = fuse(with_drawn_weights(tada.create_model("tada2d_tiny", num_classes=5)))
    assert not any(module.training for module in fused.eval().modules())
    assert not fused(clips_of().requires_grad_()).requires_grad
    with pytest.raises(ValueError, match="cannot be trained"):
        fused.train()


class _Image(nn.Module):
    """Convolutions and norms that may be joined, and ones that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.read_twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norm_of_read_twice = nn.BatchNorm2d(8)
        self.called_twice = nn.Conv2d(8, 8, 1)
        self.norm_of_called_twice = nn.BatchNorm2d(8)
        self.norm_before = nn.BatchNorm2d(8)  # pre-activation: it stands before its convolution
        self.behind = nn.Conv2d(8, 8, 3, padding=1)
        self.shared_norm = nn.BatchNorm2d(8)
        self.without_factors = nn.Conv2d(8, 8, 1, bias=False)
        self.norm_without_factors = nn.BatchNorm2d(8, affine=False)
        self.of_the_batch = nn.Conv2d(8, 8, 1)
        self.norm_of_the_batch = nn.BatchNorm2d(8, track_running_stats=False)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)
        y = self.read_twice(x)
        x = x + self.norm_of_read_twice(y) + y
        x = self.norm_of_called_twice(self.called_twice(x)) + self.called_twice(x)
        x = x + self.behind(F.relu(self.norm_before(x)))
        x = self.shared_norm(x) + self.shared_norm(F.relu(x))
        x = self.norm_without_factors(self.without_factors(x))
        x = x + self.norm_of_the_batch(self.of_the_batch(x))
        return {"logits": self.head(x.mean((2, 3)))}


def _image_network() -> nn.Module:
    network = _Image()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.double().eval()


def test_any_adapted_network_is_folded_where_it_may_be() -> None:
    torch.manual_seed(0)
    network, _ = tada.adapt(_image_network(), where=["read_twice", "behind", "without_factors"])
    for module in network.modules():
        if isinstance(module, Routing):
            nn.init.normal_(module.alpha.weight, std=0.1)
    fused = fuse(network)
    clips = clips_of()
    torch.testing.assert_close(fused(clips)["logits"], network(clips)["logits"], rtol=1e-10, atol=1e-12)
    inner: Any = fused.network.network
    folded = {name for name, module in inner.named_modules() if isinstance(module, nn.Identity) and "." not in name}
    assert folded == {"norm_without_factors"}
    assert isinstance(inner.stem[1], nn.Identity)
    assert not any(isinstance(r.norm, nn.BatchNorm1d) for r in inner.modules() if isinstance(r, Routing))


def test_a_network_for_a_fixed_number_of_frames() -> None:
    network, _ = tada.adapt(_image_network(), where="behind", num_frames=3)
    clips = clips_of(t=3)
    torch.testing.assert_close(fuse(network)(clips)["logits"], network(clips)["logits"], rtol=1e-10, atol=1e-12)


def test_a_scaled_bias_has_no_place_for_a_norm() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TAdaConv2d(3, 4, 3, routing=Routing(3, bias_channels=4))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, clips: Tensor) -> Tensor:
            y: Tensor = self.norm(self.conv(clips).transpose(1, 2).flatten(0, 1))
            return y

    network = with_drawn_weights(Network())
    fused = fuse(network)
    assert len(norms_of(fused)) == 1
    assert_same(fused, network, clips_of())


def test_an_example_that_does_not_fit_is_asked_for() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4)).eval()
    with pytest.raises(OptionError, match=r"this Sequential cannot read example_clips \(1, 3, 8, 64, 64\).*give"):
        fuse(network)
    clips = torch.randn(1, 1, 2, 4, 4)
    torch.testing.assert_close(fuse(network, example_clips=clips)(clips), network(clips))


def test_a_network_without_norms_or_weights_is_run_as_it_is() -> None:
    network = nn.Sequential(nn.AvgPool3d(2), nn.Flatten())
    assert_same(fuse(network), network, clips_of())
    with pytest.raises(ValueError, match="a Sequential has no features"):
        fuse(network).features(clips_of())


@pytest.mark.parametrize("name", ["tada2d_tiny", "tadaconvnext_mini", *SECOND_PAPER])
def test_bfloat16_inside_and_the_clips_type_outside(name: str) -> None:
    network = with_drawn_weights(tada.create_model(name, num_classes=5)).float()
    clips = clips_of().float()
    fused = fuse(network, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    logits, wanted = fused(clips), network(clips).detach()
    assert logits.dtype == torch.float32
    assert fused.features(clips).dtype == torch.float32
    # bf16 keeps eight bits; some layers deep, a few hundredths of the logits' spread.
    assert float((logits - wanted).abs().max()) < 0.05 * float(wanted.max() - wanted.min())


def test_another_type_is_refused() -> None:
    with pytest.raises(OptionError, match=r"dtype = torch\.int8 should be a floating type"):
        fuse(tada.create_model("tsn_tiny", num_classes=5), dtype=torch.int8)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it, when tracing
@pytest.mark.parametrize(
    "name", ["tada2d_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tsn_tiny", *SECOND_PAPER))]
)
@pytest.mark.parametrize("form", ["trained", "fused"])
def test_a_compiler_takes_it_in_one_piece(name: str, form: str) -> None:
    network: nn.Module = tada.create_model(name, num_classes=5, dropout=0.0).double().train()
    if form == "fused":
        network = fuse(network).network
    # The compiler's front ends, without the one that writes machine code: fullgraph refuses whatever breaks the graph.
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    clips = clips_of()
    logits = compiled(clips)
    torch.testing.assert_close(logits, network(clips))
    if form == "trained":
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it, when tracing
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own use
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("name", ["tada2d_tiny", *SECOND_PAPER])
def test_compiled_the_same(name: str) -> None:
    network = with_drawn_weights(tada.create_model(name, num_classes=5)).float()
    fused = fuse(network, compile=True)
    for clips in (clips_of().float(), clips_of(n=1, t=6).float(), clips_of(side=48).float()):
        for found, expected in ((fused(clips), network(clips)), (fused.features(clips), network.features(clips))):
            # In float32 a small entry has the error of the large ones that it is a sum of.
            torch.testing.assert_close(
                found, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.detach().abs().max()))
            )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own use
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_compiled_convolutions_take_in_what_follows() -> None:
    # Only where the compiler takes the weights as constants, which is easily asked for in vain.
    torch._dynamo.reset()
    counters.clear()
    fuse(tada.create_model("tsn_tiny", num_classes=5), compile=True)(clips_of().float())
    assert counters["inductor"]["mkldnn_unary_fusion_matcher_count"] > 0
