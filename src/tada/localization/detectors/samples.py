"""What training shows a detector of a video, and batches of it.

Shapes: B samples of a batch, C channels, T steps (ActionFormer) or bins (BMN), G segments, S label sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tada.localization.annotations.table import UntrimmedVideo


class Sample(NamedTuple):
    """What training shows of one video."""

    features: Tensor
    """[C, T]"""
    segments: Tensor
    """[G, 2], in steps (ActionFormer) or as parts of the window (BMN)"""
    labels: Tensor
    """int64 [G, S]"""


class SampleBatch(NamedTuple):
    """Samples of one length, the shorter ones padded."""

    features: Tensor
    """[B, C, T]"""
    mask: Tensor
    """bool [B, T], false where a video is padded"""
    segments: list[Tensor]
    labels: list[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one sample is drawn from: a video, and for BMN which window of it."""

    video: UntrimmedVideo
    window: int = 0


class RollingView(NamedTuple):
    """What part of an endless video a detector is best shown at once, in features."""

    num_features: int
    """As many, or up to ``multiple`` more."""
    multiple: int
    """The part begins at a multiple of this, so that the detector's own steps lie where they do in a whole video."""


def truths(video: UntrimmedVideo, num_label_sets: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A video's segments [G, 2] in seconds and their labels [G, S]."""
    times = np.array([(s.start_seconds, s.end_seconds) for s in video.segments], np.float64).reshape(-1, 2)
    labels = np.array([s.labels for s in video.segments], np.int64).reshape(-1, num_label_sets)
    return times, labels


def pad(samples: Sequence[Sample], multiple: int) -> SampleBatch:
    """Stack samples, padded to the longest and to a multiple of so many steps."""
    longest = max(sample.features.shape[1] for sample in samples)
    longest = -(-longest // multiple) * multiple
    features = torch.stack([F.pad(sample.features, (0, longest - sample.features.shape[1])) for sample in samples])
    lengths = torch.tensor([sample.features.shape[1] for sample in samples])
    return SampleBatch(
        features,
        torch.arange(longest) < lengths[:, None],
        [sample.segments for sample in samples],
        [sample.labels for sample in samples],
    )
