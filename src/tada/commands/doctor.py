"""Checks of `tada doctor`: what tada needs on this machine, what is missing, and the command that installs it."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import numpy as np
import torch

from tada.errors import VideoError
from tada.video.reader import open_video
from tada.video.writer import write_video

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
"""Codecs of the videos in common data sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    fine: bool
    found: str
    """What was found."""
    remedy: str = ""
    """The command that installs or repairs it, where something is missing."""
    optional: bool = False
    """Whether tada works without it."""


def examine() -> list[Check]:
    """Check versions, devices and codecs, and write and read a video."""
    return [
        Check(name="python", fine=True, found=f"{platform.python_version()} on {platform.platform()}"),
        *(_package(name) for name in ("tada-video", "torch", "lightning", "av", "safetensors", "torchmetrics")),
        Check(name="processor", fine=True, found=f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"),
        _gpu(),
        _decoders(),
        _round_trip(),
    ]


def _package(name: str) -> Check:
    try:
        return Check(name=name, fine=True, found=version(name))
    except PackageNotFoundError:
        return Check(name=name, fine=False, found="not installed", remedy=f"pip install {name}")


def _gpu() -> Check:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check(name="GPU", fine=True, found=names)
    if torch.backends.mps.is_available():
        return Check(name="GPU", fine=True, found="Apple (mps)")
    if torch.version.cuda is None:
        remedy = "if this machine has one, install a CUDA build of torch (see pytorch.org, Get Started)"
    else:
        remedy = "if this machine has one, update its driver (nvidia-smi tells the version)"
    return Check(name="GPU", fine=False, found="the CPU does all", remedy=remedy, optional=True)


def _decoders() -> Check:
    missing = [name for name in DECODERS if name not in av.codecs_available]
    found = f"FFmpeg {'.'.join(str(n) for n in av.ffmpeg_version_info.split('.')[:2])}, {', '.join(DECODERS)}"
    if missing:
        return Check(
            name="codecs", fine=False, found=f"no {', '.join(missing)}", remedy="pip install --force-reinstall av"
        )
    return Check(name="codecs", fine=True, found=found)


def _round_trip() -> Check:
    """Write a small video, read it back, and compare."""
    frames = np.zeros((6, 48, 64, 3), dtype=np.uint8)
    frames[np.arange(6), :, np.arange(6) * 10] = 255
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        try:
            write_video(path, frames, fps=10)
            with open_video(path) as video:
                brightest = video.frames(range(6)).mean((1, 3)).argmax(1)
        except (VideoError, av.error.FFmpegError, OSError) as error:
            return Check(name="video", fine=False, found=str(error), remedy="pip install --force-reinstall av")
    fine = bool((abs(brightest - np.arange(6) * 10) <= 1).all())
    return Check(
        name="video",
        fine=fine,
        found="written and read back" if fine else "frames come back wrong",
        remedy="" if fine else "pip install --force-reinstall av",
    )
