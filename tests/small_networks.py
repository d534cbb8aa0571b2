"""Options that make networks of tada small, for several tests."""

from __future__ import annotations

from typing import Any

LITE: dict[str, Any] = {
    "depths": (1, 2, 1),
    "widths": (4, 6, 8),
    "expansions": (1, 3, 2),
    "kernels": (3, 5, 3),
    "strides": (1, 2, 2),
    "stem_width": 4,
    "last_width": 12,
}
"""Of EfficientNet-Lite."""
