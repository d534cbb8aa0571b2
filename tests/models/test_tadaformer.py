"""TAdaFormer: the whole network against its slow form, its sizes, and what a new network computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fuse import with_drawn_weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from reference.tadaconv_v2 import literal_former, slow_bicubic
from tada.errors import OptionError
from tada.models import create_model
from tada.models.fuse import fuse
from tada.models.tadaformer import FormerBlock, TAdaFormer, TAdaFormerConfig

SMALL: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "grid": [2, 3], "routing_head_channels": 3}
SSV2: dict[str, Any] = {"tada_blocks": 2, "reduce_over_time": True}


def small(**options: Any) -> TAdaFormer:
    torch.manual_seed(0)
    model = create_model("tadaformer_tiny", num_classes=3, **SMALL | options).double().eval()
    assert isinstance(model, TAdaFormer)
    return model


def trained(**options: Any) -> TAdaFormer:
    """As after training: no weight at 0 or 1, and attention that tells tokens apart."""
    model = small(**options)
    with_drawn_weights(model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def clips_of(t: int = 5, h: int = 8, w: int = 12) -> Tensor:
    return torch.randn(2, 3, t, h, w, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tadaformer_b16", 104_195_728),
        ("tadaformer_b16_ssv2", 134_973_870 + (197 - 50) * 768 + (400 - 174) * 769),  # the golden file's, at 224 pixels
        ("tadaconvnextv2_t", 45_971_488),
    ],
)
def test_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "side", "giga"),
    [
        ("tadaconvnextv2_t", 256, 46.99),
        ("tadaformer_b16", 224, 153.60),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("tadaconvnextv2_s", 256, 91.29),
                ("tadaconvnextv2_b", 256, 161.30),
                ("tadaformer_l14", 224, 702.61),
            )
        ),
    ],
)
def test_multiply_adds(name: str, side: int, giga: float) -> None:
    """Of 16 frames. The authors' figures, which may count norms and activations too: 47, 153, 91, 162 and 703."""
    with torch.device("meta"):
        model, clips = create_model(name).eval(), torch.empty(1, 3, 16, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clips)
    assert round(counter.get_total_flops() / 2e9, 2) == giga


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, 2),
        (SSV2, 2),
        ({"routing_head_channels": 6}, 1),
        (SSV2 | {"routing_head_channels": 1}, 6),
        ({"tada_blocks": 0}, 0),
    ],
)
@pytest.mark.parametrize("t", [1, 2, 5])
def test_the_network_is_its_slow_form(options: dict[str, Any], heads: int, t: int) -> None:
    model = trained(**options)
    with torch.no_grad():
        features = model.features(clips_of(t))
        torch.testing.assert_close(model(clips_of(t)), model.head(features))
        expected = literal_former(model, clips_of(t), heads_over_time=heads)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("h", "w"), [(4, 4), (12, 20), (16, 8)])
