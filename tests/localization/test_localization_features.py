"""Features: their times, their files, the published forms, and clips that are cut by time."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drawn_videos import draw, draw_plain, draw_variable_rate, read_stamps, stamped_frames, truncate
from tada.errors import DataError, OptionError, TooLargeError
from tada.localization.annotations.video_names import videos_by_name
from tada.localization.features.extraction import backbone_hash, extract, extract_video
from tada.localization.features.folder import (
    FeatureCard,
    FeatureFolder,
    VideoFeatures,
    write_features,
)
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.importing import count_between, import_features, read_feature_file
from tada.models import create_model
from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows, clips_of
from tada.video.writer import write_video

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=16, crop=16)
OTHER_PIXELS = replace(SPEC, mean=(0.3, 0.5, 0.9), std=(0.05, 0.2, 0.4))
GRID = FeatureGrid(start_seconds=0.25, stride_seconds=0.5, window_seconds=1.0)


# -- times ------------------------------------------------------------------------------------------------------------


def test_a_grid_goes_there_and_back() -> None:
    index = np.linspace(-3, 40, 87)
    np.testing.assert_allclose(GRID.index(GRID.seconds(index)), index, atol=1e-12)
    assert GRID.seconds(0.0) == 0.25
    hacs = FeatureGrid.of_frames(fps=30, stride=16, clip_frames=64)
    assert (hacs.start_seconds, hacs.stride_seconds) == (pytest.approx(32 / 30), pytest.approx(16 / 30))
    epic = FeatureGrid.of_frames(fps=60, stride=8, clip_frames=64, offset=7)
    assert [count_between(epic, 5.0 * i, 5.0 * i + 5) for i in range(4)] == [37, 38, 37, 38]  # as released


def test_a_resized_grid_is_that_of_interpolated_features() -> None:
    """Features that are their own time stay so, whatever length they are resized to."""
    times = torch.from_numpy(GRID.seconds(np.arange(40.0)))
    for length in (20, 40, 64):
        resized = nn.functional.interpolate(times[None, None], length, mode="linear", align_corners=False)[0, 0]
        expected = GRID.resized(40, length).seconds(np.arange(float(length)))
        inner = slice(2, -2)  # at the edges nothing lies outside to be interpolated with
        np.testing.assert_allclose(resized[inner], expected[inner], atol=1e-9)


def test_features_that_contradict_the_duration_are_refused() -> None:
    grid = FeatureGrid.of_frames(fps=30, stride=4, clip_frames=16)
    for count in (1620, 1624, 1622):  # within a clip of each other
        grid.check_length(count, 216.5, "f")
    with pytest.raises(DataError, match=r"f: 812 features, expected about 1622 for 216.5 s .* like one every 0.2666 s"):
        grid.check_length(812, 216.5, "f")
    with pytest.raises(DataError, match=r"look like one every 0\.06666 s"):
        grid.check_length(3248, 216.5, "f")
    with pytest.raises(
        OptionError, match=r"features at 0 s, every 0 s, of 1 s each: all should be numbers, the second"
    ):
        FeatureGrid(start_seconds=0, stride_seconds=0, window_seconds=1)
    for wrong in ({"fps": 0}, {"stride": -1}, {"clip_frames": float("nan")}):
        with pytest.raises(OptionError, match=r"(fps|stride|clip_frames)=.* should be a positive number"):
            FeatureGrid.of_frames(**{"fps": 30, "stride": 4, "clip_frames": 16, **wrong})


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_are_cut_by_time_and_each_frame_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_plain(tmp_path / "a.mp4", 60, fps=20)  # 3 s
    settings = SlidingWindows(window_seconds=1.0, stride_seconds=0.25)
    spec = replace(SPEC, num_frames=5, short_side=48, crop=48)
    with open_video(path) as reader:
        decoded: list[int] = []
        original = reader.frames
        monkeypatch.setattr(
            reader, "frames", lambda indices, **how: decoded.extend(indices) or original(indices, **how)
        )
        clips = list(clips_of(reader, spec, settings, range(settings.count(3.0))))
    assert len(decoded) == len(set(decoded)) <= 60
    assert len(clips) == 12
    assert clips[0].shape == (1, 5, 48, 48, 3)
    # Clip 4: its middle 1.125 s, its frames at 0.725, 0.925, ... 1.525 s of 20 a second.
    with open_video(path) as reader:
        expected = reader.frames([14, 18, 22, 26, 30])[:, :, 8:56]
    np.testing.assert_array_equal(clips[4][0], expected)
    # The first reaches 0.375 s before the video: its frames there are the first one.
    np.testing.assert_array_equal(clips[0][0, 0], clips[0][0, 1])


def test_a_varying_frame_rate_changes_no_time(tmp_path: Path) -> None:
    times = [*np.arange(20) / 20, *(1 + np.arange(60) / 60)]
    path = draw(tmp_path / "v.mp4", stamped_frames(80, width=48, height=48), times_seconds=times)
    settings = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    with open_video(path) as reader:
        clips = list(clips_of(reader, replace(SPEC, num_frames=1, short_side=48, crop=48), settings, range(10)))
    shown = read_stamps([clip[0, 0].numpy() for clip in clips])
    assert [times[frame] for frame in shown] == pytest.approx([0.1 + 0.2 * i for i in range(10)], abs=0.051)


def test_settings_are_filled_in() -> None:
    interval = replace(SPEC, sampling="interval", num_frames=8, interval=8, fps=30.0)
    settings = SlidingWindows.for_clips(interval)
    assert (settings.window_seconds, settings.stride_seconds) == (pytest.approx(64 / 30), pytest.approx(8 / 15))
    short = SlidingWindows.for_clips(SPEC, segment_seconds=[1.0, 2.0, 9.0])
    assert (short.window_seconds, short.stride_seconds) == (2.0, pytest.approx(2 / 15))
    with pytest.raises(OptionError, match="give --window-seconds"):
        SlidingWindows.for_clips(SPEC)
    # No feature between two frames; and a point in time shows nothing.
    brief = SlidingWindows.for_clips(SPEC, segment_seconds=[0.1, 0.1, 2.0], frame_seconds=0.04)
    assert (brief.window_seconds, brief.stride_seconds) == (0.1, 0.04)
    points = [1e-3, 2e-3, 3e-3, 2.0, 0.002]
    with pytest.raises(
        OptionError, match=r"half of the segments last 0.002 s or less, and one frame of the videos 0.04 s"
    ):
        SlidingWindows.for_clips(SPEC, segment_seconds=points, frame_seconds=0.04)
    given = SlidingWindows.for_clips(SPEC, window_seconds=1.0, segment_seconds=points, frame_seconds=0.04)
    assert (given.window_seconds, given.stride_seconds) == (1.0, pytest.approx(2 / 15))
    with pytest.raises(OptionError, match="stride_seconds=0 should be a positive number"):
        SlidingWindows(window_seconds=1.0, stride_seconds=0)


def recognizer(**options: Any) -> Recognizer:
    torch.manual_seed(options.pop("seed", 0))
    model = create_model("tada2d_tiny", num_classes=2, widths=(8, 8, 8, 8), stem_width=8, start="image")
    clip = replace(SPEC, **options)
    return Recognizer(
        model, ModelCard(model="tada2d_tiny", labels=("a", "b"), clip=clip, trained_from="thought"), device="cpu"
    )


def test_features_are_those_of_the_network(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mp4", 40, fps=20)
    own = recognizer()
    settings = SlidingWindows(window_seconds=0.8, stride_seconds=0.4, num_crops=3)
    found = extract_video(own, path, settings, batch_size=2)
    assert found.features.shape == (5, 3 * 8)
    assert found.scores["action"].shape == (5, 2)
    assert found.scores["action"].sum(1) == pytest.approx(1, abs=1e-5)
    assert found.card.duration_seconds == pytest.approx(2.0)
    assert found.card.backbone == backbone_hash(own.model)
    again = extract_video(own, path, settings, batch_size=5)
    np.testing.assert_allclose(again.features, found.features, atol=1e-5)


def test_a_video_that_claims_to_last_for_years_is_refused(tmp_path: Path) -> None:
    """A few pictures, of which each would be the frames of millions of features."""
    path = draw_variable_rate(tmp_path / "a.mkv", [0.0, 0.1, 0.2, 500_000.0])
    settings = SlidingWindows(window_seconds=0.8, stride_seconds=0.4)
    message = r"a.mkv' lasts 500000 s .* which gives 12\d+ features, and at most 500000 are made of a video; cut it"
    with pytest.raises(TooLargeError, match=message):
        extract_video(recognizer(), path, settings)


class Brightness(nn.Module):
    """Features [mean of the first half, mean of the second half] of a clip, from 0 to 1."""

    def __init__(self, spec: ClipSpec = SPEC) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.mean, self.std = (torch.tensor(values)[:, None] for values in spec.normalization)

    def features(self, clips: Tensor) -> Tensor:
        frames = (clips.mean((3, 4)) * self.std + self.mean).mean(1)
        half = frames.shape[1] // 2
        return torch.stack([frames[:, :half].mean(1), frames[:, half:].mean(1)], dim=1)


def test_an_event_lies_where_its_features_say(tmp_path: Path) -> None:
    """Bright from 3.2 to 5.6 s: the features cross one half there, to less than half a step."""
    frames = np.zeros((100, 16, 16, 3), np.uint8)
    frames[32:56] = 255
    write_video(tmp_path / "event.mp4", frames, fps=10)
    card = ModelCard(model="tada2d_tiny", labels=("a", "b"), clip=OTHER_PIXELS, trained_from="thought")
    settings = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    found = extract_video(Recognizer(Brightness(OTHER_PIXELS), card, device="cpu"), tmp_path / "event.mp4", settings)
    assert found.features.min() > -0.05  # as if normalized by the clip's numbers
    assert found.features.max() < 1.05
    assert found.card.settings["mean"] == [0.3, 0.5, 0.9]
    level = found.features.mean(1)
    grid = found.card.grid
    up = int(np.argmax(level > 0.5)) - 0.5
    down = len(level) - int(np.argmax(level[::-1] > 0.5)) - 0.5
    assert grid.seconds(up) == pytest.approx(3.2, abs=grid.stride_seconds / 2 + 1e-6)
    assert grid.seconds(down) == pytest.approx(5.6, abs=grid.stride_seconds / 2 + 1e-6)


# -- our files --------------------------------------------------------------------------------------------------------


def some(name: str = "a", *, count: int = 20, seed: int = 0, **changes: Any) -> VideoFeatures:
    features = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    card = FeatureCard(
        video=name,
        duration_seconds=count / 2,
        grid=GRID,
        num_features=count,
        channels=4,
        backbone="ab" * 32,
        settings={"stride_seconds": 0.5},
    )
    return VideoFeatures(card=replace(card, **changes), features=features, scores={"action": features[:, :2]})


def test_written_features_are_read_back(tmp_path: Path) -> None:
    write_features(tmp_path, some("a.b"))
    write_features(tmp_path, some("c", seed=1))
    folder = FeatureFolder(tmp_path)
    assert sorted(folder.cards) == ["a.b", "c"]
    found = folder.read("c")
    assert found.card == some("c", seed=1).card
    np.testing.assert_allclose(found.features, some(seed=1).features, atol=2e-3)  # float16
    assert found.scores.keys() == {"action"}
    with pytest.raises(DataError, match="has no features of the video 'd'"):
        folder.read("d")
    assert not list(tmp_path.glob("*.part"))


def test_features_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path, some("a"))
    write_features(tmp_path, some("b", backbone="cd" * 32))
    with pytest.raises(DataError, match=r"two kinds: 'a' \(backbone abababab.* and 'b' \(backbone cdcdcdcd"):
        FeatureFolder(tmp_path)


def test_damaged_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no features with their cards; make some with `tada extract`"):
        FeatureFolder(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    with pytest.raises(DataError, match="bring published ones into our form with `tada localize import`"):
        FeatureFolder(tmp_path)
    write_features(tmp_path, some("a"))
    truncate(tmp_path / "a.npz", 0.5)
    with pytest.raises(DataError, match=r"a.npz' is damaged .* extract the video again"):
        FeatureFolder(tmp_path).read("a")
    write_features(tmp_path, some("a"))
    card = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(card | {"backbone": "another"}))
    with pytest.raises(DataError, match="was changed by hand: its key does not fit"):
        FeatureFolder(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="is no card of features"):
        FeatureFolder(tmp_path)
    broken = some("b")
    broken.features[3, 1] = np.nan
    with pytest.raises(DataError, match="the features of 'b' are not all finite"):
        write_features(tmp_path, broken)
    still = replace(some("c"), features=np.ones((20, 4), np.float32))
    with pytest.raises(DataError, match="the features of 'c' are the same at all times"):
        write_features(tmp_path, still)


def test_an_extraction_goes_on_where_it_was_and_tells_what_it_could_not_read(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b", "broken"):
        draw_plain(videos / f"{name}.mp4", 30, fps=20, width=32, height=32)
    # Faults in the middle of the stream: it opens, and fails on the way.
    content = bytearray((videos / "broken.mp4").read_bytes())
    start = content.index(b"mdat") + 1500
    content[start : start + 600] = bytes(600)
    (videos / "broken.mp4").write_bytes(content)
    files = videos_by_name([str(path) for path in sorted(videos.iterdir())])
    settings = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    out = tmp_path / "features"
    first = extract(recognizer(), {"a": files["a"]}, out, settings, show_progress=False)
    assert first.written == ("a",)
    before = (out / "a.npz").stat().st_mtime_ns
    done = extract(recognizer(), files, out, settings, show_progress=False)
    assert (done.kept, done.written) == (("a",), ("b",))
    assert [Path(failure.path).name for failure in done.failures] == ["broken.mp4"]
    assert "broken.mp4" in done.failures[0].message
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.npz", "b.json", "b.npz"]
    assert (out / "a.npz").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds features of another stride_seconds; extract into another folder"):
        extract(recognizer(), files, out, replace(settings, stride_seconds=0.1), show_progress=False)
    with pytest.raises(DataError, match="holds features of another backbone"):
        extract(recognizer(seed=1), files, out, settings, show_progress=False)


# -- published forms --------------------------------------------------------------------------------------------------


def test_published_forms_are_read(tmp_path: Path) -> None:
    import h5py

    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "a.npy", expected)
    np.savez(tmp_path / "b.npz", feats=expected, other=np.zeros(3))
    torch.save({"x": torch.from_numpy(expected)}, tmp_path / "c.pt")
    save_file({"x": torch.from_numpy(expected)}, tmp_path / "d.safetensors")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["group/features"] = expected
    rows = ["f0,f1,f2", *(",".join(map(str, row)) for row in expected)]
    (tmp_path / "f.csv").write_text("\n".join(rows))
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_feature_file(file), expected, err_msg=file.name)


def test_pickles_are_read_only_when_allowed(tmp_path: Path) -> None:
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    torch.save(expected, tmp_path / "a.pkl")  # as TAdaConv's authors wrote theirs
    with (tmp_path / "b.pkl").open("wb") as file:
        pickle.dump(expected, file)
    torch.save(expected, tmp_path / "c.pt")
    for name in ("a.pkl", "b.pkl", "c.pt"):
        with pytest.raises(DataError, match="--allow-pickle"):
            read_feature_file(tmp_path / name)
        np.testing.assert_array_equal(read_feature_file(tmp_path / name, allow_pickle=True), expected)


def test_what_is_no_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    (tmp_path / "x.txt").touch()
    (tmp_path / "h.h5").touch()
    for name, message in (
        ("two.npz", "it holds a, b, and none is called 'feats'"),
        ("flat.npy", r"holds an array of \[3\]; features are \[T, C\]"),
        ("nan.npy", "not finite numbers"),
        ("x.txt", "features are read from .npy"),
        ("h.h5", "cannot be read as features"),
    ):
        with pytest.raises(DataError, match=message):
            read_feature_file(tmp_path / name)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"HDF5 needs the package h5py: pip install 'tada-video\[hdf5\]'"):
        read_feature_file(tmp_path / "h.h5")


def test_five_second_chunks_are_put_together(tmp_path: Path) -> None:
    source = tmp_path / "epic"
    source.mkdir()
    grid = FeatureGrid.of_frames(fps=60, stride=8, clip_frames=64, offset=7)
    times = grid.seconds(np.arange(90.0))
    rows = np.stack([times, -times], axis=1).astype(np.float32)  # each feature is its own time
    np.save(source / "P01_13_0000000_0005000.npy", rows[:37])
    np.save(source / "P01_13_0005000_0010000.npy", rows[37:75])
    np.save(source / "P01_13_0010000_0011500.npy", rows[75:87])  # one row too many: 11 middles lie in it
    np.save(source / "other.npy", rows[:60])
    cards = import_features(source, tmp_path / "out", grid, durations={"P01_13": 11.5}, described_as="epic")
    assert {card.video: card.num_features for card in cards} == {"P01_13": 86, "other": 60}
    found = FeatureFolder(tmp_path / "out").read("P01_13")
    np.testing.assert_allclose(found.features[:, 0], times[:86], atol=1e-2)
    (source / "P01_13_0005000_0010000.npy").unlink()
    with pytest.raises(DataError, match=r"starts at 10.0 s, the chunk before ends at 5.0 s; one is missing"):
        import_features(source, tmp_path / "out", grid, described_as="epic")
    np.save(source / "P01_13_0005000_0010000.npy", rows[37:60])
    with pytest.raises(DataError, match=r"has 23 features, while 38 have their middles in 5\.0 to 10\.0 s"):
        import_features(source, tmp_path / "out", grid, described_as="epic")
    (source / "P01_13_0005000_0010000.npy").unlink()
    (source / "P01_13_0010000_0011500.npy").unlink()
    with pytest.raises(DataError, match=r"features of 'other' .* 60 features, expected about"):
        import_features(
            source, tmp_path / "o", replace(grid, window_seconds=0.1), durations={"other": 99.0}, described_as=""
        )


def epic_scores(folder: Path, name: str, count: int, *, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Logits of three crops, as torch.save writes them into a .pkl."""
    rng = np.random.default_rng(seed)
    logits = {f"{what}_class": rng.normal(size=(count, 3 * k)).astype(np.float32) for what, k in SIZES.items()}
    folder.mkdir(exist_ok=True)
    torch.save(logits, folder / f"{name}.pkl")
    return logits


