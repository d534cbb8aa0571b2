"""Only the classifier, the calibration too, or all: what is trained moves, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stopped_training import stopping_before
from tada.errors import OptionError
from tada.models import create_model
from tada.models.parallel import synchronize_batch_norms
from tada.recognition.recipe import Recipe, TrainedPart
from tada.recognition.trained_part import train_only
from tada.recognition.training import train
from tada.recognition.training_step import RecognitionTask

NETWORKS: dict[str, dict[str, Any]] = {
    "tada2d_tiny": {"widths": [8, 8, 8, 8], "stem_width": 8},
    "tsn_tiny": {"widths": [8, 8, 8, 8], "stem_width": 8},
    "tadaconvnextv2_mini": {"widths": [8, 8, 8], "routing_head_channels": 2},
    "tadaformer_tiny": {"width": 24, "depth": 1, "routing_head_channels": 3},
    "tada_lite0": {"depths": [1, 1], "widths": [4, 4], "expansions": [1, 2], "kernels": [3, 3], "strides": [1, 2]},
    "slowonly_tiny": {"width": 8, "adapted": True},
}


def is_head(name: str) -> bool:
    return name.startswith("head.")


def is_calibration(name: str) -> bool:
    return is_head(name) or any(part in name for part in (".routing.", ".pooled_norm.", ".tada."))


def is_any(name: str) -> bool:
    return True


EXPECTED: dict[TrainedPart, Callable[[str], bool]] = {"head": is_head, "calibration": is_calibration, "all": is_any}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("part", EXPECTED)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_trained_moves_and_nothing_else(name: str, part: TrainedPart, small_recipe: Recipe) -> None:
    if name == "tsn_tiny" and part == "calibration":
        pytest.skip("it has none")
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **NETWORKS[name])
    with torch.no_grad():  # as after some training: what starts at zero would hold back what lies before it
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    line = train_only(model, part, name)
    recipe = replace(small_recipe, model=name, model_options=NETWORKS[name], train=part)
    task = RecognitionTask(model, recipe, steps_per_epoch=10, head_sizes={"action": 3})
    optimizer = task.configure_optimizers()["optimizer"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in (False, True):  # from a test back to training, as after each epoch
        task.train(mode)
    for step in range(3):
        clips = torch.randn(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(model(clips), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    found = {key for key in moved(before, after) if not key.endswith("num_batches_tracked")}
    expected = {key for key in before if EXPECTED[part](key) and not key.endswith("num_batches_tracked")}
    assert found == expected
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(p) for key, p in model.named_parameters() if EXPECTED[part](key)}
    count = sum(p.numel() for key, p in model.named_parameters() if EXPECTED[part](key))
    assert line == "" if part == "all" else line.startswith(f"--train {part}: {count:,} of ")


def test_what_is_frozen_drops_nothing() -> None:
    """Stochastic depth and dropout are for what is trained: of a frozen body a clip has the same features each time."""
    model = create_model("tadaconvnext_mini", num_classes=3, stochastic_depth=0.9, dropout=0.9)
    recipe = Recipe(model="tadaconvnext_mini", train="head")
    train_only(model, "head", "tadaconvnext_mini")
    RecognitionTask(model, recipe, steps_per_epoch=1, head_sizes={"action": 3}).train()
    assert model.dropout.training
    assert not any(module.training for module in model.stages.modules())
    clips = torch.randn(8, 3, 4, 32, 32)
    assert torch.equal(model.features(clips), model.features(clips))


@pytest.mark.parametrize("name", ["tsn_tiny", "convnext_mini", "slowonly_tiny"])
def test_a_network_without_tadaconv_has_no_calibration(name: str) -> None:
    with pytest.raises(
        OptionError, match=rf"train is 'calibration', but {name} has no TAdaConv .*: choose head or all"
    ):
        train_only(create_model(name, num_classes=3), "calibration", name)


def test_norms_over_several_devices_stay_frozen() -> None:
    model = create_model("tada2d_tiny", num_classes=3)
    train_only(model, "calibration", "tada2d_tiny")
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    synchronize_batch_norms(model, on_cpu=True)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def run(recipe: Recipe, data: Path, out: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    lines: list[str] = []
    train(recipe, data, out, num_workers=0, show_progress=False, say=lines.append, **options)
    return load_file(out / "model.safetensors"), lines


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_a_run_that_trains_the_calibration(
    ema_decay: float | None, small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, lines = run(small_recipe, motion_videos, Path("first"))
    assert not any("--train" in line for line in lines)
    recipe = replace(small_recipe, init="first", train="calibration", ema_decay=ema_decay)
    straight, lines = run(recipe, motion_videos, Path("straight"))
    assert {name for name in moved(first, straight) if not is_calibration(name)} == set()
    assert any(".routing." in name for name in moved(first, straight))
    assert any(line.startswith("--train calibration: ") for line in lines)
    assert not any("random weights" in line for line in lines)

    with stopping_before(4, monkeypatch):
        run(recipe, motion_videos, Path("stopped"), save_every_steps=1)
    resumed, lines = run(recipe, motion_videos, Path("stopped"), resume=True)
    assert any(line.startswith("--train calibration: ") for line in lines)
    assert not moved(straight, resumed)
    with pytest.raises(OptionError, match=r"was started with another train \(calibration\)"):
        run(replace(recipe, train="all"), motion_videos, Path("straight"), resume=True)


def test_a_frozen_part_that_knows_nothing_is_told(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    _, lines = run(replace(small_recipe, train="head", epochs=1), motion_videos, tmp_path / "run")
    assert "the frozen part has random weights: give trained ones with --init" in lines


def test_calibration_of_a_network_without_any_leaves_no_folder(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, model="tsn_tiny", train="calibration")
    with pytest.raises(OptionError, match="tsn_tiny has no TAdaConv"):
        run(recipe, motion_videos, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
