"""Damaged pictures in folders of frames: each is read, or ends in tada's own error, and nothing is said beside that."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tada.errors import VideoError
from tada.video.frames import check_pictures, open_footage


def picture(form: str) -> bytes:
    """One with details, and an entry of Exif that says how a camera was held."""
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    held = Image.Exif()
    held[0x0112] = 6
    held[0x010F] = "a camera"
    file = io.BytesIO()
    Image.fromarray(small.repeat(4, 0).repeat(4, 1)).save(file, form, exif=held)
    return file.getvalue()


@pytest.mark.parametrize("count", [pytest.param(150, id="150"), pytest.param(3000, id="3000", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_mutated_pictures(form: str, count: int, tmp_path: Path) -> None:
    whole, ending = picture(form), "jpg" if form == "JPEG" else "png"
    rng = random.Random(0)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    num_read, messages = 0, []
    for _ in range(count):
        damaged = bytearray(whole)
        most = rng.choice([64, 300, len(whole)])  # where formats keep what they say of themselves
        for _ in range(rng.choice([1, 2, 8, 64])):
            damaged[rng.randrange(min(most, len(whole)))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        for number, data in enumerate((whole, damaged, whole)):
            (tmp_path / f"img_{number:05}.{ending}").write_bytes(data)
        for read in (check_pictures, lambda folder: list(open_footage(folder, fps=10).__enter__())):
            try:
                read(tmp_path)
                num_read += 1
            except VideoError as error:
                messages.append(str(error))
    assert min(num_read, len(messages)) > count / 10
    assert all("img_00001" in message and "\n" not in message for message in messages)
    assert not opened or len(os.listdir("/proc/self/fd")) == opened
