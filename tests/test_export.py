"""Exported files: what is in them, that they compute what the network does, and what 8-bit integers cost.

Networks are as small as they can be and still have every part: an export takes seconds whatever the sizes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tada.export
from tada.commands.cli import main
from tada.data.annotations import read_dataset
from tada.data.identity import content_id
from tada.data.run_videos import write_run_list
from tada.data.split_hashes import Splits
from tada.errors import CheckpointError, DataError, OptionError
from tada.export import TOLERANCE, Exported, export, largest_difference
from tada.models import create_model, list_models
from tada.models.weights import ModelCard, load_model, save_model
from tada.recognition.evaluation import evaluate
from tada.recognition.recognizer import load_recognizer
from tada.tadaconv import TemporalPool, pool_over_time
from tada.video.sampling import ClipSpec
from tada.video.writer import write_video

CLIP = ClipSpec(num_frames=8, sampling="segment", short_side=36, crop=32)
SMALL: dict[str, dict[str, Any]] = {
    "tada2d_tiny": {"depths": [1], "widths": [8], "stem_width": 8, "aggregation": "mix"},
    "tsn_tiny": {"depths": [1], "widths": [8], "stem_width": 8},
    "tadaconvnextv2_mini": {"depths": [1], "widths": [8], "routing_head_channels": 2},
    "tadaformer_tiny": {"width": 24, "depth": 1, "routing_head_channels": 3},
    "tada_lite0": {"depths": [1, 1], "widths": [4, 4], "expansions": [1, 2], "kernels": [3, 5], "strides": [1, 2]},
    "slowfast_tiny": {"depths": [1], "width": 4, "reduce_frames": [1], "temporal_strides": [1]},
    "r3d_tiny": {"depths": [1], "width": 4, "reduce_frames": [3], "temporal_strides": [2], "adapted": True},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
SLOW = ("tadaconvnextv2_mini", "tada_lite0")


def silent(line: str) -> None:
    pass


def saved(
    folder: Path,
    model: str,
    options: dict[str, Any],
    *,
    labels: tuple[str, ...] = ("a", "b", "c"),
    clip: ClipSpec = CLIP,
    **card: Any,
) -> Path:
    """The folder of a network whose every part counts: no factor is the one that training starts with."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=len(labels), **options).eval()
    for name, parameter in network.named_parameters():
        if "routing" in name or "norm" in name:
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1  # wide layers would overflow otherwise
            nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3 / fan_in**0.5)
    save_model(
        folder,
        network,
        ModelCard(model=model, options=options, labels=labels, clip=clip, trained_from="nothing", **card),
    )
    return folder


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def distance(have: Tensor, wanted: Tensor) -> float:
    return float((have - wanted).abs().max() / wanted.abs().max())


# -- float32 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(
        tmp_path_factory.mktemp("two_heads") / "run",
        "tada2d_tiny",
        SMALL["tada2d_tiny"],
        labels=("open", "close", "door", "drawer", "lid"),
        head_sizes={"verb": 2, "noun": 3},
        license="CC0-1.0",
        clip=replace(CLIP, mean=MEAN, std=STD),
    )


@pytest.fixture(scope="module")
def exported(two_heads: Path) -> Exported:
    return export(two_heads, two_heads.parent / "new" / "doors.onnx", say=silent)


def test_onnx_runtime_alone_computes_what_the_network_does(two_heads: Path, exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    (clips,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (clips.name, clips.type, clips.shape) == (
        "clips",
        "tensor(float)",
        ["batch", 3, "frames", "height", "width"],
    )
    assert (logits.name, logits.shape) == ("logits", ["batch", 5])
    network, _ = load_model(two_heads)
    # None of them is a size that the export saw or checked.
    for shape in ((1, 3, 1, 32, 32), (5, 3, 3, 40, 56), (1, 3, 9, 64, 33)):
        with torch.inference_mode():
            wanted = network(noise(*shape))
        have = torch.from_numpy(session.run(["logits"], {"clips": noise(*shape).numpy()})[0])
        assert distance(have, wanted) < TOLERANCE
    assert exported.difference < TOLERANCE / 10
    assert exported.num_bytes == exported.file.stat().st_size


def test_what_an_input_needs_travels_with_the_graph(exported: Exported) -> None:
    model = onnx.load(exported.file)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    assert b".py" not in exported.file.read_bytes(), "where this machine's code lies"
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}["tada"])
    assert card["labels"] == ["open", "close", "door", "drawer", "lid"]
    assert card["head_sizes"] == {"verb": 2, "noun": 3}
    assert (card["model"], card["license"]) == ("tada2d_tiny", "CC0-1.0")
    clip = card["clip"]
    assert card["mean"] == clip["mean"] == list(MEAN)
    assert card["std"] == clip["std"] == list(STD)
    assert (clip["num_frames"], clip["sampling"], clip["short_side"], clip["crop"]) == (8, "segment", 36, 32)


