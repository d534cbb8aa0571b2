"""A trained recognizer as one file that needs no tada: ONNX, or PyTorch's own exported program.

One graph serves any number of clips, of frames and of pixels. That takes TAdaConv's form with the scale moved off the
kernel: the released one builds a kernel for each frame, and a graph fixes how many groups a convolution has. What was
written is run and compared with the network before it is put in place.

An ONNX file can also compute in 8-bit integers. Their ranges are found by running some clips (static quantization);
what that costs in accuracy is measured on other videos, and said in the file.

Shapes: N clips, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from tada.data.annotations import read_dataset
from tada.data.run_videos import read_run_list, splits_of, with_contents
from tada.data.split_hashes import MOST_PARTS
from tada.data.table import VideoTable
from tada.data.views import Views, read_views
from tada.errors import DataError, OptionError, VideoError, counted
from tada.loading import load
from tada.models.onnx_model import (
    CARD_ENTRY,
    INPUT,
    ONNX_SUFFIX,
    OUTPUT,
    SPLITS_ENTRY,
    OnnxNetwork,
    import_onnxruntime,
    open_session,
)
from tada.models.weights import write_card
from tada.recognition.evaluation import choose_videos, evaluate, with_fps_of_run
from tada.recognition.recognizer import Recognizer
from tada.recognition.results import Evaluation
from tada.system.files import scratch_folder, write_whole, writing
from tada.system.locks import holds_file
from tada.system.progress import Work
from tada.system.signals import last_chance
from tada.video.sampling import ClipSpec
from tada.video.transforms import MEAN, STD, normalize

PROGRAM_SUFFIX = ".pt2"
OPSET = 18
"""Of ONNX: what PyTorch's exporter writes without converting, and old enough for most runtimes."""
TOLERANCE = 1e-4
"""How far logits may be from the network's, as a part of the largest. Sums in another order give less than 1e-5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Loss:
    """What 8-bit integers cost, measured on videos that the network was not trained on."""

    num_videos: int
    """Videos that were tested."""
    metrics: dict[str, float]
    """Accuracies of the integers, by the names of ``Evaluation.metrics``."""
    float_metrics: dict[str, float]
    """Those of the network."""
    agreement: float
    """Part of the videos for which both find the same most probable class (of all heads), or the same labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What ``export`` wrote."""

    file: Path
    """Where."""
    num_bytes: int
    """Its size."""
    difference: float
    """The largest difference to the network's logits, as a part of the largest logit; without 8-bit integers."""
    int8: Int8Loss | None = None
    """What they cost, where they were asked for."""


