"""Recipe of a recognizer's training: a typed configuration, and its YAML file.

A recipe has no settings of the machine (workers, devices, folders). This module imports nothing heavy, so that `--help`
shows all fields quickly.
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
ParameterRule = Literal["kernels", "released"]

# The line under a field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


# No slots here and in ClipSpec: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """Options of training a recognizer.

    The defaults are for a small network, pretrained on motion, and up to some thousands of short clips.
    """

    FIT: ClassVar[Fit] = Fit(batch_size=32, small_batch_size=8, steps_per_epoch=4, epochs=45, steps=200)

    model: str = "tada2d_tiny"
    """A name of `tada models`."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's function, as a mapping, that differ from its defaults."""
    init: str = "auto"
    """Initial weights: 'motion' (weights that ship with tada, trained on generated motion), 'image' (weights trained on
    ImageNet, from the package of tada-video[image]), 'none' (random), the folder of a run, a file of weights or
    hf-hub:OWNER/NAME (of this network, or of an image network of its shape, such as CLIP's for a TAdaFormer); or
    'auto': motion or image for a model that has such weights, none for the others."""
    train: TrainedPart = "all"
    """Part of the network that is trained: 'head' (the classifier), 'calibration' (the classifier, and TAdaConv's
    routing functions and second norms or a TAdaFormer's TAda blocks, on frozen kernels) or 'all'. Frozen norms keep
    their statistics."""
    clip: ClipSpec = field(
        default_factory=lambda: ClipSpec(num_frames=8, sampling="segment", short_side=55, crop=48, antialias=True)
    )
    """Which frames make a clip, and how large they are."""
    fps: float | None = None
    """Frame rate of videos that are folders of frames, in frames per second, where the data does not give it. Video
    files have their own. Needed if clips or segments are counted in seconds."""
    short_side_range: tuple[int, int] = (48, 64)
    """Range of a training clip's short side, drawn at random before cropping, in pixels."""
    train_crop: int | None = None
    """Side of the square crop in training, in pixels; null: clip.crop, as in tests."""
    crop_area_range: tuple[float, float] | None = None
    """Random resized crop: range of the crop's area, as a fraction of the frame, used instead of short_side_range;
    null: a square crop after resizing to a random short side."""
    crop_ratio_range: tuple[float, float] = (0.75, 1.3333)
    """Range of the aspect ratio (width / height) of a random resized crop."""
    flip_probability: float = 0.5
    """Probability of mirroring a training clip. Classes with left and right in their names are then swapped."""
    reverse_probability: float = 0.0
    """Probability of reversing a training clip in time, if its class's name says which class it becomes (left and
    right, up and down, ...). For classes that only motion defines."""
    color_strength: float = 0.4
    """Strength of random changes in brightness, contrast and tint of a training clip; 0.4 is strong."""
    color_shuffle_probability: float = 0.0
    """Probability of permuting red, green and blue of a training clip."""
    grayscale_probability: float = 0.2
    """Probability of converting a training clip to grayscale."""
    invert_probability: float = 0.0
    """Probability of inverting the colors of a training clip."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of random changes in brightness, contrast, saturation and hue (at most 0.5), as in ImageNet recipes."""
    color_jitter_probability: float = 1.0
    """Probability of applying color_jitter to a training clip."""
    randaugment_operations: int = 0
    """Number of RandAugment operations for a training clip; 0: none."""
    randaugment_magnitude: float = 9.0
    """Strength of RandAugment's operations, from 0 to 10."""
    randaugment_magnitude_std: float = 0.5
    """Standard deviation of RandAugment's strength, drawn for each operation."""
    erase_probability: float = 0.0
    """Probability of filling a rectangle of a training clip with noise (random erasing)."""
    mixup_alpha: float = 0.0
    """Mixup: blend the clips of a batch in pairs, and their targets, by a weight from Beta(alpha, alpha); 0: no
    mixup."""
    cutmix_alpha: float = 0.0
    """CutMix: paste a rectangle of one clip into the other, of an area from Beta(alpha, alpha); 0: no CutMix."""
    cutmix_probability: float = 0.5
    """Probability of CutMix rather than mixup for a batch, if both are on."""
    epochs: int | None = None
    """Passes over all clips; null: 45, or more if the clips are few, so that there are 200 steps."""
    batch_size: int | None = None
    """Clips of one optimizer step, over all devices and accumulated parts; null: up to 32, fewer if the clips are
    few."""
    last_batch: LastBatch = "fill"
    """The incomplete batch at an epoch's end: 'fill' it with clips that are used once more, or 'drop' it (other clips
    in each epoch), as the released code does."""
    learning_rate_batch: int | None = None
    """The batch_size that learning_rate is meant for; for another one the rate is scaled in proportion; null:
    learning_rate is not scaled."""
    accumulate: int = 1
    """Parts in which a step's clips are processed (gradient accumulation), to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""
    learning_rate: float = 0.03
    """Peak learning rate, at the end of the warm-up; a half cosine to learning_rate_end follows."""
    learning_rate_end: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    cosine_after_warmup: bool = False
    """Whether the cosine begins after the warm-up, at the peak; false: it runs over all epochs, and the warm-up joins
    it below the peak."""
    head_learning_rate_factor: float = 3.0
    """The classifier's learning rate, as a multiple of learning_rate."""
    tada_learning_rate_factor: float = 1.0
    """The learning rate of a TAdaFormer's TAda blocks, or of another network's routing functions, as a multiple of
    learning_rate."""
    layer_decay: float = 1.0
    """For a TAdaFormer: the learning rate of a layer, as a fraction of the next one's, from the classifier down."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up of the learning rate; null: a tenth of all."""
    warmup_start: float = 0.01
    """Learning rate at the start of the warm-up, as a fraction of the peak."""
    weight_decay: float = 5e-4
    """Weight decay of kernels and matrices; norms and biases are not decayed (see parameter_rule)."""
    parameter_rule: ParameterRule = "kernels"
    """Which weights decay, and which biases learn faster: 'kernels' and matrices decay; 'released', for a
    TAdaConvNeXt, as in the released code: layer scales and the norms of stem, downsamplings and routing functions decay
    too, and biases of the classifier and of routing functions (and the layers of these that give a bias) have twice
    their layers' rate."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all classes."""
    ema_decay: float | None = None
    """Decay per step of the averaged weights (EMA), which are tested and saved; null: no averaging."""
    keep: Literal["last", "best"] = "last"
    """Which weights are saved: after the 'last' epoch, or after the 'best' one by accuracy on the held-out videos,
    which then overestimates the accuracy on others."""
    stop_early: int | None = None
    """Stop after this many epochs without a better accuracy on the held-out videos; null: train all epochs."""
    clip_gradient_norm: float | None = 5.0
    """Largest norm of the gradient, to which a longer one is scaled; null: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Precision of convolutions and matrix products; fp64 is slow, for checks; 'auto': bf16 on a GPU that computes in
    it, else fp32. A run's recipe says which it was, and a resumed run keeps it."""
    sync_batch_norm: bool = True
    """Whether batch norms use the statistics of all devices' clips, so that results do not depend on the number of
    devices; false: each device uses its own clips."""
    balance: Literal["none", "sampling", "loss"] = "none"
    """For classes with few clips: 'sampling' draws equally many clips of each class in an epoch, 'loss' weights a
    clip's loss by the inverse frequency of its class, 'none' does neither."""
    seed: int = 0
    """Random seed of the initial weights, the order of clips and their augmentation."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        # Lists, as in YAML, so that a recipe that was written and read again is equal.
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
        require(self.tada_learning_rate_factor > 0, "tada_learning_rate_factor", "positive")
        require(0 < self.layer_decay <= 1, "layer_decay", "above 0 and up to 1")
        require(0 <= self.learning_rate_end <= 1, "learning_rate_end", "between 0 and 1")
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
    """Published accuracy of a recipe on its data set."""

    data: str
    """The data set and its test split."""
    views: str
    """Views of each video in the test, as `tada evaluate --views` takes them."""
    metrics: dict[str, float]
    """Accuracies in [0, 1] by name; empty if none was found."""
    source: str
    """The source of the numbers."""

    def __str__(self) -> str:
        """In one line."""
        if not self.metrics:
            return f"{self.data}, {self.views} views: {self.source}"
        numbers = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.metrics.items())
        return f"{self.data}, {self.views} views: {numbers} ({self.source})"


_AUTHORS = "the authors' table"
_ZOO = "the authors' model zoo"
_CARD = "the paper's table"
_NONE = "no published number was found"


def _second_paper(recipes: str, top1: Mapping[str, float | None]) -> dict[str, Expected]:
    """Published accuracies of the second paper, by the network's size in the recipes' names."""
    is_kinetics = recipes.startswith("k400")
    return {
        recipes.format(size): Expected(
            data="Kinetics-400 val" if is_kinetics else "Something-Something-v2 val",
            views="4x3" if is_kinetics else "2x3",
            metrics={} if value is None else {"top1": value},
            source=_NONE if value is None else _ZOO,
        )
        for size, value in top1.items()
    }


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
    **_second_paper("k400_tadaconvnextv2_{}_16x5", {"t": 0.796, "s": 0.808, "b": 0.814}),
    **_second_paper("k400_tadaformer_{}_16", {"b16": 0.845, "l14": 0.876}),
    **_second_paper("ssv2_tadaconvnextv2_{}_16", {"t": 0.672, "s": 0.684, "b": None}),
    **_second_paper("ssv2_tadaformer_{}_16", {"b16": 0.704, "l14": 0.724}),
}
"""Recipes for published data sets, by name -> their published accuracies."""


@checked()
def load_recipe(name_or_path: str | PathLike[str], **changes: Any) -> Recipe:
    """Read a recipe by name or from a YAML file, and change some of its fields, as ``changed`` does.

    Raises:
        OptionError: the file cannot be read, or a field is of the wrong type or out of its range.
        UnknownNameError: no recipe, or no field of it, has the name.
    """
    return changed(read_recipe(find_recipe(fspath(name_or_path)), Recipe), changes)


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """As ``typed_recipe``, for the recipes of recognizers."""
    return typed_recipe(values, Recipe)
