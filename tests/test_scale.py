"""The plan on paper: the simulated queue against queues with known answers, the formulas, and the page."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import scale
import scale_rates
from claims_report import Rows
from scale_checks import harder, loads
from scale_cluster import ATTEMPTS, Cluster, Faults, Nodes, Work
from scale_plan import (
    LOADER_SECONDS,
    TRAIN_MULTIPLY_ADDS,
    TRAIN_STEP_SECONDS,
    Assumptions,
    batch_seconds,
    binomial,
    cluster_for,
    driver_kill_seconds,
    expected_rate,
    expected_seconds,
    limit_of,
    mean_limit,
    read_rates,
    rework_share,
    stage_rates,
)
from scale_queue import Outcome, Simulation
from tada.data.annotations import read_dataset
from tada.data.motion import write_motion_videos
from tada.data.views import Views

ROOT = Path(__file__).parent.parent
ENDLESS = 10**9


def always(seconds: float) -> Callable[[Random], float]:
    return lambda _: seconds


def work(videos: int, fetch: float = 0, decode: float = 0, network: float = 0, **other: float) -> Work:
    """Seconds that do not vary."""
    return Work(
        videos=videos,
        fetch=always(fetch),
        decode=always(decode),
        network=lambda readable: readable * network,
        **{"driver_batch_seconds": 0, "shard_seconds": 0} | other,  # type: ignore[arg-type]
    )


def machine(**other: int) -> Cluster:
    """One machine with one worker of each kind, and buffers without limits, but for what is given."""
    kind = {"count": 1, "fetches": 1, "decoders": 1, "networks": 1}
    buffers = {"fetched_buffer": ENDLESS, "decoded_buffer": ENDLESS, "results_buffer": ENDLESS}
    given = {key: value for key, value in other.items() if key not in kind}
    nodes = Nodes(**{key: other.get(key, value) for key, value in kind.items()})
    return Cluster(nodes=(nodes,), **{"batch": 1, "shard_videos": 10} | buffers | given)  # type: ignore[arg-type]


SMALL = Cluster(
    nodes=(
        Nodes(count=5, fetches=4, decoders=4, networks=0),
        Nodes(count=3, fetches=0, decoders=0, networks=2),
    ),
    batch=4,
    fetched_buffer=5,
    decoded_buffer=7,
    results_buffer=2,
    shard_videos=50,
)
SMALL_WORK = Work(
    videos=1500,
    fetch=lambda random: 0.1 + random.random(),
    decode=lambda random: random.expovariate(2),
    network=lambda readable: 0.05 + 0.2 * readable,
    driver_batch_seconds=0.02,
    shard_seconds=0.3,
)
ALL_FAULTS = Faults(
    node_kills_per_hour=120,
    node_back_seconds=5,
    driver_kills_per_hour=240,
    driver_back_seconds=4,
    unreadable=0.03,
    crash=0.02,
    killers=0.01,
    restart_seconds=1,
)


def erlang_c_wait(servers: int, load: float) -> float:
    """Mean wait in the queue M/M/c with services of mean 1: Erlang's C by the recursion of his B."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    waits = blocked / (1 - load / servers * (1 - blocked))
    return waits / (servers - load)


def in_the_mean(values: list[float], expected: float) -> None:
    """The mean of independent runs is the expected one within four standard errors."""
    error = stdev(values) / math.sqrt(len(values))
    assert abs(fmean(values) - expected) < 4 * error, f"{fmean(values)} +- {error}, expected {expected}"
    assert error < 0.1 * expected, "too few runs to see anything"


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.7), (4, 0.8), (16, 0.9)])
def test_waits_are_those_of_erlang(servers: int, busy: float) -> None:
    cluster = machine(fetches=ENDLESS, decoders=servers, networks=1000)
    open_work = replace(work(8000), decode=lambda random: random.expovariate(1), arrivals_per_second=busy * servers)
    waits = [Simulation(cluster, open_work, seed=seed).run().mean_wait_seconds["decode"] for seed in range(16)]
    in_the_mean(waits, erlang_c_wait(servers, busy * servers))


