"""BMN's classification loss, cell by cell, as the released code reads.

Source: TAdaConv 75b7839, models/utils/localization_losses.py, Loss_PemCls. Nothing here is shared with
``tada.localization``.
"""

from __future__ import annotations

import math


def classification_loss(probabilities: list[list[list[float]]], ious: list[list[list[float]]]) -> float:
    """Of a batch of windows, each [D][T]: the IoU map is masked by the window first, then cut at 0.9.

    Cell (d, t) ends within the window if t + d < T. There has to be a positive.
    """
    cells = []
    for probability_map, iou_map in zip(probabilities, ious, strict=True):
        for d, row in enumerate(iou_map):
            for t, iou in enumerate(row):
                inside = 1.0 if t + d < len(row) else 0.0
                masked = iou * inside
                positive = 1.0 if masked > 0.9 else 0.0
                negative = (1.0 if masked <= 0.9 else 0.0) * inside
                cells.append((probability_map[d][t], positive, negative))
    num_positive = sum(positive for _, positive, _ in cells)
    num_entries = num_positive + sum(negative for _, _, negative in cells)
    ratio = num_entries / num_positive
    coef_0, coef_1 = 0.5 * ratio / (ratio - 1), 0.5 * ratio
    total = 0.0
    for p, positive, negative in cells:
        total += coef_1 * math.log(p + 1e-6) * positive + coef_0 * math.log(1 - p + 1e-6) * negative
    return -total / num_entries
