"""Features of videos that nobody filmed, in which something happens now and then, and a small recipe for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tada.localization.features.folder import FeatureCard, VideoFeatures, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.recipe import LocalizationRecipe

GRID = FeatureGrid(start_seconds=0.1, stride_seconds=0.2, window_seconds=0.4)


RECIPE = LocalizationRecipe(dim=16, input_dropout=0.0, epochs=2, warmup_epochs=0.0, batch_size=1, ema_decay=0.5)


def silent(line: str) -> None:
    pass


def draw_features(folder: Path, *, num_videos: int = 6, with_scores: bool = True) -> tuple[Path, Path]:
    """Videos of 8 s whose features are raised where a or b happens; the last two are for validation."""
    rows = ["video,start,end,label,split"]
    rng = np.random.default_rng(0)
    times = GRID.seconds(np.arange(40.0))
    for v in range(num_videos):
        features = rng.normal(0, 0.1, (40, 8)).astype(np.float32)
        scores = np.full((40, 2), 0.5, np.float32)
        for k, label in enumerate("ab"):
            start = 0.5 + 4 * k + rng.uniform(0, 1)
            end = start + rng.uniform(0.8, 2.0)
            inside = (times > start) & (times < end)
            features[inside, k] += 1
            scores[inside] = np.eye(2)[1 - k] * 0.8 + 0.1  # the backbone has its classes in another order
            rows.append(f"v{v},{start:.3f},{end:.3f},{label},{'val' if v >= num_videos - 2 else 'train'}")
        card = FeatureCard(
            video=f"v{v}",
            duration_seconds=8.0,
            grid=GRID,
            num_features=40,
            channels=8,
            backbone="drawn",
            settings={"stride_seconds": 0.2},
            score_labels={"action": ["b", "a"]} if with_scores else {},
        )
        found = VideoFeatures(card=card, features=features, scores={"action": scores} if with_scores else {})
        write_features(folder / "features", found)
    (folder / "segments.csv").write_text("\n".join(rows) + "\n")
    return folder / "features", folder / "segments.csv"
