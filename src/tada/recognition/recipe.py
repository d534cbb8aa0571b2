"""Recipes: everything that decides what a training run learns, as one typed value and as a YAML file.

What depends on the machine (workers, devices, folders) is no part of a recipe. Nothing heavy is imported here, so
that the command line can show every field at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import resources
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from tada.errors import OptionError, UnknownNameError, counted, why_unread
from tada.system.calls import checked
from tada.system.documents import read_yaml
from tada.system.typed_input import check_names, in_values
from tada.training.schedule import AnySchedule, Fit, LastBatch, Schedule, require
from tada.video.numbered import check_fps
from tada.video.sampling import ClipSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R")

RECIPE_FILE = "recipe.yaml"
"""What the folder of a run has from its beginning on."""
METRICS_FILE = "metrics.json"
"""What it has from its end on."""

Task = Literal["recognition", "localization"]
TrainedPart = Literal["head", "calibration", "all"]

# The line under a field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


# No slots here and in ClipSpec: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How a recogniser is trained.

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
    """How often a training clip loses its colour."""
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
    """Clips of one optimiser step, over all devices and accumulated parts; null: up to 32, fewer of few clips."""
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


def named_recipes(task: Task = "recognition") -> dict[str, Path]:
    """The recipes of a task that come with tada: their names, and the YAML files."""
    files = Path(str(resources.files(f"tada.{task}"))) / "recipes"
    return {path.stem: path for path in sorted(files.glob("*.yaml"))}


def find_recipe(name_or_path: str, task: Task = "recognition") -> Path:
    """The file of a task's named recipe, or the path itself where it looks like one.

    Raises:
        UnknownNameError: no recipe has the name.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    recipes = named_recipes(task)
    if name_or_path not in recipes:
        raise UnknownNameError.of("recipe" if task == "recognition" else f"{task} recipe", name_or_path, recipes)
    return recipes[name_or_path]


@checked()
def load_recipe(name_or_path: str | PathLike[str], **changes: Any) -> Recipe:
    """Read a recipe by name or from a YAML file, and change some of its fields, as ``changed`` does.

    Raises:
        OptionError: the file cannot be read, or a field is of the wrong type or out of its range.
        UnknownNameError: no recipe has the name, or none of its fields.
    """
    return changed(read_recipe(find_recipe(fspath(name_or_path)), Recipe), changes)


def changed(recipe: R, changes: Mapping[str, Any]) -> R:
    """The recipe with other values of some fields; those of ``clip`` may be a mapping of some of its fields.

    Raises:
        OptionError: a value is of the wrong type or out of its range.
        UnknownNameError: there is no such field; it tells the nearest.
    """
    if not changes:
        return recipe
    values = _plain(asdict(recipe))  # type: ignore[call-overload]
    for name, value in changes.items():
        own, value = values.get(name), _plain(value)
        inside = isinstance(value, dict) and is_dataclass(getattr(recipe, name, None))
        values[name] = {**own, **value} if inside else value
    return typed_recipe(values, type(recipe))


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def read_recipe(path: Path, kind: type[R], *, absent: Mapping[str, Any] | None = None) -> R:
    """Read a recipe of some kind from a YAML file.

    Args:
        absent: values of fields that the file does not have, where they are not the defaults.

    Raises:
        OptionError: the file cannot be read, or a field is unknown, of the wrong type or out of its range.
    """
    with _naming(path):
        return typed_recipe({**(absent or {}), **_values(path)}, kind)


def check_recipe(path: Path, kind: type[Any]) -> None:
    """See whether a file can be read as a recipe of some kind, whose values other options may yet change.

    Raises:
        OptionError: the file cannot be read, or a field is unknown or of the wrong type.
    """
    with _naming(path):
        _parsed(_values(path), kind)


def _values(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise OptionError("a recipe is a mapping of fields to values, a line for each: 'epochs: 30'")
    return values


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise OptionError(f"{path}: there is no such file; give a YAML file, or one of `tada recipes`") from error
    except (OptionError, UnknownNameError) as error:
        raise OptionError(f"{path}: {error}") from error
    except OSError as error:
        raise OptionError(f"{path}: it cannot be read: {why_unread(error)}") from error
    except ValueError as error:
        raise OptionError(f"{path}: not a readable YAML file: {error}") from error


def recipe_of_run(run: Path, kind: type[AnySchedule]) -> AnySchedule:
    """The recipe that a run was started with, with its numbers.

    Raises:
        OptionError: as ``read_recipe``.
    """
    return read_recipe(run / "recipe.yaml", kind, absent=kind.BEFORE)


def fps_of_run(run: str | PathLike[str]) -> float | None:
    """The rate of folders of frames that a run was trained with; None where it says none, or is no folder of a run."""
    file = Path(run) / RECIPE_FILE
    if not file.is_file():
        return None
    with _naming(file):
        fps = _values(file).get("fps")
        return None if fps is None else check_fps(fps)


def resumed(recipe: AnySchedule, run: Path, *, or_else: str, may_have_more_epochs: bool = False) -> AnySchedule:
    """A recipe with the numbers of a run where it says null: what goes on as the run began.

    Args:
        or_else: what else may be done with another recipe, for the message.
        may_have_more_epochs: it may have more than the run, and be the same in all else.

    Raises:
        OptionError: it is not the run's recipe.
    """
    kind = type(recipe)
    saved = recipe_of_run(run, kind)
    names = [name for name in ("epochs", "batch_size", "warmup_epochs") if getattr(recipe, name) is None]
    if saved != read_recipe(run / "recipe.yaml", kind):
        names += kind.BEFORE  # which an older run's file does not tell
    recipe = replace(recipe, **{name: getattr(saved, name) for name in names})  # type: ignore[type-var]
    values, of_run = asdict(recipe), asdict(saved)  # type: ignore[call-overload]
    if may_have_more_epochs and recipe.numbers.epochs < saved.numbers.epochs:
        raise OptionError(
            f"{run} was begun with {counted(saved.numbers.epochs, 'epoch')}, and goes on with more of them alone: "
            f"raise --epochs above that, leave it away, or {or_else}"
        )
    if may_have_more_epochs and recipe.numbers.epochs > saved.numbers.epochs:
        values["epochs"] = of_run["epochs"]
    changed = [f"{name} ({of_run[name]})" for name, value in values.items() if of_run[name] != value]
    if changed:
        raise OptionError(
            f"{run} was started with another {', '.join(changed)}, and --resume only ends what was begun: leave "
            f"that away, or {or_else}"
        )
    return recipe


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """As ``typed_recipe``, for the recipes of recognisers."""
    return typed_recipe(values, Recipe)


def typed_recipe(values: Mapping[str, Any], kind: type[R]) -> R:
    """Build a recipe from plain values, each checked against its field's type.

    Raises:
        OptionError: a field is of the wrong type, or out of its range.
        UnknownNameError: there is no such field.
    """
    parser, parsed = _parsed(values, kind)
    return kind(**parser.instantiate(parsed).as_dict())


def _parsed(values: Mapping[str, Any], kind: type[Any]) -> tuple[ArgumentParser, Namespace]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    check_names(values, kind)
    try:
        return parser, parser.parse_object(dict(values))
    except ArgumentError as error:
        raise OptionError(in_values(error, parser, values)) from error


def recipe_yaml(recipe: DataclassInstance) -> str:
    """The recipe as YAML that ``read_recipe`` reads back to the same value."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recipe).items()}
    return yaml.safe_dump(values, sort_keys=False)
