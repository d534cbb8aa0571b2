"""Several processes train and test as one does: two and three ranks on the CPU, a small network in float64.

Each test starts its ranks as torchrun would (its variables, gloo), without the launcher: that is a second or two less.
"""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hang import HANG_SECONDS
from tada.data.annotations import read_dataset
from tada.data.views import Views
from tada.models.weights import load_model
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe, TrainedPart
from tada.recognition.results import load_scores
from tada.recognition.training import train
from tada.training.recipe import recipe_yaml

TRAIN = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tada.recognition.training as recognition
import tada.recognition.training_step as recognition_task
from tada.errors import UserError
from tada.system.devices import Machine
from tada.recognition.recipe import load_recipe

recipe, data, out, options, fault = sys.argv[1:]
rank, begin = int(os.environ["RANK"]), recognition_task.RecognitionTask.on_train_batch_start

def struck(task, batch, batch_idx):
    if task.global_step == 4 and rank == 1:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if fault == "nan":
            with torch.no_grad():
                task.model.head.bias.fill_(float("nan"))
    begin(task, batch, batch_idx)

recognition_task.RecognitionTask.on_train_batch_start = struck
options = json.loads(options)
machine = Machine(accelerator="cpu", **options.pop("machine", {}))
try:
    recognition.train(
        load_recipe(recipe), Path(data), Path(out), machine=machine, num_workers=0, show_progress=False, **options
    )
