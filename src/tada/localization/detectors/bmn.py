"""BMN, the boundary-matching network of the paper's localization experiments: it scores every start and duration.

Source: Lin et al., "BMN: Boundary-Matching Network for Temporal Action Proposal Generation" (ICCV 2019), as released
with TAdaConv (75b7839, models/module_zoo/heads/bmn_head.py). Proposals have no classes: those come from the
backbone's class scores.

The released network samples 32 points of every proposal into a tensor [256, 32, D, T] of 312 MiB (T = D = 100) and
convolves it. Interpolation and convolution are both linear, so here each of the 32 kernels is applied to the T steps
first, and then sampled: the same numbers without that tensor.

Differs from the released code: in a batch without positives, losses are finite and train the negatives (there they are
NaN or 0); the sampling matrix is not saved in checkpoints; features are sampled at the times of a window's bins
(there a resize shifts them by up to half a feature).

Shapes: B windows, C channels, T bins, D durations in bins, G segments, N proposals. Cell (d, t) is the proposal from
bin t's start to bin t + d's end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tada.data.table import Head
from tada.errors import OptionError
from tada.localization.annotations.table import UntrimmedVideo
from tada.localization.detectors.bmn_losses import BMNOutputs, bmn_losses, targets, valid_cells
from tada.localization.detectors.nms import Detections, Floats, soft_nms
from tada.localization.detectors.samples import Piece, RollingView, Sample, SampleBatch, pad, truths
from tada.localization.features.folder import VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.interpolation import at_times
from tada.localization.naming import name_segments, naming_scores
from tada.localization.recipe import LocalizationRecipe

_POINTS_PER_SAMPLE = 3
_BOUNDARY_RATIO = 0.5  # a proposal is sampled half its length beyond both ends
_HIDDEN, _MATCHED, _MAPS = 256, 512, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class BMNConfig:
    """Sizes of the network. Plain values, so that they can be saved as JSON."""

    in_channels: int
    """Channels C of the features."""
    num_bins: int = 100
    """Bins T of a window."""
    max_duration_bins: int = 100
    """Longest duration D of a proposal, in bins."""
    bin_seconds: float | None = None
    """Length of a bin, for windows that slide over the video by D bins; None: the whole video is one window."""
    num_samples: int = 32
    """Samples of each proposal, each the mean of three points."""

    def __post_init__(self) -> None:
        if not (self.in_channels >= 4 and self.in_channels % 4 == 0):
            raise OptionError(f"in_channels={self.in_channels} should be a multiple of 4, for four groups")
        if not 1 <= self.max_duration_bins <= self.num_bins or self.num_samples < 1:
            raise OptionError(f"{self}: max_duration_bins should be from 1 to num_bins")
        if self.bin_seconds is not None and not self.bin_seconds > 0:
            raise OptionError(f"bin_seconds={self.bin_seconds} should be positive, or null for whole videos")

    @classmethod
    def for_data(
        cls, *, in_channels: int, segment_seconds: Floats, video_seconds: Floats, stride_seconds: float
    ) -> BMNConfig:
        """Choose the windows from the training data.

        If 90 % of the segments have two bins or more: whole videos in 100 bins; else windows of twice the longest.

        Args:
            segment_seconds: lengths of the training segments.
            video_seconds: lengths of the training videos.
        """
        whole = float(np.median(video_seconds)) / 100
        if np.percentile(segment_seconds, 10) >= 2 * whole:
            return cls(in_channels=in_channels)
        bins = min(max(math.ceil(float(np.max(segment_seconds)) / stride_seconds) + 1, 8), 100)
        return cls(
            in_channels=in_channels, num_bins=2 * bins, max_duration_bins=bins, bin_seconds=float(stride_seconds)
        )


# -- the network ------------------------------------------------------------------------------------------------------


class BMN(nn.Module):
    """The network; ``bmn_losses`` computes its training losses, ``proposals`` reads its outputs."""

    def __init__(self, config: BMNConfig) -> None:
        super().__init__()
        self.config = config
        self.base = nn.Sequential(_conv(config.in_channels, groups=4), nn.ReLU(), _conv(groups=4), nn.ReLU())
        self.start = nn.Sequential(_conv(groups=4), nn.ReLU(), nn.Conv1d(_HIDDEN, 1, 1))
        self.end = nn.Sequential(_conv(groups=4), nn.ReLU(), nn.Conv1d(_HIDDEN, 1, 1))
        self.proposal = nn.Sequential(_conv(), nn.ReLU())
        self.matching = BoundaryMatching(config)
        # ReLU in place: no other module reads the convolutions' outputs.
        self.maps = nn.Sequential(
            nn.Conv2d(_MATCHED, _MAPS, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_MAPS, _MAPS, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_MAPS, _MAPS, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_MAPS, 2, 1),
        )

    def forward(self, features: Tensor) -> BMNOutputs:
        """Features [B, C, T] of windows -> probabilities of starts, ends and proposals."""
        # Base module: two convolutions, [B, C, T] -> [B, 256, T].
        x = self.base(features)
        # Proposal map: samples of every proposal, [B, 512, D, T]; 2-D convolutions make confidences, [B, 2, D, T].
        confidence = self.maps(F.relu(self.matching(self.proposal(x))))
        # Boundaries: probabilities of start and end, [B, T] each.
        return BMNOutputs(self.start(x)[:, 0].sigmoid(), self.end(x)[:, 0].sigmoid(), confidence.sigmoid())


def _conv(channels: int = _HIDDEN, *, groups: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, _HIDDEN, 3, padding=1, groups=groups)


class BoundaryMatching(nn.Module):
    """Boundary-matching layer: sample each proposal 32 times and convolve the samples, [B, 256, T] -> [B, 512, D, T].

    Computed as sum over n of S_n (W_n x): W_n, kernel n, is applied to the bins; the sparse matrix S_n samples.
    """

    def __init__(self, config: BMNConfig) -> None:
        super().__init__()
        self.num_bins, self.num_durations, self.num_samples = (
            config.num_bins,
            config.max_duration_bins,
            config.num_samples,
        )
        like = nn.Conv3d(_HIDDEN, _MATCHED, (config.num_samples, 1, 1))  # only for its initial weights
        assert like.bias is not None
        self.weight = nn.Parameter(like.weight.detach().view(_MATCHED, _HIDDEN, config.num_samples))
        self.bias = nn.Parameter(like.bias.detach())
        # Constants, not buffers: neither checkpoints nor averaged weights should hold them.
        self._sampling: dict[tuple[torch.device, torch.dtype], tuple[SparseRows, SparseRows]] = {}

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[2]
        if t != self.num_bins:
            raise ValueError(f"{t} bins should be {self.num_bins}")
        with torch.autocast(x.device.type, enabled=False):  # sums are computed in the weights' type
            x, weight = x.to(self.weight.dtype), self.weight
            sampling, transposed = self._sampling_matrices(x.device, x.dtype)
            projected = torch.einsum("ocn,bct->bnto", weight, x).flatten(1, 2)  # [B, num_samples * T, 512]
            sampled: Tensor = _SparseProduct.apply(sampling, transposed, projected)  # type: ignore[no-untyped-call]  # torch does not say
        matched = sampled.add_(self.bias)
        return matched.view(-1, self.num_durations, t, _MATCHED).permute(0, 3, 1, 2)  # channels last

    def _sampling_matrices(self, device: torch.device, dtype: torch.dtype) -> tuple[SparseRows, SparseRows]:
        """The sampling matrix and its transpose, cached for each device and type."""
        key = (device, dtype)
        if key not in self._sampling:
            cells, columns, weights = sampling_weights(self.num_bins, self.num_durations, self.num_samples)
            num_cells, num_columns = self.num_durations * self.num_bins, self.num_samples * self.num_bins
            self._sampling[key] = (
                SparseRows.of(cells, columns, weights, num_rows=num_cells).to(device, dtype),
                SparseRows.of(columns, cells, weights, num_rows=num_columns).to(device, dtype),
            )
        return self._sampling[key]


class SparseRows(NamedTuple):
    """A constant sparse matrix in CSR format; multiplying by it makes weighted sums of rows."""

    starts: Tensor
    """Index of each row's first entry; the last element is the number of entries"""
    columns: Tensor
    """Column of each entry"""
    weights: Tensor
    """Value of each entry"""

    @classmethod
    def of(cls, rows: NDArray[np.int64], columns: NDArray[np.int64], weights: Floats, *, num_rows: int) -> SparseRows:
        """Build the matrix from its entries; entries with the same row and column are added."""
        num_columns = int(columns.max()) + 1
        places, which = np.unique(rows * num_columns + columns, return_inverse=True)
        starts = np.searchsorted(places, np.arange(num_rows + 1) * num_columns)
        summed = np.bincount(which.reshape(-1), weights)
        return cls(torch.from_numpy(starts), torch.from_numpy(places % num_columns), torch.from_numpy(summed))

    def to(self, device: torch.device, dtype: torch.dtype) -> SparseRows:
        """Copy to a device, with weights of another type."""
        return SparseRows(self.starts.to(device), self.columns.to(device), self.weights.to(device, dtype))

    def times(self, dense: Tensor) -> Tensor:
        """Multiply each matrix of a batch, [B, J, K] -> [B, I, K]."""
        # embedding_bag is four times as fast on a CPU as torch's sparse matrices, and works on every system.
        products = [
            F.embedding_bag(
                self.columns,
                matrix,
                self.starts,
                mode="sum",
                per_sample_weights=self.weights,
                include_last_offset=True,
            )
            for matrix in dense
        ]
        return torch.stack(products)


