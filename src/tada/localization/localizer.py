"""A trained localizer in one folder, and its use: video -> features -> detector -> segments with names.

The folder holds the detector (localizer.safetensors), what it is (localizer.json) and the network that makes its
features (backbone/), so that it needs nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from tada.data.csv_rows import guarded
from tada.data.table import Head, composed
from tada.display.notebook import Bar, results_html, timeline_html
from tada.display.plots import save_timeline
from tada.errors import CheckpointError, OptionError, counted
from tada.localization.annotations.table import UntrimmedVideo
from tada.localization.detectors.actionformer import ActionFormerDetector
from tada.localization.detectors.bmn import BMNDetector
from tada.localization.detectors.detector import detector_of
from tada.localization.detectors.nms import Detections
from tada.localization.features.extraction import extract_video
from tada.localization.features.folder import VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.recipe import LocalizationRecipe
from tada.models.weights import CARD_FILE as MODEL_CARD_FILE
from tada.models.weights import check_fits, read_bytes, restore, save_model
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.system.calls import checked
from tada.system.devices import find_device
from tada.system.documents import read_json, typed
from tada.system.files import write_whole
from tada.system.terminal import printable
from tada.training.recipe import read_recipe
from tada.video.annotate import annotate_video
from tada.video.captions import Lane
from tada.video.inputs import VideoSource, is_one_video, source_of
from tada.video.sliding_windows import SlidingWindows
from tada.video.transforms import shrink_to

if TYPE_CHECKING:
    from tada.video.inputs import VideoInput

WEIGHTS_FILE = "localizer.safetensors"
CARD_FILE = "localizer.json"
BACKBONE_FOLDER = "backbone"
UNTESTED_THRESHOLD = 0.2
"""The score from which on segments are shown where none was found by validation."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizerCard:
    """What a detector's weights are the weights of."""

    detector: str
    """"actionformer" or "bmn"."""
    shape: dict[str, Any]
    """Its config, as plain values."""
    label_sets: tuple[Head, ...]
    """The classes that it names."""
    grid: FeatureGrid
    """When the features it expects are taken."""
    feature_settings: dict[str, Any]
    """How their clips are cut."""
    backbone: str
    """SHA-256 of the network that makes them; for published features where they are from, in words."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """The score from which on segments of a class are shown, by validation, or by training where that lacks the class;
    the others take the median of these."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured, by name."""

    def __post_init__(self) -> None:
        """Bring names of classes into the form in which they are compared."""
        own = (replace(head, labels=tuple(map(composed, head.labels))) for head in self.label_sets)
        object.__setattr__(self, "label_sets", tuple(own))


