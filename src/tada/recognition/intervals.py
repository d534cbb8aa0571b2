"""How far an accuracy can be trusted: the interval in which the true one lies, 95 times of 100."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def accuracy_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a part of so many independent videos (E. B. Wilson, JASA 22, 1927, page 209).

    It holds for few videos and for all or none of them right, where the usual mean plus and minus does not.

    Args:
        share: in [0, 1].
        count: 1 or more.
    """
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def interval_text(share: float, count: int) -> str:
    """The interval in words: "95 %: 0.30 to 0.90"."""
    low, high = accuracy_interval(share, count)
    digits = 2 if high - low >= 0.1 else 3
    return f"95 %: {low:.{digits}f} to {high:.{digits}f}"
