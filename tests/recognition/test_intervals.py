"""The interval of an accuracy, against the equation that defines it."""

from __future__ import annotations

import math

import pytest

from tada.recognition.intervals import accuracy_interval, interval_text


@pytest.mark.parametrize("count", [1, 2, 6, 30, 100, 5000])
@pytest.mark.parametrize("part", [0.0, 0.17, 0.5, 0.9, 1.0])
def test_its_ends_are_the_rates_that_are_just_not_refuted(part: float, count: int) -> None:
    """At an end p of the interval the share found lies 1.96 standard deviations of p from p."""
    share = round(part * count) / count
    low, high = accuracy_interval(share, count)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-5)
    assert (low == 0) == (share == 0)
    assert (high == 1) == (share == 1)


def test_published_values() -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert accuracy_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert accuracy_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert accuracy_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert accuracy_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_few_videos_say_little() -> None:
    assert interval_text(4 / 6, 6) == "95 %: 0.30 to 0.90"
    assert interval_text(1.0, 3) == "95 %: 0.44 to 1.00"
    assert interval_text(0.767, 20_000) == "95 %: 0.761 to 0.773"
