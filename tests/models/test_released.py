"""The released forms, which benchmarks measure ours against, compute the same as ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference.released import ReleasedTAdaConv, released, stir
from tada.models import create_model
from tada.tadaconv import TAdaConv2d

FORMER: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "grid": (6, 5), "routing_head_channels": 4}
SMALL: dict[str, dict[str, Any]] = {
    "tada2d_r50": {"depths": (2, 1, 1, 2), "widths": (8, 8, 12, 16), "stem_width": 8},
    "tadaconvnext_t": {"depths": (1, 2, 1), "widths": (8, 12, 16)},
    "tadaconvnextv2_t": {"depths": (1, 2, 1), "widths": (8, 16, 24), "routing_head_channels": 4},
    "tadaformer_b16": FORMER,
    "tadaformer_b16_ssv2": FORMER,
}
WITHOUT_DEPTH = {name: {} if name == "tada2d_r50" else {"stochastic_depth": 0.0} for name in SMALL}


def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours = stir(create_model(name, num_classes=7, dropout=0.0, **SMALL[name], **options)).double()
    return ours, released(ours)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("n", "t"), [(2, 6), (1, 5), (1, 4)])
def test_same_logits(name: str, n: int, t: int) -> None:
    ours, theirs = (model.eval() for model in pair(name))
    clips = torch.randn(n, 3, t, 48, 40).double() * torch.linspace(0, 3, t)[:, None, None]  # frames unlike each other
    with torch.no_grad():
        expected = ours(clips)
        torch.testing.assert_close(theirs(clips), expected, rtol=1e-10, atol=1e-10)
        # What is compared depends on the order of frames, so routing and pooling take part.
        assert (ours(clips.flip(2)) - expected).norm() > 1e-5 * expected.norm()


@pytest.mark.parametrize(("name", "options"), WITHOUT_DEPTH.items())
def test_same_training_step(name: str, options: dict[str, Any]) -> None:
    """The same loss, gradients and running statistics: all weights of one network have one of the same size there."""
    ours, theirs = (model.train() for model in pair(name, **options))
    clips, labels = torch.randn(2, 3, 6, 48, 40).double(), torch.tensor([1, 4])
    sizes, statistics = [], []
    for model in (ours, theirs):
        loss = F.cross_entropy(model(clips), labels)
        loss.backward()
        sizes.append(sorted(float(p.grad.norm()) for p in model.parameters() if p.grad is not None))
        statistics.append(sorted(float(b.norm()) for b in model.buffers() if b.is_floating_point()))
        assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(torch.tensor(sizes[0]), torch.tensor(sizes[1]), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.tensor(statistics[0]), torch.tensor(statistics[1]), rtol=1e-8, atol=1e-10)


def test_other_sizes_of_a_former() -> None:
    ours, theirs = (model.eval() for model in pair("tadaformer_b16"))
    clips = torch.randn(1, 3, 2, 32, 64).double()
    torch.testing.assert_close(theirs(clips), ours(clips), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_the_layout_is_the_released_one(name: str) -> None:
    """Kernels for each frame, in one grouped convolution: nothing of the exact forms is left in it."""
    ours, theirs = pair(name)
    assert not any(isinstance(module, TAdaConv2d | nn.Conv2d) for module in theirs.modules())
    convs = [module for module in theirs.modules() if isinstance(module, ReleasedTAdaConv)]
    assert len(convs) == sum(isinstance(module, TAdaConv2d) for module in ours.modules()) > 0
    assert all(p.is_contiguous() for p in theirs.parameters())
    count = sum(p.numel() for p in ours.parameters())
    assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize("name", ["tadaconvnext_t", "tadaconvnextv2_t", "tadaformer_b16"])
def test_clips_leave_out_blocks_in_training(name: str) -> None:
    _, theirs = pair(name, stochastic_depth=0.5)
    clips = torch.randn(1, 3, 6, 48, 40).double()
    outputs = {float(theirs.train()(clips).norm().detach()) for _ in range(12)}
    assert 1 < len(outputs) <= 8  # all in the first block always stays; three branches behind it come and go


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tada2d_tiny", {}, "is of bottlenecks with TAdaConv"),
        ("tsn_r50", {"depths": (1,), "widths": (8,)}, "is of bottlenecks with TAdaConv"),
        ("tada2d_r50", {"depths": (1,), "widths": (8,), "aggregation": "max"}, "aggregate by average"),
        ("tada2d_r50", {"depths": (1,), "widths": (8,), "routing_kernel_sizes": (3,)}, "two layers"),
        ("convnext_mini", {}, "has TAdaConv in its blocks"),
        ("tadaformer_tiny", {"tada_blocks": 0}, "has TAda blocks"),
        ("slowonly_tiny", {}, "a Host has no released form"),
    ],
)
def test_no_released_form(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        released(create_model(name, **options))
