"""Map the weight names of image networks in torchvision and timm to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tada.models.tada2d import TAda2DConfig
from tada.models.tadaconvnext import TAdaConvNeXtConfig
from tada.models.weights import (
    without_ones,
)

# Names of their classifiers; and our names of weights that an image network does not have.
THEIR_CLASSIFIER = re.compile(r"(fc|head|head\.fc|classifier|classifier\.2)\.(weight|bias)")
NOT_OF_IMAGES = re.compile(r"head\.|.*\.routing\.|.*\.pooled_norm\.")

# Our module names, then theirs. i is the stage from 0, n the stage from 1, j the block from 0.
_Rows = tuple[tuple[str, ...], ...]
_BOTTLENECKS: _Rows = (
    ("stem_conv", "conv1"),
    ("stem_norm", "bn1"),
    ("stages.{i}.{j}.conv1", "layer{n}.{j}.conv1"),
    ("stages.{i}.{j}.norm1", "layer{n}.{j}.bn1"),
    ("stages.{i}.{j}.conv2.conv", "layer{n}.{j}.conv2"),
    ("stages.{i}.{j}.conv2.{norm}", "layer{n}.{j}.bn2"),
    ("stages.{i}.{j}.conv3", "layer{n}.{j}.conv3"),
    ("stages.{i}.{j}.norm3", "layer{n}.{j}.bn3"),
    ("stages.{i}.{j}.shortcut.0", "layer{n}.{j}.downsample.0"),
    ("stages.{i}.{j}.shortcut.1", "layer{n}.{j}.downsample.1"),
)
_BASIC_BLOCKS: _Rows = (
    ("stem_conv", "conv1"),
    ("stem_norm", "bn1"),
    ("stages.{i}.{j}.conv1.conv", "layer{n}.{j}.conv1"),
    ("stages.{i}.{j}.conv1.{norm}", "layer{n}.{j}.bn1"),
    ("stages.{i}.{j}.conv2.conv", "layer{n}.{j}.conv2"),
    ("stages.{i}.{j}.conv2.{norm}", "layer{n}.{j}.bn2"),
    ("stages.{i}.{j}.shortcut.0", "layer{n}.{j}.downsample.0"),
    ("stages.{i}.{j}.shortcut.1", "layer{n}.{j}.downsample.1"),
)
_CONVNEXT: _Rows = (  # ours, the authors', timm's, torchvision's (which counts downsamplings and stages as one row)
    ("stem.conv", "downsample_layers.0.0", "stem.0", "features.0.0"),
    ("stem.norm", "downsample_layers.0.1", "stem.1", "features.0.1"),
    ("downsamplings.{i}.norm", "downsample_layers.{i}.0", "stages.{i}.downsample.0", "features.{even}.0"),
    ("downsamplings.{i}.conv", "downsample_layers.{i}.1", "stages.{i}.downsample.1", "features.{even}.1"),
    ("stages.{i}.{j}.conv", "stages.{i}.{j}.dwconv", "stages.{i}.blocks.{j}.conv_dw", "features.{odd}.{j}.block.0"),
    ("stages.{i}.{j}.norm", "stages.{i}.{j}.norm", "stages.{i}.blocks.{j}.norm", "features.{odd}.{j}.block.2"),
    ("stages.{i}.{j}.widen", "stages.{i}.{j}.pwconv1", "stages.{i}.blocks.{j}.mlp.fc1", "features.{odd}.{j}.block.3"),
    ("stages.{i}.{j}.narrow", "stages.{i}.{j}.pwconv2", "stages.{i}.blocks.{j}.mlp.fc2", "features.{odd}.{j}.block.5"),
    (
        "stages.{i}.{j}.layer_scale",
        "stages.{i}.{j}.gamma",
        "stages.{i}.blocks.{j}.gamma",
        "features.{odd}.{j}.layer_scale",
    ),
    ("norm", "norm", "head.norm", "classifier.0"),
)


def our_parts(config: TAda2DConfig | TAdaConvNeXtConfig, own: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """For each naming scheme of image networks: their module names -> ours."""
    norm, rows = "norm", _CONVNEXT
    if isinstance(config, TAda2DConfig):
        rows = _BASIC_BLOCKS if config.block == "basic" else _BOTTLENECKS
        norm = "norm" if config.aggregation is None else "norm.norm"
    parts = own.keys() | {key.rpartition(".")[0] for key in own}
    found: list[dict[str, str]] = [{} for _ in rows[0][1:]]
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            for row in rows:
                ours, *theirs = (name.format(i=i, n=i + 1, j=j, even=2 * i, odd=2 * i + 1, norm=norm) for name in row)
                if ours in parts:
                    for names, name in zip(found, theirs, strict=True):
                        names[name] = ours
    return found


def our_name(name: str, parts: Mapping[str, str]) -> str | None:
    part, _, last = name.rpartition(".")
    if name in parts:  # a bare parameter, such as a layer scale
        return parts[name]
    return f"{parts[part]}.{last}" if part in parts else None


def made_to_fit(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Reshape weights in ``given`` whose shape differs from ours, and add a missing shortcut, in place.

    Returns:
        Name of a changed or added weight -> what was done, in words.
    """
    made = {}
    for key, value in given.items():
        if key in own and without_ones(value) == without_ones(own[key]):  # [C, 1, 1] for [C], 1x1 kernels for layers
            given[key] = value.reshape(own[key].shape)
    kernel = given.get("stem.conv.weight")
    if kernel is not None and kernel.ndim == 4:
        given["stem.conv.weight"] = torch.stack([torch.zeros_like(kernel), kernel, torch.zeros_like(kernel)], dim=2)
        made["stem.conv.weight"] = "the image kernel on the middle of three frames"
    shortcut = "stages.0.0.shortcut."
    lacking = [key for key in own if key.startswith(shortcut) and key not in given]
    if "stages.0.0.conv1.conv.weight" in own and f"{shortcut}0.weight" in lacking:  # ResNet-18's first block
        for key in lacking:
            given[key] = torch.ones_like(own[key]) if key.endswith(("1.weight", "_var")) else torch.zeros_like(own[key])
            made[key] = "which passes on what it gets"
        nn.init.dirac_(given[f"{shortcut}0.weight"])
    return made