# -- what is found ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizedSegment:
    """Something that happens in a video."""

    start_seconds: float
    end_seconds: float
    label: str
    """The class; of a verb and a noun both, joined by a comma."""
    score: float
    """How sure, from 0 to 1."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "start_seconds": round(self.start_seconds, 3),
            "end_seconds": round(self.end_seconds, 3),
            "label": self.label,
            "score": round(self.score, 6),
        }

    def __str__(self) -> str:
        return f"{printable(self.label)} {self.start_seconds:.1f}-{self.end_seconds:.1f} s ({self.score:.2f})"

    def srt(self, number: int) -> str:
        """A subtitle that names it, with an empty line below."""
        times = f"{_srt_time(self.start_seconds)} --> {_srt_time(self.end_seconds)}"
        return f"{number}\n{times}\n{printable(self.label)} ({self.score:.2f})\n"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Localization:
    """What happens when in a video."""

    path: str
    """The video's; of one that has none, what it is: "<array>"."""
    duration_seconds: float
    segments: tuple[LocalizedSegment, ...]
    """By start."""
    source: VideoSource | None = field(default=None, compare=False)
    """The video as it was given; None: the file at ``path``."""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.segments[:3])) + (", ..." if len(self.segments) > 3 else "")
        number = counted(len(self.segments), "segment")
        return f"{printable(self.path)}: {number} in {self.duration_seconds:.1f} s{f': {shown}' if shown else ''}"

    def __repr__(self) -> str:
        return f"Localization({self})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [(f"{s.start_seconds:.1f}-{s.end_seconds:.1f}", s.label, Bar(s.score)) for s in self.segments]
        return results_html(
            self.path,
            [(("seconds", "class", "score"), rows)],
            lead=f"{counted(len(rows), 'segment')} in {self.duration_seconds:.1f} s",
            below=timeline_html(self._spans(), self.duration_seconds),
        )

    @property
    def video(self) -> VideoSource:
        """The video, to be opened again."""
        return source_of(self.path) if self.source is None else self.source

    def to_rows(self) -> list[dict[str, Any]]:
        """Flat rows, as for ``pandas.DataFrame``: video, start_seconds, end_seconds, label, score of each segment."""
        return [{"video": self.path, **segment.as_dict()} for segment in self.segments]

    def _spans(self) -> dict[str, list[tuple[float, float, float]]]:
        """Start, end and score of the segments of each class."""
        spans: dict[str, list[tuple[float, float, float]]] = {}
        for segment in self.segments:
            spans.setdefault(segment.label, []).append((segment.start_seconds, segment.end_seconds, segment.score))
        return spans

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        segments = [segment.as_dict() for segment in self.segments]
        return {"video": self.path, "duration_seconds": round(self.duration_seconds, 3), "segments": segments}

    def srt(self) -> str:
        """Subtitles that name what happens, for any video player."""
        return "\n".join(segment.srt(number) for number, segment in enumerate(self.segments, start=1))

    @checked()
    def save_video(
        self,
        target: str | PathLike[str],
        *,
        overwrite: bool = False,
        advance: Callable[[float], None] = lambda part: None,
    ) -> None:
        """Write the video with the segments drawn in: their names while they last, and a bar of time with all of them.

        It is an MP4 that browsers play; sound and times are kept.

        Args:
            advance: told now and then which part of the video has been written since.

        Raises:
            VideoError: the video cannot be read to its end.
            OptionError: the file is there already, and not to be replaced.
        """
        lanes = [Lane(label=label, spans=tuple(spans), is_curve=False) for label, spans in self._spans().items()]
        annotate_video(self.video, target, lanes, overwrite=overwrite, advance=advance)

    @checked(num_frames=1)
    def plot(
        self,
        picture: str | PathLike[str],
        *,
        truth: UntrimmedVideo | None = None,
        names: Sequence[str] = (),
        num_frames: int = 10,
    ) -> None:
        """Draw frames of the video and below them a row of segments for each class, as a PNG file.

        Args:
            truth: what is annotated in the video; drawn below what was found.
            names: of its segments, in their order.

        Raises:
            VideoError: the video cannot be read any more.
        """
        times = (np.arange(num_frames) + 0.5) / num_frames * self.duration_seconds
        with self.video.open() as reader:
            shown = [min(float(t), float(reader.times_seconds[-1])) for t in times]
            frames = reader.frames_played_at(shown, shrink=partial(shrink_to, short_side=256))
        rows = {"found": [(s.start_seconds, s.end_seconds, s.label, s.score) for s in self.segments]}
        if truth is not None:
            true = zip(truth.segments, names, strict=True)
            rows["annotated"] = [(s.start_seconds, s.end_seconds, name, 1.0) for s, name in true]
        save_timeline(frames, rows, self.duration_seconds, Path(picture), title=Path(self.path).name)


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"


def localizations_json(found: Sequence[Localization]) -> str:
    """A JSON list, one entry for each video."""
    return json.dumps([localization.as_dict() for localization in found], indent=2)


def localizations_csv(found: Sequence[Localization]) -> str:
    """One row for each segment: video, start, end, label, score. What `tada localize train` reads as annotations."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for localization in found:
        writer.writerows(csv_row(localization.path, segment) for segment in localization.segments)
    return text.getvalue()


CSV_COLUMNS = ("video", "start", "end", "label", "score")


def csv_row(video: str, segment: LocalizedSegment) -> list[str]:
    """The cells of a segment, in the order of ``CSV_COLUMNS``."""
    times = [f"{segment.start_seconds:.3f}", f"{segment.end_seconds:.3f}"]
    return [guarded(video), *times, guarded(segment.label), f"{segment.score:.6f}"]


def results_of(found: Mapping[str, Detections], label_sets: Sequence[Head]) -> dict[str, Any]:
    """Detections by video in ActivityNet's form, with class names; of two label sets with verb and noun, too."""
    results: dict[str, list[dict[str, Any]]] = {}
    for video, detections in found.items():
        entries = []
        for segment, score, labels in zip(*(rows.tolist() for rows in detections), strict=True):
            names = [s.labels[i] for s, i in zip(label_sets, labels, strict=True)]
            entry: dict[str, Any] = {"segment": segment, "score": score, "label": ",".join(names)}
            if len(names) > 1:
                entry |= {s.name: name for s, name in zip(label_sets, names, strict=True)}
            entries.append(entry)
        results[video] = entries
    return {"version": "VERSION 1.3", "results": results, "external_data": {}}


