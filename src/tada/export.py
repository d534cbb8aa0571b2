"""A trained recogniser as one file that needs no tada: ONNX, or PyTorch's own exported program.

One graph serves any number of clips, of frames and of pixels. That takes TAdaConv's exact form with the scale moved
off the kernel: the released one builds a kernel for each frame, so that its number of groups is fixed in a graph. What
was written is run and compared with the network before it is put in place.

An ONNX file can also compute in 8-bit integers. Their ranges are found by running some clips (static quantization), and
what that costs in accuracy is measured on others, and said in the file.

Shapes: N clips, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tada.data.annotations import read_dataset
from tada.data.clips import TestVideos, Views, read_views
from tada.data.table import VideoTable
from tada.errors import DataError, OptionError, VideoError
from tada.evaluation import choose_videos, evaluate
from tada.files import write_whole
from tada.loading import load
from tada.models.exported import CARD_ENTRY, INPUT, ONNX_SUFFIX, OUTPUT, OnnxNetwork, open_session
from tada.models.weights import write_card
from tada.predict import Recognizer
from tada.results import Evaluation
from tada.video.sampling import ClipSpec
from tada.video.transforms import MEAN, STD, normalise

if TYPE_CHECKING:
    from onnx import ModelProto

PROGRAM_SUFFIX = ".pt2"
OPSET = 18
"""Of ONNX: the oldest that PyTorch's exporter writes without converting, so the one that most runtimes read."""
TOLERANCE = 1e-4
"""How far logits may be from the network's, as a part of the largest: ten times what sums in another order give."""


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
    """Part of the videos for which both find the same most probable class (of all heads)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What ``export`` wrote."""

    file: Path
    num_bytes: int
    difference: float
    """The largest difference to the network's logits, as a part of the largest logit; before 8-bit integers."""
    int8: Int8Loss | None = None


