"""Feature extraction from untrimmed videos: a clip every stride, counted in seconds, not in frames.

Each frame is decoded and resized once, however many clips contain it. A clip's frames are those shown at times spaced
evenly around its middle; before the start and after the end of the video, its first and last frame are repeated.

Shapes: T frames of a clip, N clips, D features of the network, V crops, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tada.data.table import Unreadable
from tada.errors import ChangedVideoError, DataError, VideoError, listed
from tada.localization.annotations.video_names import video_name
from tada.localization.features.folder import FeatureCard, VideoFeatures, read_card, write_card, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.sources import Source
from tada.recognition.recognizer import Recognizer
from tada.system.accelerator import HostCopy, copy_to_device
from tada.system.files import absolute_path
from tada.system.locks import holds
from tada.system.progress import Work
from tada.video.frames import check_rate, probe_footage
from tada.video.inputs import VideoSource, source_at, source_of
from tada.video.prefetch import Ahead
from tada.video.sampling import NORMALIZATION
from tada.video.sliding_windows import (
    SlidingWindows,
    clips_of,
)
from tada.video.transforms import normalize


def backbone_hash(model: nn.Module) -> str:
    """SHA-256 of a network's weights, equal to that of their model.safetensors."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def settings_as_dict(backbone: Recognizer, settings: SlidingWindows) -> dict[str, object]:
    """All settings that features depend on, besides the weights, as plain values."""
    pixels = backbone.clip.normalization  # left out where it is as in features of older versions
    return {
        **asdict(settings),
        "model": backbone.card.model,
        "num_frames": backbone.clip.num_frames,
        "short_side": backbone.clip.short_side,
        "crop": backbone.clip.crop,
        "antialias": backbone.clip.antialias,
        **({} if pixels == NORMALIZATION else {"mean": list(pixels[0]), "std": list(pixels[1])}),
    }


@torch.inference_mode()
def clip_outputs(backbone: Recognizer, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, V * D] and mean class probabilities [N, K] of clips, uint8 [N, V, T, H, W, 3]."""
    n, v = clips.shape[:2]
    pixels = normalize(copy_to_device(clips.flatten(0, 1), backbone.device), *backbone.clip.normalization)
    features = backbone.network.features(pixels)
    head: Any = backbone.model.head
    scores = backbone.probabilities(head(features)).view(n, v, -1).mean(1)
    found = HostCopy(features.reshape(n, -1)), HostCopy(scores)
    return found[0].value(), found[1].value()


def extract_video(
    backbone: Recognizer,
    video: Path | VideoSource,
    settings: SlidingWindows,
    *,
    batch_size: int = 16,
    backbone_sha256: str | None = None,
    advance: Callable[[float], None] = lambda part: None,
) -> VideoFeatures:
    """Extract the features of one video.

    Args:
        backbone_sha256: ``backbone_hash`` of the network, if known.
        advance: called after each batch with the fraction of the video that it was.

    Raises:
        VideoError: the video cannot be read to its end.
    """
    features, scores = [], []
    source = source_of(video)
    with source.open() as reader:
        duration = reader.info.duration_seconds
        count = settings.checked_count(duration, source.name)
        batch: list[Tensor] = []
        # Prefetch: the next batch is decoded while the network processes this one.
        with Ahead(clips_of(reader, backbone.clip, settings, range(count)), size=batch_size) as clips:
            for i, clip in enumerate(clips, start=1):
                batch.append(clip)
                if len(batch) == batch_size or i == count:
                    found, probabilities = clip_outputs(backbone, torch.stack(batch))
                    features.append(found)
                    scores.append(probabilities)
                    advance(len(batch) / count)
                    batch = []
    return join_outputs(
        backbone,
        settings,
        torch.cat(features).numpy(),
        torch.cat(scores).numpy(),
        video=video_name(Path(source.name).name),
        duration_seconds=duration,
        backbone_sha256=backbone_sha256,
    )


def join_outputs(
    backbone: Recognizer,
    settings: SlidingWindows,
    features: NDArray[np.float32],
    scores: NDArray[np.float32],
    *,
    video: str,
    duration_seconds: float,
    backbone_sha256: str | None = None,
) -> VideoFeatures:
    """Join features [N, C] and probabilities [N, K] from ``clip_outputs`` with their card."""
    card = FeatureCard(
        video=video,
        duration_seconds=duration_seconds,
        grid=FeatureGrid.of_windows(settings),
        num_features=len(features),
        channels=features.shape[1],
        backbone=backbone_sha256 or backbone_hash(backbone.model),
        settings=settings_as_dict(backbone, settings),
        score_labels={head.name: list(head.labels) for head in backbone.heads},
    )
    ends = np.cumsum([len(head.labels) for head in backbone.heads])[:-1]
    names = [head.name for head in backbone.heads]
    of_heads = dict(zip(names, np.split(scores, ends, axis=1), strict=True))
    return VideoFeatures(card=card, features=features, scores=of_heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """Result of extracting the features of several videos."""

    written: tuple[str, ...]
    """Names of videos whose features were extracted."""
    kept: tuple[str, ...]
    """Names of videos whose features existed and were kept."""
    failures: tuple[Unreadable, ...]
    """Videos that could not be read."""
    replaced: tuple[str, ...] = ()
    """Names of videos that were replaced since, whose features were discarded and extracted anew. For features from an
    older tada, only the video's length is compared."""
    assumed: tuple[str, ...] = ()
    """Names of kept videos whose features do not note the video's content."""

    def lines(self) -> list[str]:
        """Lines for the user about ``replaced`` and ``assumed``."""
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
    settings: SlidingWindows,
    *,
    fps: float | None = None,
    batch_size: int = 16,
    show_progress: bool = True,
) -> Extraction:
    """Extract the features of videos into a folder; existing ones of this backbone and these settings are kept.

    So an interrupted extraction continues where it stopped. Features of a video that was replaced since are extracted
    anew. A video that cannot be read, even in its middle, writes nothing, and the others are extracted all the same.

    Args:
        videos: files, or folders of frames, by name.
        fps: frame rate of folders of frames, in frames per second.

    Raises:
        OptionError: folders of frames without ``fps``, or ``fps`` without such folders.
        DataError: the folder has features of another backbone or other settings, or of another video of the same name.
    """
    check_rate(list(videos.values()), fps, needed="features are taken at times")
    sha256 = backbone_hash(backbone.model)
    expected = settings_as_dict(backbone, settings)
    missing, kept, replaced, assumed = [], [], [], []
    for name, path in videos.items():
        file = out / f"{name}.json"
        if not (file.exists() and file.with_suffix(".npz").exists()):
            missing.append(name)
            continue
        card = read_card(file)
        if card.backbone != sha256 or card.settings != expected:
            keys = card.settings | expected
            changed = [key for key in keys if card.settings.get(key) != expected.get(key)] or ["backbone"]
            raise DataError(
                f"{str(file)!r} holds features of another {', '.join(changed)}; extract into another folder, or remove "
                "this one"
            )
        if _has_other_content(card, path, file) or (
            (card.source is None or path.is_dir()) and _has_other_duration(card, path, fps)
        ):
            replaced.append(name)
            missing.append(name)
            continue
        kept.append(name)
        if card.source is None:
            assumed.append(name)
        _update_source(out, card, path)
    written, failures = [], []
    with Work("extracting", len(missing), noun="videos", is_shown=show_progress) as work:
        for done, name in enumerate(missing):
            work.details = [name]
            if name in replaced:
                (out / f"{name}.json").unlink()
            try:
                source = source_at(str(videos[name]), fps=fps)
                found = _extract_with_source(backbone, source, settings, batch_size, sha256, work.advance)
            except VideoError as error:
                failures.append(Unreadable(fspath(videos[name]), str(error)))
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


