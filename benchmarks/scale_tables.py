"""The tables of docs/scale.md: what ``scale.py`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from claims_report import Rows
from scale_plan import (
    BACKWARD,
    LOADER_SECONDS,
    THREADS,
    TRAIN_MULTIPLY_ADDS,
    TRAIN_STEP_SECONDS,
    Assumptions,
    Rates,
    cluster_for,
    expected_seconds,
    load_of,
)
from scale_queue import Faults

HOUR = 3600.0
WORKERS = 1000
MILLIONS = 10_000_000
K700_TRAIN, K700_TEST = 542_352, 34_125
"""Videos of Kinetics-700-2020's lists for training and validation."""
EPOCHS, BATCH = 100, 256
"""Of the recipe k400_tada2d_r50_8x8."""
FEATURE_STEPS = 19
"""Of 10 s: one every 16 frames."""
ORDINARY = Faults(
    node_kills_per_hour=1 / 24,
    node_back_seconds=600,
    unreadable=0.03,
    crash=0.001,
    killers=0.0001,
    restart_seconds=3,
)
"""Each machine killed once a day, back after ten minutes; three videos of a hundred broken."""


HELP = {
    "gpu_tflops": "peak of a GPU's matrix units in bf16, 10^12 operations a second",
    "gpu_share": "share of that peak which networks reach, from and to",
    "core_hour": "dollars for an hour of a core",
    "gpu_hour": "dollars for an hour of a GPU",
    "gb_month": "dollars for a GB stored for a month",
    "gb_read": "dollars for a GB read from the store",
    "original_mb": "MB of an original of 10 s",
    "copy_mb": "MB of its prepared copy",
    "stream_mb_per_second": "MB a second of one connection to the store",
    "first_byte_seconds": "seconds until the store answers",
    "slow_share": "share of its answers that take longer: by a Pareto time, least 1 s, exponent 3",
    "max_streams": "connections of one machine at a time, at most",
    "decode_spread": "standard deviation of the logarithm of decoding times",
    "batch_seconds": "seconds that a batch costs a network, however small it is",
    "driver_batch_seconds": "seconds of the driver for each batch of rows",
    "shard_seconds": "seconds of the driver to write a file",
}


def option(name: str) -> str:
    """Of the command line."""
    return "--" + name.replace("_", "-")


