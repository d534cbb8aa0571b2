"""Training of ActionFormer: assignment of segments to points, and the losses of classification and regression.

Shapes: B videos of a batch, P points of all levels, G segments, S label sets, K classes of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LevelOutputs(NamedTuple):
    """Outputs of the heads for each point; the levels are concatenated, finest first."""

    logits: tuple[Tensor, ...]
    """[B, P, K] for each label set"""
    offsets: Tensor
    """[B, P, 2], distances to start and end, in steps of the point's level; 0 or more"""
    points: Tensor
    """[P], times of the points, in steps of level 0"""
    strides: Tensor
    """[P], stride of the point's level, in steps of level 0"""
    ranges: Tensor
    """[P, 2], the regression range of the point's level"""
    valid: Tensor
    """bool [B, P], false where a video is padded"""


class Targets(NamedTuple):
    """Training targets for the points of one video."""

    labels: tuple[Tensor, ...]
    """[P, K] for each label set: 1 for the classes of the segment assigned to a point"""
    offsets: Tensor
    """[P, 2], distances to that segment's start and end, in steps of the point's level"""
    positive: Tensor
    """bool [P], whether a segment is assigned to the point"""


def assign(
    points: Tensor,
    strides: Tensor,
    ranges: Tensor,
    segments: Tensor,
    labels: Tensor,
    num_classes: tuple[int, ...],
    *,
    radius: float = 1.5,
) -> Targets:
    """Assign to each point a segment whose middle is near and whose ends are within the point's regression range.

    Args:
        points: [P], strides [P] and ranges [P, 2] as in ``LevelOutputs``.
        segments: [G, 2], in steps.
        labels: int64 [G, S].
        radius: largest distance of a point from the segment's middle, in steps of its level; the point must also lie
            inside the segment.

    If several segments fit a point, it regresses the shortest; its classes are those of all segments of that length.
    """
    one_hot = tuple(F.one_hot(labels[:, s], count).to(points.dtype) for s, count in enumerate(num_classes))
    if not len(segments):
        empty = tuple(points.new_zeros(len(points), count) for count in num_classes)
        return Targets(empty, points.new_zeros(len(points), 2), torch.zeros_like(points, dtype=torch.bool))
    start, end = segments[:, 0], segments[:, 1]  # [G]
    left, right = points[:, None] - start, end - points[:, None]  # [P, G]
    middle, reach = (start + end) / 2, radius * strides[:, None]
    from_middle_left = points[:, None] - torch.maximum(middle - reach, start)
    from_middle_right = torch.minimum(middle + reach, end) - points[:, None]
    central = torch.minimum(from_middle_left, from_middle_right) > 0
    farther = torch.maximum(left, right)
    in_range = (farther >= ranges[:, None, 0]) & (farther <= ranges[:, None, 1])
    lengths = torch.where(central & in_range, end - start, torch.inf)  # [P, G]
    shortest, chosen = lengths.min(1)
    positive = shortest.isfinite()
    as_short = (lengths <= shortest[:, None] + 1e-3) & positive[:, None]  # [P, G]
    both = torch.stack([left, right], dim=2)  # [P, G, 2]
    offsets = both[torch.arange(len(points), device=points.device), chosen] / strides[:, None]
    return Targets(
        tuple((as_short.to(points.dtype) @ hot).clamp(max=1.0) for hot in one_hot),
        torch.where(positive[:, None], offsets, 0.0),
        positive,
    )


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, elementwise, without reduction (Lin et al., 2017)."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    hit = probability * targets + (1 - probability) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - hit) ** gamma * entropy


def diou_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """DIoU loss of segments [N, 2]: 1 - IoU + (distance of centers / length of their hull)^2 (Zheng et al., 2020)."""
    inter = (torch.minimum(predicted[:, 1], targets[:, 1]) - torch.maximum(predicted[:, 0], targets[:, 0])).clamp(min=0)
    union = (predicted[:, 1] - predicted[:, 0]) + (targets[:, 1] - targets[:, 0]) - inter
    enclosing = torch.maximum(predicted[:, 1], targets[:, 1]) - torch.minimum(predicted[:, 0], targets[:, 0])
    apart = (predicted.sum(1) - targets.sum(1)) / 2
    tiny = 1e-8
    return 1 - inter / union.clamp(min=tiny) + (apart / enclosing.clamp(min=tiny)) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Both losses of a batch, summed over its points; ``num_positive``, an integer, is for normalizing them."""

    classification: Tensor
    regression: Tensor
    num_positive: Tensor


def losses(
    outputs: LevelOutputs, segments: list[Tensor], labels: list[Tensor], *, label_smoothing: float = 0.0
) -> Loss:
    """Focal loss over all valid points, DIoU loss over the positive ones.

    Args:
        segments: for each video [G, 2], in steps.
        labels: for each video int64 [G, S].
    """
    # Of all points, with zeros where they do not count: to pick those that do, the host would wait for the device.
    zero = outputs.offsets.new_zeros(())
    classification, regression, num_positive = zero, zero, zero.long()
    num_classes = tuple(logits.shape[2] for logits in outputs.logits)
    for i, (own_segments, own_labels) in enumerate(zip(segments, labels, strict=True)):
        targets = assign(outputs.points, outputs.strides, outputs.ranges, own_segments, own_labels, num_classes)
        valid = outputs.valid[i]
        for logits, hot in zip(outputs.logits, targets.labels, strict=True):
            smooth = hot * (1 - label_smoothing) + label_smoothing / (hot.shape[1] + 1)
            of_points = focal_loss(logits[i], smooth)
            classification = classification + torch.where(valid[:, None], of_points, zero).sum()
        positive = targets.positive & valid
        predicted, wanted = (_around_point(offsets) for offsets in (outputs.offsets[i], targets.offsets))
        regression = regression + torch.where(positive, diou_loss(predicted, wanted), zero).sum()
        num_positive = num_positive + positive.sum()
    return Loss(classification=classification, regression=regression, num_positive=num_positive)


def _around_point(offsets: Tensor) -> Tensor:
    """Distances to start and end, [P, 2] -> segments around a point at 0, [P, 2]."""
    return torch.stack([-offsets[:, 0], offsets[:, 1]], dim=1)
