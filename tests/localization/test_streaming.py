"""Localizing a stream: clips, features and segments are those of the finished video, each given out once."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_localization_features import Brightness
from torch import nn

from drawn_videos import draw_plain
from hang import HANG_SECONDS
from tada.commands.cli import main
from tada.data.motion import draw_motion
from tada.data.table import Head
from tada.errors import CheckpointError, NotAVideoError, OptionError
from tada.localization.detectors.actionformer import ActionFormerConfig, ActionFormerDetector
from tada.localization.detectors.bmn import BMNConfig, BMNDetector
from tada.localization.detectors.nms import Detections
from tada.localization.detectors.samples import RollingView, Sample
from tada.localization.features.extraction import extract_video, settings_as_dict
from tada.localization.features.folder import VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.localizer import LocalizedSegment, Localizer, LocalizerCard, save_localizer
from tada.localization.recipe import LocalizationRecipe
from tada.localization.streaming import Look, RollingDetector, StreamSettings, localize_stream
from tada.models import create_model
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.training.recipe import recipe_yaml
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows, clips_as_they_come, clips_of
from tada.video.stream import FrameStream, LiveFrame
from tada.video.writer import write_video

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=16, crop=16)
EXTRACTION = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
RECIPE = LocalizationRecipe(dim=16, input_dropout=0.0)
LABELS = (Head(name="action", labels=("moves",)),)
IDLE = 0.05
REACH_SECONDS = 10.4  # what ``TRAINED`` sees of either side: 51 steps and one for the edge of a feature's clip


# -- a localizer, and videos -------------------------------------------------------------------------------------------


def localizer_of(detector: Any, *, labels: tuple[Head, ...] = LABELS, threshold: float = 0.3) -> Localizer:
    backbone = Recognizer(
        Brightness(), ModelCard(model="tada2d_tiny", labels=("a", "b"), clip=SPEC, trained_from="thought"), device="cpu"
    )
    card = LocalizerCard(
        detector="actionformer",
        shape={},
        heads=labels,
        grid=FeatureGrid.of_windows(EXTRACTION),
        feature_settings=settings_as_dict(backbone, EXTRACTION),
        backbone="",
        thresholds={name: threshold for name in labels[0].labels},
    )
    return Localizer(detector, card, RECIPE, backbone=backbone)


@pytest.fixture(scope="module")
def trained() -> Localizer:
    """A small ActionFormer that has learned, in seconds, that what is bright happens."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = ActionFormerConfig(
        in_channels=2,
        num_classes=(1,),
        dim=16,
        window=9,
        num_levels=3,
        regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10_000.0)),
        max_length=64,
        drop_path=0.0,
    )
    detector = ActionFormerDetector(config, recipe=RECIPE, heads=LABELS).train()
    optimizer = torch.optim.AdamW(detector.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=100)
    for _ in range(100):
        detector.losses(detector.collate([drawn_sample(rng) for _ in range(8)]))["loss"].backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return localizer_of(detector)


def drawn_sample(rng: np.random.Generator, num_steps: int = 64) -> Sample:
    """The features that ``Brightness`` would give of a video that is bright now and then."""
    segments, at = [], rng.uniform(0, 6)
    while at + 15 < num_steps:
        end = at + rng.uniform(4, 13)
        segments.append((at, end))
        at = end + rng.uniform(3, 15)
    features = np.full((2, num_steps), 0.02)
    for half, offset in enumerate((-1.0, 0.0)):  # a clip spans two steps, each half of it one
        begins = np.arange(num_steps) + offset
        for start, end in segments:
            features[half] += 0.9 * np.clip(np.minimum(begins + 1, end) - np.maximum(begins, start), 0, 1)
    features += rng.normal(0, 0.01, features.shape)
    return Sample(
        torch.from_numpy(features.astype(np.float32)),
        torch.tensor(segments, dtype=torch.float32).reshape(-1, 2),
        torch.zeros(len(segments), 1, dtype=torch.int64),
    )