def export(
    run: str | PathLike[str],
    out: Path,
    *,
    int8: Path | VideoTable | None = None,
    root: Path | None = None,
    calibration_clips: int = 128,
    num_workers: int | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write a recogniser as one file: ``clips`` [N, 3, T, H, W] float32, normalised -> ``logits`` [N, K].

    Args:
        run: what ``tada.load`` takes.
        out: OUT.onnx, for ONNX Runtime and others; or OUT.pt2, for ``torch.export.load``. It is replaced if it is there.
        int8: labelled videos, as ``evaluate`` takes them: compute in 8-bit integers. Their ranges come from clips of
            videos the run was trained on, if there are such; accuracy is measured on those that ``evaluate`` would
            choose.
        root: where the videos of ``int8`` lie, if it is a list.
        calibration_clips: clips that the ranges are taken from, spread over all videos.
        num_workers: processes that decode, as in ``evaluate``.

    Raises:
        OptionError: another kind of file, a model that cannot be exported, or a package is missing.
        DataError: ``int8`` does not fit the model.
        RuntimeError: what was written does not compute what the network does: a fault of ours. ``out`` is as it was.
    """
    suffix = out.suffix.lower()
    if suffix not in (ONNX_SUFFIX, PROGRAM_SUFFIX):
        raise OptionError(f"{str(out)!r} should end in {ONNX_SUFFIX} or {PROGRAM_SUFFIX} (PyTorch), as the kind of file")
    if int8 is not None and suffix != ONNX_SUFFIX:
        raise OptionError(f"8-bit integers are written as ONNX: let {str(out)!r} end in {ONNX_SUFFIX}")
    if suffix == ONNX_SUFFIX:
        _check_installed(out)
    recognizer = load(run, device="cpu")
    if not isinstance(recognizer, Recognizer):
        raise OptionError(f"{str(run)!r} is a localizer; export the recognizer whose features it reads")
    if isinstance(recognizer.model, OnnxNetwork):
        raise OptionError(f"{str(run)!r} is an exported file already; give the run it comes from")
    out.parent.mkdir(parents=True, exist_ok=True)
    network, clip = recognizer.model, recognizer.clip
    if suffix == PROGRAM_SUFFIX:
        data = _written_program(network, clip, _card_text(recognizer))
        program = torch.export.load(io.BytesIO(data)).module()
        difference = largest_difference(network, program, clip)
        _check_difference(difference, out)
        write_whole(out, data)
        return Exported(file=out, num_bytes=len(data), difference=difference)

    with TemporaryDirectory(prefix="tada_export_") as folder:
        file = Path(folder) / "float32.onnx"
        model = _onnx_graph(network, clip)
        _save_onnx(model, file, _card_text(recognizer))
        difference = largest_difference(network, open_session(file), clip)
        _check_difference(difference, out)
        loss = None
        if int8 is not None:
            table = int8 if isinstance(int8, VideoTable) else read_dataset(int8, root=root)
            table = table.numbered_as(recognizer.heads)
            tested = choose_videos(table, Path(run), None, say)
            calibration = _calibration_videos(table, tested, calibration_clips, say)
            quantized = Path(folder) / "int8.onnx"
            model = _quantized(file, quantized, _clips_of(calibration, clip))
            _save_onnx(model, quantized, _card_text(recognizer))
            arguments: dict[str, Any] = {"num_workers": num_workers, "show_progress": show_progress}
            before = evaluate(Path(run), tested, device="cpu", say=_hush, **arguments)
            after = evaluate(quantized, tested, say=_hush, **arguments)
            loss = _loss(before, after)
            _save_onnx(model, quantized, _card_text(recognizer, int8=asdict(loss)))
            file = quantized
        data = file.read_bytes()
    write_whole(out, data)
    return Exported(file=out, num_bytes=len(data), difference=difference, int8=loss)


# -- float32 ----------------------------------------------------------------------------------------------------------


def largest_difference(network: nn.Module, exported: nn.Module, clip: ClipSpec) -> float:
    """The largest difference between the logits of two networks, as a part of the largest logit.

    Noise is compared, whose brightness changes over time: a clip as ``clip`` has them, and batches of others, of half the
    height and of twice the frames.
    """
    t, size = clip.num_frames, clip.crop
    flat = max(size // 2, 32)
    found = 0.0
    generator = torch.Generator().manual_seed(0)
    for n, frames, height, width in ((1, t, size, size), (3, t, flat, size), (2, 2 * t, flat, size)):
        clips = torch.randn(n, 3, frames, height, width, generator=generator)
        clips += torch.randn(n, 3, frames, 1, 1, generator=generator)
        with torch.inference_mode():
            wanted, have = network(clips), exported(clips)
        if have.shape != wanted.shape:
            raise RuntimeError(f"clips {list(clips.shape)} give {list(have.shape)} instead of {list(wanted.shape)}")
        found = max(found, float((have - wanted).abs().max() / wanted.abs().max()))
    return found


def _check_difference(difference: float, out: Path) -> None:
    if not difference <= TOLERANCE:  # nor nan
        raise RuntimeError(f"{out} was not written: its logits differ by {difference:.1g} of the largest")


def _written_program(network: nn.Module, clip: ClipSpec, card: str) -> bytes:
    axes = {axis: Dim.DYNAMIC for axis in (0, 2, 3, 4)}
    with _quiet():
        program: ExportedProgram = torch.export.export(network, (_example(clip),), dynamic_shapes=(axes,))
        written = io.BytesIO()
        torch.export.save(program, written, extra_files={CARD_ENTRY: card})
    return written.getvalue()


def _onnx_graph(network: nn.Module, clip: ClipSpec) -> ModelProto:
    axes = {0: "batch", 2: "frames", 3: "height", 4: "width"}
    with _quiet():
        program = torch.onnx.export(
            network,
            (_example(clip),),
            dynamic_shapes=(axes,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _example(clip: ClipSpec) -> Tensor:
    """A batch that no size of which is 1, for that would be taken for a constant: [N, 3, T, H, W]."""
    return torch.zeros(2, 3, max(clip.num_frames, 2), clip.crop, clip.crop)


def _save_onnx(model: ModelProto, file: Path, card: str) -> None:
    import onnx

    onnx.helper.set_model_props(model, {CARD_ENTRY: card})
    onnx.save_model(model, file)


def _card_text(recognizer: Recognizer, **more: Any) -> str:
    return write_card(recognizer.card, mean=MEAN, std=STD, **more)


def _check_installed(out: Path) -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"{str(out)!r}: ONNX needs the packages onnx, onnxscript and onnxruntime: pip install 'tada-video[export]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to themselves what the exporters say of themselves: deprecations inside them, and no torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# -- 8-bit integers ---------------------------------------------------------------------------------------------------


def _calibration_videos(
    table: VideoTable, tested: VideoTable, count: int, say: Callable[[str], None]
) -> VideoTable:
    """At most ``count`` videos, spread over those that are not tested; over those too where there are no others."""
    held_out = set(tested.videos)
    others = [video for video in table.videos if video not in held_out]
    if not others:
        say("the ranges of 8-bit integers are taken from the videos that are tested: there are no others")
        others = list(table.videos)
    steps = np.linspace(0, len(others), min(count, len(others)), endpoint=False)
    return replace(table, videos=tuple(others[int(step)] for step in steps))


def _clips_of(table: VideoTable, clip: ClipSpec) -> Iterator[Tensor]:
    """The middle clip of each video that can be read, normalised: [1, 3, T, H, W].

    Raises:
        DataError: none can be read.
    """
    failures: list[VideoError] = []
    for video in table.videos:
        try:
            yield normalise(read_views(video, clip, Views()))
        except VideoError as error:
            failures.append(error)
    if len(failures) == len(table.videos):
        raise DataError(f"none of the {len(failures)} videos to calibrate with could be read; the first: {failures[0]}")


def _quantized(file: Path, out: Path, clips: Iterator[Tensor]) -> ModelProto:
    """The graph of ``file`` with weights and features of its convolutions and layers in 8 bits.

    Weights in 7, a range for each channel: with 8, processors without VNNI overflow, and accuracy would depend on the
    machine. Routing functions stay as they are: they cost nothing, and every frame's kernel hangs on them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def get_next(self) -> dict[str, Any] | None:
            batch = next(clips, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = out.with_name("prepared.onnx")
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    return onnx.load(out)


def _loss(before: Evaluation, after: Evaluation) -> Int8Loss:
    same = np.ones(len(before.ids), np.bool_)
    for head in range(len(before.heads)):
        same &= before.of_head(head).argmax(1) == after.of_head(head).argmax(1)
    return Int8Loss(
        num_videos=len(before.ids),
        metrics=after.metrics(),
        float_metrics=before.metrics(),
        agreement=float(same.mean()),
    )


def _hush(text: str) -> None:
    """What is said of the tested videos has been said."""