SIZES = {"verb": 97, "noun": 300}


def test_epic_kitchens_scores_lie_beside_its_features(tmp_path: Path) -> None:
    """Chunks in a folder for each split, as published; scores of the validation's alone."""
    grid = FeatureGrid.of_frames(fps=60, stride=8, clip_frames=64, offset=7)
    rng = np.random.default_rng(0)
    source, scores = tmp_path / "epic", tmp_path / "scores"
    for split, name, count in (
        ("train", "P01_01_0000000_0005000", 37),
        ("val", "P01_11_0000000_0005000", 37),
        ("val", "P01_11_0005000_0006000", 8),
    ):
        (source / f"features_s8_fps60_320_-1_{split}").mkdir(parents=True, exist_ok=True)
        file = source / f"features_s8_fps60_320_-1_{split}" / f"{name}.npy"
        np.save(file, rng.normal(size=(count, 6)))
    first = epic_scores(scores, "P01_11_0000000_0005000", 37, seed=1)
    epic_scores(scores, "P01_11_0005000_0006000", 8, seed=2)
    with pytest.raises(DataError, match=r"P01_11_0000000_0005000.pkl' is a pickle, .* --allow-pickle"):
        import_features(source, tmp_path / "o", grid, described_as="TAda2D", scores=scores)
    cards = import_features(source, tmp_path / "out", grid, described_as="TAda2D", scores=scores, allow_pickle=True)
    assert {card.video: list(card.score_labels) for card in cards} == {"P01_01": [], "P01_11": ["verb", "noun"]}
    found = FeatureFolder(tmp_path / "out").read("P01_11")
    assert found.scores["noun"].shape == (45, 300)
    assert found.card.score_labels["verb"][:3] == ["0", "1", "2"]
    crops = first["verb_class"][5].reshape(3, 97).astype(np.float64)
    expected = np.mean([np.exp(crop) / np.exp(crop).sum() for crop in crops], axis=0)
    np.testing.assert_allclose(found.scores["verb"][5], expected, rtol=2e-3)  # sixteen bits