# -- the localizer ----------------------------------------------------------------------------------------------------


class Localizer:
    """A trained detector with all it needs to read a video.

    Attributes:
        detector: features of a video -> segments.
        card: its classes, the time grid of its features, its thresholds.
        backbone: the network that makes the features; None where they came from files.
        run: the folder that it was loaded from, which says what it was trained on; None where it was not.
    """

    def __init__(
        self,
        detector: ActionFormerDetector | BMNDetector,
        card: LocalizerCard,
        recipe: LocalizationRecipe,
        *,
        backbone: Recognizer | None = None,
        run: Path | None = None,
    ) -> None:
        self.detector = detector.eval()
        self.card = card
        self.recipe = recipe
        self.backbone = backbone
        self.run = run
        if backbone is not None:
            self.detector.to(backbone.device)

    def __repr__(self) -> str:
        names = [name for label_set in self.label_sets for name in label_set.labels]
        shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
        return (
            f"Localizer({self.card.detector}, {counted(len(names), 'class')} ({shown}), features of {self.backbone!r})"
        )

    @property
    def label_sets(self) -> tuple[Head, ...]:
        """The classes that it names."""
        return self.card.label_sets

    @torch.inference_mode()
    def detect(self, features: VideoFeatures) -> Detections:
        """All segments of a video, from its features, best first; for scores such as ``detection_map``."""
        return self.detector.detect(features)

    @checked()
    def localize(
        self,
        video: VideoInput,
        *,
        fps: float | None = None,
        min_score: float | None = None,
        advance: Callable[[float], None] = lambda part: None,
    ) -> Localization:
        """Say what happens when in a video.

        Args:
            video: a path, the bytes of a video file, a binary file that is open, frames or a list of pictures: see
                ``tada.video.inputs.source_of``.
            fps: the rate of frames that come without times, in frames per second.
            min_score: the score from which on segments are given; by default each class has its own, the one that was
                best in validation.
            advance: told now and then which part of the video has been read since.

        Raises:
            VideoError: the video cannot be read.
            OptionError: it is none, or its frames have no times.
            CheckpointError: the localizer was trained on features from files, and has no network to make its own.
        """
        backbone, settings = self.feature_maker()
        source = source_of(video, fps=fps)
        if not source.has_times:
            raise OptionError(f"{source.name} does not say when its frames are shown, and a localizer does: give fps")
        features = extract_video(backbone, source, settings, backbone_sha256=self.card.backbone, advance=advance)
        found = self.name_detections(
            self.detect(features), source.name, features.card.duration_seconds, min_score=min_score
        )
        return replace(found, source=source)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a collection of letters, an open file one of lines
        self, video: VideoInput, *, fps: float | None = None, min_score: float | None = None
    ) -> Localization: ...

    @overload
    def predict(
        self, video: Iterator[VideoInput], *, fps: float | None = None, min_score: float | None = None
    ) -> Iterator[Localization]: ...

    @overload
    def predict(
        self, video: Collection[Any], *, fps: float | None = None, min_score: float | None = None
    ) -> list[Localization]: ...

    @checked()
    def predict(
        self, video: VideoInput | Iterable[Any], *, fps: float | None = None, min_score: float | None = None
    ) -> Localization | list[Localization] | Iterator[Localization]:
        """Say what happens when in a video, or in each of several: ``localize``, called as that of a recognizer.

        Of a list of videos all answers come in a list; of a generator they come one by one, as they are ready, and what
        it gives in memory is let go when the next is asked for. Arguments and errors are those of ``localize``. (What
        the network that makes the features says of a video as a whole: ``localizer.backbone.predict``.)
        """
        if is_one_video(video):
            return self.localize(source_of(video, fps=fps), min_score=min_score)
        videos: Any = video
        answers = (
            self.localize(source_of(one, fps=fps, number=i), min_score=min_score) for i, one in enumerate(videos)
        )
        return list(answers) if isinstance(videos, Collection) else _one_by_one(answers)

    def __call__(self, video: Any, **options: Any) -> Any:
        """Short for ``predict``."""
        return self.predict(video, **options)

    def name_detections(
        self, found: Detections, path: str, duration_seconds: float, *, min_score: float | None = None
    ) -> Localization:
        """Detections with the names of their classes, those below the threshold left out."""
        usual = float(np.median(list(self.card.thresholds.values()))) if self.card.thresholds else UNTESTED_THRESHOLD
        segments = []
        for (start, end), score, labels in zip(*(rows.tolist() for rows in found), strict=True):
            label = ",".join(s.labels[i] for s, i in zip(self.label_sets, labels, strict=True))
            least = self.card.thresholds.get(label, usual) if min_score is None else min_score
            if score >= least:
                segments.append(LocalizedSegment(start_seconds=start, end_seconds=end, label=label, score=score))
        by_start = sorted(segments, key=lambda s: (s.start_seconds, s.end_seconds))
        return Localization(path=path, duration_seconds=duration_seconds, segments=tuple(by_start))

    def feature_maker(self) -> tuple[Recognizer, SlidingWindows]:
        """The network that makes the features, and how it is shown a video.

        Raises:
            CheckpointError: the localizer was trained on features from files, and has no network to make its own.
        """
        if self.backbone is None:
            raise CheckpointError(
                f"this localizer was trained on features from files ({self.card.backbone}) and has no network to make "
                "them of a video; train one on features of `tada extract`"
            )
        return self.backbone, SlidingWindows.of(self.card.feature_settings)


