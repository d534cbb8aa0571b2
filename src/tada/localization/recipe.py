"""Recipe of a localizer's training: a typed configuration, and its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tada.data.epochs import LastBatch
from tada.localization.detectors.levels import MAX_LEVELS, PaddingLeak, check_window
from tada.localization.detectors.nms import Selection
from tada.training.recipe import changed, find_recipe, read_recipe
from tada.training.schedule import Fit, Schedule, require
from tada.video.numbered import check_fps


# No slots: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class LocalizationRecipe(Schedule):
    """Options of training a detector on features.

    The defaults are for a handful to some hundreds of videos. What is null is chosen from the data.
    """

    BEFORE: ClassVar[Mapping[str, Any]] = {
        **Schedule.BEFORE,
        "train_on_background": False,
        **dict.fromkeys(("num_levels", "attention_window", "max_length")),
        "interpolate_positions": False,
        "padding_leak": "none",
    }
    FIT: ClassVar[Fit] = Fit(batch_size=8, small_batch_size=2, steps_per_epoch=8, epochs=30, steps=400)

    detector: Literal["actionformer", "bmn"] = "actionformer"
    """ActionFormer finds and classifies segments; BMN finds them, and class scores beside the features give classes."""
    class_agnostic: bool = False
    """Whether ActionFormer only finds segments, too; the backbone's or a classifier's scores give their classes."""
    video_classes: int | None = None
    """Give all segments of a video its most probable classes, this many, as on ActivityNet (2) and HACS (3); null:
    classify each segment by itself. Of BMN and class-agnostic ActionFormer."""
    dim: int = 256
    """Channels inside ActionFormer."""
    num_levels: int | None = None
    """Levels of ActionFormer's pyramid, each with half the rate of the one before; null: as many as the lengths of the
    segments need."""
    attention_window: int | tuple[int, ...] | None = None
    """Steps within ActionFormer's attention window, an odd number; -1: all steps. One for all levels, or a list of one
    for each; null: 19 where there is a feature every 0.3 seconds or more often, else 9."""
    max_length: int | None = None
    """Steps of ActionFormer's longest training crop, a multiple of 2^(num_levels - 1); null: the 95th percentile of the
    videos' lengths, at most 2304."""
    position_encoding: bool = False
    """Whether ActionFormer adds position encodings, as on ActivityNet and HACS."""
    interpolate_positions: bool = True
    """Whether videos longer than max_length get the position encodings of max_length steps, interpolated, as published;
    false: the sinusoids go on."""
    padding_leak: PaddingLeak = "none"
    """Where biases of layer norms leak from the padding into the last steps of a padded video: 'none'; before attention
    and heads, as in 'opentad'; or between convolutions too, as in the released 'actionformer'."""
    input_dropout: float = 0.2
    """Fraction of the feature channels dropped in training; ActionFormer's."""
    fps: float | None = None
    """Frame rate of videos that are folders of frames, in frames per second. Video files have their own."""
    resize_to: int | None = None
    """Resize every video's features to this many, as on ActivityNet; null: keep their rate. ActionFormer's."""
    train_on_background: bool = True
    """Whether training uses videos without segments, too; published recipes do not. ActionFormer's."""
    visible_part: float = 0.5
    """Fraction of a segment that a training crop must contain for the segment to count; ActionFormer's."""
    regression_weight: float = 1.0
    """Weight of ActionFormer's regression loss; that of the classification loss is 1."""
    normaliser: float = 100.0
    """Initial divisor of ActionFormer's losses; it then follows the running mean of a batch's positive points."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes; ActionFormer's."""
    boundary_scores: bool = False
    """Whether BMN's scores are multiplied by the probabilities of start and end, as on ActivityNet."""
    selection: Selection = field(default_factory=Selection)
    """Which of the candidate segments are kept (soft-NMS and voting)."""
    tiou_thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """tIoU thresholds of mean average precision, by which the best epoch is chosen."""
    epochs: int | None = None
    """Passes over all videos, or all windows; null: 30, or more if the videos are few, so that there are 400 steps."""
    batch_size: int | None = None
    """Videos, or windows, of one optimizer step; null: up to 8, fewer if the videos are few."""
    last_batch: LastBatch = "fill"
    """The incomplete batch at an epoch's end: 'fill' it with videos (or windows) that are used once more, or 'drop' it
    (other videos in each epoch), as published recipes do."""
    accumulate: int = 1
    """Parts in which a step's videos are processed (gradient accumulation), to save memory."""
    learning_rate: float = 5e-4
    """Peak learning rate, at the end of the warm-up; a half cosine to zero follows."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up of the learning rate; null: a tenth of all."""
    weight_decay: float = 0.05
    """Weight decay of kernels and matrices; norms, biases and scales are not decayed."""
    ema_decay: float | None = 0.99
    """Decay per step of the averaged weights (EMA), which are tested and saved; null: no averaging."""
    clip_gradient_norm: float | None = 1.0
    """Largest norm of the gradient, to which a longer one is scaled; null: no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of convolutions and matrix products."""
    seed: int = 0
    """Random seed of the initial weights, the order of videos and their crops."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        # A tuple, so that a recipe that was written to YAML and read again is equal.
        object.__setattr__(self, "tiou_thresholds", tuple(self.tiou_thresholds))
        if isinstance(self.attention_window, list):
            object.__setattr__(self, "attention_window", tuple(self.attention_window))
        if self.fps is not None:
            check_fps(self.fps)
        require(self.video_classes is None or self.video_classes >= 1, "video_classes", "null or 1 or more")
        require(self.dim >= 4 and self.dim % 4 == 0, "dim", "a multiple of 4")
        require(
            self.num_levels is None or 1 <= self.num_levels <= MAX_LEVELS, "num_levels", f"null or 1 to {MAX_LEVELS}"
        )
        if self.attention_window is not None:
            check_window(self.attention_window, self.num_levels)
        of_windows = len(self.attention_window) if isinstance(self.attention_window, tuple) else 1
        multiple = 2 ** ((self.num_levels or of_windows) - 1)
        require(
            self.max_length is None or (self.max_length >= 1 and self.max_length % multiple == 0),
            "max_length",
            f"null or a multiple of {multiple}",
        )
        require(0 <= self.input_dropout < 1, "input_dropout", "in [0, 1)")
        require(self.resize_to is None or self.resize_to >= 16, "resize_to", "null or 16 or more")
        require(0 < self.visible_part <= 1, "visible_part", "in (0, 1]")
        require(self.regression_weight > 0, "regression_weight", "positive")
        require(self.normaliser >= 1, "normaliser", "1 or more")
        fine = bool(self.tiou_thresholds) and all(0 < t <= 1 for t in self.tiou_thresholds)
        require(fine, "tiou_thresholds", "a list of numbers in (0, 1]")
        super().__post_init__()

    @property
    def names_by_scores(self) -> bool:
        """Whether class scores beside the features classify the detector's segments."""
        return self.detector == "bmn" or self.class_agnostic


def load_localization_recipe(name_or_path: str | Path, **changes: Any) -> LocalizationRecipe:
    """Read a recipe by name or from a YAML file, and override some of its fields.

    Raises:
        UnknownNameError: no recipe has the name.
        OptionError: the file cannot be read, or a field is unknown or has the wrong type.
    """
    return changed(read_recipe(find_recipe(str(name_or_path), "localization"), LocalizationRecipe), changes)
