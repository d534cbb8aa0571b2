"""Training of BMN: targets of boundaries and proposals, and the losses.

Shapes: see ``bmn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BMNOutputs(NamedTuple):
    """Outputs of the network, all probabilities."""

    start: Tensor
    """[B, T], that a segment starts at the bin"""
    end: Tensor
    """[B, T], that a segment ends at the bin"""
    confidence: Tensor
    """[B, 2, D, T]: the regressed IoU of a proposal; the probability that its IoU is above 0.9"""


class BMNTargets(NamedTuple):
    """Training targets for one window."""

    start: Tensor
    """[T], overlap of the bin with the nearest start of a segment, 0 to 1"""
    end: Tensor
    """[T], likewise for ends"""
    iou: Tensor
    """[D, T], the highest IoU of a proposal with any segment"""


def valid_cells(num_bins: int, num_durations: int, device: torch.device | None = None) -> Tensor:
    """Bool [D, T]: the proposals that end within the window."""
    return torch.arange(num_durations, device=device)[:, None] + torch.arange(num_bins, device=device) < num_bins


def targets(segments: Tensor, num_bins: int, num_durations: int) -> BMNTargets:
    """Targets of a window with segments [G, 2], given as fractions of the window in [0, 1].

    The start target of bin t is the fraction of [t - 0.5, t + 1.5] that lies within 1.5 bins of a segment's start. Ends
    likewise.
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
"""A bin is a positive of the boundary loss if its overlap with a start or end is above this."""


_RIGHT_IOU = 0.9
"""A proposal is a positive of the classification loss if its IoU with a segment is above this."""


_HIGH_IOU, _LOW_IOU = 0.7, 0.3
"""Bounds of high, medium and low IoU; the regression samples about as many proposals of each."""


class BMNLosses(NamedTuple):
    """The three losses; the total is boundaries + 10 * regression + classification."""

    boundaries: Tensor
    regression: Tensor
    classification: Tensor

    def total(self) -> Tensor:
        """Weighted sum, as in the paper."""
        return self.boundaries + _REGRESSION_WEIGHT * self.regression + self.classification


def bmn_losses(
    outputs: BMNOutputs, wanted: Sequence[BMNTargets], *, generator: torch.Generator | None = None
) -> BMNLosses:
    """The losses of a batch of windows.

    Args:
        generator: random numbers that choose the proposals of medium and low IoU for the regression loss.
    """
    start, end, iou = (torch.stack(parts) for parts in zip(*wanted, strict=True))
    num_durations, num_bins = iou.shape[1:]
    valid = valid_cells(num_bins, num_durations, iou.device).expand_as(iou)
    regressed, classified = outputs.confidence[:, 0], outputs.confidence[:, 1]
    everywhere = torch.ones_like(start, dtype=torch.bool)
    # Boundaries: start and end of every bin, [B, T].
    boundaries = _balanced_entropy(outputs.start, start > _BOUNDARY_OVERLAP, everywhere) + _balanced_entropy(
        outputs.end, end > _BOUNDARY_OVERLAP, everywhere
    )
    # Proposals: classification and regression of their IoU, [B, D, T].
    classification = _balanced_entropy(classified, (iou > _RIGHT_IOU) & valid, valid)
    return BMNLosses(boundaries, _regression_loss(regressed, iou, valid, generator), classification)


def _balanced_entropy(probability: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy in which positives and negatives have the same total weight.

    Without any positive, the released code returns NaN or 0; here the weights are those of one positive, so that
    negatives are still trained.

    Args:
        positive: bool, as ``counted``, which holds wherever this does.
    """
    negative = counted & ~positive
    num_positive = positive.sum().clamp(min=1)
    total = positive.sum() + negative.sum()
    ratio = (total / num_positive).clamp(min=1.05)  # a ratio of 1 (all positive) would divide by zero
    negative_weight, positive_weight = 0.5 * ratio / (ratio - 1), 0.5 * ratio
    tiny = 1e-6
    gain = positive_weight * positive * (probability + tiny).log()
    gain = gain + negative_weight * negative * (1 - probability + tiny).log()
    return -gain.sum() / total


def _regression_loss(predicted: Tensor, iou: Tensor, valid: Tensor, generator: torch.Generator | None) -> Tensor:
    """Squared error of all proposals with a high IoU and of about as many with a medium and with a low one."""
    high = (iou > _HIGH_IOU) & valid
    chosen = high
    for band in ((iou > _LOW_IOU) & (iou <= _HIGH_IOU) & valid, (iou > 0) & (iou <= _LOW_IOU) & valid):
        share = high.sum() / band.sum().clamp(min=1)
        drawn = torch.rand(iou.shape, generator=generator, device=iou.device)
        chosen = chosen | (band & (drawn < share))
    error = ((predicted - iou) ** 2 * chosen).sum()
    return 0.5 * error / chosen.sum().clamp(min=1)
