"""Synthetic videos whose classes can be told apart only by the order of the frames.

A textured patch, or a pointing arm, moves over a textured background. Colors, textures, size, place, speed, pauses,
camera shake and noise are random in every video. Each class has a twin, the same motion backwards: a video of the twin
is drawn as one of the class with its frames reversed, so both have exactly the same distribution of single frames and
of sets of frames. A model that averages frames cannot exceed an accuracy of 1/2; a model of motion can reach 1.

Shapes: T frames, H x W pixels. Lengths are in short sides of the frame, angles in radians, x points right and y down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tada.errors import OptionError, UnknownNameError
from tada.video.writer import write_video

Floats = NDArray[np.float32]

MOTIONS = ("left", "right", "up", "down", "towards", "away", "clockwise", "counterclockwise")
"""Motions of the patch: along an axis, growing or shrinking, or turning about itself (as the viewer sees it)."""

_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "right": ((-1, 0), (1, 0)),
    "down": ((0, -1), (0, 1)),
    "caret": ((-1, 1), (0, -1), (1, 1)),
    "tick": ((-1, 0), (-0.4, 1), (1, -1)),
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)),
    "cross": ((-1, -1), (1, 1), (-1, 1), (1, -1)),
    "star": ((-0.7, 1), (0, -1), (0.7, 1), (-1, -0.3), (1, -0.3), (-0.7, 1)),
    "circle": tuple((float(np.sin(a)), float(-np.cos(a))) for a in np.linspace(0, 2 * np.pi, 33)),
}
"""Corners of the path of each motion, x and y from -1 to 1."""

STROKES = tuple(f"{stroke}{way}" for stroke in list(_CORNERS)[2:] for way in ("", "_backwards"))
"""Further classes, in which the patch moves along a drawn figure; used to train weights for real videos. A circle goes
clockwise from its top."""

_TWINS = {"left": "right", "up": "down", "away": "towards", "counterclockwise": "clockwise"} | {
    stroke: stroke.removesuffix("_backwards") for stroke in STROKES if stroke.endswith("_backwards")
}
"""Classes whose videos are those of another class with frames reversed."""


def twin(motion: str) -> str:
    """The class that ``motion`` becomes when time runs backwards."""
    _check(motion)
    return (_TWINS | {value: key for key, value in _TWINS.items()})[motion]


def write_motion_videos(
    out: Path,
    *,
    videos_per_class: int,
    seed: int,
    num_frames: int = 16,
    width: int = 80,
    height: int = 64,
    fps: float = 8.0,
    clutter: tuple[float, float] = (0.0, 1.0),
    easy: bool = False,
    motions: Sequence[str] = MOTIONS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a folder of class folders: ``out/<class>/<class>_<number>.mp4``.

    Each video depends only on (seed, class, number), its clutter and ``easy``, not on which other videos are written.

    Args:
        num_frames: frames in a video.
        width: width of a video in pixels, even.
        height: height of a video in pixels, even.
        fps: frames per second.
        clutter: clutter of the first and of the last video of a class, as in ``draw_motion``; evenly spread between.
        easy: as in ``draw_motion``.
        motions: names from MOTIONS and STROKES.
        progress: called after each video with the number of written videos and of all videos.
    """
    if videos_per_class < 1:
        raise OptionError(f"{videos_per_class = } should be at least 1")
    known = MOTIONS + STROKES
    for motion in motions:
        _check(motion)
    for i, motion in enumerate(motions):
        folder = out / motion
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(videos_per_class):
            rng = np.random.default_rng([seed, known.index(motion), number])
            part = (number + 0.5) / videos_per_class
            level = clutter[0] + part * (clutter[1] - clutter[0])
            frames = draw_motion(
                motion, rng, num_frames=num_frames, width=width, height=height, clutter=level, easy=easy
            )
            write_video(folder / f"{motion}_{number:03d}.mp4", frames, fps=fps)
            progress(i * videos_per_class + number + 1, len(motions) * videos_per_class)


