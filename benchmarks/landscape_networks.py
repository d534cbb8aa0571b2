"""The networks of ``landscape.py``: how each is built, and what was published of it on Kinetics-400.

Weights are random: neither the time nor the norms' folding depends on them, and nothing is downloaded. Every network
takes clips [N, 3, T, H, W] and gives logits [N, 400].
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from forms import network, stir
from tada.models.published import PROTOCOLS, Checkpoint, fitting_protocols, published_checkpoints
from tada.recognition.recipe import EXPECTED

INSTALL = {
    "transformers": "pip install transformers",
    "pytorchvideo": "pip install --no-deps --target DIR pytorchvideo fvcore iopath yacs portalocker tabulate "
    "termcolor, then --packages DIR",
}
"""How to install what some networks come from. Neither is a dependency of tada."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A published accuracy on the validation videos of Kinetics-400."""

    top1: float
    """In percent."""
    views: str
    """Clips x crops of each video in the test."""
    trained_from: str
    """The data that the weights before the training on Kinetics-400 had seen; "nothing" if they were random."""
    source: str
    """Where it was published."""

    @property
    def num_views(self) -> int:
        """Clips that the network reads of each video."""
        clips, crops = self.views.split("x")
        return int(clips) * int(crops)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A network with the clip of its published test."""

    name: str
    family: str
    """Its points are joined by a line."""
    build: Callable[[], nn.Module]
    frames: int
    pixels: int
    """Of a side."""
    results: tuple[Result, ...]
    """Of the same network and clip, from different first weights."""
    package: str = "tada"
    """Where the network comes from: tada, or a package of INSTALL."""
    convolutional: bool = True
    """Its features can be laid out channels first or channels last. Tada's networks lie as they are fast."""

    @property
    def is_ours(self) -> bool:
        """Whether it is a network of tada."""
        return self.package == "tada"

    @property
    def is_installed(self) -> bool:
        """Whether its package can be imported."""
        return self.is_ours or find_spec(self.package) is not None


def contenders() -> dict[str, Contender]:
    """All networks by name."""
    return {contender.name: contender for contender in (*_ours(), *_of_transformers(), *_of_pytorchvideo())}


# --- tada -------------------------------------------------------------------------------------------------------------

_FAMILIES = {
    "tada2d": "TAda2D",
    "tadaconvnext": "TAdaConvNeXt",
    "tadaconvnextv2": "TAdaConvNeXtV2",
    "tadaformer": "TAdaFormer",
}
_CLIP_PIXELS = 224  # TAdaFormer's tests, by the released configs: TEST_CROP_SIZE
LEFT_OUT = {
    "TAdaConvNeXt-S, -B": "no accuracy was published",
    "TAdaFormer-L/14 32f, 64f": "two and four times the work of 16 frames (published: 89.5 and 89.9 %)",
}
"""Networks of tada that are no contenders, and why."""


def _ours() -> Iterator[Contender]:
    found: dict[tuple[str, int], list[Result]] = {}
    for checkpoint in published_checkpoints():
        if checkpoint.data_set == "k400" and checkpoint.top1 is not None:
            assert checkpoint.num_frames is not None
            key = checkpoint.network, checkpoint.num_frames
            if key not in (("tadaformer_l14", 32), ("tadaformer_l14", 64)):
                found.setdefault(key, []).append(_result(checkpoint))
    paper = EXPECTED["k400_tadaconvnext_t_16x5"]
    found["tadaconvnext_t", 16] = [
        Result(
            top1=round(100 * paper.metrics["top1"], 1),
            views=paper.views,
            trained_from="ImageNet-1k",
            source=f"arXiv 2110.06178 ({paper.source})",
        )
    ]
    for (name, frames), results in found.items():
        kind, size = name.split("_")
        size = f"{size[0].upper()}/{size[1:]}" if kind == "tadaformer" else size.upper()
        protocols = fitting_protocols(name, "k400")
        yield Contender(
            name=f"{_FAMILIES[kind]}-{size} {frames}f",
            family=_FAMILIES[kind],
            build=partial(network, name, frames),
            frames=frames,
            pixels=PROTOCOLS[protocols[0]].crop if protocols else _CLIP_PIXELS,
            results=tuple(results),
            convolutional=False,
        )


