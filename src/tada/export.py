"""Export a trained recognizer to one file that runs without tada: ONNX, or PyTorch's own exported program.

One graph takes any number of clips, frames and pixels. The released TAdaConv cannot be exported so: it builds a kernel
per frame, and a graph fixes the groups of a convolution; ours scales the features instead. The file is run and compared
with the network before it is put in place.

An ONNX file can also compute in 8-bit integers (static quantization: their ranges are measured on some clips). The loss
of accuracy is measured on other videos, and written into the file.

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
from tada.models.tadaformer import TAdaFormer
from tada.models.weights import write_card
from tada.recognition.evaluation import choose_videos, evaluate, with_fps_of_run
from tada.recognition.recognizer import Recognizer
from tada.recognition.results import Evaluation
from tada.system.files import scratch_folder, write_whole, writing
from tada.system.locks import holds_file
from tada.system.progress import Work
from tada.system.signals import last_chance
from tada.video.sampling import ClipSpec
from tada.video.transforms import normalize

PROGRAM_SUFFIX = ".pt2"
OPSET = 18
"""ONNX's operator set: what PyTorch's exporter writes without converting, and old enough for most runtimes."""
TOLERANCE = 1e-4
"""The largest allowed difference of logits, relative to the largest logit. Another order of sums gives below 1e-5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Loss:
    """The accuracy lost by 8-bit integers, measured on videos that the network was not trained on."""

    num_videos: int
    """Tested videos."""
    metrics: dict[str, float]
    """Accuracies in 8-bit integers, by the names of ``Evaluation.metrics``."""
    float_metrics: dict[str, float]
    """Accuracies of the network in float."""
    agreement: float
    """Share of the videos for which both predict the same class (in all heads), or the same labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The file that ``export`` wrote, and how close it is to the network."""

    file: Path
    """Its path."""
    num_bytes: int
    """Its size."""
    difference: float
    """The largest difference to the network's logits, relative to the largest logit; before quantization."""
    int8: Int8Loss | None = None
    """The loss by 8-bit integers, where they were asked for."""


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
    """Write a recognizer to one file: ``clips`` [N, 3, T, H, W] float32, normalized -> ``logits`` [N, K].

    Args:
        run: what ``tada.load`` takes.
        out: OUT.onnx, for ONNX Runtime and others; or OUT.pt2, for ``torch.export.load``.
        int8: labeled videos, or what ``read_dataset`` takes: compute in 8-bit integers. Accuracy is measured on the
            videos that ``evaluate`` would choose, the ranges of the integers on the others.
        calibration_clips: number of clips to measure the ranges on, one per video.
        num_workers: processes that decode, as in ``evaluate``.
        overwrite: replace a file that is there.

    Raises:
        OptionError: another kind of file, an existing one, a model that cannot be exported, or a missing package.
        OutputError: ``out`` cannot be written, or another process is writing it.
        CheckpointError: the run holds no model, or a damaged one.
        DataError: the videos of ``int8`` do not fit the model, or none of them can be read.
        RuntimeError: the file does not compute what the network computes: a bug of ours. ``out`` is unchanged.
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

    if int8 is not None:  # read first, so that a mistake in it is told before the work
        table = int8 if isinstance(int8, VideoTable) else read_dataset(Path(int8))
        table = with_fps_of_run(table, Path(run), say).numbered_as(recognizer.heads)
        tested = choose_videos(table, Path(run), None, say)
        calibration = _calibration_videos(table, tested, calibration_clips, say)
    splits = _splits_text(Path(run), say)
    loss: Int8Loss | None = None
    display = Work(f"writing {out.name}", is_shown=show_progress)
    with scratch_folder() as folder, last_chance(lambda: rmtree(folder)), display:
        file = folder / f"float32{suffix}"
        with writing(file):  # the exporters' errors do not name it
            exported = _write(recognizer, file, splits)
        difference = largest_difference(recognizer.model, exported, recognizer.clip)
        if not difference <= TOLERANCE:  # nor nan
            raise RuntimeError(f"{str(out)!r} was not written: its logits differ by {difference:.1g} of the largest")
        if int8 is not None:
            file = _quantize(file, _read_clips(calibration, recognizer.clip))
            _write_card(file, recognizer, splits)
            options: dict[str, Any] = {"num_workers": num_workers, "show_progress": show_progress, "say": _ignore_line}
            loss = _measure_loss(
                evaluate(Path(run), tested, device="cpu", **options), evaluate(file, tested, **options)
            )
            _write_card(file, recognizer, splits, int8=asdict(loss))
        data = file.read_bytes()
    write_whole(out, data)
    return Exported(file=out, num_bytes=len(data), difference=difference, int8=loss)


# -- the graph --------------------------------------------------------------------------------------------------------


def _write(recognizer: Recognizer, file: Path, splits: str | None) -> nn.Module:
    """Write the float32 file, and load it again as a network."""
    clip = recognizer.clip
    # Large enough that no layer has a size of 1, which the exporter would take for a constant.
    side = max(clip.crop, 96)
    example = torch.zeros(2, 3, 4 * max(clip.num_frames, 2), side, side)
    with _quiet():
        if file.suffix == PROGRAM_SUFFIX:
            axes = dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC)
            program = torch.export.export(recognizer.model, (example,), dynamic_shapes=(axes,))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it has paths of this machine
            _allow_all_sizes(program)
            program.example_inputs = None  # they would be written too, and be larger than some networks
            # Into memory first: torch's own writer ends the whole process when the disk is full.
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


def _allow_all_sizes(program: ExportedProgram) -> None:
    """Remove the limits on sizes, so that the program takes all clips that its network takes.

    The exporter records facts about the example, such as that the last feature map is wider than one pixel, and the
    program would refuse clips of 32 pixels. The operators do not depend on these facts.
    """
    for size in program.range_constraints:
        program.range_constraints[size] = ValueRanges(1, int_oo)


def _write_card(file: Path, recognizer: Recognizer, splits: str | None, **more: Any) -> None:
    """Write tada's card and splits into an ONNX file, and remove the exporter's own notes.

    These notes are over a tenth of a small file, and hold paths of this machine.
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]  # sizes of intermediate tensors, which every runtime infers
    entries = {} if splits is None else {SPLITS_ENTRY: splits}
    onnx.helper.set_model_props(model, {CARD_ENTRY: _card_text(recognizer, **more), **entries})
    onnx.save_model(model, file)


