"""Training on several devices (synchronized batch norms, FSDP) or in little memory. Names of weights do not change."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tada.errors import OptionError
from tada.models import efficientnet_lite, resnet3d, tada2d, tadaconvnext, tadaformer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.device_mesh import DeviceMesh

_BLOCKS = (
    tada2d.BasicBlock,
    tada2d.Bottleneck,
    tadaconvnext.ConvNeXtBlock,
    tadaformer.FormerBlock,
    efficientnet_lite.InvertedResidual,
    resnet3d.Bottleneck3d,
)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of one of tada's networks.

    Raises:
        OptionError: it has none.
    """
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, _BLOCKS)]
    if not found:
        raise OptionError(
            f"a {type(model).__name__} has no residual blocks: gradients are not checkpointed, nor shared"
        )
    return found


# --- batch norms ----------------------------------------------------------------------------------------------------


def synchronize_batch_norms(model: nn.Module, *, on_cpu: bool) -> nn.Module:
    """Make batch norms compute mean and variance over the batches of all ranks.

    On GPUs by PyTorch's SyncBatchNorm, which needs GPUs; on a CPU by our own.
    """
    if on_cpu:
        return _with_norms_over_ranks(model)
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # PyTorch's
    return converted


def _with_norms_over_ranks(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm):
        norm = _NormOverRanks(module.num_features, eps=module.eps, momentum=module.momentum, affine=module.affine)
        norm.load_state_dict(module.state_dict())
        for name, parameter in norm.named_parameters():
            parameter.requires_grad_(module.get_parameter(name).requires_grad)
        return norm.to(next(iter(module.state_dict().values())).dtype)
    for name, child in module.named_children():
        setattr(module, name, _with_norms_over_ranks(child))
    return module


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks (all_reduce); its gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


def _mean_over_ranks(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]  # PyTorch's
    return total / dist.get_world_size()


class _NormOverRanks(_BatchNorm):
    """A batch norm over the batches of all ranks, which must have equal sizes."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Allow any number of dimensions: statistics are taken over all but the second."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        others = [i for i in range(input.ndim) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(input.ndim)]
        mean = _mean_over_ranks(input.mean(others))
        centered = input - mean.view(shape)
        variance = _mean_over_ranks(centered.square().mean(others))
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            count = input.numel() // input.shape[1] * dist.get_world_size()
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)
                self.num_batches_tracked += 1
        normed = centered * (variance + self.eps).rsqrt().view(shape)
        return normed * self.weight.view(shape) + self.bias.view(shape)


# --- memory ---------------------------------------------------------------------------------------------------------


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint each residual block: drop its activations, and compute them again in the backward pass.

    The results are the same: random choices are repeated, and batch norms count a batch once.

    Raises:
        OptionError: the network has no residual blocks.
    """
    for block in blocks(model):
        # Set on the instance; a wrapper module would change the names of weights.
        setattr(block, "forward", partial(_checkpointed, block, block.forward))  # noqa: B010  # no method of the class


def _checkpointed(block: nn.Module, forward: Any, *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_both_times, block))


def _both_times(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _without_counting(block)


@contextmanager
def _without_counting(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from updating their running statistics in the block."""
    norms = [(module, module.momentum) for module in block.modules() if isinstance(module, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights over the devices (FSDP2); each block's weights are gathered when it runs.

    Raises:
        OptionError: the network has no residual blocks.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 cannot shard channels-last kernels
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather the full weights of a sharded network on the CPU of rank 0; empty on the other ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
