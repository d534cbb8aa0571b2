"""The two detectors with one interface: samples of training, losses, detections.

Shapes: B samples of a batch, C channels, T steps (ActionFormer) or bins (BMN), G segments, S label sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.data.table import Head
from tada.errors import CheckpointError
from tada.localization.annotations.table import SegmentTable, UntrimmedVideo
from tada.localization.detectors import actionformer, bmn
from tada.localization.detectors.detections import Detections, select
from tada.localization.features.folder import FeatureFolder, VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.naming import name_segments, naming_scores
from tada.localization.recipe import LocalizationRecipe

_CROP_TRIES = 200
_ROLLING_SECONDS = 60.0


class Sample(NamedTuple):
    """What training shows of one video."""

    features: Tensor
    """[C, T]"""
    segments: Tensor
    """[G, 2], in steps (ActionFormer) or as parts of the window (BMN)"""
    labels: Tensor
    """int64 [G, S]"""


class SampleBatch(NamedTuple):
    """Samples of one length, the shorter ones padded."""

    features: Tensor
    """[B, C, T]"""
    mask: Tensor
    """bool [B, T], false where a video is padded"""
    segments: list[Tensor]
    labels: list[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one sample is drawn from: a video, and for BMN which window of it."""

    video: UntrimmedVideo
    window: int = 0


class RollingView(NamedTuple):
    """What part of an endless video a detector is best shown at once, in features."""

    num_features: int
    """As many, or up to ``multiple`` more."""
    multiple: int
    """The part begins at a multiple of this, so that the detector's own steps lie where they do in a whole video."""


