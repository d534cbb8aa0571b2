"""Features of a video between the times that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tada.localization.features.grid import FeatureGrid


def at_times(features: Tensor, grid: FeatureGrid, seconds: NDArray[np.floating[Any]]) -> Tensor:
    """Features [C, M] interpolated at times [n] -> [C, n]; zero from half a stride beyond the outermost on."""
    index = torch.from_numpy(grid.index(np.asarray(seconds, np.float64))).to(features.device)
    last = features.shape[1] - 1
    inside = (index > -0.5 - 1e-6) & (index < last + 0.5 + 1e-6)
    index = index.clamp(0, last)
    low = index.floor().long()
    part = (index - low).to(features.dtype)
    mixed = features[:, low] * (1 - part) + features[:, (low + 1).clamp(max=last)] * part
    return mixed * inside
