"""Networks and their inference forms under the device guard: nothing of the host, no waiting, the CPU's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accelerator_guard import accelerator_guard, is_there
from small_networks import LITE
from tada.models import create_model
from tada.models.fuse import fuse
from tada.models.parallel import checkpoint_blocks
from tada.recognition.recognizer import load_recognizer

SMALL: dict[str, Any] = {"widths": (8, 8, 8, 8), "stem_width": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "tada2d_tiny": SMALL,
    "tsn_tiny": SMALL,
    "tada2d_r50": {"depths": (1, 1), "widths": (8, 12), "stem_width": 8},
    "tadaconvnext_mini": {},
    "tadaconvnextv2_mini": {},
    "tadaformer_tiny": {"depth": 2},
    "tadaformer_b16_ssv2": {
        "width": 24,
        "depth": 2,
        "heads": 3,
        "patch": 8,
        "grid": (3, 4),
        "routing_head_channels": 3,
    },
    "efficientnet_lite0": LITE,
    "tada_lite0": LITE,
    "slowonly_tiny": {"adapted": True},
    "slowfast_tiny": {"adapted": True},
    "r2plus1d_tiny": {"adapted": True},
    "r3d_tiny": {},
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=3, **{"dropout": 0.0, **NETWORKS[name]})


CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def on_device(tensor: Tensor) -> Tensor:
    return tensor.pin_memory().to("cuda", non_blocking=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_inference_form(name: str) -> None:
    network = network_of(name).eval()
    fused = fuse(network)
    with torch.no_grad():
        alone, alone_fused, features = network(CLIPS), fused(CLIPS), fused.features(CLIPS)
    with accelerator_guard() as guard:
        with guard.allowed():
            network.to("cuda")
            fused = fuse(network)
        clips = on_device(CLIPS)
        with torch.no_grad():
            found = network(clips), fused(clips), fused.features(clips)
        assert all(map(is_there, found))
        with guard.allowed():
            on_host = [tensor.cpu() for tensor in found]
    # Sums of pixels are made in another way than on a CPU.
    for one, other in zip(on_host, (alone, alone_fused, features), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward(name: str, checkpointed: bool) -> None:
    network = network_of(name)

    def gradients(clips: Tensor) -> list[Tensor]:
        network.zero_grad()
        torch.manual_seed(0)
        network(clips).square().mean().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    alone = [gradient.clone() for gradient in gradients(CLIPS)]
    if checkpointed:
        checkpoint_blocks(network)
    with accelerator_guard() as guard:
        with guard.allowed():
            network.to("cuda")
        found = gradients(on_device(CLIPS))
        assert len(found) == len(alone)
        assert all(map(is_there, found))
        with guard.allowed():
            on_host = [gradient.cpu() for gradient in found]
    for one, other in zip(on_host, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bf16_under_the_guard() -> None:
    network = network_of("tada2d_tiny").eval()
    with accelerator_guard() as guard:
        with guard.allowed():
            network.to("cuda")
        fused = fuse(network, dtype=torch.bfloat16)
        assert fused(on_device(CLIPS)).dtype == torch.float32
        with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
            assert network(on_device(CLIPS)).dtype == torch.bfloat16


def test_apples_gpus_fold_norms_on_the_cpu() -> None:
    """They have no float64, in which norms are folded."""
    for name in NETWORKS:
        network = network_of(name).eval()
        alone = fuse(network)
        with accelerator_guard("mps") as guard, guard.allowed():
            network.to("mps")
            fused = fuse(network)
            weights = dict(fused.named_parameters())
            assert all(map(is_there, weights.values()))
            assert all(map(is_there, network.parameters()))  # the network itself stays where it was
            assert is_there(fused(CLIPS.to("mps")))
            for key, value in alone.named_parameters():
                assert torch.equal(weights[key].cpu(), value), key


def test_scores_wait_once(small_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = torch.randint(0, 256, (3, 4, 20, 20, 3), dtype=torch.uint8)
    alone = load_recognizer(small_backbone, device="cpu").scores(views)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with accelerator_guard() as guard:
        with guard.allowed():
            recognizer = load_recognizer(small_backbone)
        assert recognizer.device == torch.device("cuda")
        started = recognizer.start_scores(views)
        assert not guard.counts["event.synchronize"]
        found = started.value()
        assert guard.counts["event.synchronize"] == 1
    assert not is_there(found)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call of torch.compile, which returns what it is given."""
    calls: list[dict[str, Any]] = []

    def compile(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        calls.append(options)
        return run

    monkeypatch.setattr(torch, "compile", compile)
    return calls


def test_cuda_graphs_are_recorded_on_cuda_alone(
    compiled: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    network = network_of("tada2d_tiny").eval()
    fuse(network, compile=True)
    assert compiled == [{}, {}]
    with accelerator_guard() as guard:
        with guard.allowed():
            network.to("cuda")
        fused = fuse(network, compile=True)
        assert compiled[2:] == [{"mode": "reduce-overhead"}] * 2
        clips = on_device(CLIPS)
        # The recorded kernels write into the same memory again: what was returned before must not change.
        shared = torch.zeros(2, 3, device="cuda")
        del fused._run
        object.__setattr__(fused, "_run", lambda clips: shared.add_(1))
        first, second = fused(clips), fused(clips)
        with guard.allowed():
            assert len(marks) == 2
            assert (first.tolist(), second.tolist()) == ([[1.0] * 3] * 2, [[2.0] * 3] * 2)
