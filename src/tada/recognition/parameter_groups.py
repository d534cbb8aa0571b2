"""Groups of parameters with a learning rate and a weight decay each, as the released optimizers form them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tada.errors import OptionError
from tada.models.tadaconvnext import TAdaConvNeXt
from tada.models.tadaformer import TAdaFormer
from tada.recognition.recipe import ParameterRule

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_NORM = re.compile(r"norm\.|stages\.\d+\.\d+\.norm\.")
"""The norms of a TAdaConvNeXt that have "norm" in their released names, and so do not decay; see ``_is_decayed``."""


def check_rule(model: nn.Module, name: str, *, layer_decay: float, rule: ParameterRule) -> None:
    """Raise OptionError where ``parameter_groups`` has no such rule for a network, the one called ``name``."""
    if layer_decay < 1 and not isinstance(model, TAdaFormer):
        raise OptionError(f"layer_decay {layer_decay} is for a TAdaFormer, whose layers it counts: for a {name} give 1")
    if rule == "released" and not isinstance(model, TAdaConvNeXt):
        raise OptionError(f"parameter_rule 'released' is for a TAdaConvNeXt: for a {name} give 'kernels'")


def parameter_groups(
    model: nn.Module,
    *,
    rate: float,
    head_factor: float,
    added_factor: float,
    layer_decay: float,
    weight_decay: float,
    rule: ParameterRule,
) -> list[dict[str, Any]]:
    """The groups of the trained parameters, for an optimizer: "params", "lr" and "weight_decay".

    Args:
        rate: the learning rate of what has no factor.
        head_factor: of the classifier.
        added_factor: of a TAdaFormer's TAda blocks, or of another network's routing functions.
        layer_decay: a TAdaFormer of depth d has the rate times ``layer_decay ** (d + 1 - i)``; i is 0 for the stem,
            the embeddings and the first norm, 1 for the first block, and d + 1 for the last norm and the classifier.
        weight_decay: of what decays.
        rule: which parameters decay, and which biases have twice the rate; as in a recipe.
    """
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head, is_added = name.startswith("head."), _is_added(name, model)
        factor = head_factor if is_head else added_factor if is_added else 1.0
        if rule == "released":
            is_decayed = _is_decayed(name)
            factor *= 2 if (is_head or is_added) and not is_decayed else 1
        else:
            is_decayed = parameter.ndim > 1
        if isinstance(model, TAdaFormer):
            depth = model.config.depth
            factor *= layer_decay ** (depth + 1 - _layer(name, depth))
        group = {"params": [], "lr": rate * factor, "weight_decay": weight_decay if is_decayed else 0.0}
        groups.setdefault((is_head, not is_decayed, factor), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _is_added(name: str, model: nn.Module) -> bool:
    return (".tada" if isinstance(model, TAdaFormer) else ".routing.") in name


def _is_decayed(name: str) -> bool:
    """Whether a parameter of a TAdaConvNeXt decays in the released code, which asks for parts of names.

    Routing functions are asked for first, so their norms' weights decay. The layer that gives the bias is called
    "b_bias", and counts as a bias. The norms of stem and downsamplings have no "norm" in their names there, and decay.
    """
    if ".routing." not in name and _NORM.match(name):
        return False
    return not name.endswith(".bias") and ".beta." not in name


def _layer(name: str, depth: int) -> int:
    """The layer of a TAdaFormer's parameter, from 0 to depth + 1."""
    if match := _BLOCK.match(name):
        return 1 + int(match[1])
    return depth + 1 if name.startswith(("norm.", "head.")) else 0