@pytest.mark.parametrize("busy", [0.5, 0.8])
@pytest.mark.parametrize("stage", ["network", "driver"])
def test_waits_are_those_of_one_server_with_equal_services(stage: str, busy: float) -> None:
    """M/D/1: Pollaczek and Khinchine."""
    if stage == "network":
        cluster, seconds = machine(fetches=ENDLESS, decoders=1000), work(5000, network=1)
    else:
        cluster, seconds = machine(fetches=ENDLESS, decoders=1000, networks=1000), work(5000, driver_batch_seconds=1)
    open_work = replace(seconds, arrivals_per_second=busy)
    waits = [Simulation(cluster, open_work, seed=seed).run().mean_wait_seconds[stage] for seed in range(16)]
    in_the_mean(waits, busy / (2 * (1 - busy)))


@pytest.mark.parametrize(
    ("cluster", "seconds", "expected"),
    [
        (machine(), work(5, fetch=1, decode=2, network=1), 1 + 5 * 2 + 1),  # the decoder limits
        (machine(decoders=2), work(6, fetch=1, decode=2, network=1), 6 * 1 + 2 + 1),  # two are as fast as one fetch
        (machine(), work(5, fetch=1, network=4), 1 + 5 * 4),
        (machine(fetches=5, batch=5), work(5, fetch=1, network=4), 1 + 1 * 4 + 4 * 4),  # one, and the four behind it
        (machine(), work(5, driver_batch_seconds=3, shard_seconds=7), 5 * 3 + 7),
        (machine(shard_videos=2), work(5, driver_batch_seconds=3, shard_seconds=7), 5 * 3 + 3 * 7),
        (machine(count=3), work(7, decode=1), 3),
    ],
)
def test_pipelines_by_hand(cluster: Cluster, seconds: Work, expected: float) -> None:
    assert Simulation(cluster, seconds, seed=0).run().seconds == expected


def test_a_full_buffer_stops_those_before_it() -> None:
    """One video in the network, one behind it, one in the decoder's hands, and the same before the decoder."""
    cluster = machine(fetched_buffer=1, decoded_buffer=1, results_buffer=1)
    simulation = Simulation(cluster, work(20, fetch=1, decode=1, network=100), seed=0)
    started: list[float] = []
    serve = simulation._serve

    def watched(stage: str, *other: object) -> None:
        if stage == "fetch":
            started.append(simulation.now)
        serve(stage, *other)  # type: ignore[arg-type]

    simulation._serve = watched  # type: ignore[method-assign]
    assert simulation.run().seconds == 2 + 20 * 100
    assert started[:7] == [0, 1, 2, 3, 4, 102, 202]


def test_buffers_are_never_larger_than_said() -> None:
    class Watched(Simulation):
        largest = 0

        def _feed_networks(self) -> None:
            super()._feed_networks()
            assert len(self.decoded) <= self.cluster.decoded_buffer
            assert len(self.results) <= self.cluster.results_buffer
            assert all(node.free_decoders <= node.kind.decoders for node in self.nodes)
            assert all(node.free_fetches <= node.kind.fetches for node in self.nodes)
            busy_or_free = len(self.free_networks) + len(self.full_networks)
            assert busy_or_free <= self.cluster.count("networks")
            Watched.largest = max(Watched.largest, len(self.decoded))

    Watched(SMALL, SMALL_WORK, ALL_FAULTS, seed=3).run()
    assert Watched.largest == SMALL.decoded_buffer


@pytest.mark.parametrize("slow", ["store", "decoders", "networks", "driver"])
def test_without_faults_the_slowest_stage_is_the_rate(slow: str) -> None:
    own = loads(read_rates(), Assumptions())["answers, originals, GPUs"]
    cluster = cluster_for(own, 200)
    factor = {"store": "fetch_seconds", "decoders": "decode_seconds", "networks": "video_seconds"}
    name = factor.get(slow, "driver_batch_seconds")
    own = replace(own, slow_share=0.0, **{name: 200 * getattr(own, name)})  # type: ignore[arg-type]
    stage, rate = limit_of(cluster, own)
    assert stage == slow
    done = Simulation(cluster, own.work(6000), seed=1).run()
    assert done.sustained_rate == pytest.approx(rate, rel=0.05)
    assert expected_rate(cluster, own, Faults()) == rate


