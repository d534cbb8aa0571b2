"""Answers: which clips of a video are looked at, what is said of them, and in which forms."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoding_tasks import die_at_deadly
from drawn_videos import draw_plain, read_stamps
from tada.errors import CheckpointError, DecoderLostError, OptionError, VideoError, VideoNotFoundError
from tada.models import create_model
from tada.models.weights import ModelCard, save_model
from tada.recognition import prediction as prediction_module
from tada.recognition import video_clips
from tada.recognition.prediction import Prediction, predictions_csv
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.video_clips import windows_of
from tada.video.find import find_videos
from tada.video.sampling import ClipSpec
from tada.video.writer import write_video

LABELS = ("dark", "bright")


class Brightness(nn.Module):
    """Knows bright clips from dark ones: logits [-m, m] of the mean m."""

    def forward(self, clips: Tensor) -> Tensor:
        mean = clips.mean((1, 2, 3, 4))
        return torch.stack([-mean, mean], dim=1)


def recognizer(**clip: object) -> Recognizer:
    spec = replace(ClipSpec(num_frames=4, interval=5, fps=10.0, short_side=16, crop=16), **clip)
    return Recognizer(Brightness(), ModelCard(model="tada2d_tiny", labels=LABELS, clip=spec, trained_from="thought"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at ten frames per second, dark for the first five and bright for the rest."""
    path = tmp_path_factory.mktemp("video") / "dusk till dawn.mp4"
    frames = np.zeros((80, 16, 32, 3), dtype=np.uint8)
    frames[50:] = 255
    write_video(path, frames, fps=10)
    return path


def test_clips_cover_the_video_and_their_mean_is_the_answer(video: Path) -> None:
    prediction = recognizer().predict(video)
    # A clip spans 4 * 5 / 10 = 2 s, so four cover 8 s; the last starts where it still fits.
    assert [clip.start_seconds for clip in prediction.clips] == pytest.approx([0.0, 2.1, 4.3, 6.4], abs=0.11)
    assert [clip.scores[1] > 0.5 for clip in prediction.clips] == [False, False, True, True]
    mean = np.mean([clip.scores for clip in prediction.clips], axis=0)
    assert prediction.scores == pytest.approx(mean)
    assert sum(prediction.scores) == pytest.approx(1)
    assert prediction.label == prediction.top(1)[0][0] == LABELS[int(np.argmax(mean))]
    # A bright frame is 1; normalized by its own mean and deviation it is (1 - 0.5) / 0.25 = 2.
    halves = recognizer(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).scores(torch.full((1, 4, 16, 16, 3), 255).byte())
    assert halves[0, 1].item() == pytest.approx(1 / (1 + math.exp(-4)))


def test_the_number_of_clips_can_be_given(video: Path) -> None:
    assert len(recognizer().predict(video, num_clips=1).clips) == 1
    assert len(recognizer().predict(video, num_clips=7).clips) == 7
    assert len(recognizer(sampling="segment").predict(video).clips) == 1
    assert len(recognizer(fps=100.0).predict(video).clips) == 10  # at most


def test_windows_are_videos_of_their_own(video: Path) -> None:
    prediction = recognizer(sampling="segment").predict(video, window_seconds=2.5)
    times = [(clip.start_seconds, clip.end_seconds) for clip in prediction.clips]
    assert len(times) == 3
    for i, (start, end) in enumerate(times):
        assert 2.5 * i <= start < end < 2.5 * (i + 1) + 0.5 * (i == 2)  # half a second was left over
    assert [clip.scores[1] > 0.5 for clip in prediction.clips] == [False, False, True]


@pytest.mark.parametrize(
    ("start", "num_frames", "window", "lengths"),
    [
        (0.0, 100, 2.0, [50, 50]),
        (0.0, 101, 2.0, [50, 51]),  # 4.04 s: the last frame is no window
        (0.0, 124, 2.0, [50, 74]),  # 0.96 s are less than half of one
        (0.0, 125, 2.0, [50, 50, 25]),  # 1 s is half
        (0.0, 25, 2.0, [25]),
        (0.0, 74, 2.0, [74]),
        (0.0, 1, 2.0, [1]),
        (0.0, 10, 0.001, [1] * 10),
        (0.0, 10, 1e-12, [1] * 10),
        (0.0, 10, 1e12, [10]),
        (2.0, 100, 2.0, [50, 50]),  # pictures that begin after the sound
        (1.5, 100, 2.0, [63, 37]),  # half a second before the first cut joins the window after it
        (1.0, 100, 2.0, [25, 50, 25]),
    ],
)
def test_a_window_is_at_least_half_as_long_as_asked(
    start: float, num_frames: int, window: float, lengths: list[int]
) -> None:
    windows = windows_of(start + np.arange(num_frames) / 25, start + num_frames / 25, window)
    assert [len(part) for part in windows] == lengths
    assert [index for part in windows for index in part] == list(range(num_frames))


