"""A trained localizer: video -> features -> detector -> segments with classes; saved in one folder.

The folder holds the detector's weights (localizer.safetensors), their card (localizer.json) and the network that makes
the features (backbone/), so nothing else is needed.
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
from tada.training.recipe import RECIPE_FILE, read_recipe
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
"""Score threshold of segments, where validation has chosen none."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizerCard:
    """Card of a detector's weights: configuration, classes, features, thresholds."""

    detector: str
    """"actionformer" or "bmn"."""
    shape: dict[str, Any]
    """The detector's config, as plain values."""
    heads: tuple[Head, ...]
    """The detector's classes."""
    grid: FeatureGrid
    """Times of the features that the detector expects."""
    feature_settings: dict[str, Any]
    """Settings of the features' extraction."""
    backbone: str
    """SHA-256 of the network that makes the features; for published features, a description of their origin."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Score thresholds by class, chosen on the validation videos, or on training videos for classes missing there;
    other classes use the median of these."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics by name."""

    def __post_init__(self) -> None:
        """Normalize class names (Unicode NFC), so that they can be compared."""
        own = (replace(head, labels=tuple(map(composed, head.labels))) for head in self.heads)
        object.__setattr__(self, "heads", tuple(own))


# -- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizedSegment:
    """A detected segment of a video."""

    start_seconds: float
    end_seconds: float
    label: str
    """The class; of verb and noun: both, joined by a comma."""
    score: float
    """Confidence, from 0 to 1."""

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
        """The segment as a subtitle (SRT), with an empty line below."""
        times = f"{_srt_time(self.start_seconds)} --> {_srt_time(self.end_seconds)}"
        return f"{number}\n{times}\n{printable(self.label)} ({self.score:.2f})\n"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Localization:
    """The detected segments of a video."""

    path: str
    """Path of the video, or a description of one without a path: "<array>"."""
    duration_seconds: float
    segments: tuple[LocalizedSegment, ...]
    """Sorted by start."""
    source: VideoSource | None = field(default=None, compare=False)
    """The video that was given; None: the file at ``path``."""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.segments[:3])) + (", ..." if len(self.segments) > 3 else "")
        number = counted(len(self.segments), "segment")
        return f"{printable(self.path)}: {number} in {self.duration_seconds:.1f} s{f': {shown}' if shown else ''}"

    def __repr__(self) -> str:
        return f"Localization({self})"

    def _repr_html_(self) -> str:
        """The result as a notebook shows it."""
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
        """The segments as subtitles (SRT), for any video player."""
        return "\n".join(segment.srt(number) for number, segment in enumerate(self.segments, start=1))

    @checked()
    def save_video(
        self,
        target: str | PathLike[str],
        *,
        overwrite: bool = False,
        advance: Callable[[float], None] = lambda part: None,
    ) -> None:
        """Write the video with the segments drawn in: the name of each while it lasts, and a timeline of all.

        The file is an MP4 that browsers play; sound and times are kept.

        Args:
            advance: called now and then with the fraction of the video written since the last call.

        Raises:
            VideoError: the video cannot be read to its end.
            OptionError: the file exists, and ``overwrite`` is false.
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
        """Draw frames of the video, and below them a row of segments for each class, as a PNG file.

        Args:
            truth: the annotated video; its segments are drawn below the detected ones.
            names: class names of the annotated segments, in their order.

        Raises:
            VideoError: the video can no longer be read.
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


def localizations_csv(found: Sequence[Localization]) -> str:
    """A CSV row for each segment: video, start, end, label, score. `tada localize train` reads it as annotations."""
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


def results_of(found: Mapping[str, Detections], heads: Sequence[Head]) -> dict[str, Any]:
    """Detections by video in ActivityNet's JSON form, with class names; for two heads also verb and noun."""
    results: dict[str, list[dict[str, Any]]] = {}
    for video, detections in found.items():
        entries = []
        for segment, score, labels in zip(*(rows.tolist() for rows in detections), strict=True):
            names = [s.labels[i] for s, i in zip(heads, labels, strict=True)]
            entry: dict[str, Any] = {"segment": segment, "score": score, "label": ",".join(names)}
            if len(names) > 1:
                entry |= {s.name: name for s, name in zip(heads, names, strict=True)}
            entries.append(entry)
        results[video] = entries
    return {"version": "VERSION 1.3", "results": results, "external_data": {}}


# -- the localizer ----------------------------------------------------------------------------------------------------


