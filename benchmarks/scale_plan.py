"""Machines, hours and money for many videos, by formula: measured rates, stated assumptions, and what faults cost.

The rates are read from ``landscape.json`` (networks) and ``scale_rates.json`` (videos); those of training are in the
tables of docs/benchmarks.md. What nobody has measured is in ``Assumptions``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from scale_cluster import ATTEMPTS, Cluster, Faults, Nodes, Work

HERE = Path(__file__).parent

# docs/benchmarks.md, "Speed: the price of a plain network": a training step of tada2d_r50 on two cores, two clips of
# 224 x 224 pixels, seconds by precision.
TRAIN_STEP_SECONDS = {"fp32": 3.833, "bf16": 1.894}
# The same page, "What a prepared copy saves": a core's seconds of a training clip, decoded and augmented. Of originals
# the page has the decoding; the augmentation's 3 ms are those of the copy (17 - 14).
LOADER_SECONDS = {"originals": 0.271 + 0.003, "copies": 0.017}
# The same page, "What TAdaConv costs": multiply-adds of tada2d_r50 for a clip of 8 x 224 x 224.
TRAIN_MULTIPLY_ADDS = 33.23e9
BACKWARD = 3.0
"""Multiply-adds of a training step, as a multiple of the forward pass's: gradients of inputs and of weights."""

NETWORK = "TAda2D-R50 8f"
"""Its row in landscape.json: 8 frames of 256 x 256."""
THREADS = 2
"""Cores of a network on CPUs: those it was measured with."""
NODE_CORES = 16
BATCH_CLIPS_CPU, BATCH_CLIPS_GPU = 32, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What has not been measured. Each is an argument of scale.py."""

    gpu_tflops: float = 300.0
    """Peak of one GPU's matrix units in bf16, in 10^12 operations a second (a multiply-add is two)."""
    gpu_share: tuple[float, float] = (0.1, 0.3)
    """The share of the peak that networks reach: from, to."""
    core_hour: float = 0.04
    """Dollars."""
    gpu_hour: float = 2.50
    """Dollars."""
    gb_month: float = 0.023
    """Dollars for a gigabyte (10^9 bytes) stored for a month."""
    gb_read: float = 0.01
    """Dollars for a gigabyte read from the store."""
    original_mb: float = 2.5
    """Megabytes (10^6 bytes) of an original video of 10 s."""
    copy_mb: float = 1.0
    """Megabytes of its prepared copy."""
    stream_mb_per_second: float = 50.0
    """One connection to the store."""
    first_byte_seconds: float = 0.05
    """Until the store answers."""
    slow_share: float = 0.01
    """Share of the answers that are slow: they take longer by a Pareto time (least 1 s, exponent 3)."""
    max_streams: int = 64
    """Connections of one machine at a time, at most: what its network card carries."""
    decode_spread: float = 0.5
    """Standard deviation of the logarithm of decoding times: how unequal videos are."""
    batch_seconds: float = 0.005
    """What a batch costs a network, however small it is."""
    driver_batch_seconds: float = 0.002
    """For the driver to receive a batch of rows."""
    shard_seconds: float = 0.2
    """For the driver to write a file."""

    def gpu_seconds(self, multiply_adds: float, share: float) -> float:
        """Of one GPU."""
        return 2 * multiply_adds / (self.gpu_tflops * 1e12 * share)


_PARETO_EXPONENT = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What has been measured."""

    decode_seconds: Mapping[str, float]
    """A core's seconds of a video, by "originals, 1x1" and so on."""
    prepare_seconds: float
    """A core's seconds of making a copy."""
    clip_seconds: Mapping[str, float]
    """Of ``NETWORK`` on two cores, by precision."""
    multiply_adds: float
    """Of a clip."""


