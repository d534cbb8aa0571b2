"""Networks by name, for recipes, checkpoints and the command line. In code, call the network's function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from tada.errors import OptionError, UnknownNameError
from tada.models.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    efficientnet_lite0,
    tada_lite0,
)
from tada.models.resnet3d import (
    Host,
    HostConfig,
    r2plus1d_r50,
    r2plus1d_tiny,
    r3d_r50,
    r3d_tiny,
    slowfast_r50,
    slowfast_tiny,
    slowonly_r50,
    slowonly_tiny,
)
from tada.models.tada2d import (
    TAda2D,
    TAda2DConfig,
    tada2d_r18,
    tada2d_r50,
    tada2d_r101,
    tada2d_tiny,
    tsn_r18,
    tsn_r50,
    tsn_r101,
    tsn_tiny,
)
from tada.models.tadaconvnext import (
    TAdaConvNeXt,
    TAdaConvNeXtConfig,
    convnext_b,
    convnext_mini,
    convnext_s,
    convnext_t,
    tadaconvnext_b,
    tadaconvnext_mini,
    tadaconvnext_s,
    tadaconvnext_t,
    tadaconvnextv2_b,
    tadaconvnextv2_mini,
    tadaconvnextv2_s,
    tadaconvnextv2_t,
)
from tada.models.tadaformer import (
    TAdaFormer,
    TAdaFormerConfig,
    tadaformer_b16,
    tadaformer_b16_ssv2,
    tadaformer_l14,
    tadaformer_l14_ssv2,
    tadaformer_tiny,
)
from tada.system.calls import checked
from tada.video.sampling import CLIP_NORMALIZATION, NORMALIZATION, Channels, ClipSpec

Network = TAda2D | TAdaConvNeXt | TAdaFormer | EfficientNetLite | Host

_TADA2D: tuple[Callable[..., Network], ...] = (
    tsn_tiny,
    tsn_r18,
    tsn_r50,
    tsn_r101,
    tada2d_tiny,
    tada2d_r18,
    tada2d_r50,
    tada2d_r101,
)
_TADACONVNEXT: tuple[Callable[..., Network], ...] = (
    convnext_mini,
    convnext_t,
    convnext_s,
    convnext_b,
    tadaconvnext_mini,
    tadaconvnext_t,
    tadaconvnext_s,
    tadaconvnext_b,
    tadaconvnextv2_mini,
    tadaconvnextv2_t,
    tadaconvnextv2_s,
    tadaconvnextv2_b,
)
_TADAFORMER: tuple[Callable[..., Network], ...] = (
    tadaformer_tiny,
    tadaformer_b16,
    tadaformer_l14,
    tadaformer_b16_ssv2,
    tadaformer_l14_ssv2,
)
_EFFICIENTNET_LITE: tuple[Callable[..., Network], ...] = (efficientnet_lite0, tada_lite0)
_HOSTS: tuple[Callable[..., Network], ...] = (
    slowonly_tiny,
    slowfast_tiny,
    r2plus1d_tiny,
    r3d_tiny,
    slowonly_r50,
    slowfast_r50,
    r2plus1d_r50,
    r3d_r50,
)
_CONFIGS: dict[type, tuple[Callable[..., Network], ...]] = {
    TAda2DConfig: _TADA2D,
    TAdaConvNeXtConfig: _TADACONVNEXT,
    TAdaFormerConfig: _TADAFORMER,
    EfficientNetLiteConfig: _EFFICIENTNET_LITE,
    HostConfig: _HOSTS,
}

MAX_BLOCKS, MAX_WIDTH = 500, 1 << 15
"""Limits for a network that is built by name."""

MODELS: dict[str, Callable[..., Network]] = {build.__name__: build for builds in _CONFIGS.values() for build in builds}
_OPTIONS = {
    build.__name__: sorted({field.name for field in fields(config)} - {"num_classes"})
    for config, builds in _CONFIGS.items()
    for build in builds
}


def create_model(name: str, *, num_classes: int = 400, num_frames: int | None = None, **options: Any) -> Network:
    """Build the network called ``name`` with randomly initialized weights.

    ``tada.create_model`` (in ``tada.models.pretrained``) can load trained weights, too.

    Args:
        num_classes: K, the number of logits.
        num_frames: T of the clips, checked only: the networks here take clips of any length.
        options: fields of the network's config (``TAda2DConfig``, ``TAdaConvNeXtConfig``, ``TAdaFormerConfig``,
            ``EfficientNetLiteConfig``, ``HostConfig``), as in a recipe or a checkpoint: a list stands for a tuple.

    Raises:
        UnknownNameError: no such network.
        OptionError: no such option, or a value that is not allowed.
    """
    if name not in MODELS:
        raise UnknownNameError.of("model", name, MODELS)
    if num_frames is not None and num_frames < 1:
        raise OptionError(f"{num_frames = } should be at least 1")
    for option in options:
        if option not in _OPTIONS[name]:
            raise OptionError(f"{name} has no option {option!r}; it has {', '.join(_OPTIONS[name])}")
        _check_bounds(option, options[option])
    values = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    try:
        return MODELS[name](num_classes=num_classes, **values)
    except OptionError:
        raise
    except (TypeError, ValueError) as error:  # a recipe's options are not typed: one may be a word, or half a number
        raise OptionError(f"{name} cannot be built with {options}: {error}") from error


def check_clips_of(network: Network, num_frames: int, *crops: int) -> None:
    """Check that a network takes clips of T square frames, for each of several sides in pixels; nothing is computed.

    Raises:
        OptionError: it does not, as where its stride is longer than a side.
    """
    for crop in crops:
        network.check_shape(torch.empty(1, 3, num_frames, crop, crop, device="meta"))


def normalization_of(name: str) -> tuple[Channels, Channels]:
    """Mean and deviation of the pixels that a network's published weights take: CLIP's for a TAdaFormer."""
    return CLIP_NORMALIZATION if MODELS.get(name) in _TADAFORMER else NORMALIZATION


def with_normalization(clip: ClipSpec, name: str) -> ClipSpec:
    """The clip specification with ``normalization_of`` the network where its mean or deviation is None."""
    mean, std = normalization_of(name)
    return replace(clip, mean=clip.mean or mean, std=clip.std or std)


def _check_bounds(option: str, value: Any) -> None:
    """Refuse sizes that no network has before it is built, since the options may come from an untrusted file."""
    numbers = [number for number in (value if isinstance(value, list | tuple) else [value]) if isinstance(number, int)]
    if option in ("depth", "depths") and sum(numbers) > MAX_BLOCKS:
        raise OptionError(f"{option}={value} are more than {MAX_BLOCKS} blocks")
    if len(numbers) > MAX_BLOCKS or any(abs(number) > MAX_WIDTH for number in numbers):
        raise OptionError(f"{option}={value} is beyond any network: numbers may go to {MAX_WIDTH}")


@checked()
def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a pattern like ``"tada2d_*"``."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]