EVENTS = [(3.0, 4.7), (7.1, 8.3), (10.0, 12.4), (15.2, 16.4), (19.9, 21.9), (24.0, 25.1), (27.7, 30.0), (33.3, 35.0),
          (38.1, 39.4), (42.0, 44.2), (47.5, 49.0), (51.3, 53.0), (56.0, 57.2)]  # fmt: skip


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute in which something bright moves now and then."""
    frames = np.zeros((600, 32, 32, 3), np.uint8)
    for i, (start, end) in enumerate(EVENTS):
        first, last = round(start * 10), round(end * 10)
        clip = draw_motion("left", np.random.default_rng(i), num_frames=last - first, width=32, height=32)
        frames[first:last] = clip // 8 + 220
    path = tmp_path_factory.mktemp("stream") / "day.mp4"
    write_video(path, frames, fps=10)
    return path


def segments_of(looks: Sequence[Look]) -> list[LocalizedSegment]:
    return sorted((given.segment for look in looks for given in look.settled), key=lambda s: s.start_seconds)


def times_of(segments: Sequence[LocalizedSegment]) -> np.ndarray[Any, Any]:
    return np.array([(s.start_seconds, s.end_seconds) for s in segments]).reshape(-1, 2)


# -- the same as of the finished video ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(1.0, 0.25), (0.3, 0.4), (2.7, 0.19)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_clips_are_those_of_the_finished_video(window: float, stride: float, suffix: str, tmp_path: Path) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"} if suffix == ".mp4" else None
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.12, 60)).tolist()
    path = draw_plain(tmp_path / f"a{suffix}", 60, times_seconds=times, container_options=fragments)
    settings = SlidingWindows(window_seconds=window, stride_seconds=stride, num_crops=3)
    with open_video(path) as reader:
        wanted = list(clips_of(reader, SPEC, settings, range(settings.count(reader.info.duration_seconds))))
        shown = reader.times_seconds.tolist()
    stream = FrameStream(path, idle_seconds=IDLE)
    found = list(clips_as_they_come(stream, SPEC, settings))
    assert len(found) == len(wanted)
    assert all(torch.equal(mine.frames, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert [seconds for clip in found for seconds, _ in clip.arrivals] == shown
    # A clip is ready with the first frame after its last one.
    ready = np.cumsum([len(clip.arrivals) for clip in found]) - 1
    for index in range(3):
        last = settings.clip_times(index, SPEC.num_frames)[-1]
        assert shown[ready[index]] > last >= shown[ready[index] - 1]


def test_a_small_frame_is_made_only_of_frames_that_a_clip_needs(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mkv", 60, fps=20)
    made = []

    class Counted(FrameStream):
        def __iter__(self) -> Iterator[LiveFrame]:
            for frame in super().__iter__():
                yield frame._replace(pixels=lambda frame=frame: made.append(frame.seconds) or frame.pixels())

    settings = SlidingWindows(window_seconds=0.8, stride_seconds=0.4)
    clips = list(clips_as_they_come(Counted(path, idle_seconds=IDLE), replace(SPEC, num_frames=2), settings))
    assert len(clips) == settings.count(3.0)
    assert len(made) == len(set(made)) == len(clips) + 1  # each clip begins where another ends


def test_features_are_those_of_the_finished_video(trained: Localizer, day: Path) -> None:
    backbone, settings = trained.feature_maker()
    wanted = extract_video(backbone, day, settings, backbone_sha256="")
    seen: list[VideoFeatures] = []

    class Watched(nn.Module):
        def detect(self, found: VideoFeatures) -> Detections:
            seen.append(found)
            return Detections(np.empty((0, 2)), np.empty(0), np.empty((0, 1), np.int64))

        def rolling_view(self, stride_seconds: float) -> RollingView:
            return RollingView(100, 8)

    localizer = Localizer(Watched(), trained.card, RECIPE, backbone=backbone)  # type: ignore[arg-type]  # a stand-in
    list(localize_stream(localizer, FrameStream(day, idle_seconds=IDLE), StreamSettings(every_seconds=2.0)))
    assert [found.card.num_features for found in seen[:12]] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 102, 104]
    for number, found in enumerate(seen[:-1], start=1):
        end = 10 * number
        begin = end - found.card.num_features
        assert begin % 8 == 0
        np.testing.assert_allclose(found.features, wanted.features[begin:end], atol=1e-6)
        np.testing.assert_allclose(found.scores["action"], wanted.scores["action"][begin:end], atol=1e-6)
        assert found.card.duration_seconds == pytest.approx(0.2 * found.card.num_features)
    assert len(wanted.features) == 300


def test_segments_are_those_of_the_finished_video(trained: Localizer, day: Path) -> None:
    """With as much around each segment as the detector sees, they are the same to a thousandth of a second."""
    wanted = trained.localize(day).segments
    np.testing.assert_allclose(times_of(wanted), EVENTS, atol=EXTRACTION.stride_seconds / 2)  # a detector that works
    settings = StreamSettings(span_seconds=35.0, settle_seconds=REACH_SECONDS)
    looks = list(localize_stream(trained, FrameStream(day, idle_seconds=IDLE), settings))
    found = segments_of(looks)
    np.testing.assert_allclose(times_of(found), times_of(wanted), atol=1e-3)
    assert [s.score for s in found] == pytest.approx([s.score for s in wanted], abs=1e-3)
    assert len([look for look in looks if look.settled]) > 8  # they came one by one, not all at the end
    last_but_one = [given for look in looks[:-1] for given in look.settled]
    assert all(given.behind_seconds >= REACH_SECONDS for given in last_but_one)


def test_little_patience_costs_little_precision(trained: Localizer, day: Path) -> None:
    """As it is by default: two seconds of patience, far less than the detector sees."""
    wanted = trained.localize(day).segments
    looks = list(localize_stream(trained, FrameStream(day, idle_seconds=IDLE), StreamSettings(span_seconds=20.0)))
    found = segments_of(looks)
    assert [s.label for s in found] == [s.label for s in wanted]
    np.testing.assert_allclose(times_of(found), times_of(wanted), atol=EXTRACTION.stride_seconds / 2)
    behind = [given.behind_seconds for look in looks[:-1] for given in look.settled]
    assert 2.0 <= min(behind) <= max(behind) < 5.0
    assert any(look.pending for look in looks)


def test_a_stream_shorter_than_the_span_ends_as_the_video(trained: Localizer, tmp_path: Path) -> None:
    frames = np.zeros((33, 32, 32, 3), np.uint8)
    frames[8:21] = 240
    write_video(tmp_path / "a.mp4", frames, fps=10)
    wanted = trained.localize(tmp_path / "a.mp4").segments
    settings = StreamSettings(settle_seconds=10.0)
    looks = list(localize_stream(trained, FrameStream(tmp_path / "a.mp4", idle_seconds=IDLE), settings))
    np.testing.assert_allclose(times_of(segments_of(looks)), times_of(wanted), atol=1e-4)
    assert [look.is_last for look in looks] == [False, False, False, True]
    assert looks[-1].settled[0].segment.start_seconds == pytest.approx(0.8, abs=0.1)


def test_a_growing_file_is_answered_while_it_grows(trained: Localizer, day: Path, tmp_path: Path) -> None:
    """What is given out depends on the stream, not on how it comes; and it comes before the stream ends."""
    data = day.read_bytes()
    growing = tmp_path / "growing.mp4"
    growing.write_bytes(data[: len(data) // 2])
    settings = StreamSettings(span_seconds=20.0)
    num_threads = threading.active_count()
    at_once = segments_of(list(localize_stream(trained, FrameStream(day, idle_seconds=IDLE), settings)))
    looks: list[Look] = []
    stream = FrameStream(growing, idle_seconds=30.0)
    for look in localize_stream(trained, stream, settings):
        looks.append(look)
        if look.settled and growing.stat().st_size < len(data):
            assert not look.is_last
            with growing.open("ab") as file:
                file.write(data[len(data) // 2 :])
        if look.seen_seconds > 58.9:
            stream.stop()  # rather than wait for more, half a minute long
    assert looks[-1].is_last
    early = [s for s in segments_of(looks) if s.end_seconds < 55]
    np.testing.assert_allclose(times_of(early), times_of(at_once)[: len(early)], atol=1e-3)
    assert len(early) >= 11
    assert threading.active_count() == num_threads


# -- what is given out, and when ---------------------------------------------------------------------------------------


class Scripted(nn.Module):
    """A detector that finds at each look what it is told, in the stream's time."""

    def __init__(self, looks: list[list[tuple[float, float, int]]], *, span: int = 1000, multiple: int = 1) -> None:
        super().__init__()
        self.looks, self.view, self.num_seen = looks, RollingView(span, multiple), 0

    def rolling_view(self, stride_seconds: float) -> RollingView:
        return self.view

    def detect(self, found: VideoFeatures) -> Detections:
        self.num_seen += 5
        begin = (self.num_seen - found.card.num_features) * 0.2
        told = self.looks.pop(0)
        segments = np.array([(start - begin, end - begin) for start, end, _ in told], np.float64).reshape(-1, 2)
        labels = np.array([[label] for *_, label in told], np.int64).reshape(-1, 1)
        return Detections(segments, np.full(len(told), 0.9), labels)


