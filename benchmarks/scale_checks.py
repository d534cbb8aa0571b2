"""The tables of docs/scale.md about the queue: which stage limits, the formula against the simulation, faults."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from claims_report import Rows
from scale_cluster import Faults
from scale_plan import (
    Assumptions,
    Load,
    Rates,
    cluster_for,
    driver_kill_seconds,
    expected_rate,
    limit_of,
    load_of,
    rework_share,
    stage_rates,
)
from scale_queue import Simulation
from scale_tables import FEATURE_STEPS, HOUR, MILLIONS, ORDINARY, WORKERS, number, percent


def harder(minutes: float, back_seconds: float) -> Faults:
    """Each machine killed every so many minutes."""
    return replace(ORDINARY, node_kills_per_hour=60 / minutes, node_back_seconds=back_seconds)


def loads(rates: Rates, assumed: Assumptions) -> dict[str, Load]:
    """The jobs whose queue is simulated. GPUs reach the middle of the assumed shares."""
    share = sum(assumed.gpu_share) / 2
    jobs: dict[str, tuple[str, str, int, str | float]] = {
        "answers, originals, CPUs": ("originals", "1x1", 1, "bf16"),
        "answers, copies, CPUs": ("copies", "1x1", 1, "bf16"),
        "answers, originals, GPUs": ("originals", "1x1", 1, share),
        "answers, copies, GPUs": ("copies", "1x1", 1, share),
        "features, originals, GPUs": ("originals", "10x3", FEATURE_STEPS, share),
        "10x3 views, copies, CPUs": ("copies", "10x3", 30, "bf16"),
    }
    return {
        name: load_of(name, rates=rates, assumed=assumed, files=files, views=views, clips=clips, on=on)
        for name, (files, views, clips, on) in jobs.items()
    }


def limits(own: dict[str, Load]) -> Rows:
    """What each stage could do by itself at 1,000 workers, and how many workers the first other limit has use for."""
    rows = []
    for name, load in own.items():
        cluster = cluster_for(load, WORKERS)
        alone = stage_rates(cluster, load, Faults())
        stage, _ = limit_of(cluster, load)
        decoders, networks = cluster.count("decoders"), cluster.count("networks")
        enough = alone["driver"] / min(alone["decoders"], alone["networks"]) * WORKERS
        cells = [f"{alone[key]:,.0f}" for key in ("store", "decoders", "networks", "driver")]
        ratio = number(load.decode_seconds / load.network_seconds)
        rows.append((name, f"{decoders} + {networks}", ratio, *cells, stage, f"{enough:,.0f}"))
    header = (
        *("job", "decoders + networks", "decoders for each network", "store", "decoders", "networks", "driver"),
        *("limits", "workers at which the driver limits"),
    )
    return Rows(title="Which stage limits at 1,000 workers: videos a second of each alone", header=header, rows=rows)


SIMULATED = {
    "answers, originals, CPUs": (80_000, 1),
    "answers, copies, CPUs": (80_000, 2),
    "answers, originals, GPUs": (80_000, 1),
    "features, originals, GPUs": (30_000, 1),
    "10x3 views, copies, CPUs": (20_000, 3),
}
"""Videos, and runs with kills: several where few machines do one kind of work, so that a single kill counts."""


def against_simulation(own: dict[str, Load]) -> Rows:
    """The formula's videos a second and those of the queue, at 1,000 workers."""
    kinds = {
        "none": Faults(),
        "every 5 min, back after 10 s": harder(5, 10),
        "every min, back after 5 s": harder(1, 5),
    }
    rows = []
    for name, (videos, several) in SIMULATED.items():
        cluster = cluster_for(own[name], WORKERS)
        for kills, faults in kinds.items():
            seeds = range(1 if kills == "none" else several)
            runs = [Simulation(cluster, own[name].work(videos), faults, seed=seed).run() for seed in seeds]
            if any(set(run.times_written) != {1} for run in runs):
                raise AssertionError(f"{name}: a video was not written exactly once")
            expected = expected_rate(cluster, own[name], faults)
            sustained = fmean(run.sustained_rate for run in runs)
            cells = (
                f"{sum(run.kills['node'] for run in runs)} + {sum(run.kills['decoder'] for run in runs)}",
                f"{sum(run.faulty for run in runs):,}",
                *(number(expected), number(sustained), f"{100 * (expected / sustained - 1):+.1f} %"),
                number(fmean(run.seconds - videos / run.sustained_rate for run in runs)),
            )
            rows.append((name, f"{len(runs)} x {videos:,}", kills, *cells))
    header = (
        *("job", "runs x videos", "each machine killed", "kills + crashes", "rows with a fault"),
        *("formula, videos a second", "simulated", "error of the formula", "beginning and end, s"),
    )
    return Rows(title="The formula against the simulated queue, 1,000 workers", header=header, rows=rows)