@pytest.mark.parametrize("seed", range(6))
def test_every_video_exactly_once_whatever_happens(seed: int) -> None:
    simulation = Simulation(SMALL, SMALL_WORK, ALL_FAULTS, seed=seed)
    done = simulation.run()
    assert done.times_written == [1] * SMALL_WORK.videos
    assert done.kills["node"] > 5
    assert done.kills["driver"] > 0
    bad = sum(a or b for a, b in zip(simulation.is_unreadable, simulation.is_killer, strict=True))
    assert bad <= done.faulty <= bad + 3  # an ordinary video may meet three crashes
    assert done.kills["decoder"] >= ATTEMPTS * sum(simulation.is_killer)
    assert done.spent_seconds["decode"] > done.decode_needed_seconds
    assert sum(simulation.times_written) == done.received[-1][1] == SMALL_WORK.videos


def test_equal_seeds_give_equal_runs() -> None:
    def seconds(seed: int) -> float:
        return Simulation(SMALL, SMALL_WORK, ALL_FAULTS, seed=seed).run().seconds

    assert seconds(1) == seconds(1) != seconds(2)


def test_files_and_their_rows() -> None:
    done = Simulation(machine(shard_videos=8), work(50, decode=1), seed=0).run()
    assert done.files == math.ceil(50 / 8)


def run_killed_once(cluster: Cluster, seconds: Work, at: float, back: float, *, driver: bool = False) -> Outcome:
    """A run with one kill at a certain time."""
    rates = Faults(node_back_seconds=back, driver_back_seconds=back, driver_kills_per_hour=1e-9)
    simulation = Simulation(cluster, seconds, rates, seed=0)
    if driver:
        simulation._at(at, simulation._kill_driver)
    else:
        simulation._at(at, simulation._kill_node, simulation.nodes[0])
    return simulation.run()


def test_a_kill_of_a_machine_by_hand() -> None:
    """Ten decodings of 10 s; the kill at 35 s loses half of the fourth, and 7 s pass until the machine is back."""
    done = run_killed_once(machine(), work(10, decode=10), at=35, back=7)
    assert done.seconds == 100 + 5 + 7
    assert done.spent_seconds["decode"] == 105
    assert done.decoded_again == pytest.approx(0.05)


def test_a_kill_loses_rows_that_have_not_left_the_machine_by_hand() -> None:
    """Rows 1 and 2 have left at the kill; 3 is in the network's hands, since the driver has no room, and is lost."""
    seconds = work(4, network=1, driver_batch_seconds=10)
    done = run_killed_once(machine(results_buffer=1), seconds, at=5, back=1)
    assert done.seconds == 1 + 4 * 10
    assert done.spent_seconds["network"] == 5  # 1, 2, 3, and 3 and 4 again: of 4 nothing was done
    assert done.times_written == [1] * 4


def test_a_kill_of_the_driver_by_hand() -> None:
    """Of three finished videos two are in a file; the third, half of the fourth and 7 s are lost."""
    done = run_killed_once(machine(shard_videos=2), work(10, decode=10), at=35, back=7, driver=True)
    assert done.seconds == 100 + 15 + 7
    assert done.times_written == [1] * 10


def test_a_crash_by_hand() -> None:
    """Each attempt takes half of the decoding and the restart; after three the video is a row with a fault."""
    faults = Faults(killers=1.0, restart_seconds=2)
    done = Simulation(machine(), work(4, decode=10), faults, seed=0).run()
    assert done.seconds == 4 * ATTEMPTS * (5 + 2)
    assert done.faulty == 4
    assert done.kills["decoder"] == 12


def test_a_killed_driver_needs_all_videos_at_the_beginning() -> None:
    with pytest.raises(ValueError, match="cannot still arrive one by one"):
        Simulation(machine(), replace(work(3), arrivals_per_second=1), Faults(driver_kills_per_hour=1), seed=0)


# The formulas


def test_means_of_a_load() -> None:
    own = loads(read_rates(), Assumptions())["answers, originals, CPUs"]
    drawn, random = own.work(1), Random(5)
    for draw, mean in ((drawn.fetch, own.mean_fetch_seconds), (drawn.decode, own.decode_seconds)):
        values = [draw(random) for _ in range(40_000)]
        in_the_mean(values, mean)
    assert drawn.network(own.batch) == pytest.approx(own.batch * own.network_seconds)


def test_binomial() -> None:
    assert binomial(2, 0.5) == pytest.approx([0.25, 0.5, 0.25])
    assert binomial(3, 1) == [0, 0, 0, 1]
    assert sum(binomial(3000, 0.9)) == pytest.approx(1)