except UserError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def start_ranks(world: int, program: str, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Start the ranks of a program as torchrun does."""
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    ends = []
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=HANG_SECONDS)
            ends.append((rank.returncode, out, err))
    finally:
        for rank in ranks:
            rank.kill()
    return ends


def losses(run: Path) -> list[float]:
    """The training loss of each epoch, in the order of starts."""
    rows = []
    for start in sorted((run / "logs").iterdir()):
        with (start / "metrics.csv").open() as file:
            rows += [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    return rows


@pytest.fixture(scope="module")
def recipe(small_recipe: Recipe) -> Recipe:
    """Nothing random but what the seed decides for each clip: no dropout; batches of two parts, mixed in pairs."""
    return replace(
        small_recipe,
        model_options={**small_recipe.model_options, "dropout": 0.0},
        precision="fp64",
        epochs=3,
        mixup_alpha=0.2,
        batch_size=4,
        erase_probability=0.5,
        clip_gradient_norm=1.0,
    )


@pytest.fixture(scope="module")
def alone(recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(recipe, motion_videos, out, num_workers=0, show_progress=False, say=lambda line: None)
    return out


def assert_same_curve(run: Path, alone: Path) -> None:
    """Losses and weights agree to 1e-6, which only summing in another order explains."""
    assert losses(run)[-1] == pytest.approx(losses(alone)[-1], rel=1e-6)
    ours, theirs = load_file(run / "model.safetensors"), load_file(alone / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["{}", '{"machine": {"checkpoint_gradients": true}}'])
def test_two_ranks_learn_as_one(options: str, recipe: Recipe, alone: Path, motion_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    out = tmp_path / "run"
    ends = finish(start_ranks(2, TRAIN, tmp_path / "own.yaml", motion_videos, out, options, "none"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[1][1] == ""  # only the first speaks
    assert "3 validation videos" in ends[0][1]
    assert losses(out) == pytest.approx(losses(alone), rel=1e-6)
    assert_same_curve(out, alone)


@pytest.mark.slow
def test_two_ranks_train_a_part_as_one(recipe: Recipe, alone: Path, motion_videos: Path, tmp_path: Path) -> None:
    recipe = replace(recipe, train="calibration", init=str(alone))
    train(recipe, motion_videos, tmp_path / "alone", num_workers=0, show_progress=False, say=lambda line: None)
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    ends = finish(start_ranks(2, TRAIN, tmp_path / "own.yaml", motion_videos, tmp_path / "run", "{}", "none"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert_same_curve(tmp_path / "run", tmp_path / "alone")
    start, end = load_file(alone / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    # The network is built in single precision before it takes what it starts from.
    moved = {name for name in start if not torch.equal(start[name].float(), end[name].float())}
    assert moved
    assert all(name.startswith("head.") or ".routing." in name or ".pooled_norm." in name for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["all", "calibration"])
def test_two_ranks_that_divide_the_weights_learn_as_one(
    part: TrainedPart, recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    """In single precision, the only one that FSDP has here; by SGD, as AdamW makes much of small differences."""
    recipe = replace(recipe, precision="fp32", train=part, optimizer="sgd")
    train(recipe, motion_videos, tmp_path / "alone", num_workers=0, show_progress=False, say=lambda line: None)
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    out, options = tmp_path / "run", '{"machine": {"strategy": "fsdp"}}'
    ends = finish(start_ranks(2, TRAIN, tmp_path / "own.yaml", motion_videos, out, options, "none"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    load_model(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "codes"), [("kill", {-signal.SIGKILL}), ("terminate", {143}), ("interrupt", {-signal.SIGINT})]
)
def test_a_run_of_two_ranks_goes_on_with_one(
    fault: str, codes: set[int], recipe: Recipe, alone: Path, motion_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    out = tmp_path / "run"
    options = '{"save_every_steps": 1}' if fault == "kill" else "{}"
    ranks = start_ranks(2, TRAIN, tmp_path / "own.yaml", motion_videos, out, options, fault)
    ends = finish(ranks)
    assert {ends[1][0]} == codes, ends
    assert ends[0][0] != 0 if fault == "kill" else ends[0][0] == 143
    assert not (out / "model.safetensors").exists()
    state = torch.load(out / "resume" / "last.ckpt", weights_only=True)
    # Told to end within the fifth of nine steps: that step is taken, and saved. Killed: the fourth is saved.
    assert state["global_step"] == (4 if fault == "kill" else 5)
    assert list((out / "resume").iterdir()) == [out / "resume" / "last.ckpt"]
    train(recipe, motion_videos, out, resume=True, num_workers=0, show_progress=False, say=lambda line: None)
    assert_same_curve(out, alone)


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_all(recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    out = tmp_path / "run"
    ends = finish(start_ranks(2, TRAIN, tmp_path / "own.yaml", motion_videos, out, "{}", "nan"))
    assert [code for code, _, _ in ends] == [2, 2], ends
    for _, _, err in ends:
        assert "the loss is nan in epoch 2, batch 2: lower learning_rate" in err
    # The two clips of the second rank.
    assert len((out / "non_finite_batch.txt").read_text().splitlines()) == 2


EVALUATE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tada.data.annotations import read_dataset
from tada.data.views import Views
from tada.recognition.evaluation import evaluate
from tada.system.devices import Machine, is_first_process

run, data, out = map(Path, sys.argv[1:])
result = evaluate(
    run, data, views=Views(num_clips=2, num_crops=3), num_workers=0, machine=Machine(accelerator="cpu"),
    show_progress=False
)
if is_first_process():
    result.save(out)
print(len(result.ids))
"""


@pytest.mark.slow
def test_three_ranks_count_each_of_ten_videos_once(
    recipe: Recipe, alone: Path, motion_videos: Path, tmp_path: Path
) -> None:
    table = read_dataset(motion_videos)
    data = tmp_path / "ten"
    for i, video in enumerate(table.videos[::-1][:10]):
        target = data / Path(video.path).relative_to(motion_videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of other contents than those that the run knows. One that cannot be read is listed once too.
        new = Path(video.path).read_bytes() + b"\0\0\0\x09free" + bytes([i])
        target.write_bytes(new if i != 4 else b"no video")
    ends = finish(start_ranks(3, EVALUATE, alone, data, tmp_path / "report"))
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert [out.split()[-1] for _, out, _ in ends] == ["9", "9", "9"]
    together = load_scores(tmp_path / "report")
    views = Views(num_clips=2, num_crops=3)
    single = evaluate(alone, data, views=views, num_workers=0, show_progress=False, say=lambda line: None)
    assert together.ids == single.ids
    assert together.unreadable == single.unreadable
    assert (together.targets == single.targets).all()
    assert abs(together.scores - single.scores).max() < 1e-6