def truths(video: UntrimmedVideo, num_label_sets: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A video's segments [G, 2] in seconds and their labels [G, S]."""
    times = np.array([(s.start_seconds, s.end_seconds) for s in video.segments], np.float64).reshape(-1, 2)
    labels = np.array([s.labels for s in video.segments], np.int64).reshape(-1, num_label_sets)
    return times, labels


def pad(samples: Sequence[Sample], multiple: int) -> SampleBatch:
    """Stack samples, padded to the longest and to a multiple of so many steps."""
    longest = max(sample.features.shape[1] for sample in samples)
    longest = -(-longest // multiple) * multiple
    features = torch.stack([F.pad(sample.features, (0, longest - sample.features.shape[1])) for sample in samples])
    lengths = torch.tensor([sample.features.shape[1] for sample in samples])
    return SampleBatch(
        features,
        torch.arange(longest) < lengths[:, None],
        [sample.segments for sample in samples],
        [sample.labels for sample in samples],
    )


class ActionFormerDetector(nn.Module):
    """ActionFormer, with the settings of its training and testing.

    Where its recipe is class-agnostic, all segments are of one class to it, and scores name what it finds.
    """

    def __init__(
        self,
        config: actionformer.ActionFormerConfig,
        *,
        recipe: LocalizationRecipe,
        label_sets: Sequence[Head],
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.label_sets = tuple(label_sets)
        self.network = actionformer.ActionFormer(config)
        self.register_buffer("normaliser", torch.tensor(recipe.normaliser))
        self.normaliser: Tensor

    def config_as_dict(self) -> dict[str, Any]:
        """The config as plain values, for ``detector_of``."""
        return asdict(self.config)

    def pieces(self, videos: Sequence[UntrimmedVideo]) -> list[Piece]:
        """What an epoch shows, once each."""
        return [Piece(video=video) for video in videos if video.segments or self.recipe.train_on_background]

    def _at_steps(self, found: VideoFeatures) -> tuple[Tensor, FeatureGrid]:
        features, grid = torch.from_numpy(found.features.T.copy()), found.card.grid
        if self.recipe.resize_to is not None:
            length = self.recipe.resize_to
            grid = grid.resized(features.shape[1], length)
            features = F.interpolate(features[None], length, mode="linear", align_corners=False)[0]
        return features, grid

    def sample(self, piece: Piece, found: VideoFeatures, rng: np.random.Generator) -> Sample:
        """A crop at random: of ``max_length`` steps where the video is longer, else of 90 to 100 % of it.

        Segments of which the crop holds too small a part do not count; the others are cut. Crops that hold none are
        drawn again.
        """
        features, grid = self._at_steps(found)
        seconds, labels = truths(piece.video, len(self.label_sets))
        if self.recipe.class_agnostic:
            labels = np.zeros((len(labels), 1), np.int64)
        steps = grid.index(seconds)
        total = features.shape[1]
        for _ in range(_CROP_TRIES if len(seconds) else 1):
            length = min(max(round(rng.uniform(0.9, 1.0) * total), 1), self.config.max_length)
            first = int(rng.integers(0, total - length, endpoint=True))
            cut = np.clip(steps, first - 0.5, first + length - 0.5)
            parts = (cut[:, 1] - cut[:, 0]) / (steps[:, 1] - steps[:, 0])
            held = parts >= self.recipe.visible_part
            if held.any():
                break
        return Sample(
            features[:, first : first + length],
            torch.from_numpy((cut[held] - first).astype(np.float32)),
            torch.from_numpy(labels[held]),
        )

    def collate(self, samples: Sequence[Sample]) -> SampleBatch:
        """Stack samples, padded to the longest."""
        return pad(samples, self.config.stride_of_last)

    def losses(self, batch: SampleBatch) -> dict[str, Tensor]:
        """What is to be minimized, as "loss", and its parts."""
        outputs = self.network(batch.features, batch.mask)
        found = actionformer.losses(outputs, batch.segments, batch.labels, label_smoothing=self.recipe.label_smoothing)
        if self.training:
            self.normaliser.mul_(0.9).add_(0.1 * max(found.num_positive, 1))
        classification = found.classification / self.normaliser
        regression = found.regression / self.normaliser
        total = classification + self.recipe.regression_weight * regression
        return {"loss": total, "classification": classification, "regression": regression}

    def detect(self, found: VideoFeatures) -> Detections:
        """The segments of a video, in seconds, best first."""
        features, grid = self._at_steps(found)
        batch = pad([Sample(features, torch.zeros(0, 2), torch.zeros(0, 1))], self.config.stride_of_last)
        device = self.normaliser.device
        outputs = self.network(batch.features.to(device), batch.mask.to(device))
        selection = self.recipe.selection
        candidates = actionformer.decode(
            outputs, grid, min_score=selection.min_score, max_candidates=selection.max_candidates
        )
        chosen = select(candidates, selection, duration_seconds=found.card.duration_seconds)
        if not self.recipe.class_agnostic:
            return chosen
        scores = naming_scores(found, self.label_sets)
        return name_segments(
            chosen.segments, chosen.scores, scores, found.card.grid, video_classes=self.recipe.video_classes
        )

    def rolling_view(self, stride_seconds: float) -> RollingView | None:
        """A minute; or eight steps of the coarsest level, four times as much as nine in ten segments last."""
        if self.recipe.resize_to is not None:
            return None
        coarsest = self.config.stride_of_last
        return RollingView(max(math.ceil(_ROLLING_SECONDS / stride_seconds), 8 * coarsest), coarsest)


class BMNDetector(nn.Module):
    """BMN, with the settings of its training and testing; scores beside the features name what it finds."""

    def __init__(self, config: bmn.BMNConfig, *, recipe: LocalizationRecipe, label_sets: Sequence[Head]) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.label_sets = tuple(label_sets)
        self.network = bmn.BMN(config)

    def config_as_dict(self) -> dict[str, Any]:
        """The config as plain values, for ``detector_of``."""
        return asdict(self.config)

    def pieces(self, videos: Sequence[UntrimmedVideo]) -> list[Piece]:
        """Windows that hold a whole segment."""
        found = []
        for video in videos:
            assert video.duration_seconds is not None, "features know how long a video is"
            seconds, _ = truths(video, len(self.label_sets))
            for i, window in enumerate(bmn.windows(self.config, video.duration_seconds)):
                if len(bmn.window_segments(seconds, window, self.config.num_bins)):
                    found.append(Piece(video=video, window=i))
        return found

    def sample(self, piece: Piece, found: VideoFeatures, rng: np.random.Generator) -> Sample:
        """A window as it is: nothing is random."""
        window = bmn.windows(self.config, found.card.duration_seconds)[piece.window]
        seconds, _ = truths(piece.video, len(self.label_sets))
        segments = bmn.window_segments(seconds, window, self.config.num_bins)
        features = torch.from_numpy(found.features.T.copy())
        return Sample(
            bmn.window_features(features, found.card.grid, window, self.config.num_bins),
            torch.from_numpy(segments.astype(np.float32)),
            torch.zeros(len(segments), 0, dtype=torch.int64),
        )

    def collate(self, samples: Sequence[Sample]) -> SampleBatch:
        """Stack samples, padded to the longest."""
        return pad(samples, 1)

    def losses(self, batch: SampleBatch) -> dict[str, Tensor]:
        """What is to be minimized, as "loss", and its parts."""
        outputs = self.network(batch.features)
        wanted = [
            bmn.targets(segments, self.config.num_bins, self.config.max_duration_bins) for segments in batch.segments
        ]
        found = bmn.bmn_losses(outputs, wanted)
        return {"loss": found.total(), **found._asdict()}

    def detect(self, found: VideoFeatures) -> Detections:
        """The segments of a video, in seconds, best first."""
        scores = naming_scores(found, self.label_sets)
        duration = found.card.duration_seconds
        places = bmn.windows(self.config, duration)
        features, grid = torch.from_numpy(found.features.T.copy()), found.card.grid
        inputs = torch.stack([bmn.window_features(features, grid, place, self.config.num_bins) for place in places])
        outputs = self.network(inputs.to(next(self.parameters()).device))
        proposals = bmn.proposals(
            outputs, places, duration_seconds=duration, score="secr" if self.recipe.boundary_scores else "cr",
            powers=(1.0, 1.0) if self.recipe.boundary_scores else (1.2, 1.0),
        )  # fmt: skip
        is_whole = self.config.bin_seconds is None
        thinned = bmn.thinned(proposals, duration_seconds=duration, thresholds=(0.5, 0.9) if is_whole else (0.25, 0.9))
        return name_segments(thinned.segments, thinned.scores, scores, grid, video_classes=self.recipe.video_classes)

    def rolling_view(self, stride_seconds: float) -> RollingView | None:
        """A window, which begins where one of a whole video's windows would."""
        bins, hop, seconds = self.config.num_bins, self.config.max_duration_bins, self.config.bin_seconds
        if seconds is None:
            return None
        return RollingView(math.ceil(bins * seconds / stride_seconds), max(round(hop * seconds / stride_seconds), 1))


def new_detector(
    recipe: LocalizationRecipe, table: SegmentTable, folder: FeatureFolder
) -> ActionFormerDetector | BMNDetector:
    """A detector fitted to the training data: its levels, ranges, windows.

    Args:
        table: the training videos alone, with durations.
    """
    seconds = np.array([segment.seconds for video in table.videos for segment in video.segments])
    cards = [folder.cards[video.name] for video in table.videos]
    if recipe.detector == "bmn":
        bmn_config = bmn.BMNConfig.for_data(
            in_channels=folder.channels,
            segment_seconds=seconds,
            video_seconds=np.array([card.duration_seconds for card in cards]),
            stride_seconds=folder.grid.stride_seconds,
        )
        return BMNDetector(bmn_config, recipe=recipe, label_sets=table.label_sets)
    strides = {card.video: card.grid.stride_seconds for card in cards}
    steps = np.array([card.num_features for card in cards], np.float64)
    if recipe.resize_to is not None:
        strides = {c.video: c.grid.resized(c.num_features, recipe.resize_to).stride_seconds for c in cards}
        steps = np.full(len(cards), float(recipe.resize_to))
    config = actionformer.ActionFormerConfig.for_data(
        in_channels=folder.channels,
        num_classes=(1,) if recipe.class_agnostic else tuple(len(s.labels) for s in table.label_sets),
        segment_steps=np.array([s.seconds / strides[video.name] for video in table.videos for s in video.segments]),
        video_steps=steps,
        stride_seconds=folder.grid.stride_seconds,
        overlapping=_overlap_often(table),
        dim=recipe.dim,
        position_encoding=recipe.position_encoding,
        input_dropout=recipe.input_dropout,
    )
    return ActionFormerDetector(config, recipe=recipe, label_sets=table.label_sets)


def _overlap_often(table: SegmentTable) -> bool:
    """Whether more than a fifth of the segments begin before the one before has ended."""
    pairs = [(a, b) for video in table.videos for a, b in zip(video.segments, video.segments[1:], strict=False)]
    return sum(b.start_seconds < a.end_seconds for a, b in pairs) > 0.2 * max(len(pairs), 1)


def detector_of(
    shape: dict[str, Any], recipe: LocalizationRecipe, label_sets: Sequence[Head]
) -> ActionFormerDetector | BMNDetector:
    """The detector that a checkpoint describes, its weights still to be loaded.

    Raises:
        CheckpointError: the description is of none.
    """
    try:
        if recipe.detector == "bmn":
            return BMNDetector(bmn.BMNConfig(**shape), recipe=recipe, label_sets=label_sets)
        ranges = tuple((float(low), float(high)) for low, high in shape["regression_ranges"])
        values = shape | {"num_classes": tuple(shape["num_classes"]), "regression_ranges": ranges}
        actionformer_config = actionformer.ActionFormerConfig(**values)
        return ActionFormerDetector(actionformer_config, recipe=recipe, label_sets=label_sets)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:  # the last for sizes that no machine has
        raise CheckpointError(f"the shape of the detector is not as tada writes it ({error}); train anew") from error
