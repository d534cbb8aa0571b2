"""Recipes: everything that decides what a training run learns, as one typed value and as a YAML file.

What depends on the machine (workers, devices, folders) is no part of a recipe. Nothing heavy is imported here, so
that the command line can show every field at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from tada.errors import OptionError, UnknownNameError
from tada.video.sampling import ClipSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R")

# The line under a field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


# No slots here and in ClipSpec: jsonargparse 4.53 cannot take a slotted dataclass as a default value.
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a recogniser is trained.

    The defaults are for a small network and some hundreds of short clips, from weights that know motion.
    """

    model: str = "tada2d_tiny"
    """A name of `tada models`."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's function that differ from its defaults, as a mapping."""
    init: str = "auto"
    """What training starts from: 'motion' (weights that ship with tada, learned on generated motion), 'none' (drawn at
    random), the folder of a run, a file of weights or hf-hub:OWNER/NAME (of this network, or of an image network of its
    shape); or 'auto': motion for a model that has such weights, none for the others."""
    clip: ClipSpec = field(
        default_factory=lambda: ClipSpec(num_frames=8, sampling="segment", short_side=55, crop=48, antialias=True)
    )
    """Which frames make a clip, and how large they are."""
    short_side_range: tuple[int, int] = (48, 64)
    """Range in which the short side of a training clip is drawn before cropping, in pixels."""
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
    epochs: int = 45
    """Times that training sees every clip."""
    batch_size: int = 32
    """Clips of one optimiser step, over all devices and accumulated parts."""
    accumulate: int = 1
    """Parts in which a step's clips are worked off, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""
    learning_rate: float = 0.03
    """The peak, at the end of the warm-up; then half a cosine down to zero."""
    head_learning_rate_factor: float = 3.0
    """The classifier's learning rate, as a multiple of the others'."""
    warmup_epochs: float = 4.5
    """Epochs over which the learning rate rises in a line."""
    warmup_start: float = 0.01
    """The learning rate at the start of the warm-up, as a part of the peak."""
    weight_decay: float = 5e-4
    """Decay of kernels and matrices; norms and biases have none."""
    label_smoothing: float = 0.1
    """Part of the target spread evenly over all classes."""
    ema_decay: float | None = None
    """Decay per step of the averaged weights that are kept in place of the last ones; null keeps the last."""
    clip_gradient_norm: float | None = 5.0
    """Length to which a longer gradient is cut; null leaves it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the convolutions and matrix products."""
    seed: int = 0
    """Decides the initial weights, the order of clips and their augmentation."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        # As YAML has them, so that a recipe that was written and read again is the same.
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in self.model_options.items()}
        object.__setattr__(self, "model_options", options)
        low, high = self.short_side_range
        _require(self.clip.crop <= low <= high, "short_side_range", f"rising, from clip.crop ({self.clip.crop}) on")
        for name in ("flip", "reverse", "color_shuffle", "grayscale", "invert"):
            _require(0 <= getattr(self, f"{name}_probability") <= 1, f"{name}_probability", "between 0 and 1")
        _require(self.color_strength >= 0, "color_strength", "0 or more")
        _require(self.epochs >= 1, "epochs", "1 or more")
        _require(self.accumulate >= 1, "accumulate", "1 or more")
        _require(
            self.batch_size >= 1 and self.batch_size % self.accumulate == 0,
            "batch_size",
            f"a multiple of accumulate ({self.accumulate})",
        )
        _require(self.learning_rate > 0, "learning_rate", "positive")
        _require(self.head_learning_rate_factor > 0, "head_learning_rate_factor", "positive")
        _require(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs", f"between 0 and epochs ({self.epochs})")
        _require(0 <= self.warmup_start <= 1, "warmup_start", "between 0 and 1")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "null or between 0 and 1")
        _require(self.clip_gradient_norm is None or self.clip_gradient_norm > 0, "clip_gradient_norm", "positive")
        _require(self.seed >= 0, "seed", "0 or more")


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise OptionError(f"the recipe's {name} must be {rule}")


def named_recipes() -> dict[str, Path]:
    """The recipes that come with tada: their names, and the YAML files."""
    folder = Path(str(resources.files("tada"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """The file of a named recipe, or the path itself where it looks like one.

    Raises:
        UnknownNameError: no recipe has the name.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    recipes = named_recipes()
    if name_or_path not in recipes:
        raise UnknownNameError.of("recipe", name_or_path, recipes)
    return recipes[name_or_path]


def load_recipe(name_or_path: str | Path, **changes: Any) -> Recipe:
    """Read a recipe by name or from a YAML file, and change some of its fields.

    Raises:
        OptionError: the file cannot be read, or a field is unknown or of the wrong type.
    """
    return replace(read_recipe(find_recipe(str(name_or_path)), Recipe), **changes)


def read_recipe(path: Path, kind: type[R]) -> R:
    """Read a recipe of some kind from a YAML file.

    Raises:
        OptionError: the file cannot be read, or a field is unknown or of the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise OptionError("a recipe is a mapping of fields to values, a line for each: 'epochs: 30'")
        return typed_recipe(values, kind)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """As ``typed_recipe``, for the recipes of recognisers."""
    return typed_recipe(values, Recipe)


def typed_recipe(values: Mapping[str, Any], kind: type[R]) -> R:
    """Build a recipe from plain values, each checked against its field's type.

    Raises:
        OptionError: a field is unknown or of the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.instantiate(parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise OptionError(" ".join(str(error.message).split())) from error
    return kind(**parsed.as_dict())


def recipe_yaml(recipe: DataclassInstance) -> str:
    """The recipe as YAML that ``read_recipe`` reads back to the same value."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
    return yaml.safe_dump(values, sort_keys=False)