TWO = (Head(name="action", labels=("a", "b")),)


def given_out(
    looks: list[list[tuple[float, float, int]]], *, settle: float = 1.0, **view: int
) -> list[list[tuple[float, float, str]]]:
    """What is given out at each look, one second apart."""
    rolling = RollingDetector(
        localizer_of(Scripted(looks, **view), labels=TWO), StreamSettings(settle_seconds=settle), min_score=None
    )
    found = []
    for _ in range(len(looks)):
        rolling.add(torch.zeros(5, 2), torch.zeros(5, 2))
        assert rolling.is_due
        settled, _ = rolling.look()
        found.append([(s.start_seconds, round(s.end_seconds, 3), s.label) for s in settled])
    return found


def test_a_segment_is_given_out_when_its_end_is_behind_and_stays() -> None:
    a = (0.5, 1.5, 0)
    assert given_out([[], [a], [a], [a], []]) == [[], [], [(0.5, 1.5, "a")], [], []]
    # At the second look its end is 0.5 s behind, at the third 1.5 s, and the second found the same.
    moving = [[], [(0.5, 1.2, 0)], [(0.5, 1.5, 0)], [(0.5, 1.8, 0)], [(0.5, 1.85, 0)]]
    assert given_out(moving) == [[], [], [], [], [(0.5, 1.85, "a")]]
    assert given_out([[], [(0.5, 1.5, 0)], [(0.5, 1.5, 1)], [(0.5, 1.5, 1)]]) == [[], [], [], [(0.5, 1.5, "b")]]


