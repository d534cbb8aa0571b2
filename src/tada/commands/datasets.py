"""Commands on data sets before training: ``tada check`` and ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tada.commands.arguments import Command, add_data, add_fps, read_data, report_failures
from tada.commands.jobs import add_ray, pool_of
from tada.errors import counted
from tada.system.signals import advise
from tada.system.terminal import markup_cell, printable, say

if TYPE_CHECKING:
    from tada.data.check import CheckReport
    from tada.data.prepare import PrepareOptions
    from tada.data.table import VideoTable


_SHARD_MEGABYTES = 512


def _check_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    add_fps(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/check"), help="a folder for the report, and what it knows"
    )
    parser.add_argument("--min-frames", type=PositiveInt, default=8, help="videos with fewer are told of as too short")
    parser.add_argument("--thorough", action="store_true", help="decode every frame, not three of each file")
    parser.add_argument("--num-workers", type=PositiveInt | None, default=None, help="processes that read videos")
    parser.add_argument("--timeout-seconds", type=float, default=120.0, help="longest time for one file")
    parser.add_argument("--overwrite", action="store_true", help="replace a report of other data")
    add_ray(parser)


def _check(options: Namespace) -> int:
    """Look at every file of a data set, and tell what is odd.

    Files that cannot be read, are too short or have odd rates; the same video in two splits.
    """
    from tada.data.check import check_dataset

    advise(lambda state: "what was seen is kept: the same command goes on")
    table = read_data(options, fps=options.fps)
    with pool_of(options.ray, table.root) as pool:
        report = check_dataset(
            table,
            options.out,
            min_frames=options.min_frames,
            thorough=options.thorough,
            num_processes=options.num_workers,
            timeout_seconds=options.timeout_seconds,
            data=options.data,
            overwrite=options.overwrite,
            pool=pool,
        )
    _print_report(report)
    say(f"all of it is in {options.out}: report.json, findings.csv")
    return 1 if report.faults else 0


def _print_report(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from tada.errors import listed

    console = Console()
    if report.findings:
        table = Table("what", "", "count")
        table.add_column("the first", overflow="fold")  # paths whole
        for kind, count in report.counts().items():
            first = next(finding for finding in report.findings if finding.kind == kind)
            table.add_row(kind, "fault" if first.is_fault else "note", str(count), markup_cell(first.message))
        console.print(table)
    for name, classes in report.class_counts().items():
        of_class = sorted((sum(counts.values()), label) for label, counts in classes.items())
        (least, rarest), (most, commonest) = of_class[0], of_class[-1]
        fewest, largest = f"{least} ({printable(rarest)})", f"{counted(most, 'video')} ({printable(commonest)})"
        sizes = f"from {fewest} to {largest}" if least < most else f"{counted(most, 'video')} each"
        print(f"{counted(len(of_class), f'{name} class')}, {sizes}")
    for name, values in report.spread().items():
        shown = ", ".join(f"{value} ({count})" for value, count in list(values.items())[:5])
        console.print(f"{name}: {shown}{', ...' if len(values) > 5 else ''}", markup=False)
    if report.table.ignored:
        say(f"left out, beside the videos: {listed(report.table.ignored, quote=False)}")
    splits = ", ".join(f"{split} {len(report.table.of_split(split))}" for split in report.table.splits)
    print(counted(len(report.table), "video") + (f" ({splits})" if splits else ""), end="")
    print(f" in {counted(len(report.probes), 'file')}", end="")
    print(f", {report.table.coverage()} of those listed" if report.table.missing else "", end="")
    print(f"; {counted(len(report.faults), 'fault')}")


def _prepare_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    add_fps(parser)
    parser.add_argument(
        "out", type=Path, metavar="DIR", help="the folder of the copy; one that was begun is gone on with"
    )
    parser.add_argument("--short-side", type=PositiveInt, default=256, help="of the copies, in pixels: 256 to 320")
    parser.add_argument("--keyframe-interval", type=PositiveInt, default=16, help="frames from key frame to key frame")
    parser.add_argument("--crf", type=float, default=23.0, help="quality, from 0 (best) to 51")
    parser.add_argument("--shards", action="store_true", help="pack the copies into large tar files (shards)")
    parser.add_argument("--as-is", action="store_true", help="with --shards: pack the files, not small copies")
    parser.add_argument(
        "--shard-megabytes", type=PositiveInt, default=_SHARD_MEGABYTES, help="size of a shard, in 1e6 bytes"
    )
    parser.add_argument("--num-workers", type=PositiveInt | None, default=None, help="processes that copy videos")
    parser.add_argument("--timeout-seconds", type=float, default=3600.0, help="longest time for one file")
    add_ray(parser)


def _prepare(options: Namespace) -> int:
    """Copy a data set's videos so that they read much faster.

    The copies are small and have many key frames.
    """
    from tada.data.prepare import PrepareOptions, prepare
    from tada.errors import OptionError

    if options.as_is and not options.shards:
        raise OptionError("--as-is packs files as they are into shards: give --shards too")
    if options.shard_megabytes != _SHARD_MEGABYTES and not options.shards:
        raise OptionError("--shard-megabytes is the size of shards: give --shards too")
    copies = PrepareOptions(
        short_side=options.short_side, keyframe_interval_frames=options.keyframe_interval, crf=options.crf
    )
    table = read_data(options, fps=options.fps)
    advise(lambda state: "the copies that were made stay: the same command goes on")
    out = options.out if options.ray is None else options.out.absolute()  # other machines have other working folders
    if options.shards:
        return _prepare_shards(table, out, options, None if options.as_is else copies)
    with pool_of(options.ray, table.root) as pool:
        prepared = prepare(
            table,
            out,
            copies,
            num_processes=options.num_workers,
            timeout_seconds=options.timeout_seconds,
            pool=pool,
        )
    megabytes = [size / 1e6 for size in (prepared.source_bytes, sum(copy.size_bytes for copy in prepared.copies))]
    files = f"{counted(len(prepared.copies), 'file')}, {prepared.num_new} new"
    print(f"{files}: {megabytes[0]:.1f} MB became {megabytes[1]:.1f}")
    if table.kind in ("folder", "CSV"):
        say("next:")
        say(f"  tada train {options.out / prepared.table.name}")
    else:
        say("next:")
        say(f"  tada train {options.data} --videos {options.out / 'videos'}")
    return report_failures("not copied", (failure.message for failure in prepared.failures))


def _prepare_shards(table: VideoTable, out: Path, options: Namespace, copies: PrepareOptions | None) -> int:
    from tada.data.shards import ShardOptions, prepare_shards
    from tada.errors import listed

    with pool_of(options.ray, table.root) as pool:
        packed = prepare_shards(
            table,
            out,
            ShardOptions(copies=copies, shard_bytes=options.shard_megabytes * 1_000_000),
            num_processes=options.num_workers,
            timeout_seconds=options.timeout_seconds,
            pool=pool,
        )
    megabytes = [size / 1e6 for size in (packed.source_bytes, packed.packed_bytes)]
    files = f"{counted(packed.num_videos, 'file')}, {packed.num_new} new, in {counted(packed.num_shards, 'shard')}"
    print(f"{files}: {megabytes[0]:.1f} MB became {megabytes[1]:.1f}")
    if packed.num_relabeled:
        say(
            f"{counted(packed.num_relabeled, 'file')} with other labels or splits than when packed: training reads the "
            "new ones (videos.csv); the .json files in the shards keep the old ones"
        )
    if packed.unused:
        verb = "holds" if len(packed.unused) == 1 else "hold"
        say(f"{listed(packed.unused, quote=False)} {verb} no video of the data set any more, and may be removed")
    say("next:")
    say(f"  tada train {options.out}")
    return report_failures("not copied", (failure.message for failure in packed.failures))


COMMANDS: dict[str, Command] = {
    "check": (_check_arguments, _check),
    "prepare": (_prepare_arguments, _prepare),
}
