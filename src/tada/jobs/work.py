"""What a job does with each video: decode its clips, let a network see them, and make a row of results.

The decoding and the network run in different processes, maybe on different machines, so that each kind of work is a
small picklable value: its settings, and how its three parts are done.

Shapes: N clips, V views of a clip, T frames, C values of a clip, K classes, D features of a clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tada.data.identity import sha256_of
from tada.errors import CheckpointError, OptionError, VideoError
from tada.jobs.videos import JobVideo
from tada.recognition.prediction import round_or_none
from tada.recognition.video_clips import ClipChoice, VideoClip, decode_clips
from tada.system.files import absolute_path, scratch_folder
from tada.system.object_store import ObjectStore, is_address, masked
from tada.video.inputs import VideoSource, source_at
from tada.video.sampling import ClipSpec
from tada.video.sliding_windows import SlidingWindows, clips_of

if TYPE_CHECKING:
    import pyarrow as pa

    from tada.recognition.recognizer import Recognizer

Views = NDArray[np.uint8]
Values = NDArray[np.float32]


class Seen(NamedTuple):
    """A clip without its pixels, and what the network made of it."""

    clip: VideoClip
    values: Values
    """[C]"""


class Result(NamedTuple):
    """The result for a video: a row, and for features their arrays."""

    row: dict[str, Any]
    arrays: dict[str, Values]


class Work(Protocol):
    """A kind of work."""

    @property
    def source(self) -> Source: ...

    @property
    def model(self) -> Network: ...

    def decode(self, video: JobVideo) -> Iterator[VideoClip]:
        """Decode a video's clips, in order; an unreadable video ends with a clip that holds its error."""

    def network(self) -> Callable[[Views], Values]:
        """Load the network: clips uint8 [N, V, T, H, W, 3] -> values [N, C]."""

    def result(self, video: JobVideo, seen: Sequence[Seen]) -> Result:
        """The row of a video, from all its clips in order."""

    def columns(self) -> list[tuple[str, Any]]:
        """Names and Arrow types of a row's columns, besides those of ``row_schema``."""

    def clip_shape(self) -> tuple[int, ...]:
        """(V, T, H, W, 3) of a clip."""

    def about(self) -> dict[str, Any]:
        """What all rows of a job's folder depend on, as plain values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """How a job's videos are opened."""

    store: ObjectStore
    fps: float | None = None
    """Rate of folders of frames, in frames per second."""

    @contextmanager
    def opened(self, video: JobVideo) -> Iterator[VideoSource]:
        """The video as a file on this machine's disk; errors name it as the job does."""
        if not is_address(video.address):
            yield source_at(video.address, fps=self.fps)
            return
        with scratch_folder() as folder:  # one that a killed process leaves is removed by the next
            file = self.store.fetch(video.address, folder)
            try:
                yield source_at(str(file))
            except VideoError as error:
                name = masked(video.address)
                raise type(error)(str(error).replace(repr(str(file)), repr(name)), name) from error

    def clips(
        self, video: JobVideo, read: Callable[[VideoSource], Iterator[VideoClip]], *, needs_times: bool
    ) -> Iterator[VideoClip]:
        """The clips that ``read`` yields; a VideoError becomes the last clip.

        Raises:
            OptionError: the video is a folder of frames, of a rate that is not known and that is needed.
        """
        try:
            with self.opened(video) as source:
                if needs_times and not source.has_times:
                    raise OptionError(f"{video.address!r} is a folder of frames, whose times are needed: give --fps")
                yield from read(source)
        except VideoError as error:
            yield VideoClip(fault=error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The network of a job: loaded anew in each process, and checked to be the same."""

    run: str
    weights_sha256: str
    device: str | None = None
    """None: a GPU where the process has one."""
    is_bf16: bool = False

    @classmethod
    def of(
        cls,
        recognizer: Recognizer,
        run: str,
        *,
        device: str | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> Network:
        """The network of a recognizer that was loaded from ``run``."""
        return cls(
            run=absolute_path(run) if os.path.exists(run) else run,
            weights_sha256=weights_sha256(run, recognizer),
            device=device,
            is_bf16=precision == "bf16",
        )

    def load(self) -> Recognizer:
        """Load it.

        Raises:
            CheckpointError: the run is not there, or has other weights than where the job was started.
        """
        import torch

        from tada.loading import load
        from tada.localization.localizer import Localizer
        from tada.recognition.recognizer import load_recognizer

        dtype = torch.bfloat16 if self.is_bf16 else None
        if Path(self.run, "localizer.json").exists():
            model = load(self.run, device=self.device)
            assert isinstance(model, Localizer)
            found = model.feature_maker()[0]
        else:
            found = load_recognizer(self.run, device=self.device, dtype=dtype)
        if weights_sha256(self.run, found) != self.weights_sha256:
            raise CheckpointError(
                f"{self.run!r} holds other weights in this process than where the job was started: give all machines "
                "the same folder"
            )
        return found


def weights_sha256(run: str, recognizer: Recognizer) -> str:
    """SHA-256 of a network's weights; of an exported file, of its content."""
    from tada.localization.features.extraction import backbone_hash

    return sha256_of(run) if os.path.isfile(run) else backbone_hash(recognizer.model)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerWork:
    """Classify videos: rows with the most probable classes of each video and of its clips."""

    source: Source
    model: Network
    choice: ClipChoice
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    """Of the classes, if a video may have several."""
    top: int
    """Classes that are named for each video and clip."""

    @classmethod
    def of(cls, recognizer: Recognizer, model: Network, source: Source, choice: ClipChoice, *, top: int) -> AnswerWork:
        """The work with a recognizer's classes."""
        return cls(
            source=source,
            model=model,
            choice=choice,
            labels=recognizer.answers,
            thresholds=recognizer.card.thresholds,
            top=top,
        )

    def decode(self, video: JobVideo) -> Iterator[VideoClip]:
        needs_times = self.choice.spec.needs_times or self.choice.window_seconds is not None
        yield from self.source.clips(video, lambda source: decode_clips(source, self.choice), needs_times=needs_times)

    def network(self) -> Callable[[Views], Values]:
        import torch

        recognizer = self.model.load()
        return lambda views: recognizer.answer_scores(torch.from_numpy(views[:, 0])).numpy()

    def clip_shape(self) -> tuple[int, ...]:
        spec = self.choice.spec
        return (1, spec.num_frames, spec.crop, spec.crop, 3)

    def about(self) -> dict[str, Any]:
        return {
            "kind": "answers",
            **_about(self),
            "clip": asdict(self.choice.spec),
            "clips": self.choice.num_clips,
            "window_seconds": self.choice.window_seconds,
            "top": self.top,
        }

    def columns(self) -> list[tuple[str, Any]]:
        import pyarrow as pa

        named = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
        clip = pa.struct([("start_seconds", pa.float64()), ("end_seconds", pa.float64()), ("scores", named)])
        return [("labels", pa.list_(pa.string())), ("scores", named), ("clips", pa.list_(clip))]

    def result(self, video: JobVideo, seen: Sequence[Seen]) -> Result:
        mean: Values = np.stack([one.values for one in seen]).mean(0, dtype=np.float32)
        row = {
            "labels": self._labels(mean),
            "scores": self._top(mean),
            "clips": [
                {
                    "start_seconds": round_or_none(one.clip.start_seconds),
                    "end_seconds": round_or_none(one.clip.end_seconds),
                    "scores": self._top(one.values),
                }
                for one in seen
            ],
        }
        return Result(row, {})

    def _top(self, scores: Values) -> list[dict[str, Any]]:
        best = np.argsort(-scores, kind="stable")[: self.top]
        return [{"label": self.labels[i], "score": float(scores[i])} for i in best]

    def _labels(self, scores: Values) -> list[str]:
        """The most probable class; if a video may have several, those that reach their thresholds."""
        if not self.thresholds:
            return [self.labels[int(scores.argmax())]]
        order = np.argsort(-scores, kind="stable")
        return [self.labels[i] for i in order if scores[i] >= self.thresholds[i]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureWork:
    """Extract features of sliding windows: rows say where the arrays are."""

    source: Source
    model: Network
    spec: ClipSpec
    windows: SlidingWindows
    score_labels: tuple[tuple[str, tuple[str, ...]], ...]
    """Each head's name and the names of its classes, the columns of the scores."""
    num_features: int
    """D of a clip, over all its crops; the rest of its values are class probabilities."""

    @classmethod
    def of(cls, recognizer: Recognizer, model: Network, source: Source, windows: SlidingWindows) -> FeatureWork:
        """The work with a recognizer's features, whose number is seen from a black clip."""
        import torch

        from tada.localization.features.extraction import clip_outputs

        spec = recognizer.clip
        black = torch.zeros(1, windows.num_crops, spec.num_frames, spec.crop, spec.crop, 3, dtype=torch.uint8)
        return cls(
            source=source,
            model=model,
            spec=spec,
            windows=windows,
            score_labels=tuple((head.name, head.labels) for head in recognizer.heads),
            num_features=clip_outputs(recognizer, black)[0].shape[1],
        )

    def decode(self, video: JobVideo) -> Iterator[VideoClip]:
        yield from self.source.clips(video, self._clips, needs_times=True)

    def _clips(self, source: VideoSource) -> Iterator[VideoClip]:
        with source.open() as reader:
            duration = reader.info.duration_seconds
            count = self.windows.checked_count(duration, source.name)
            for number, views in enumerate(clips_of(reader, self.spec, self.windows, range(count)), start=1):
                yield VideoClip(number, count, 0.0, duration, views.numpy())

    def network(self) -> Callable[[Views], Values]:
        import torch

        from tada.localization.features.extraction import clip_outputs

        recognizer = self.model.load()
        return lambda views: torch.cat(clip_outputs(recognizer, torch.from_numpy(views)), dim=1).float().numpy()

    def clip_shape(self) -> tuple[int, ...]:
        return (self.windows.num_crops, self.spec.num_frames, self.spec.crop, self.spec.crop, 3)

    def about(self) -> dict[str, Any]:
        return {
            "kind": "features",
            **_about(self),
            "clip": asdict(self.spec),
            **asdict(self.windows),
            "score_labels": {head: list(labels) for head, labels in self.score_labels},
        }

    def columns(self) -> list[tuple[str, Any]]:
        import pyarrow as pa

        return [("duration_seconds", pa.float64()), ("num_features", pa.int64()), ("file", pa.string())]

    def result(self, video: JobVideo, seen: Sequence[Seen]) -> Result:
        values = np.stack([one.values for one in seen])
        row = {"duration_seconds": seen[0].clip.end_seconds, "num_features": len(values)}
        arrays = {"features": np.ascontiguousarray(values[:, : self.num_features])}
        if values.shape[1] > self.num_features:
            arrays["scores"] = np.ascontiguousarray(values[:, self.num_features :])
        return Result(row, arrays)


def _about(work: Work) -> dict[str, Any]:
    return {
        "format": 1,
        "weights": work.model.weights_sha256,
        "precision": "bf16" if work.model.is_bf16 else "fp32",
        "fps": work.source.fps,
    }


def row_schema(work: Work) -> pa.Schema:
    """The columns of a job's rows: id and path, those of the work, and the fault of a video that has no result."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema([("id", text), ("path", text), *work.columns(), ("fault", text), ("message", text)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A video that is done: its result, or why it has none."""

    video: JobVideo
    result: Result | None = None
    fault: str = ""
    """The word of ``VideoError.reason``."""
    message: str = ""

    def row(self) -> dict[str, Any]:
        """The row of the video; columns without a value are left out."""
        found: dict[str, Any] = {"id": self.video.id, "path": masked(self.video.address)}
        if self.result is None:
            return {**found, "fault": self.fault, "message": self.message}
        return {**found, **self.result.row}


class Assembly:
    """Puts the clips of each video together, in whatever order they come.

    Clips may come again: of a video that is done they are ignored. If there are more or fewer than before, the file has
    changed, and the earlier ones are forgotten.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen: dict[str, dict[int, Seen]] = {}
        self._done: set[str] = set()

    def add(self, video: JobVideo, clip: VideoClip, values: Values | None) -> Done | None:
        """Add a clip with its values, or with its fault; return the video if it is done with that."""
        if video.id in self._done:
            return None
        if clip.fault is not None:
            return self._end(Done(video=video, fault=clip.fault.reason, message=str(clip.fault)))
        assert values is not None
        seen = self._seen.setdefault(video.id, {})
        if seen and next(iter(seen.values())).clip.num_clips != clip.num_clips:  # all that are there have the same
            seen.clear()
        seen[clip.number] = Seen(clip, values)
        if len(seen) < clip.num_clips:
            return None
        return self._end(
            Done(video=video, result=self._work.result(video, [seen[i + 1] for i in range(clip.num_clips)]))
        )

    def _end(self, done: Done) -> Done:
        self._seen.pop(done.video.id, None)
        self._done.add(done.video.id)
        return done
