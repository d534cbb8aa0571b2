"""The checkpoints that the authors released, and the clips that they are tested with.

Sources: arXiv 2110.06178 and 2308.05787, and the authors' tables in github.com/alibaba-mmai-research/TAdaConv.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tada.errors import UnknownNameError
from tada.models import MODELS
from tada.video.sampling import CLIP_NORMALIZATION, NORMALIZATION, ClipSpec

DATA_SETS = {
    "k400": "Kinetics-400",
    "k710": "Kinetics-710",
    "ssv2": "Something-Something-v2",
    "epic100": "EPIC-KITCHENS-100",
}
"""Data sets of released checkpoints."""

_TEST_CLIP = ClipSpec(
    num_frames=8, mode="official", short_side=256, crop=256, mean=NORMALIZATION[0], std=NORMALIZATION[1]
)
_TADAFORMER_CLIP = replace(
    _TEST_CLIP,
    sampling="segment",
    short_side=224,
    crop=224,
    mean=CLIP_NORMALIZATION[0],
    std=CLIP_NORMALIZATION[1],
)
PROTOCOLS = {
    "k400-8x8": _TEST_CLIP,
    "k400-16x5": replace(_TEST_CLIP, num_frames=16, interval=5),
    "ssv2-8": replace(_TEST_CLIP, sampling="segment"),
    "ssv2-16": replace(_TEST_CLIP, num_frames=16, sampling="segment"),
    "ssv2-32": replace(_TEST_CLIP, num_frames=32, sampling="segment"),
    "epic100-8x8": replace(_TEST_CLIP, fps=60),
    "tadaformer-16": replace(_TADAFORMER_CLIP, num_frames=16),
    "tadaformer-32": replace(_TADAFORMER_CLIP, num_frames=32),
    "tadaformer-64": replace(_TADAFORMER_CLIP, num_frames=64),
}
"""The clips of the published results, by data set and number of frames (x interval); TAdaFormer's are the same on all
data sets. Those of EPIC-KITCHENS-100 are inferred, as in its recipe."""

_FITTING = {
    ("tada2d", "k400"): ("k400-8x8", "k400-16x5"),
    ("tada2d", "ssv2"): ("ssv2-8", "ssv2-16"),
    ("tada2d", "epic100"): ("epic100-8x8",),
    ("tadaconvnext", "k400"): ("k400-16x5",),
    ("tadaconvnext", "ssv2"): ("ssv2-32",),
    ("tadaconvnextv2", "k400"): ("k400-16x5",),
    ("tadaconvnextv2", "ssv2"): ("ssv2-16", "ssv2-32"),
    ("tadaformer", "k400"): ("tadaformer-16", "tadaformer-32", "tadaformer-64"),
    ("tadaformer", "k710"): ("tadaformer-16",),
    ("tadaformer", "ssv2"): ("tadaformer-16", "tadaformer-32"),
}
"""Protocols by the beginning of the network's name and the data set, the likeliest first."""


def protocol(name: str) -> ClipSpec:
    """The clips of a published result, by its name in PROTOCOLS.

    Raises:
        UnknownNameError: no such name.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError.of("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def fitting_protocols(network: str, data_set: str | None) -> tuple[str, ...]:
    """The protocols with which a released checkpoint of a network and data set can have been tested, likeliest first.

    Args:
        network: its name, for ``create_model``.
        data_set: a name of DATA_SETS; None for another.
    """
    return _FITTING.get((network.split("_")[0], data_set or ""), ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A released checkpoint."""

    network: str
    """Name of the network, for ``create_model``."""
    data_set: str
    """The data set that it was trained and tested on, a name of DATA_SETS."""
    trained_from: str
    """The weights before training."""
    num_frames: int | None = None
    """Frames of a clip. None: not stated, as the next ones."""
    views: str | None = None
    """Clips x crops of the published test, for ``tada evaluate --views``."""
    top1: float | None = None
    """Published accuracy, in percent."""
    top5: float | None = None
    page: str
    """Where the link to the file stands. The files' own names are not published."""

    def command(self) -> str | None:
        """The command that converts the downloaded file; None if this version has not its network or its clips."""
        fitting = fitting_protocols(self.network, self.data_set)
        if self.network not in MODELS or not fitting:
            return None
        for name in fitting:
            if self.num_frames in (None, PROTOCOLS[name].num_frames):
                return f"tada convert FILE --out DIR --protocol {name}"
        # The distance of its frames was not published.
        clip = PROTOCOLS[fitting[0]]
        size = f"--clip.mode {clip.mode} --clip.short-side {clip.short_side} --clip.crop {clip.crop}"
        return f"tada convert FILE --out DIR --clip.num-frames {self.num_frames} --clip.interval INTERVAL {size}"