def _has_other_content(card: FeatureCard, path: Path, file: Path) -> bool:
    """Whether features were extracted from another content than the video at ``path`` has now.

    Raises:
        DataError: they are of another video of the same name, which still exists.
    """
    source = card.source
    try:
        if source is None or source.is_now(path):
            return False
    except OSError:  # the video is gone: nothing to compare with
        return False
    if absolute_path(path) != source.path and source.is_still_there():
        raise DataError(
            f"{str(file)!r} holds the features of {source.path!r}, and {str(path)!r} has the same name; extract both "
            "with one command (give the folder that holds them), or into another folder"
        )
    return True


def _has_other_duration(card: FeatureCard, path: Path, fps: float | None) -> bool:
    """Whether a video's duration differs from that of its features, for features that do not note the content.

    The video was replaced; or an older tada counted times from the first frame, not from the container's start; or the
    frame rate of a folder of frames was another.
    """
    try:
        duration = probe_footage(path, fps=fps).duration_seconds
    except VideoError:  # extraction would fail, too
        return False
    return abs(duration - card.duration_seconds) > (1e-3 if path.is_dir() else card.grid.stride_seconds / 2)


def _update_source(out: Path, card: FeatureCard, path: Path) -> None:
    """Update the source in the card of kept features, so that the video need not be read the next time."""
    before = card.source
    with suppress(OSError):  # the video is gone, or the folder is read-only: keep the card as it is
        if before is not None and before.is_untouched(path):
            now = before.with_originals()
        else:
            now = Source.of(path)
            if before is not None and not now.originals:  # keep the noted originals if the manifest is gone
                now = replace(now, originals=before.originals)
        if now != before:
            write_card(out, replace(card, source=now))


def _read_source(path: Path) -> Source | None:
    """The source of a file; None if it cannot be read."""
    try:
        return Source.of(path)
    except OSError:
        return None


def _extract_with_source(
    backbone: Recognizer,
    video: VideoSource,
    settings: SlidingWindows,
    batch_size: int,
    backbone_sha256: str,
    advance: Callable[[float], None],
) -> VideoFeatures:
    """Extract the features of a video; the card notes its content.

    Raises:
        ChangedVideoError: the file was changed meanwhile.
    """
    path = Path(video.name)
    before = _read_source(path)
    found = extract_video(
        backbone, video, settings, batch_size=batch_size, backbone_sha256=backbone_sha256, advance=advance
    )
    after = _read_source(path)
    if after is None or before != after:
        raise ChangedVideoError(f"{fspath(path)!r} was changed while its features were extracted", fspath(path))
    return replace(found, card=replace(found.card, source=after))
