"""95 % confidence intervals of accuracies."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def accuracy_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of an accuracy (E. B. Wilson, JASA 22, 1927, page 209).

    It also holds for few videos, or if all or none are right, where the normal approximation does not.

    Args:
        share: the accuracy, in [0, 1].
        count: number of independent videos, 1 or more.
    """
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def interval_text(share: float, count: int) -> str:
    """The interval in words: "95 %: 0.30 to 0.90"."""
    low, high = accuracy_interval(share, count)
    digits = 2 if high - low >= 0.1 else 3
    return f"95 %: {low:.{digits}f} to {high:.{digits}f}"
