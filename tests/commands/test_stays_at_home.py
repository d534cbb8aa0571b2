"""Every command reaches for no other machine, and writes nothing but what it was asked for.

All commands run in one process, in a folder of their own and with an empty home. Its interpreter, and those of the
workers it starts, note each socket that is connected and each file that is opened for writing (``sitecustomize`` is
imported by every interpreter). Libraries in C are seen by what they leave: the home and the temporary folder are looked
through at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tada.commands.cli import COMMANDS
from tada.localization.recipe import LocalizationRecipe
from tada.recognition.recipe import Recipe
from tada.training.recipe import recipe_yaml
from watcher import WATCHER

PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
import torch
from tada.commands.cli import main
from tada.data.motion import write_motion_videos
import tada.recognition.quickstart

torch.set_num_threads(1)
size = {"num_frames": 8, "width": 32, "height": 32}
write_motion_videos(Path("clips"), videos_per_class=3, seed=0, motions=["left", "up"], **size)
rows = [f"left_{i:03},0.1,0.7,go" for i in range(3)]
Path("segments.csv").write_text("video,start,end,label\\n" + "\\n".join(rows) + "\\n")
tada.recognition.quickstart.quickstart = partial(
    tada.recognition.quickstart.quickstart, train_videos_per_class=4, test_videos_per_class=1, epochs=1
)
failed = []
for line in sys.stdin:
    code = main(line.split())
    if code != (2 if line.startswith("convert") else 0):
        failed.append(f"{line.strip()}: {code}")
sys.exit("; ".join(failed) or 0)
"""

LINES = """
train clips --recipe small.yaml --out run --num-workers 1
evaluate run clips --num-workers 1
evaluate --scores run/evaluation --out again
predict run clips --plots plots
check clips --out checked --num-workers 1
prepare clips fast --num-workers 1
export run out.onnx --int8 clips --num-workers 0
predict out.onnx clips/left/left_000.mp4
evaluate out.onnx clips --num-workers 0
convert run/model.json converted --protocol k400-8x8
extract run clips/left features --window-seconds 0.3 --stride-seconds 0.1
localize train --features features --segments segments.csv --out when --recipe when.yaml
localize train --videos clips/left --segments segments.csv --backbone run --out then --recipe when.yaml
localize evaluate --model when --features features --segments segments.csv
localize clips/left/left_000.mp4 --model then --plots timelines
localize clips/left/left_000.mp4 --model then --stream --idle-seconds 0.5
localize import published imported --fps 30 --stride 8 --clip-frames 16
models
recipes
recipes quickstart
doctor
completion bash
quickstart --out quick
"""
IPV6_PROBE = "socket socket.bind ('::1', 0)"
"""urllib3 asks the system whether there is IPv6, and sends nothing; TensorBoard loads it where boto3 is installed."""
NEEDS_THE_HUB = {"publish"}  # whose purpose is the network
WATCHED_ELSEWHERE = {"demo", "serve"}  # tests/demo/test_page.py, tests/serving/test_serving.py


def test_every_command_stays_at_home(small_recipe: Recipe, tmp_path: Path) -> None:
    lines = LINES.strip().splitlines()
    spoken = {word for line in lines for word in (line.split()[0], "-".join(line.split()[:2]))}
    assert set(COMMANDS) - spoken == NEEDS_THE_HUB | WATCHED_ELSEWHERE
    folders = {name: tmp_path / name for name in ("home", "temporary", "work", "watcher")}
    for folder in folders.values():
        folder.mkdir()
    (folders["watcher"] / "sitecustomize.py").write_text(WATCHER)
    (folders["work"] / "small.yaml").write_text(recipe_yaml(small_recipe))
    short = LocalizationRecipe(dim=8, epochs=1, warmup_epochs=0.0, batch_size=2)
    (folders["work"] / "when.yaml").write_text(recipe_yaml(short))
    (folders["work"] / "published").mkdir()
    (folders["work"] / "published" / "v.csv").write_text("a,b\n" + "1,2\n3,5\n2,1\n")
    log = tmp_path / "log"
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=LINES.strip() + "\n",
        cwd=folders["work"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["temporary"]),
            "PYTHONPATH": os.pathsep.join([str(folders["watcher"]), str(source)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WATCH_LOG": str(log),
        },
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    noted = log.read_text().splitlines()
    assert {line for line in noted if line.startswith("socket")} <= {IPV6_PROBE}
    written = {Path(line.removeprefix("write ")) for line in noted if line.startswith("write ")}
    assert any(path.is_relative_to(folders["work"] / "run") for path in written)  # it watches
    # In /dev/shm lies what processes share, under names that are gone at once.
    allowed = [*folders.values(), Path("/dev/null"), Path("/dev/shm")]
    assert [path for path in written if not any(map(path.is_relative_to, allowed))] == []
    # Matplotlib keeps a list of the machine's fonts, which takes it seconds to make.
    assert {path for path in folders["home"].rglob("*") if path.is_file() and "matplotlib" not in path.parts} == set()
    assert {path for path in folders["temporary"].rglob("*") if path.is_file()} == set()
