"""The number of optimizer steps in an epoch. Without PyTorch, so that recipes can import it quickly."""

from __future__ import annotations

import math
from typing import Literal

LastBatch = Literal["fill", "drop"]


def steps_of_epoch(num_clips: int, batch_size: int, last_batch: LastBatch) -> int:
    """Optimizer steps of an epoch; an incomplete last batch is dropped ("drop") or trained on as well ("fill")."""
    return num_clips // batch_size if last_batch == "drop" else math.ceil(num_clips / batch_size)
