"""Fold batch norms into the convolutions before them, in any network.

For our own networks ``fuse`` knows which norm follows which convolution. For others the pairs are found in autograd's
graph, and the folded network is checked on an example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from tada.adaptation import ClipNetwork
from tada.errors import OptionError
from tada.tadaconv import TAdaConv2d, TAdaConv3d


def factor_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as ``factor * x + shift``, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.detach().double() if norm.affine else shift


def fold(conv: Any, norm: _BatchNorm) -> nn.Module:
    """Fold a norm into the convolution before it, in place; returns the convolution."""
    factor, shift = factor_and_shift(norm)
    weight = conv.weight.detach()
    if conv.bias is not None:
        shift = shift + factor * conv.bias.detach().double()
    conv.weight = nn.Parameter(weight * factor.to(weight).view(-1, *[1] * (weight.ndim - 1)))
    conv.bias = nn.Parameter(shift.to(weight))
    folded: nn.Module = conv
    return folded


def fold_norms(network: nn.Module, example_clips: Tensor | None = None) -> None:
    """Fold every batch norm that alone reads a convolution's output, in any network, in place.

    Args:
        example_clips: clips to find these norms with, and to check that the output stays the same; by default
            [1, 3, 8, 64, 64], or as many frames as the network was adapted to.

    Raises:
        OptionError: the network cannot run on the example, or its output changes when it is folded.
    """
    example_clips = _draw_example(network) if example_clips is None else example_clips
    try:
        before, pairs = _find_pairs(network, example_clips)
    except (RuntimeError, ValueError, IndexError) as error:
        raise OptionError(
            f"this {type(network).__name__} cannot read example_clips {tuple(example_clips.shape)} "
            f"({str(error).splitlines()[0]}); give example_clips as it takes them"
        ) from error
    for conv, norm in pairs:
        fold(conv, norm)
        for module in network.modules():
            for name, child in module.named_children():
                if child is norm:
                    setattr(module, name, nn.Identity())
    with torch.no_grad():
        after = network(example_clips)
    for old, new in zip(_tensors(before), _tensors(after), strict=True):
        if not torch.allclose(old, new, rtol=1e-3, atol=1e-3 * float(old.detach().abs().max())):
            raise OptionError(f"the output of this {type(network).__name__} changes when its norms are folded")


def _find_pairs(network: nn.Module, clips: Tensor) -> tuple[Any, list[tuple[nn.Module, _BatchNorm]]]:
    """Run a network once; return its output, and each convolution with the norm that alone reads its output.

    In autograd's graph the node of such a convolution's output has exactly one incoming edge, from the norm's node.
    """
    written: dict[Node, nn.Module] = {}
    read: dict[Node, _BatchNorm] = {}
    calls: Counter[nn.Module] = Counter()

    def note_output(module: nn.Module, arguments: Any, output: Tensor) -> None:
        calls[module] += 1
        if output.grad_fn is not None:
            written[output.grad_fn] = module

    def note_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if isinstance(module, _BatchNorm) and arguments[0].grad_fn is not None:
            read[arguments[0].grad_fn] = module

    hooks = [module.register_forward_hook(note_output) for module in network.modules() if _can_fold(module)]
    hooks += [
        module.register_forward_pre_hook(note_input)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    network.requires_grad_(True)
    with torch.enable_grad():
        output = network(clips)
    for hook in hooks:
        hook.remove()
    readers = Counter(below for node in _nodes(output) for below, _ in node.next_functions if below is not None)
    pairs = [
        (written[node], norm)
        for node, norm in read.items()
        if node in written and readers[node] == calls[norm] == calls[written[node]] == 1
    ]
    return output, pairs


def _can_fold(module: nn.Module) -> bool:
    if isinstance(module, TAdaConv2d | TAdaConv3d):
        return module.routing is None or module.routing.beta is None  # beta would scale the norm's shift, too
    return type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not module._forward_hooks


def _nodes(output: Any) -> Iterator[Node]:
    """All nodes of autograd's graph behind the tensors of an output."""
    waiting = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in a network's output, however nested."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _draw_example(network: nn.Module) -> Tensor:
    known = network.clip.num_frames if isinstance(network, ClipNetwork) and network.clip.fixed else None
    like = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, known or 8, 64, 64, generator=generator).to(like)