# Numbers as cells


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def span(values: Sequence[float]) -> str:
    """From the lower to the higher, or the one."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def percent(share: float, digits: int = 1) -> str:
    """Of a share."""
    return f"{100 * share:.{digits}f} %"


def gpu_name(assumed: Assumptions) -> str:
    """How a table calls GPUs: nobody has measured one."""
    low, high = (f"{100 * share:g}" for share in assumed.gpu_share)
    return f"GPU, {low if low == high else f'{low} to {high}'} % of its peak (assumed)"


# The tables


def inputs(rates: Rates, assumed: Assumptions) -> Rows:
    """Every number that the others are made of."""
    measured = [
        *((f"decoding {key}, seconds of a core", value) for key, value in rates.decode_seconds.items()),
        ("a prepared copy of one video, seconds of a core", rates.prepare_seconds),
    ]
    rows = [(name, number(value), "measured: scale_rates.json") for name, value in measured]
    rows += [
        (
            f"`tada2d_r50`, a clip of 8 x 256 x 256, {key}, seconds of {THREADS} cores",
            number(value),
            "measured: landscape.json",
        )
        for key, value in rates.clip_seconds.items()
    ]
    rows += [
        (
            f"training step, 2 clips of 8 x 224 x 224, {key}, seconds of {THREADS} cores",
            number(value),
            "measured: benchmarks.md",
        )
        for key, value in TRAIN_STEP_SECONDS.items()
    ]
    rows += [
        (
            f"a training clip of {key}, decoded and augmented, seconds of a core",
            number(value),
            "measured: benchmarks.md",
        )
        for key, value in LOADER_SECONDS.items()
    ]
    for entry in fields(assumed):
        value = getattr(assumed, entry.name)
        shown = " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append((f"`{option(entry.name)}`: {HELP[entry.name]}", shown, "**assumed**"))
    return Rows(title="What the plan is made of", header=("what", "value", "from"), rows=rows)


def kinetics_training(rates: Rates, assumed: Assumptions) -> Rows:
    """The paper's schedule on Kinetics-700."""
    clips = K700_TRAIN * EPOCHS
    megabytes = {"originals": assumed.original_mb, "copies": assumed.copy_mb}
    every_epoch = {files: number(clips * each / 1000 * assumed.gb_read) for files, each in megabytes.items()}
    prepare = K700_TRAIN * rates.prepare_seconds / HOUR
    rows = [
        (
            "`tada prepare`, once, 16 cores",
            "originals",
            number(prepare / 16),
            "",
            "",
            number(prepare * assumed.core_hour),
            "",
        )
    ]
    for precision, seconds in TRAIN_STEP_SECONDS.items():
        # Two clips for each process; the batch has room for so many.
        processes = BATCH // 2
        hours = clips / BATCH * seconds / HOUR
        cores = processes * THREADS
        loader = clips * LOADER_SECONDS["copies"] / HOUR
        dollars = (hours * cores + loader) * assumed.core_hour
        name = f"{processes} processes of {THREADS} cores, {precision}; exchange of gradients not counted"
        rows.append((name, "copies", number(hours), number(loader / hours), "", number(dollars), every_epoch["copies"]))
    gpu = [assumed.gpu_seconds(BACKWARD * TRAIN_MULTIPLY_ADDS, share) * clips / HOUR for share in assumed.gpu_share]
    for count in (1, 8, 32):
        for files, seconds in LOADER_SECONDS.items():
            hours = [total / count for total in gpu]
            loader = clips * seconds / HOUR
            rows.append(
                (
                    f"{count} x {gpu_name(assumed)}",
                    files,
                    span(hours),
                    span([loader / each for each in hours]),
                    span(gpu),
                    span([total * assumed.gpu_hour + loader * assumed.core_hour for total in gpu]),
                    every_epoch[files],
                )
            )
    header = (
        *("machines", "files", "hours", "cores that load", "GPU hours", "dollars"),
        "dollars more if each epoch reads from the store",
    )
    return Rows(title=f"Kinetics-700: training `tada2d_r50`, {EPOCHS} epochs", header=header, rows=rows)


def kinetics_test(rates: Rates, assumed: Assumptions) -> Rows:
    """All videos of the validation list, ten clips with three crops each."""
    rows = []
    for files in ("originals", "copies"):
        decode = K700_TEST * rates.decode_seconds[f"{files}, 10x3"] / HOUR
        for precision, seconds in rates.clip_seconds.items():
            cores = decode + K700_TEST * 30 * seconds * THREADS / HOUR
            dollars = cores * assumed.core_hour
            rows.append((f"16 cores, {precision}", files, number(cores), "", number(cores / 16), number(dollars)))
        gpu = [K700_TEST * 30 * assumed.gpu_seconds(rates.multiply_adds, share) / HOUR for share in assumed.gpu_share]
        hours = [max(decode / 16, each) for each in gpu]
        dollars_of = [16 * each * assumed.core_hour + each * assumed.gpu_hour for each in hours]
        name = f"16 cores and one {gpu_name(assumed)}"
        rows.append((name, files, number(decode), span(gpu), span(hours), span(dollars_of)))
    header = ("machine", "files", "core hours", "GPU hours", "hours", "dollars")
    return Rows(title="Kinetics-700: test with 10x3 views", header=header, rows=rows)


def ten_millions(rates: Rates, assumed: Assumptions) -> Rows:
    """Answers (one clip of a video) and features (a clip every 16 frames), without and with GPUs."""
    prepare = MILLIONS * rates.prepare_seconds / HOUR
    reading = MILLIONS * assumed.original_mb / 1000 * assumed.gb_read
    cells = (number(prepare / WORKERS), number(prepare * assumed.core_hour + reading), number(reading))
    read = number(MILLIONS * assumed.original_mb / 1e6)
    rows: list[tuple[str, ...]] = [("`tada prepare`", "originals", "", number(prepare), "", read, *cells)]
    for job, views, clips in (("answers", "1x1", 1), ("features", "10x3", FEATURE_STEPS)):
        for files in ("originals", "copies"):
            for precision in rates.clip_seconds:
                rows.append(_millions(job, files, views, clips, f"CPU, {precision}", [precision], rates, assumed))
            rows.append(_millions(job, files, views, clips, gpu_name(assumed), assumed.gpu_share, rates, assumed))
    header = (
        "job",
        "files",
        "network on",
        "core hours",
        "GPU hours",
        "TB read",
        "hours, 1,000 workers",
        "dollars",
        "of it reading",
    )
    return Rows(title="Ten million videos of 10 s: answers and features", header=header, rows=rows)


