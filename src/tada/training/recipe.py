"""Recipes of either task: read from YAML files, changed by options, and read again from the folder of a run.

A recipe has no settings of the machine (workers, devices, folders). This module imports nothing heavy, so that `--help`
shows all fields quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from importlib import resources
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from tada.errors import OptionError, UnknownNameError, changed_values, counted, why_unread
from tada.system.documents import read_yaml
from tada.system.typed_input import check_names, in_values
from tada.training.schedule import AnySchedule
from tada.video.numbered import check_fps

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R")


RECIPE_FILE = "recipe.yaml"
"""File in a run's folder that is written when the run begins."""


METRICS_FILE = "metrics.json"
"""File in a run's folder that is written when the run has finished."""


Task = Literal["recognition", "localization"]


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


def changed(recipe: R, changes: Mapping[str, Any]) -> R:
    """A copy of the recipe with some fields changed; for ``clip``, a mapping changes some of its fields.

    Raises:
        OptionError: a value is of the wrong type or out of its range.
        UnknownNameError: there is no such field; the message suggests the nearest.
    """
    if not changes:
        return recipe
    values = _to_plain(asdict(recipe))  # type: ignore[call-overload]
    for name, value in changes.items():
        own, value = values.get(name), _to_plain(value)
        inside = isinstance(value, dict) and is_dataclass(getattr(recipe, name, None))
        values[name] = {**own, **value} if inside else value
    return typed_recipe(values, type(recipe))


def _to_plain(value: Any) -> Any:
    """Convert a value to YAML's types: mappings, lists, texts, numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _to_plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(inner) for inner in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def read_recipe(path: Path, kind: type[R], *, absent: Mapping[str, Any] | None = None) -> R:
    """Read a recipe of some kind from a YAML file.

    Args:
        absent: values of fields that the file lacks, in place of the defaults.

    Raises:
        OptionError: the file cannot be read, or a field is unknown, of the wrong type or out of its range.
    """
    with _name_in_errors(path):
        return typed_recipe({**(absent or {}), **_read_values(path)}, kind)


def check_recipe(path: Path, kind: type[Any]) -> None:
    """Check that a file can be read as a recipe; ranges are not checked, since options may yet change the values.

    Raises:
        OptionError: the file cannot be read, or a field is unknown or of the wrong type.
    """
    with _name_in_errors(path):
        _parse(_read_values(path), kind)


def _read_values(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise OptionError("a recipe is a mapping of fields to values, a line for each: 'epochs: 30'")
    return values


@contextmanager
def _name_in_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a recipe into OptionErrors that name the file."""
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
    """The recipe of a run, with numbers for epochs, batch size and warm-up.

    Raises:
        OptionError: as ``read_recipe``.
    """
    return read_recipe(run / RECIPE_FILE, kind, absent=kind.BEFORE)


def fps_of_run(run: str | PathLike[str]) -> float | None:
    """The ``fps`` of a run's recipe, for folders of frames; None if it has none, or ``run`` is not a run's folder."""
    file = Path(run) / RECIPE_FILE
    if not file.is_file():
        return None
    with _name_in_errors(file):
        fps = _read_values(file).get("fps")
        return None if fps is None else check_fps(fps)


def resumed(
    recipe: AnySchedule,
    run: Path,
    *,
    or_else: str,
    may_have_more_epochs: bool = False,
    say: Callable[[str], None] = print,
) -> AnySchedule:
    """The recipe to resume a run with: ``recipe``, with the run's values where it says null, or "auto" (precision).

    Args:
        or_else: the end of the error message: what a user who wants another recipe can do.
        may_have_more_epochs: allow more epochs than the run's recipe has.
        say: prints which fields an older run's recipe lacks, where ``recipe`` has another value than the default.

    Raises:
        OptionError: another field differs from the run's recipe.
    """
    kind = type(recipe)
    saved = recipe_of_run(run, kind)
    names = [name for name in ("epochs", "batch_size", "warmup_epochs") if getattr(recipe, name) is None]
    names += ["precision"] if getattr(recipe, "precision", None) == "auto" else []
    told = _read_values(run / RECIPE_FILE)
    lacking = [name for name in kind.BEFORE if name not in told]  # fields that are newer than the run
    kept = [
        f"{name} {getattr(saved, name)} (not {wanted})"
        for name in lacking
        if (wanted := getattr(recipe, name)) not in (getattr(saved, name), getattr(kind, name))
    ]
    if kept:
        say(f"{run} was begun by an earlier tada, without some fields, and goes on as it did: {', '.join(kept)}")
    names += lacking
    recipe = replace(recipe, **{name: getattr(saved, name) for name in names})  # type: ignore[type-var]
    values, of_run = asdict(recipe), asdict(saved)  # type: ignore[call-overload]
    if may_have_more_epochs and recipe.numbers.epochs < saved.numbers.epochs:
        raise OptionError(
            f"{run} was begun with {counted(saved.numbers.epochs, 'epoch')}, and can only go on with more: "
            f"raise --epochs above that, leave it away, or {or_else}"
        )
    if may_have_more_epochs and recipe.numbers.epochs > saved.numbers.epochs:
        values["epochs"] = of_run["epochs"]
    if changed := changed_values(of_run, values):
        raise OptionError(
            f"{run} was started with another {', '.join(changed)}, and --resume continues a run as it was begun: leave "
            f"that away, or {or_else}"
        )
    return recipe


def typed_recipe(values: Mapping[str, Any], kind: type[R]) -> R:
    """Build a recipe from plain values, each checked against its field's type.

    Raises:
        OptionError: a field is of the wrong type, or out of its range.
        UnknownNameError: there is no such field.
    """
    parser, parsed = _parse(values, kind)
    return kind(**parser.instantiate(parsed).as_dict())


def _parse(values: Mapping[str, Any], kind: type[Any]) -> tuple[ArgumentParser, Namespace]:
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
