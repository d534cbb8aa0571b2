"""Jobs on a Ray cluster: the same rows as on one machine, each video once, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from drawn_videos import draw_plain
from job_works import RUN, SOURCE, DeadlyWork, features_of
from tada.data.annotations import read_dataset
from tada.data.check import check_dataset
from tada.data.prepare import prepare
from tada.errors import CheckpointError, OptionError, OutputError, WorkerLostError
from tada.jobs import ray_connection
from tada.jobs.ray_connection import check_nodes, connected, in_passes
from tada.jobs.ray_tasks import on_cluster
from tada.jobs.run import LOCAL_RAY, Engine, Summary, run_job
from tada.jobs.shards import read_arrays, read_rows
from tada.jobs.videos import list_videos
from tada.jobs.work import AnswerWork, FeatureWork, Network
from tada.recognition.recognizer import load_recognizer
from tada.recognition.video_clips import ClipChoice
from tada.video.sliding_windows import SlidingWindows

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",  # Ray leaves sockets and logs open
    "ignore::DeprecationWarning:ray.*",
    "ignore::FutureWarning",  # Ray warns of a variable that we set
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A cluster of this machine with two CPUs, whose workers can import the tests' modules."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", paths)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def work() -> AnswerWork:
    recognizer = load_recognizer(RUN)
    return AnswerWork.of(
        recognizer, Network.of(recognizer, RUN), SOURCE, ClipChoice(spec=recognizer.clip, num_clips=2), top=20
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for number in range(9):
        draw_plain(tmp_path / "videos" / f"{number}.mp4", 10 + number)
    (tmp_path / "videos" / "4.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


def run(work: AnswerWork | FeatureWork, folder: Path, out: Path, *, is_ray: bool = True) -> Summary:
    videos = list_videos([str(folder)], SOURCE.store, print)
    engine = Engine(ray=LOCAL_RAY if is_ray else None, num_workers=1, batch_size=4)
    return run_job(videos, work, out, engine=engine, show_progress=False)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for table in read_rows(out) for row in table.to_pylist()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id twice"
    return found


def deadly(work: AnswerWork, marks: Path) -> DeadlyWork:
    marks.mkdir()
    return DeadlyWork(marks=marks, **{field.name: getattr(work, field.name) for field in fields(work)})


def test_answers_are_those_of_one_machine_and_deadly_videos_are_set_aside(
    local_ray: None, work: AnswerWork, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "2.mp4").rename(folder / "deadly.mp4")
    (folder / "6.mp4").rename(folder / "once.mp4")
    work = deadly(work, tmp_path / "marks")
    there = run(work, folder, tmp_path / "ray")
    assert capsys.readouterr().out == ""  # what Ray says of dead workers goes to standard error
    (tmp_path / "marks" / "once.mp4").unlink()
    here = run(work, folder, tmp_path / "here", is_ray=False)
    assert replace(there, seconds=0) == replace(here, seconds=0)
    assert there.faults == {"not_a_video": 1, "lost": 1}
    rows, expected = rows_of(tmp_path / "ray"), rows_of(tmp_path / "here")
    assert rows.keys() == expected.keys()
    for id, row in rows.items():
        assert (row["path"], row["fault"], row["message"]) == tuple(
            expected[id][k] for k in ("path", "fault", "message")
        )
        if row["fault"] is None:
            scores = {one["label"]: one["score"] for one in row["scores"]}
            assert scores == pytest.approx({one["label"]: one["score"] for one in expected[id]["scores"]}, abs=5e-6)
            assert [clip["start_seconds"] for clip in row["clips"]] == [
                clip["start_seconds"] for clip in expected[id]["clips"]
            ]


@pytest.mark.slow
def test_features_are_those_of_one_machine(local_ray: None, folder: Path, tmp_path: Path) -> None:
    recognizer = load_recognizer(RUN)
    windows = SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    work = features_of(recognizer, windows)
    run(work, folder, tmp_path / "ray")
    run(work, folder, tmp_path / "here", is_ray=False)
    expected = rows_of(tmp_path / "here")
    for id, row in rows_of(tmp_path / "ray").items():
        if row["fault"] is None:
            arrays, others = read_arrays(tmp_path / "ray", row), read_arrays(tmp_path / "here", expected[id])
            np.testing.assert_allclose(arrays["features"], others["features"], atol=1e-5)
            np.testing.assert_allclose(arrays["scores"], others["scores"], atol=1e-6)


@pytest.mark.slow
def test_an_error_that_is_not_of_a_video_ends_the_job(
    local_ray: None, work: AnswerWork, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "8.mp4").rename(folder / "full.mp4")
    told = r"^'/scratch' cannot be written: the disk is full; make room, and give the same command$"
    with pytest.raises(OutputError, match=told):
        run(deadly(work, tmp_path / "marks"), folder, tmp_path / "out")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_other_weights_on_a_node(local_ray: None, work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    other = replace(work, model=replace(work.model, weights_sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"holds other weights in this process"):
        run(other, folder, tmp_path / "out")


def test_a_node_that_does_not_see_the_videos(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the node .* does not see '.*gone': put runs and videos on a file system"):
        check_nodes((str(tmp_path / "gone"),))


def test_a_node_with_another_tada(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(ray_connection._look(()), tada="9.9.9")
    monkeypatch.setattr(ray_connection, "_here", lambda: here)
    with pytest.raises(OptionError, match=r"has tada .* \(code .*\) on Python .*here is tada 9.9.9 .*install the"):
        check_nodes(())


def test_check_and_prepare_on_a_cluster(local_ray: None, folder: Path, tmp_path: Path) -> None:
    for number in (0, 1, 2, 3):
        file = folder.parent / "data" / ("left" if number % 2 else "right") / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp4").rename(file)
    (folder / "4.mp4").rename(folder.parent / "data" / "left" / "4.mp4")
    table = read_dataset(folder.parent / "data")
    here = check_dataset(table, tmp_path / "here", num_processes=1, show_progress=False)
    there = check_dataset(table, tmp_path / "there", pool=on_cluster, show_progress=False)
    assert there.probes == here.probes
    assert there.counts() == here.counts() == {"not_a_video": 1}
    prepared = prepare(table, tmp_path / "copies", pool=on_cluster, show_progress=False)
    assert (len(prepared.copies), len(prepared.failures)) == (4, 1)


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests have one
    with (
        pytest.raises(OptionError, match=r"no Ray cluster can be reached at 127.0.0.1:1: .*refused; `ray status` says"),
        connected("127.0.0.1:1"),
    ):
        pass


def test_passes_go_on_until_nothing_is_left_or_nothing_comes() -> None:
    left = list(range(10))

    def one_pass() -> Iterator[int]:
        """Three results, then a fault."""
        for _ in range(min(3, len(left))):
            yield left.pop(0)
        if left:
            raise ray.exceptions.RayError("a node is gone")

    assert list(in_passes(one_pass, lambda: len(left), "video")) == list(range(10))

    def idle() -> Iterator[int]:
        raise ray.exceptions.RayError("no node is there")
        yield

    with pytest.raises(
        WorkerLostError, match=r"2 videos got no result in 3 passes .*\(no node is there\); what is done"
    ):
        list(in_passes(idle, lambda: 2, "video"))


@pytest.mark.slow
def test_each_video_once_while_nodes_and_workers_are_killed(tmp_path: Path) -> None:
    """Killed here, since Ray starts nodes in the main thread only; the job is a command of its own."""
    from ray.cluster_utils import Cluster

    (tmp_path / "videos").mkdir()
    for number in range(200):
        draw_plain(tmp_path / "videos" / f"{number:03d}.mp4", 10 + number % 7)
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    dice = random.Random(0)
    words = ["predict", RUN, "videos", "--out", "out", "--clips", "2", "--ray", cluster.address]
    kills = 0
    try:
        tada = [sys.executable, "-m", "tada", *words]
        with subprocess.Popen(tada, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as command:
            while command.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    command.wait(4.0)
                    break
                kills += 1
                if dice.random() < 0.5:
                    cluster.remove_node(nodes.pop(0), allow_graceful=False)
                    nodes.append(cluster.add_node(num_cpus=1))
                elif found := [process for process in Path("/proc").glob("[0-9]*") if _is_decoder(process)]:
                    with suppress(ProcessLookupError):
                        os.kill(int(dice.choice(found).name), signal.SIGKILL)
            assert command.stdout is not None
            out = command.stdout.read().splitlines()
    finally:
        cluster.shutdown()
    assert command.returncode == 0
    assert (len(out), out[-1]) == (2, "they are in out: rows/*.parquet, summary.json")
    assert kills > 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["videos"], summary["done"], summary["faults"]) == (200, 200, {})
    assert sorted(rows_of(tmp_path / "out")) == [f"{number:03d}.mp4" for number in range(200)]


def _is_decoder(process: Path) -> bool:
    with suppress(OSError):
        return b"tada.data.workers" in (process / "cmdline").read_bytes()
    return False
