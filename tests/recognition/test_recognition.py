"""Training: its schedule, its state, and that an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hang import HANG_SECONDS
from stopped_training import same, stopping_before
from tada.data.annotations import read_dataset
from tada.data.views import ViewBatch
from tada.errors import CheckpointError, DataError, OptionError, OutputError
from tada.models import create_model, with_normalization
from tada.models.pretrained import initialize
from tada.models.weights import load_model
from tada.recognition.intervals import interval_text
from tada.recognition.recipe import Recipe, load_recipe
from tada.recognition.training import train
from tada.recognition.training_step import RecognitionTask
from tada.system.devices import Machine
from tada.training.loss_check import NonFiniteLossError
from tada.training.recipe import changed, recipe_yaml
from tada.training.schedule import fitted, learning_rate_factor
from tada.training.trainer import WholeFileCheckpoints
from tada.video.sampling import CLIP_NORMALIZATION, NORMALIZATION
from tada.video.transforms import normalize


def silent(line: str) -> None:
    pass


def run(recipe: Recipe, data: Path, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train, and return the weights."""
    train(recipe, data, out, num_workers=0, show_progress=False, say=silent, **options)
    return load_file(out / "model.safetensors")


def test_the_learning_rate_follows_the_published_rule() -> None:
    def factor(epoch: float) -> float:
        return learning_rate_factor(epoch, epochs=100, warmup_epochs=8, warmup_start=0.01 / 0.24)

    # base 0.24, start 0.01, the cosine's value at epoch 8 is 0.24 * (1 + cos(0.08 pi)) / 2
    rates = [0.24 * factor(epoch) for epoch in (0, 4, 8, 50, 100)]
    assert rates == pytest.approx([0.01, 0.12311499, 0.23622998, 0.12, 0.0], abs=1e-8)
    assert learning_rate_factor(0, epochs=4, warmup_epochs=0, warmup_start=0.5) == 1


def test_norms_and_biases_are_not_decayed(small_recipe: Recipe) -> None:
    model = create_model(small_recipe.model, num_classes=3, **small_recipe.model_options)
    groups = (
        RecognitionTask(model, small_recipe, steps_per_epoch=1, head_sizes={"action": 3})
        .configure_optimizers()["optimizer"]
        .param_groups
    )
    assert [group["weight_decay"] for group in groups] == [small_recipe.weight_decay, 0.0] * 2
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert all(parameter.ndim <= 1 for group in groups[1::2] for parameter in group["params"])
    kernels = {id(parameter) for parameter in groups[0]["params"]}
    assert {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Conv2d)} <= kernels


def test_the_classifier_may_learn_faster(small_recipe: Recipe) -> None:
    model = create_model(small_recipe.model, num_classes=3, **small_recipe.model_options)
    recipe = replace(small_recipe, learning_rate=0.5, head_learning_rate_factor=3.0)
    groups = (
        RecognitionTask(model, recipe, steps_per_epoch=1, head_sizes={"action": 3})
        .configure_optimizers()["optimizer"]
        .param_groups
    )
    assert [group["initial_lr"] for group in groups] == [0.5, 0.5, 1.5, 1.5]
    assert [parameter is model.head.weight for parameter in groups[2]["params"]] == [True]
    assert [parameter is model.head.bias for parameter in groups[3]["params"]] == [True]


def test_pixels_are_normalized_as_the_clip_says(small_recipe: Recipe) -> None:
    plain, mean, std = small_recipe.clip, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
    assert with_normalization(plain, "tada2d_r50").normalization == NORMALIZATION
    assert with_normalization(plain, "tadaformer_l14_ssv2").normalization == CLIP_NORMALIZATION
    assert with_normalization(replace(plain, std=std), "tadaformer_tiny").normalization == (CLIP_NORMALIZATION[0], std)
    recipe = replace(small_recipe, clip=replace(plain, mean=mean, std=std))
    seen = Seen()
    task = RecognitionTask(seen, recipe, steps_per_epoch=1, head_sizes={"action": 3})
    views = torch.randint(256, (2, 1, 4, 20, 20, 3), generator=torch.Generator().manual_seed(0)).byte()
    task.validation_step(ViewBatch(torch.arange(2), torch.zeros(2, 1, dtype=torch.int64), views, []), 0)
    assert torch.equal(seen.clips, normalize(views[:, 0], mean, std))


