"""What held-out videos decide: the best epoch's weights, an early end; and more epochs for a run that was finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stopped_training import same, stopping_before
from tada.errors import CheckpointError, OptionError
from tada.models.weights import load_model
from tada.recognition.recipe import Recipe, load_recipe
from tada.recognition.run_outputs import finite_metrics
from tada.recognition.training import TrainingResult, train
from tada.recognition.training_step import RecognitionTask
from tada.training.best_epoch import BestEpoch
from tada.training.schedule import learning_rate_factor


def run(recipe: Recipe, data: Path, out: Path, **options: Any) -> tuple[TrainingResult, list[str]]:
    lines: list[str] = []
    result = train(recipe, data, out, num_workers=0, show_progress=False, say=lines.append, **options)
    return result, lines


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a run, which takes longer to draw than these runs take to train."""
    monkeypatch.setattr("tada.recognition.training.write_page", lambda *arguments, **options: None)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the test of each epoch find given accuracies (and losses), whatever the network is."""
    own = RecognitionTask.log

    def give(accuracies: Sequence[float], losses: Sequence[float] | None = None) -> None:
        def log(task: RecognitionTask, name: str, value: Any, **options: Any) -> None:
            epoch = task.trainer.global_step // task.steps_per_epoch
            if name == "val_top1":
                value = accuracies[epoch - 1]
            if name == "val_loss":
                value = 1.0 if losses is None else losses[epoch - 1]
            own(task, name, value, **options)

        monkeypatch.setattr(RecognitionTask, "log", log)

    return give


@pytest.fixture
def recipe(small_recipe: Recipe) -> Recipe:
    """Epochs of four small steps."""
    clip = replace(small_recipe.clip, num_frames=2, short_side=16, crop=12)
    return replace(small_recipe, epochs=5, batch_size=3, clip=clip, short_side_range=(12, 18))


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> None:
    """A run that ends before a step, with a state saved after each."""
    with stopping_before(step, monkeypatch):
        run(*arguments, save_every_steps=1, **options)


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_the_weights_of_the_best_epoch_are_kept(
    ema_decay: float | None, recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any
) -> None:
    """Those that an end after it would have left; of equal accuracies the lower loss decides, and then the earlier."""
    scored([0.3, 0.6, 0.6, 0.6, 0.5], [1.0, 0.9, 0.8, 0.8, 0.1])
    recipe = replace(recipe, keep="best", ema_decay=ema_decay)
    result, lines = run(recipe, motion_videos, tmp_path / "best")
    assert result.metrics == pytest.approx({"val_top1": 0.6, "val_loss": 0.8, "kept_epoch": 3.0})
    assert any(line.startswith("--keep best: the weights after the epoch with the best val_top1 are") for line in lines)
    assert "kept: the weights after epoch 3, the best of those tested by val_top1" in lines
    saved = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert saved["kept_epoch"] == load_model(tmp_path / "best")[1].metrics["kept_epoch"] == 3
    # The schedule is that of five epochs; the third's end is where a run ends that gets no better from there on.
    scored([0.3, 0.6, 0.6, 0.6, 0.5], [1.0, 0.9, 0.9, 0.8, 0.1])
    stopped = replace(recipe, keep="last", stop_early=1)
    result, lines = run(stopped, motion_videos, tmp_path / "stopped")
    assert [
        line for line in lines if line.startswith("training ends after epoch 3 of 5: no better val_top1 since epoch 2")
    ]
    assert same(weights(tmp_path / "best"), weights(tmp_path / "stopped"))
    assert "kept_epoch" not in result.metrics


def test_a_run_that_is_stopped_early_goes_on_with_its_count(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted anywhere: before a test, after the best epoch, while no epoch is better, and before the end."""
    scored([0.5, 0.6, 0.4, 0.5, 0.9])
    recipe = replace(recipe, keep="best", stop_early=2)
    result, lines = run(recipe, motion_videos, tmp_path / "straight")
    end = "training ends after epoch 4 of 5: no better val_top1 since epoch 2 (0.600)"
    assert end in lines
    assert result.metrics["kept_epoch"] == 2
    for step in (7, 8, 15):
        out = tmp_path / f"stopped_{step}"
        stop_before(step, monkeypatch, recipe, motion_videos, out)
        again, lines = run(recipe, motion_videos, out, resume=True)
        assert end in lines
        assert again.metrics == result.metrics
        assert same(weights(tmp_path / "straight"), weights(out)), f"stopped before step {step}"


