"""Localization's training and detection under the device guard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from accelerator_guard import accelerator_guard
from drawn_features import RECIPE, silent
from guarded_training import StrictClock, on_guarded_device
from tada.localization.detectors.actionformer import ActionFormerDetector
from tada.localization.features.extraction import clip_outputs
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import load_localizer
from tada.localization.training import train_localizer
from tada.recognition.recognizer import load_recognizer
from tada.training.loss_check import NonFiniteLossError

RECIPES: dict[str, dict[str, Any]] = {
    "actionformer": {"detector": "actionformer"},
    "actionformer, global attention, positions": {"attention_window": -1, "position_encoding": True, "dim": 8},
    "actionformer, resized, without classes": {"class_agnostic": True, "resize_to": 32, "label_smoothing": 0.1},
    "bmn": {"detector": "bmn", "batch_size": 2},
}


@pytest.mark.parametrize("case", RECIPES)
def test_steps_do_not_wait_and_have_the_numbers_of_the_cpu(
    case: str, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, **RECIPES[case])
    # Of a detector the tests after epochs find segments, whose number only the device knows.
    monkeypatch.setattr(StrictClock, "on_validation_batch_start", lambda clock, *arguments, **named: clock._set(False))
    monkeypatch.setattr("tada.training.module.fuses_optimizer", lambda device: False)
    train_localizer(recipe, *data, tmp_path / "cpu", show_progress=False, say=silent)
    with on_guarded_device() as guard:
        train_localizer(recipe, *data, tmp_path / "gpu", show_progress=False, say=silent)
    assert guard.counts["event.synchronize"] >= 6
    alone, guarded = (load_file(tmp_path / name / "localizer.safetensors") for name in ("cpu", "gpu"))
    for name, value in guarded.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=0, msg=name)


def test_a_loss_that_is_not_finite_ends_the_training(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_losses, calls = ActionFormerDetector.losses, []

    def losses(detector: ActionFormerDetector, batch: Any) -> Any:
        calls.append(1)
        found = own_losses(detector, batch)
        return {**found, "loss": found["loss"] * float("nan")} if len(calls) == 3 else found

    monkeypatch.setattr(ActionFormerDetector, "losses", losses)
    with on_guarded_device(), pytest.raises(NonFiniteLossError, match=r"the loss is nan in epoch 1, batch 3: lower"):
        train_localizer(RECIPE, *data, tmp_path / "gpu", show_progress=False, say=silent)
    calls.clear()
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan in epoch 1, batch 3: lower"):
        train_localizer(RECIPE, *data, tmp_path / "cpu", show_progress=False, say=silent)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_detections_are_those_of_the_cpu(kind: Any, run: Path, data: tuple[Path, Path]) -> None:
    localizer = load_localizer(run)
    features = FeatureFolder(data[0]).read("v0")
    alone = localizer.detect(features)
    with accelerator_guard(kind) as guard, guard.allowed():
        localizer.detector.to(kind)
        guarded = localizer.detect(features)
    for one, other in zip(guarded, alone, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_features_are_those_of_the_cpu(kind: Any, small_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.randint(0, 256, (3, 2, 4, 20, 20, 3), dtype=torch.uint8)
    alone = clip_outputs(load_recognizer(small_backbone, device="cpu"), clips)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with accelerator_guard(kind) as guard:
        with guard.allowed():
            backbone = load_recognizer(small_backbone, device=kind)
            clip_outputs(backbone, clips)
        assert next(backbone.network.parameters()).device.type == kind
        before = dict(guard.counts)
        if kind == "cuda":
            guarded = clip_outputs(backbone, clips)
            assert guard.counts["event.synchronize"] - before["event.synchronize"] == 2
        else:
            with guard.allowed():
                guarded = clip_outputs(backbone, clips)
    for one, other in zip(guarded, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