@holds_file("out")
def export(
    run: str | PathLike[str],
    out: str | PathLike[str],
    *,
    int8: str | PathLike[str] | VideoTable | None = None,
    calibration_clips: int = 128,
    num_workers: int | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write a recognizer as one file: ``clips`` [N, 3, T, H, W] float32, normalized -> ``logits`` [N, K].

    Args:
        run: what ``tada.load`` takes.
        out: OUT.onnx, for ONNX Runtime and others; or OUT.pt2, for ``torch.export.load``.
        int8: labeled videos, or what ``read_dataset`` takes: compute in 8-bit integers. Accuracy is measured on those
            that ``evaluate`` would choose, the ranges come from others.
        calibration_clips: clips that the ranges are taken from, one of each video, spread over all.
        num_workers: processes that decode, as in ``evaluate``.
        overwrite: replace a file that is there.

    Raises:
        OptionError: another kind of file, one that is there, a model that cannot be exported, or a package is missing.
        OutputError: ``out`` cannot be written, or another process is about to.
        CheckpointError: the run holds no model, or a damaged one.
        DataError: ``int8`` does not fit the model, or none of it can be read.
        RuntimeError: what was written does not compute what the network does: a fault of ours. ``out`` is as it was.
    """
    out = Path(out)
    suffix = out.suffix.lower()
    if suffix not in (ONNX_SUFFIX, PROGRAM_SUFFIX):
        raise OptionError(f"{str(out)!r} should end in {ONNX_SUFFIX}, or in {PROGRAM_SUFFIX} for PyTorch alone")
    if int8 is not None and suffix != ONNX_SUFFIX:
        raise OptionError(f"8-bit integers are written as ONNX: let {str(out)!r} end in {ONNX_SUFFIX}")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing and suffix == ONNX_SUFFIX:
        raise OptionError(f"{str(out)!r}: ONNX needs {', '.join(missing)}: pip install 'tada-video[export]'")
    if out.exists() and not overwrite:
        raise OptionError(f"{str(out)!r} is there already: give another name, or replace it (--overwrite)")
    recognizer = load(run, device="cpu")
    if not isinstance(recognizer, Recognizer):
        raise OptionError(f"{str(run)!r} is a localizer; export the recognizer whose features it reads")
    if isinstance(recognizer.model, OnnxNetwork):
        raise OptionError(f"{str(run)!r} was exported already; give the run it comes from")

    if int8 is not None:  # before the work, for there may be something wrong with them
        table = int8 if isinstance(int8, VideoTable) else read_dataset(Path(int8))
        table = with_fps_of_run(table, Path(run), say).numbered_as(recognizer.heads)
        tested = choose_videos(table, Path(run), None, say)
        calibration = _calibration_videos(table, tested, calibration_clips, say)
    splits = _splits_text(Path(run), say)
    loss: Int8Loss | None = None
    display = Work(f"writing {out.name}", is_shown=show_progress)
    with scratch_folder() as folder, last_chance(lambda: rmtree(folder)), display:
        file = folder / f"float32{suffix}"
        with writing(file):  # which no fault of its writers names
            exported = _write(recognizer, file, splits)
        difference = largest_difference(recognizer.model, exported, recognizer.clip)
        if not difference <= TOLERANCE:  # nor nan
            raise RuntimeError(f"{str(out)!r} was not written: its logits differ by {difference:.1g} of the largest")
        if int8 is not None:
            file = _quantize(file, _clips_of(calibration, recognizer.clip))
            _write_card(file, recognizer, splits)
            options: dict[str, Any] = {"num_workers": num_workers, "show_progress": show_progress, "say": _unsaid}
            loss = _loss(evaluate(Path(run), tested, device="cpu", **options), evaluate(file, tested, **options))
            _write_card(file, recognizer, splits, int8=asdict(loss))
        data = file.read_bytes()
    write_whole(out, data)
    return Exported(file=out, num_bytes=len(data), difference=difference, int8=loss)


# -- the graph --------------------------------------------------------------------------------------------------------


def _write(recognizer: Recognizer, file: Path, splits: str | None) -> nn.Module:
    """Write the file, and give what computes from it."""
    clip = recognizer.clip
    # Longer and larger than usual: a size of 1 would be a constant, wherever in the network frames or pixels shrink.
    example = torch.zeros(2, 3, 4 * max(clip.num_frames, 2), max(clip.crop, 96), max(clip.crop, 96))
    with _quiet():
        if file.suffix == PROGRAM_SUFFIX:
            axes = dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC)
            program = torch.export.export(recognizer.model, (example,), dynamic_shapes=(axes,))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # where on this machine the code lies
            _take_all_sizes(program)
            program.example_inputs = None  # which would be written too, and be larger than some networks
            # Into memory: where a file cannot be written to its end, torch's own writer ends the whole process.
            data = BytesIO()
            torch.export.save(program, data, extra_files={CARD_ENTRY: _card_text(recognizer)})
            file.write_bytes(data.getvalue())
            return torch.export.load(file).module()
        onnx_program = torch.onnx.export(
            recognizer.model,
            (example,),
            dynamic_shapes=({0: "batch", 2: "frames", 3: "height", 4: "width"},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(file, external_data=False)
    _write_card(file, recognizer, splits)
    return open_session(file)


def _take_all_sizes(program: ExportedProgram) -> None:
    """Let a program take the sizes of clips that its network takes.

    The exporter notes what held of the example's strides in every layer, such as that pictures are wider than a pixel
    at the network's end, and the program would refuse clips of 32 pixels. No operator computes anything else for that.
    """
    for size in program.range_constraints:
        program.range_constraints[size] = ValueRanges(1, int_oo)


def _write_card(file: Path, recognizer: Recognizer, splits: str | None, **more: Any) -> None:
    """Put into an ONNX file what tada reads there, and take out what the exporter notes of itself.

    The latter is more than a tenth of a small file, and says where on this machine the code lies.
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]  # sizes inside, which every runtime finds itself
    entries = {} if splits is None else {SPLITS_ENTRY: splits}
    onnx.helper.set_model_props(model, {CARD_ENTRY: _card_text(recognizer, **more), **entries})
    onnx.save_model(model, file)


def _card_text(recognizer: Recognizer, **more: Any) -> str:
    return write_card(recognizer.card, mean=MEAN, std=STD, **more)