def test_what_was_given_out_comes_not_again() -> None:
    a, shifted, other = (0.5, 1.5, 0), (0.6, 1.9, 0), (0.5, 1.5, 1)
    looks = [[a], [a], [a], [shifted], [shifted], [other, shifted], [other, shifted]]
    assert [bool(found) for found in given_out(looks)] == [False, False, True, False, False, False, True]
    # Two that overlap are two, whether they come together or one after the other.
    twin = (0.5, 1.3, 0)
    assert given_out([[a, twin], [a, twin], [a, twin], [a, twin]])[2:] == [[(0.5, 1.3, "a"), (0.5, 1.5, "a")], []]
    assert given_out([[a], [a], [a], [a, twin], [a, twin]])[2:] == [[(0.5, 1.5, "a")], [], [(0.5, 1.3, "a")]]


def test_what_begins_before_the_part_that_is_seen_well_is_left() -> None:
    """A span of 4 s, one of patience: at the look at 8 s the part begins at 4 s, and nothing before 5 s counts."""
    early = (4.9, 6.5, 0)
    assert given_out([[]] * 6 + [[]] + [[early]] * 3, span=20) == [[]] * 10
    # One that still moves when it would be lost at the next look is taken as it is.
    moving = [[]] * 5 + [[(4.5, 5.2, 0)], [(4.5, 5.6, 0)], [(4.5, 5.0, 0)]]
    assert given_out(moving, span=20)[5:] == [[], [(4.5, 5.6, "a")], []]


def test_a_part_begins_at_multiples() -> None:
    rolling = RollingDetector(
        localizer_of(Scripted([], span=20, multiple=8), labels=TWO), StreamSettings(settle_seconds=1.0)
    )
    begins = []
    for _ in range(10):
        rolling.add(torch.zeros(5, 2), torch.zeros(5, 2))
        begins.append(rolling.num_features - len(rolling._features))
    assert begins == [0, 0, 0, 0, 0, 8, 8, 16, 24, 24]


