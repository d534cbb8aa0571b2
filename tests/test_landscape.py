"""The landscape of accuracy and time: what it compares, how it resumes, and the page of what was stored."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import landscape
import landscape_networks
import timing
from landscape import REFERENCE, main, measure, rows_of
from landscape_networks import INSTALL, AveragePool3d, Contender, Result, TwoRates, contenders
from landscape_report import front_of, points_of, show_landscape
from tada.models import create_model
from tada.models.published import published_checkpoints

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def result(top1: float, views: str = "2x3") -> Result:
    return Result(top1=top1, views=views, trained_from="nothing", source="a paper")


def tiny(name: str, *results: Result, package: str = "tada") -> Contender:
    def build() -> nn.Module:
        torch.manual_seed(0)
        if package == "tada":
            return create_model("tada2d_tiny", num_classes=4)
        conv = nn.Conv3d(3, 4, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm3d(4), nn.SiLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())

    convolutional = package != "tada"
    return Contender(
        name=name,
        family="tiny",
        build=build,
        frames=2,
        pixels=16,
        results=results,
        package=package,
        convolutional=convolutional,
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Contender]:
    """Three networks: one of tada, one of a package that is there, one of a package that is not."""
    rows = [
        tiny(REFERENCE, result(70.0), result(72.0)),
        tiny("another", result(71.0, "1x1"), package="json"),
        tiny("missing", result(80.0), package="pytorchvideos"),
    ]
    own = {row.name: row for row in rows}
    monkeypatch.setattr(landscape, "contenders", lambda: own)
    monkeypatch.setitem(INSTALL, "pytorchvideos", "pip install pytorchvideos")
    # The worker of a pool would not see what is patched here.
    monkeypatch.setattr(landscape, "run_all", run_here)
    return own


def run_here(run: Any, jobs: Any, file: Path, **_: Any) -> None:
    with file.open("a") as lines:
        for job in jobs:
            lines.write(json.dumps(run(*job)) + "\n")


def test_every_network_has_results_that_say_where_they_stand() -> None:
    every = contenders()
    assert REFERENCE in every
    assert {row.package for row in every.values()} == {"tada", *INSTALL}
    for row in every.values():
        assert row.results, row.name
        for published in row.results:
            assert 70 < published.top1 < 90
            assert 3 <= published.num_views <= 30
            assert published.trained_from
            assert published.source.startswith(("https://github.com/", "arXiv ", "pytorchvideo 0.1.5"))


def test_own_results_are_the_published_ones() -> None:
    ours = {row.name: row for row in contenders().values() if row.is_ours}
    found = {(row.frames, r.top1, r.views, r.trained_from) for row in ours.values() for r in row.results}
    for c in published_checkpoints():
        large = c.network == "tadaformer_l14" and c.num_frames != 16
        if c.data_set == "k400" and c.top1 is not None and not large:
            assert (c.num_frames, c.top1, c.views, c.trained_from) in found
    assert (16, 78.4, "4x3", "ImageNet-1k") in found  # TAdaConvNeXt-T, from the paper
    assert ours["TAdaConvNeXtV2-B 32f"].pixels == 256
    assert ours["TAdaFormer-B/16 16f"].pixels == 224


@pytest.mark.slow  # the import of transformers takes seconds
@pytest.mark.parametrize(("name", "giga"), [("VideoMAE-S", 57), ("TimeSformer-B", 196)])
def test_networks_of_transformers_cost_what_their_papers_say(name: str, giga: int) -> None:
    row = contenders()[name]
    with torch.device("meta"):
        model = row.build().eval()
        clips = torch.empty(1, 3, row.frames, row.pixels, row.pixels)
    assert landscape.cost(model, clips)["multiply_adds"] / 1e9 == pytest.approx(giga, rel=0.005)


def test_stand_ins_compute_what_they_stand_for() -> None:
    x = torch.randn(2, 3, 8, 9, 9)
    pool = nn.AvgPool3d((8, 7, 7), stride=1)
    torch.testing.assert_close(AveragePool3d(pool)(x), pool(x))
    assert AveragePool3d(pool)(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(AveragePool3d(nn.AvgPool3d(3))(x), nn.AvgPool3d(3)(x))
    seen: list[torch.Tensor] = []
    two = TwoRates(nn.Module(), 32)
    two.network.forward = seen.extend  # type: ignore[method-assign]
    two(torch.arange(32.0).view(1, 1, 32, 1, 1))
    assert seen[0].flatten().tolist() == [0, 4, 8, 13, 17, 22, 26, 31]  # linspace, rounded down
    assert seen[1].shape[2] == 32


def test_torchvision_is_stood_in_for_only_while_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # cannot be imported
    with landscape_networks._torchvision():
        from torchvision.ops import RoIAlign
    assert RoIAlign is None
    assert "torchvision.ops" not in sys.modules


def test_rows_are_measured_once_and_ratios_are_of_a_round(
    small: dict[str, Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--rounds", "2", "--eager", "--rows", "*"]
    main([*command, "--precisions", "fp32"])
    told = capsys.readouterr()
    assert "left out: missing: pytorchvideos is not installed: pip install pytorchvideos" in told.err
    report = json.loads(Path("runs/landscape.json").read_text())
    assert "pip install pytorchvideos" in report["left_out"]["missing"]
    own, another = report["rows"]
    assert set(another["ways"]) == {"fp32 eager", "fp32 eager, channels last"}
    assert own["fastest"] == {"fp32": "fp32 eager"}
    assert own["failed"] == another["failed"] == {}
    assert own["multiply_adds"] > 10**6
    lines = Path("runs/landscape.jsonl").read_text()
    main(command)  # all have lines
    assert Path("runs/landscape.jsonl").read_text() == lines
    assert "| missing" not in Path("runs/landscape.md").read_text()
    Path("runs/landscape.jsonl").write_text(lines.replace('"torch": "', '"torch": "1.'))
    with pytest.raises(SystemExit, match=r"runs/landscape\.jsonl: .* was measured under other conditions"):
        main(command)


def test_a_way_that_fails_or_answers_otherwise_is_told(
    small: dict[str, Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = timing.parser_of(None, rounds=1).parse_args([])
    arguments.packages, arguments.precisions, arguments.eager, arguments.seconds = None, ["fp32"], False, 1.0
    fuse = landscape.fuse

    def fuse_wrongly(network: nn.Module, *, compile: bool = False, **options: Any) -> nn.Module:
        if compile:
            raise RuntimeError("no compiler\nand more")
        return fuse(network, **options)

    monkeypatch.setattr(landscape, "fuse", fuse_wrongly)
    line = measure("another", arguments)
    assert set(line["ms"]) == {"fp32 eager", "fp32 eager, channels last"}
    assert line["failed"] == {"fp32 compiled": "RuntimeError: no compiler"}
    monkeypatch.setattr(landscape, "MOST_TO_COMPILE", 1e4)
    assert measure("another", arguments)["failed"] == {"fp32 compiled": "not tried with more than 0 G multiply-adds"}
    with pytest.raises(ValueError, match=r"logits differ by 1"):
        landscape.check(torch.ones(2), torch.zeros(2), "fp32")
    with pytest.raises(ValueError, match="not finite"):
        landscape.check(torch.tensor([float("nan")]), torch.zeros(1), "bf16")


def line_of(name: str, ms: float, reference_ms: list[float]) -> dict[str, Any]:
    slow = [ms * r / 100 for r in reference_ms]
    ways = {"fp32 eager": [3 * t for t in slow], "fp32 compiled": [2 * t for t in slow], "bf16 eager": slow}
    return {
        "row": name,
        "parameters": 5,
        "multiply_adds": 7,
        "reference_ms": reference_ms,
        "ms": ways,
        "failed": {"bf16 compiled": "no"},
    }


def test_page_and_picture_of_stored_numbers(small: dict[str, Contender], tmp_path: Path) -> None:
    # In the second line the machine is three times as slow, and in turns with the reference that changes nothing.
    rows = rows_of([line_of(REFERENCE, 10, [90, 100, 110]), line_of("another", 20, [300, 300, 330])])
    own, another = rows
    assert own["fastest"] == another["fastest"] == {"fp32": "fp32 compiled", "bf16": "bf16 eager"}
    assert another["ways"]["bf16 eager"]["ms"]["median"] == pytest.approx(2 * own["ways"]["bf16 eager"]["ms"]["median"])
    points = points_of(rows)
    assert [(point.name, point.top1) for point in points] == [
        ("another", 71.0),  # one view
        (f"{REFERENCE} (nothing)", 72.0),
        (f"{REFERENCE} (nothing)", 70.0),
    ]
    assert front_of(points) == points[:2]
    report = {"rows": rows, "machine": timing.machine(CPU), "reference": REFERENCE, "left_out": {"missing": "why"}}
    show_landscape(report, tmp_path)
    text = (tmp_path / "landscape.md").read_text()
    assert "- missing: why" in text
    assert "| **fp32 compiled** |" in text
    assert "another (71.0, " in text.split("## Where tada's networks are behind")[1]
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_of_the_stored_numbers(tmp_path: Path) -> None:
    """As long as nothing was stored, there is no page, and ``--report`` says what to do."""
    stored, page = landscape.OWN_NUMBERS, ROOT / "docs" / "landscape.md"
    assert stored.exists() == page.exists() == page.with_suffix(".png").exists()
    if not stored.exists():
        with pytest.raises(SystemExit, match=r"landscape\.json does not exist: measure first, without --report"):
            main(["--report"])
        return
    main(["--report", "--page", str(tmp_path)])
    assert (tmp_path / "landscape.md").read_text() == page.read_text()
    known = contenders()
    for row in json.loads(stored.read_text())["rows"]:
        published = [(r.top1, r.views, r.trained_from, r.source) for r in known[row["row"]].results]
        assert [(r["top1"], r["views"], r["trained_from"], r["source"]) for r in row["results"]] == published


def test_slow_rows_have_fewer_rounds() -> None:
    runs = {"slow": partial(torch.ones, 1)}
    assert len(timing.interleaved(runs, rounds=5, device=CPU)["slow"]) == 5
    assert len(timing.interleaved(runs, rounds=5, device=CPU, most_seconds=0.0)["slow"]) == 3
    assert timing.own_precisions(CPU)[0] == "fp32"
