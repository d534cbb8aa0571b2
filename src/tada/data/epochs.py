"""Into how many steps the clips of an epoch are cut. Numbers only, without PyTorch: recipes say it too."""

from __future__ import annotations

import math
from typing import Literal

LastBatch = Literal["fill", "drop"]


def steps_of_epoch(num_clips: int, batch_size: int, last_batch: LastBatch) -> int:
    """Optimizer steps of an epoch."""
    return num_clips // batch_size if last_batch == "drop" else math.ceil(num_clips / batch_size)