def _millions(
    job: str,
    files: str,
    views: str,
    clips: int,
    name: str,
    on: Sequence[str | float],
    rates: Rates,
    assumed: Assumptions,
) -> tuple[str, ...]:
    """One row; ``on`` has a precision, or the ends of the range of a GPU's share."""
    cores, gpus, hours = [], [], []
    for each in on:
        load = load_of(job, rates=rates, assumed=assumed, files=files, views=views, clips=clips, on=each)
        cluster = cluster_for(load, WORKERS)
        cores.append(MILLIONS * (load.decode_seconds + load.network_seconds * load.network_cores) / HOUR)
        gpus.append(0.0 if load.network_cores else MILLIONS * load.network_seconds / HOUR)
        hours.append(expected_seconds(MILLIONS, cluster, load, ORDINARY) / HOUR)
    read = MILLIONS * load.megabytes / 1e6
    reading = read * 1000 * assumed.gb_read
    dollars = [c * assumed.core_hour + g * assumed.gpu_hour + reading for c, g in zip(cores, gpus, strict=True)]
    shown = "" if max(gpus) == 0 else span(gpus)
    return (job, files, name, span(cores), shown, number(read), span(hours), span(dollars), number(reading))


def outputs(assumed: Assumptions) -> Rows:
    """Bytes of what is written, and of what is read."""
    kinds = {
        "answers: the best five, with scores (Parquet, measured on 10,000 drawn rows)": 97,
        "answers: all 700 scores (Parquet, of 3,000 rows)": 7_458,
        "features: one vector of 2,048, 4 bytes each": 2_048 * 4,
        f"features: {FEATURE_STEPS} vectors of 2,048, 4 bytes each": FEATURE_STEPS * 2_048 * 4,
        f"features: {FEATURE_STEPS} vectors of 2,048, 2 bytes each (converted)": FEATURE_STEPS * 2_048 * 2,
        "prepared copies (assumed)": assumed.copy_mb * 1e6,
        "originals (assumed)": assumed.original_mb * 1e6,
    }
    rows = []
    for name, size in kinds.items():
        gigabytes = size * MILLIONS / 1e9
        rows.append((name, f"{size:,.0f}", number(gigabytes), number(gigabytes * assumed.gb_month)))
    return Rows(
        title="What ten million videos take on a disk",
        header=("what", "bytes of a video", "GB", "dollars a month"),
        rows=rows,
    )


def one_night(rates: Rates) -> Rows:
    """Videos that a laptop does while its owner sleeps."""
    seconds = 8 * HOUR * 8
    rows = []
    for job, views, clips in (("answers", "1x1", 1), ("features", "10x3", FEATURE_STEPS), ("10x3 views", "10x3", 30)):
        for files in ("originals", "copies"):
            of_video = {
                key: rates.decode_seconds[f"{files}, {views}"] + clips * THREADS * clip
                for key, clip in rates.clip_seconds.items()
            }
            videos = [seconds / of_video[key] for key in ("fp32", "bf16")]
            rows.append((job, files, *(f"{each:,.0f}" for each in videos), number(MILLIONS / videos[1])))
    videos_prepared = seconds / rates.prepare_seconds
    rows.append(("`tada prepare`", "originals", *[f"{videos_prepared:,.0f}"] * 2, number(MILLIONS / videos_prepared)))
    header = ("job", "files", "videos, fp32", "videos, bf16", "nights for ten million, bf16")
    return Rows(title="When not to use a cluster: one night of a laptop", header=header, rows=rows)
