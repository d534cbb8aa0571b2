"""Recognizer: a trained network that predicts which actions happen in a video, how probably and when.

Shapes: V views of a video, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, product
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from tada.data.table import ACTION, Head
from tada.errors import CheckpointError, OptionError, UnknownNameError, VideoError, counted
from tada.models.fuse import FusedNetwork, fuse
from tada.models.hub import fetch_model, is_hub_id
from tada.models.onnx_model import ONNX_SUFFIX, OnnxNetwork, load_onnx
from tada.models.weights import CARD_FILE, ModelCard, load_model, packaged, packaged_names
from tada.recognition.explanation import Explanation, explain
from tada.recognition.prediction import ClipScores, Prediction
from tada.recognition.video_clips import (
    ClipChoice,
    VideoClip,
    batches_of,
    clips_of_videos,
    default_batch_size,
    has_many_files,
)
from tada.system.accelerator import HostCopy, copy_to_device
from tada.system.calls import checked
from tada.system.devices import check_num_workers, default_num_workers, find_device
from tada.system.terminal import printable
from tada.video.inputs import VideoSource, is_one_video, source_of
from tada.video.sampling import ClipSpec
from tada.video.transforms import normalize

if TYPE_CHECKING:
    from tada.video.inputs import VideoInput


class Recognizer:
    """A trained model with its labels and clip specification.

    Args:
        dtype: type of the inference form's weights and features, such as torch.bfloat16; by default the model's.
        compile: whether to compile the inference form (torch.compile), at its first clips; see ``tada.models.fuse``.

    Attributes:
        model: clips [N, 3, T, H, W] -> logits [N, K], in evaluation mode, with the saved weights.
        network: its inference form (``tada.models.fuse``), used for predictions: the same logits in less time.
        card: labels, clip specification and origin of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        self.device = torch.device(find_device(None if device is None else str(device)))
        self.model = model.to(self.device).eval()
        self.network: FusedNetwork | OnnxNetwork
        if isinstance(model, OnnxNetwork):
            self.network = model
        else:
            self.network = fuse(self.model, dtype=dtype, compile=compile)
        self.card = card

    def __repr__(self) -> str:
        named = ", ".join(map(printable, self.answers[:3])) + (", ..." if len(self.answers) > 3 else "")
        clip = f"{counted(self.clip.num_frames, 'frame')} of {self.clip.crop}x{self.clip.crop} pixels"
        return f"Recognizer({self.card.model}, {len(self.answers)} classes ({named}), {clip}, on {self.device})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.card.labels

    @property
    def heads(self) -> tuple[Head, ...]:
        """The classification heads, each with its class names; their logits are concatenated."""
        sizes = self.card.head_sizes or {ACTION: len(self.labels)}
        ends = list(accumulate(sizes.values()))
        return tuple(
            Head(name=name, labels=self.labels[end - size : end], several=bool(self.card.thresholds))
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        )

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes of predictions: the labels; of several heads, all combinations, as "open drawer"."""
        return tuple(" ".join(names) for names in product(*(head.labels for head in self.heads)))

    @property
    def clip(self) -> ClipSpec:
        """Which frames make a clip, and how large they are."""
        return self.card.clip

    @torch.inference_mode()
    def scores(self, views: Tensor) -> Tensor:
        """Uint8 views [V, T, H, W, 3] -> probabilities [V, K], on the CPU: see ``probabilities``."""
        return self.start_scores(views).value()

    @torch.inference_mode()
    def start_scores(self, views: Tensor) -> HostCopy:
        """Start to compute what ``scores`` returns; the host need not wait while a GPU computes it."""
        pixels = normalize(copy_to_device(views, self.device), *self.clip.normalization)
        return HostCopy(self.probabilities(self.network(pixels)))

    def answer_scores(self, views: Tensor) -> Tensor:
        """Uint8 views [V, T, H, W, 3] -> probabilities of ``answers`` [V, answers], on the CPU."""
        return torch.stack([self._joint_scores(scores) for scores in self.scores(views)])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [V, K] -> probabilities [V, K]: softmax of each head; sigmoid if a video may have several labels."""
        if self.card.thresholds:
            return logits.float().sigmoid()
        sizes = [len(head.labels) for head in self.heads]
        return torch.cat([of_head.softmax(1) for of_head in torch.split(logits.float(), sizes, dim=1)], dim=1)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a collection of letters, an open file one of lines
        self,
        video: VideoInput,
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        window_seconds: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        video: Iterator[VideoInput],
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        window_seconds: float | None = None,
    ) -> Iterator[Prediction]: ...

    @overload
    def predict(
        self,
        video: Collection[Any],
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        window_seconds: float | None = None,
    ) -> list[Prediction]: ...

    @checked(num_clips=1)
    def predict(
        self,
        video: VideoInput | Iterable[Any],
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        window_seconds: float | None = None,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Predict the actions in a video, or in each of several.

            recognizer.predict("a.mp4").label
            recognizer.predict(frames, fps=30).top(3)  # uint8 [T, H, W, 3]
            recognizer.predict(["a.mp4", "b.mp4"])     # two predictions
            for prediction in recognizer.predict(path for path in paths): ...

        Args:
            video: the path of a file or a folder of frames, the bytes of a video file, an open binary file, frames or a
                list of pictures: see ``tada.video.inputs.source_of``. For a list (or other collection) of videos, all
                predictions are returned in a list; for a generator, an iterator yields them as they are ready. The
                generator runs in another thread, some clips ahead; frames that it yields are freed when the next
                prediction is requested, so explain and draw before that.
            fps: the rate of frames without times, in frames per second. Needed if the model's clips are counted in
                seconds, and for times in the prediction.
            num_clips: number of clips spread over the video, or over each window. By default as many as cover it, at
                most ten; one if the model's clips sample segments, since such a clip covers the whole video.
            window_seconds: divide the video into windows of this length and predict each separately, for models whose
                clips sample segments, and for videos with several actions one after another. Less than half a window
                at the end is joined to the window before.

        Raises:
            VideoError: a video cannot be read; ``predict_all`` would continue with the next.
            OptionError: an argument is out of its range, or not a video; or ``fps`` is needed.
        """
        if is_one_video(video):
            source = source_of(video, fps=fps)
            found = next(iter(self.predict_all([source], num_clips=num_clips, window_seconds=window_seconds)))
            if isinstance(found, VideoError):
                raise found
            return found
        videos: Any = video
        answers = self.predict_all(videos, fps=fps, num_clips=num_clips, window_seconds=window_seconds)
        return _all_or_raise(answers) if isinstance(videos, Collection) else _each_or_raise(answers)

    def __call__(self, video: Any, **options: Any) -> Any:
        """Short for ``predict``."""
        return self.predict(video, **options)

    @checked(num_clips=1, num_workers=0, batch_size=1)
    def predict_all(
        self,
        videos: Iterable[VideoInput],
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        window_seconds: float | None = None,
        num_workers: int | None = None,
        batch_size: int | None = None,
        advance: Callable[[float], None] = lambda part: None,
    ) -> Iterator[Prediction | VideoError]:
        """Predict the actions in each of many videos, in order, while the next clips are decoded.

        For an unreadable video it yields the error. If a process that decodes dies, its video is tried once more, and
        then the error says so.

        Args:
            videos: this and the other arguments as for ``predict``.
            num_workers: processes that decode the videos that are files. By default one for each core, at most eight,
                if ``videos`` is a collection with at least 32 files; else none: the clips are decoded in a thread.
            batch_size: clips that the network takes at once; by default 32 on a GPU; on a CPU 8 where processes decode,
                else 1. Batches hold clips of several videos, but for the videos of an iterator, whose answers do not
                wait for the next video.
            advance: called after each clip with the fraction of its video that the clip makes up.

        Raises:
            OptionError: an argument is out of its range, or not a video.
        """
        choice = ClipChoice(spec=self.clip, num_clips=num_clips, window_seconds=window_seconds)
        if is_one_video(videos):
            videos = [cast("VideoInput", videos)]
        number = not isinstance(videos, Sequence) or len(videos) > 1
        sources: Iterable[VideoSource] = (
            self._check_times(source_of(video, fps=fps, number=i if number else None), window_seconds)
            for i, video in enumerate(videos)
        )
        if isinstance(videos, Collection):
            sources = list(sources)  # so that an input that is not a video is refused at once
        if num_workers is None:
            num_workers = default_num_workers() if has_many_files(sources) else 0
        if batch_size is None:
            batch_size = default_batch_size(has_gpu=self.device.type != "cpu", has_workers=num_workers > 0)
        clips = clips_of_videos(
            sources,
            choice,
            num_workers=check_num_workers(num_workers),
            clips_ahead=batch_size,
        )
        batches = batches_of(clips, batch_size, span_videos=isinstance(sources, Collection))
        return self._predictions(batches, advance)

    def needs_times(self, window_seconds: float | None = None) -> str:
        """Why a prediction needs the times of frames, in words; empty if it does not."""
        if self.clip.needs_times:
            return f"this model's clips are counted at {self.clip.fps:g} frames per second"
        return "" if window_seconds is None else "window_seconds counts seconds"

    def _check_times(self, source: VideoSource, window_seconds: float | None) -> VideoSource:
        """Return the source; raise OptionError if a prediction needs times of frames that the source lacks."""
        needed = self.needs_times(window_seconds)
        if needed and not source.has_times:
            raise OptionError(f"{source.name} does not say when its frames are shown, and {needed}: give fps")
        return source

    @checked()
    def explain(
        self,
        video: VideoInput | Prediction,
        *,
        label: str | None = None,
        clip: int | None = None,
        layer: str | None = None,
        fps: float | None = None,
    ) -> Explanation:
        """Compute a Grad-CAM heat map of one clip of a video, and how the network's kernels were calibrated.

        It uses ``model``, not the inference form. Not safe to call from several threads at a time.

        Args:
            video: one video as for ``predict``, which is predicted first; or a prediction.
            label: the class to explain, one of ``answers``; by default the most probable class of the video.
            clip: index of the prediction's clip; by default the clip in which the class is most probable.
            layer: the module whose feature map is used; see ``tada.models.gradcam.look``.
            fps: rate of frames without times, as for ``predict``.

        Raises:
            VideoError: the video cannot be read, or its frames were freed.
            OptionError: no such class, clip or layer; or the model is an ONNX file, which gives no feature maps.
        """
        self.check_explains(label)
        prediction = video if isinstance(video, Prediction) else self._predict_one(video, fps)
        label = prediction.label if label is None else label
        if prediction.labels != self.answers:
            raise OptionError("this prediction is of a recognizer with other classes: predict the video with this one")
        place, clips = self.answers.index(label), prediction.clips
        if clip is None:
            clip = max(range(len(clips)), key=lambda i: clips[i].scores[place])
        elif not 0 <= clip < len(clips):
            raise OptionError(f"{clip = } should be from 0 to {len(clips) - 1}: one of the prediction's clips")
        chosen = clips[clip]
        sizes = [len(head.labels) for head in self.heads]
        starts = [end - size for size, end in zip(sizes, accumulate(sizes), strict=True)]
        logits = [start + int(i) for start, i in zip(starts, np.unravel_index(place, sizes), strict=True)]
        return explain(
            self.model,
            prediction.video,
            chosen.frame_numbers,
            self.clip,
            lambda found: found[logits].sum(),
            label=label,
            score=chosen.scores[place],
            layer=layer,
        )

    def check_explains(self, label: str | None = None) -> None:
        """Check, before any prediction, that ``explain`` will work.

        Raises:
            OptionError: the model is an ONNX file, which gives no feature maps.
            UnknownNameError: no class has this name.
        """
        if isinstance(self.model, OnnxNetwork):
            raise OptionError(
                "an ONNX file gives logits only, and no feature maps: explain with the run that it is from"
            )
        if label is not None and label not in self.answers:
            raise UnknownNameError.of("class", label, self.answers)

    def _predict_one(self, video: Any, fps: float | None) -> Prediction:
        if not is_one_video(video):
            raise OptionError("one video is explained at a time: call explain for each")
        return self.predict(source_of(video, fps=fps))

    def _predictions(
        self,
        batches: Iterator[list[tuple[VideoSource, VideoClip]]],
        advance: Callable[[float], None],
    ) -> Iterator[Prediction | VideoError]:
        found: list[ClipScores] = []
        part = 0.0
        for batch in batches:
            for (source, clip), scores in zip(batch, self._score(batch), strict=True):
                if clip.number == 1:  # of the next video, or of this one again, whose process died
                    found = []
                if scores is not None:
                    found.append(clip.with_scores(scores))
                advance(max(clip.done - part, 0.0))
                part = 0.0 if clip.is_last else max(clip.done, part)
                if clip.is_last:
                    yield clip.fault or self.prediction(source, found)

    def _score(self, batch: Sequence[tuple[VideoSource, VideoClip]]) -> list[list[float] | None]:
        """Probabilities of ``answers`` for each clip of a batch; None for a clip that is an error."""
        views = [torch.from_numpy(clip.views) for _, clip in batch if clip.fault is None]
        scores = iter(self.answer_scores(torch.cat(views)).tolist() if views else [])
        return [next(scores) if clip.fault is None else None for _, clip in batch]

    def prediction(self, source: VideoSource, clips: Sequence[ClipScores]) -> Prediction:
        """The prediction for a video whose clips have these scores: their mean."""
        mean = torch.tensor([clip.scores for clip in clips]).mean(0)
        return Prediction(
            path=source.name,
            labels=self.answers,
            scores=tuple(mean.tolist()),
            clips=tuple(clips),
            thresholds=self.card.thresholds,
            recognizer=self,
            source=source,
        )

    def _joint_scores(self, scores: Tensor) -> Tensor:
        """Probabilities [K] -> probabilities of ``answers``: the products over the heads."""
        joint = torch.ones(1)
        for of_head in torch.split(scores, [len(head.labels) for head in self.heads]):
            joint = (joint[:, None] * of_head).flatten()
        return joint


def _all_or_raise(answers: Iterator[Prediction | VideoError]) -> list[Prediction]:
    found = []
    for answer in answers:
        if isinstance(answer, VideoError):
            raise answer
        found.append(answer)
    return found


def _each_or_raise(answers: Iterator[Prediction | VideoError]) -> Iterator[Prediction]:
    for answer in answers:
        if isinstance(answer, VideoError):
            raise answer
        yield answer
        answer.video.forget()  # or a caller who collects predictions would keep all videos in memory


def load_recognizer(
    run: str | PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None, compile: bool = False
) -> Recognizer:
    """Load a trained model: a run's folder, a file of `tada export`, weights that ship with tada, or a hub model.

    Args:
        run: a folder, OUT.onnx, a name, or ``hf-hub:OWNER/NAME``.
        device: "cpu", "cuda", ...; by default a GPU where there is one. An ONNX file runs on the CPU.
        dtype: type in which the network computes, such as torch.bfloat16; by default that of the weights.
        compile: whether to compile the network (torch.compile) at its first clips, which takes a minute.

    Raises:
        CheckpointError: the folder or file holds no model, or a damaged one; or the hub has none or cannot be reached.
        OptionError: dtype or compile is given for an ONNX file.
    """
    name = fspath(run)
    if name.lower().endswith(ONNX_SUFFIX):
        if dtype is not None or compile:
            raise OptionError(f"{name!r} is an ONNX file, whose types are fixed: load it without dtype and compile")
        return Recognizer(*load_onnx(Path(name)), device="cpu")
    if is_hub_id(name):
        folder = fetch_model(name)
    else:
        folder = packaged(name) if name in packaged_names() and not Path(name).exists() else Path(name)
        _check_no_localizer(folder)
    model, card = load_model(folder)
    return Recognizer(model, card, device=device, dtype=dtype, compile=compile)


def _check_no_localizer(folder: Path) -> None:
    """Raise CheckpointError, with the command to use, if the folder is a localizer's run."""
    if (folder / CARD_FILE).exists():
        return
    if (folder / "localizer.json").exists():
        raise CheckpointError(
            f"{str(folder)!r} is a localizer, which says when things happen: `tada localize {folder} VIDEO`"
            + (f"; the recognizer in it is {folder / 'backbone'}" if (folder / "backbone").is_dir() else "")
        )
    if (folder / "data.json").exists():
        raise CheckpointError(
            f"{str(folder)!r} is a localizer whose training has not ended: continue it with `tada localize train ... "
            f"--resume {folder}`"
        )
