"""Explanation of a prediction: Grad-CAM heat maps and calibration of TAdaConv kernels, as values, pictures and files.

Shapes: T frames of a clip, T' frames of a layer, C channels, h x w cells of a feature map, H x W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tada.display.plots import save_calibration, save_heat
from tada.errors import OptionError, UnknownNameError
from tada.models.gradcam import look
from tada.system.files import whole_folder
from tada.system.terminal import printable
from tada.video.inputs import VideoSource
from tada.video.sampling import ClipSpec
from tada.video.transforms import frame_crops, normalize, short_side_size, shrink_to

_ABOUT = "explanation.json"
_OPACITY = 0.65  # of the color where the heat is 1
_SHORT_SIDE = 360  # of the frames that are kept for pictures, in pixels, at most


def explain(
    network: nn.Module,
    video: VideoSource,
    frame_numbers: Sequence[int],
    spec: ClipSpec,
    choose: Callable[[Tensor], Tensor],
    *,
    label: str,
    score: float,
    layer: str | None = None,
) -> Explanation:
    """Explain one clip of a video; for arguments not listed here see ``Explanation`` and ``gradcam.look``.

    Args:
        network: in evaluation mode.
        spec: how the network's frames are resized, cropped and normalized.

    Raises:
        VideoError: the video cannot be read.
        OptionError: the network has no such layer, or no feature map.
    """
    with video.open() as reader:
        crops = partial(frame_crops, short_side=spec.short_side, crop=spec.crop, num_crops=1, antialias=spec.antialias)
        view = torch.from_numpy(reader.frames(frame_numbers, shrink=crops))[:, 0]
        frames = reader.frames(frame_numbers, shrink=partial(shrink_to, short_side=_SHORT_SIDE))
        times = [float(reader.times_seconds[number]) if video.has_times else math.nan for number in frame_numbers]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    found = look(network, normalize(view[None].to(device), *spec.normalization), choose, layer=layer)
    return Explanation(
        path=video.name,
        label=label,
        score=score,
        frame_numbers=tuple(frame_numbers),
        times_seconds=tuple(times),
        frames=frames,
        crop=_crop_in_frames(frames, spec),
        layers=found.layers,
        heat=found.heat,
        rows=(found.rows + 0.5) / spec.crop,
        columns=(found.columns + 0.5) / spec.crop,
        calibrations=found.calibrations,
    )


def _crop_in_frames(frames: NDArray[np.uint8], spec: ClipSpec) -> tuple[float, float, float, float]:
    """The center crop in pixels of frames [T, H, W, 3] before resizing: top, left, height, width."""
    height, width = frames.shape[1:3]
    resized = short_side_size(height, width, spec.short_side)
    scales = height / resized[0], width / resized[1]
    top, left = ((size - spec.crop) // 2 * scale for size, scale in zip(resized, scales, strict=True))
    return top, left, spec.crop * scales[0], spec.crop * scales[1]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Explanation:
    """Which pixels of a clip speak for a class (Grad-CAM), and how the kernels were calibrated."""

    path: str
    """The video's path or name."""
    label: str
    """The class that is explained."""
    score: float
    """The model's probability of the class in this clip."""
    frame_numbers: tuple[int, ...]
    """The clip's frames in the video, [T]."""
    times_seconds: tuple[float, ...]
    """When each is shown, [T]; nan for frames without times."""
    frames: NDArray[np.uint8]
    """[T, H, W, 3], RGB: the video's frames, shrunk to a short side of at most 360 pixels."""
    crop: tuple[float, float, float, float]
    """Top, left, height and width of the network's input square, in pixels of ``frames``."""
    layers: tuple[str, ...]
    """The modules whose feature maps gave the heat map."""
    heat: Tensor
    """[T, h, w], in [0, 1]: evidence for the class (Grad-CAM), 1 at the clip's maximum."""
    rows: Tensor
    """[h], the center of each row of cells in the input square, from 0 (its top) to 1."""
    columns: Tensor
    """[w], the center of each column of cells, from 0 (left) to 1."""
    calibrations: dict[str, Tensor]
    """For each TAdaConv layer, alpha - 1 by frame and channel, [T', C], in the network's order. T' is smaller than T
    after temporal downsampling. Empty if the network has no TAdaConv."""

    @property
    def note(self) -> str:
        """What is missing in this explanation and why; empty if nothing is."""
        notes = []
        if not self.calibrations:
            notes.append("the network has no TAdaConv, so no kernel is calibrated: there is a heat map only")
        if not self.heat.any():
            notes.append(f"nothing in {self.layers[0]} speaks for {self.label!r} in this clip: the heat is 0")
        return "; ".join(notes)

    def calibration_strength(self) -> dict[str, Tensor]:
        """For each layer, how far its kernels are from the shared kernel, [T']: RMS of alpha - 1 over the channels."""
        return {name: deviation.square().mean(1).sqrt() for name, deviation in self.calibrations.items()}

    def heat_in_frames(self) -> NDArray[np.float32]:
        """The heat of every pixel of ``frames``, [T, H, W]; 0 outside the network's input square."""
        height, width = self.frames.shape[1:3]
        top, left, high, wide = self.crop
        rows, inside_rows = _interpolate(self.rows, height, top, high)
        columns, inside_columns = _interpolate(self.columns, width, left, wide)
        cells: NDArray[np.float32] = self.heat.float().numpy()
        heat: NDArray[np.float32] = np.matmul(np.matmul(rows, cells), columns.T)
        heat[:, ~(inside_rows[:, None] & inside_columns)] = 0
        return heat

    def overlay(self) -> NDArray[np.uint8]:
        """Gray frames with the heat map in colors from blue to red, [T, H, W, 3].

        Where the heat is 0, the frame stays gray; outside the network's input square it is darkened.
        """
        from matplotlib import colormaps

        heat = self.heat_in_frames()
        height, width = heat.shape[1:]
        top, left, high, wide = self.crop
        seen = _is_inside(height, top, high)[:, None] * _is_inside(width, left, wide)
        out = np.empty_like(self.frames)
        for i, frame in enumerate(self.frames):
            gray = (frame @ np.array([0.299, 0.587, 0.114]))[..., None]  # ITU-R 601
            colors = colormaps["turbo"](heat[i])[..., :3] * 255
            part = _OPACITY * heat[i][..., None]
            out[i] = np.rint((gray * (1 - part) + colors * part) * np.where(seen, 1.0, 0.4)[..., None])
        return out

    def __repr__(self) -> str:
        size = "x".join(map(str, self.heat.shape))
        what = f"{printable(self.path)}: {printable(self.label)} {self.score:.2f}"
        return (
            f"Explanation({what}; heat {size} of {', '.join(self.layers)}, {len(self.calibrations)} calibrated layers)"
        )

    def plot(self, picture: str | Path) -> None:
        """Draw the frames with the heat map, as a PNG file."""
        title = f"{Path(self.path).name}: {self.label} {self.score:.2f}"
        save_heat(self.frames, self.overlay(), self.times_seconds, Path(picture), title=title)

    def plot_calibration(self, picture: str | Path, *, layer: str | None = None) -> None:
        """Draw the calibration over time, as a PNG file: the strength of all layers, and the channels of one layer.

        Args:
            layer: the layer whose channels are drawn; by default the one whose calibration changes most.

        Raises:
            OptionError: the network has no TAdaConv.
            UnknownNameError: no layer has this name.
        """
        if not self.calibrations:
            raise OptionError(self.note)
        if layer is not None and layer not in self.calibrations:
            raise UnknownNameError.of("calibrated layer", layer, self.calibrations)
        shown = layer or max(self.calibrations, key=lambda name: float(_variance_over_frames(self.calibrations[name])))
        top, left, high, wide = (round(pixels) for pixels in self.crop)
        save_calibration(
            self.frames[:, top : top + high, left : left + wide],
            self.times_seconds,
            {name: strength.numpy() for name, strength in self.calibration_strength().items()},
            shown,
            self.calibrations[shown].numpy(),
            Path(picture),
            title=f"{Path(self.path).name}: how the kernels were calibrated",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the heat map and the calibration only means, and no frames."""
        strengths = self.calibration_strength()
        return {
            "video": self.path,
            "label": self.label,
            "score": round(self.score, 6),
            "frame_numbers": list(self.frame_numbers),
            "times_seconds": [None if math.isnan(time) else round(time, 6) for time in self.times_seconds],
            "layers": list(self.layers),
            "mean_heat": _to_six_digits(self.heat.mean((1, 2))),
            "calibration_strength": {name: _to_six_digits(strength) for name, strength in strengths.items()},
            "note": self.note,
        }

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the explanation into a new folder, atomically.

        heat.png and calibration.png are the pictures; explanation.json is ``as_dict``; explanation.npz holds the arrays
        heat, rows, columns, crop, frame_numbers, times_seconds, and calibration/NAME for each layer.

        Raises:
            OptionError: the folder exists and ``overwrite`` is false, or ``save`` did not write it.
        """
        folder = Path(folder)
        if folder.exists():
            if not overwrite:
                raise OptionError(f"{str(folder)!r} is there already: give another name, or overwrite=True")
            if not (folder / _ABOUT).is_file():
                raise OptionError(f"{str(folder)!r} holds no explanation ({_ABOUT}), so it is not replaced by one")
        with whole_folder(folder) as part:
            self.plot(part / "heat.png")
            if self.calibrations:
                self.plot_calibration(part / "calibration.png")
            text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"
            (part / _ABOUT).write_text(text, encoding="utf-8", errors="surrogateescape")
            arrays: dict[str, NDArray[Any]] = {
                "heat": self.heat.numpy(),
                "rows": self.rows.numpy(),
                "columns": self.columns.numpy(),
                "crop": np.array(self.crop),
                "frame_numbers": np.array(self.frame_numbers),
                "times_seconds": np.array(self.times_seconds),
            }
            arrays |= {f"calibration/{name}": alpha.numpy() for name, alpha in self.calibrations.items()}
            np.savez_compressed(part / "explanation.npz", **arrays)  # type: ignore[arg-type]  # names are free


def _variance_over_frames(deviation: Tensor) -> Tensor:
    """Variance of a layer's calibration over the frames, averaged over the channels."""
    return (deviation - deviation.mean(0)).square().mean()


def _to_six_digits(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _is_inside(size: int, first: float, side: float) -> NDArray[np.bool_]:
    """Which of ``size`` pixels have their center in the square, along one axis."""
    middles = np.arange(size) + 0.5
    return (first <= middles) & (middles <= first + side)


def _interpolate(places: Tensor, size: int, first: float, side: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weights of linear interpolation from cells to pixels along one axis, [pixels, cells]; which pixels are inside."""
    at = (np.arange(size) + 0.5 - first) / side
    cells = np.eye(len(places), dtype=np.float32)
    weights = np.stack([np.interp(at, places.numpy(), cell) for cell in cells], axis=1)
    return weights.astype(np.float32), _is_inside(size, first, side)
