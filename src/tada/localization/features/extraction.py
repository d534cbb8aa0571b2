"""From untrimmed videos to features: clips side by side, at times and not at frame numbers.

Each frame is decoded once and made small at once, however many clips it is part of. A clip's frames are those shown at
times spread evenly around its middle; before the first and after the last frame these stand still.

Shapes: T frames of a clip, N clips, D features of the network, V crops, K classes.
"""

from __future__ import annotations

import hashlib
import os
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
from tada.errors import ChangedVideoError, DataError, TooLargeError, VideoError, listed
from tada.localization.annotations.video_names import video_name
from tada.localization.features.folder import FeatureCard, VideoFeatures, read_card, write_card, write_features
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.sources import Source
from tada.recognition.recognizer import Recognizer
from tada.system.locks import holds
from tada.system.progress import Work
from tada.video.frames import check_rate, probe_footage
from tada.video.inputs import VideoSource, source_of
from tada.video.prefetch import Ahead
from tada.video.sliding_windows import (
    SlidingWindows,
    clips_of,
)
from tada.video.transforms import normalize

MAX_FEATURES = 500_000
"""Most of one video: 18 hours at the smallest stride of the published features."""


def backbone_hash(model: nn.Module) -> str:
    """SHA-256 of a network's weights: that of the model.safetensors they are saved in."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def settings_as_dict(backbone: Recognizer, settings: SlidingWindows) -> dict[str, object]:
    """All that decides what features are, beside the weights: plain values."""
    return {
        **asdict(settings),
        "model": backbone.card.model,
        "num_frames": backbone.clip.num_frames,
        "short_side": backbone.clip.short_side,
        "crop": backbone.clip.crop,
        "antialias": backbone.clip.antialias,
    }


@torch.inference_mode()
def clip_outputs(backbone: Recognizer, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Clips of all crops, uint8 [N, V, T, H, W, 3] -> features [N, V * D] and the mean probabilities [N, K]."""
    n, v = clips.shape[:2]
    features = backbone.network.features(normalize(clips.flatten(0, 1).to(backbone.device)))
    head: Any = backbone.model.head
    scores = backbone.probabilities(head(features)).view(n, v, -1).mean(1)
    return features.reshape(n, -1).cpu(), scores.cpu()


def extract_video(
    backbone: Recognizer,
    video: Path | VideoSource,
    settings: SlidingWindows,
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
    """What ``clip_outputs`` gave, features [N, C] and probabilities [N, K], with the card that says what they are."""
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
    """What became of a folder of videos."""

    written: tuple[str, ...]
    """Names of videos whose features are new."""
    kept: tuple[str, ...]
    """Names of those that had theirs already."""
    failures: tuple[Unreadable, ...]
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
    settings: SlidingWindows,
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
    expected = settings_as_dict(backbone, settings)
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
    settings: SlidingWindows,
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
