"""Recognition's training under the device guard: no mixing with the host, no waiting for the device within an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from accelerator_guard import is_there
from drawn_features import silent
from guarded_training import on_guarded_device
from tada.errors import OptionError
from tada.recognition import evaluation
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.recognition.training_call import machine_of_call, with_precision
from tada.recognition.training_step import RecognitionTask
from tada.system.devices import Machine
from tada.training.checkpoints import CHECKPOINT, WholeFileCheckpoints
from tada.training.loss_check import NonFiniteLossError
from tada.training.recipe import recipe_of_run

UNFUSED = "tada.training.module.fuses_optimizer"


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def fit(recipe: Recipe, data: Path, out: Path, **options: Any) -> dict[str, Tensor]:
    train(recipe, data, out, num_workers=0, show_progress=False, say=silent, **options)
    return weights_of(out)


def csv_of(data: Path, rows: Sequence[tuple[str, ...]], columns: str) -> Path:
    """A list of the motion videos with other labels."""
    videos = sorted(data.rglob("*.mp4"))
    file = data.parent / f"{columns.replace(',', '_')}.csv"
    splits = ["val" if i >= 12 else "train" for i in range(len(videos))]
    lines = [",".join((str(video), *rows[i % len(rows)], splits[i])) for i, video in enumerate(videos)]
    file.write_text("\n".join([f"{columns},split", *lines]) + "\n")
    return file


RECIPES: dict[str, dict[str, Any]] = {
    "one label": {},
    "smoothing, sgd, clipping, averaging": {
        "label_smoothing": 0.1,
        "optimizer": "sgd",
        "clip_gradient_norm": 1.0,
        "ema_decay": 0.5,
        "train": "calibration",
    },
    "mixup, in two parts": {"mixup_alpha": 0.2, "accumulate": 2},
    "cutmix": {"cutmix_alpha": 1.0},
    "weighted, mixed": {"balance": "loss", "mixup_alpha": 0.3},
    "weighted": {"balance": "loss"},
}


@pytest.mark.parametrize("case", RECIPES)
def test_steps_do_not_wait_and_have_the_numbers_of_the_cpu(
    case: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, keep="best", **RECIPES[case])
    alone = fit(recipe, motion_videos, tmp_path / "cpu")
    monkeypatch.setattr(UNFUSED, lambda device: False)  # fused ones round in another order
    with on_guarded_device() as guard:
        guarded = fit(recipe, motion_videos, tmp_path / "guarded")
    assert guard.counts["event.synchronize"] >= 6  # the losses were read, a step later
    assert alone.keys() == guarded.keys()
    for name, value in guarded.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=0, msg=name)


def test_several_heads_and_several_labels(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNFUSED, lambda device: False)
    heads = csv_of(motion_videos, [("a", "x"), ("b", "x"), ("a", "y")], "path,verb,noun")
    several = csv_of(motion_videos, [("1", "1"), ("0", "1"), ("1", "0"), ("0", "0")], "path,a,b")
    for name, data, changes in (
        ("heads", heads, {}),
        ("several", several, {"label_smoothing": 0.1}),
        ("weighted", several, {"balance": "loss"}),
    ):
        recipe = replace(small_recipe, **changes)
        with on_guarded_device():
            guarded = fit(recipe, data, tmp_path / name)
        alone = fit(recipe, data, tmp_path / f"{name}_cpu")
        for key, value in guarded.items():
            torch.testing.assert_close(value, alone[key], rtol=0, atol=0, msg=key)


def test_fused_optimizers_take_the_same_steps(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(small_recipe, optimizer="sgd", learning_rate=0.01, clip_gradient_norm=1.0)
    with on_guarded_device():
        guarded = fit(recipe, motion_videos, tmp_path / "gpu")
    alone = fit(recipe, motion_videos, tmp_path / "cpu")
    for key, value in guarded.items():
        torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5, msg=key)


def test_a_gpu_computes_in_bf16_where_it_can_and_the_run_says_so(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, clip_gradient_norm=1.0)
    assert recipe.precision == "auto"
    lines: list[str] = []
    with on_guarded_device(has_bf16=True):
        train(recipe, motion_videos, tmp_path / "gpu", num_workers=0, show_progress=False, say=lines.append)
    assert "convolutions and matrix products compute in bf16 (--precision fp32: in fp32)" in lines
    assert recipe_of_run(tmp_path / "gpu", Recipe).precision == "bf16"
    fit(recipe, motion_videos, tmp_path / "cpu")
    assert recipe_of_run(tmp_path / "cpu", Recipe).precision == "fp32"
    # A run goes on as it was begun, wherever that is.
    fit(replace(recipe, epochs=3), motion_videos, tmp_path / "gpu", resume=True)
    assert recipe_of_run(tmp_path / "gpu", Recipe).precision == "bf16"
    with pytest.raises(OptionError, match=r"started with another precision \(bf16\)"):
        fit(replace(recipe, epochs=3, precision="fp32"), motion_videos, tmp_path / "gpu", resume=True)


def test_precision_and_device_by_name() -> None:
    assert with_precision(Recipe(), "mps").precision == "fp32"
    with pytest.raises(OptionError, match="Apple's GPUs have no fp64"):
        with_precision(Recipe(precision="fp64"), "mps")
    assert machine_of_call("mps", None) == Machine(accelerator="mps")
    with pytest.raises(OptionError, match="should be 'cpu', 'cuda' or 'mps'"):
        machine_of_call("tpu", None)  # type: ignore[arg-type]


def test_an_evaluation_waits_for_scores_alone(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(replace(small_recipe, epochs=1), motion_videos, tmp_path / "run")
    options: dict[str, Any] = {"num_workers": 0, "clips_per_batch": 2, "show_progress": False, "say": silent}
    alone = evaluate(tmp_path / "run", motion_videos, device="cpu", views="2x3", **options)
    score = evaluation._score_videos
    with on_guarded_device() as guard:

        def strictly(*arguments: Any, **named: Any) -> Any:
            guard._allowed -= 1
            try:
                return score(*arguments, **named)
            finally:
                guard._allowed += 1

        monkeypatch.setattr(evaluation, "_score_videos", strictly)
        guarded = evaluate(tmp_path / "run", motion_videos, views="2x3", **options)
        assert guard.counts["event.synchronize"] >= 3 * len(alone.scores)  # two of the six views at a time
    np.testing.assert_allclose(guarded.scores, alone.scores, rtol=1e-5, atol=1e-6)


# --- losses that are not finite --------------------------------------------------------------------------------------


def with_nan_in_step(monkeypatch: pytest.MonkeyPatch, step: int, seen: list[dict[str, Tensor]]) -> None:
    """Let a step's loss be nan; note the weights before it and at each later one."""
    own_loss = RecognitionTask._loss

    def loss(task: RecognitionTask, logits: Tensor, target: Tensor, head: int) -> Tensor:
        if task.global_step >= step:
            seen.append({name: value.detach().clone() for name, value in task.model.named_parameters()})
        value = own_loss(task, logits, target, head)
        return value * float("nan") if task.global_step == step else value

    monkeypatch.setattr(RecognitionTask, "_loss", loss)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_device_skips_a_step_whose_loss_is_not_finite(
    optimizer: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host learns of it in the next step, of which nothing is taken either; the error names the right batch."""
    recipe = replace(small_recipe, optimizer=optimizer, clip_gradient_norm=1.0)
    seen: list[dict[str, Tensor]] = []
    with_nan_in_step(monkeypatch, 4, seen)  # the second of the second epoch
    batches: list[list[str]] = []
    begin = RecognitionTask.on_train_batch_start
    monkeypatch.setattr(
        RecognitionTask,
        "on_train_batch_start",
        lambda task, batch, batch_idx: (batches.append(batch.paths), begin(task, batch, batch_idx))[1],
    )
    with on_guarded_device() as guard:
        with pytest.raises(NonFiniteLossError, match=r"the loss is nan in epoch 2, batch 2: lower .* be resumed"):
            fit(recipe, motion_videos, tmp_path / "run")
        before, after = seen
        assert all(is_there(value) for value in after.values())
        with guard.allowed():
            assert all(torch.equal(before[name], value) for name, value in after.items())
    assert (tmp_path / "run" / "non_finite_batch.txt").read_text().splitlines() == batches[4]
    state = WholeFileCheckpoints().load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert state["global_step"] == 3
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_state_is_not_saved_before_its_losses_are_known(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nan_in_step(monkeypatch, 4, [])
    with on_guarded_device(), pytest.raises(NonFiniteLossError, match="epoch 2, batch 2"):
        fit(small_recipe, motion_videos, tmp_path / "run", save_every_steps=1)
    state = WholeFileCheckpoints().load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert state["global_step"] == 4  # those that were taken
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_the_last_step_of_all_is_checked_too(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nan_in_step(monkeypatch, 5, [])
    with on_guarded_device(), pytest.raises(NonFiniteLossError, match="epoch 2, batch 3"):
        fit(small_recipe, motion_videos, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


# --- from one device to the other -----------------------------------------------------------------------------------


def test_a_run_goes_on_on_another_device(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    """An optimizer is fused on a GPU and not on a CPU, wherever the state was saved."""
    recipe = replace(small_recipe, precision="fp32", ema_decay=0.5)
    straight = fit(replace(recipe, epochs=3), motion_videos, tmp_path / "straight")
    fit(replace(recipe, epochs=1), motion_videos, tmp_path / "run")
    with on_guarded_device():
        fit(replace(recipe, epochs=2), motion_videos, tmp_path / "run", resume=True)
    state = WholeFileCheckpoints().load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert all(group["fused"] is True for group in state["optimizer_states"][0]["param_groups"])
    fit(replace(recipe, epochs=3), motion_videos, tmp_path / "run", resume=True)
    state = WholeFileCheckpoints().load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert all(group["fused"] is None for group in state["optimizer_states"][0]["param_groups"])
    assert straight.keys() == weights_of(tmp_path / "run").keys()
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run").values())