def test_the_mean_of_the_slowest_is_less_than_the_slowest_mean() -> None:
    own = loads(read_rates(), Assumptions())["10x3 views, copies, CPUs"]
    cluster, faults = cluster_for(own, 1000), harder(1, 5)
    mean, slowest = mean_limit(cluster, own, faults), limit_of(cluster, own, faults)[1]
    assert 0.8 * slowest < mean < slowest
    random, up = Random(0), 12 / 13  # a minute up, five seconds away
    alone = stage_rates(cluster, own, replace(faults, node_kills_per_hour=0))
    drawn = []
    for _ in range(4000):
        first, second = (sum(random.random() < up for _ in range(kind.count)) / kind.count for kind in cluster.nodes)
        decoding = first * min(alone["decoders"], alone["store"])
        drawn.append(min(decoding, second * alone["networks"], alone["driver"]))
    in_the_mean(drawn, mean)


def test_batches_are_as_large_as_networks_need() -> None:
    own = loads(read_rates(), Assumptions())["answers, originals, GPUs"]
    cluster = cluster_for(own, 1000)
    capacity = cluster.count("networks") / own.network_seconds
    for rate in (0.5 * capacity, 0.9 * capacity):
        seconds = batch_seconds(cluster, own, rate)
        videos = (seconds - own.batch_seconds) / own.video_seconds
        assert videos == pytest.approx(1) or cluster.count("networks") * videos / seconds == pytest.approx(rate)
    assert batch_seconds(cluster, own, 2 * capacity) == own.batch_seconds + own.batch * own.video_seconds


