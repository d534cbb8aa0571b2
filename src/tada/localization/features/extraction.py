"""From untrimmed videos to features: clips side by side, at times and not at frame numbers.

Each frame is decoded once and made small at once, however many clips it is part of. A clip's frames are those shown at
times spread evenly around its middle; before the first and after the last frame these stand still.

Shapes: T frames of a clip, N clips, D features of the network, V crops, K classes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from os import fspath
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tada.data.table import listed
from tada.errors import ChangedVideoError, DataError, OptionError, TooLargeError, VideoError
from tada.localization.annotations.video_names import video_name
from tada.localization.features.folder import FeatureCard, VideoFeatures, read_card, write_card, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.sources import Source
from tada.recognition.recognizer import Recognizer
from tada.system.locks import holds
from tada.system.progress import Work
from tada.video.frames import OpenVideo, check_rate, probe_footage
from tada.video.inputs import VideoSource, source_of
from tada.video.prefetch import Ahead
from tada.video.sampling import ClipSpec
from tada.video.transforms import normalise, test_crops

_FRAMES_AT_ONCE = 32
_DENSE_SECONDS, _SPARSE_SECONDS = 2 / 15, 8 / 15  # 0.133 and 0.533 s, the strides of the published features
_SHORT_ACTION_SECONDS = 4.0
MAX_FEATURES = 500_000
"""Most of one video: 18 hours at the smallest stride of the published features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionSettings:
    """How clips lie in a video."""

    window_seconds: float
    """What a clip spans."""
    stride_seconds: float
    """From one clip's middle to the next."""
    num_crops: Literal[1, 3] = 1
    """The middle of the frame; or three, side by side, as channels one after the other."""

    def __post_init__(self) -> None:
        for name in ("window_seconds", "stride_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name}={getattr(self, name)} should be a positive number of seconds")
        if self.num_crops not in (1, 3):
            raise OptionError(f"num_crops={self.num_crops} should be 1 or 3")

    @classmethod
    def for_clips(
        cls,
        clip: ClipSpec,
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        num_crops: Literal[1, 3] = 1,
        segment_seconds: Sequence[float] = (),
        frame_seconds: float = 0.0,
    ) -> ExtractionSettings:
        """Fill in what was not given.

        The window is what the network's clips span. A network of segments has seen whole actions: then it is the median
        of ``segment_seconds``. The stride is 0.133 s for actions of less than 4 s, else 0.533 s, as published features
        have it, but at most a fourth of the window, and no less than ``frame_seconds``, for which a frame of the videos
        is shown: between two frames there is nothing new.

        Raises:
            OptionError: a network of segments, and neither a window nor segments; or these are shorter than a frame,
                as events are that are marked with a point in time.
        """
        median = float(np.median(segment_seconds)) if len(segment_seconds) else None
        if window_seconds is None:
            if clip.sampling == "interval" and clip.fps is not None:
                window_seconds = clip.num_frames * clip.interval / clip.fps
            elif median is not None:
                if median < frame_seconds:
                    raise OptionError(
                        f"half of the segments last {median:.3g} s or less, and one frame of the videos "
                        f"{frame_seconds:.3g} s, so that they do not say how much of a video shows what happens: let "
                        "each last as long as that does, or give --window-seconds, about as long"
                    )
                window_seconds = median
            else:
                raise OptionError(
                    "the network was trained on whole videos cut into segments, so it does not say how long a clip "
                    "lasts: give --window-seconds, about as long as what it is to see"
                )
        if stride_seconds is None:
            dense = median is not None and median < _SHORT_ACTION_SECONDS
            stride_seconds = min(_DENSE_SECONDS if dense else _SPARSE_SECONDS, window_seconds / 4)
            stride_seconds = max(stride_seconds, frame_seconds)
        return cls(window_seconds=window_seconds, stride_seconds=stride_seconds, num_crops=num_crops)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ExtractionSettings:
        """Those among the plain values that ``settings_of`` gave."""
        return cls(**{entry.name: plain[entry.name] for entry in fields(cls)})

    @property
    def grid(self) -> FeatureGrid:
        """Feature k stands for the k-th stride of the video, its middle."""
        return FeatureGrid(
            start_seconds=self.stride_seconds / 2,
            stride_seconds=self.stride_seconds,
            window_seconds=self.window_seconds,
        )

    def count(self, duration_seconds: float) -> int:
        """Features of a video: each whole or half-filled stride has one, and there is at least one."""
        return max(1, math.floor(duration_seconds / self.stride_seconds + 0.5))

    def clip_times(self, index: int, num_frames: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When the frames of clip ``index`` are shown, [T]: the middles of T equal parts of its window.

        With a millisecond's grace, as in testing: WebM and MKV round times to milliseconds.
        """
        middle = float(self.grid.seconds(float(index)))
        parts: np.ndarray[tuple[int], np.dtype[np.float64]] = (np.arange(num_frames) + 0.5) / num_frames - 0.5
        return middle + parts * self.window_seconds + 1e-3


def backbone_hash(model: nn.Module) -> str:
    """SHA-256 of a network's weights: that of the model.safetensors they are saved in."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def settings_of(backbone: Recognizer, settings: ExtractionSettings) -> dict[str, object]:
    """All that decides what features are, beside the weights: plain values."""
    return {
        **asdict(settings),
        "model": backbone.card.model,
        "num_frames": backbone.clip.num_frames,
        "short_side": backbone.clip.short_side,
        "crop": backbone.clip.crop,
        "antialias": backbone.clip.antialias,
    }


def clips_of(reader: OpenVideo, spec: ClipSpec, settings: ExtractionSettings, clip_range: range) -> Iterator[Tensor]:
    """The crops of each clip, uint8 [V, T, crop, crop, 3], in order; every frame is decoded once.

    Frames wait, resized and cut, until no later clip needs them.
    """
    times = reader.times_seconds
    needed = np.empty((len(clip_range), spec.num_frames), np.int64)
    for row, index in enumerate(clip_range):
        shown = np.searchsorted(times, settings.clip_times(index, spec.num_frames), side="right") - 1
        needed[row] = np.clip(shown, 0, len(times) - 1)
    wanted = iter(np.unique(needed).tolist())
    ready: dict[int, Tensor] = {}  # [V, crop, crop, 3]
    for clip in map(np.ndarray.tolist, needed):
        while clip[-1] not in ready:
            part = [frame for _, frame in zip(range(_FRAMES_AT_ONCE), wanted, strict=False)]
            crops = reader.frames(part, shrink=lambda frames: frame_crops(frames, spec, settings).numpy())
            ready.update(zip(part, torch.from_numpy(crops), strict=True))
        for frame in [frame for frame in ready if frame < clip[0]]:
            del ready[frame]
        yield torch.stack([ready[frame] for frame in clip], dim=1)


def frame_crops(frames: NDArray[np.uint8], spec: ClipSpec, settings: ExtractionSettings) -> Tensor:
    """Frames [N, H, W, 3], made small and cut: uint8 [N, V, crop, crop, 3]."""
    crops = test_crops(
        torch.from_numpy(frames),
        short_side=spec.short_side,
        crop=spec.crop,
        num_crops=settings.num_crops,
        antialias=spec.antialias,
    )
    return torch.stack(crops, dim=1)


@torch.inference_mode()
def clip_outputs(backbone: Recognizer, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Clips of all crops, uint8 [N, V, T, H, W, 3] -> features [N, V * D] and the mean probabilities [N, K]."""
    n, v = clips.shape[:2]
    features = backbone.network.features(normalise(clips.flatten(0, 1).to(backbone.device)))
    head: Any = backbone.model.head
    scores = backbone.probabilities(head(features)).view(n, v, -1).mean(1)
    return features.reshape(n, -1).cpu(), scores.cpu()


def extract_video(
    backbone: Recognizer,
    video: Path | VideoSource,
    settings: ExtractionSettings,
    *,
    batch_size: int = 16,
    backbone_sha256: str | None = None,
    advance: Callable[[float], None] = lambda part: None,
) -> VideoFeatures:
    """The features of one video.

    Args:
        backbone_sha256: ``backbone_hash`` of the network, where it is known.
        advance: told after each batch which part of the video it was.

    Raises:
        VideoError: the video cannot be read to its end.
    """
    features, scores = [], []
    source = source_of(video)
    with source.open() as reader:
        duration = reader.info.duration_seconds
        count = settings.count(duration)
        if count > MAX_FEATURES:
            raise TooLargeError(
                f"{source.name!r} lasts {duration:.0f} s by its own account, which gives {count} features, and at "
                f"most {MAX_FEATURES} are made of a video; cut it into parts, or let --stride-seconds be larger",
                source.name,
            )
        batch: list[Tensor] = []
        # The next batch is decoded while the network is busy with this one.
        with Ahead(clips_of(reader, backbone.clip, settings, range(count)), size=batch_size) as clips:
            for i, clip in enumerate(clips, start=1):
                batch.append(clip)
                if len(batch) == batch_size or i == count:
                    found, probabilities = clip_outputs(backbone, torch.stack(batch))
                    features.append(found)
                    scores.append(probabilities)
                    advance(len(batch) / count)
                    batch = []
    return joined(
        backbone,
        settings,
        torch.cat(features).numpy(),
        torch.cat(scores).numpy(),
        video=video_name(Path(source.name).name),
        duration_seconds=duration,
        backbone_sha256=backbone_sha256,
    )


def joined(
    backbone: Recognizer,
    settings: ExtractionSettings,
    features: NDArray[np.float32],
    scores: NDArray[np.float32],
    *,
    video: str,
    duration_seconds: float,
    backbone_sha256: str | None = None,
) -> VideoFeatures:
    """What ``clip_outputs`` gave, features [N, C] and probabilities [N, K], with the card that says what they are."""
    card = FeatureCard(
        video=video,
        duration_seconds=duration_seconds,
        grid=settings.grid,
        num_features=len(features),
        channels=features.shape[1],
        backbone=backbone_sha256 or backbone_hash(backbone.model),
        settings=settings_of(backbone, settings),
        score_labels={head.name: list(head.labels) for head in backbone.heads},
    )
    ends = np.cumsum([len(head.labels) for head in backbone.heads])[:-1]
    names = [head.name for head in backbone.heads]
    of_heads = dict(zip(names, np.split(scores, ends, axis=1), strict=True))
    return VideoFeatures(card=card, features=features, scores=of_heads)


class Failure(NamedTuple):
    """A video without features, and why."""

    path: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What became of a folder of videos."""

    written: tuple[str, ...]
    """Names of videos whose features are new."""
    kept: tuple[str, ...]
    """Names of those that had theirs already."""
    failures: tuple[Failure, ...]
    """Videos that could not be read."""
    replaced: tuple[str, ...] = ()
    """Names of videos that had features of another content, which were thrown away: the file had been replaced. Of
    those that an older tada extracted only the length tells."""
    assumed: tuple[str, ...] = ()
    """Of those that were kept: whose features did not say what they were made of."""

    def lines(self) -> list[str]:
        """What is worth knowing besides the numbers."""
        found = []
        if self.replaced:
            found.append(
                f"replaced since their features were extracted, which were therefore made anew: {listed(self.replaced)}"
            )
        if self.assumed:
            found.append(
                f"features that an older tada extracted do not say of which content they are: those of "
                f"{listed(self.assumed)} are taken to be of the videos that are there now; remove them if that is wrong"
            )
        return found


@holds("out")
def extract(
    backbone: Recognizer,
    videos: Mapping[str, Path],
    out: Path,
    settings: ExtractionSettings,
    *,
    fps: float | None = None,
    batch_size: int = 16,
    show_progress: bool = True,
) -> Extraction:
    """Extract the features of videos into a folder; those that are there, of this backbone and setting, are kept.

    So an extraction that was interrupted goes on where it was. Features of a video that has been replaced since are
    made anew. A video that cannot be read, even in its middle, leaves nothing behind and does not keep the others from
    being read.

    Args:
        videos: files, or folders of frames, by the videos' names.
        fps: the rate of folders of frames, in frames per second.

    Raises:
        OptionError: there are folders of frames and no rate, or a rate and no such folders.
        DataError: the folder holds features of another backbone or setting, or of another video of the same name.
    """
    check_rate(list(videos.values()), fps, needed="features are taken at times")
    sha256 = backbone_hash(backbone.model)
    expected = settings_of(backbone, settings)
    missing, kept, replaced, assumed = [], [], [], []
    for name, path in videos.items():
        file = out / f"{name}.json"
        if not (file.exists() and file.with_suffix(".npz").exists()):
            missing.append(name)
            continue
        card = read_card(file)
        if card.backbone != sha256 or card.settings != expected:
            changed = [key for key in expected if card.settings.get(key) != expected[key]] or ["backbone"]
            raise DataError(
                f"{str(file)!r} holds features of another {', '.join(changed)}; extract into another folder, or remove "
                "this one"
            )
        if _is_of_another_content(card, path, file) or (
            (card.source is None or path.is_dir()) and _is_of_another_length(card, path, fps)
        ):
            replaced.append(name)
            missing.append(name)
            continue
        kept.append(name)
        if card.source is None:
            assumed.append(name)
        _bind(out, card, path)
    written, failures = [], []
    with Work("extracting", len(missing), noun="videos", is_shown=show_progress) as work:
        for done, name in enumerate(missing):
            work.details = [name]
            if name in replaced:
                (out / f"{name}.json").unlink()
            try:
                source = source_of(videos[name], fps=fps if videos[name].is_dir() else None)
                found = _extract_bound(backbone, source, settings, batch_size, sha256, work.advance)
            except VideoError as error:
                failures.append(Failure(fspath(videos[name]), str(error)))
            else:
                write_features(out, replace(found, card=replace(found.card, video=name)))
                written.append(name)
            work.advance_to(done + 1)
    return Extraction(
        written=tuple(written),
        kept=tuple(kept),
        failures=tuple(failures),
        replaced=tuple(replaced),
        assumed=tuple(assumed),
    )


def _is_of_another_content(card: FeatureCard, path: Path, file: Path) -> bool:
    """Whether the features in a file are not of the video that lies at a path now.

    Raises:
        DataError: they are of another video that has the same name, and is still there.
    """
    source = card.source
    try:
        if source is None or source.is_now(path):
            return False
    except OSError:  # nothing is there any more that they could be compared with
        return False
    if os.path.abspath(path) != source.path and source.is_still_there():
        raise DataError(
            f"{str(file)!r} holds the features of {source.path!r}, and {str(path)!r} has the same name; extract both "
            "with one command (give the folder that holds them), or into another folder"
        )
    return True


def _is_of_another_length(card: FeatureCard, path: Path, fps: float | None) -> bool:
    """Whether a video lasts longer or shorter than its features say, which do not tell what they were made of.

    It was replaced; or an older tada counted its times from the first picture, and not from the container's start; or
    its frames had another rate.
    """
    try:
        duration = probe_footage(path, fps=fps).duration_seconds
    except VideoError:  # extracting it again would not be better
        return False
    return abs(duration - card.duration_seconds) > (1e-3 if path.is_dir() else card.grid.stride_seconds / 2)


def _bind(out: Path, card: FeatureCard, path: Path) -> None:
    """Note what a video is, and where, whose features are kept, so that it need not be read the next time."""
    before = card.source
    with suppress(OSError):  # the video is gone, or the folder may not be written: then all stays as it is
        if before is not None and before.is_untouched(path):
            now = before.with_originals()
        else:
            now = Source.of(path)
            if before is not None and not now.originals:  # a copy stays one where its manifest is not
                now = replace(now, originals=before.originals)
        if now != before:
            write_card(out, replace(card, source=now))


def _source_of(path: Path) -> Source | None:
    """What a file is; None where it cannot be read."""
    try:
        return Source.of(path)
    except OSError:
        return None


def _extract_bound(
    backbone: Recognizer,
    video: VideoSource,
    settings: ExtractionSettings,
    batch_size: int,
    backbone_sha256: str,
    advance: Callable[[float], None],
) -> VideoFeatures:
    """The features of a video, bound to its content."""
    path = Path(video.name)
    before = _source_of(path)
    found = extract_video(
        backbone, video, settings, batch_size=batch_size, backbone_sha256=backbone_sha256, advance=advance
    )
    after = _source_of(path)
    if after is None or before != after:
        raise ChangedVideoError(f"{fspath(path)!r} was changed while its features were extracted", fspath(path))
    return replace(found, card=replace(found.card, source=after))