def buffers(own: dict[str, Load]) -> Rows:
    """Throughput as a share of the formula's, by the size of the buffer in front of the networks."""
    calm, hard = ("none", Faults()), ("every min, back after 5 s", harder(1, 5))
    rows = []
    for name, seconds, (kills, faults) in (
        ("answers, originals, GPUs", 8, calm),
        ("features, originals, GPUs", 8, calm),
        ("answers, copies, CPUs", 8, hard),
        ("10x3 views, copies, CPUs", 50, hard),
    ):
        load = replace(own[name], slow_share=0.0)
        shares = []
        for size in (0.0, 0.25, 1.0, 4.0):
            cluster = cluster_for(load, WORKERS, decoded_batches=size)
            rate = expected_rate(cluster, load, faults)
            done = Simulation(cluster, load.work(round(seconds * rate)), faults, seed=19).run()
            shares.append(percent(done.sustained_rate / rate, 0))
        one = cluster_for(load, WORKERS, decoded_batches=1.0).decoded_buffer
        rows.append((name, kills, f"{one:,}", *shares))
    sizes = ("one video", "0.25 of a batch each", "1 of a batch each", "4 batches each")
    header = ("job", "each machine killed", "one batch for each network, videos", *sizes)
    return Rows(title="How large the buffer of decoded videos has to be", header=header, rows=rows)


def cost_of_faults(own: dict[str, Load]) -> Rows:
    """Work that is done again, and machines that are away, by how often one is killed."""
    load = own["answers, originals, CPUs"]
    long = replace(
        load,
        name="answers for each 10 s of videos of 10 minutes",
        fetch_seconds=60 * load.fetch_seconds,
        decode_seconds=60 * load.decode_seconds,
        video_seconds=60 * load.video_seconds,
        batch=1,
    )
    frequencies = [Faults(node_kills_per_hour=1 / hours, node_back_seconds=600) for hours in (168.0, 24.0, 1.0, 1 / 6)]
    away = [1 - 1 / (1 + faults.node_kills_per_hour * faults.node_back_seconds / HOUR) for faults in frequencies]
    rows = [("machines that are away", *(percent(share) for share in away))]
    for job in (load, own["features, originals, GPUs"], own["10x3 views, copies, CPUs"], long):
        cluster = cluster_for(job, WORKERS)
        cells = [percent(rework_share(cluster, job, faults), 3) for faults in frequencies]
        rows.append((f"done again: {job.name}", *cells))
    header = ("share", "each machine killed once a week", "a day", "an hour", "every 10 min")
    return Rows(title="What kills of machines cost, if one is back after ten minutes", header=header, rows=rows)


def shards(load: Load) -> Rows:
    """Rows in a file: files, the driver's limit, and what a kill of the driver loses."""
    faults = Faults(driver_kills_per_hour=60, driver_back_seconds=10)
    few, videos, seeds = 100, 30_000, range(4)
    rows = []
    for size in (100, 1_000, 5_000, 20_000, 100_000):
        at_scale = cluster_for(load, WORKERS, shard_videos=size)
        driver = stage_rates(at_scale, load, Faults())["driver"]
        rate = limit_of(at_scale, load)[1]
        cells: tuple[str, ...] = ("", "", "")
        if size <= 5_000:  # beyond, a driver that is killed each minute seldom reaches the end of a file
            small = cluster_for(load, few, shard_videos=size)
            calm = Simulation(small, load.work(videos), seed=0).run().seconds
            runs = [Simulation(small, load.work(videos), faults, seed=seed).run() for seed in seeds]
            kills = sum(run.kills["driver"] for run in runs)
            simulated = (sum(run.seconds for run in runs) - len(runs) * calm) / kills
            cells = (number(driver_kill_seconds(small, load, faults)), number(simulated), str(kills))
        lost = f"{size / 2:,.0f} ({number(size / 2 / rate)} s)"
        rows.append((f"{size:,}", f"{MILLIONS / size:,.0f}", f"{driver:,.0f}", lost, *cells))
    header = (
        *(
            "rows in a file",
            "files of ten million",
            "the driver's videos a second",
            "rows lost by a kill, mean (1,000 workers)",
        ),
        *("a kill costs, formula, s (100 workers)", "simulated, s", "kills"),
    )
    return Rows(title="How many rows in a file", header=header, rows=rows)