def _splits_text(run: Path, say: Callable[[str], None]) -> str | None:
    """What the file carries of the list of the run's videos; None where there is none."""
    rows = read_run_list(run)
    if rows is None:
        return None
    rows = with_contents(rows)
    unknown = sum(not row.content for row in rows)
    if unknown:
        say(f"{unknown} of {len(rows)} videos of {run} are not where its list has them: the file will not know them")
    splits = splits_of(rows)
    if len(splits) > MOST_PARTS:
        say(f"{run} has more than {MOST_PARTS} videos: the file will not know them")
        return None
    return splits.to_text()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave unsaid what the exporters say of their inside: what is deprecated there, and that torchvision is not."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            # Of kernels that lie in memory channels last; they are written whole, as the comparison shows.
            warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def largest_difference(network: nn.Module, exported: nn.Module, clip: ClipSpec) -> float:
    """The largest difference between the logits of two networks, as a part of the largest logit.

    Compared on noise whose brightness changes over time: a clip as ``clip`` has them, several of half the height, and
    one of more frames that are higher.
    """
    t, size = clip.num_frames, clip.crop
    generator = torch.Generator().manual_seed(0)
    differences = []
    for n, frames, height in ((1, t, size), (3, t, max(size // 2, 32)), (1, 2 * t, size + 32)):
        clips = torch.randn(n, 3, frames, height, size, generator=generator)
        clips += torch.randn(n, 3, frames, 1, 1, generator=generator)
        with torch.inference_mode():
            wanted, have = network(clips), exported(clips)
        if have.shape != wanted.shape:
            raise RuntimeError(f"clips {list(clips.shape)} give {list(have.shape)} instead of {list(wanted.shape)}")
        differences.append(float((have - wanted).abs().max() / wanted.abs().max()))
    return float(torch.tensor(differences).max())  # nan, if one is


# -- 8-bit integers ---------------------------------------------------------------------------------------------------


def _calibration_videos(table: VideoTable, tested: VideoTable, count: int, say: Callable[[str], None]) -> VideoTable:
    """At most ``count`` videos, spread over those that are not tested; over those too where there are no others."""
    held_out = set(tested.videos)
    others = [video for video in table.videos if video not in held_out]
    if not others:
        say("the ranges of 8-bit integers are taken from the videos that are tested: there are no others")
        others = list(table.videos)
    steps = np.linspace(0, len(others), min(count, len(others)), endpoint=False)
    return replace(table, videos=tuple(others[int(step)] for step in steps))


def _clips_of(table: VideoTable, clip: ClipSpec) -> Iterator[Tensor]:
    """The middle clip of each video that can be read, normalized: [1, 3, T, H, W].

    Raises:
        DataError: none can be read.
    """
    failures: list[VideoError] = []
    for video in table.videos:
        try:
            yield normalize(read_views(video, clip, Views()))
        except VideoError as error:
            failures.append(error)
    if len(failures) == len(table.videos):
        of = counted(len(failures), "video")
        raise DataError(f"of {of} to calibrate with none could be read; the first: {failures[0]}")


def _quantize(file: Path, clips: Iterator[Tensor]) -> Path:
    """Write the graph with its large layers, weights and inputs, in 8-bit integers, beside ``file``.

    Weights take 7 bits, and a range for each channel. With 8, sums overflow on processors without VNNI, and accuracy
    would depend on the machine. Routing functions stay as they are: they cost nothing, and whole kernels hang on them.
    """
    from onnx import load_model

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> dict[str, Any] | None:
            clip = next(clips, None)
            return None if clip is None else {INPUT: clip.numpy()}

    prepared, out = file.with_name("prepared.onnx"), file.with_name("int8.onnx")
    quant_pre_process(file, prepared, skip_optimization=True, skip_symbolic_shape=True)
    graph = load_model(prepared).graph
    num_sides = {weight.name: len(weight.dims) for weight in graph.initializer}
    over_time = [node.name for node in graph.node if node.op_type == "Conv" and num_sides.get(node.input[1]) == 3]
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["Conv", "MatMul"],
        nodes_to_exclude=over_time,
    )
    return out


def _loss(before: Evaluation, after: Evaluation) -> Int8Loss:
    same = np.ones(len(before.ids), np.bool_)
    if before.several:
        same = (before.said() == after.said()).all(1)
    for head in () if before.several else range(len(before.heads)):
        same &= before.of_head(head).argmax(1) == after.of_head(head).argmax(1)
    return Int8Loss(
        num_videos=len(before.ids),
        metrics=after.shown_metrics(),
        float_metrics=before.shown_metrics(),
        agreement=float(same.mean()),
    )


def _unsaid(text: str) -> None:
    """What is said of the tested videos has been said."""
