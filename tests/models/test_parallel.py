"""Less memory, same numbers: checkpointed blocks; batch norms over ranks, here over one, against PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tada.errors import OptionError
from tada.models import create_model
from tada.models.parallel import blocks, checkpoint_blocks, synchronize_batch_norms

SMALL = {
    "tada2d_tiny": {"widths": [8, 8, 8, 8], "stem_width": 8},
    "tadaconvnext_mini": {"widths": [8, 8, 8], "stochastic_depth": 0.5},
    "tadaformer_tiny": {"width": 24, "depth": 2, "routing_head_channels": 3, "stochastic_depth": 0.5},
    "tada_lite0": {
        "depths": [1, 2],
        "widths": [4, 6],
        "expansions": [1, 3],
        "kernels": [3, 5],
        "strides": [1, 2],
        "last_width": 8,
    },
    "slowonly_tiny": {},
}


def step(model: nn.Module, clips: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and buffers of one training step."""
    torch.manual_seed(1)  # dropout and stochastic depth
    loss = model.train()(clips).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("name", SMALL)
def test_checkpointed_blocks_give_the_same_numbers(name: str) -> None:
    torch.manual_seed(0)
    plain, checked = (create_model(name, num_classes=3, **SMALL[name]).double() for _ in range(2))
    checked.load_state_dict(plain.state_dict())
    names = list(plain.state_dict())
    checkpoint_blocks(checked)
    assert list(checked.state_dict()) == names
    clips = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    for one, other in zip(step(plain, clips), step(checked, clips), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    checked.eval()
    torch.testing.assert_close(checked(clips), plain.eval()(clips))


def test_a_block_holds_less_until_it_is_needed() -> None:
    """What is saved for the gradients between blocks: only their inputs."""

    def saved(checkpointed: bool) -> int:
        torch.manual_seed(0)
        model = create_model("tada2d_tiny", num_classes=3, **SMALL["tada2d_tiny"])
        if checkpointed:
            checkpoint_blocks(model)
        sizes = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 4, 32, 32))
        return sum(sizes)

    assert saved(True) < saved(False) / 2


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(OptionError, match=r"a Linear has no residual blocks"):
        blocks(nn.Linear(2, 2))


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_batch_norms_over_one_rank_are_pytorchs() -> None:
    """The arithmetic, its gradients and its running statistics; over two ranks: test_ranks.py."""
    torch.manual_seed(0)
    plain, ours = (create_model("tada2d_tiny", num_classes=3, dropout=0.0).double() for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    ours = synchronize_batch_norms(ours, on_cpu=True)
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in ours.modules())
    clips = torch.randn(3, 3, 4, 32, 32, dtype=torch.float64)
    for one, other in zip(step(plain, clips), step(ours, clips), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours.eval()(clips), plain.eval()(clips))
