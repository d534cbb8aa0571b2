"""The speed benchmarks run from end to end on tiny sizes, and measure what they say. No time is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import forms
import localize_speed
import speed_e2e
import speed_model
import speed_op
import speed_train
import timing
from tada.errors import OptionError
from tada.models import create_model

CPU = torch.device("cpu")


def narrow(name: str, **options: Any) -> nn.Module:
    if name.endswith("lite0"):
        return create_model(name, depths=(1,) * 7, widths=(8,) * 7, stem_width=8, **options)
    if name == "tadaformer_b16":
        few: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "grid": (2, 2), "routing_head_channels": 4}
        return create_model(name, **(few | options))
    if name == "tadaconvnextv2_t":
        few = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "routing_head_channels": 4}
        return create_model(name, **(few | options))
    wide: dict[str, Any] = {"widths": (8, 8, 16, 16)} if name.startswith(("ta", "ts", "conv")) else {"width": 8}
    return create_model(name, **({"depths": (1, 1, 1, 1)} | wide | options))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one narrow block in each stage, and a chip that is measured in no time."""
    monkeypatch.setattr(forms, "create_model", narrow)
    monkeypatch.setattr(timing, "_COPIED_BYTES", 2**16)
    monkeypatch.setattr(timing, "_MATRIX_SIDES", {"cpu": 16})


