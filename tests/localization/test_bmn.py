"""BMN: the released code's mask, targets and losses; the cheap matching against the literal one; reading the maps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reference import bmn as slow
from tada.errors import OptionError
from tada.localization.detectors.bmn import (
    BMN,
    BMNConfig,
    BoundaryMatching,
    Window,
    proposals,
    sampling_weights,
    thinned,
    window_features,
    window_segments,
    windows,
)
from tada.localization.detectors.bmn_losses import BMNOutputs, BMNTargets, bmn_losses, targets, valid_cells
from tada.localization.features.grid import FeatureGrid
from tada.localization.features.interpolation import at_times

UNITS = json.loads((Path(__file__).parents[1] / "golden" / "tal_unit_values.json").read_text())


def dense_mask(num_bins: int, num_durations: int, num_samples: int) -> Tensor:
    """The matrix as the released code has it: [bin, sample, d, t]."""
    rows, columns, weights = sampling_weights(num_bins, num_durations, num_samples)
    mask = np.zeros((num_durations * num_bins, num_samples * num_bins))
    np.add.at(mask, (rows, columns), weights)
    shaped = mask.reshape(num_durations, num_bins, num_samples, num_bins)
    return torch.from_numpy(shaped.transpose(3, 2, 0, 1).copy())


def looped_mask(num_bins: int, num_durations: int, num_samples: int) -> Tensor:
    """The same, point by point, as section B2 of BMN's released code reads."""
    mask = torch.zeros(num_bins, num_samples, num_durations, num_bins, dtype=torch.float64)
    for d in range(num_durations):
        for t in range(num_bins - d):
            length = d + 1
            low, high = t - 0.5 * length, t + d + 0.5 * length
            step = (high - low) / (3 * num_samples - 1)
            for j in range(3 * num_samples):
                part, down = math.modf(low + step * j)
                for place, weight in ((int(down), 1 - part), (math.ceil(low + step * j), part)):
                    if 0 <= place < num_bins:
                        mask[place, j // 3, d, t] += weight / 3
    return mask


def test_the_mask_is_the_released_one() -> None:
    case = UNITS["bmn_mask"]
    torch.testing.assert_close(
        dense_mask(case["T"], case["D"], case["num_sample"]),
        torch.tensor(case["values"], dtype=torch.float64),
        rtol=0,
        atol=6e-7,
    )
    torch.testing.assert_close(dense_mask(7, 5, 6), looped_mask(7, 5, 6), rtol=0, atol=1e-12)


def test_the_cheap_matching_is_the_literal_one() -> None:
    """Sample first into [256, 32, D, T], then convolve: as released, in float64; values and gradients."""
    torch.manual_seed(0)
    matching = BoundaryMatching(BMNConfig(in_channels=4, num_bins=7, max_duration_bins=4, num_samples=5)).double()
    x = torch.randn(2, 256, 7, dtype=torch.float64, requires_grad=True)
    mask = dense_mask(7, 4, 5)
    sampled = torch.einsum("bct,tndu->bcndu", x, mask)
    kernel = matching.weight.view(512, 256, 5, 1, 1)
    literal = F.conv3d(sampled, kernel, matching.bias, stride=(5, 1, 1))[:, :, 0]
    cheap = matching(x)
    torch.testing.assert_close(cheap, literal, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(literal)
    parameters = (x, matching.weight, matching.bias)
    expected = torch.autograd.grad((literal * weights).sum(), parameters)
    found = torch.autograd.grad((cheap * weights).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "count"), [(2048, 5_294_980), (2304, 5_344_132), (6144, 6_081_412), (400, 4_978_564)]
)
def test_parameter_counts(channels: int, count: int) -> None:
    with torch.device("meta"):
        model = BMN(BMNConfig(in_channels=channels))
    assert sum(p.numel() for p in model.parameters()) == count
    assert not any("sampling" in key for key in model.state_dict())  # nothing constant in a checkpoint


def test_the_network_gives_probabilities_of_every_cell() -> None:
    torch.manual_seed(0)
    model = BMN(BMNConfig(in_channels=8, num_bins=12, max_duration_bins=6, num_samples=4)).eval()
    with torch.no_grad():
        start, end, confidence = model(torch.randn(2, 8, 12))
    assert (start.shape, end.shape, confidence.shape) == ((2, 12), (2, 12), (2, 2, 6, 12))
    for values in (start, end, confidence):
        assert ((values > 0) & (values < 1)).all()
    with pytest.raises(ValueError, match="13 bins should be 12"):
        model(torch.randn(1, 8, 13))


def test_targets_are_the_released_ones() -> None:
    case = UNITS["bmn_targets"]
    found = targets(torch.tensor(case["gt_normalised"], dtype=torch.float64), case["T"], case["D"])
    for values, key in ((found.iou, "iou_map"), (found.start, "start"), (found.end, "end")):
        torch.testing.assert_close(values, torch.tensor(case[key], dtype=torch.float64), rtol=0, atol=6e-7)
    assert valid_cells(case["T"], case["D"]).int().tolist() == case["valid_mask"]


def loss_case() -> tuple[BMNOutputs, BMNTargets]:
    outputs = BMNOutputs(
        torch.linspace(0.1, 0.8, 8, dtype=torch.float64)[None],
        torch.linspace(0.7, 0.2, 8, dtype=torch.float64)[None],
        torch.stack([torch.linspace(a, b, 32, dtype=torch.float64).view(4, 8) for a, b in ((0.05, 0.95), (0.9, 0.1))])[
            None
        ],
    )
    return outputs, targets(torch.tensor([[0.25, 0.625]], dtype=torch.float64), 8, 4)


def test_losses_are_the_released_ones() -> None:
    case = UNITS["bmn_losses"]
    outputs, wanted = loss_case()
    torch.testing.assert_close(wanted.iou, torch.tensor(case["iou_map"], dtype=torch.float64), rtol=0, atol=6e-7)
    generator = torch.Generator().manual_seed(0)
    drawn = [bmn_losses(outputs, [wanted], generator=generator) for _ in range(500)]
    assert float(drawn[0].boundaries) == pytest.approx(case["tem"], abs=5e-7)
    assert float(drawn[0].classification) == pytest.approx(case["pem_cls"], abs=5e-7)
    # The regression draws proposals; its mean is known to the spread of 500 draws.
    regressions = torch.stack([losses.regression for losses in drawn])
    error = 4 * float(regressions.std()) / 500**0.5
    assert float(regressions.mean()) == pytest.approx(case["pem_reg_mean_over_sampling"], abs=error)
    total = drawn[0].boundaries + 10 * drawn[0].regression + drawn[0].classification
    assert float(drawn[0].total()) == pytest.approx(float(total))


def test_classification_counts_positives_within_the_window_as_released() -> None:
    """Of 59 random batches; in most of them proposals that end beyond the window have an IoU above 0.9, too."""
    beyond = 0
    for seed in range(59):
        torch.manual_seed(seed)
        num_bins = int(torch.randint(12, 30, ()))
        num_durations = int(torch.randint(8, num_bins + 1, ()))
        wanted = []
        for _ in range(int(torch.randint(1, 4, ()))):
            drawn = torch.rand(3, 2, dtype=torch.float64).sort(1).values
            drawn[0] = torch.tensor([1 - (num_durations - 2) / num_bins, 1.0])  # to the window's end
            wanted.append(targets(drawn, num_bins, num_durations))
        iou = torch.stack([one.iou for one in wanted])
        valid = valid_cells(num_bins, num_durations)
        assert ((iou > 0.9) & valid).any()
        beyond += bool(((iou > 0.9) & ~valid).any())
        boundaries = torch.full((len(wanted), num_bins), 0.5, dtype=torch.float64)
        confidence = torch.rand(len(wanted), 2, num_durations, num_bins, dtype=torch.float64)
        found = bmn_losses(BMNOutputs(boundaries, boundaries, confidence), wanted).classification
        expected = slow.classification_loss(confidence[:, 1].tolist(), iou.tolist())
        assert float(found) == pytest.approx(expected, rel=2e-7)  # the weights of both classes are float32
    assert beyond > 30


def test_a_window_without_positives_is_still_pressed_down() -> None:
    """Released: NaN, -0 and NaN."""
    outputs, _ = loss_case()
    for part in outputs:
        part.requires_grad_()
    nothing = targets(torch.zeros(0, 2, dtype=torch.float64), 8, 4)
    losses = bmn_losses(outputs, [nothing])
    assert losses.total().isfinite()
    assert losses.regression == 0
    losses.total().backward()
    assert (outputs.start.grad > 0).all()
    assert (outputs.confidence.grad[:, 1][valid_cells(8, 4)[None]] > 0).all()


# -- windows ----------------------------------------------------------------------------------------------------------


def test_windows_of_a_video() -> None:
    whole = BMNConfig(in_channels=4, num_bins=100)
    assert windows(whole, 50.0) == [Window(0.0, 0.5)]
    epic = BMNConfig(in_channels=4, num_bins=200, max_duration_bins=100, bin_seconds=8 / 30)
    assert [w.start_seconds for w in windows(epic, 60.0)] == pytest.approx([0, 80 / 3, 160 / 3])
    assert len(windows(epic, 160 / 3 + 0.1)) == 2  # 0.1 s more are not worth a window
    assert len(windows(epic, 3.0)) == 1


def test_features_are_taken_at_the_times_of_bins() -> None:
    """Features that are the time they stand for: each bin then holds its own middle."""
    grid = FeatureGrid(start_seconds=0.25, stride_seconds=0.5, window_seconds=1.0)
    features = torch.from_numpy(grid.seconds(np.arange(40.0)))[None]  # 20 s
    found = window_features(features, grid, Window(5.0, 0.4), 20)
    np.testing.assert_allclose(found[0], 5.0 + 0.4 * (np.arange(20) + 0.5), rtol=1e-12)
    beyond = window_features(features, grid, Window(18.0, 0.4), 10)[0]
    assert (beyond[:5] > 0).all()  # middles to 19.8
    assert (beyond[5:] == 0).all()  # from 20.2 on there is no video
    assert at_times(features, grid, np.array([-0.1, 0.0, 0.1]))[0].tolist() == [0.0, 0.25, 0.25]


def test_segments_of_a_window() -> None:
    segments = np.array([[1.0, 3.0], [9.0, 11.0], [4.0, 6.0]])
    np.testing.assert_allclose(window_segments(segments, Window(0.0, 1.0), 10), [[0.1, 0.3], [0.4, 0.6]])
    np.testing.assert_allclose(window_segments(segments, Window(4.0, 1.0), 10), [[0.5, 0.7], [0.0, 0.2]])


# -- reading ----------------------------------------------------------------------------------------------------------


def drawn_outputs(seed: int, count: int = 1, num_bins: int = 12, num_durations: int = 6) -> BMNOutputs:
    torch.manual_seed(seed)
    return BMNOutputs(
        torch.rand(count, num_bins), torch.rand(count, num_bins), torch.rand(count, 2, num_durations, num_bins)
    )


@pytest.mark.parametrize("score", ["cr", "secr"])
def test_proposals_are_those_of_a_loop(score: str) -> None:
    outputs = drawn_outputs(3)
    found = proposals(outputs, [Window(0.0, 0.5)], duration_seconds=6.0, score=score)  # type: ignore[arg-type]
    start, end = outputs.start[0].tolist(), outputs.end[0].tolist()

    def is_peak(values: list[float], i: int) -> bool:
        return 0 < i < 11 and ((values[i - 1] < values[i] > values[i + 1]) or values[i] > 0.5 * max(values))

    expected = {}
    for d in range(6):
        for t in range(12 - d):
            e = t + d + 1
            if e < 12 and (t == 0 or is_peak(start, t)) and (e == 11 or is_peak(end, e)):
                regressed, classified = outputs.confidence[0, :, d, t].tolist()
                factor = start[t] * end[e] if score == "secr" else 1.0
                expected[t * 0.5, e * 0.5] = classified**1.2 * regressed * factor
    mine = {tuple(segment): value for segment, value in zip(found.segments.tolist(), found.scores, strict=True)}
    assert mine.keys() == expected.keys()
    assert mine == pytest.approx(expected)


def test_overlapping_windows_are_averaged() -> None:
    """The same window seen twice, six bins apart: where both see a proposal, it scores their mean."""
    outputs = drawn_outputs(4, count=2)
    for part in outputs[:2]:
        part[:] = 0.5  # every bin inside is a candidate
    found = proposals(outputs, [Window(0.0, 1.0), Window(6.0, 1.0)], duration_seconds=18.0, powers=(1.0, 1.0))
    scores = {tuple(segment): value for segment, value in zip(found.segments.tolist(), found.scores, strict=True)}
    first, second = outputs.confidence.double().tolist()
    reg, cls = (first[k][1][7] + second[k][1][1] for k in (0, 1))  # d = 1, t = 7: both see it
    assert scores[7.0, 9.0] == pytest.approx(reg / 2 * cls / 2)
    assert scores[2.0, 4.0] == pytest.approx(first[0][1][2] * first[1][1][2])
    assert scores[13.0, 15.0] == pytest.approx(second[0][1][7] * second[1][1][7])
    # From 10 to 14: the first window ends at 12, and does not speak of it.
    assert scores[10.0, 14.0] == pytest.approx(second[0][3][4] * second[1][3][4])


def test_one_proposal_a_second_is_kept() -> None:
    found = proposals(drawn_outputs(5), [Window(0.0, 0.5)], duration_seconds=6.0)
    kept = thinned(found, duration_seconds=6.0)
    assert len(kept.scores) == min(7, len(found.scores))
    assert kept.scores[0] == found.scores.max()


def test_the_data_decide_between_whole_videos_and_windows() -> None:
    whole = BMNConfig.for_data(
        in_channels=8, segment_seconds=np.array([20.0, 60.0]), video_seconds=np.array([120.0]), stride_seconds=0.5
    )
    assert (whole.bin_seconds, whole.num_bins, whole.max_duration_bins) == (None, 100, 100)
    sliding = BMNConfig.for_data(
        in_channels=8, segment_seconds=np.array([1.0, 6.0]), video_seconds=np.array([600.0]), stride_seconds=0.25
    )
    assert (sliding.bin_seconds, sliding.num_bins, sliding.max_duration_bins) == (0.25, 50, 25)
    with pytest.raises(OptionError, match="in_channels=6 should be a multiple of 4"):
        BMNConfig(in_channels=6)
