"""ActionFormer: sizes, attention in blocks, who is responsible for what, losses, and decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.fill import fill_input, fill_tensor
from reference import actionformer as slow
from tada.data.table import Head
from tada.errors import OptionError
from tada.localization.detectors.actionformer import ActionFormer, ActionFormerConfig, banded_attention, decode
from tada.localization.detectors.actionformer_losses import LevelOutputs, assign, diou_loss, focal_loss, losses
from tada.localization.detectors.detector import detector_of
from tada.localization.detectors.nms import Detections, Selection, select
from tada.localization.features.folder import FeatureCard, VideoFeatures
from tada.localization.features.grid import FeatureGrid
from tada.localization.recipe import LocalizationRecipe, load_localization_recipe
from tada.training.recipe import recipe_yaml, typed_recipe

GOLDEN = Path(__file__).parents[1] / "golden"
UNITS = json.loads((GOLDEN / "tal_unit_values.json").read_text())
RANGES = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 1e4))
GRID = FeatureGrid(start_seconds=0.25, stride_seconds=0.5, window_seconds=1.0)


def small(**changes: object) -> ActionFormerConfig:
    config = ActionFormerConfig(
        in_channels=6,
        num_classes=(3,),
        dim=16,
        num_heads=2,
        window=5,
        num_levels=3,
        regression_ranges=((0, 4), (4, 8), (8, 1e4)),
        max_length=32,
    )
    return replace(config, **changes)


@pytest.mark.parametrize(
    ("channels", "dim", "classes", "millions"),
    [(2048, 512, 20, 29.25), (2304, 512, 97, 29.76), (2304, 512, 300, 30.08), (512, 256, 1, 6.94)],
    ids=["THUMOS14", "EPIC verbs", "EPIC nouns", "ActivityNet"],
)
def test_parameter_counts(channels: int, dim: int, classes: int, millions: float) -> None:
    config = ActionFormerConfig(in_channels=channels, num_classes=(classes,), dim=dim, regression_ranges=RANGES)
    with torch.device("meta"):
        model = ActionFormer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.sampled_from([0, 1, 4, 9, 20]), st.integers(0, 2**16))
def test_attention_in_blocks_is_that_under_a_banded_mask(length: int, half: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 2, length, 4, dtype=torch.float64, generator=generator)
    valid = torch.arange(length) < torch.tensor([[length], [max(1, length - 5)]])
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= half
    mask = (near & valid[:, None, :])[:, None] | torch.eye(length, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    found = banded_attention(query, key, value, valid, half=half)
    assert found.isfinite().all()
    if half >= length - 1:
        assert torch.equal(banded_attention(query, key, value, valid, half=10**6), found)  # and takes no more memory
    for b in range(2):  # what a padded step sees has no meaning
        torch.testing.assert_close(found[b][:, valid[b]], expected[b][:, valid[b]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [5, -1])
def test_padding_changes_nothing(window: int) -> None:
    torch.manual_seed(0)
    model = ActionFormer(small(window=window, position_encoding=True)).double().eval()
    torch.nn.init.normal_(model.scales)
    for parameter in model.parameters():  # as after some training: no norm's bias is 0, no scale next to it
        parameter.data += 0.1 * torch.randn_like(parameter)
    features = torch.randn(1, 6, 16, dtype=torch.float64)
    alone = model(features, torch.ones(1, 16, dtype=torch.bool))
    padded = model(F.pad(features, (0, 16), value=7.0), (torch.arange(32) < 16)[None])
    assert padded.valid.sum() == len(alone.points) == 16 + 8 + 4
    torch.testing.assert_close(padded.logits[0][padded.valid], alone.logits[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded.offsets[padded.valid], alone.offsets[0], rtol=1e-9, atol=1e-9)
    assert padded.points[padded.valid[0]].tolist() == alone.points.tolist()


@torch.no_grad()
@pytest.mark.parametrize("leak", ["none", "opentad", "actionformer"])
@pytest.mark.parametrize("steps", [13, 16, 20, 32, 37, 70])
def test_the_network_is_the_slow_one(leak: str, steps: int) -> None:
    """A window for each level, the last of which sees all; padding; position encodings beyond the 32 of training."""
    torch.manual_seed(steps)
    windows, features = (5, 3, -1), torch.randn(6, steps, dtype=torch.float64)
    config = small(window=windows, position_encoding=True, interpolate_positions=True, padding_leak=leak)
    model = ActionFormer(config).double().eval()
    for parameter in model.parameters():  # as after some training: no norm's bias is 0, no scale next to it
        parameter.data += 0.2 * torch.randn_like(parameter)
    expected = slow.levels_of(
        model.state_dict(), features, windows=windows, max_length=32, num_heads=2, positions=True, leak=leak
    )
    length = config.padded_length(steps)
    found = model(F.pad(features, (0, length - steps))[None], (torch.arange(length) < steps)[None])
    valid = found.valid[0]
    for mine, part in ((found.logits[0][0], 0), (found.offsets[0], 1)):
        wanted = torch.cat([level[part] for level in expected])
        torch.testing.assert_close(mine[valid], wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_leaks_and_interpolation_count() -> None:
    """What the test above compares is not the same for all settings."""
    torch.manual_seed(0)
    model = ActionFormer(small()).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    features, mask = torch.randn(1, 6, 40), torch.arange(40)[None] < 37
    logits = []
    for changes in (
        {},
        {"padding_leak": "opentad"},
        {"padding_leak": "actionformer"},
        {"position_encoding": True},
        {"position_encoding": True, "interpolate_positions": True},
    ):
        variant = ActionFormer(small(**changes)).eval()
        variant.load_state_dict(model.state_dict())
        logits.append(variant(features, mask).logits[0][0, :37])
    for i, one in enumerate(logits):
        assert one.isfinite().all()
        for other in logits[:i]:
            assert not torch.allclose(one, other, atol=1e-3)
    variant.train()  # in training encodings are never interpolated: no crop is longer than max_length
    torch.testing.assert_close(variant._positions(features[:, :, :32]), variant.eval()._positions(features[:, :, :32]))


@torch.no_grad()
def test_a_card_of_before_finds_the_same() -> None:
    """A localizer saved before windows, levels and leaks were fields; its encodings go on beyond ``max_length``."""
    before = json.loads((GOLDEN / "old_localizer.json").read_text())
    recipe = typed_recipe(yaml.safe_load(before["recipe"]), LocalizationRecipe)
    detector = detector_of(before["shape"], recipe, [Head(name="action", labels=("a", "b"))]).eval()
    detector.load_state_dict({name: filled(name, value) for name, value in detector.state_dict().items()})
    card = FeatureCard(
        video="v",
        duration_seconds=18.75,
        grid=FeatureGrid(start_seconds=0.25, stride_seconds=0.5, window_seconds=1.0),
        num_features=37,
        channels=4,
        backbone="",
        settings={},
        score_labels={},
    )
    features = fill_input("old_localizer", (37, 4))
    found = detector.double().detect(VideoFeatures(card=card, features=features, scores={}))
    np.testing.assert_allclose(found.segments[:20], before["segments"], rtol=1e-9)
    np.testing.assert_allclose(found.scores[:20], before["scores"], rtol=1e-9)
    assert found.labels[:20].tolist() == before["labels"]


def filled(name: str, like: torch.Tensor) -> torch.Tensor:
    """A weight drawn from its name, as for tests/golden/old_localizer.json."""
    if name == "normaliser":
        return like
    is_gain = name.endswith("scales") or (like.ndim == 1 and name.endswith("norm.weight"))
    is_kernel = like.ndim > 1 and not name.endswith(".scale")
    kind = "norm_weight" if is_gain else "weight" if is_kernel else "bias"
    return torch.from_numpy(fill_tensor(name, tuple(like.shape), kind)).to(like.dtype)


def test_lengths_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="18 steps should be a multiple of 4: pad"):
        ActionFormer(small())(torch.zeros(1, 6, 18), torch.ones(1, 18, dtype=torch.bool))


def test_assignment_is_the_released_one() -> None:
    case = UNITS["actionformer_assignment"]
    points = torch.cat([torch.arange(count) * float(stride) for count, stride, _ in case["levels"]])
    strides = torch.cat([torch.full((count,), float(stride)) for count, stride, _ in case["levels"]])
    ranges = torch.cat(
        [torch.tensor(limits, dtype=torch.float).expand(count, 2) for count, _, limits in case["levels"]]
    )
    segments, labels = torch.tensor(case["gt_segments"]), torch.tensor(case["gt_labels"])[:, None]
    found = assign(points, strides, ranges, segments, labels, (3,), radius=case["radius"])
    mine = [
        {
            "level_stride": float(strides[p]),
            "t": float(points[p]),
            "classes": found.labels[0][p].nonzero()[:, 0].tolist(),
            "offsets_in_stride_units": found.offsets[p].tolist(),
        }
        for p in found.positive.nonzero()[:, 0].tolist()
    ]
    assert mine == case["positives"]
    none = assign(points, strides, ranges, segments[:0], labels[:0], (3,))
    assert not none.positive.any()
    assert not none.labels[0].any()


def test_losses_are_the_released_ones() -> None:
    case = UNITS["focal"]
    found = focal_loss(torch.tensor(case["logits"]), torch.tensor(case["targets"]), alpha=0.25, gamma=2)
    np.testing.assert_allclose(found, case["loss"], rtol=1e-5)
    case = UNITS["diou_loss"]
    np.testing.assert_allclose(diou_loss(torch.tensor(case["pred"]), torch.tensor(case["gt"])), case["loss"], rtol=1e-6)


@torch.no_grad()
def test_a_batchs_losses_are_the_sums_over_its_videos() -> None:
    torch.manual_seed(0)
    model = ActionFormer(small(num_classes=(3, 2))).eval()
    features = torch.randn(2, 6, 16)
    mask = torch.arange(16) < torch.tensor([[16], [12]])
    segments = [torch.tensor([[2.0, 6.0], [3.0, 14.0]]), torch.tensor([[1.0, 7.0]])]
    labels = [torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1, 1]])]
    both = losses(model(features, mask), segments, labels, label_smoothing=0.1)
    alone = [
        losses(model(features[i : i + 1], mask[i : i + 1]), segments[i : i + 1], labels[i : i + 1], label_smoothing=0.1)
        for i in range(2)
    ]
    assert both.num_positive == sum(one.num_positive for one in alone) > 4
    assert float(both.classification) == pytest.approx(sum(float(one.classification) for one in alone), rel=1e-5)
    assert float(both.regression) == pytest.approx(sum(float(one.regression) for one in alone), rel=1e-5)
    nothing = losses(model(features, mask), [s[:0] for s in segments], [x[:0] for x in labels])
    assert (nothing.num_positive, float(nothing.regression)) == (0, 0.0)


def one_point(logits: list[list[float]], offsets: list[list[float]], points: list[float]) -> LevelOutputs:
    count = len(points)
    return LevelOutputs(
        logits=(torch.tensor([logits]),),
        offsets=torch.tensor([offsets]),
        points=torch.tensor(points),
        strides=torch.full((count,), 2.0),
        ranges=torch.zeros(count, 2),
        valid=torch.ones(1, count, dtype=torch.bool),
    )


def test_decoding_gives_seconds() -> None:
    """Point 8 at stride 2 with offsets 1.5 and 2.5: steps 5 to 13, and 0.25 + 0.5 g seconds."""
    outputs = one_point([[2.0, -9.0], [-9.0, 0.0]], [[1.5, 2.5], [0.0, 1.0]], [8.0, 0.0])
    found = decode(outputs, GRID, min_score=0.1, max_candidates=10)
    np.testing.assert_allclose(found.segments, [[2.75, 6.75], [0.25, 1.25]])
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2.0)), 0.5])
    assert found.labels.tolist() == [[0], [1]]
    assert len(decode(outputs, GRID, min_score=0.1, max_candidates=1).scores) == 1
    assert len(decode(outputs, GRID, min_score=0.99, max_candidates=9).scores) == 0


def test_verb_and_noun_are_fused_by_the_root_of_their_product() -> None:
    outputs = one_point([[0.0, -1.0]], [[1.0, 1.0]], [4.0])
    outputs = outputs._replace(logits=(outputs.logits[0], torch.tensor([[[3.0, 0.0, -2.0]]])))
    found = decode(outputs, GRID, min_score=0.0, max_candidates=10)
    verbs, nouns = 1 / (1 + np.exp([0.0, 1.0])), 1 / (1 + np.exp([-3.0, 0.0, 2.0]))
    expected = {(v, n): np.sqrt(verbs[v] * nouns[n]) for v in range(2) for n in range(3)}
    mine = {tuple(pair): score for pair, score in zip(found.labels.tolist(), found.scores, strict=True)}
    assert mine == pytest.approx(expected)
    assert found.labels[0].tolist() == [0, 0]
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_what_it_learned_by_heart_is_found_again() -> None:
    """Features that mark two events: after some steps the decoded segments are theirs."""
    torch.manual_seed(0)
    config = small(drop_path=0.0, dim=32)
    model = ActionFormer(config)
    truth, labels = torch.tensor([[4.0, 7.0], [12.0, 24.0]]), torch.tensor([[0], [2]])
    features = torch.zeros(1, 6, 32)
    features[0, 0, 4:8], features[0, 1, 12:25] = 1.0, 1.0
    features[0, 2] = torch.linspace(0, 1, 32)
    mask = torch.ones(1, 32, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = losses(model(features, mask), [truth], [labels])
        total = (loss.classification + loss.regression) / max(loss.num_positive, 1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        candidates = decode(model.eval()(features, mask), GRID, min_score=0.001, max_candidates=100)
    found = select(candidates, Selection(), duration_seconds=16.0)
    for segment, label in zip(GRID.seconds(truth.numpy()), labels[:, 0], strict=True):
        best = next(i for i in range(len(found.scores)) if found.labels[i, 0] == label)
        np.testing.assert_allclose(found.segments[best], segment, atol=GRID.stride_seconds / 2)


def test_selection() -> None:
    segments = np.array([[0.0, 4.0], [0.5, 4.5], [-2.0, 3.0], [9.0, 14.0], [11.0, 12.0]])
    found = Detections(segments, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([[0], [0], [1], [0], [0]]))
    chosen = select(found, Selection(min_score=0.05), duration_seconds=10.0)
    assert chosen.segments.tolist() == [[0, 4], [0, 3], [9, 10], [0.5, 4.5]]  # cut; the last lies outside
    assert chosen.scores[3] == pytest.approx(0.8 * np.exp(-((3.5 / 4.5) ** 2) / 0.5))
    assert len(select(found, Selection(max_segments=2), duration_seconds=10.0).scores) == 2
    assert len(select(found, Selection(min_score=0.95), duration_seconds=10.0).scores) == 0
    voted = select(found, Selection(voting_tiou=0.7, max_segments=1), duration_seconds=10.0)
    assert voted.segments[0] == pytest.approx((np.array([0, 4]) * 0.9 + np.array([0.5, 4.5]) * 0.8) / 1.7)
    with pytest.raises(OptionError, match=r"selection.voting_tiou must be null or in \(0, 1\]"):
        Selection(voting_tiou=2)


def test_the_data_decide_levels_ranges_and_length_unless_the_recipe_does() -> None:
    def config(
        longest: float, *, stride: float = 0.133, overlapping: bool = False, **said: object
    ) -> ActionFormerConfig:
        return ActionFormerConfig.for_data(
            in_channels=8,
            num_classes=(2,),
            segment_steps=np.linspace(1, longest, 11),
            video_steps=np.array([900.0, 1000.0]),
            stride_seconds=stride,
            overlapping=overlapping,
            **said,  # type: ignore[arg-type]
        )

    # 90 % of the lengths up to 100 are up to 90: 4 * 2^(L-2) reaches it with L = 7.
    assert config(100.0).num_levels == 7
    assert config(100.0).regression_ranges[:2] == ((0.0, 4.0), (4.0, 8.0))
    assert config(100.0).regression_ranges[-1] == (128.0, 1e4)
    assert config(100.0).max_length == 1024
    assert config(100.0).window == 19
    assert config(2.0, stride=0.533).num_levels == 3
    assert config(2.0, stride=0.533).window == 9
    epic = config(70.0, overlapping=True)
    assert epic.regression_ranges == ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 1e4))
    assert config(2.0, window=(9, 9, 5, -1)).num_levels == 4
    assert config(2.0, position_encoding=True).interpolate_positions
    assert not config(2.0, position_encoding=True, interpolate_positions=False).interpolate_positions
    for name, windows, length in (
        ("activitynet", (7, 7, 7, 7, 7, -1), 192),
        ("hacs", (13, 13, 13, 13, 13, -1), 960),
        ("thumos14", (19,) * 6, 2304),
    ):  # configs/actionformer of OpenTAD
        recipe = load_localization_recipe(name)
        assert typed_recipe(yaml.safe_load(recipe_yaml(recipe)), LocalizationRecipe) == recipe
        said = config(2.0, window=recipe.attention_window, num_levels=recipe.num_levels, max_length=recipe.max_length)
        assert (said.windows, said.max_length, said.regression_ranges) == (windows, length, RANGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 4}, "the attention window 4 should be odd"),
        ({"window": (5, 4, -1)}, r"the attention window \[5, 4, -1\] should be odd"),
        ({"window": (5, -1)}, r"the attention window \[5, -1\] should be one for all levels, or a list of 3"),
        ({"max_length": 30}, "max_length=30 should be a multiple of 4"),
        ({"num_levels": 2}, "num_levels=2 should be 1 to 8, each with a regression range"),
        ({"dim": 15}, "dim a multiple of num_heads"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        small(**changes)
    with pytest.raises(OptionError, match="the recipe's max_length must be null or a multiple of 32"):
        LocalizationRecipe(num_levels=6, max_length=40)
    with pytest.raises(OptionError, match="the recipe's max_length must be null or a multiple of 32"):
        LocalizationRecipe(attention_window=(7, 7, 7, 7, 7, -1), max_length=40)  # as many levels as windows
    with pytest.raises(OptionError, match=r"a list of 5, as many as num_levels: change attention_window, too"):
        load_localization_recipe("activitynet", num_levels=5)
