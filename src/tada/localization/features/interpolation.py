"""Linear interpolation of features in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tada.localization.features.grid import FeatureGrid


def at_times(features: Tensor, grid: FeatureGrid, seconds: NDArray[np.floating[Any]]) -> Tensor:
    """Interpolate features [C, M] at times [n] -> [C, n]; 0 more than half a stride outside the grid."""
    index = torch.from_numpy(grid.index(np.asarray(seconds, np.float64))).to(features.device)
    last = features.shape[1] - 1
    inside = (index > -0.5 - 1e-6) & (index < last + 0.5 + 1e-6)
    index = index.clamp(0, last)
    low = index.floor().long()
    part = (index - low).to(features.dtype)
    mixed = features[:, low] * (1 - part) + features[:, (low + 1).clamp(max=last)] * part
    return mixed * inside