def _card_text(recognizer: Recognizer, **more: Any) -> str:
    mean, std = recognizer.clip.normalization
    return write_card(recognizer.card, mean=mean, std=std, **more)


def _splits_text(run: Path, say: Callable[[str], None]) -> str | None:
    """The run's list of videos (hashes and splits) as text for the file; None where the run has no list."""
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
    """Silence the exporters' own deprecation warnings, and that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            # It warns of kernels in channels-last memory; they are written correctly, as the comparison shows.
            warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def largest_difference(network: nn.Module, exported: nn.Module, clip: ClipSpec) -> float:
    """The largest difference between the logits of two networks, relative to the largest logit.

    Compared on noise whose brightness changes over time: one clip of ``clip``'s size, three of half the height, and one
    of twice the frames and a larger height, by an odd number; of a network of patches by an odd number of them.
    """
    t, size = clip.num_frames, clip.crop
    generator = torch.Generator().manual_seed(0)
    differences = []
    patch = network.config.patch if isinstance(network, TAdaFormer) else 1
    half, more = max(max(size // 2, 32) // patch, 1) * patch, (33 if patch == 1 else 3 * patch)
    for n, frames, height in ((1, t, size), (3, t, half), (1, 2 * t, size + more)):
        clips = torch.randn(n, 3, frames, height, size, generator=generator)
        clips += torch.randn(n, 3, frames, 1, 1, generator=generator)
        with torch.inference_mode():
            wanted, have = network(clips), exported(clips)
        if have.shape != wanted.shape:
            raise RuntimeError(f"clips {list(clips.shape)} give {list(have.shape)} instead of {list(wanted.shape)}")
        differences.append(float((have - wanted).abs().max() / wanted.abs().max()))
    return float(torch.tensor(differences).max())  # nan if one of them is


# -- 8-bit integers ---------------------------------------------------------------------------------------------------


def _calibration_videos(table: VideoTable, tested: VideoTable, count: int, say: Callable[[str], None]) -> VideoTable:
    """At most ``count`` videos, evenly spread over those that are not tested, or over the tested if those are all."""
    held_out = set(tested.videos)
    others = [video for video in table.videos if video not in held_out]
    if not others:
        say("the ranges of 8-bit integers are taken from the videos that are tested: there are no others")
        others = list(table.videos)
    steps = np.linspace(0, len(others), min(count, len(others)), endpoint=False)
    return replace(table, videos=tuple(others[int(step)] for step in steps))


def _read_clips(table: VideoTable, clip: ClipSpec) -> Iterator[Tensor]:
    """The middle clip of each video that can be read, normalized: [1, 3, T, H, W].

    Raises:
        DataError: none can be read.
    """
    failures: list[VideoError] = []
    for video in table.videos:
        try:
            yield normalize(read_views(video, clip, Views()), *clip.normalization)
        except VideoError as error:
            failures.append(error)
    if len(failures) == len(table.videos):
        videos = counted(len(failures), "video")
        raise DataError(f"none of {videos} for calibration could be read; the first: {failures[0]}")


def _quantize(file: Path, clips: Iterator[Tensor]) -> Path:
    """Quantize weights and inputs of the graph's large layers to 8-bit integers, in a new file beside ``file``.

    Weights take 7 bits, and a range per channel. With 8 bits, sums overflow on processors without VNNI, and accuracy
    would depend on the machine. Routing functions stay float: they cost little, and their errors scale whole kernels.
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


def _measure_loss(before: Evaluation, after: Evaluation) -> Int8Loss:
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


def _ignore_line(text: str) -> None:
    """Print nothing: ``choose_videos`` has already told about the tested videos."""
