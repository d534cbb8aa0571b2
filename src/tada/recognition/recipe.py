"""Recipes: everything that decides what a training run learns, as one typed value and as a YAML file.

What depends on the machine (workers, devices, folders) is no part of a recipe. Nothing heavy is imported here, so
that the command line can show every field at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, ClassVar, Literal

from jsonargparse import set_parsing_settings

from tada.data.epochs import LastBatch
from tada.system.calls import checked
from tada.training.recipe import changed, find_recipe, read_recipe, typed_recipe
from tada.training.schedule import Fit, Schedule, require
from tada.video.numbered import check_fps
from tada.video.sampling import ClipSpec

TrainedPart = Literal["head", "calibration", "all"]

# The line under a field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


# No slots here and in ClipSpec: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How a recognizer is trained.

    The defaults are for a small network and short clips, few or some thousands, from weights that know motion.
    """

    FIT: ClassVar[Fit] = Fit(batch_size=32, small_batch_size=8, steps_per_epoch=4, epochs=45, steps=200)

    model: str = "tada2d_tiny"
    """A name of `tada models`."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's function that differ from its defaults, as a mapping."""
    init: str = "auto"
    """What training starts from: 'motion' (weights that ship with tada, learned on generated motion), 'none' (drawn at
    random), the folder of a run, a file of weights or hf-hub:OWNER/NAME (of this network, or of an image network of its
    shape); or 'auto': motion for a model that has such weights, none for the others."""
    train: TrainedPart = "all"
    """What is trained: 'head' (the classifier), 'calibration' (the classifier, and TAdaConv's routing functions and
    second norms, on frozen kernels) or 'all'. Norms of what is frozen keep their statistics."""
    clip: ClipSpec = field(
        default_factory=lambda: ClipSpec(num_frames=8, sampling="segment", short_side=55, crop=48, antialias=True)
    )
    """Which frames make a clip, and how large they are."""
    fps: float | None = None
    """The rate of folders of frames among the videos, in frames per second, where the data does not say it. Files have
    times of their own. Needed where clips are counted in seconds, or segments are."""
    short_side_range: tuple[int, int] = (48, 64)
    """Range in which the short side of a training clip is drawn before cropping, in pixels."""
    train_crop: int | None = None
    """Side of the square that training cuts, in pixels; null: clip.crop, which testing cuts."""
    crop_area_range: tuple[float, float] | None = None
    """Cut rectangles of an area drawn from this range, as a part of the frame, and resize them (a random resized crop),
    in place of a square after drawing the short side; null: no."""
    crop_ratio_range: tuple[float, float] = (0.75, 1.3333)
    """Range of such a rectangle's width to its height."""
    flip_probability: float = 0.5
    """How often a training clip is mirrored. Classes named left and right then swap."""
    reverse_probability: float = 0.0
    """How often a training clip is played backwards, if its class's name tells what it becomes (left and right, up and
    down, ...). For classes that are nothing but motion."""
    color_strength: float = 0.4
    """How much brightness, contrast and tint of a training clip change; 0.4 is much."""
    color_shuffle_probability: float = 0.0
    """How often red, green and blue of a training clip change places."""
    grayscale_probability: float = 0.2
    """How often a training clip loses its color."""
    invert_probability: float = 0.0
    """How often bright becomes dark in a training clip."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of changes in brightness, contrast, saturation and hue (at most 0.5), as ImageNet's recipes do it."""
    color_jitter_probability: float = 1.0
    """How often a training clip is changed so."""
    randaugment_operations: int = 0
    """Operations of RandAugment that are drawn for a training clip; 0 for none."""
    randaugment_magnitude: float = 9.0
    """Their strength, from 0 to 10."""
    randaugment_magnitude_std: float = 0.5
    """Standard deviation of the strength, drawn anew for each operation."""
    erase_probability: float = 0.0
    """How often a rectangle of a training clip is filled with noise."""
    mixup_alpha: float = 0.0
    """Mix the clips of a batch in pairs, in parts drawn from Beta(alpha, alpha), and their targets; 0: no."""
    cutmix_alpha: float = 0.0
    """The same by cutting a rectangle out of one clip into the other."""
    cutmix_probability: float = 0.5
    """How often a batch is cut and not blended, where both are on."""
    epochs: int | None = None
    """Times that training sees every clip; null: 45, and more of few clips, so that there are 200 steps."""
    batch_size: int | None = None
    """Clips of one optimizer step, over all devices and accumulated parts; null: up to 32, fewer of few clips."""
    last_batch: LastBatch = "fill"
    """Clips that do not fill a batch at an epoch's end: 'fill' it up with clips that are seen once more, or 'drop' them
    (others in each epoch), as the released code does."""
    learning_rate_batch: int | None = None
    """The batch_size that learning_rate is meant for. With another, the rate is scaled in proportion, and training says
    so; null: learning_rate is taken as it is."""
    accumulate: int = 1
    """Parts in which a step's clips are worked off, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""
    learning_rate: float = 0.03
    """The peak, at the end of the warm-up; then half a cosine down to zero."""
    head_learning_rate_factor: float = 3.0
    """The classifier's learning rate, as a multiple of the others'."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises in a line; null: a tenth of all."""
    warmup_start: float = 0.01
    """The learning rate at the start of the warm-up, as a part of the peak."""
    weight_decay: float = 5e-4
    """Decay of kernels and matrices; norms and biases have none."""
    label_smoothing: float = 0.1
    """Part of the target spread evenly over all classes."""
    ema_decay: float | None = None
    """Decay per step of the averaged weights that are kept in place of the last ones; null keeps the last."""
    keep: Literal["last", "best"] = "last"
    """Which weights are kept: those after the 'last' epoch, or after the one that was 'best' on the held-out videos,
    whose accuracy then flatters itself."""
    stop_early: int | None = None
    """End after so many epochs without a better accuracy on the held-out videos; null: after all epochs."""
    clip_gradient_norm: float | None = 5.0
    """Length to which a longer gradient is cut; null leaves it."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Arithmetic of the convolutions and matrix products; fp64 is for checks, and slow."""
    sync_batch_norm: bool = True
    """Whether batch norms see the clips of all devices, so that the number of devices changes nothing, or each device
    its own."""
    balance: Literal["none", "sampling", "loss"] = "none"
    """For classes of which there are few clips: 'sampling' shows as many clips of each class in an epoch, 'loss' lets a
    clip count the more the fewer its class has, 'none' takes all clips as they are."""
    seed: int = 0
    """Decides the initial weights, the order of clips and their augmentation."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        # As YAML has them, so that a recipe that was written and read again is the same.
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in self.model_options.items()}
        object.__setattr__(self, "model_options", options)
        if self.fps is not None:
            check_fps(self.fps)
        if self.crop_area_range is None:
            low, high = self.short_side_range
            crop, crop_name = (
                (self.clip.crop, "clip.crop") if self.train_crop is None else (self.train_crop, "train_crop")
            )
            require(crop <= low <= high, "short_side_range", f"rising, from {crop_name} ({crop}) on")
        else:
            smallest, largest = self.crop_area_range
            require(0 < smallest <= largest <= 1, "crop_area_range", "rising, above 0 and up to 1")
        require(self.train_crop is None or self.train_crop >= 1, "train_crop", "null, or 1 pixel or more")
        require(0 < self.crop_ratio_range[0] <= self.crop_ratio_range[1], "crop_ratio_range", "rising, and above 0")
        for name in ("flip", "reverse", "color_shuffle", "grayscale", "invert", "color_jitter", "erase", "cutmix"):
            require(0 <= getattr(self, f"{name}_probability") <= 1, f"{name}_probability", "between 0 and 1")
        require(self.color_strength >= 0, "color_strength", "0 or more")
        require(min(self.color_jitter) >= 0 and self.color_jitter[3] <= 0.5, "color_jitter", "0 or more, hue up to 0.5")
        require(self.randaugment_operations >= 0, "randaugment_operations", "0 or more")
        require(0 <= self.randaugment_magnitude <= 10, "randaugment_magnitude", "between 0 and 10")
        require(self.randaugment_magnitude_std >= 0, "randaugment_magnitude_std", "0 or more")
        require(self.mixup_alpha >= 0, "mixup_alpha", "0 or more")
        require(self.cutmix_alpha >= 0, "cutmix_alpha", "0 or more")
        require(self.learning_rate_batch is None or self.learning_rate_batch > 0, "learning_rate_batch", "positive")
        require(self.head_learning_rate_factor > 0, "head_learning_rate_factor", "positive")
        require(self.stop_early is None or self.stop_early >= 1, "stop_early", "1 or more, or null")
        require(0 <= self.warmup_start <= 1, "warmup_start", "between 0 and 1")
        super().__post_init__()

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at its peak, scaled from ``learning_rate_batch`` to ``batch_size``."""
        if self.learning_rate_batch is None:
            return self.learning_rate
        return self.learning_rate * self.numbers.batch_size / self.learning_rate_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a recipe is known to reach on the data set it is for."""

    data: str
    """The data set, and the part of it that is tested on."""
    views: str
    """Views of each video in the test, as `tada evaluate --views` takes them."""
    metrics: dict[str, float]
    """Accuracies in [0, 1] by name; empty where none was found."""
    source: str
    """Where the numbers are from."""

    def __str__(self) -> str:
        """In one line."""
        if not self.metrics:
            return f"{self.data}, {self.views} views: {self.source}"
        numbers = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.metrics.items())
        return f"{self.data}, {self.views} views: {numbers} ({self.source})"


_AUTHORS = "the authors' table"
_CARD = "the TAdaConvNeXt paper's table, quoted from memory"
_NONE = "no published number was found"
EXPECTED = {
    "k400_tada2d_r50_8x8": Expected(
        data="Kinetics-400 val", views="10x3", metrics={"top1": 0.767, "top5": 0.926}, source=_AUTHORS
    ),
    "k400_tada2d_r50_16x5": Expected(
        data="Kinetics-400 val", views="10x3", metrics={"top1": 0.774, "top5": 0.931}, source=_AUTHORS
    ),
    "ssv2_tada2d_r50_8": Expected(
        data="Something-Something-v2 val",
        views="2x3",
        metrics={"top1": 0.640, "top5": 0.880},
        source="the authors' README; their model zoo says 64.2 %",
    ),
    "ssv2_tada2d_r50_16": Expected(
        data="Something-Something-v2 val", views="2x3", metrics={"top1": 0.656, "top5": 0.891}, source=_AUTHORS
    ),
    "epic100_tada2d_r50_8x8": Expected(data="EPIC-KITCHENS-100 val", views="10x3", metrics={}, source=_NONE),
    "k400_tadaconvnext_t_16x5": Expected(
        data="Kinetics-400 val", views="4x3", metrics={"top1": 0.784, "top5": 0.935}, source=_CARD
    ),
    "k400_tadaconvnext_s_16x5": Expected(data="Kinetics-400 val", views="4x3", metrics={}, source=_NONE),
    "k400_tadaconvnext_b_16x5": Expected(data="Kinetics-400 val", views="4x3", metrics={}, source=_NONE),
}
"""What the recipes for published data sets are held to, by their names."""


@checked()
def load_recipe(name_or_path: str | PathLike[str], **changes: Any) -> Recipe:
    """Read a recipe by name or from a YAML file, and change some of its fields, as ``changed`` does.

    Raises:
        OptionError: the file cannot be read, or a field is of the wrong type or out of its range.
        UnknownNameError: no recipe has the name, or none of its fields.
    """
    return changed(read_recipe(find_recipe(fspath(name_or_path)), Recipe), changes)


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """As ``typed_recipe``, for the recipes of recognizers."""
    return typed_recipe(values, Recipe)