@pytest.mark.parametrize("workers", [60, 1000])
def test_no_other_ratio_of_decoders_and_networks_is_better(workers: int) -> None:
    for own in loads(read_rates(), Assumptions()).values():
        cluster = cluster_for(own, workers)
        decoding, networks = cluster.nodes
        assert cluster.count("decoders") + cluster.count("networks") <= workers
        stages = stage_rates(cluster, own, Faults())
        rate = min(stages["decoders"], stages["networks"])
        for machines in range(1, workers // decoding.decoders + 1):
            left = (workers - machines * decoding.decoders) // networks.networks * networks.networks
            decode = machines * min(own.max_streams / own.mean_fetch_seconds, decoding.decoders / own.decode_seconds)
            assert min(decode, left / own.network_seconds) <= rate * 1.0001


def test_more_faults_take_more_time() -> None:
    own = loads(read_rates(), Assumptions())["features, originals, GPUs"]
    cluster = cluster_for(own, 1000)
    seconds = [expected_seconds(10**6, cluster, own, harder(minutes, 10)) for minutes in (10_000, 100, 10, 1)]
    assert seconds == sorted(seconds)
    often, seldom = (rework_share(cluster, own, harder(minutes, 10)) for minutes in (1, 10))
    assert often == pytest.approx(10 * seldom, rel=0.2)
    assert driver_kill_seconds(cluster, own, replace(Faults(), driver_back_seconds=60)) > 60
    with pytest.raises(ValueError, match="gets nowhere"):
        expected_seconds(10, cluster, own, Faults(driver_kills_per_hour=100, driver_back_seconds=60))


def test_work_done_again_is_that_of_the_formula() -> None:
    own = loads(read_rates(), Assumptions())["answers, originals, CPUs"]
    own = replace(own, slow_share=0.0, video_seconds=own.video_seconds / 4)  # the decoders limit
    cluster = cluster_for(own, 100)
    cluster = replace(cluster, nodes=(cluster.nodes[0], replace(cluster.nodes[1], count=6)))
    faults = Faults(node_kills_per_hour=360, node_back_seconds=1)
    assert limit_of(cluster, own, faults)[0] == "decoders"
    runs = [Simulation(cluster, own.work(6000), faults, seed=seed).run() for seed in range(12)]
    expected = rework_share(cluster, own, faults)
    # Machines of networks lose others' decoded videos too: both kinds are killed alike.
    in_the_mean([run.decoded_again for run in runs], expected)


# The page


@pytest.fixture(scope="module")
def tables() -> dict[str, Rows]:
    return {rows.title: rows for rows in scale.tables(read_rates(), Assumptions())}


def test_the_page_shows_what_is_printed(tables: dict[str, Rows]) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for rows in tables.values():
        assert f"\n{rows.to_markdown()}\n" in page, rows.title
    printed = {rows.title for rows in tables.values()}
    assert printed == set(re.findall(r"^## (.+)$", page, flags=re.M)) - {"What the simulation is, and is not"}
    assert (ROOT / "docs" / "scale.png").stat().st_size > 10_000


def test_the_formula_is_near_the_simulation(tables: dict[str, Rows]) -> None:
    rows = tables["The formula against the simulated queue, 1,000 workers"]
    column = rows.header.index("error of the formula")
    errors = [abs(float(row[column].removesuffix(" %"))) for row in rows.rows]
    assert len(errors) == 15
    assert max(errors) < 10
    assert fmean(errors) < 3


def test_what_is_not_measured_is_marked(tables: dict[str, Rows]) -> None:
    inputs = tables["What the plan is made of"].rows
    assert {row[2].split(":")[0] for row in inputs} == {"measured", "**assumed**"}
    for rows in tables.values():
        for row in rows.rows:
            if any("GPU" in cell and "% of" in cell for cell in row):
                assert any("(assumed)" in cell for cell in row)


def test_rates_are_those_of_the_benchmarks_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "224 x 224 pixels a step takes 3,833 ms" in page
    assert "in bf16 1,894 ms" in page
    assert TRAIN_STEP_SECONDS == {"fp32": 3.833, "bf16": 1.894}
    assert "| drawn, 720p | 8, 8 apart | 271 ms (380) | 14 ms (16) | 18 times | 17 ms |" in page
    assert pytest.approx({"originals": 0.271 + (0.017 - 0.014), "copies": 0.017}) == LOADER_SECONDS
    assert "33.23 G at 8x224x224" in page
    assert TRAIN_MULTIPLY_ADDS == 33.23e9


def test_a_measured_gpu_replaces_the_assumption(tables: dict[str, Rows]) -> None:
    assumed, _ = scale.parse(["--gpu-tflops", "100", "--gpu-share", "0.2", "0.2", "--core-hour", "0"])
    assert (assumed.gpu_tflops, assumed.gpu_share, assumed.core_hour) == (100, (0.2, 0.2), 0)
    title = "Kinetics-700: training `tada2d_r50`, 100 epochs"
    rows = scale.kinetics_training(read_rates(), assumed).rows
    own = next(row for row in rows if row[0].startswith("8 x GPU"))
    # 54 million clips, three times 33.23 G multiply-adds, two operations each, at 20 Tflops of each of 8 GPUs
    hours = 542_352 * 100 * 3 * 2 * 33.23e9 / 20e12 / 8 / 3600
    assert own[2] == f"{hours:.1f}"
    assert own[2] not in {row[2] for row in tables[title].rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-share", "0.3", "0.1"], "give the lower share first"),
        (["--gpu-share", "0.3", "1.1"], "none above 1"),
        (["--gpu-tflops", "0"], "'0' should be a number above 0"),
        (["--core-hour", "-1"], "'-1' should be a number of at least 0"),
        (["--core-hour", "dear"], "'dear' should be a number of at least 0"),
        (["--max-streams", "0.5"], "'0.5' should be a whole number of at least 1"),
        (["--slow-share", "2"], "a share is at most 1"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scale.parse(words)
    assert message in capsys.readouterr().err


def test_json_and_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scale, "tables", lambda rates, assumed: [scale.outputs(assumed)])
    monkeypatch.setattr(sys, "argv", ["scale.py", "--json", str(tmp_path / "a.json"), "--copy-mb", "3"])
    scale.main()
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["assumed"]["copy_mb"] == 3
    assert content["tables"][0]["title"] in capsys.readouterr().out
    assert ["prepared copies (assumed)", "3,000,000", "30,000", "690"] in content["tables"][0]["rows"]


def test_seconds_of_videos_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_motion_videos(tmp_path / "videos", videos_per_class=1, seed=0, num_frames=8, motions=("left", "right"))
    videos = read_dataset(tmp_path / "videos")
    monkeypatch.setattr(scale_rates, "SPEC", replace(scale_rates.SPEC, short_side=32, crop=32))
    seconds = scale_rates.seconds_to_read(videos, Views(num_clips=2))
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert scale_rates.seconds_to_prepare(videos, tmp_path / "copies") > 0
    with pytest.raises(SystemExit, match="has copies already"):
        scale_rates.seconds_to_prepare(videos, tmp_path / "copies")
