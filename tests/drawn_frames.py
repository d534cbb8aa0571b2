"""Folders of frames for the tests: numbered pictures of known pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from drawn_videos import Frames
from tada.data.annotations import read_dataset
from tada.video.reader import open_video


def write_frames(folder: Path, frames: Iterable[Frames], name: str = "img_{:05}.png", *, first: int = 1) -> Path:
    """Write frames [H, W, 3] as pictures called by their numbers, from ``first`` on; PNG keeps every bit."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder


def as_frame_folders(videos: Path, out: Path) -> Path:
    """A folder of class folders, each of whose videos is a folder of the frames that are decoded of it."""
    for video in read_dataset(videos).videos:
        with open_video(video.path) as reader:
            frames = reader.frames(range(len(reader.times_seconds)))
        write_frames(out / Path(video.path).parent.name / Path(video.path).stem, frames)
    return out
