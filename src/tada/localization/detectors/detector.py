"""Detectors from a recipe and training data, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tada.data.table import Head
from tada.errors import CheckpointError
from tada.localization.annotations.table import SegmentTable
from tada.localization.detectors.actionformer import ActionFormerConfig, ActionFormerDetector
from tada.localization.detectors.bmn import BMNConfig, BMNDetector
from tada.localization.features.folder import FeatureFolder
from tada.localization.recipe import LocalizationRecipe


def new_detector(
    recipe: LocalizationRecipe, table: SegmentTable, folder: FeatureFolder
) -> ActionFormerDetector | BMNDetector:
    """Build a new detector; the sizes that the recipe leaves open (levels, ranges, windows) follow from the data.

    Args:
        table: the training videos only, with durations.
    """
    seconds = np.array([segment.seconds for video in table.videos for segment in video.segments])
    cards = [folder.cards[video.name] for video in table.videos]
    if recipe.detector == "bmn":
        bmn_config = BMNConfig.for_data(
            in_channels=folder.channels,
            segment_seconds=seconds,
            video_seconds=np.array([card.duration_seconds for card in cards]),
            stride_seconds=folder.grid.stride_seconds,
        )
        return BMNDetector(bmn_config, recipe=recipe, heads=table.heads)
    strides = {card.video: card.grid.stride_seconds for card in cards}
    steps = np.array([card.num_features for card in cards], np.float64)
    if recipe.resize_to is not None:
        strides = {c.video: c.grid.resized(c.num_features, recipe.resize_to).stride_seconds for c in cards}
        steps = np.full(len(cards), float(recipe.resize_to))
    config = ActionFormerConfig.for_data(
        in_channels=folder.channels,
        num_classes=(1,) if recipe.class_agnostic else tuple(len(s.labels) for s in table.heads),
        segment_steps=np.array([s.seconds / strides[video.name] for video in table.videos for s in video.segments]),
        video_steps=steps,
        stride_seconds=folder.grid.stride_seconds,
        overlapping=_overlap_often(table),
        dim=recipe.dim,
        window=recipe.attention_window,
        num_levels=recipe.num_levels,
        max_length=recipe.max_length,
        position_encoding=recipe.position_encoding,
        interpolate_positions=recipe.interpolate_positions,
        padding_leak=recipe.padding_leak,
        input_dropout=recipe.input_dropout,
    )
    return ActionFormerDetector(config, recipe=recipe, heads=table.heads)


def _overlap_often(table: SegmentTable) -> bool:
    """Whether more than a fifth of the segments begin before the previous one has ended."""
    pairs = [(a, b) for video in table.videos for a, b in zip(video.segments, video.segments[1:], strict=False)]
    return sum(b.start_seconds < a.end_seconds for a, b in pairs) > 0.2 * max(len(pairs), 1)


def detector_of(
    shape: dict[str, Any], recipe: LocalizationRecipe, heads: Sequence[Head]
) -> ActionFormerDetector | BMNDetector:
    """Build the detector of a checkpoint, without its weights.

    Raises:
        CheckpointError: the saved configuration is not that of a detector.
    """
    try:
        if recipe.detector == "bmn":
            return BMNDetector(BMNConfig(**shape), recipe=recipe, heads=heads)
        ranges = tuple((float(low), float(high)) for low, high in shape["regression_ranges"])
        values = shape | {"num_classes": tuple(shape["num_classes"]), "regression_ranges": ranges}
        if isinstance(shape.get("window"), list):
            values["window"] = tuple(shape["window"])
        actionformer_config = ActionFormerConfig(**values)
        return ActionFormerDetector(actionformer_config, recipe=recipe, heads=heads)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:  # RuntimeError: sizes beyond any memory
        raise CheckpointError(f"the shape of the detector is not as tada writes it ({error}); train anew") from error
