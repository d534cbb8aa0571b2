"""The cost table gives the figures of the paper and the released code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parent.parent / "benchmarks" / "cost_table.py"
_SPEC = importlib.util.spec_from_file_location("cost_table", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
cost_table = importlib.util.module_from_spec(_SPEC)
sys.modules["cost_table"] = cost_table
_SPEC.loader.exec_module(cost_table)


@pytest.mark.parametrize(
    ("name", "frames", "side", "parameters", "giga"),
    [
        ("tada2d_r50", 8, 224, 27_485_472, 33.23),
        ("tada2d_r50", 8, 256, 27_485_472, 43.40),
        ("tadaconvnext_t", 16, 224, 38_661_688, 36.02),
        ("tadaconvnext_t", 16, 256, 38_661_688, 47.02),
        ("tadaconvnext_t", 32, 224, 38_661_688, 72.03),
    ],
)
def test_published_figures(name: str, frames: int, side: int, parameters: int, giga: float) -> None:
    cost = cost_table.network(name, frames, side)
    assert cost.parameters == parameters
    assert round(cost.with_norms / 1e9, 2) == giga
    assert cost.multiply_adds == cost.by_torch


def test_the_two_counts_agree() -> None:
    rows = cost_table.operators() + [
        cost_table.network(name, 8, 64, adapted=adapted)
        for name in ("slowonly_tiny", "slowfast_tiny", "r2plus1d_tiny", "r3d_tiny", "tsn_tiny")
        for adapted in (False, True)
    ]
    for cost in rows:
        assert cost.multiply_adds == cost.by_torch, cost.name
