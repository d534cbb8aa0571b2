"""ActionFormer: each point of a feature pyramid predicts an action class and the distances to its start and end.

Source: Zhang, Wu, Li, "ActionFormer: Localizing Moments of Actions with Transformers" (ECCV 2022) and its released code
(happyharrycn/actionformer_release, 61ea7eb). Convolutions and transformer blocks with local attention process the
features; each further level of the pyramid has half the rate. One head, shared by all levels, classifies each point,
another regresses the distances to both ends, in steps of the level.

Differs from the released code: local attention is computed in plain blocks (equal to 1e-7), so lengths need not be
multiples of the window; the best candidates are chosen over all levels, as in OpenTAD; for verbs and nouns there is one
backbone with two classification heads, where the paper trains two networks; padded steps are 0 before every
convolution, so that padding changes no output. In the released code and in OpenTAD, biases of layer norms leak from the
padding into the last steps of a padded video: ``padding_leak`` reproduces that. (OpenTAD's layer norms outside of
attention add 1e-6 to the variance; these add 1e-5, as the released ones.)

Shapes: B videos, T features (steps), C channels, L levels, P points of all levels, G segments, K classes, S label sets.
Times are in steps of level 0: point t of level l stands for step t * 2^l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tada.data.table import Head
from tada.errors import OptionError
from tada.localization.annotations.table import UntrimmedVideo
from tada.localization.detectors.actionformer_losses import LevelOutputs, losses
from tada.localization.detectors.levels import MAX_LEVELS, PaddingLeak, check_window
from tada.localization.detectors.nms import Detections, select
from tada.localization.detectors.samples import Piece, RollingView, Sample, SampleBatch, pad, truths
from tada.localization.features.folder import VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.naming import name_segments, naming_scores
from tada.localization.recipe import LocalizationRecipe

_FAR = 10_000.0  # longer than any segment, in steps
_CROP_TRIES = 200
_ROLLING_SECONDS = 60.0
_NUM_FUSED = 10  # best classes of each label set that are combined into pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionFormerConfig:
    """Sizes of the network. Plain values, so that they can be saved as JSON."""

    in_channels: int
    """Channels C of the features."""
    num_classes: tuple[int, ...]
    """Classes of each label set."""
    dim: int = 256
    """Channels inside the network."""
    num_heads: int = 4
    """Heads of the attention."""
    window: int | tuple[int, ...] = 19
    """Steps within the attention window, centered on the query; odd. -1: all steps (global attention). One number for
    all levels, or one for each."""
    num_levels: int = 6
    """L levels of the pyramid; level l has every 2^l-th step."""
    regression_ranges: tuple[tuple[float, float], ...]
    """For each level, the range of distances (in steps) from a point to the farther end of the segment it regresses."""
    max_length: int = 2304
    """Steps of the longest training crop; a multiple of 2^(L-1)."""
    position_encoding: bool = False
    """Whether sinusoidal position encodings are added to the features."""
    interpolate_positions: bool = False
    """Whether a video longer than ``max_length`` gets the encodings of ``max_length`` steps, interpolated, as in the
    released code. False: the sinusoids go on, as in localizers saved before this field."""
    padding_leak: PaddingLeak = "none"
    """Where biases of layer norms leak from the padding into the last steps of a padded video."""
    drop_path: float = 0.1
    """Probability of dropping a block's residual branch in training (stochastic depth)."""
    input_dropout: float = 0.0
    """Fraction of the feature channels that are dropped in training."""

    def __post_init__(self) -> None:
        if min(self.in_channels, self.dim, self.num_heads, *self.num_classes) < 1 or self.dim % self.num_heads:
            raise OptionError(f"{self}: sizes must be positive, and dim a multiple of num_heads")
        if not 1 <= self.num_levels <= MAX_LEVELS or len(self.regression_ranges) != self.num_levels:
            raise OptionError(f"num_levels={self.num_levels} should be 1 to {MAX_LEVELS}, each with a regression range")
        check_window(self.window, self.num_levels)
        if self.max_length < 1 or self.max_length % self.stride_of_last:
            raise OptionError(f"max_length={self.max_length} should be a multiple of {self.stride_of_last}")

    @property
    def stride_of_last(self) -> int:
        """Stride of the coarsest level, in steps."""
        return 1 << (self.num_levels - 1)

    @property
    def windows(self) -> tuple[int, ...]:
        """[L], the attention window of each level."""
        return (self.window,) * self.num_levels if isinstance(self.window, int) else self.window

    def padded_length(self, num_steps: int) -> int:
        """The length to which a video of ``num_steps`` steps is padded, in steps; a multiple of 2^(L-1).

        The released code and OpenTAD pad to ``max_length``, and a longer video to a multiple of their largest block of
        attention. The length decides how position encodings are interpolated and whether anything leaks. For a shorter
        video, one padded step of the coarsest level gives the same numbers as all of their padding.
        """
        last = self.stride_of_last
        padded = -(-num_steps // last) * last
        if num_steps <= self.max_length:
            return min(padded if self.padding_leak == "none" else padded + last, self.max_length)
        if not self.interpolate_positions and self.padding_leak == "none":
            return padded
        blocks = (max(window // 2 * 2, 1) << level for level, window in enumerate(self.windows))
        multiple = math.lcm(max(blocks), last)
        return -(-num_steps // multiple) * multiple

    @classmethod
    def for_data(
        cls,
        *,
        in_channels: int,
        num_classes: tuple[int, ...],
        segment_steps: np.ndarray[tuple[int], np.dtype[np.float64]],
        video_steps: np.ndarray[tuple[int], np.dtype[np.float64]],
        stride_seconds: float,
        overlapping: bool,
        dim: int = 256,
        window: int | tuple[int, ...] | None = None,
        num_levels: int | None = None,
        max_length: int | None = None,
        position_encoding: bool = False,
        interpolate_positions: bool = True,
        padding_leak: PaddingLeak = "none",
        input_dropout: float = 0.0,
    ) -> ActionFormerConfig:
        """Choose the regression ranges, and those of levels, window and length that are None, from the training data.

        Levels: the fewest for which the last but one covers the 90th percentile of segment lengths. Length: the 95th
        percentile of video lengths. Window: 9 for sparse features, 19 for dense ones.

        Args:
            segment_steps: lengths of the training segments, in steps.
            video_steps: numbers of features of the training videos.
            overlapping: whether segments often overlap; the regression ranges of levels then overlap too, as on
                EPIC-KITCHENS.
            window: one number for all levels; or one for each, which also says how many levels there are.
        """
        if num_levels is None and isinstance(window, tuple):
            num_levels = len(window)
        if num_levels is None:
            long = float(np.percentile(segment_steps, 90))
            num_levels = min(max(math.ceil(math.log2(max(long, 4.0) / 4.0)) + 2, 3), MAX_LEVELS)
        if max_length is None:
            last = 2 ** (num_levels - 1)
            longest = max(2304 // last, 1) * last
            max_length = min(max(math.ceil(np.percentile(video_steps, 95) / last), 1) * last, longest)
        if window is None:
            window = 19 if stride_seconds < 0.3 else 9
        ends = [4.0 * 2**level for level in range(num_levels - 1)]
        starts = [0.0, *(end / 2 if overlapping else end for end in ends)]
        ranges = tuple(zip(starts, [*ends, _FAR], strict=True))
        return cls(
            in_channels=in_channels,
            num_classes=num_classes,
            dim=dim,
            window=window,
            num_levels=num_levels,
            regression_ranges=ranges,
            max_length=max_length,
            position_encoding=position_encoding,
            interpolate_positions=position_encoding and interpolate_positions,
            padding_leak=padding_leak,
            input_dropout=input_dropout,
        )


# -- the network ------------------------------------------------------------------------------------------------------


class ActionFormer(nn.Module):
    """The network; ``losses`` and ``decode`` read its outputs."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        self.config = config
        dim, (first, *others) = config.dim, config.windows
        leaks = config.padding_leak == "actionformer"
        self.input_dropout = nn.Dropout1d(config.input_dropout)
        self.embed = nn.ModuleList([ConvNorm(config.in_channels, dim, leaks=leaks), ConvNorm(dim, dim, leaks=leaks)])
        self.stem = nn.ModuleList([TransformerBlock(config, first, stride=1) for _ in range(2)])
        self.branch = nn.ModuleList([TransformerBlock(config, window, stride=2) for window in others])
        self.neck = nn.ModuleList([ChannelNorm(dim) for _ in range(config.num_levels)])
        self.classifiers = nn.ModuleList([PyramidHead(dim, count, leaks=leaks) for count in config.num_classes])
        self.regressor = PyramidHead(dim, 2, leaks=leaks)
        self.scales = nn.Parameter(torch.ones(config.num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for head in self.classifiers:
            assert isinstance(head, PyramidHead)
            assert head.last.bias is not None
            nn.init.constant_(head.last.bias, -math.log((1 - 0.01) / 0.01))  # probability 0.01: positives are rare

    def forward(self, features: Tensor, mask: Tensor) -> LevelOutputs:
        """Run the network on a batch of videos.

        Args:
            features: [B, C, T]; T a multiple of 2^(L-1).
            mask: bool [B, T], false where a video is padded.
        """
        if features.shape[2] % self.config.stride_of_last:
            raise ValueError(f"{features.shape[2]} steps should be a multiple of {self.config.stride_of_last}: pad")
        keep = mask[:, None].to(features.dtype)  # [B, 1, T]
        # Embedding: [B, in_channels, T] -> [B, C, T]
        x = self.input_dropout(features * keep)
        for layer in self.embed:
            x = layer(x, keep)
        if self.config.position_encoding:
            x = x + self._positions(x) * keep
        # Backbone: the stem keeps T, each branch block halves it: level l is [B, C, T / 2^l].
        for block in self.stem:
            x, keep = block(x, keep)
        levels = [(x, keep)]
        for block in self.branch:
            x, keep = block(x, keep)
            levels.append((x, keep))
        logits: list[list[Tensor]] = [[] for _ in self.classifiers]
        offsets, points, strides, ranges, valid = [], [], [], [], []
        for level, (x, keep) in enumerate(levels):
            # Neck: a norm per level, [B, C, T / 2^l].
            x = self.neck[level](x)
            if self.config.padding_leak == "none":
                x = x * keep
            # Heads: logits [B, T / 2^l, K] of each label set, offsets [B, T / 2^l, 2].
            for place, head in enumerate(self.classifiers):
                logits[place].append(head(x, keep).transpose(1, 2))
            offsets.append(F.relu(self.regressor(x, keep) * self.scales[level]).transpose(1, 2))
            # Points: T / 2^l times, with the stride and the regression range of the level.
            count, stride = x.shape[2], float(2**level)
            points.append(torch.arange(count, device=x.device) * stride)
            strides.append(torch.full((count,), stride, device=x.device))
            ends = [torch.full((count,), end, device=x.device) for end in self.config.regression_ranges[level]]
            ranges.append(torch.stack(ends, dim=1))
            valid.append(keep[:, 0] > 0)
        # All levels, one after the other: P = T + T / 2 + ... points.
        return LevelOutputs(
            logits=tuple(torch.cat(parts, dim=1) for parts in logits),
            offsets=torch.cat(offsets, dim=1),
            points=torch.cat(points),
            strides=torch.cat(strides),
            ranges=torch.cat(ranges),
            valid=torch.cat(valid, dim=1),
        )

    def _positions(self, like: Tensor) -> Tensor:
        """Position encodings [1, C, T] for features [B, C, T]."""
        length, known, dim = like.shape[2], self.config.max_length, self.config.dim
        if self.config.interpolate_positions and length > known and not self.training:
            encodings = F.interpolate(_sinusoids(known, dim, like), length, mode="linear", align_corners=False)
        else:
            encodings = _sinusoids(length, dim, like)
        scaled: Tensor = encodings / dim**0.5
        return scaled


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [B, C, T]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


class ConvNorm(nn.Module):
    """Convolution over three steps, norm, ReLU; padded steps are 0 before the norm, and after it unless they leak."""

    def __init__(self, channels: int, dim: int, *, leaks: bool = False) -> None:
        super().__init__()
        self.leaks = leaks
        self.conv = nn.Conv1d(channels, dim, 3, padding=1, bias=False)
        self.norm = ChannelNorm(dim)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x) * keep))
        return y if self.leaks else y * keep


class PyramidHead(nn.Module):
    """Head shared by all levels of the pyramid: two ``ConvNorm`` and an output convolution."""

    def __init__(self, dim: int, outputs: int, *, leaks: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ConvNorm(dim, dim, leaks=leaks) for _ in range(2)])
        self.last = nn.Conv1d(dim, outputs, 3, padding=1)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """[B, C, T] -> [B, outputs, T]."""
        for layer in self.layers:
            x = layer(x, keep)
        y: Tensor = self.last(x) * keep
        return y


class TransformerBlock(nn.Module):
    """Transformer block: local attention and an MLP, each with a learned scale (initially 1e-4); stride 2 halves T."""

    def __init__(self, config: ActionFormerConfig, window: int, *, stride: int) -> None:
        super().__init__()
        dim = config.dim
        self.stride = stride
        self.norm1, self.norm2 = ChannelNorm(dim), ChannelNorm(dim)
        self.attention = LocalAttention(config, window, stride=stride)
        self.mlp = nn.Sequential(nn.Conv1d(dim, 4 * dim, 1), nn.GELU(), nn.Conv1d(4 * dim, dim, 1))
        self.path1, self.path2 = ScaledPath(dim, config.drop_path), ScaledPath(dim, config.drop_path)

    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        attended, keep = self.attention(self.norm1(x), keep)
        shortcut = x if self.stride == 1 else F.max_pool1d(x, 3, stride=self.stride, padding=1)
        x = shortcut * keep + self.path1(attended)
        return x + self.path2(self.mlp(self.norm2(x)) * keep), keep


class ScaledPath(nn.Module):
    """Layer scale (one per channel) and stochastic depth (per video) of a residual branch."""

    def __init__(self, dim: int, drop: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1), 1e-4))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, device=x.device, dtype=x.dtype) >= self.drop
            x = x * kept / (1 - self.drop)
        return x


class LocalAttention(nn.Module):
    """Local multi-head attention: a step attends to those within half a window.

    Depthwise convolutions over three steps precede the projections to queries, keys and values.
    """

    def __init__(self, config: ActionFormerConfig, window: int, *, stride: int) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.window, self.stride = config.num_heads, window, stride
        self.leaks = config.padding_leak != "none"
        self.convs = nn.ModuleList(
            [nn.Conv1d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False) for _ in range(3)]
        )
        self.norms = nn.ModuleList([ChannelNorm(dim) for _ in range(3)])
        self.projections = nn.ModuleList([nn.Conv1d(dim, dim, 1) for _ in range(3)])
        self.out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T] -> [B, C, T / stride], and the mask [B, 1, T / stride]."""
        x = x if self.leaks else x * keep
        keep = keep[:, :, :: self.stride]
        b, c, t = x.shape[0], x.shape[1], keep.shape[2]
        parts = []
        for conv, norm, projection in zip(self.convs, self.norms, self.projections, strict=True):
            part = projection(norm(conv(x) * keep))
            parts.append(part.view(b, self.num_heads, c // self.num_heads, t).transpose(2, 3))
        query, key, value = parts  # [B, heads, T, C / heads]
        if self.window == -1:
            seen = torch.where(keep[:, :, None] > 0, 0.0, -1e4).to(x.dtype)  # [B, 1, 1, T]
            y = F.scaled_dot_product_attention(query, key, value, seen)
        else:
            y = banded_attention(query, key, value, keep[:, 0] > 0, half=self.window // 2)
        y = y.transpose(2, 3).reshape(b, c, t)
        return self.out(y) * keep, keep


def banded_attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, half: int) -> Tensor:
    """Local attention: each step attends to those at most ``half`` away. Computed in blocks, without a [T, T] matrix.

    The queries of a block attend to the keys of that block and its two neighbors. The output at padded steps is
    meaningless.

    Args:
        query: [B, heads, T, D]; ``key`` and ``value`` likewise.
        valid: bool [B, T].

    Returns:
        [B, heads, T, D].
    """
    b, heads, t, d = query.shape
    half = min(half, t - 1)  # a wider window sees no more, and would cost its width in memory
    size = max(half, 16)
    blocks = -(-t // size)
    padding = blocks * size - t
    query = F.pad(query, (0, 0, 0, padding)).view(b, heads, blocks, size, d)
    key, value = (
        F.pad(x, (0, 0, size, padding + size)).unfold(2, 3 * size, size).transpose(3, 4) for x in (key, value)
    )
    known = F.pad(valid, (size, padding + size)).unfold(1, 3 * size, size)  # [B, blocks, 3 * size]
    places = torch.arange(3 * size, device=query.device)
    near = (places[None, :] - size - places[:size, None]).abs() <= half  # [size, 3 * size]
    # Finite for padding: where all steps in reach are padded, -inf would make the softmax NaN.
    bias = torch.where(known, 0.0, -1e4)[:, None, :, None, :] + torch.where(near, 0.0, -torch.inf)
    y = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
    return y.reshape(b, heads, blocks * size, d)[:, :, :t]


def _sinusoids(length: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoidal position encodings, [1, dim, length], of the device and type of ``like``."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    rate = 10_000 ** (-2 * (torch.arange(dim, device=like.device) // 2) / dim).to(like.dtype)
    angle = rate[:, None] * place
    even = (torch.arange(dim, device=like.device) % 2 == 0)[:, None]
    return torch.where(even, angle.sin(), angle.cos())[None]


# -- decoding ---------------------------------------------------------------------------------------------------------


def decode(outputs: LevelOutputs, grid: FeatureGrid, *, min_score: float, max_candidates: int) -> Detections:
    """Candidate segments of one video (B = 1), in seconds, best first, before NMS (``select``).

    Each pair of point and class is a candidate. With two label sets, each point's ten best verbs and ten best nouns are
    combined, and a pair scores sqrt(p_verb * p_noun), as OpenTAD fuses its two networks.
    """
    # On the CPU: float64, which Apple's GPUs lack, and sizes that depend on the numbers, for which the host would wait.
    outputs = tree_map_only(Tensor, Tensor.cpu, outputs)
    valid = outputs.valid[0]
    probabilities = [logits[0][valid].double().sigmoid() for logits in outputs.logits]
    if len(probabilities) == 1:
        scores = probabilities[0].flatten()
        num_pairs = probabilities[0].shape[1]
        classes = torch.arange(num_pairs)[:, None].repeat(int(valid.sum()), 1)
    else:
        (verb, verbs), (noun, nouns) = (p.topk(min(_NUM_FUSED, p.shape[1]), dim=1) for p in probabilities)
        fused = (verb[:, :, None] * noun[:, None, :]).sqrt()  # [P, V, N]
        scores, num_pairs = fused.flatten(), fused.shape[1] * fused.shape[2]
        pairs = verbs[:, :, None].expand(fused.shape), nouns[:, None, :].expand(fused.shape)
        classes = torch.stack(pairs, dim=3).reshape(-1, 2)
    candidates = torch.nonzero(scores > min_score)[:, 0]
    best = candidates[scores[candidates].argsort(descending=True, stable=True)[:max_candidates]]
    at = best // num_pairs
    points, strides = outputs.points[valid][at].double(), outputs.strides[valid][at].double()
    offsets = outputs.offsets[0][valid][at].double() * strides[:, None]
    steps = torch.stack([points - offsets[:, 0], points + offsets[:, 1]], dim=1)
    return Detections(grid.seconds(steps.numpy()), scores[best].numpy(), classes[best].numpy().astype(np.int64))


# -- training and testing ----------------------------------------------------------------------------------------------


class ActionFormerDetector(nn.Module):
    """ActionFormer, with the settings of its training and testing.

    If the recipe is class-agnostic, the network has one class, and class scores beside the features classify its
    detections.
    """

    def __init__(
        self,
        config: ActionFormerConfig,
        *,
        recipe: LocalizationRecipe,
        heads: Sequence[Head],
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.heads = tuple(heads)
        self.network = ActionFormer(config)
        self.register_buffer("normaliser", torch.tensor(recipe.normaliser))
        self.normaliser: Tensor

    def config_as_dict(self) -> dict[str, Any]:
        """The config as plain values, for ``detector_of``."""
        return asdict(self.config)

    def pieces(self, videos: Sequence[UntrimmedVideo]) -> list[Piece]:
        """The sources of an epoch's samples: videos with segments, and, if the recipe says so, those without."""
        return [Piece(video=video) for video in videos if video.segments or self.recipe.train_on_background]

    def _resized_features(self, found: VideoFeatures) -> tuple[Tensor, FeatureGrid]:
        """Features [C, T] and their grid, resized if the recipe says so."""
        features, grid = torch.from_numpy(found.features.T.copy()), found.card.grid
        if self.recipe.resize_to is not None:
            length = self.recipe.resize_to
            grid = grid.resized(features.shape[1], length)
            features = F.interpolate(features[None], length, mode="linear", align_corners=False)[0]
        return features, grid

    def sample(self, piece: Piece, found: VideoFeatures, rng: np.random.Generator) -> Sample:
        """A random crop of 90 to 100 % of the video, but at most ``max_length`` steps.

        Segments are cut to the crop, and dropped if too small a part of them is left (``visible_part``). A crop without
        segments is drawn again.
        """
        features, grid = self._resized_features(found)
        seconds, labels = truths(piece.video, len(self.heads))
        if self.recipe.class_agnostic:
            labels = np.zeros((len(labels), 1), np.int64)
        steps = grid.index(seconds)
        total = features.shape[1]
        for _ in range(_CROP_TRIES if len(seconds) else 1):
            length = min(max(round(rng.uniform(0.9, 1.0) * total), 1), self.config.max_length)
            first = int(rng.integers(0, total - length, endpoint=True))
            cut = np.clip(steps, first - 0.5, first + length - 0.5)
            parts = (cut[:, 1] - cut[:, 0]) / (steps[:, 1] - steps[:, 0])
            held = parts >= self.recipe.visible_part
            if held.any():
                break
        return Sample(
            features[:, first : first + length],
            torch.from_numpy((cut[held] - first).astype(np.float32)),
            torch.from_numpy(labels[held]),
        )

    def collate(self, samples: Sequence[Sample]) -> SampleBatch:
        """Stack samples, padded to the longest."""
        return pad(samples, self.config.padded_length)

    def losses(self, batch: SampleBatch) -> dict[str, Tensor]:
        """The total as "loss", and its parts by name."""
        outputs = self.network(batch.features, batch.mask)
        found = losses(outputs, batch.segments, batch.labels, label_smoothing=self.recipe.label_smoothing)
        if self.training:
            self.normaliser.mul_(0.9).add_(0.1 * found.num_positive.clamp(min=1))
        classification = found.classification / self.normaliser
        regression = found.regression / self.normaliser
        total = classification + self.recipe.regression_weight * regression
        return {"loss": total, "classification": classification, "regression": regression}

    def detect(self, found: VideoFeatures) -> Detections:
        """The segments of a video, in seconds, best first."""
        features, grid = self._resized_features(found)
        length = features.shape[1]
        features = F.pad(features, (0, self.config.padded_length(length) - length)).to(self.normaliser.device)
        inside = torch.arange(features.shape[1], device=features.device) < length
        outputs = self.network(features[None], inside[None])
        selection = self.recipe.selection
        candidates = decode(outputs, grid, min_score=selection.min_score, max_candidates=selection.max_candidates)
        chosen = select(candidates, selection, duration_seconds=found.card.duration_seconds)
        if not self.recipe.class_agnostic:
            return chosen
        scores = naming_scores(found, self.heads)
        return name_segments(
            chosen.segments, chosen.scores, scores, found.card.grid, video_classes=self.recipe.video_classes
        )

    def rolling_view(self, stride_seconds: float) -> RollingView | None:
        """A minute, but at least eight steps of the coarsest level: four times as long as nine of ten segments."""
        if self.recipe.resize_to is not None:
            return None
        coarsest = self.config.stride_of_last
        return RollingView(max(math.ceil(_ROLLING_SECONDS / stride_seconds), 8 * coarsest), coarsest)
