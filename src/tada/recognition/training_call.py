"""Recipe and machine from the arguments of ``train``, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from tada.errors import OptionError, UnknownNameError, counted
from tada.recognition.recipe import Recipe, load_recipe
from tada.system.accelerator import has_bf16
from tada.system.devices import Machine
from tada.training.recipe import changed, recipe_of_run
from tada.training.run_folder import was_begun


def recipe_of_call(
    recipe: Recipe | str | PathLike[str] | None,
    changes: Mapping[str, Any],
    resumed_run: Path | None,
    *,
    arguments: Sequence[str],
) -> Recipe:
    """The recipe of a call of ``train``, with the changed fields.

    Args:
        arguments: the names of train's own arguments, for the message.

    Raises:
        UnknownNameError: a change names no field of the recipe.
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


def machine_of_call(device: Literal["cpu", "cuda", "mps"] | None, machine: Machine | None) -> Machine:
    """The machine of a call of ``train``, which is given by ``device`` or by ``machine``.

    Raises:
        OptionError: both are given, or ``device`` is none of "cpu", "cuda" and "mps".
    """
    if device is None:
        return Machine() if machine is None else machine
    if machine is not None:
        raise OptionError("device and machine both say where to train: give one of them")
    if device not in ("cpu", "cuda", "mps"):
        raise OptionError(
            f"{device = } should be 'cpu', 'cuda' or 'mps'; to choose GPUs set CUDA_VISIBLE_DEVICES, and to use "
            "several give machine=tada.system.devices.Machine(devices=...)"
        )
    return Machine(accelerator=device)


def with_precision(recipe: Recipe, device_type: str) -> Recipe:
    """The recipe with a precision in place of "auto": bf16 on a GPU that computes in it, else fp32.

    Raises:
        OptionError: the device lacks the precision.
    """
    if recipe.precision == "fp64" and device_type == "mps":
        raise OptionError("Apple's GPUs have no fp64: choose another precision, or --device cpu")
    if recipe.precision != "auto":
        return recipe
    return replace(recipe, precision="bf16" if has_bf16(device_type) else "fp32")


def mixes(recipe: Recipe) -> bool:
    """Whether the clips of a batch are mixed in pairs (mixup or CutMix)."""
    return bool(recipe.mixup_alpha or recipe.cutmix_alpha)


def check_divisible(recipe: Recipe, machine: Machine, world: int) -> None:
    """Check that a batch can be divided evenly among devices and parts, in pairs for mixup and CutMix.

    Raises:
        OptionError: it cannot, or the recipe does not work with the machine's strategy.
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