def _one_by_one(answers: Iterator[Localization]) -> Iterator[Localization]:
    for answer in answers:
        yield answer
        answer.video.forget()  # as of a recognizer


def save_localizer(folder: Path, localizer: Localizer) -> None:
    """Write a localizer so that ``load_localizer`` gives it back; localizer.json last, each file whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in localizer.detector.state_dict().items()}
    data = safetensors.torch.save(weights)
    if localizer.backbone is not None:
        save_model(folder / BACKBONE_FOLDER, localizer.backbone.model, localizer.backbone.card)
    about = {"format": _FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **asdict(localizer.card)}
    about["label_sets"] = [{"name": head.name, "classes": head.labels} for head in localizer.card.label_sets]
    write_whole(folder / WEIGHTS_FILE, data)
    write_whole(folder / CARD_FILE, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


def _with_heads(about: dict[str, Any]) -> dict[str, Any]:
    """What localizer.json says, with a head's labels called so: there they are its classes.

    What is of another form stays as it is, for ``typed`` to refuse.
    """
    written = about.get("label_sets")
    if not isinstance(written, list):
        return about
    heads = [
        {"labels" if key == "classes" else key: value for key, value in own.items()} if isinstance(own, dict) else own
        for own in written
    ]
    return about | {"label_sets": heads}


def load_localizer(folder: str | PathLike[str], *, device: str | None = None) -> Localizer:
    """Load a localizer from the folder of a run.

    Raises:
        CheckpointError: the folder holds none, or a damaged one.
        OptionError: this machine has no such device.
    """
    find_device(device)
    path = Path(folder)
    file = path / CARD_FILE
    if not path.is_dir():
        raise CheckpointError(f"{str(path)!r} is no folder; give that of a run of `tada localize train`")
    if not file.exists() and (path / MODEL_CARD_FILE).exists():
        raise CheckpointError(
            f"{str(path)!r} is a recognizer, which says what happens in a clip (tada predict {path} VIDEO), not when; "
            f"tada localize train --backbone {path} ... trains a localizer on what it sees"
        )
    if not file.exists():
        raise CheckpointError(
            f"{str(path)!r} holds no {CARD_FILE}: it is written when `tada localize train` ends; give the folder of "
            "such a run, or continue it with --resume"
        )
    try:
        about = read_json(file)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise ValueError("of another version of tada")
        card = typed(LocalizerCard, _with_heads(about), ignore=("format", "sha256"))
        data = read_bytes(path / WEIGHTS_FILE)
        weights = safetensors.torch.load(data)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({error}); copy the folder again, or train anew") from error
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise CheckpointError(
            f"{str(path / WEIGHTS_FILE)!r} is damaged, or its {CARD_FILE} belongs to other weights; copy it again"
        )
    recipe = read_recipe(path / "recipe.yaml", LocalizationRecipe)
    with torch.device("meta"):  # first without memory, so that a card cannot have as much as it says
        check_fits(detector_of(card.shape, recipe, card.label_sets), weights)
    detector = detector_of(card.shape, recipe, card.label_sets)
    restore(detector, weights)
    backbone = load_recognizer(path / BACKBONE_FOLDER, device=device) if (path / BACKBONE_FOLDER).is_dir() else None
    return Localizer(detector, card, recipe, backbone=backbone, run=path)