def test_positions_are_interpolated_for_other_sizes(h: int, w: int) -> None:
    model = trained()
    table = model.positional_embedding.detach()
    resized = slow_bicubic(table[1:].view(2, 3, -1), h // 4, w // 4).flatten(0, 1)
    other = small(grid=[h // 4, w // 4])
    other.load_state_dict(model.state_dict() | {"positional_embedding": torch.cat([table[:1], resized])})
    torch.testing.assert_close(model(clips_of(h=h, w=w)), other(clips_of(h=h, w=w)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, SSV2])
def test_a_new_network_is_an_image_network_on_every_frame(options: dict[str, Any]) -> None:
    model, plain = small(**options), small(tada_blocks=0)
    weights = {name: value for name, value in model.state_dict().items() if ".tada" not in name}
    plain.load_state_dict(weights)
    torch.testing.assert_close(model(clips_of()), plain(clips_of()), rtol=1e-12, atol=1e-12)
    # With a stem of one frame, the order of frames does not count; once TAda blocks are trained, it does.
    for network in (model, plain):
        network.stem.weight.data[:, :, [0, 2]] = 0
    torch.testing.assert_close(model(clips_of()), plain(clips_of().flip(2)), rtol=1e-12, atol=1e-12)
    model = trained(**options)
    model.stem.weight.data[:, :, [0, 2]] = 0
    assert (model(clips_of()) - model(clips_of().flip(2))).abs().max() > 0.01


def test_every_weight_counts_but_what_no_class_token_sees() -> None:
    """Behind the last attention patches are not read again: a second TAda block there is without effect."""
    model = small(**SSV2).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model(clips_of()).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert {name.rpartition(".tada2.")[0] for name in still} == {"blocks.1"}


def test_a_clip_leaves_out_a_branch_as_a_whole() -> None:
    torch.manual_seed(0)
    config = TAdaFormerConfig(width=8, depth=1, heads=2, patch=2, grid=(2, 2), routing_head_channels=2)
    block = FormerBlock(config, drop=0.5)
    with_drawn_weights(block).train()
    tokens = torch.randn(32 * 3, 5, 8).double()
    moved = (block(tokens, 3, 2, 2) - tokens).detach().view(32, 3, 5, 8).abs().amax(3) > 0
    classes, patches = moved[:, :, 0], moved[:, :, 1:].flatten(2)
    assert (classes == classes[:, :1]).all(), "all frames of a clip, or none"
    assert (patches == patches[:, :1, :1]).all()
    assert 2 <= (~classes).all(1).sum() <= 15, "a quarter of the clips skips attention and the wide layers"
    assert (patches[:, 0, 0] & ~classes[:, 0]).any(), "of these some do not skip the TAda block"


@pytest.mark.parametrize(("h", "w", "advice"), [(9, 12, "8 x 12"), (8, 2, "8 x 4"), (3, 14, "4 x 16")])
def test_sizes_that_the_patch_does_not_divide(h: int, w: int, advice: str) -> None:
    message = (
        rf"clips \[2, 3, 5, {h}, {w}\] cannot be cut into patches of 4 x 4 pixels: give frames of {advice} \(clip.c"
    )
    with pytest.raises(OptionError, match=message):
        small()(clips_of(h=h, w=w))


def test_one_value_per_channel_cannot_be_trained_on() -> None:
    clips = torch.randn(1, 3, 2, 4, 4).double()
    with pytest.raises(OptionError, match=r"too few or too small for training: .* a side of more than 4 pixels"):
        small().train()(clips)
    small().eval()(clips)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": [2]}, r"self.grid = \(2,\) should be two numbers: rows and columns"),
        ({"depth": 0}, r"should all be positive"),
        ({"depth": 501}, r"depth=501 are more than 500 blocks"),
        ({"heads": 5}, r"self.width = 24 should be even, and divisible by self.heads = 5"),
        ({"tada_blocks": 3}, r"self.tada_blocks = 3 should be 0, 1 or 2"),
        ({"routing_head_channels": 5}, r"head_channels = 5 should divide the 6 hidden channels"),
        ({"routing_kernel_sizes": [3]}, r"kernel_sizes = \(3,\) should be two numbers"),
        ({"num_classes": 0}, r"self.num_classes = 0 should be at least 1"),
        ({"stochastic_depth": 1.0}, r"self.stochastic_depth = 1.0 should lie in \[0, 1\)"),
        ({"aggregation": "sum"}, r"pool = 'sum' should be 'avg', 'max' or 'mix'"),
    ],
)
def test_bad_configs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_model("tadaformer_tiny", **{"num_classes": 3} | SMALL | options)


class BatchedProducts(TorchDispatchMode):
    """Notes the shape of what batches of matrices are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is torch.ops.aten.bmm.default:
            self.shapes.add(tuple(args[1].shape[1:]))
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, SSV2])
@pytest.mark.parametrize("form", ["as trained", "fused"])
def test_layers_multiply_whole_matrices(form: str, options: dict[str, Any]) -> None:
    """PyTorch copies a layer's weight for each row of patches if these do not lie side by side; bf16 is slow then."""
    model: nn.Module = trained(**options)
    weights = {tuple(layer.weight.T.shape) for layer in model.modules() if isinstance(layer, nn.Linear)}
    model = fuse(model) if form == "fused" else model
    with torch.no_grad(), BatchedProducts() as products:
        model(clips_of(4))
    assert products.shapes & weights == set()