class _SparseProduct(torch.autograd.Function):
    """Product of a constant sparse matrix and dense ones; the backward pass multiplies by its transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseRows, transposed: SparseRows, dense: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix.times(dense)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed.times(gradient.contiguous())


def sampling_weights(
    num_bins: int, num_durations: int, num_samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Entries of the matrix that samples each proposal by linear interpolation between bins.

    96 points are spaced evenly from half a length before the proposal to half a length after it; each sample is the
    mean of three neighboring points. Bins outside the window count as 0. (A point less than one bin before the window
    takes the value of bin 0: the released code truncates towards zero.)

    Returns:
        Entries of the matrix [D * T cells, num_samples * T]: rows d * T + t, columns n * T + bin, weights. Entries with
        the same row and column are to be added. Proposals that end beyond the window have no entries.
    """
    duration, start = np.meshgrid(np.arange(num_durations), np.arange(num_bins), indexing="ij")
    valid = start + duration < num_bins
    cells = (duration * num_bins + start)[valid]
    first, length = start[valid].astype(np.float64), duration[valid] + 1.0
    low = first - length * _BOUNDARY_RATIO
    high = first + length - 1 + length * _BOUNDARY_RATIO
    num_points = num_samples * _POINTS_PER_SAMPLE
    points = low[:, None] + (high - low)[:, None] / (num_points - 1) * np.arange(num_points)  # [cells, points]
    part, down = np.modf(points)
    samples = np.broadcast_to(np.arange(num_points) // _POINTS_PER_SAMPLE, points.shape)
    rows = np.broadcast_to(cells[:, None], points.shape)
    entries = []
    for bins, weights in ((down, 1 - part), (np.ceil(points), part)):
        inside = (bins >= 0) & (bins < num_bins)
        columns = samples[inside] * num_bins + bins[inside].astype(np.int64)
        entries.append((rows[inside], columns, weights[inside] / _POINTS_PER_SAMPLE))
    rows, columns, weights = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return rows, columns, weights


# -- windows ----------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Part of a video that is divided into T bins."""

    start_seconds: float
    bin_seconds: float


def windows(config: BMNConfig, duration_seconds: float) -> list[Window]:
    """Windows of a video: the whole video, or sliding windows with a hop of D bins."""
    if config.bin_seconds is None:
        return [Window(0.0, duration_seconds / config.num_bins)]
    hop = config.max_duration_bins * config.bin_seconds
    # The last window is dropped if it would add less than 0.2 s of video.
    count = max(1, math.ceil((duration_seconds - 0.2) / hop))
    return [Window(i * hop, config.bin_seconds) for i in range(count)]


def window_features(features: Tensor, grid: FeatureGrid, window: Window, num_bins: int) -> Tensor:
    """Interpolate a video's features [C, M] at the middles of the window's bins, [C, T]."""
    middles = window.start_seconds + (np.arange(num_bins) + 0.5) * window.bin_seconds
    return at_times(features, grid, middles)


def window_segments(segments: Floats, window: Window, num_bins: int) -> Floats:
    """Segments [G, 2] in seconds that lie wholly in the window, as fractions of it."""
    parts = (segments - window.start_seconds) / (num_bins * window.bin_seconds)
    lengths = parts[:, 1] - parts[:, 0]
    inside = np.clip(parts, 0, 1)
    kept: Floats = inside[(inside[:, 1] - inside[:, 0]) / np.maximum(lengths, 1e-12) > 0.999]
    return kept


# -- decoding ---------------------------------------------------------------------------------------------------------


class Proposals(NamedTuple):
    """Candidate segments of one video, without classes."""

    segments: Floats
    """[N, 2], in seconds"""
    scores: Floats
    """[N]"""


def proposals(
    outputs: BMNOutputs,
    places: Sequence[Window],
    *,
    duration_seconds: float,
    score: Literal["cr", "secr"] = "cr",
    powers: tuple[float, float] = (1.2, 1.0),
) -> Proposals:
    """Decode the outputs for a video's windows into scored proposals; overlapping windows are averaged.

    Args:
        score: "cr" is classified^powers[0] * regressed^powers[1] (EPIC-KITCHENS); "secr" multiplies it by the
            probabilities of start and end (ActivityNet). The released "secr" uses the start's probability twice.
        powers: exponents of the classified and the regressed confidence.
    """
    bin_seconds = places[0].bin_seconds
    offsets = [round(place.start_seconds / bin_seconds) for place in places]
    _, _, num_durations, num_bins = outputs.confidence.shape
    total = max(offsets) + num_bins
    maps = np.zeros((4, num_durations, total))  # start, end, regressed, classified
    counts = np.zeros((2, num_durations, total))
    valid = valid_cells(num_bins, num_durations).numpy()
    for i, offset in enumerate(offsets):
        here = slice(offset, offset + num_bins)
        maps[0, 0, here] += outputs.start[i].cpu().double().numpy()
        maps[1, 0, here] += outputs.end[i].cpu().double().numpy()
        counts[0, 0, here] += 1
        maps[2:, :, here] += outputs.confidence[i].cpu().double().numpy() * valid
        counts[1, :, here] += valid
    start, end = (maps[k, 0] / np.maximum(counts[0, 0], 1) for k in (0, 1))
    regressed, classified = maps[2:] / np.maximum(counts[1], 1)
    used = min(total, max(math.ceil(duration_seconds / bin_seconds - 1e-9), 1))
    is_start, is_end = _boundary_peaks(start[:used]), _boundary_peaks(end[:used])
    is_start[0] = is_end[-1] = True
    d, t = np.nonzero(counts[1] > 0)
    last = t + d + 1  # the proposal ends where this bin starts
    within = last < used
    d, t, last = d[within], t[within], last[within]
    both = is_start[t] & is_end[last]
    d, t, last = d[both], t[both], last[both]
    scores = classified[d, t] ** powers[0] * regressed[d, t] ** powers[1]
    if score == "secr":
        scores = scores * start[t] * end[last]
    segments = np.clip(np.stack([t, last], axis=1) * bin_seconds, 0, duration_seconds)
    positive = scores > 0
    return Proposals(segments[positive], scores[positive])


def _boundary_peaks(probability: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Bins whose probability is above both neighbors, or above half the maximum; never the first or last bin."""
    found = np.zeros(len(probability), bool)
    middle = probability[1:-1]
    found[1:-1] = (middle > probability[:-2]) & (middle > probability[2:])
    found[1:-1] |= middle > 0.5 * probability.max()
    return found


def thinned(
    found: Proposals, *, duration_seconds: float, sigma: float = 0.4, thresholds: tuple[float, float] = (0.25, 0.9)
) -> Proposals:
    """Soft-NMS; at most one proposal per second of the video, plus one, is kept.

    Args:
        thresholds: (t1, t2) of ``soft_nms``; (0.5, 0.9) on ActivityNet.
    """
    best = np.argsort(-found.scores, kind="stable")[:5000]  # no proposal ranked lower was ever kept
    kept, scores = soft_nms(
        found.segments[best],
        found.scores[best],
        sigma=sigma,
        thresholds=thresholds,
        extent=duration_seconds,
        max_kept=int(duration_seconds) + 1,
    )
    return Proposals(found.segments[best][kept], scores)


# -- training and testing ----------------------------------------------------------------------------------------------


class BMNDetector(nn.Module):
    """BMN, with the settings of its training and testing; class scores beside the features classify its proposals."""

    def __init__(self, config: BMNConfig, *, recipe: LocalizationRecipe, heads: Sequence[Head]) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.heads = tuple(heads)
        self.network = BMN(config)

    def config_as_dict(self) -> dict[str, Any]:
        """The config as plain values, for ``detector_of``."""
        return asdict(self.config)

    def pieces(self, videos: Sequence[UntrimmedVideo]) -> list[Piece]:
        """The sources of an epoch's samples: windows that contain a whole segment."""
        found = []
        for video in videos:
            assert video.duration_seconds is not None, "with_durations fills it in from the features"
            seconds, _ = truths(video, len(self.heads))
            for i, window in enumerate(windows(self.config, video.duration_seconds)):
                if len(window_segments(seconds, window, self.config.num_bins)):
                    found.append(Piece(video=video, window=i))
        return found

    def sample(self, piece: Piece, found: VideoFeatures, rng: np.random.Generator) -> Sample:
        """The features and segments of a window; nothing is random."""
        window = windows(self.config, found.card.duration_seconds)[piece.window]
        seconds, _ = truths(piece.video, len(self.heads))
        segments = window_segments(seconds, window, self.config.num_bins)
        features = torch.from_numpy(found.features.T.copy())
        return Sample(
            window_features(features, found.card.grid, window, self.config.num_bins),
            torch.from_numpy(segments.astype(np.float32)),
            torch.zeros(len(segments), 0, dtype=torch.int64),
        )

    def collate(self, samples: Sequence[Sample]) -> SampleBatch:
        """Stack samples, padded to the longest."""
        return pad(samples, lambda longest: longest)

    def losses(self, batch: SampleBatch) -> dict[str, Tensor]:
        """The total as "loss", and its parts by name."""
        outputs = self.network(batch.features)
        wanted = [targets(segments, self.config.num_bins, self.config.max_duration_bins) for segments in batch.segments]
        found = bmn_losses(outputs, wanted)
        return {"loss": found.total(), **found._asdict()}

    def detect(self, found: VideoFeatures) -> Detections:
        """The segments of a video, in seconds, best first."""
        scores = naming_scores(found, self.heads)
        duration = found.card.duration_seconds
        places = windows(self.config, duration)
        features, grid = torch.from_numpy(found.features.T.copy()), found.card.grid
        inputs = torch.stack([window_features(features, grid, place, self.config.num_bins) for place in places])
        outputs = self.network(inputs.to(next(self.parameters()).device))
        proposed = proposals(
            outputs, places, duration_seconds=duration, score="secr" if self.recipe.boundary_scores else "cr",
            powers=(1.0, 1.0) if self.recipe.boundary_scores else (1.2, 1.0),
        )  # fmt: skip
        is_whole = self.config.bin_seconds is None
        kept = thinned(proposed, duration_seconds=duration, thresholds=(0.5, 0.9) if is_whole else (0.25, 0.9))
        return name_segments(kept.segments, kept.scores, scores, grid, video_classes=self.recipe.video_classes)

    def rolling_view(self, stride_seconds: float) -> RollingView | None:
        """One window, aligned with the windows of a whole video."""
        bins, hop, seconds = self.config.num_bins, self.config.max_duration_bins, self.config.bin_seconds
        if seconds is None:
            return None
        return RollingView(math.ceil(bins * seconds / stride_seconds), max(round(hop * seconds / stride_seconds), 1))