def test_latency_is_from_the_arrival_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a camera whose clock began at 100 s; each answer comes when the clock says 200 s."""

    class Camera:
        duration_seconds = 6.0

        def __iter__(self) -> Iterator[LiveFrame]:
            for i in range(60):
                yield LiveFrame(i / 10, 100 + i / 10, lambda: np.zeros((16, 16, 3), np.uint8))

        def stop(self) -> None:
            pass

    monkeypatch.setattr("tada.localization.streaming.time.perf_counter", lambda: 200.0)
    a = (0.5, 1.55, 0)
    localizer = localizer_of(Scripted([[a]] * 7), labels=TWO)
    looks = list(localize_stream(localizer, Camera(), StreamSettings(settle_seconds=1.0)))  # type: ignore[arg-type]
    assert [len(look.settled) for look in looks] == [0, 0, 1, 0, 0, 0, 0]
    # Feature 14 is the last of three seconds; its clip's last frame is shown at 3.05 s, the next one comes at 3.1 s.
    assert looks[2].seen_seconds == pytest.approx(3.1)
    assert looks[2].latency_seconds == pytest.approx(96.9)
    (given,) = looks[2].settled
    assert given.behind_seconds == pytest.approx(1.55)
    assert given.latency_seconds == pytest.approx(98.4)  # the first frame after its end came at 101.6 s


def test_a_fault_of_the_stream_is_told(trained: Localizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no video")
    with pytest.raises(NotAVideoError, match="is not a video"):
        list(localize_stream(trained, FrameStream(tmp_path / "text", idle_seconds=IDLE)))


def test_leaving_early_lets_go_of_the_stream(trained: Localizer, day: Path) -> None:
    looks = localize_stream(trained, FrameStream(day, idle_seconds=2 * HANG_SECONDS))
    next(looks)
    before = time.monotonic()
    looks.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - before < HANG_SECONDS


# -- what the detectors say --------------------------------------------------------------------------------------------


def test_each_detector_has_its_own_view() -> None:
    ranges = tuple((0.0, 9.0) for _ in range(6))
    shape = {"in_channels": 2, "num_classes": (1,), "num_levels": 6, "max_length": 2304, "regression_ranges": ranges}
    actionformer = ActionFormerDetector(ActionFormerConfig(**shape), recipe=RECIPE, heads=LABELS)
    assert actionformer.rolling_view(2 / 15) == RollingView(450, 32)  # a minute
    assert actionformer.rolling_view(8 / 15) == RollingView(256, 32)  # longer actions
    whole = ActionFormerDetector(ActionFormerConfig(**shape), recipe=replace(RECIPE, resize_to=192), heads=LABELS)
    assert whole.rolling_view(0.5) is None
    bmn = {"in_channels": 4, "num_bins": 20, "max_duration_bins": 10}
    windows = BMNDetector(BMNConfig(**bmn, bin_seconds=0.4), recipe=RECIPE, heads=LABELS)
    assert windows.rolling_view(0.2) == RollingView(40, 20)
    assert BMNDetector(BMNConfig(**bmn), recipe=RECIPE, heads=LABELS).rolling_view(0.2) is None


def test_a_stream_is_refused_where_it_makes_no_sense(day: Path) -> None:
    class Whole(Scripted):
        def rolling_view(self, stride_seconds: float) -> None:  # type: ignore[override]
            return None

    stream = FrameStream(day, idle_seconds=IDLE)
    localizer = localizer_of(Whole([]))
    with pytest.raises(OptionError, match=r"trained on whole videos, .* give span_seconds \(--span-seconds\)"):
        next(localize_stream(localizer, stream))
    assert RollingDetector(localizer, StreamSettings(span_seconds=20.0)).view == RollingView(100, 1)
    with pytest.raises(OptionError, match=r"span_seconds=3 should be more than twice settle_seconds=2"):
        next(localize_stream(localizer, stream, StreamSettings(span_seconds=3.0)))
    localizer.backbone = None
    with pytest.raises(CheckpointError, match="has no network to make them of a video"):
        next(localize_stream(localizer, stream))
    with pytest.raises(OptionError, match="every_seconds=0 should be a positive number of seconds"):
        StreamSettings(every_seconds=0)
    with pytest.raises(OptionError, match="settle_seconds=-1 should be 0 or more"):
        StreamSettings(settle_seconds=-1)


# -- by the command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained: Localizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone can be saved: a real one, though it knows nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    options = {"widths": [8, 8, 8, 8], "stem_width": 8}
    card = ModelCard(model="tada2d_tiny", options=options, labels=("a", "b"), clip=SPEC, trained_from="random weights")
    backbone = Recognizer(create_model("tada2d_tiny", num_classes=2, **options), card, device="cpu")
    config = replace(trained.detector.config, in_channels=8)  # type: ignore[union-attr]  # ActionFormer's
    detector = ActionFormerDetector(config, recipe=RECIPE, heads=LABELS)
    about = replace(
        trained.card, shape=detector.config_as_dict(), feature_settings=settings_as_dict(backbone, EXTRACTION)
    )
    save_localizer(folder, Localizer(detector, about, RECIPE, backbone=backbone))
    (folder / "recipe.yaml").write_text(recipe_yaml(RECIPE))
    return folder


def call(*arguments: str | Path | float) -> int:
    return main([str(argument) for argument in arguments])


def test_a_stream_is_written_line_by_line(run: Path, day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["localize", day, "--model", run, "--stream", "--idle-seconds", IDLE, "--min-score", 0.009]
    words += ["--every-seconds", 5, "--span-seconds", 20]
    assert call(*words, "--format", "json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    looks = [event for event in events if event["event"] == "look"]
    segments = [event for event in events if event["event"] == "segment"]
    assert len(looks) == 13
    assert looks[-1]["seen_seconds"] == 59.9
    assert segments
    assert segments[0].keys() == {
        *("event", "video", "start_seconds", "end_seconds", "label", "score", "behind_seconds", "latency_seconds")
    }
    assert all(event["latency_seconds"] >= 0 for event in looks + segments)
    end = events[-1]
    assert (end["event"], end["num_frames"], end["num_left_out"], end["num_looks"]) == ("end", 600, 0, 13)
    assert end["num_segments"] == len(segments)
    assert 0 < end["latency_seconds"]["median"] <= end["latency_seconds"]["p95"] <= end["latency_seconds"]["max"]

    assert call(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["start", "end", "score", "behind", "latency", "what", "happens"]
    assert len(lines) == 1 + len(segments) + 3
    assert lines[1].endswith("moves")
    assert lines[-3] == f"{len(segments)} segments in 59.9 s, 600 frames"
    times = r"median \d+ ms, p95 \d+ ms, max \d+ ms"
    assert re.fullmatch(rf"from a frame's arrival to the answer: {times} \(13 looks\)", lines[-2])

    assert call(*words, "--format", "csv") == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [float(row["start"]) for row in rows] == [segment["start_seconds"] for segment in segments]
    assert rows[0].keys() == {"video", "start", "end", "label", "score", "behind_seconds", "latency_seconds"}
    assert "600 frames" in captured.err

    assert call(*words, "--format", "srt") == 0
    assert capsys.readouterr().out.startswith("1\n00:00:")


def test_ctrl_c_ends_a_stream_with_what_was_found(run: Path, day: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-m", "tada.commands.cli", "localize", "-", "--model", run, "--stream", "--format", "json"]
    words += ["--idle-seconds", "600", "--min-score", "0.009", "--device", "cpu"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(day.read_bytes())
        process.stdin.flush()  # and stays open: the stream has not ended
        early = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        events = [json.loads(line) for line in [*early, *process.stdout.read().splitlines()]]
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0
    assert events[-1]["event"] == "end"
    assert events[-1]["num_segments"] == sum(event["event"] == "segment" for event in events)


def test_options_that_would_do_nothing_are_refused(run: Path, day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("-",), "- is the standard input, which is read with --stream"),
        ((day, "--every-seconds", 1), "--every-seconds is for --stream: leave it away"),
        ((day, "--idle-seconds", 1), "--idle-seconds is for --stream: leave it away"),
        ((day, "--stream", "--plots", "p"), "--plots is for finished videos: leave it away"),
        ((day, day, "--stream"), "--stream takes one source, not 2: start one command for each"),
        ((day, "--stream", "--span-seconds", 1), "--span-seconds should be more than twice settle_seconds=2"),
        ((day.parent, "--stream"), "is a folder; a file, a pipe or a camera is needed"),
    ):
        assert call("localize", *words, "--model", run) == 2
        assert message in capsys.readouterr().err