def report(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    assert {"torch", "numpy"} <= set(found["machine"]["versions"])
    return found


# --- the machinery ----------------------------------------------------------------------------------------------------


def test_rows_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the runs move: what they take is what is found, whatever their order."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    called: list[str] = []

    def run(name: str, seconds: float) -> None:
        called.append(name)
        now[0] += seconds

    runs = {"a": partial(run, "a", 2.0), "b": partial(run, "b", 0.3)}
    seconds = timing.interleaved(runs, rounds=6, device=CPU, least_seconds=1.0)
    assert seconds == {"a": [pytest.approx(2.0)] * 6, "b": [pytest.approx(0.3)] * 6}
    assert called[:4] == ["a", "a", "b", "b"]
    rounds = [called[4 + 5 * i : 9 + 5 * i] for i in range(6)]  # one call of a, and four of b for a second
    assert {tuple(each) for each in rounds} == {("a", "b", "b", "b", "b"), ("b", "b", "b", "b", "a")}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that halves its speed between two rounds changes no ratio."""
    ratio = timing.Spread.of_ratio([2.0, 4.0, 8.0, 16.0, 32.0], [1.0, 2.0, 4.0, 8.0, 16.0])
    assert ratio == timing.Spread(low=2.0, median=2.0, high=2.0)
    assert timing.Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]).text(1) == "3.0 (2.0-4.0)"


def test_shares_of_the_chip() -> None:
    chip = timing.Chip(copy_bytes_per_second=1e9, multiply_adds_per_second={"fp32": 1e12})
    assert chip.copy_share(2e9, 4.0) == pytest.approx(0.5)
    assert chip.matrix_share(1e12, 10.0, "fp32") == pytest.approx(0.1)


_HOLDS_64_MIB = """
import torch
import timing

size = 2**26

def build():
    torch.ones(4 * size, dtype=torch.uint8)
    kept = torch.ones(size, dtype=torch.uint8)
    return lambda: (kept + 1).sum(dtype=torch.uint8)

print(timing.peak_bytes(build, torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak before is forgotten on Linux only")
def test_peak_memory() -> None:
    """What is held between calls counts, and what a call needs; what only building needs does not."""
    # In a process of its own, as benchmarks measure: here other tests have left memory, which would be used again.
    command = [sys.executable, "-c", _HOLDS_64_MIB]
    folder = Path(timing.__file__).parent
    output = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert int(output.split()[-1]) == pytest.approx(2 * 2**26, rel=0.2)


def test_choosing_rows() -> None:
    rows = {"a fused": 1, "a literal": 2, "b fused": 3}
    assert timing.choose(rows, ["a*", "b lit*"]) == {"a fused": 1, "a literal": 2}
    with pytest.raises(OptionError, match=r"--rows c\* fits none of: a fused, a literal, b fused"):
        timing.choose(rows, ["c*"])
    with pytest.raises(OptionError, match="--device meta should be cpu or cuda"):
        timing.device_of(timing.parser_of("", rounds=1).parse_args(["--device", "meta"]))


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsn_r50", "tsm_r50", "slowonly_r50", "r2plus1d_r50", "r3d_r50"])
def test_folded_norms_change_no_logits(name: str) -> None:
    model = forms.network(name, 4).double().eval()
    fused = forms.fuse(model)
    clips = torch.randn(2, 3, 4, 32, 32).double()
    with torch.no_grad():
        torch.testing.assert_close(fused(clips), model(clips), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())


def test_tsm_shifts_an_eighth_each_way() -> None:
    frames = torch.arange(1.0, 7.0)[:, None, None, None].expand(6, 8, 1, 1)  # two clips of three frames
    shifted = forms.shift_channels(3, nn.Identity(), (frames,))
    late, early, rest = shifted[:, :, 0, 0].split((1, 1, 6), dim=1)
    assert late[:, 0].tolist() == [0, 1, 2, 0, 4, 5]
    assert early[:, 0].tolist() == [2, 3, 0, 5, 6, 0]
    assert bool((rest == frames[:, 2:, 0, 0]).all())


def test_values_moved() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10, bias=False))
    values = forms.least_values_moved(model, torch.zeros(2, 3, 5, 5))
    assert values == (2 * 75 + 2 * 100 + 4 * 27 + 4) + (2 * 100 + 2 * 10 + 1000)


def test_forms_answer_alike() -> None:
    clips = torch.randn(1, 3, 4, 32, 32)
    logits: dict[str, Tensor] = {}
    for kind in ("literal", "unfolded", "fused"):
        model = forms.build(forms.Form(network="tada2d_r50", kind=kind), 4, CPU)
        with torch.no_grad():
            logits[kind] = model(clips)
    torch.testing.assert_close(logits["literal"], logits["unfolded"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits["fused"], logits["unfolded"], rtol=1e-3, atol=1e-4)


def test_wider_networks() -> None:
    assert speed_model.widths("tada2d_r50", 0.5) == {"widths": (32, 64, 128, 256), "stem_width": 32}
    assert speed_model.widths("convnext_t", 2) == {"widths": (192, 384, 768, 1536)}
    assert speed_model.widths("tadaformer_b16", 0.5) == {"width": 384, "heads": 6, "routing_head_channels": 32}
    assert speed_model.growth([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_speed_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {
        "strided": speed_op.Layer(channels=8, side=8, kernel=3, stride=2),
        "depthwise": speed_op.Layer(channels=8, side=8, kernel=7, calibrate="out", depthwise=True),
        "left out": speed_op.Layer(channels=8, side=8, kernel=3),
    }
    monkeypatch.setattr(speed_op, "LAYERS", layers)
    options = f"--layers s* d* --rounds 2 --batch 1 --frames 3 --least-ms 0.1 --json {tmp_path / 'op.json'}"
    speed_op.main(options.split())
    rows = report(tmp_path / "op.json")["rows"]
    assert [row["form"] for row in rows] == list(speed_op.FORMS) * 8  # two layers, precisions, passes
    assert rows[0]["multiply_adds"] == 3 * 8 * 4 * 4 * 9 * 8
    assert rows[0]["least_bytes"] == 4 * (3 * 8 * 64 + 3 * 8 * 16 + 9 * 8 * 8)
    for row in rows:
        assert row["form"] != "literal" or row["times_faster_than_literal"]["median"] == 1
        assert row["form"] != "plain" or row["times_plain"]["median"] == 1


@pytest.mark.parametrize("which", ["forward", "both"])
@pytest.mark.parametrize("name", ["64 at 112, stride 2", "96 at 56, depthwise"])
def test_layers_compute_the_same_in_all_forms(name: str, which: str) -> None:
    arguments = Namespace(batch=2, frames=2)
    layer = replace(speed_op.LAYERS[name], side=6)
    torch.manual_seed(0)
    runs = speed_op.runs_of(layer, which, arguments, "fp32", CPU)
    literal, exact = runs["literal"](), runs["exact"]()
    if which == "forward":
        assert isinstance(literal, Tensor)
        torch.testing.assert_close(literal.transpose(1, 2).flatten(0, 1), exact, rtol=1e-4, atol=1e-5)
    else:
        assert isinstance(literal, tuple)
        assert isinstance(exact, tuple)
        of_clips = literal[0].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close((of_clips, *literal[1:]), exact, rtol=1e-3, atol=1e-4)


def test_speed_model(tmp_path: Path) -> None:
    options = f"--frames 4 --side 32 --rounds 2 --eager --no-memory --json {tmp_path / 'model.json'}"
    speed_model.main(["--precisions", "fp32", *options.split()])
    found = report(tmp_path / "model.json")
    names = [row["row"] for row in found["rows"]]
    assert names == [
        *("tada2d_r50 literal fp32", "tada2d_r50 unfolded fp32", "tada2d_r50 fused fp32", "tsn_r50 fused fp32"),
        *("tsm_r50 fused fp32", "slowonly_r50 fused fp32", "r2plus1d_r50 fused fp32", "r3d_r50 fused fp32"),
        *("tadaconvnext_t literal fp32", "tadaconvnext_t unfolded fp32", "tadaconvnext_t fused fp32"),
        *("convnext_t fused fp32", "tadaconvnextv2_t literal fp32", "tadaconvnextv2_t unfolded fp32"),
        *("tadaconvnextv2_t fused fp32", "convnext_t fused fp32", "tadaformer_b16 literal fp32"),
        *("tadaformer_b16 unfolded fp32", "tadaformer_b16 fused fp32", "clip_b16 fused fp32"),
        *("tada_lite0 unfolded fp32", "tada_lite0 fused fp32", "efficientnet_lite0 fused fp32"),
    ]
    rows = dict(zip(names, found["rows"], strict=True))
    assert rows["tadaformer_b16 fused fp32"]["multiply_adds"] > rows["clip_b16 fused fp32"]["multiply_adds"]
    assert rows["tsm_r50 fused fp32"]["multiply_adds"] == rows["tsn_r50 fused fp32"]["multiply_adds"] > 1e6
    assert rows["tada2d_r50 literal fp32"]["times_faster_than_literal"]["median"] == 1
    assert rows["convnext_t fused fp32"]["times_plain"]["median"] == 1
    assert all(row["copy_share"] > 0 < row["matrix_share"] for row in rows.values())
    assert [(best["row"], best["plain_row"]) for best in found["best"]] == [
        ("tada2d_r50 fused fp32", "tsn_r50 fused fp32"),
        ("tadaconvnext_t fused fp32", "convnext_t fused fp32"),
        ("tadaconvnextv2_t fused fp32", "convnext_t fused fp32"),
        ("tadaformer_b16 fused fp32", "clip_b16 fused fp32"),
        ("tada_lite0 fused fp32", "efficientnet_lite0 fused fp32"),
    ]


def test_memory_of_a_row_in_its_own_process() -> None:
    options = ["--batch", "1", "--frames", "2", "--side", "32", "--networks", "tada2d_r50"]
    peak = timing.peak_of_row(speed_train.__file__, options, "tsn_r50 eager fp32")
    weights = 4 * 24.3e6
    assert 3 * weights < peak < 9 * weights  # with gradients and momentum


def test_speed_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_model, "AXES", {"frames": (2, 4, 8), "channels": (0.25, 0.5)})
    monkeypatch.setattr(speed_model, "START", {"batch": 1, "frames": 2, "side": 32, "channels": 1})
    options = f"--scaling --rounds 2 --rows *convnext*fused* --json {tmp_path / 'scaling.json'}"
    speed_model.main(options.split())
    rows = report(tmp_path / "scaling.json")["rows"]
    assert [(row["axis"], row["size"]) for row in rows][:3] == [("frames", 2), ("frames", 4), ("frames", 8)]
    assert len(rows) == 3 * 5


def test_speed_train(tmp_path: Path) -> None:
    options = f"--frames 4 --side 32 --rounds 2 --no-memory --json {tmp_path / 'train.json'}"
    speed_train.main(options.split())
    found = report(tmp_path / "train.json")["rows"]
    rows = {row["row"]: row for row in found}
    assert len(rows) == 20
    assert rows["tada2d_r50 literal bf16"]["times_faster_than_literal"]["median"] == 1
    assert rows["convnext_t checkpointed fp32"]["times_plain"]["median"] == 1
    assert all(row["times_plain"] is not None for row in found)


def test_speed_e2e(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "create_model", create_model)
    options = "--models tada2d_tiny --precisions fp32 --rounds 2 --frames 4 --side 32 --seconds 1 --videos 3"
    speed_e2e.main([*options.split(), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "e2e.json")])
    found = report(tmp_path / "e2e.json")
    assert [(row["row"], row["keyframe_interval"]) for row in found["one"]] == [
        (f"tada2d_tiny {kind} fp32", interval) for interval in (250, 16) for kind in ("unfolded", "fused")
    ]
    for row in found["one"]:
        assert 0 < row["share_before_network"]["median"] < 1
    for row in found["many"]:
        assert row["videos"] == row["network_calls"] == 3
        assert 0 <= row["wait_share"] < 1
    assert not list((tmp_path / "out").glob("many_*"))


def test_localize_speed(tmp_path: Path) -> None:
    options = "--models tada2d_tiny --side 32 --seconds 2 --parts-seconds 1"
    localize_speed.main([*options.split(), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "speed.json")])
    (row,) = report(tmp_path / "speed.json")["rows"]
    assert row["parts"].keys() == {*localize_speed.PARTS, "together"}
    assert row["parts"]["together"] == pytest.approx(sum(row["parts"][part] for part in localize_speed.PARTS))
    assert min(*row["parts"].values(), row["seconds"]) > 0
    written = (tmp_path / "out" / "2s.mp4").stat().st_mtime_ns
    assert localize_speed.drawn_video(tmp_path / "out", 2.0).stat().st_mtime_ns == written  # not drawn again


@pytest.mark.parametrize(
    "words",
    [
        "claims DATA --out OUT",
        "claims DATA --clips OUT",
        "gestures DATA --out OUT",
        "loader --out OUT",
        "localize_speed --out OUT",
        "motion_weights OUT",
        "quantization DATA --out OUT",
        "several_labels OUT",
        "speed_e2e --out OUT",
        "thermal DATA --out OUT",
    ],
)
def test_a_file_in_the_place_of_the_folder_is_named(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    name, *arguments = words.replace("DATA", str(tmp_path)).replace("OUT", str(tmp_path / "notes" / "new")).split()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(name).main()
    assert f"'{tmp_path / 'notes'}' is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gestures DATA --seeds 0", "--seeds: '0' should be a whole number of at least 1"),
        ("gestures DATA --tsn-motion DATA", "--tsn-motion: DATA holds no trained model; benchmarks/motion_weights.py"),
        ("motion_weights DATA/new --videos DATA/notes", "--videos: 'DATA/notes' is a file; name a folder"),
        ("starts DATA --out DATA", "--out: 'DATA' is a folder; name a file"),
        ("starts DATA --out DATA/notes/new", "--out: 'DATA/notes' is a file; name a folder"),
        ("starts DATA --page DATA/notes", "--page: 'DATA/notes' is a file; name a folder"),
        ("starts DATA --clips DATA/notes", "--clips: 'DATA/notes' is a file; name a folder"),
        ("starts DATA --lite-motion DATA", "--lite-motion: DATA holds no trained model; benchmarks/motion_weights.py"),
        ("thermal DATA --tsn-motion DATA", "--tsn-motion: DATA holds no trained model; benchmarks/motion_weights.py"),
        ("thermal DATA --videos 0", "--videos: '0' should be a whole number of at least 1"),
    ],
)
def test_what_a_benchmark_cannot_take_is_told_at_once(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").touch()
    name, *arguments = words.replace("DATA", str(tmp_path)).split()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(name).main()
    assert f"argument {message.replace('DATA', str(tmp_path))}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gestures", r"--only: no row is called 'bmn'; there are 'tada2d_tiny from scratch', "),
        ("thermal", r"--only: no row begins with 'bmn'; there are 'tada2d_tiny actionformer', 'tada2d_tiny bmn'"),
    ],
)
def test_rows_that_are_not_there(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips.csv").write_text("video,label\na.mp4,up\n")
    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "bmn"])
    with pytest.raises(SystemExit, match=message):
        importlib.import_module(name).main()
    assert not (tmp_path / "out").exists()


def test_videos_without_classes_end_motion_weights_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    words = ["motion_weights.py", str(tmp_path / "out"), "--videos", str(tmp_path / "videos")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"videos"):
        importlib.import_module("motion_weights").main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gestures", "thermal"])
def test_data_that_are_not_there_end_a_benchmark_in_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"(clips|segments)\.csv"):
        importlib.import_module(name).main()