def draw_motion(
    motion: str,
    rng: np.random.Generator,
    *,
    num_frames: int,
    width: int,
    height: int,
    clutter: float = 1.0,
    easy: bool = False,
) -> NDArray[np.uint8]:
    """Draw one clip, RGB [T, H, W, 3].

    ``draw_motion(m, rng)`` is ``draw_motion(twin(m), rng)`` with frames reversed, bit for bit, for equal states of rng.

    Args:
        clutter: strength of the background's texture, camera shake and noise, from 0 (a plain scene) to 1.
        easy: for a network with only minutes of training: bright patches over dark scenes, longer paths, and turning
            like the hand of a clock. Only the order of frames tells the classes apart here, too.
    """
    _check(motion)
    if num_frames < 2 or min(width, height) < 16:
        raise OptionError(f"{num_frames = } should be at least 2, {width = } and {height = } at least 16")
    ranges = _EASY if easy else _Ranges()
    short = min(width, height)
    path = _draw_path(_TWINS.get(motion, motion), ranges, rng, num_frames, width / short, height / short)
    background = _draw_background(ranges, rng, num_frames, width, height, clutter)
    frames = _add_noise(_paint(background, path, ranges, rng), clutter, rng)
    return np.ascontiguousarray(frames[::-1]) if motion in _TWINS else frames


def draw_motions(
    motions: Sequence[str],
    rng: np.random.Generator,
    *,
    num_frames: int,
    width: int,
    height: int,
    clutter: float = 1.0,
    easy: bool = False,
) -> NDArray[np.uint8]:
    """Draw one clip with a patch for each of several motions, or none: RGB [T, H, W, 3].

    Arguments are those of ``draw_motion``; a later patch is in front of an earlier one.
    """
    for motion in motions:
        _check(motion)
    ranges = _EASY if easy else _Ranges()
    short = min(width, height)
    clip = _draw_background(ranges, rng, num_frames, width, height, clutter)
    for motion in motions:
        path = _draw_path(_TWINS.get(motion, motion), ranges, rng, num_frames, width / short, height / short)
        clip = _paint(clip, path.backwards() if motion in _TWINS else path, ranges, rng)
    return _add_noise(clip, clutter, rng)