def test_tada_reads_it_in_place_of_the_run(
    two_heads: Path, exported: Exported, motion_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next(motion_videos.rglob("*.mp4"))
    ours, theirs = load_recognizer(two_heads).predict(video), tada.load(exported.file).predict(video)
    assert theirs.labels == ours.labels
    assert theirs.labels[:4] == ("open door", "open drawer", "open lid", "close door")
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
    with pytest.raises(OptionError, match=r"an ONNX file gives logits and no features: give the run"):
        load_recognizer(exported.file).model.features(noise(1, 3, 4, 32, 32))
    assert main(["predict", str(exported.file), str(video), "--format", "csv"]) == 0
    assert ours.label in capsys.readouterr().out


@pytest.mark.parametrize("model", ["tadaformer_tiny", "slowfast_tiny"])
def test_pytorchs_program_computes_what_the_network_does(model: str, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", model, SMALL[model])
    done = export(run, tmp_path / "out.pt2", say=silent)
    files: dict[str, Any] = {"tada": ""}
    program = torch.export.load(done.file, extra_files=files).module()
    assert json.loads(files["tada"])["labels"] == ["a", "b", "c"]
    num_bytes = sum(parameter.numel() for parameter in load_model(run)[0].parameters()) * 4
    assert done.num_bytes == done.file.stat().st_size < num_bytes + 500_000, "weights, and a graph"
    assert b"tadaconv/__init__.py" not in done.file.read_bytes(), "where this machine's code lies"
    network, _ = load_model(run)
    for shape in ((1, 3, 8, 32, 32), (3, 3, 12, 40, 48), (1, 3, 8, 48, 48)):  # the last is TAdaFormer's grid
        torch.testing.assert_close(program(noise(*shape)), network(noise(*shape)), atol=1e-5, rtol=1e-5)
    if model == "tadaformer_tiny":
        with pytest.raises(RuntimeError, match=r"shape '\[1, 3, 8, 40, 48\]' is invalid"):
            program(noise(1, 3, 8, 44, 48))


@pytest.mark.parametrize(
    ("model", "num_frames", "size"),
    [pytest.param("tada2d_tiny", 8, 20, marks=pytest.mark.slow), ("tsn_tiny", 1, 32)],
)
def test_programs_of_small_clips(model: str, num_frames: int, size: int, tmp_path: Path) -> None:
    """Whose pictures are a pixel wide at the end of a network that halves them five times."""
    clip = replace(CLIP, num_frames=num_frames, short_side=size, crop=size)
    run = saved(tmp_path / "run", model, {**SMALL[model], "depths": [1] * 4, "widths": [8] * 4}, clip=clip)
    done = export(run, tmp_path / "out.pt2", say=silent)
    program, (network, _) = torch.export.load(done.file).module(), load_model(run)
    for shape in ((1, 3, num_frames, size, size), (2, 3, 5, 8, 40), (2, 3, 2, 1, 1)):
        torch.testing.assert_close(program(noise(*shape)), network(noise(*shape)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "model", ["tadaformer_tiny", "r3d_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_other_families_as_onnx(model: str, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", model, SMALL[model])
    export(run, tmp_path / "out.onnx", say=silent)
    recognizer, from_file = load_recognizer(run), load_recognizer(tmp_path / "out.onnx")
    clips = noise(3, 3, 6, 40 if model == "tadaformer_tiny" else 41, 48)
    with torch.inference_mode():
        assert distance(from_file.model(clips), recognizer.model(clips)) < TOLERANCE
    if model == "tadaformer_tiny":  # patches of 8 pixels: 4 rows would be cut off
        with pytest.raises(Exception, match=r"requested shape:\{1,3,4,40,48\}"):
            from_file.model(noise(1, 3, 4, 44, 48))


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in list_models() if name.endswith(("_tiny", "_mini", "lite0"))])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_every_family(model: str, adapted: bool, suffix: str, tmp_path: Path) -> None:
    if adapted and not model.startswith(("slow", "r3d", "r2plus1d")):
        pytest.skip("adapted by its very name")
    run = saved(tmp_path / "run", model, {"adapted": True} if adapted else {})
    assert export(run, tmp_path / f"out{suffix}", say=silent).difference < TOLERANCE


class _Pool(nn.Module):
    def __init__(self, pool: TemporalPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, clips: Tensor) -> Tensor:
        n, _, t = clips.shape[:3]
        return pool_over_time(clips.transpose(1, 2).flatten(0, 1), t, self.pool).unflatten(0, (n, t)).transpose(1, 2)


@pytest.mark.parametrize("pool", ["avg", "max", "mix"])
def test_frames_are_pooled_alike_by_the_operators_that_are_exported(pool: TemporalPool) -> None:
    program = torch.export.export(_Pool(pool), (noise(2, 5, 4, 3, 7),)).module()
    clips = noise(2, 5, 4, 3, 7)
    average = F.avg_pool3d(clips, (3, 1, 1), 1, (1, 0, 0))
    maximum = F.max_pool3d(clips, (3, 1, 1), 1, (1, 0, 0))
    wanted = {"avg": average, "max": maximum, "mix": (average + maximum) / 2}[pool]
    torch.testing.assert_close(program(clips), wanted)
    torch.testing.assert_close(_Pool(pool)(clips), wanted)


# -- 8-bit integers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright videos, train and val."""
    folder = tmp_path_factory.mktemp("lights")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for label, level in (("bright", 150), ("dark", 40)):
            for i in range(count):
                frames = level + random.integers(0, 60, (6, 36, 48, 3))
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                write_video(folder / split / label / f"{i}.mp4", frames.astype(np.uint8), fps=10)
    return folder


@pytest.fixture(scope="module")
def knows_light(lights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classifier lies halfway between the mean features of both classes."""
    folder = saved(tmp_path_factory.mktemp("light") / "run", "tsn_tiny", SMALL["tsn_tiny"], labels=("bright", "dark"))
    network, card = load_model(folder)
    bright, dark = (
        network.features(torch.full((1, 3, 8, 32, 32), (level / 255 - 0.45) / 0.225))[0] for level in (180, 70)
    )
    axis = (bright - dark) / (bright - dark).norm() ** 2 * 6
    network.head.weight.data = torch.stack([axis, -axis])
    network.head.bias.data = torch.stack([-axis, axis]) @ (bright + dark) / 2
    save_model(folder, network, card)
    write_run_list(read_dataset(lights), folder, silent)
    return folder


@pytest.mark.slow  # two exports
def test_the_benchmark_of_forms(
    knows_light: Path, lights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    options = ["--rounds", "2", "--calibration-clips", "4", "--clip", "2x32", "--json", tmp_path / "forms.json"]
    quantization.main([str(a) for a in (knows_light, "--data", lights, "--out", tmp_path / "out", *options)])
    assert "left out: OpenVINO, which is not installed: pip install" in capsys.readouterr().err
    named = json.loads((tmp_path / "forms.json").read_text())["rows"]
    rows = {name.rpartition(", ")[2]: row for name, row in named.items()}
    assert set(rows) - {"PyTorch bf16"} == {"PyTorch fp32", "ONNX Runtime float32", "ONNX Runtime int8"}
    assert all(row["clip"] == [2, 32] and row["videos"] == 6 and row["ms"]["median"] > 0 for row in rows.values())
    assert rows["PyTorch fp32"]["agreement"] == rows["ONNX Runtime float32"]["agreement"] == 1.0
    assert rows["PyTorch fp32"]["metrics"] == {"top1": 1.0}
    assert rows["ONNX Runtime int8"]["bytes"] < rows["ONNX Runtime float32"]["bytes"]
    with pytest.raises(OptionError, match="--clip 8 should be frames x pixels, such as 8x224"):
        quantization.frames_and_pixels("8")


def test_integers_are_calibrated_on_some_videos_and_measured_on_others(
    knows_light: Path, lights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[str] = []
    read_views: Callable[..., Tensor] = tada.export.read_views
    monkeypatch.setattr(
        tada.export, "read_views", lambda video, *rest: calibrated.append(video.path) or read_views(video, *rest)
    )
    said: list[str] = []
    done = export(
        knows_light,
        tmp_path / "int8.onnx",
        int8=lights,
        calibration_clips=4,
        num_workers=0,
        show_progress=False,
        say=said.append,
    )
    paths = [Path(path).relative_to(lights).as_posix() for path in calibrated]
    assert paths == ["train/bright/0.mp4", "train/bright/2.mp4", "train/dark/0.mp4", "train/dark/2.mp4"]
    assert said == ["testing on the data's val split"]

    assert done.int8 is not None
    assert done.int8.num_videos == 6
    assert done.int8.float_metrics["top1"] == 1.0
    shutil.copytree(lights, tmp_path / "copy")
    unsplit = read_dataset(tmp_path / "copy")  # as class folders without splits: the file knows its own
    unsplit = replace(unsplit, videos=tuple(replace(video, split=None) for video in unsplit.videos))
    said.clear()
    again = evaluate(done.file, unsplit, num_workers=0, show_progress=False, say=said.append)
    assert said == [f"testing on the 6 videos that {done.file} held out for validation"]
    assert done.int8.metrics == {"top1": again.metrics()["top1"]}  # of two classes: no top-5
    before = evaluate(knows_light, lights, num_workers=0, show_progress=False, say=silent)
    same = before.scores.argmax(1) == again.scores.argmax(1)
    assert done.int8.agreement == pytest.approx(same.mean())
    assert not np.array_equal(again.scores, before.scores)
    assert np.abs(again.scores - before.scores).max() < 0.2

    model = onnx.load(done.file)
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}["tada"])
    assert card["int8"] == {
        "num_videos": 6,
        "metrics": done.int8.metrics,
        "float_metrics": done.int8.float_metrics,
        "agreement": done.int8.agreement,
    }
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    kernels = {weight.data_type for weight in model.graph.initializer if len(weight.dims) == 4}
    assert kernels == {onnx.TensorProto.INT8}


def test_the_loss_that_is_told_is_what_was_lost(knows_light: Path, lights: Path) -> None:
    before = evaluate(knows_light, lights, num_workers=0, show_progress=False, say=silent)
    scores = before.scores.copy()
    scores[[0, 4]] = scores[[0, 4], ::-1]
    loss = tada.export._measure_loss(before, replace(before, scores=scores))
    assert (loss.num_videos, loss.agreement) == (6, pytest.approx(4 / 6))
    assert (loss.float_metrics["top1"], loss.metrics["top1"]) == (1.0, pytest.approx(4 / 6))


def test_where_all_videos_are_tested_they_calibrate_too(lights: Path) -> None:
    table = read_dataset(lights).of_split("val")
    said: list[str] = []
    videos = tada.export._calibration_videos(table, table, 100, said.append).videos
    assert videos == table.videos
    assert said == ["the ranges of 8-bit integers are taken from the videos that are tested: there are no others"]


def test_videos_that_cannot_be_read_do_not_calibrate(lights: Path, tmp_path: Path) -> None:
    table = read_dataset(lights)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    videos = [replace(table.videos[0], path=str(broken)), table.videos[1]]
    (clip,) = tada.export._read_clips(replace(table, videos=tuple(videos)), CLIP)
    assert clip.shape == (1, 3, 8, 32, 32)
    with pytest.raises(DataError, match=r"none of 1 video for calibration could be read; the first: .*broken"):
        list(tada.export._read_clips(replace(table, videos=tuple(videos[:1])), CLIP))


def test_what_a_file_cannot_know_is_told(lights: Path, tmp_path: Path) -> None:
    """Of a list that an earlier tada wrote, the videos that are where they were."""
    assert tada.export._splits_text(tmp_path, silent) is None
    video = lights / "train" / "dark" / "0.mp4"
    (tmp_path / "videos.csv").write_text(f"path,label,split,group\n{video},dark,train,\n/gone.mp4,dark,val,\n")
    said: list[str] = []
    text = tada.export._splits_text(tmp_path, said.append)
    assert said == [f"1 of 2 videos of {tmp_path} are not where its list has them: the file will not know them"]
    assert text is not None
    assert Splits.from_text(text).of([content_id(video)], None, None) == "train"


# -- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_not_put_in_place(
    two_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.pt2"
    out.write_bytes(b"as it was")
    monkeypatch.setattr(tada.export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match=r"out.pt2' was not written: its logits differ by nan of the largest"):
        export(two_heads, out, overwrite=True, say=silent)
    assert out.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [out]


class _Sum(nn.Module):
    """Logits that grow with the brightness of each frame, by a factor for each; later frames count alike."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.mean((1, 3, 4))
        factors = torch.tensor([*self.factors, *[1.0] * frames.shape[1]])[: frames.shape[1]]
        return torch.stack([frames @ factors, clips.new_ones(len(clips))], dim=1)


def test_any_difference_is_found() -> None:
    assert largest_difference(_Sum(1, 2), _Sum(1, 2), CLIP) == 0
    assert largest_difference(_Sum(1, 2), _Sum(2, 1), CLIP) > 0.1
    assert largest_difference(_Sum(*[1] * 9), _Sum(*[1] * 8, 2), CLIP) > 0.01  # in long clips alone
    assert np.isnan(largest_difference(_Sum(1), _Sum(float("nan")), CLIP))
    with pytest.raises(RuntimeError, match=r"clips \[1, 3, 8, 32, 32\] give \[1, 2, 1\] instead of \[1, 2\]"):
        largest_difference(_Sum(1), nn.Sequential(_Sum(1), nn.Unflatten(1, (2, 1))), CLIP)


def test_mistakes_are_told_in_a_line(
    two_heads: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match=r"'out.bin' should end in .onnx, or in .pt2 for PyTorch alone"):
        export(two_heads, Path("out.bin"))
    with pytest.raises(OptionError, match=r"8-bit integers are written as ONNX: let 'out.pt2' end in .onnx"):
        export(two_heads, Path("out.pt2"), int8=tmp_path)
    with pytest.raises(OptionError, match=r"doors.onnx' was exported already; give the run it comes from"):
        export(exported.file, tmp_path / "out.onnx")
    monkeypatch.setattr(tada.export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(OptionError, match=r"out.onnx': ONNX needs onnxscript: pip install 'tada-video\[export\]'"):
        export(two_heads, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_in_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself would read those of the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_bytes(b"0123456789abcdef")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[16])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret")
    shown = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16]) for name in ("clips", "logits")]
    node = onnx.helper.make_node("Cast", ["w"], ["logits"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([node], "graph", shown[:1], shown[1:], [weights])
    opset = [onnx.helper.make_opsetid("", 18)]
    data = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    written_otherwise = data.replace(b"\x0a\x08location\x12\x06secret", b"\x0a\x88\x00location\x12\x05secre")
    assert written_otherwise != data
    for content in (data, written_otherwise):
        Path("a.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a.onnx' keeps weights in other files, which are not opened"):
            load_recognizer("a.onnx")


def test_files_that_are_no_exports_are_told(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.onnx' cannot be read: No such file"):
        load_recognizer(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported.file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"damaged.onnx' is no ONNX file that ONNX Runtime [\d.]+ runs, or it is"):
        load_recognizer(damaged)
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(exported.file)
    del model.metadata_props[:]
    onnx.save_model(model, foreign)
    with pytest.raises(CheckpointError, match=r"foreign.onnx' has no labels and no clip specification .*: it was"):
        load_recognizer(foreign)
    onnx.helper.set_model_props(model, {"tada": "{"})
    onnx.save_model(model, foreign)
    with pytest.raises(CheckpointError, match=r"foreign.onnx' is damaged, or was not written by tada"):
        load_recognizer(foreign)


def test_the_command(knows_light: Path, lights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lights.onnx"
    assert main(["export", str(knows_light), str(out), "--int8", str(lights), "--num-workers", "0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "testing on the data's val split"
    assert said[1] == "of 6 videos    float32    int8"
    assert [line.split()[:2] for line in said[2:4]] == [["top1", "1.0000"], ["the", "same"]]  # of two classes: no top-5
    assert said[-1].startswith(f"{out}: 0.0")
    assert main(["evaluate", str(out), str(lights), "--num-workers", "0"]) == 0
    assert (tmp_path / "lights_evaluation" / "evaluation.json").exists()
    assert main(["export", str(knows_light), str(tmp_path / "out.engine")]) == 2
    assert "should end in .onnx" in capsys.readouterr().err