def _result(checkpoint: Checkpoint) -> Result:
    assert checkpoint.top1 is not None
    assert checkpoint.views is not None
    return Result(
        top1=checkpoint.top1,
        views=checkpoint.views,
        trained_from=checkpoint.trained_from,
        source=checkpoint.page,
    )


# --- transformers -----------------------------------------------------------------------------------------------------


class ReadsFrames(nn.Module):
    """A network of transformers, which takes [N, T, 3, H, W] and gives its logits in a structure."""

    def __init__(self, network: nn.Module, argument: str) -> None:
        super().__init__()
        self.network, self.argument = network, argument

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.network(**{self.argument: clips.transpose(1, 2)}).logits
        return logits


def transformer(kind: str, *, argument: str = "pixel_values", **config: Any) -> nn.Module:
    """A network of transformers with random weights, and what its configuration is not by default."""
    import transformers

    model_class = getattr(transformers, f"{kind}ForVideoClassification")
    return ReadsFrames(model_class(getattr(transformers, f"{kind}Config")(num_labels=400, **config)), argument)


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def _of_transformers() -> Iterator[Contender]:
    zoo = "https://github.com/MCG-NJU/VideoMAE (MODEL_ZOO.md)"
    sizes: tuple[tuple[str, float, dict[str, int]], ...] = (
        ("S", 79.0, {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}),
        ("B", 81.5, {}),
        ("L", 85.2, _LARGE),
    )
    common: dict[str, Any] = {"package": "transformers", "convolutional": False}
    for size, top1, config in sizes:
        result = Result(top1=top1, views="5x3", trained_from="Kinetics-400, without labels", source=zoo)
        build = partial(transformer, "VideoMAE", **config)
        yield Contender(
            name=f"VideoMAE-{size}",
            family="VideoMAE",
            build=build,
            frames=16,
            pixels=224,
            results=(result,),
            **common,
        )
    yield Contender(
        name="TimeSformer-B",
        family="TimeSformer",
        build=partial(transformer, "Timesformer", num_frames=8),
        frames=8,
        pixels=224,
        results=(
            Result(
                top1=77.9,
                views="1x3",
                trained_from="ImageNet-21k",
                source="https://github.com/facebookresearch/TimeSformer (README.md; views: "
                "configs/Kinetics/TimeSformer_divST_8x32_224_TEST.yaml; first weights: arXiv 2102.05095)",
            ),
        ),
        **common,
    )
    yield Contender(
        name="ViViT-B/16x2",
        family="ViViT",
        build=partial(transformer, "Vivit"),
        frames=32,
        pixels=224,
        results=(
            Result(
                top1=79.9,
                views="4x3",
                trained_from="ImageNet-21k",
                source="https://github.com/google-research/scenic (scenic/projects/vivit/README.md; first weights: "
                "arXiv 2103.15691)",
            ),
        ),
        **common,
    )
    yield Contender(
        name="V-JEPA 2 ViT-L",
        family="V-JEPA 2",
        build=partial(transformer, "VJEPA2", argument="pixel_values_videos", frames_per_clip=16),
        frames=16,
        pixels=256,
        results=(
            Result(
                top1=85.1,
                views="8x3",
                trained_from="a million hours of video, without labels; kept as it is, below a trained probe",
                source="arXiv 2506.09985 (table 4; views: appendix C.1)",
            ),
        ),
        **common,
    )


# --- pytorchvideo -----------------------------------------------------------------------------------------------------


