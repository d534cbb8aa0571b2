"""Overlap, soft-NMS, NMS and voting: against the released codes' numbers, and against loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reference import detections as slow
from tada.localization.detectors.nms import soft_nms, tiou, vote

UNITS = json.loads((Path(__file__).parents[1] / "golden" / "tal_unit_values.json").read_text())


def random_segments(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 20, count)
    return np.stack([starts, starts + rng.uniform(0, 8, count)], axis=1), rng.uniform(0, 1, count)


def test_overlap_of_every_pair() -> None:
    one, other = random_segments(0, 7)[0], random_segments(1, 5)[0]
    expected = [[slow.overlap(tuple(a), tuple(b)) for b in other] for a in one]
    np.testing.assert_allclose(tiou(one, other), expected, rtol=1e-13)
    assert tiou(np.array([[3.0, 3.0]]), np.array([[3.0, 3.0]])) == 0  # and no division by zero
    assert tiou(np.zeros((0, 2)), other).shape == (0, 5)


def test_soft_nms_is_opentads() -> None:
    case = UNITS["soft_nms_gaussian_opentad"]
    kept, scores = soft_nms(
        np.array(case["segments"]), np.array(case["scores"]), sigma=case["sigma"], min_score=case["min_score"]
    )
    assert kept.tolist() == case["order"]
    assert scores == pytest.approx([row[2] for row in case["result"]], abs=5e-7)


def test_soft_nms_of_bmn_is_the_released_one_without_its_faults() -> None:
    case = UNITS["soft_nms_official_epic"]
    segments, scores = np.array(case["segments"]), np.array(case["scores"])
    rule = {"sigma": case["alpha"], "thresholds": (case["t1"], case["t2"])}
    kept, lowered = soft_nms(segments, scores, **rule)
    released = np.array(case["result"])
    np.testing.assert_allclose(segments[kept[:4]], released[:, :2])
    np.testing.assert_allclose(lowered[:4], released[:, 2])
    # The released loop leaves out the last: [.12, .52], lowered by [.1, .5] whose width .4 sets the limit .51.
    assert kept[4] == 1
    assert lowered[4] == pytest.approx(0.8 * np.exp(-((0.38 / 0.42) ** 2) / 0.4))
    # It fails on one proposal, and on none.
    kept, lowered = soft_nms(segments[:1], scores[:1], **rule)
    assert (kept.tolist(), lowered.tolist()) == ([0], [0.9])
    assert len(soft_nms(segments[:0], scores[:0], **rule)[0]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_soft_nms_is_the_loop(seed: int) -> None:
    segments, scores = random_segments(seed, 30)
    kept, lowered = soft_nms(segments, scores, sigma=0.4)
    expected = slow.soft_nms([tuple(s) for s in segments], scores.tolist(), 0.4)
    assert kept.tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(lowered, [score for _, score in expected], rtol=1e-10)


def test_the_width_counts_as_a_part_of_the_extent() -> None:
    segments, scores = np.array([[10.0, 50.0], [12.0, 52.0]]), np.array([0.9, 0.8])
    rule = {"sigma": 0.4, "thresholds": (0.25, 1.0)}
    # Width .4 of 100 s: limit .55, and the overlap is .905. Width 1 of 40 s: limit 1.
    assert soft_nms(segments, scores, extent=100.0, **rule)[1][1] < 0.2
    assert soft_nms(segments, scores, extent=40.0, **rule)[1][1] == 0.8


def test_classes_suppress_only_their_own() -> None:
    segments, scores = random_segments(7, 40)
    labels = np.arange(40) % 3
    kept, lowered = soft_nms(segments, scores, sigma=0.5, labels=labels, min_score=0.2)
    assert sorted(lowered, reverse=True) == lowered.tolist()
    for label in range(3):
        mine = np.flatnonzero(labels == label)
        own, own_scores = soft_nms(segments[mine], scores[mine], sigma=0.5, min_score=0.2)
        here = labels[kept] == label
        assert kept[here].tolist() == mine[own].tolist()
        np.testing.assert_allclose(lowered[here], own_scores)
    assert len(soft_nms(segments, scores, sigma=0.5, max_kept=4)[0]) == 4


def test_voting_is_opentads() -> None:
    case = UNITS["segment_voting"]
    voted = vote(
        np.array(case["nms_segments"]),
        np.array(case["all_segments"]),
        np.array(case["all_scores"]),
        threshold=case["threshold"],
    )
    np.testing.assert_allclose(voted, case["result"], atol=2e-6)
