"""A localizer that is made in no time, for tests of what is done with one."""

from __future__ import annotations

from pathlib import Path

from tada.data.table import Head
from tada.localization.detectors.actionformer import ActionFormerConfig, ActionFormerDetector
from tada.localization.features.extraction import settings_as_dict
from tada.localization.features.grid import FeatureGrid
from tada.localization.localizer import Localizer, LocalizerCard
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recognizer import load_recognizer
from tada.video.sliding_windows import SlidingWindows


def small_localizer(backbone_run: Path) -> Localizer:
    """With random weights, on the features of a run."""
    backbone = load_recognizer(backbone_run, device="cpu")
    windows = SlidingWindows(window_seconds=1.0, stride_seconds=0.5)
    heads, recipe = (Head(name="action", labels=("left", "up")),), LocalizationRecipe(dim=16)
    config = ActionFormerConfig(
        in_channels=8,
        num_classes=(2,),
        dim=16,
        num_levels=2,
        window=3,
        max_length=16,
        regression_ranges=((0.0, 4.0), (4.0, 10_000.0)),
    )
    detector = ActionFormerDetector(config, recipe=recipe, heads=heads)
    card = LocalizerCard(
        detector="actionformer",
        shape=detector.config_as_dict(),
        heads=heads,
        grid=FeatureGrid.of_windows(windows),
        feature_settings=settings_as_dict(backbone, windows),
        backbone="",
    )
    return Localizer(detector, card, recipe, backbone=backbone)