class Localizer:
    """A trained detector, with the network that makes its features.

    Attributes:
        detector: features of a video -> segments.
        card: classes, time grid of the features, thresholds.
        backbone: the network that makes the features; None if it was trained on features from files.
        run: the run folder it was loaded from, which lists the training videos; None if it was not loaded.
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
            # Detectors take little time, and have not been tried on Apple's GPU.
            self.detector.to("cpu" if backbone.device.type == "mps" else backbone.device)

    def __repr__(self) -> str:
        names = [name for head in self.heads for name in head.labels]
        shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
        return (
            f"Localizer({self.card.detector}, {counted(len(names), 'class')} ({shown}), features of {self.backbone!r})"
        )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The detector's classes."""
        return self.card.heads

    @torch.inference_mode()
    def detect(self, features: VideoFeatures) -> Detections:
        """All segments of a video from its features, best first, as metrics such as ``detection_map`` need them."""
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
        """Detect segments in a video.

        Args:
            video: a path, the bytes of a video file, an open binary file, frames or a list of pictures: see
                ``tada.video.inputs.source_of``.
            fps: the frame rate of frames without times, in frames per second.
            min_score: lowest score of the returned segments; by default each class has its own threshold, the best in
                validation.
            advance: called now and then with the fraction of the video read since the last call.

        Raises:
            VideoError: the video cannot be read.
            OptionError: ``video`` is no video, or its frames have no times.
            CheckpointError: the localizer was trained on features from files, and has no network to make features.
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
    def predict(  # type: ignore[overload-overlap]  # a str is a Collection, too, and an open file an Iterator
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
        """Detect segments in a video, or in each of several: ``localize`` under the name that a recognizer uses.

        A list of videos returns a list of results. A generator or other iterator of videos returns an iterator, which
        frees videos in memory once the next result is asked for. Arguments and errors are those of ``localize``. (To
        classify a whole video with the network that makes the features: ``localizer.backbone.predict``.)
        """
        if is_one_video(video):
            return self.localize(source_of(video, fps=fps), min_score=min_score)
        videos: Any = video
        answers = (
            self.localize(source_of(one, fps=fps, number=i), min_score=min_score) for i, one in enumerate(videos)
        )
        return list(answers) if isinstance(videos, Collection) else _yield_and_forget(answers)

    def __call__(self, video: Any, **options: Any) -> Any:
        """Short for ``predict``."""
        return self.predict(video, **options)

    def name_detections(
        self, found: Detections, path: str, duration_seconds: float, *, min_score: float | None = None
    ) -> Localization:
        """Give detections their class names, and drop those below the threshold."""
        usual = float(np.median(list(self.card.thresholds.values()))) if self.card.thresholds else UNTESTED_THRESHOLD
        segments = []
        for (start, end), score, labels in zip(*(rows.tolist() for rows in found), strict=True):
            label = ",".join(s.labels[i] for s, i in zip(self.heads, labels, strict=True))
            least = self.card.thresholds.get(label, usual) if min_score is None else min_score
            if score >= least:
                segments.append(LocalizedSegment(start_seconds=start, end_seconds=end, label=label, score=score))
        by_start = sorted(segments, key=lambda s: (s.start_seconds, s.end_seconds))
        return Localization(path=path, duration_seconds=duration_seconds, segments=tuple(by_start))

    def feature_maker(self) -> tuple[Recognizer, SlidingWindows]:
        """The network that makes the features, and the sliding windows of its clips.

        Raises:
            CheckpointError: the localizer was trained on features from files, and has no network to make features.
        """
        if self.backbone is None:
            raise CheckpointError(
                f"this localizer was trained on features from files ({self.card.backbone}) and has no network to make "
                "them of a video; train one on features of `tada extract`"
            )
        return self.backbone, SlidingWindows.of(self.card.feature_settings)


def _yield_and_forget(answers: Iterator[Localization]) -> Iterator[Localization]:
    for answer in answers:
        yield answer
        answer.video.forget()  # free a video in memory, as a recognizer does


def save_localizer(folder: Path, localizer: Localizer) -> None:
    """Save a localizer for ``load_localizer``; each file is written whole or not at all, localizer.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in localizer.detector.state_dict().items()}
    data = safetensors.torch.save(weights)
    if localizer.backbone is not None:
        save_model(folder / BACKBONE_FOLDER, localizer.backbone.model, localizer.backbone.card)
    card = {"label_sets" if key == "heads" else key: value for key, value in asdict(localizer.card).items()}
    card["label_sets"] = [{"name": head.name, "classes": head.labels} for head in localizer.card.heads]
    about = {"format": _FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **card}
    write_whole(folder / WEIGHTS_FILE, data)
    write_whole(folder / CARD_FILE, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


def _rename_label_sets(about: dict[str, Any]) -> dict[str, Any]:
    """The content of localizer.json, its "label_sets" renamed to ``heads``, and their "classes" to ``labels``.

    Content of another form keeps it; ``typed`` refuses it.
    """
    renamed = {"heads" if key == "label_sets" else key: value for key, value in about.items()}
    written = renamed.get("heads")
    if isinstance(written, list):
        renamed["heads"] = [
            {"labels" if key == "classes" else key: value for key, value in own.items()}
            if isinstance(own, dict)
            else own
            for own in written
        ]
    return renamed


def load_localizer(folder: str | PathLike[str], *, device: str | None = None) -> Localizer:
    """Load a localizer from the folder of a run.

    Raises:
        CheckpointError: the folder holds no localizer, or a damaged one.
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
        card = typed(LocalizerCard, _rename_label_sets(about), ignore=("format", "sha256"))
        data = read_bytes(path / WEIGHTS_FILE)
        weights = safetensors.torch.load(data)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({error}); copy the folder again, or train anew") from error
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise CheckpointError(
            f"{str(path / WEIGHTS_FILE)!r} is damaged, or its {CARD_FILE} belongs to other weights; copy it again"
        )
    recipe = read_recipe(path / RECIPE_FILE, LocalizationRecipe)
    with torch.device("meta"):  # check sizes before memory is allocated: a damaged card may ask for any amount
        check_fits(detector_of(card.shape, recipe, card.heads), weights)
    detector = detector_of(card.shape, recipe, card.heads)
    restore(detector, weights)
    backbone = load_recognizer(path / BACKBONE_FOLDER, device=device) if (path / BACKBONE_FOLDER).is_dir() else None
    return Localizer(detector, card, recipe, backbone=backbone, run=path)
