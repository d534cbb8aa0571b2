"""Map the weight names of image networks in torchvision, timm and others to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tada.models.efficientnet_lite import EfficientNetLiteConfig
from tada.models.tada2d import TAda2DConfig
from tada.models.tadaconvnext import TAdaConvNeXtConfig
from tada.models.weights import (
    without_ones,
)

# Names of their classifiers; and our names of weights that an image network does not have.
THEIR_CLASSIFIER = re.compile(r"(_?fc|head|head\.fc|classifier|classifier\.2)\.(weight|bias)")
NOT_OF_IMAGES = re.compile(r"head\.|.*\.routing\.|.*\.pooled_norm\.")

# Our module names, then theirs. i is the stage from 0, n the stage from 1, j the block from 0, m the block from 0 over
# all stages.
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
    ("stages.{i}.{j}.{norm}", "stages.{i}.{j}.norm", "stages.{i}.blocks.{j}.norm", "features.{odd}.{j}.block.2"),
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
_EFFICIENTNET_ENDS: _Rows = (  # ours, efficientnet_pytorch's, timm's
    ("stem_conv", "_conv_stem", "conv_stem"),
    ("stem_norm", "_bn0", "bn1"),
    ("last_conv", "_conv_head", "conv_head"),
    ("last_norm", "_bn1", "bn2"),
)
_EFFICIENTNET: _Rows = (
    *_EFFICIENTNET_ENDS,
    ("stages.{i}.{j}.expand", "_blocks.{m}._expand_conv", "blocks.{i}.{j}.conv_pw"),
    ("stages.{i}.{j}.expand_norm", "_blocks.{m}._bn0", "blocks.{i}.{j}.bn1"),
    ("stages.{i}.{j}.conv", "_blocks.{m}._depthwise_conv", "blocks.{i}.{j}.conv_dw"),
    ("stages.{i}.{j}.{norm}", "_blocks.{m}._bn1", "blocks.{i}.{j}.bn2"),
    ("stages.{i}.{j}.project", "_blocks.{m}._project_conv", "blocks.{i}.{j}.conv_pwl"),
    ("stages.{i}.{j}.project_norm", "_blocks.{m}._bn2", "blocks.{i}.{j}.bn3"),
)
_EFFICIENTNET_UNEXPANDED: _Rows = (  # timm counts the norms of such a block from 1 too
    *_EFFICIENTNET_ENDS,
    ("stages.{i}.{j}.conv", "_blocks.{m}._depthwise_conv", "blocks.{i}.{j}.conv_dw"),
    ("stages.{i}.{j}.{norm}", "_blocks.{m}._bn1", "blocks.{i}.{j}.bn1"),
    ("stages.{i}.{j}.project", "_blocks.{m}._project_conv", "blocks.{i}.{j}.conv_pw"),
    ("stages.{i}.{j}.project_norm", "_blocks.{m}._bn2", "blocks.{i}.{j}.bn2"),
)

ImageConfig = TAda2DConfig | TAdaConvNeXtConfig | EfficientNetLiteConfig


def our_parts(config: ImageConfig, own: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """For each naming scheme of image networks: their module names -> ours."""
    norm = "norm" if config.aggregation is None else "norm.norm"
    parts = own.keys() | {key.rpartition(".")[0] for key in own}
    found: list[dict[str, str]] = [{} for _ in _rows(config, 0)[0][1:]]
    blocks = [(i, j) for i, depth in enumerate(config.depths) for j in range(depth)]
    for m, (i, j) in enumerate(blocks):
        places: dict[str, Any] = {"i": i, "n": i + 1, "j": j, "m": m, "even": 2 * i, "odd": 2 * i + 1, "norm": norm}
        for row in _rows(config, i):
            ours, *theirs = (name.format(**places) for name in row)
            if ours in parts:
                for names, name in zip(found, theirs, strict=True):
                    names[name] = ours
    return found


def _rows(config: ImageConfig, stage: int) -> _Rows:
    if isinstance(config, TAdaConvNeXtConfig):
        return _CONVNEXT
    if isinstance(config, TAda2DConfig):
        return _BASIC_BLOCKS if config.block == "basic" else _BOTTLENECKS
    return _EFFICIENTNET if config.expansions[stage] > 1 else _EFFICIENTNET_UNEXPANDED


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