def test_windows_where_nothing_is_shown_are_none() -> None:
    """A screen that stood still: from 1 to 7 s no frame comes."""
    times = np.array([0.0, 0.5, 1.0, 7.0, 7.5, 8.2])
    assert windows_of(times, 8.9, 2.0) == [range(3), range(3, 6)]


def test_what_is_left_over_has_no_vote_of_its_own(tmp_path: Path) -> None:
    """4.1 s in windows of 2 s: the last frame, which alone is bright, would have had a third of the votes."""
    frames = np.zeros((41, 16, 32, 3), np.uint8)
    frames[40] = 255
    write_video(tmp_path / "video.mp4", frames, fps=10)
    prediction = recognizer(sampling="segment").predict(tmp_path / "video.mp4", window_seconds=2.0)
    assert [clip.start_seconds for clip in prediction.clips] == pytest.approx([0.2, 2.2], abs=0.11)
    assert prediction.label == "dark"
    assert all(clip.scores[0] > 0.5 for clip in prediction.clips)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clips": 0}, r"num_clips = 0 should be at least 1"),
        ({"window_seconds": 0.0}, r"window_seconds = 0.0 should be more than 0"),
        ({"window_seconds": float("nan")}, r"window_seconds = nan should be a finite number"),
    ],
)
def test_impossible_options_are_refused(video: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        recognizer().predict(video, **options)  # type: ignore[arg-type]


def test_a_video_that_is_none_raises(tmp_path: Path) -> None:
    (tmp_path / "song.mp4").write_bytes(b"la la la" * 100)
    with pytest.raises(VideoError, match=r"song\.mp4"):
        recognizer().predict(tmp_path / "song.mp4")


def test_many_videos_in_their_order_with_the_faults_among_them(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    model = recognizer()
    first, fault, last = model.predict_all([video, broken, video])
    assert first == last == model.predict(video)
    assert isinstance(fault, VideoError)
    assert str(broken) in str(fault)


def test_answers_stop_when_nobody_asks_any_more(video: Path) -> None:
    before = threading.active_count()
    answers = recognizer().predict_all([video] * 1000)
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before


@pytest.mark.parametrize("batch_size", [1, 3])
def test_processes_that_decode_change_no_answer(video: Path, tmp_path: Path, batch_size: int) -> None:
    """Files, a broken file, frames in memory and a missing file, in their order."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 32, 3), np.uint8)
    model, videos = recognizer(fps=None, interval=2), [video, broken, frames, video, tmp_path / "missing.mp4"]
    here = list(model.predict_all(videos, num_clips=2, num_workers=0, batch_size=1))
    there = list(model.predict_all(videos, num_clips=2, num_workers=2, batch_size=batch_size))
    assert [type(answer) for answer in here] == [type(answer) for answer in there]
    for one, other in zip(here, there, strict=True):
        assert str(one) == str(other)
        if isinstance(one, Prediction):
            assert isinstance(other, Prediction)
            assert other.scores == pytest.approx(one.scores, abs=1e-6)
            assert [clip.frame_numbers for clip in other.clips] == [clip.frame_numbers for clip in one.clips]


def test_a_video_whose_process_dies_is_lost_alone(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = tmp_path / "deadly.mp4"
    shutil.copy(video, deadly)
    monkeypatch.setattr(video_clips, "read_clips", die_at_deadly)
    first, lost, last = recognizer().predict_all([video, deadly, video], num_workers=1)
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(lost, DecoderLostError)
    assert lost.reason == "lost"
    assert re.search(
        r"deadly.mp4': the decoder crashed \(signal SIGSEGV\), 2 times; leave it out, or convert", str(lost)
    )


def test_bfloat16_answers_nearly_the_same(video: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("tada2d_tiny", num_classes=2)
    save_model(tmp_path / "run", network, recognizer().card)
    exact, rounded = load_recognizer(tmp_path / "run"), load_recognizer(tmp_path / "run", dtype=torch.bfloat16)
    assert rounded.predict(video).scores != exact.predict(video).scores
    assert rounded.predict(video).scores == pytest.approx(exact.predict(video).scores, abs=0.02)


def test_json_and_csv_say_the_same(video: Path) -> None:
    prediction = recognizer().predict(video, num_clips=2)
    entry = json.loads(json.dumps(prediction.as_dict(1)))
    assert entry["video"] == str(video)
    assert entry["label"] == prediction.label
    assert entry["scores"] == {prediction.label: pytest.approx(max(prediction.scores))}
    assert [clip["start_seconds"] for clip in entry["clips"]] == [c.start_seconds for c in prediction.clips]
    rows = list(csv.DictReader(io.StringIO(predictions_csv([prediction]))))
    assert [row["label"] for row in rows] == [label for label, _ in prediction.top()]
    assert [int(row["rank"]) for row in rows] == [1, 2]
    assert float(rows[0]["score"]) == pytest.approx(max(prediction.scores), abs=1e-6)


def test_csv_holds_no_formulas(video: Path) -> None:
    prediction = replace(recognizer().predict(video), path="=HYPERLINK(1).mp4")
    (first, *_) = csv.DictReader(io.StringIO(predictions_csv([prediction])))
    assert first["video"] == "'=HYPERLINK(1).mp4"


def test_a_picture_is_drawn(video: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "answer.png"
    recognizer().predict(video).plot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({}, {}),
        ({"num_clips": 1}, {}),
        ({"num_clips": 1}, {"sampling": "segment"}),
        ({"window_seconds": 2.5}, {"sampling": "segment"}),
    ],
)
def test_the_picture_shows_what_the_model_saw(
    options: dict[str, Any], clip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [1.5 + i / 10 for i in range(80)]  # after the sound
    path = draw_plain(tmp_path / "video.mp4", 80, times_seconds=times, with_sound_seconds=3.0)
    prediction = recognizer(**clip).predict(path, **options)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        prediction_module, "save_prediction", lambda *arguments, **_: drawn.update(frames=arguments[0], at=arguments[1])
    )
    prediction.plot(tmp_path / "answer.png")
    numbers = read_stamps(drawn["frames"])
    seen = sorted({number for part in prediction.clips for number in part.frame_numbers})
    assert set(numbers) <= set(seen)
    assert (numbers[0], numbers[-1], len(numbers)) == (seen[0], seen[-1], min(8, len(seen)))
    assert drawn["at"] == pytest.approx([times[number] for number in numbers])
    for part in prediction.clips:
        assert (part.start_seconds, part.end_seconds) == pytest.approx(
            (times[part.frame_numbers[0]], times[part.frame_numbers[-1]])
        )


def test_a_saved_model_answers_as_before(video: Path, tmp_path: Path) -> None:
    model = create_model("tada2d_tiny", num_classes=2, widths=(8, 8, 8, 8), stem_width=8)
    card = ModelCard(
        model="tada2d_tiny",
        options={"widths": [8, 8, 8, 8], "stem_width": 8},
        labels=LABELS,
        clip=ClipSpec(num_frames=4, short_side=16, crop=16),
        trained_from="random weights",
    )
    save_model(tmp_path / "run", model, card)
    before = Recognizer(model, card, device="cpu").predict(video)
    after = load_recognizer(tmp_path / "run", device="cpu").predict(str(video))
    assert after.scores == before.scores
    assert load_recognizer(tmp_path / "run").labels == LABELS


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_recognizer(tmp_path)


def test_videos_are_found_in_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "notes.txt", "deep/c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos([str(tmp_path)]) == [str(tmp_path / n) for n in ("a.MKV", "b.mp4", "deep/c.webm")]
    assert find_videos([f"{tmp_path}/*.mp4", str(tmp_path / "b.mp4")]) == [str(tmp_path / "b.mp4")]
    assert find_videos(["gone.mp4"]) == ["gone.mp4"]  # opening it will say that it is not there
    with pytest.raises(VideoNotFoundError, match=r"no file fits the pattern '.*avi'"):
        find_videos([f"{tmp_path}/*.avi"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoNotFoundError, match=r"no video lies in the folder '.*empty'; videos end in .*\.mp4"):
        find_videos([str(tmp_path / "empty")])
