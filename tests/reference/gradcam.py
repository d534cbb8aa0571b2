"""Grad-CAM as its paper writes it, with gradients by small changes: slow, and a reader believes it.

Shapes: T' frames, C channels and h x w cells of a feature map. There is one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def literal_gradcam(
    network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], layers: Sequence[str], *, change: float = 1e-5
) -> list[Tensor]:
    """For each layer the weighted sum of its channels before the ReLU, [T', h, w].

    Every number of the feature map is made a little larger and a little smaller, and the network runs on from there.
    """
    return [_of_layer(network, clip, choose, layer, change) for layer in layers]


@torch.no_grad()
def _of_layer(
    network: nn.Module, clip: Tensor, choose: Callable[[Tensor], Tensor], layer: str, change: float
) -> Tensor:
    module = network.get_submodule(layer)
    features: list[Tensor] = []

    def outcome(replacement: Tensor | None) -> Tensor:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            features.append(output)
            return output if replacement is None else replacement

        handle = module.register_forward_hook(hook)
        logits = network(clip)[0]
        handle.remove()
        return choose(logits if logits.ndim == 1 else logits.mean(0))  # of each frame, or of the clip

    outcome(None)
    original = features[0].contiguous()
    gradient = torch.zeros_like(original)
    for place in range(original.numel()):
        sides = []
        for sign in (1, -1):
            changed = original.clone(memory_format=torch.contiguous_format)
            changed.view(-1)[place] += sign * change
            sides.append(outcome(changed))
        gradient.view(-1)[place] = (sides[0] - sides[1]) / (2 * change)
    if original.ndim == 5:  # a clip [1, C, T', h, w]
        original, gradient = original[0].transpose(0, 1), gradient[0].transpose(0, 1)
    frames = []
    for frame, slope in zip(original, gradient, strict=True):
        total = torch.zeros_like(frame[0])
        for channel in range(len(frame)):
            total += slope[channel].mean() * frame[channel]
        frames.append(total)
    return torch.stack(frames)
