"""Kinetics-700 and ten million videos, planned on paper: machines, hours and money, and a simulation that checks them.

    python benchmarks/scale.py                                  # prints the tables of docs/scale.md
    python benchmarks/scale.py --gpu-tflops 990 --gpu-share 0.2 0.2    # with a measured share of a GPU's peak
    python benchmarks/scale.py --json runs/scale.json --picture docs/scale.png

``scale_plan.py`` has the formulas, ``scale_queue.py`` the simulation, ``scale_tables.py`` the tables;
``scale_rates.py`` measures what a video costs. Nothing is measured here: the tables follow from JSON files in this
folder, from docs/benchmarks.md, and from the assumptions, which are arguments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from claims_report import Rows
from run_lines import ends_in_a_line, output_file, positive
from scale_checks import against_simulation, buffers, cost_of_faults, harder, limits, loads, shards
from scale_plan import Assumptions, Rates, cluster_for, expected_rate, read_rates
from scale_queue import Simulation
from scale_tables import HELP, inputs, kinetics_test, kinetics_training, one_night, option, outputs, ten_millions
from tada.system.files import write_whole


@ends_in_a_line()
def main() -> None:
    """Print the tables; write JSON and picture if asked."""
    assumed, arguments = parse()
    rates = read_rates()
    made = tables(rates, assumed)
    print("\n\n".join(rows.to_markdown() for rows in made))
    if arguments.json:
        content = {
            "benchmark": "scale",
            "rates": asdict(rates),
            "assumed": asdict(assumed),
            "tables": [asdict(rows) for rows in made],
        }
        write_whole(arguments.json, (json.dumps(content, indent=2) + "\n").encode())
    if arguments.picture:
        draw(rates, assumed, arguments.picture)


def tables(rates: Rates, assumed: Assumptions) -> list[Rows]:
    """All of them, in the order of the page."""
    own = loads(rates, assumed)
    return [
        inputs(rates, assumed),
        kinetics_training(rates, assumed),
        kinetics_test(rates, assumed),
        ten_millions(rates, assumed),
        outputs(assumed),
        one_night(rates),
        limits(own),
        against_simulation(own),
        buffers(own),
        cost_of_faults(own),
        shards(own["answers, originals, CPUs"]),
    ]


MAY_BE_ZERO = ("core_hour", "gpu_hour", "gb_month", "gb_read", "slow_share")
"""Own machines cost nothing; a store may have no slow answers."""


def number_above(text: str, *, zero_too: bool) -> float:
    """A number of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 < value < float("inf") or (zero_too and value == 0)):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number {'of at least' if zero_too else 'above'} 0")
    return value


def parse(words: Sequence[str] | None = None) -> tuple[Assumptions, argparse.Namespace]:
    """The assumptions, and the files to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=output_file, help="a file for the tables and the assumptions")
    parser.add_argument("--picture", type=output_file, help="a PNG file; it takes half a minute more")
    default = Assumptions()
    for name, text in HELP.items():
        value = getattr(default, name)
        several = {"nargs": len(value)} if isinstance(value, tuple) else {}
        kind = positive if isinstance(value, int) else partial(number_above, zero_too=name in MAY_BE_ZERO)
        parser.add_argument(option(name), type=kind, default=value, help=f"{text} (%(default)s)", **several)
    arguments = parser.parse_args(words)
    low, high = arguments.gpu_share
    if not low <= high <= 1:
        parser.error(f"--gpu-share {low} {high}: give the lower share first, and none above 1")
    if arguments.slow_share > 1:
        parser.error(f"--slow-share {arguments.slow_share}: a share is at most 1")
    given = {name: getattr(arguments, name) for name in HELP}
    return Assumptions(**given | {"gpu_share": (low, high)}), arguments


def draw(rates: Rates, assumed: Assumptions, file: Path) -> None:
    """Videos a second against workers: the formula as lines, simulated clusters as points."""
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    faults = harder(5, 10)
    own = loads(rates, assumed)
    colors = ("#1f6feb", "#1a7f37", "#8250df", "#bc4c00")
    for name, color in zip(list(own)[:4], colors, strict=True):
        counts = [50, 70, 100, 150, 250, 400, 600, 1000, 1500, 2000]
        clusters = {count: cluster_for(own[name], count) for count in counts}
        expected = {count: expected_rate(cluster, own[name], faults) for count, cluster in clusters.items()}
        axes.plot(counts, list(expected.values()), color=color, label=name)
        for count in (100, 250, 1000):
            work = own[name].work(round(20 * expected[count]))
            done = Simulation(clusters[count], work, faults, seed=19).run()
            axes.plot([count], [done.sustained_rate], "o", color=color)
    axes.set(xscale="log", yscale="log", xlabel="workers (decoders and networks)", ylabel="videos a second")
    axes.set_title("lines: formula; points: simulated; each machine killed every 5 min, back after 10 s", fontsize=9)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
