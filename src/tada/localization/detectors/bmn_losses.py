"""What BMN is trained by: targets of boundaries and of proposals, and the losses.

Shapes: see ``bmn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BMNOutputs(NamedTuple):
    """All are probabilities."""

    start: Tensor
    """[B, T], that something starts at a bin"""
    end: Tensor
    """[B, T]"""
    confidence: Tensor
    """[B, 2, D, T]: the IoU of a proposal, as regressed; and that it is above 0.9"""


class BMNTargets(NamedTuple):
    """What the network should say of one window."""

    start: Tensor
    """[T]"""
    end: Tensor
    """[T]"""
    iou: Tensor
    """[D, T], the best IoU of a proposal with any segment"""


def valid_cells(num_bins: int, num_durations: int) -> Tensor:
    """Bool [D, T]: the proposals that end within the window."""
    return torch.arange(num_durations)[:, None] + torch.arange(num_bins) < num_bins


def targets(segments: Tensor, num_bins: int, num_durations: int) -> BMNTargets:
    """The targets of a window with these segments, [G, 2], as parts of the window in [0, 1].

    A start is looked for within 1.5 bins of a segment's start; the target is how much of a bin's neighborhood, from
    half a bin before to one and a half after, that covers. Ends likewise.
    """
    if not len(segments):
        zeros = segments.new_zeros(num_bins)
        return BMNTargets(zeros, zeros, segments.new_zeros(num_durations, num_bins))
    bins = torch.arange(num_bins, device=segments.device, dtype=segments.dtype)
    scaled = segments.clamp(0, 1) * num_bins  # in bins

    def boundary(at: Tensor) -> Tensor:
        low, high = at - 1.5, at + 1.5
        inter = torch.minimum(high, bins[:, None] + 1.5) - torch.maximum(low, bins[:, None] - 0.5)
        return (inter.clamp(min=0) / 2).max(1).values

    cell_start = bins[None, :, None]  # [1, T, 1]
    cell_end = (
        cell_start + torch.arange(1, num_durations + 1, device=segments.device, dtype=segments.dtype)[:, None, None]
    )
    inter = (torch.minimum(cell_end, scaled[:, 1]) - torch.maximum(cell_start, scaled[:, 0])).clamp(min=0)
    union = (cell_end - cell_start) + (scaled[:, 1] - scaled[:, 0]) - inter
    return BMNTargets(boundary(scaled[:, 0]), boundary(scaled[:, 1]), (inter / union).max(2).values)


_REGRESSION_WEIGHT = 10


_BOUNDARY_OVERLAP = 0.5
"""From this overlap with a segment's start or end on, a bin is one."""


_RIGHT_IOU = 0.9
"""From this IoU with a segment on, a proposal is classified as right."""


_HIGH_IOU, _LOW_IOU = 0.7, 0.3
"""Between these lie proposals of middling IoU, of which the regression draws as many as there are high ones."""


class BMNLosses(NamedTuple):
    """The three parts; the total is boundaries + 10 * regression + classification."""

    boundaries: Tensor
    regression: Tensor
    classification: Tensor

    def total(self) -> Tensor:
        """Weighted as in the paper."""
        return self.boundaries + _REGRESSION_WEIGHT * self.regression + self.classification


def bmn_losses(
    outputs: BMNOutputs, wanted: Sequence[BMNTargets], *, generator: torch.Generator | None = None
) -> BMNLosses:
    """The losses of a batch of windows.

    Args:
        generator: draws which proposals of middling and low IoU take part in the regression.
    """
    start, end, iou = (torch.stack(parts) for parts in zip(*wanted, strict=True))
    num_durations, num_bins = iou.shape[1:]
    valid = valid_cells(num_bins, num_durations).to(iou.device).expand_as(iou)
    regressed, classified = outputs.confidence[:, 0], outputs.confidence[:, 1]
    everywhere = torch.ones_like(start, dtype=torch.bool)
    boundaries = _balanced_entropy(outputs.start, start > _BOUNDARY_OVERLAP, everywhere) + _balanced_entropy(
        outputs.end, end > _BOUNDARY_OVERLAP, everywhere
    )
    classification = _balanced_entropy(classified, iou > _RIGHT_IOU, valid)
    return BMNLosses(boundaries, _regression(regressed, iou, valid, generator), classification)


def _balanced_entropy(probability: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Cross entropy in which positives and negatives weigh the same.

    Positives count even where they are not ``counted``. Without any positive, the released code is NaN or 0; here they
    are taken to be one, so that what is negative is still pressed down.
    """
    negative = counted & ~positive
    num_positive = positive.sum().clamp(min=1)
    total = positive.sum() + negative.sum()
    ratio = (total / num_positive).clamp(min=1.05)  # 1, were all positive, divides by zero
    negative_weight, positive_weight = 0.5 * ratio / (ratio - 1), 0.5 * ratio
    tiny = 1e-6
    gain = positive_weight * positive * (probability + tiny).log()
    gain = gain + negative_weight * negative * (1 - probability + tiny).log()
    return -gain.sum() / total


def _regression(predicted: Tensor, iou: Tensor, valid: Tensor, generator: torch.Generator | None) -> Tensor:
    """Squared error of all proposals with a high IoU and about as many with a middling and with a low one."""
    high = (iou > _HIGH_IOU) & valid
    chosen = high
    for band in ((iou > _LOW_IOU) & (iou <= _HIGH_IOU) & valid, (iou > 0) & (iou <= _LOW_IOU) & valid):
        share = high.sum() / band.sum().clamp(min=1)
        drawn = torch.rand(iou.shape, generator=generator, device=iou.device)
        chosen = chosen | (band & (drawn < share))
    error = ((predicted - iou) ** 2 * chosen).sum()
    return 0.5 * error / chosen.sum().clamp(min=1)
