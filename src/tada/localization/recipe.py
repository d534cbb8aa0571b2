"""How a localizer is trained, as one typed value and as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tada.data.epochs import LastBatch
from tada.localization.detectors.nms import Selection
from tada.training.recipe import changed, find_recipe, named_recipes, read_recipe
from tada.training.schedule import Fit, Schedule, require
from tada.video.numbered import check_fps


# No slots: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class LocalizationRecipe(Schedule):
    """How a detector is trained on features.

    The defaults are for a handful to some hundreds of videos. Levels, ranges and lengths are chosen from the data.
    """

    BEFORE: ClassVar[Mapping[str, Any]] = {**Schedule.BEFORE, "train_on_background": False}
    FIT: ClassVar[Fit] = Fit(batch_size=8, small_batch_size=2, steps_per_epoch=8, epochs=30, steps=400)

    detector: Literal["actionformer", "bmn"] = "actionformer"
    """ActionFormer finds and names segments; BMN finds them, and scores beside the features name them."""
    class_agnostic: bool = False
    """Whether ActionFormer only finds segments too, and the backbone's or an external classifier's scores name them."""
    video_classes: int | None = None
    """Name all segments of a video by so many classes, its most probable ones, as on ActivityNet (2) and HACS (3); null
    names each by what is seen in it. Of BMN and class-agnostic ActionFormer."""
    dim: int = 256
    """Channels inside ActionFormer."""
    position_encoding: bool = False
    """Whether ActionFormer's steps are told their places, as on ActivityNet and HACS."""
    input_dropout: float = 0.2
    """Part of the feature channels dropped in training; ActionFormer's."""
    fps: float | None = None
    """The rate of folders of frames among the videos, in frames per second. Files have times of their own."""
    resize_to: int | None = None
    """Resize every video's features to so many, as on ActivityNet; null keeps their times. ActionFormer's."""
    train_on_background: bool = True
    """Whether videos in which nothing happens are trained on too, as published recipes do not; ActionFormer's."""
    visible_part: float = 0.5
    """Part of a segment that a training crop must hold for the segment to count; ActionFormer's."""
    regression_weight: float = 1.0
    """Weight of ActionFormer's regression loss beside that of classification."""
    normaliser: float = 100.0
    """Positive points of a batch that ActionFormer's losses first assume; then the running mean."""
    label_smoothing: float = 0.0
    """Part of the target spread over all classes; ActionFormer's."""
    boundary_scores: bool = False
    """Whether the probabilities of start and end are factors of BMN's scores, as on ActivityNet."""
    selection: Selection = field(default_factory=Selection)
    """Which of the many segments are kept (soft-NMS and voting)."""
    tiou_thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Overlaps at which mean average precision is measured, and by which the best epoch is chosen."""
    epochs: int | None = None
    """Times that training sees every video, or every window; null: 30, and more of few, so that there are 400 steps."""
    batch_size: int | None = None
    """Videos, or windows, of one optimizer step; null: up to 8, fewer of few videos."""
    last_batch: LastBatch = "fill"
    """Videos, or windows, that do not fill a batch at an epoch's end: 'fill' it up with some that are seen once more,
    or 'drop' them (others in each epoch), as published recipes do."""
    accumulate: int = 1
    """Parts in which a step's videos are worked off, to save memory."""
    learning_rate: float = 5e-4
    """The peak, at the end of the warm-up; then half a cosine down to zero."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises in a line; null: a tenth of all."""
    weight_decay: float = 0.05
    """Decay of kernels and matrices; norms, biases and scales have none."""
    ema_decay: float | None = 0.99
    """Decay per step of the averaged weights, which are tested and kept; null keeps the plain ones."""
    clip_gradient_norm: float | None = 1.0
    """Length to which a longer gradient is cut; null leaves it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the convolutions and matrix products."""
    seed: int = 0
    """Decides the initial weights, the order of videos and how they are cropped."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        # As YAML has them, so that a recipe that was written and read again is the same.
        object.__setattr__(self, "tiou_thresholds", tuple(self.tiou_thresholds))
        if self.fps is not None:
            check_fps(self.fps)
        require(self.video_classes is None or self.video_classes >= 1, "video_classes", "null or 1 or more")
        require(self.dim >= 4 and self.dim % 4 == 0, "dim", "a multiple of 4")
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
        """Whether scores beside the features name what the detector finds."""
        return self.detector == "bmn" or self.class_agnostic


def named_localization_recipes() -> dict[str, Path]:
    """The recipes that come with tada: their names, and the YAML files."""
    return named_recipes("localization")


def load_localization_recipe(name_or_path: str | Path, **changes: Any) -> LocalizationRecipe:
    """Read a recipe by name or from a YAML file, and change some of its fields.

    Raises:
        UnknownNameError: no recipe has the name.
        OptionError: the file cannot be read, or a field is unknown or of the wrong type.
    """
    return changed(read_recipe(find_recipe(str(name_or_path), "localization"), LocalizationRecipe), changes)
