"""Inputs that count as a video: all forms of one video give the same answer; ambiguous ones are refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_sound import draw_clicking, heard
from drawn_videos import stamped_frames
from hang import HANG_SECONDS
from tada.errors import CorruptVideoError, NotAVideoError, OptionError, VideoError, VideoNotFoundError
from tada.recognition.prediction import Prediction
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.video.inputs import FramesVideo, is_one_video, source_of
from tada.video.reader import open_video
from tada.video.writer import write_video
from told_by_brightness import recognizer, segments


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, stamped_frames(40), fps=10)
    return path


@pytest.fixture(scope="module")
def frames(video: Path) -> Any:
    """What the reader gives of the video, uint8 [40, 48, 64, 3]."""
    with open_video(video) as reader:
        return reader.frames(range(40))


FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda frames: frames,
    "array, colors first": lambda frames: frames.transpose(0, 3, 1, 2),
    "array, backwards twice": lambda frames: frames[::-1].copy()[::-1],
    "array that may not be written": lambda frames: np.frombuffer(frames.tobytes(), np.uint8).reshape(frames.shape),
    "tensor": torch.from_numpy,
    "tensor, colors first": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "pictures": lambda frames: [Image.fromarray(frame) for frame in frames],
    "tuple of pictures": lambda frames: tuple(Image.fromarray(frame) for frame in frames),
    "list of arrays": list,
    "list of tensors, colors first": lambda frames: list(torch.from_numpy(frames).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", [recognizer, segments])
def test_frames_in_memory_have_the_answer_of_their_file(
    form: str, model: Callable[[], Recognizer], video: Path, frames: Any
) -> None:
    of_file = model().predict(video)
    found = model().predict(FORMS[form](frames), fps=10)
    assert found.scores == of_file.scores
    assert found.clips == of_file.clips
    assert found.path.startswith("<")


def test_bytes_and_open_files_have_the_answer_of_their_file(video: Path, tmp_path: Path) -> None:
    model, content = recognizer(), video.read_bytes()
    expected = model.predict(str(video))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"before" + content))
    with video.open("rb") as opened, gzip.open(tmp_path / "a.gz") as packed:
        packed.read(6)  # a file is read from where it stands
        forms = [content, bytearray(content), memoryview(content), io.BytesIO(content), opened, packed]
        for form, name in zip(forms, ["<bytes>"] * 3 + ["<file>", str(video), str(tmp_path / "a.gz")], strict=True):
            found: Prediction = model.predict(form)  # type: ignore[assignment]
            assert (found.scores, found.clips, found.path) == (expected.scores, expected.clips, name)


def test_what_lies_in_a_pipe_is_read_once(video: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: _write(writing, video.read_bytes()))
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        prediction = segments().predict(pipe)
        writer.join()
        assert prediction.label == segments().predict(video).label
        with pytest.raises(VideoNotFoundError, match=r"'<file>' can be read only once: save it"):
            prediction.plot(tmp_path / "a.png")
    with pytest.raises(VideoNotFoundError, match=r"the file '<file>' has been closed since: predict its path"):
        prediction.plot(tmp_path / "a.png")


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def test_a_list_gives_a_list_and_a_generator_one_after_the_other(video: Path, frames: Any) -> None:
    model = segments()
    given: list[Any] = [video, frames, video.read_bytes(), list(map(Image.fromarray, frames))]
    for several in (given, tuple(given)):
        assert [p.path for p in model.predict(several)] == [str(video), "<array 1>", "<bytes 2>", "<images 3>"]
    assert model.predict([]) == []
    assert [p.path for p in model.predict({str(video): 1}.keys())] == [str(video)]
    assert [p.path for p in model.predict(np.array([str(video)]))] == [str(video)]
    generated = model.predict(one for one in given)
    assert not isinstance(generated, list)
    assert [p.path for p in generated] == [str(video), "<array 1>", "<bytes 2>", "<images 3>"]
    assert [p.path for p in model.predict_all(frames) if isinstance(p, Prediction)] == ["<array>"]  # one is taken, too


def test_a_generators_answer_comes_before_its_next_video(video: Path) -> None:
    """As of a camera, which has the next clip only later."""
    asked = threading.Event()

    def clips() -> Iterator[Path]:
        yield video
        assert asked.wait(HANG_SECONDS), "the first answer waits for the second video"
        yield video

    answers = recognizer().predict(clips())
    first = next(answers)
    asked.set()
    assert first == next(answers)
    assert list(answers) == []


def test_a_fault_of_a_generator_is_told_as_it_is(video: Path) -> None:
    def clips() -> Iterator[Path]:
        yield video
        raise KeyError("no more")

    answers = segments().predict(clips())
    assert next(answers).path == str(video)
    with pytest.raises(KeyError, match="no more"):
        next(answers)


def test_frames_need_their_rate_where_time_counts(video: Path, frames: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"<array> does not say when .* counted at 10 frames per second: give fps"):
        recognizer().predict(frames)
    with pytest.raises(OptionError, match=r"<array 1> does not say .* and window_seconds counts seconds: give fps"):
        segments().predict([video, frames], window_seconds=1.0)
    for fps in (0, -1.0, float("nan"), float("inf"), "10"):
        with pytest.raises(OptionError, match="should be a positive number of frames per second"):
            segments().predict(frames, fps=fps)  # type: ignore[call-overload]
    of_file = segments().predict(video)
    found = segments().predict(frames)
    assert found.scores == of_file.scores
    assert [clip.frame_numbers for clip in found.clips] == [clip.frame_numbers for clip in of_file.clips]
    assert found.as_dict()["clips"][0]["start_seconds"] is None
    assert found.to_rows(1, clips=True)[0]["end_seconds"] is None
    assert found.clips[0].when() == "frames 5-35"
    found.plot(tmp_path / "without times.png")
    with pytest.raises(OptionError, match="<array> does not say when its frames are shown: give predict their fps"):
        found.save_video(tmp_path / "a.mp4")
    every_fifth = recognizer(fps=None)  # counts the video's own frames
    assert every_fifth.predict(frames).scores == every_fifth.predict(video).scores


FAULTS: dict[str, tuple[Any, str]] = {
    "number": (3, "a video is a path, bytes, .* not an int$"),
    "nothing": (None, "not a NoneType"),
    "mapping": ({"a": 1}, "not a dict"),
    "float": (torch.rand(4, 3, 8, 8), r"<tensor> is float32 \[4, 3, 8, 8\]; .*: scale what is from 0 to 1 by 255"),
    "half": (torch.rand(4, 3, 8, 8).bfloat16(), "<tensor> is bfloat16"),
    "integers": (np.zeros((4, 8, 8, 3), int), "<array> is int64 .*: make it uint8"),
    "batch": (
        np.zeros((2, 4, 8, 8, 3), np.uint8),
        r"<array> is a batch, \[2, .*\]: give its videos one by one",
    ),
    "picture": (np.zeros((8, 8, 3), np.uint8), r"<array> is one picture, .* frames\[None\] makes a video"),
    "gray": (np.zeros((4, 8, 8), np.uint8), r"<array> has no colors, .* np.repeat"),
    "gray, one channel": (np.zeros((4, 8, 8, 1), np.uint8), "repeat its one channel three times"),
    "alpha": (np.zeros((5, 8, 8, 4), np.uint8), "leave out alpha"),
    "colors before time": (np.zeros((3, 5, 8, 8), np.uint8), r"permute it by \(1, 2, 3, 0\)"),
    "no layout": (np.zeros((5, 8, 8, 7), np.uint8), "rearrange it"),
    "flat": (np.zeros(8, np.uint8), r"<array> is \[8\]; a video in memory is uint8"),
    "three frames, colors where?": (np.zeros((3, 3, 8, 8), np.uint8), r"may be \[T, 3, H, W\] or \[3, T, H, W\]"),
    "three rows": (np.zeros((5, 3, 8, 3), np.uint8), r"may be \[T, 3, H, W\] or \[T, H, W, 3\]"),
    "no frames": (np.zeros((0, 8, 8, 3), np.uint8), "a video has at least one frame"),
    "objects": (np.zeros((2, 8, 8, 3), object), "<array> is object"),
    "one picture": (Image.new("RGB", (8, 8)), "one picture is no video: give a list of them"),
    "sizes": ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], r"these are of \(8, 8\), \(8, 9\): resize them"),
    "shapes": ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "<frames>: its frames are of several"),
    "deep": ([Image.new("I;16", (8, 8))], "pictures of mode I;16 have more than 8 bits"),
    "text": (io.StringIO("a.mp4"), "the file '<file>' is open as text: open it with mode 'rb'"),
    "picture among videos": (["a.mp4", np.zeros((8, 8, 3), np.uint8)], "<array 1> is one picture"),
    "list among videos": (["a.mp4", ["b.mp4"]], "not a list"),
    "on meta": (torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="meta"), "<tensor> cannot be read as an array"),
    "sparse": (torch.zeros(2, 8, 8, 3, dtype=torch.uint8).to_sparse(), r"<tensor> cannot be read .*: give a dense one"),
    "pattern": ("nowhere/*.mp4", r"is a pattern, or no file: .* predict\(sorted\(glob\.glob\('nowhere/\*\.mp4'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_video_or_unclear_is_refused_in_a_line(fault: str) -> None:
    given, message = FAULTS[fault]
    with pytest.raises(OptionError, match=message) as raised:
        segments().predict(given)
    assert "\n" not in str(raised.value)


def test_files_of_frames_are_a_video_and_a_folder_of_videos_is_none(video: Path, frames: Any, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    files = [tmp_path / "frames" / f"{name}.png" for name in "zyx"]  # in the order in which they are given
    for file, frame in zip(files, frames, strict=False):
        Image.fromarray(frame).save(file)
    found = segments().predict([str(file) for file in files])
    assert isinstance(found, Prediction)
    assert found.path == "<pictures>"
    assert found.scores == segments().predict(frames[:3]).scores  # type: ignore[attr-defined]
    pickle.loads(pickle.dumps(found)).plot(tmp_path / "a.png")
    with pytest.raises(OptionError, match=r"z.png' is a picture, and no video: give a list of them"):
        segments().predict(files[0])
    for folder in (video.parent, tmp_path):
        with pytest.raises(OptionError, match=r"is a folder of videos: give them in a list, as predict\(sorted"):
            segments().predict(folder)


def test_closed_files_and_rates_of_files_are_refused(video: Path, tmp_path: Path) -> None:
    with video.open("rb") as opened:
        pass
    with pytest.raises(OptionError, match=r"the file '.*a.mp4' is closed: give its path"):
        segments().predict(opened)
    for given in (video, video.read_bytes(), io.BytesIO(b"x")):
        with pytest.raises(OptionError, match="has times of its own: leave out fps"):
            segments().predict(given, fps=30)
    with pytest.raises(OptionError, match="is open as text"), video.open(encoding="latin-1") as text:
        segments().predict(text)  # type: ignore[call-overload]


def test_faults_of_bytes_name_what_was_given(video: Path) -> None:
    content = video.read_bytes()
    with pytest.raises(NotAVideoError, match=r"^<bytes> is not a video in a format") as raised:
        segments().predict(b"no video, but some text")
    assert raised.value.path == "<bytes>"
    with pytest.raises(VideoError, match=r"^<bytes 1>.* copy or download it again"):
        segments().predict([content, content[: len(content) // 2]])
    with pytest.raises(VideoError, match=r"^<bytes> is empty"):
        segments().predict(b"")
    found = list(segments().predict_all([content, b"x", content]))
    assert [type(answer).__name__ for answer in found] == ["Prediction", "NotAVideoError", "Prediction"]


def test_pictures_with_alpha_stand_on_black_and_broken_ones_are_named(tmp_path: Path) -> None:
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    palette = Image.new("P", (8, 8))
    with source_of([half, half]).open() as opened:
        assert opened.frames([1])[0, 0, 0].tolist() == pytest.approx([100, 50, 25], abs=1)
    with source_of([palette, Image.new("L", (8, 8), 7)]).open() as opened:
        assert opened.frames([1, 1]).tolist() == np.full((2, 8, 8, 3), 7).tolist()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "a.png") as broken, pytest.raises(CorruptVideoError, match=r"a.png': picture 0 cannot"):
        segments().predict([broken])


def test_frames_in_memory_are_explained_drawn_and_saved(motion_videos: Path, tmp_path: Path) -> None:
    model = load_recognizer("tada2d_tiny_motion", device="cpu")
    file = sorted(motion_videos.rglob("*.mp4"))[0]
    with open_video(file) as reader:
        frames = reader.frames(range(reader.info.num_frames))
    of_file = model.predict(file).explain()
    for given, fps in ((frames, 8), (file.read_bytes(), None)):
        prediction: Prediction = model.predict(given, fps=fps)  # type: ignore[call-overload]
        why = prediction.explain()
        assert torch.equal(why.heat, of_file.heat)
        assert why.times_seconds == of_file.times_seconds
        prediction.plot(str(tmp_path / "p.png"))
        why.plot(str(tmp_path / "h.png"))
        prediction.save_video(str(tmp_path / "v.mp4"), overwrite=True)
        with open_video(tmp_path / "v.mp4") as written:
            assert written.times_seconds.tolist() == pytest.approx([i / 8 for i in range(len(frames))])
    without_times = model.explain(list(frames))
    assert without_times.as_dict()["times_seconds"] == [None] * 8
    without_times.save(tmp_path / "why")
    with pytest.raises(OptionError, match="one video is explained at a time"):
        model.explain([str(file)])  # type: ignore[arg-type]


def test_the_sound_of_bytes_is_kept(tmp_path: Path) -> None:
    source = draw_clicking(tmp_path / "a.mp4", "aac")
    segments().predict(source.read_bytes()).save_video(tmp_path / "b.mp4")
    assert heard(tmp_path / "b.mp4") == pytest.approx(heard(source), abs=0.003)


def test_frames_of_a_generator_are_let_go_and_do_not_go_into_pickles(frames: Any, video: Path, tmp_path: Path) -> None:
    answers = segments().predict(one for one in (frames, frames, video))
    first = next(answers)
    first.plot(tmp_path / "a.png")  # while it is the last
    next(answers)
    with pytest.raises(VideoError, match="the frames of <array 0> are not kept"):
        first.plot(tmp_path / "b.png")
    of_file = next(answers)
    assert next(answers, None) is None
    of_file.plot(tmp_path / "c.png")  # a file stays
    kept = segments().predict(frames, fps=10)
    assert pickle.loads(pickle.dumps(kept)) == kept
    assert len(pickle.dumps(kept)) < 5000
    with pytest.raises(VideoError, match="do not go along where an answer is pickled"):
        pickle.loads(pickle.dumps(kept)).plot(tmp_path / "d.png")
    pickle.loads(pickle.dumps(of_file)).plot(tmp_path / "d.png")
    kept.plot(tmp_path / "e.png")


def test_what_is_one_video() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    for one in ("a", Path("a"), b"", io.BytesIO(), picture[None], [picture], [Image.new("L", (2, 2))], None, 3, {}):
        assert is_one_video(one)
    for several in (["a"], [], [picture, "a"], [picture[None]], iter([picture]), {"a"}, np.array(["a"])):
        assert not is_one_video(several)


def test_frames_in_memory_are_read_as_those_of_a_file(video: Path, frames: Any) -> None:
    own = FramesVideo(frames, frames.shape[1:3], fps=10.0, name="a")
    with open_video(video) as reader:
        assert own.times_seconds.tolist() == pytest.approx(reader.times_seconds.tolist())
        for part in ("width", "height", "num_frames", "start_seconds", "rotation_degrees", "pixel_aspect"):
            assert getattr(own.info, part) == getattr(reader.info, part)
        assert own.info.duration_seconds == pytest.approx(reader.info.duration_seconds)
        for indices in ([3, 1, 1, 39], list(range(40)), []):
            assert np.array_equal(own.frames(indices), reader.frames(indices))
            small = own.frames(indices, shrink=lambda some: some[:, ::2, ::2])
            if indices:
                assert np.array_equal(small, reader.frames(indices)[:, ::2, ::2])
        seconds = [0.0, 0.1, 3.95, 4.0]
        assert np.array_equal(own.frames_played_at(seconds), reader.frames_played_at(seconds))
        assert len(own) == len(reader) == 40
        for (a, one), (b, other) in zip(own, reader, strict=True):
            assert a == pytest.approx(b)
            assert np.array_equal(one, other)
