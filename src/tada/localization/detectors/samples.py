"""Training samples of a detector, and batches of them.

Shapes: B samples of a batch, C channels, T steps (ActionFormer) or bins (BMN), G segments, S label sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tada.localization.annotations.table import UntrimmedVideo


class Sample(NamedTuple):
    """One training sample: a crop or window of a video."""

    features: Tensor
    """[C, T]"""
    segments: Tensor
    """[G, 2], in steps (ActionFormer) or as fractions of the window (BMN)"""
    labels: Tensor
    """int64 [G, S]"""


class SampleBatch(NamedTuple):
    """A batch of samples, padded to one length."""

    features: Tensor
    """[B, C, T]"""
    mask: Tensor
    """bool [B, T], false where a video is padded"""
    segments: list[Tensor]
    labels: list[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The source of a training sample: a video, and for BMN the index of a window."""

    video: UntrimmedVideo
    window: int = 0


class RollingView(NamedTuple):
    """The part of an endless video that a detector processes at once, in features."""

    num_features: int
    """Length of the part; it may be longer by up to ``multiple``."""
    multiple: int
    """The part begins at a multiple of this, so that the detector's strides are aligned as in a whole video."""


def truths(video: UntrimmedVideo, num_heads: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The annotated segments [G, 2] of a video, in seconds, and their labels [G, S]."""
    times = np.array([(s.start_seconds, s.end_seconds) for s in video.segments], np.float64).reshape(-1, 2)
    labels = np.array([s.labels for s in video.segments], np.int64).reshape(-1, num_heads)
    return times, labels


def pad(samples: Sequence[Sample], padded_length: Callable[[int], int]) -> SampleBatch:
    """Stack samples, padded to ``padded_length`` of the longest, in steps."""
    longest = padded_length(max(sample.features.shape[1] for sample in samples))
    features = torch.stack([F.pad(sample.features, (0, longest - sample.features.shape[1])) for sample in samples])
    lengths = torch.tensor([sample.features.shape[1] for sample in samples])
    return SampleBatch(
        features,
        torch.arange(longest) < lengths[:, None],
        [sample.segments for sample in samples],
        [sample.labels for sample in samples],
    )