def test_faults_of_epic_kitchens_scores(tmp_path: Path) -> None:
    source, scores = tmp_path / "epic", tmp_path / "scores"
    source.mkdir()
    np.save(source / "P01_11.npy", np.random.default_rng(0).normal(size=(8, 6)))

    def run() -> None:
        import_features(source, tmp_path / "out", GRID, described_as="", scores=scores, allow_pickle=True)

    epic_scores(scores, "P01_12", 8, seed=0)
    with pytest.raises(DataError, match=r"none of the scores in .* is called as a file of features, such as 'P01_11'"):
        run()
    epic_scores(scores, "P01_11", 7, seed=0)
    with pytest.raises(DataError, match=r"scores of 'P01_11' in .* 7 rows, while there are 8 features"):
        run()
    torch.save({"verb_class": np.zeros((8, 97))}, scores / "P01_11.pkl")
    with pytest.raises(DataError, match="scores are a mapping of verb_class and noun_class to arrays"):
        run()
    torch.save({"verb_class": np.zeros((8, 90)), "noun_class": np.zeros((8, 300))}, scores / "P01_11.pkl")
    with pytest.raises(DataError, match="verb_class has 90 columns, no multiple of 97 classes"):
        run()


def test_a_backbone_of_verbs_and_nouns_scores_both(tmp_path: Path) -> None:
    path = draw_plain(tmp_path / "a.mp4", 20, fps=20)
    own = recognizer()
    own.card = replace(own.card, labels=("open", "door"), head_sizes={"verb": 1, "noun": 1})
    found = extract_video(own, path, SlidingWindows(window_seconds=0.8, stride_seconds=0.4))
    assert found.card.score_labels == {"verb": ["open"], "noun": ["door"]}
    np.testing.assert_allclose(found.scores["noun"], 1.0)  # a softmax for each