def test_a_test_that_was_not_finished_is_done_again(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored([0.5, 0.6, 0.4, 0.5, 0.9])
    recipe = replace(recipe, keep="best", stop_early=2)
    end_of_test = RecognitionTask.on_validation_epoch_end
    for step in (8, 16):

        def die(task: RecognitionTask, *, step: int = step) -> None:
            if task.global_step == step:
                raise ConnectionError("the machine goes down")
            end_of_test(task)

        out = tmp_path / f"run_{step}"
        with monkeypatch.context() as patched:
            patched.setattr(RecognitionTask, "on_validation_epoch_end", die)
            with pytest.raises(ConnectionError, match="goes down"):
                run(recipe, motion_videos, out)
        result, lines = run(recipe, motion_videos, out, resume=True)
        assert result.metrics["kept_epoch"] == 2
        assert "training ends after epoch 4 of 5: no better val_top1 since epoch 2 (0.600)" in lines


def test_what_goes_by_held_out_videos_needs_some(recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    for changes in ({"keep": "best"}, {"stop_early": 3}):
        with pytest.raises(OptionError, match=r"and there are none: hold some out \(--val-fraction, --val-groups\)"):
            run(replace(recipe, **changes), motion_videos, tmp_path / "run", val_fraction=0)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="stop_early must be 1 or more, or null"):
        replace(recipe, stop_early=0)


def test_a_best_state_that_is_gone_is_told(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored([0.5, 0.4, 0.3, 0.2, 0.1])
    recipe = replace(recipe, keep="best")
    stop_before(7, monkeypatch, recipe, motion_videos, tmp_path / "run")
    (tmp_path / "run" / "resume" / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.ckpt', the state after the best epoch \(1\), is damaged or gone"):
        run(recipe, motion_videos, tmp_path / "run", resume=True)


def test_states_of_localizers_of_before_know_their_best_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an earlier tada has its score, one of a still earlier that of Lightning's callback."""
    saved: list[Path] = []
    trainer: Any = SimpleNamespace(global_step=8, save_checkpoint=saved.append)
    checkpoint = {"callbacks": {"ModelCheckpoint{...}": {"monitor": "val_map", "best_model_score": torch.tensor(0.5)}}}
    for give in (
        lambda best: best.load_state_dict({"score": 0.5}),
        lambda best: best.on_load_checkpoint(trainer, None, checkpoint),
    ):
        best = BestEpoch(tmp_path / "best.ckpt", accuracy="val_map", steps_per_epoch=4)
        assert best.state_key == "BestEpoch"
        give(best)
        for score, is_better in ((0.4, False), (0.5, False), (0.6, True)):
            trainer.callback_metrics = {"val_map": torch.tensor(score), "train_loss": torch.tensor(1.0)}
            best.on_validation_end(trainer, None)  # type: ignore[arg-type]  # not asked
            assert bool(saved) == is_better
        assert (best.epoch, best.metrics["val_map"]) == (2, pytest.approx(0.6))
        saved.clear()
    untested = BestEpoch(tmp_path / "best.ckpt", accuracy="val_map", steps_per_epoch=4)
    untested.load_state_dict({"score": -1.0})
    trainer.callback_metrics = {"val_map": torch.tensor(0.0)}
    untested.on_validation_end(trainer, None)  # type: ignore[arg-type]  # not asked
    assert saved == [tmp_path / "best.ckpt"], "the first test is the best, whatever it finds"


# -- more epochs ------------------------------------------------------------------------------------------------------


def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step to come."""
    found: list[float] = []
    begin = RecognitionTask.on_train_batch_start

    def note(task: RecognitionTask, batch: Any, batch_idx: int) -> None:
        found.append(task.trainer.optimizers[0].param_groups[0]["lr"])
        begin(task, batch, batch_idx)

    monkeypatch.setattr(RecognitionTask, "on_train_batch_start", note)
    return found


@pytest.mark.parametrize("variant", [{"keep": "best"}, pytest.param({}, marks=pytest.mark.slow), {"ema_decay": 0.8}])
def test_a_finished_run_goes_on_with_more_epochs(
    variant: dict[str, Any], recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = replace(recipe, epochs=2, **variant)
    more = replace(recipe, epochs=4)
    out = Path("run")
    run(recipe, motion_videos, out)
    first = weights(out)
    found = rates(monkeypatch)
    result, lines = run(more, motion_videos, out, resume=True)
    curve = [
        recipe.learning_rate * learning_rate_factor(step / 4, epochs=4, warmup_epochs=1.0, warmup_start=0.01)
        for step in range(8, 16)
    ]
    assert found == pytest.approx(curve), "the curve of four epochs, also for the first step"
    (line,) = [line for line in lines if line.startswith("4 epochs in place of 2: from here on the learning rate")]
    assert f"after epoch 2 is at {curve[0]:.2g}, where that of 2 is at zero" in line
    assert any(line.startswith("epoch 4/4 ") for line in lines)
    assert not same(first, weights(out)) or result.metrics.get("kept_epoch", 9) <= 2
    assert load_recipe(out / "recipe.yaml").epochs == 4
    # Interrupted after that, it goes on as the recipe in its folder says.
    other = Path("other")
    run(recipe, motion_videos, other)
    stop_before(11, monkeypatch, more, motion_videos, other, resume=True)
    assert not (other / "metrics.json").exists()
    assert same(first, weights(other)), "the weights of before can be used until then"
    run(load_recipe(other / "recipe.yaml"), motion_videos, other, resume=True)
    assert same(weights(out), weights(other))
    # Finished once more, and not to be made shorter.
    _, lines = run(more, motion_videos, out, resume=True)
    assert any("with --epochs above 4 this one goes on" in line for line in lines)
    with pytest.raises(OptionError, match=r"was begun with 4 epochs, and can only go on with more"):
        run(replace(recipe, epochs=3), motion_videos, out, resume=True)


def test_a_run_that_ended_early_tries_the_epochs_that_are_added(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored([0.6, 0.5, 0.5, 0.5, 0.5, 0.5])
    recipe = replace(recipe, epochs=4, stop_early=1)
    _, lines = run(recipe, motion_videos, tmp_path / "run")
    assert any(line.startswith("training ends after epoch 2 of 4") for line in lines)
    _, lines = run(recipe, motion_videos, tmp_path / "run", resume=True)
    assert any("is finished" in line for line in lines)
    more = replace(recipe, epochs=6)
    stop_before(9, monkeypatch, more, motion_videos, tmp_path / "run", resume=True)
    _, lines = run(more, motion_videos, tmp_path / "run", resume=True)
    assert any(line.startswith("training ends after epoch 3 of 6") for line in lines)


def test_a_run_that_comes_to_its_end_has_not_ended_early(
    recipe: Recipe, motion_videos: Path, tmp_path: Path, scored: Any
) -> None:
    scored([0.6, 0.5])
    _, lines = run(replace(recipe, epochs=2, stop_early=1), motion_videos, tmp_path / "run")
    assert not any(line.startswith("training ends") for line in lines)
    assert any(line.startswith("epoch 2/2") for line in lines)


def test_a_finished_run_without_its_state_cannot_go_on(recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(recipe, epochs=1)
    run(recipe, motion_videos, tmp_path / "run")
    (tmp_path / "run" / "resume" / "last.ckpt").unlink()
    with pytest.raises(OptionError, match=r"last\.ckpt, needed to go on, is missing: start a new run"):
        run(replace(recipe, epochs=2), motion_videos, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_the_line_of_an_epoch_tells_the_loss_on_held_out_videos(
    recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    result, lines = run(replace(recipe, epochs=1), motion_videos, tmp_path / "run")
    (line,) = [line for line in lines if line.startswith("epoch 1/1")]
    assert f"val_loss {result.metrics['val_loss']:.4f}" in line


def test_a_loss_that_overflows_is_told_and_left_out_of_json(tmp_path: Path) -> None:
    lines: list[str] = []
    assert finite_metrics({"val_top1": 0.5, "val_loss": float("nan")}, lines.append) == {"val_top1": 0.5}
    assert len(lines) == 1
    assert lines[0].startswith("val_loss is nan: the network's outputs on held-out videos overflow")
    best = BestEpoch(tmp_path / "best.ckpt", accuracy="val_top1", steps_per_epoch=1)
    overflown, sound = ({"val_top1": 0.5, "val_loss": loss} for loss in (float("nan"), 90.0))
    assert best._score(overflown) < best._score(sound) < best._score({"val_top1": 0.6, "val_loss": float("nan")})
