"""Times count from the container's start, also where the pictures begin later than the sound, as in screen captures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_localization_features import Brightness

from drawn_videos import draw
from tada.localization import localizer
from tada.localization.annotations.table import read_segments
from tada.localization.features.extraction import extract
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import Localization
from tada.localization.train_from_videos import match_videos
from tada.localization.trimmed import cut_clips
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows, clips_as_they_come, clips_of
from tada.video.stream import FrameStream

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=16, crop=16)
SETTINGS = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
EVENT = (3.2, 5.6)


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def late(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound from 0 to 8 s, pictures from 2 s on; they are bright from 3.2 to 5.6 s. And segments.csv, which says so."""
    folder = tmp_path_factory.mktemp("late")
    times = 2 + np.arange(60) / 10
    frames = [np.full((16, 16, 3), 255 if EVENT[0] - 1e-6 < t < EVENT[1] - 1e-6 else 0, np.uint8) for t in times]
    draw(folder / f"capture.{request.param}", frames, fps=10, times_seconds=times.tolist(), with_sound_seconds=8.0)
    rows = ["video,start,end,label", f"capture,{EVENT[0]},{EVENT[1]},bright", "capture,6.0,7.0,dark"]
    (folder / "segments.csv").write_text("\n".join(rows))
    return folder


def capture(folder: Path) -> Path:
    (path,) = (path for path in folder.iterdir() if path.suffix != ".csv")
    return path


def brightness() -> Recognizer:
    card = ModelCard(model="tada2d_tiny", labels=("a", "b"), clip=SPEC, trained_from="thought")
    return Recognizer(Brightness(), card, device="cpu")


def test_features_lie_where_players_show_what_they_are_of(late: Path, tmp_path: Path) -> None:
    backbone = brightness()
    extract(backbone, {"capture": capture(late)}, tmp_path, SETTINGS, show_progress=False)
    found = FeatureFolder(tmp_path).read("capture")
    assert found.card.duration_seconds == pytest.approx(8.0, abs=0.11)
    grid, level = found.card.grid, found.features.mean(1)
    up, down = int(np.argmax(level > 0.5)) - 0.5, len(level) - int(np.argmax(level[::-1] > 0.5)) - 0.5
    half_a_step = grid.stride_seconds / 2 + 1e-6
    np.testing.assert_allclose([grid.seconds(up), grid.seconds(down)], EVENT, atol=half_a_step)
    # An older tada counted from the first picture: such features are made anew, though they do not say of which video.
    card = json.loads((tmp_path / "capture.json").read_text())
    before = card | {"duration_seconds": 6.0, "num_features": 30, "source": None}
    (tmp_path / "capture.json").write_text(json.dumps(before))
    done = extract(backbone, {"capture": capture(late)}, tmp_path, SETTINGS, show_progress=False)
    assert done.written == done.replaced == ("capture",)
    assert json.loads((tmp_path / "capture.json").read_text()) == card


def test_a_stream_has_the_same_clips(late: Path) -> None:
    with open_video(capture(late)) as reader:
        count = SETTINGS.count(reader.info.duration_seconds)
        of_file = list(clips_of(reader, SPEC, SETTINGS, range(count)))
    of_stream = [clip.frames for clip in clips_as_they_come(FrameStream(capture(late)), SPEC, SETTINGS)]
    assert len(of_stream) == len(of_file) == count
    assert all(torch.equal(a, b) for a, b in zip(of_file, of_stream, strict=True))


def test_clips_are_cut_where_segments_say(late: Path, tmp_path: Path) -> None:
    table, files = match_videos(read_segments(late / "segments.csv"), late, show_progress=False)
    table = replace(table, videos=tuple(replace(video, split="train") for video in table.videos))
    clips = cut_clips(table, files, tmp_path / "clips", show_progress=False)
    levels = {}
    for video in clips.videos:
        with open_video(video.path) as reader:
            levels[clips.label_names(video)] = [int(frames.mean()) for _, frames in reader]
    assert len(levels["bright",]) == 24
    assert min(levels["bright",]) > 250
    assert len(levels["dark",]) == 10
    assert max(levels["dark",]) < 5


def test_a_plot_shows_what_is_there_at_its_times(late: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []  # type: ignore[type-arg]  # uint8 [N, H, W, 3]
    monkeypatch.setattr(localizer, "save_timeline", lambda frames, *rest, **options: drawn.append(frames))
    found = Localization(path=str(capture(late)), duration_seconds=8.0, segments=())
    found.plot(tmp_path / "capture.png", num_frames=8)  # at 0.5, 1.5, ... 7.5 s
    assert [bool(frame.mean() > 128) for frame in drawn[0]] == 3 * [False] + 3 * [True] + 2 * [False]