class Seen(torch.nn.Module):
    clips: Tensor

    def forward(self, clips: Tensor) -> Tensor:
        self.clips = clips
        return torch.zeros(len(clips), 3)


def test_a_run_leaves_all_that_is_needed_to_use_and_repeat_it(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lines: list[str] = []
    result = train(small_recipe, motion_videos, out, num_workers=0, show_progress=False, say=lines.append)
    assert lines[0] == "12 training and 3 validation videos of 3 classes"
    assert lines[1].endswith("starting from random weights")
    assert lines[2] == "2 epochs of 3 steps, 4 clips in each; warm-up 1 epoch"
    assert lines[-4].startswith("epoch 2/2  train_loss ")
    assert re.fullmatch(r"reading a clip takes \d+ ms of one core, and of 100 clips 95 take at most \d+ ms", lines[-3])
    assert lines[-1] == f"curves, every class and the worst mistakes: {out / 'report.html'}"
    top1 = result.metrics["val_top1"]
    assert lines[-2] == f"val_top1 {top1:.3f} of 3 clips ({interval_text(top1, 3)})"
    with_numbers = replace(small_recipe, clip=with_normalization(small_recipe.clip, "tada2d_tiny"), precision="fp32")
    assert load_recipe(out / "recipe.yaml") == with_numbers
    model, card = load_model(out)
    assert card.typical_seconds == pytest.approx(1.0)
    assert card.labels == ("left", "right", "up")
    assert card.clip == with_numbers.clip
    assert (card.clip.mean, card.clip.std) == NORMALIZATION
    assert not model.training
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["val_top1"] == result.metrics["val_top1"] == card.metrics["val_top1"]
    with (out / "videos.csv").open() as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert splits.count("train") == 12
    assert splits.count("val") == 3
    with next((out / "logs").rglob("metrics.csv")).open() as file:
        assert len([row for row in csv.DictReader(file) if row["train_loss"]]) == 2
    assert next((out / "logs").rglob("events.out.tfevents.*")).stat().st_size > 0
    assert not (out / "unreadable.csv").exists()
    # Nothing but what was promised.
    names = {"recipe.yaml", "videos.csv", "model.safetensors", "model.json", "metrics.json", "logs", "resume"}
    names |= {"report.html", "curves.png", "validation"}
    assert {path.name for path in out.iterdir()} == names


def test_training_learns(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    """The loss of the last epoch lies well below that of guessing among three classes (1.10)."""
    recipe = replace(
        small_recipe,
        epochs=60,
        batch_size=6,
        learning_rate=4e-3,  # eight seeds end between 0.04 and 0.31
        flip_probability=0.0,
        color_strength=0.0,
        grayscale_probability=0.0,
        model_options={"start": "image"},  # twelve clips are learned by heart, by how they look
    )
    result = train(
        recipe, motion_videos, tmp_path / "run", val_fraction=0, num_workers=0, show_progress=False, say=silent
    )
    assert result.metrics["train_loss"] < 0.5
    assert "val_top1" not in result.metrics


def test_the_same_recipe_gives_the_same_weights_whatever_the_workers(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    alone = run(small_recipe, motion_videos, tmp_path / "alone")
    train(small_recipe, motion_videos, tmp_path / "helped", num_workers=2, show_progress=False, say=silent)
    assert same(alone, load_file(tmp_path / "helped" / "model.safetensors"))
    other = run(replace(small_recipe, seed=1), motion_videos, tmp_path / "other")
    assert not same(alone, other)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged, in parts, smoothed": {"ema_decay": 0.8, "accumulate": 2, "label_smoothing": 0.1},
    "the last batch filled up": {"batch_size": 5},
    "sgd": {"optimizer": "sgd", "clip_gradient_norm": 1.0, "weight_decay": 1e-4},
}


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[pytest.mark.slow] if v in ("plain", "sgd") else []) for v in VARIANTS]
)
def test_an_interrupted_run_ends_with_the_same_bits(
    variant: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, **VARIANTS[variant])
    straight = run(recipe, motion_videos, tmp_path / "straight")

    begin = RecognitionTask.on_train_batch_start
    parts_per_epoch = 3 * recipe.accumulate
    # Stopped at the start of each part of a step but the first, with a state saved after every step.
    for stop in range(1, 2 * parts_per_epoch):

        def stop_there(task: RecognitionTask, batch: Any, batch_idx: int, *, stop: int = stop) -> None:
            if task.current_epoch * parts_per_epoch + batch_idx == stop:
                raise ConnectionError("the machine goes down")
            begin(task, batch, batch_idx)

        out = tmp_path / f"stopped_{stop}"
        monkeypatch.setattr(RecognitionTask, "on_train_batch_start", stop_there)
        with pytest.raises(ConnectionError, match="goes down"):
            run(recipe, motion_videos, out, save_every_steps=1)
        assert not (out / "model.safetensors").exists()
        monkeypatch.setattr(RecognitionTask, "on_train_batch_start", begin)
        is_begun = stop >= recipe.accumulate
        assert out.exists() == is_begun  # before the first step nothing of value was there
        assert same(straight, run(recipe, motion_videos, out, resume=is_begun)), f"stopped at part {stop}"


