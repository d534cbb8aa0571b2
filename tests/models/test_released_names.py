"""Names and shapes of the second paper's checkpoints -> our networks; without memory for their weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tada.errors import CheckpointError
from tada.models.released_names import network_of
from tada.models.weights import convert_published

GOLDEN = Path(__file__).parents[1] / "golden"
Change = Callable[[list[int]], list[int]]


def released(case: str, *, layers: str = "", copies: int = 0, change: Change = list) -> dict[str, Tensor]:
    """Empty weights under the released names.

    Args:
        layers: what stands before a block's number: copies of its last block are added, so that there are ``copies``.
        change: what becomes of each shape.
    """
    shapes = {entry["name"]: entry["shape"] for entry in json.loads((GOLDEN / f"{case}.json").read_text())["entries"]}
    numbers = {int(match[1]) for name in shapes if layers and (match := re.match(rf"{layers}(\d+)\.", name))}
    for number in range(max(numbers, default=0) + 1, copies):
        last = f"{layers}{max(numbers)}.".replace("\\", "")
        shapes |= {
            name.replace(last, last.replace(f"{max(numbers)}.", f"{number}.")): shape
            for name, shape in shapes.items()
            if name.startswith(last)
        }
    return {name: torch.empty(change(shape), device="meta") for name, shape in shapes.items()}


def wider(multiple: int) -> Change:
    """Four thirds of every side that is a number of channels."""
    return lambda shape: [side * 4 // 3 if side % multiple == 0 and side != 400 else side for side in shape]


def large(shape: list[int]) -> list[int]:
    """L/14 for B/16."""
    return [{16: 14, 197: 257, 50: 257}.get(side, side) for side in wider(192)(shape)]


STAGE = r"backbone\.stages\.2\."
LAYERS = r"backbone\.layers\."


@pytest.mark.parametrize(
    ("weights", "network"),
    [
        (lambda: released("tadaconvnextv2_t"), ("tadaconvnextv2_t", {})),
        (lambda: released("tadaconvnextv2_t", layers=STAGE, copies=27), ("tadaconvnextv2_s", {})),
        (lambda: released("tadaconvnextv2_t", layers=STAGE, copies=27, change=wider(48)), ("tadaconvnextv2_b", {})),
        (lambda: released("tadaformer_b16"), ("tadaformer_b16", {})),
        (lambda: released("tadaformer_b16_train"), ("tadaformer_b16", {"grid": [7, 7]})),
        (lambda: released("tadaformer_b16_ssv2"), ("tadaformer_b16_ssv2", {"grid": [7, 7]})),
        (lambda: released("tadaformer_b16", layers=LAYERS, copies=24, change=large), ("tadaformer_l14", {})),
        (lambda: released("tadaformer_b16_ssv2", layers=LAYERS, copies=24, change=large), ("tadaformer_l14_ssv2", {})),
    ],
)
def test_every_network_is_known_by_its_names(
    weights: Callable[[], dict[str, Tensor]], network: tuple[str, dict[str, object]]
) -> None:
    given = weights()
    assert network_of(given) == network
    name, converted = convert_published(given)  # which compares every name and shape with our network's
    assert (name, len(converted)) == (network[0], len(given))


def test_others_are_refused_in_words() -> None:
    given = released("tadaformer_b16")
    table = "backbone.positional_embedding"
    faults: list[tuple[dict[str, Tensor], str]] = [
        (
            {name: value for name, value in given.items() if ".layers.11." not in name},
            r"no weights of a released TAdaFormer: 11 blocks behind a stem \[768, 3, 3, 16, 16\] instead of 12 behind",
        ),
        (
            {**given, table: torch.empty(196, 768)},
            r"\[196, 768\] is not that of .*: a row for the class token, and",
        ),
        ({**given, table: torch.empty(1, 768)}, r"embedding' \[1, 768\] is not that of a released TAdaFormer"),
        ({**given, table: torch.empty(())}, r"embedding' \[\] is not that of a released TAdaFormer"),
        (
            {**given, "head.out.weight": torch.empty(())},
            r"head.weight is \[400, 768\] in the model and \[\] in the weights",
        ),
        (
            {**given, "head.out.weight": torch.empty(0, 768)},
            r"head.weight is \[400, 768\] in the model and \[0, 768\] in the weights",
        ),
        (
            {**given, **{f"head.linear{i}.{end}": torch.empty(()) for i in (1, 2) for end in ("weight", "bias")}},
            r"not the weights of a released tadaformer_b16: 4 of \d+ .* head.linear1.bias \(unknown\) is missing",
        ),
        (
            {**given, "backbone.proj": torch.empty(768, 512)},
            r"not the weights of a released tadaformer_b16: 1 of \d+ .*bone.proj",
        ),
        (
            {name: value for name, value in given.items() if not name.endswith("bn_b.weight")},
            r"12 of \d+ weights do not match: blocks.0.tada.norm.pooled_norm.weight is \[384\] in the model and miss",
        ),
    ]
    for weights, message in faults:
        with pytest.raises(CheckpointError, match=message):
            convert_published(weights)