class TwoRates(nn.Module):
    """SlowFast: the slow pathway reads every fourth frame, from the first to the last, as its authors take them."""

    def __init__(self, network: nn.Module, frames: int) -> None:
        super().__init__()
        self.network = network
        self.slow = [int(t) for t in np.linspace(0, frames - 1, frames // 4)]

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.network([clips[:, :, self.slow], clips])
        return logits


class AveragePool3d(nn.Module):
    """An average pool in fp32, whatever its input: PyTorch has none in bf16 on a CPU."""

    def __init__(self, pool: nn.AvgPool3d) -> None:
        super().__init__()
        # Some are numpy's numbers, which the compiler does not take as constants.
        self.kernel, self.stride, self.padding = (
            (int(size),) * 3 if np.isscalar(size) else tuple(map(int, size))
            for size in (pool.kernel_size, pool.stride, pool.padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x.float(), self.kernel, self.stride, self.padding).to(x.dtype)


def hub_network(name: str, frames: int) -> nn.Module:
    """A network of pytorchvideo's hub, with random weights, and norms as if it were trained.

    Its activation is replaced by PyTorch's own of the same function, which keeps nothing for a gradient.
    """
    with _torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports
        from pytorchvideo.layers.swish import Swish
        from pytorchvideo.models import hub
    found: nn.Module = getattr(hub, name)(pretrained=False)
    for module in list(found.modules()):
        for part, child in list(module.named_children()):
            if isinstance(child, Swish):
                setattr(module, part, nn.SiLU())
            elif isinstance(child, nn.AvgPool3d):
                setattr(module, part, AveragePool3d(child))
    stir(found)
    return TwoRates(found, frames) if name.startswith("slowfast") else found


@contextmanager
def _torchvision() -> Iterator[None]:
    """Let pytorchvideo import the one class that its networks name of torchvision, for detection, where there is none.

    A torchvision built for another PyTorch fails at import.
    """
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError):
        package, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
        ops.RoIAlign = package.ops = None  # type: ignore[attr-defined]
        own = {"torchvision": package, "torchvision.ops": ops}
        sys.modules.update(own)
        try:
            yield
        finally:
            for name in own:
                del sys.modules[name]
    else:
        yield


def _of_pytorchvideo() -> Iterator[Contender]:
    source = "https://github.com/facebookresearch/pytorchvideo (docs/source/model_zoo.md"
    crops = "test crop: https://github.com/facebookresearch/SlowFast, configs/Kinetics/pytorchvideo)"
    zoo = Result(top1=0, views="10x3", trained_from="nothing", source=f"{source}; {crops}")
    rows = (
        ("X3D-S", "X3D", "x3d_s", 13, 182, replace(zoo, top1=73.33)),
        ("X3D-M", "X3D", "x3d_m", 16, 256, replace(zoo, top1=75.94)),
        ("X3D-L", "X3D", "x3d_l", 16, 356, replace(zoo, top1=77.44)),
        ("SlowOnly-R50 8x8", "SlowFast", "slow_r50", 8, 256, replace(zoo, top1=74.58)),
        ("SlowFast-R50 8x8", "SlowFast", "slowfast_r50", 32, 256, replace(zoo, top1=76.94)),
        ("R(2+1)D-R50 16x4", "R(2+1)D", "r2plus1d_r50", 16, 256, replace(zoo, top1=76.01)),
        ("CSN-R101 32x2", "CSN", "csn_r101", 32, 256, replace(zoo, top1=77.00)),
    )
    for name, family, builder, frames, pixels, result in rows:
        yield Contender(
            name=name,
            family=family,
            build=partial(hub_network, builder, frames),
            frames=frames,
            pixels=pixels,
            results=(result,),
            package="pytorchvideo",
        )
    for name, builder, frames, top1 in (("16x4", "mvit_base_16x4", 16, 78.9), ("32x3", "mvit_base_32x3", 32, 80.3)):
        yield Contender(
            name=f"MViT-B {name}",
            family="MViT",
            build=partial(hub_network, builder, frames),
            frames=frames,
            pixels=224,
            results=(
                Result(
                    top1=top1,
                    views="5x1",
                    trained_from="nothing",
                    source="pytorchvideo 0.1.5, models/hub/vision_transformers.py (views: "
                    "https://github.com/facebookresearch/SlowFast, MODEL_ZOO.md)",
                ),
            ),
            package="pytorchvideo",
        )