def published_checkpoints(pattern: str = "*") -> list[Checkpoint]:
    """The released checkpoints of the networks whose names match a pattern like ``"tada2d_*"``."""
    return [checkpoint for checkpoint in _CHECKPOINTS if fnmatchcase(checkpoint.network, pattern)]


_REPOSITORY = "https://github.com/alibaba-mmai-research/TAdaConv"
_VIEWS = {"k400": "4x3", "ssv2": "2x3"}
"""Of the second paper's tests."""


def _tada2d(data_set: str, num_frames: int, views: str, top1: float, top5: float) -> Checkpoint:
    return Checkpoint(
        network="tada2d_r50",
        data_set=data_set,
        trained_from="ImageNet-1k",
        num_frames=num_frames,
        views=views,
        top1=top1,
        top5=top5,
        page=f"{_REPOSITORY} (MODEL_ZOO.md)",
    )


def _second_paper(data_set: str, network: str, trained_from: str, top1: dict[int, float]) -> list[Checkpoint]:
    """Checkpoints of the second paper; ``top1`` by number of frames."""
    return [
        Checkpoint(
            network=network,
            data_set=data_set,
            trained_from=trained_from,
            num_frames=num_frames,
            views=_VIEWS[data_set],
            top1=percent,
            page=f"{_REPOSITORY} (projects/tadaconvv2/README.md)",
        )
        for num_frames, percent in top1.items()
    ]


_CHECKPOINTS = [
    _tada2d("k400", 8, "10x3", 76.7, 92.6),
    _tada2d("k400", 16, "10x3", 77.4, 93.1),
    _tada2d("ssv2", 8, "2x3", 64.0, 88.0),
    _tada2d("ssv2", 16, "2x3", 65.6, 89.1),
    Checkpoint(
        network="tadaconvnext_t",
        data_set="k400",
        trained_from="ImageNet",
        page="ModelScope, damo/cv_TAdaConv_action-recognition",
    ),
    *_second_paper("k400", "tadaconvnextv2_t", "ImageNet-1k", {16: 79.6, 32: 80.8}),
    *_second_paper("k400", "tadaconvnextv2_s", "ImageNet-1k", {16: 80.8, 32: 81.9}),
    *_second_paper("k400", "tadaconvnextv2_s", "ImageNet-21k", {32: 82.9}),
    *_second_paper("k400", "tadaconvnextv2_b", "ImageNet-1k", {16: 81.4, 32: 82.3}),
    *_second_paper("k400", "tadaconvnextv2_b", "ImageNet-21k", {32: 83.7}),
    *_second_paper("k400", "tadaformer_b16", "CLIP", {16: 84.5}),
    *_second_paper("k400", "tadaformer_l14", "CLIP", {16: 87.6}),
    *_second_paper("k400", "tadaformer_b16", "CLIP, Kinetics-710", {16: 86.6}),
    *_second_paper("k400", "tadaformer_l14", "CLIP, Kinetics-710", {16: 88.9, 32: 89.5, 64: 89.9}),
    *_second_paper("ssv2", "tadaconvnextv2_t", "ImageNet-1k, Kinetics-400", {16: 67.2, 32: 69.8}),
    *_second_paper("ssv2", "tadaconvnextv2_s", "ImageNet-1k, Kinetics-400", {16: 68.4, 32: 70.0}),
    *_second_paper("ssv2", "tadaconvnextv2_s", "ImageNet-21k, Kinetics-400", {32: 70.6}),
    *_second_paper("ssv2", "tadaconvnextv2_b", "ImageNet-21k, Kinetics-400", {32: 71.1}),
    *_second_paper("ssv2", "tadaformer_b16_ssv2", "CLIP", {16: 70.4, 32: 71.3}),
    *_second_paper("ssv2", "tadaformer_l14_ssv2", "CLIP", {16: 72.4, 32: 73.6}),
]
