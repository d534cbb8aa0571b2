"""What a call of ``train`` asks for: the recipe that was meant, on this machine, in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from tada.data.clips import Augmentation
from tada.data.table import Head
from tada.errors import OptionError, UnknownNameError, counted
from tada.models.pretrained import absolute_source
from tada.recognition.recipe import Recipe, load_recipe
from tada.system.devices import Machine
from tada.training.recipe import changed, recipe_of_run, recipe_yaml, resumed
from tada.training.run_folder import was_begun
from tada.training.trainer import learning_rate_factor
from tada.video.transforms import flip_swaps, reverse_swaps


def recipe_of_call(
    recipe: Recipe | str | PathLike[str] | None,
    changes: Mapping[str, Any],
    resumed_run: Path | None,
    *,
    arguments: Sequence[str],
) -> Recipe:
    """The recipe that was named, with what was changed about it.

    Args:
        arguments: what else may be named in the call, for the message.

    Raises:
        UnknownNameError: a change of no field.
    """
    names = [field.name for field in fields(Recipe)]
    for name in changes:
        if name not in names:
            raise UnknownNameError.of("recipe field or argument of train", name, [*names, *arguments])
    if recipe is None:
        is_there = resumed_run is not None and was_begun(resumed_run)
        recipe = recipe_of_run(resumed_run, Recipe) if resumed_run is not None and is_there else Recipe()
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    return changed(recipe, changes)


def machine_of_call(device: str | None, machine: Machine | None) -> Machine:
    """What is trained on, which may be named in either way.

    Raises:
        OptionError: in both ways, or by another word.
    """
    if device is None:
        return Machine() if machine is None else machine
    if machine is not None:
        raise OptionError("device and machine both say where to train: give one of them")
    if device not in ("cpu", "cuda"):
        raise OptionError(
            f"{device = } should be 'cpu' or 'cuda'; which GPUs are seen is CUDA_VISIBLE_DEVICES' matter, and how many "
            "are used machine=tada.system.devices.Machine(devices=...)'s"
        )
    return Machine(accelerator="cpu" if device == "cpu" else "gpu")


def of_same_run(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the run's numbers, or with more epochs than it.

    Raises:
        OptionError: it is another recipe.
    """
    init = recipe_of_run(out, Recipe).init
    if absolute_source(init) == absolute_source(recipe.init):
        recipe = replace(recipe, init=init)
    return resumed(
        recipe,
        out,
        or_else=f"start a new run from its weights, with --init {out} and another --out",
        may_have_more_epochs=True,
    )


def yaml_of_run(recipe: Recipe) -> str:
    """The recipe as the folder of a run holds it: what it starts from by a name that holds everywhere."""
    return recipe_yaml(replace(recipe, init=absolute_source(recipe.init)))


def more_epochs_in_words(recipe: Recipe, before: int) -> str:
    """What a run that was to have fewer epochs goes on with."""
    epochs, _, warmup_epochs = recipe.numbers
    factor = learning_rate_factor(before, epochs=epochs, warmup_epochs=warmup_epochs, warmup_start=recipe.warmup_start)
    return (
        f"{epochs} epochs in place of {before}: from here on the learning rate follows the curve of {epochs}, which "
        f"after epoch {before} is at {factor * recipe.peak_learning_rate:.2g}, where that of {before} is at zero; "
        f"{epochs} epochs from the beginning give other weights"
    )


def mixes(recipe: Recipe) -> bool:
    """Whether clips of a batch are mixed in pairs."""
    return bool(recipe.mixup_alpha or recipe.cutmix_alpha)


def check_divisible(recipe: Recipe, machine: Machine, world: int) -> None:
    """See whether a step's clips can be dealt out evenly, in pairs where they are mixed in pairs.

    Raises:
        OptionError: they cannot, or recipe and machine contradict each other in another way.
    """
    batch_size, parts = recipe.numbers.batch_size, recipe.accumulate * world
    among = f"{counted(world, 'device')} in {counted(recipe.accumulate, 'part')}"
    if batch_size % parts:
        raise OptionError(f"batch_size {batch_size} cannot be divided among {among}: choose a multiple of {parts}")
    if mixes(recipe) and batch_size // parts % 2:
        raise OptionError(
            f"mixup and cutmix mix clips in pairs, but each device has {batch_size // parts} at a time "
            f"(batch_size {batch_size}, {among}): choose an even number"
        )
    if machine.strategy == "fsdp" and recipe.ema_decay is not None:
        raise OptionError("weights that are divided among devices (fsdp) are not averaged: use ddp, or no ema_decay")
    if machine.strategy == "fsdp" and recipe.precision == "fp64":
        raise OptionError("weights that are divided among devices (fsdp) are fp32 or bf16: choose ddp for fp64")


def augmentation(recipe: Recipe, heads: Sequence[Head]) -> Augmentation:
    """What is done to the recipe's training clips, of classes with these names."""
    return Augmentation(
        short_side_range=recipe.short_side_range,
        crop=recipe.train_crop,
        crop_area_range=recipe.crop_area_range,
        crop_ratio_range=recipe.crop_ratio_range,
        flip_probability=recipe.flip_probability,
        flip_swaps=[flip_swaps(head.labels) for head in heads],
        reverse_probability=recipe.reverse_probability,
        reverse_swaps=[reverse_swaps(head.labels) for head in heads],
        several=heads[0].several,
        color_strength=recipe.color_strength,
        color_shuffle_probability=recipe.color_shuffle_probability,
        grayscale_probability=recipe.grayscale_probability,
        invert_probability=recipe.invert_probability,
        color_jitter=recipe.color_jitter,
        color_jitter_probability=recipe.color_jitter_probability,
        randaugment_operations=recipe.randaugment_operations,
        randaugment_magnitude=recipe.randaugment_magnitude,
        randaugment_magnitude_std=recipe.randaugment_magnitude_std,
        erase_probability=recipe.erase_probability,
    )