@pytest.mark.parametrize(("first", "second"), [(3, 5), (2, 4)])
def test_a_run_that_is_interrupted_twice_ends_with_the_same_bits(
    first: int,
    second: int,
    small_recipe: Recipe,
    motion_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end of an epoch, of three steps, and then in the middle of the next; and in the middle of both."""
    straight = run(small_recipe, motion_videos, tmp_path / "straight")
    out = tmp_path / "run"
    interrupted(small_recipe, motion_videos, out, monkeypatch, step=first)
    interrupted(small_recipe, motion_videos, out, monkeypatch, step=second, resume=True)
    assert same(straight, run(small_recipe, motion_videos, out, resume=True))


def some_videos(data: Path, folder: Path, *, labels: Sequence[str], videos_per_class: int) -> Path:
    """A folder of class folders with the first videos of some classes."""
    for label in labels:
        (folder / label).mkdir(parents=True)
        for video in sorted((data / label).iterdir())[:videos_per_class]:
            shutil.copy(video, folder / label)
    return folder


def test_clips_of_one_recording_on_both_sides_are_told(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    data = some_videos(motion_videos, tmp_path / "clips", labels=("left", "right"), videos_per_class=4)
    for video in sorted(data.rglob("*.mp4")):
        number = int(video.stem.split("_")[1])
        video.rename(video.with_name(f"{'anna' if number < 2 else 'ben'}_{number}.mp4"))
    lines: list[str] = []
    train(small_recipe, data, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    (line,) = [line for line in lines if "--val-groups" in line]
    assert line.startswith("2 of 2 held-out clips may be of recordings that are trained on as well, such as '")
    # Whoever chose the parts is not told.
    lines.clear()
    train(small_recipe, data, tmp_path / "all", val_fraction=0, num_workers=0, show_progress=False, say=lines.append)
    assert not [line for line in lines if "--val-groups" in line]


def test_a_class_with_one_clip_has_ways_out(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    data = some_videos(motion_videos, tmp_path / "clips", labels=("left", "right"), videos_per_class=2)
    next((data / "left").iterdir()).unlink()
    with pytest.raises(DataError, match=r"class 'left' has one video .* or hold nothing out \(--val-fraction 0\)"):
        run(small_recipe, data, tmp_path / "run")
    run(replace(small_recipe, epochs=1), data, tmp_path / "run", val_fraction=0)


def interrupted(
    recipe: Recipe, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, step: int, resume: bool = False
) -> None:
    """A run that was stopped before a step, with a state saved after each."""
    with stopping_before(step, monkeypatch):
        run(recipe, data, out, resume=resume, save_every_steps=1)


def test_a_run_from_before_batches_were_filled_up_goes_on_as_it_began(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, batch_size=5, last_batch="drop")
    straight = run(recipe, motion_videos, tmp_path / "straight")
    out = tmp_path / "old"
    interrupted(recipe, motion_videos, out, monkeypatch, step=3)
    file = out / "recipe.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("last_batch")) + "\n")
    assert load_recipe(file).last_batch == "fill", "as the command line reads it"
    assert same(straight, run(load_recipe(file), motion_videos, out, resume=True))
    with pytest.raises(OptionError, match=r"was started with another last_batch \(drop\)"):
        run(replace(small_recipe, batch_size=5), motion_videos, tmp_path / "straight", resume=True)


def test_numbers_that_followed_the_data_are_those_of_the_run(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, epochs=3, batch_size=None, warmup_epochs=None)
    out = tmp_path / "run"
    interrupted(recipe, motion_videos, out, monkeypatch, step=2)
    of_run = load_recipe(out / "recipe.yaml")
    assert of_run.numbers == fitted(recipe, 12).numbers
    straight = run(of_run, motion_videos, tmp_path / "straight")
    assert same(straight, run(recipe, motion_videos, out, resume=True))


@pytest.mark.parametrize("videos_per_class", [2, 3])
def test_two_clips_a_class_make_a_model(
    videos_per_class: int, small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to leave to the data is left to it, all but the number of epochs, for the test's time."""
    monkeypatch.chdir(tmp_path)
    some_videos(motion_videos, tmp_path / "clips", labels=("left", "right"), videos_per_class=videos_per_class)
    lines: list[str] = []
    recipe = replace(small_recipe, epochs=8, batch_size=None, warmup_epochs=None)
    result = train(recipe, tmp_path / "clips", Path("run"), num_workers=0, show_progress=False, say=lines.append)
    training = 2 * (videos_per_class - 1)
    assert lines[0] == f"{training} training and 2 validation videos of 2 classes"
    assert lines[2] == f"8 epochs of 1 step, {training} clips in each; warm-up 0.8 epochs"
    told = [line for line in lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in told] == ["4/8", "8/8"], "short epochs are told by the handful"
    assert load_model(Path("run"))[1].metrics["val_top1"] == result.metrics["val_top1"]
    again = train(recipe, tmp_path / "clips", Path("run"), resume=True, num_workers=0, show_progress=False, say=silent)
    assert again.metrics.keys() <= result.metrics.keys()


KILLED_AT_STEP_FIVE = """
import os, signal, sys
from pathlib import Path
import torch
import tada.recognition.training as recognition
import tada.recognition.training_step as recognition_task
from tada.recognition.recipe import load_recipe

torch.set_num_threads(1)
begin = recognition_task.RecognitionTask.on_train_batch_start
def die(task, batch, batch_idx):
    if task.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    begin(task, batch, batch_idx)
recognition_task.RecognitionTask.on_train_batch_start = die
recipe, data, out = sys.argv[1:]
recognition.train(load_recipe(recipe), Path(data), Path(out), save_every_steps=2, num_workers=2, show_progress=False)
"""


def test_a_killed_process_is_resumed_to_the_same_bits(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    straight = run(small_recipe, motion_videos, tmp_path / "straight")
    (tmp_path / "own.yaml").write_text(recipe_yaml(small_recipe))
    command = [sys.executable, "-c", KILLED_AT_STEP_FIVE, tmp_path / "own.yaml", motion_videos, tmp_path / "killed"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Step 5 is the last of epoch 2; the state is that of step 4, in the middle of it.
    assert same(straight, run(small_recipe, motion_videos, tmp_path / "killed", resume=True))


def test_resuming_something_else_is_refused(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(small_recipe, motion_videos, out, save_every_steps=1)
    with pytest.raises(OptionError, match=r"with another learning_rate \(0.01\), label_smoothing \(0.0\), and --"):
        run(replace(small_recipe, learning_rate=1.0, label_smoothing=0.1), motion_videos, out, resume=True)
    with pytest.raises(DataError, match=r"the videos, labels or splits are not those that .* \(videos\.csv there\)"):
        run(small_recipe, motion_videos, out, resume=True, val_fraction=0.5)
    (out / "metrics.json").unlink()
    (out / "resume" / "last.ckpt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged and cannot be read: start anew"):
        run(small_recipe, motion_videos, out, resume=True)


def test_a_used_folder_is_not_written_over(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"is not empty: choose another folder with --out, or .* --resume"):
        run(small_recipe, motion_videos, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unreadable_video_stops_the_run_unless_it_is_allowed(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for video in read_dataset(motion_videos).videos:
        target = data / Path(video.path).relative_to(motion_videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(video.path)
    broken = data / "left" / "zzz.mp4"
    broken.write_bytes(b"")
    recipe = replace(small_recipe, epochs=4)
    with pytest.raises(DataError, match=r"zzz\.mp4.*\(1 unreadable video, 0 allowed; --skip-unreadable N"):
        run(recipe, data, tmp_path / "strict", val_fraction=0)
    assert not (tmp_path / "strict" / "model.safetensors").exists()
    run(recipe, data, tmp_path / "lenient", val_fraction=0, skip_unreadable=1)
    with (tmp_path / "lenient" / "unreadable.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["zzz.mp4"]


def test_a_loss_that_is_no_number_stops_before_the_step(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, optimizer="sgd", learning_rate=1e30, warmup_start=1.0)
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is (nan|inf) in epoch 1, batch [23]: lower .* videos: .*\.mp4"
    ):
        run(recipe, motion_videos, tmp_path / "run")
    named = (tmp_path / "run" / "non_finite_batch.txt").read_text().splitlines()
    assert len(set(named)) == recipe.batch_size
    assert set(named) <= {video.path for video in read_dataset(motion_videos).videos}


def test_starting_from_another_run_keeps_all_but_the_classifier(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    run(replace(small_recipe, epochs=1), motion_videos, tmp_path / "first")
    given, _ = load_model(tmp_path / "first")
    model = create_model(small_recipe.model, num_classes=7, **small_recipe.model_options)
    head = model.head.weight.clone()
    said: list[str] = []
    first, clip = str(tmp_path / "first"), with_normalization(small_recipe.clip, "tadaformer_tiny")
    assert initialize(model, small_recipe.model, first, clip=clip, say=said.append) == f"the weights of {first}"
    assert said[1:] == [
        f"the weights of {first}: meant for pixels normalized by mean 0.45, 0.45, 0.45 and deviation 0.225, 0.225, "
        "0.225; those of this training are normalized by mean 0.4815, 0.4578, 0.4082 and deviation 0.2686, 0.2613, "
        "0.2758: give --clip.mean '[0.45, 0.45, 0.45]' --clip.std '[0.225, 0.225, 0.225]' for the same"
    ]
    own = model.state_dict()
    for name, value in given.state_dict().items():
        assert name.startswith("head.") or torch.equal(own[name], value)
    assert torch.equal(model.head.weight, head)


def test_what_cannot_start_a_model_is_refused(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    model = create_model("tsn_r18", num_classes=3)
    with pytest.raises(
        OptionError,
        match=r"init 'somewhere' should be 'auto', 'motion', 'image', 'none', the folder of a run, a file of weigh",
    ):
        initialize(model, "tsn_r18", "somewhere")
    with pytest.raises(OptionError, match=r"init 'motion' is for tada2d_tiny; for a tsn_r18 give 'none', the folder"):
        initialize(model, "tsn_r18", "motion")
    assert initialize(model, "tsn_r18", "auto") == "random weights"
    run(replace(small_recipe, epochs=1), motion_videos, tmp_path / "first")
    with pytest.raises(CheckpointError, match=r"first holds a tada2d_tiny; a tsn_r18 cannot start from it"):
        initialize(model, "tsn_r18", str(tmp_path / "first"))


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    files = WholeFileCheckpoints()
    files.save_checkpoint({"step": 1}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written: the disk is full"):
        files.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"batch_size": 3}, 2, r"batch_size 3 cannot be divided among 2 devices in 1 part: choose a multiple of 2"),
        ({"batch_size": 4, "accumulate": 2}, 4, r"among 4 devices in 2 parts: choose a multiple of 8"),
        ({"batch_size": 2, "mixup_alpha": 0.1}, 2, r"mix clips in pairs, but each device has 1 at a time"),
        ({"batch_size": 3, "cutmix_alpha": 0.1}, 1, r"mix clips in pairs, but each device has 3 at a time"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    changes: dict[str, Any], devices: int, message: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        run(
            replace(small_recipe, **changes),
            motion_videos,
            tmp_path / "run",
            machine=Machine(devices=devices, accelerator="cpu"),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tadaconvnext_mini", "clip": {"crop": 8}}, r"clips of 8 x 8 .* 16 x 16 \(clip.crop or train_crop\)"),
        ({"model": "tadaconvnext_mini", "train_crop": 8}, r"clips of 8 x 8 pixels .* at least 16 x 16"),
        ({"model": "tada_lite0", "init": "absent"}, r"clips of 20 x 20 pixels .* at least 32 x 32"),
        ({"model": "tadaformer_tiny"}, r"clips \[1, 3, 4, 20, 20\] cannot be cut into patches of 8 x 8 pixels"),
        ({"model": "slowfast_tiny", "clip": {"num_frames": 6}}, r"a clip of 6 frames; SlowFast needs a multiple of 4"),
    ],
)
def test_clips_that_the_network_does_not_take_are_refused_at_once(
    changes: dict[str, Any], message: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = changed(small_recipe, {"model_options": {}, **changes})
    lines: list[str] = []
    with pytest.raises(OptionError, match=message):
        train(recipe, motion_videos, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert lines == []
    assert list(tmp_path.iterdir()) == []


def test_a_scaled_learning_rate_is_said(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(small_recipe, epochs=1, learning_rate_batch=8)
    lines: list[str] = []
    train(recipe, motion_videos, tmp_path / "run", num_workers=0, show_progress=False, say=lines.append)
    assert "learning_rate 0.01 is meant for batches of 8; for 4 it is scaled to 0.005" in lines
    model = create_model(recipe.model, num_classes=3, **recipe.model_options)
    task = RecognitionTask(model, recipe, steps_per_epoch=1, head_sizes={"action": 3})
    assert task.configure_optimizers()["optimizer"].param_groups[0]["initial_lr"] == 0.005


TERMINATED = """
import os, signal, sys
from pathlib import Path
import torch
import tada.recognition.training as recognition
import tada.recognition.training_step as recognition_task
from tada.commands.cli import main

torch.set_num_threads(1)
begin = recognition_task.RecognitionTask.on_train_batch_start
def told(task, batch, batch_idx):
    if task.global_step == 3:
        os.killpg(os.getpid(), signal.SIGTERM)  # to all processes, as SLURM does: the workers too
    begin(task, batch, batch_idx)
recognition_task.RecognitionTask.on_train_batch_start = told
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_told_to_end_saves_once_and_goes_on(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    straight = run(small_recipe, motion_videos, tmp_path / "straight")
    (tmp_path / "own.yaml").write_text(recipe_yaml(small_recipe))
    out = tmp_path / "told"
    command = ["train", motion_videos, "--recipe", tmp_path / "own.yaml", "--out", out, "--num-workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    state = torch.load(out / "resume" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4  # the step was taken first
    assert not (out / "model.safetensors").exists()
    assert same(straight, run(small_recipe, motion_videos, out, resume=True))