def _add_noise(clip: Floats, clutter: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add camera noise and convert to uint8."""
    noise = clutter * rng.uniform(0, 0.03) * rng.standard_normal(clip.shape, dtype=np.float32)
    frames: NDArray[np.uint8] = (np.clip(clip + noise, 0, 1) * 255).astype(np.uint8)
    return frames


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ranges:
    """Ranges of random values (least, most), and constants, that differ between easy and other videos."""

    reach: tuple[float, float] = (0.18, 0.4)
    """Half of the path's extent, as a fraction of the frame's."""
    half_turns: tuple[float, float] = (0.5, 0.9)
    """Angle by which the patch turns, in half turns."""
    turning_length: float = 1.7
    """Length of a patch that turns, as a multiple of the others'."""
    pivot: float = 0.0
    """Center of its turning: its middle (0), or one end (1)."""
    background: tuple[float, float] = (0.0, 1.0)
    """Brightness of each color of the scene."""
    patch: tuple[float, float] = (0.0, 1.0)
    """Brightness of each color of the patch."""


_EASY = _Ranges(
    reach=(0.28, 0.42),
    half_turns=(1.0, 1.6),
    turning_length=1.3,
    pivot=1.0,
    background=(0.0, 0.45),
    patch=(0.55, 1.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Path:
    """Position, size and angle of the patch in every frame, [T] each."""

    x: Floats
    """Distance from the frame's middle, in short sides; so is y."""
    y: Floats
    size: Floats
    """Half of the patch's length, in short sides."""
    angle: Floats
    """Angle of the patch's long axis, in radians, clockwise."""
    shape: str
    thick: float
    """Width of the patch divided by its length."""

    def backwards(self) -> _Path:
        """The path with its frames reversed."""
        return replace(self, x=self.x[::-1], y=self.y[::-1], size=self.size[::-1], angle=self.angle[::-1])


def _draw_path(
    motion: str, ranges: _Ranges, rng: np.random.Generator, num_frames: int, wide: float, high: float
) -> _Path:
    progress = _draw_progress(rng, num_frames)
    shape = str(rng.choice(["arm", "bar", "ellipse", "wedge"], p=[0.4, 0.2, 0.2, 0.2]))
    size, thick = rng.uniform(0.14, 0.28), rng.uniform(0.35, 0.6)
    angle = rng.uniform(0, 2 * np.pi)
    # Size, angle and place change a little in all classes.
    growth, turn = rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.3)
    drift = rng.uniform(-0.12, 0.12, 2)
    if motion in _CORNERS:
        if shape == "arm":  # reaches in from below, or from one side
            angle = np.pi / 2 + rng.uniform(-1.2, 1.2)
            turn *= 0.5
        reach = rng.uniform(*ranges.reach, 2) * (wide, high)
        tilt = rng.uniform(-0.2, 0.2)
        x, y = _points_along(np.array(_CORNERS[motion]) * reach, progress).T
        x, y = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
        if len(_CORNERS[motion]) == 2:  # straight paths: anywhere across the frame
            drift *= 1.5
            reach = np.maximum(reach, np.abs(drift))
    else:
        reach = np.zeros(2)
        if motion == "towards":
            growth = rng.uniform(0.9, 1.5)
        else:
            # Long, thin and with little other motion, since the direction of turning is the hardest to see.
            turn = rng.uniform(*ranges.half_turns) * np.pi
            shape, size, thick = "bar", ranges.turning_length * size, 0.55 * thick
            drift, growth = 0.3 * drift, 0.5 * growth
        x, y = progress * drift[:, None]
        if motion == "clockwise":
            arm = ranges.pivot * size
            x, y = x + arm * np.cos(angle + turn * progress), y + arm * np.sin(angle + turn * progress)
    room = np.maximum((0.5 * wide, 0.5 * high) - reach - 0.05, 0)
    middle = rng.uniform(-room, room) * (1.0 if motion in _CORNERS else 0.35)
    return _Path(
        x=(x + middle[0]).astype(np.float32),
        y=(y + middle[1]).astype(np.float32),
        size=(size * np.exp(growth * (progress - 0.5))).astype(np.float32),
        angle=(angle + turn * progress).astype(np.float32),
        shape=shape,
        thick=thick,
    )


def _draw_progress(rng: np.random.Generator, num_frames: int) -> NDArray[np.float64]:
    """Progress of the motion in each frame, from 0 to 1: it rests, moves at a varying speed, and rests."""
    start, end = rng.uniform(0, 0.15), rng.uniform(0.85, 1)
    time = np.clip((np.linspace(0, 1, num_frames) - start) / (end - start), 0, 1)
    bend = rng.uniform(-0.12, 0.12)  # below 1 / (2 pi), so that progress never decreases
    progress: NDArray[np.float64] = time + bend * np.sin(2 * np.pi * time)
    return progress


def _points_along(corners: NDArray[np.float64], progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points at fractions of a path's length: corners [K, 2], progress [T] -> [T, 2]."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    return np.stack([np.interp(progress * length[-1], length, corners[:, i]) for i in (0, 1)], axis=1)


def _draw_background(
    ranges: _Ranges, rng: np.random.Generator, num_frames: int, width: int, height: int, clutter: float
) -> Floats:
    """Draw a still scene filmed by a camera that may shake: [T, H, W, 3]."""
    margin = max(min(width, height) // 16, 1)
    color = rng.uniform(*ranges.background, 3)
    scene = _draw_texture(rng, height + 2 * margin, width + 2 * margin, color, clutter * rng.uniform(0.05, 0.4))
    shake = clutter * rng.uniform(0, 0.6) * (rng.random() < 0.3)
    steps = np.cumsum(rng.normal(0, shake, (num_frames, 2)), axis=0)
    corner = np.clip(np.rint(steps - steps.mean(0)).astype(int) + margin, 0, 2 * margin)
    return np.stack([scene[y : y + height, x : x + width] for y, x in corner])


def _draw_texture(
    rng: np.random.Generator, height: int, width: int, color: NDArray[np.float64], contrast: float
) -> Floats:
    """Draw colored blotches of several sizes, sometimes with hard edges or stripes: [H, W, 3]."""
    texture = np.zeros((height, width, 3), np.float32)
    for cells in rng.choice([2, 3, 5, 8, 13, 21], 3, replace=False):
        grid = rng.uniform(-1, 1, (int(cells), int(cells), 3)).astype(np.float32)
        if rng.random() < 0.5:  # gray blotches
            grid[:] = grid[..., :1]
        texture += _enlarge(grid, height, width, smooth=rng.random() < 0.6)
    if rng.random() < 0.3:
        y, x = np.arange(height)[:, None], np.arange(width)[None, :]
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 16)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
        texture += (rng.uniform(-1, 1, 3) * wave[..., None]).astype(np.float32)
    return (color + contrast * texture / 2).astype(np.float32)


def _enlarge(grid: Floats, height: int, width: int, *, smooth: bool) -> Floats:
    """Resize [h, w, 3] to [H, W, 3], by linear or nearest-neighbor interpolation."""
    for axis, length in ((0, height), (1, width)):
        at = np.linspace(0, grid.shape[axis] - 1, length, dtype=np.float32)
        low = np.minimum(at.astype(int), grid.shape[axis] - 2)
        part = (at - low if smooth else np.rint(at - low)).astype(np.float32)
        part = part.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = grid.take(low, axis) * (1 - part) + grid.take(low + 1, axis) * part
    return grid


def _paint(background: Floats, path: _Path, ranges: _Ranges, rng: np.random.Generator) -> Floats:
    """Draw the patch on every frame of the background."""
    height, width = background.shape[1:3]
    short = min(height, width)
    color = rng.uniform(*ranges.patch, 3)
    while np.abs(color - background[0].mean((0, 1))).max() < 0.25:  # too close to the background
        color = rng.uniform(*ranges.patch, 3)
    texture = _draw_texture(rng, 64, 64, color, rng.uniform(0.05, 0.4))
    # Coordinates of each pixel in half lengths of the patch: a along its axis, b across.
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short - path.x[:, None]  # [T, W]
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short - path.y[:, None]  # [T, H]
    cos, sin = np.cos(path.angle) / path.size, np.sin(path.angle) / path.size
    a = (cos[:, None] * x)[:, None, :] + (sin[:, None] * y)[:, :, None]  # [T, H, W]
    b = (-sin[:, None] * x)[:, None, :] + (cos[:, None] * y)[:, :, None]
    outside = _distance(path.shape, a, b, path.thick) * (path.size * short)[:, None, None]  # in pixels
    cover = np.clip(0.5 - outside, 0, 1)[..., None]
    colors = texture[(a * 24).astype(np.int32) & 63, (b * 24).astype(np.int32) & 63]
    painted: Floats = background + cover * (colors - background)
    return painted


def _distance(shape: str, a: Floats, b: Floats, thick: float) -> Floats:
    """Approximate signed distance of points to a shape of half length 1 and half width ``thick``; negative inside."""
    b = np.abs(b)
    outside: Floats
    if shape == "ellipse":
        outside = (np.hypot(a, b / thick) - 1) * thick
    elif shape == "bar":
        outside = np.maximum(np.abs(a) - 1, b - thick)
    elif shape == "wedge":  # points along its axis
        outside = np.maximum(-1 - a, b - thick * (1 - a))
    else:
        assert shape == "arm"  # a finger with its tip at the origin, a fist, and a forearm that leaves the frame
        finger = np.maximum(b - 0.3 * thick, np.abs(a - 0.6) - 0.6)
        fist = np.hypot(a - 1.5, b) - 0.9 * thick - 0.2
        forearm = np.maximum(b - 0.7 * thick, 1.5 - a)
        outside = np.minimum(np.minimum(finger, fist), forearm)
    return outside


def _check(motion: str) -> None:
    if motion not in MOTIONS + STROKES:
        raise UnknownNameError.of("motion", motion, MOTIONS + STROKES)