def read_rates(folder: Path = HERE) -> Rates:
    """From the JSON files of landscape.py and scale_rates.py."""
    rows = json.loads((folder / "landscape.json").read_text(encoding="utf-8"))["rows"]
    row = next(row for row in rows if row["row"] == NETWORK)
    videos = json.loads((folder / "scale_rates.json").read_text(encoding="utf-8"))
    return Rates(
        decode_seconds=videos["decode_seconds"],
        prepare_seconds=videos["prepare_seconds"],
        clip_seconds={key: row["ways"][way]["ms"]["median"] / 1000 for key, way in row["fastest"].items()},
        multiply_adds=row["multiply_adds"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One video's way through the cluster, in seconds of one worker."""

    name: str
    fetch_seconds: float
    """Mean, without slow answers."""
    slow_share: float
    decode_seconds: float
    """Mean."""
    decode_spread: float
    batch_seconds: float
    video_seconds: float
    """Of a network, all clips of a video."""
    driver_batch_seconds: float
    shard_seconds: float
    batch: int
    """Videos."""
    network_cores: int
    """0: on a GPU."""
    megabytes: float
    max_streams: int

    @property
    def mean_fetch_seconds(self) -> float:
        """Slow answers included."""
        return self.fetch_seconds + self.slow_share * _PARETO_EXPONENT / (_PARETO_EXPONENT - 1)

    @property
    def network_seconds(self) -> float:
        """For a video in a full batch."""
        return self.batch_seconds / self.batch + self.video_seconds

    def work(self, videos: int) -> Work:
        """The same for the simulation."""
        low = math.log(self.decode_seconds) - self.decode_spread**2 / 2  # so that the mean is decode_seconds

        # Rounded, so that the last digits of a platform's mathematics do not change the order of events.
        def fetch(random: Random) -> float:
            is_slow = random.random() < self.slow_share
            return round(self.fetch_seconds + (random.paretovariate(_PARETO_EXPONENT) if is_slow else 0.0), 7)

        return Work(
            videos=videos,
            fetch=fetch,
            decode=lambda random: round(random.lognormvariate(low, self.decode_spread), 7),
            network=lambda readable: self.batch_seconds + readable * self.video_seconds,
            driver_batch_seconds=self.driver_batch_seconds,
            shard_seconds=self.shard_seconds,
        )


def load_of(
    name: str,
    *,
    rates: Rates,
    assumed: Assumptions,
    files: str,
    views: str,
    clips: int,
    on: str | float,
) -> Load:
    """The seconds of a video.

    Args:
        files: "originals" or "copies".
        views: "1x1" or "10x3": which decoding.
        clips: that the network sees of each video, crops counted.
        on: a precision, for CPUs; or the share of a GPU's peak.
    """
    megabytes = assumed.original_mb if files == "originals" else assumed.copy_mb
    clip = rates.clip_seconds[on] if isinstance(on, str) else assumed.gpu_seconds(rates.multiply_adds, on)
    return Load(
        name=name,
        fetch_seconds=assumed.first_byte_seconds + megabytes / assumed.stream_mb_per_second,
        slow_share=assumed.slow_share,
        decode_seconds=rates.decode_seconds[f"{files}, {views}"],
        decode_spread=assumed.decode_spread,
        batch_seconds=assumed.batch_seconds,
        video_seconds=clips * clip,
        driver_batch_seconds=assumed.driver_batch_seconds,
        shard_seconds=assumed.shard_seconds,
        batch=max(1, (BATCH_CLIPS_CPU if isinstance(on, str) else BATCH_CLIPS_GPU) // clips),
        network_cores=THREADS if isinstance(on, str) else 0,
        megabytes=megabytes,
        max_streams=assumed.max_streams,
    )


def cluster_for(load: Load, workers: int, *, shard_videos: int = 10_000, decoded_batches: float = 0.25) -> Cluster:
    """Decoders and networks in the best ratio, ``workers`` of them at most.

    Machines that decode have 16 cores; those of networks have 8 (two cores each), or one GPU. Half as many connections
    again as the others need hide the store, as far as a machine may have so many.

    Args:
        decoded_batches: size of the buffer in front of the networks, in batches for each of them.
    """
    each = NODE_CORES // load.network_cores if load.network_cores else 1

    def decode_nodes(network_nodes: int) -> int:
        return (workers - network_nodes * each) // NODE_CORES

    def rate(network_nodes: int) -> float:
        machines = decode_nodes(network_nodes)
        return min(
            machines * load.max_streams / load.mean_fetch_seconds,
            machines * NODE_CORES / load.decode_seconds,
            network_nodes * each / load.network_seconds,
        )

    best = max(range(1, (workers - NODE_CORES) // each + 1), key=rate)
    streams = 1.5 * rate(best) * load.mean_fetch_seconds / decode_nodes(best)
    return Cluster(
        nodes=(
            Nodes(
                count=decode_nodes(best),
                fetches=min(math.ceil(streams), load.max_streams),
                decoders=NODE_CORES,
                networks=0,
            ),
            Nodes(count=best, fetches=0, decoders=0, networks=each),
        ),
        batch=load.batch,
        fetched_buffer=2 * NODE_CORES,
        decoded_buffer=max(1, round(decoded_batches * load.batch * best * each)),
        results_buffer=64,
        shard_videos=shard_videos,
    )


def stage_rates(cluster: Cluster, load: Load, faults: Faults) -> dict[str, float]:
    """Videos a second that each stage could do by itself, machines that are away taken into account."""
    up = 1 / (1 + faults.node_kills_per_hour / 3600 * faults.node_back_seconds)
    died = load.decode_seconds / 2 + faults.restart_seconds
    decode = (1 - faults.killers) * (load.decode_seconds + faults.crash * died) + faults.killers * ATTEMPTS * died
    readable = 1 - faults.unreadable - faults.killers
    network = load.batch_seconds / load.batch + readable * load.video_seconds
    return {
        "store": up * cluster.count("fetches") / load.mean_fetch_seconds,
        "decoders": up * cluster.count("decoders") / decode,
        "networks": up * cluster.count("networks") / network,
        "driver": 1 / (load.driver_batch_seconds / load.batch + load.shard_seconds / cluster.shard_videos),
    }


def limit_of(cluster: Cluster, load: Load, faults: Faults | None = None) -> tuple[str, float]:
    """The slowest stage, and its videos a second."""
    rates = stage_rates(cluster, load, faults or Faults())
    stage = min(rates, key=rates.__getitem__)
    return stage, rates[stage]


def mean_limit(cluster: Cluster, load: Load, faults: Faults) -> float:
    """Videos a second of the slowest stage, in the mean over the machines that happen to be up.

    Buffers hold less than what a machine does while another is away. So what counts is the mean of the slowest, not
    the slowest of the means: machines of each kind that are up have a binomial distribution.
    """
    alone = stage_rates(cluster, load, replace(faults, node_kills_per_hour=0.0))
    up = 1 / (1 + faults.node_kills_per_hour / 3600 * faults.node_back_seconds)
    decoding, with_networks = (binomial(kind.count, up) for kind in cluster.nodes)
    before = min(alone["store"], alone["decoders"]) / cluster.nodes[0].count
    behind = alone["networks"] / cluster.nodes[1].count
    return sum(
        chance * other * min(machines * before, others * behind, alone["driver"])
        for machines, chance in enumerate(decoding)
        for others, other in enumerate(with_networks)
    )


def binomial(count: int, chance: float) -> list[float]:
    """Probabilities of 0 to ``count`` successes; by logarithms, since the coefficients may be too large for a float."""
    if chance == 1:
        return [0.0] * count + [1.0]
    yes, no = math.log(chance), math.log1p(-chance)
    return [
        math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * yes + (count - k) * no)
        for k in range(count + 1)
    ]


def expected_rate(cluster: Cluster, load: Load, faults: Faults) -> float:
    """Videos a second, while there are videos: machines x rates / (1 + rework)."""
    return mean_limit(cluster, load, faults) / (1 + rework_share(cluster, load, faults))


def batch_seconds(cluster: Cluster, load: Load, rate: float) -> float:
    """A network's seconds for the batches that it gets.

    A free network takes what is there. Where it has time to spare, that is less than a full batch: so few videos that
    all networks together just keep up with ``rate``.
    """
    spare = cluster.count("networks") - rate * load.video_seconds
    full = load.batch_seconds + load.batch * load.video_seconds
    if spare <= 0:
        return full
    videos = max(1.0, rate * load.batch_seconds / spare)
    return min(full, load.batch_seconds + videos * load.video_seconds)


def rework_share(cluster: Cluster, load: Load, faults: Faults) -> float:
    """Work of the slowest stage that killed machines lose, as a share of all its work.

    A kill of one machine loses what its workers have done so far of the videos they hold, and the work of earlier
    stages on them. Only what the slowest stage did costs time: the others have time to spare.
    """
    stage, rate = limit_of(cluster, load, faults)
    batch = batch_seconds(cluster, load, rate)
    if stage == "networks":
        lost = cluster.count("networks") * (batch / 2) / load.network_seconds
    elif stage == "decoders":
        age = math.exp(load.decode_spread**2) / 2  # of a decoding when it is killed, as a share of the mean
        lost = cluster.count("decoders") * age + rate * batch  # and by Little's law what is in networks
    elif stage == "store":
        lost = rate * (load.fetch_seconds / 2 + load.decode_seconds + batch)
    else:
        lost = 0.0  # rows that have reached the driver do not die with a machine
    return faults.node_kills_per_hour / 3600 * lost / rate


def expected_seconds(videos: int, cluster: Cluster, load: Load, faults: Faults) -> float:
    """From the beginning to the last shard: at the expected rate, with the way in and out."""
    rate = limit_of(cluster, load, faults)[1]
    way = load.fetch_seconds + load.decode_seconds + batch_seconds(cluster, load, rate)
    seconds = videos / expected_rate(cluster, load, faults) + way + load.shard_seconds
    kills_per_second = faults.driver_kills_per_hour / 3600
    kill = driver_kill_seconds(cluster, load, faults)
    if kills_per_second * kill >= 1:
        raise ValueError(
            f"a driver killed {faults.driver_kills_per_hour:g} times an hour gets nowhere: {kill:.0f} s each"
        )
    return seconds / (1 - kills_per_second * kill)


def driver_kill_seconds(cluster: Cluster, load: Load, faults: Faults) -> float:
    """What one kill of the driver costs: its pause, the way in, what is in flight, and the rows in no file yet."""
    rate = limit_of(cluster, load, faults)[1]
    way = load.fetch_seconds + load.decode_seconds + batch_seconds(cluster, load, rate)
    return faults.driver_back_seconds + way + way / 2 + cluster.shard_videos / 2 / rate
