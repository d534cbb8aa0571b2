"""The first hour with a GPU: are its numbers right, how fast is it, and what would make it wait?

    python benchmarks/gpu.py [--networks tada2d_r50 ...] [--batches 8 32] [--compiled]
    python benchmarks/gpu.py --device cpu --small        # the same on tiny networks, to try the script

One table, and the same as JSON (runs/gpu.json); the last line says whether all numbers agree with the CPU's, and the
exit code is 1 if not. Its parts:

    numbers    logits (of the network and of its inference form) and gradients, against those of the CPU in fp32: in
               fp32 (ieee), in fp32 with TF32, and in bf16: the norm of the difference, as a fraction of the norm
    training   steps as `tada train` takes them: clips from pinned memory, normalization on the device, autocast, fused
               optimizer; --compiled adds torch.compile
    inference  the inference form in the type of its precision; --compiled adds torch.compile with CUDA graphs
    copies     clips from the host to the device, from pageable memory and as training copies them
    loader     clips per second that the worker processes decode and augment, of drawn videos of 1280x720

"matrix" is the share of the rate at which this device multiplies large matrices in that precision, as measured at the
start; "memory" the share of its copy rate, if every operator reads its inputs and writes its outputs once (caches and
compiled code move less, so it may exceed 100 %). "peak" is the most memory held. The loader's "headroom" is its rate as
a multiple of what the fastest training takes: below 1 the GPU waits.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from forms import stir
from loader import draw_videos
from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation, ResumableBatches, ResumableLoader, TrainingClips
from tada.models import create_model
from tada.models.fuse import fuse
from tada.models.tadaformer import TAdaBlock
from tada.system.accelerator import copy_to_device, fast_numerics, fuses_optimizer
from tada.video.sampling import ClipSpec
from tada.video.transforms import normalize
from timing import (
    PRECISIONS,
    Chip,
    Run,
    Spread,
    device_of,
    interleaved,
    measure_chip,
    own_precisions,
    parser_of,
    show,
    write_report,
)

NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "tada2d_r50": (8, {}),
    "tadaconvnext_t": (16, {}),
    "tadaconvnextv2_t": (16, {}),
    "tadaformer_b16": (16, {}),
    "tada_lite0": (8, {}),
    "r3d_r50": (8, {"adapted": True}),
    "slowfast_r50": (32, {"adapted": True}),
}
"""One network of each family -> frames of its clips, options."""
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "tada2d_tiny": (4, {"widths": (8, 8, 8, 8), "stem_width": 8}),
    "tadaconvnext_mini": (4, {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8)}),
    "tadaformer_tiny": (4, {"width": 24, "depth": 1, "routing_head_channels": 3}),
    "r3d_tiny": (4, {"width": 8, "adapted": True}),
}
LIMITS = {"fp32": (1e-4, 1e-2), "fp32, TF32": (2e-2, 2e-1), "bf16": (1e-1, 5e-1)}
"""Largest differences of logits and of gradients that are taken for rounding. (ReLUs near zero switch by rounding, and
with them parts of the gradient; other mistakes give 1 and more.)"""
CLASSES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of the table."""

    part: str
    network: str = ""
    precision: str = ""
    batch: int | None = None
    clips_per_second: float | None = None
    milliseconds: Spread | None = None
    matrix_share: float | None = None
    memory_share: float | None = None
    peak_bytes: int | None = None
    difference: float | None = None
    """Norm of the difference from the CPU's numbers, as a fraction of their norm."""
    note: str = ""
    is_wrong: bool = False

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        return (
            self.part,
            self.network,
            self.precision,
            "" if self.batch is None else str(self.batch),
            "" if self.clips_per_second is None else f"{self.clips_per_second:,.1f}",
            "" if self.milliseconds is None else self.milliseconds.text(1),
            *("" if share is None else f"{100 * share:.0f} %" for share in (self.matrix_share, self.memory_share)),
            "" if self.peak_bytes is None else f"{self.peak_bytes / 1e9:.2f}",
            "" if self.difference is None else f"{self.difference:.1e}",
            ("WRONG " if self.is_wrong else "") + self.note,
        )


COLUMNS = (
    *("part", "network", "precision", "batch", "clips/s", "ms (quartiles)", "matrix", "memory", "peak GB"),
    *("difference", ""),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the report; 1 if numbers are wrong or a row failed."""
    parser = parser_of(__doc__, rounds=10)
    parser.set_defaults(device="cuda")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *SMALL], help="by default one of each family")
    parser.add_argument("--batches", nargs="+", type=int, help="clips at a time; by default 1, 8 and 32")
    parser.add_argument("--side", type=int, help="pixels of a clip; by default 224")
    parser.add_argument("--num-workers", type=int, default=min(os.cpu_count() or 1, 16), help="of the loader")
    parser.add_argument("--compiled", action="store_true", help="with rows of torch.compile: some minutes each")
    parser.add_argument("--small", action="store_true", help="tiny networks and clips, to try the script")
    arguments = parser.parse_args(argv)
    device = device_of(arguments)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here: try the script with --device cpu --small")
    known = SMALL if arguments.small else NETWORKS
    side = arguments.side or (32 if arguments.small else 224)
    batches = arguments.batches or ([2] if arguments.small else [1, 8, 32])
    rounds = min(arguments.rounds, 3) if arguments.small else arguments.rounds
    names = arguments.networks or list(known)
    chips = chips_of(device)
    rows = chip_rows(chips)
    for name in names:
        frames, options = (known | NETWORKS | SMALL)[name]
        network = Measured(name, options, frames, side, device, chips, rounds)
        rows += network.numbers()
        for batch in batches:
            for precision in precisions_of(device):
                rows.append(network.timed("training", network.training_step, precision, batch))
                rows.append(network.timed("inference", network.inference, precision, batch))
                if arguments.compiled:
                    rows.append(network.timed("training", network.training_step, precision, batch, compiled=True))
                    rows.append(network.timed("inference", network.inference, precision, batch, compiled=True))
    rows += copy_rows(device, max(batches), side, rounds)
    taken = max((row.clips_per_second or 0 for row in rows if row.part == "training"), default=0)
    rows += loader_rows(side, arguments.num_workers, taken, small=arguments.small)
    show(f"The first hour with {device}", COLUMNS, [row.cells() for row in rows], width=200)
    report = [asdict(row) for row in rows]
    write_report(arguments, "gpu", device, rows=report, chips={key: asdict(chip) for key, chip in chips.items()})
    wrong = [row for row in rows if row.is_wrong]
    print(f"{len(wrong)} rows are WRONG" if wrong else "all numbers agree with those of the CPU")
    return 1 if wrong else 0


# --- precisions -------------------------------------------------------------------------------------------------------


def precisions_of(device: torch.device) -> list[str]:
    """The precisions to measure on a device."""
    tf32 = ["fp32, TF32"] if device.type == "cuda" else []
    return ["fp32", *tf32, *(["bf16"] if "bf16" in own_precisions(device) else [])]


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block products and convolutions in fp32 use TF32, or do not: "fp32" is without it."""
    convolutions = torch.backends.cudnn.allow_tf32
    with fast_numerics(device):
        if device.type == "cuda" and precision == "fp32":
            torch.set_float32_matmul_precision("highest")  # ``fast_numerics`` restores it
            torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = convolutions


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Casts to bf16, for a row of that precision; without the cache, which would keep weights of earlier steps."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def chips_of(device: torch.device) -> dict[str, Chip]:
    """Rates of the device by precision."""
    found = {}
    for precision in precisions_of(device):
        key = precision.partition(",")[0]
        with computing_in(precision, device):
            found[precision] = measure_chip(device, [key])
    return found


def chip_rows(chips: dict[str, Chip]) -> list[Row]:
    """What the chip does at best."""
    copies = max(chip.copy_bytes_per_second for chip in chips.values())
    rows = [Row(part="chip", note=f"copies at {copies / 1e9:,.0f} GB/s, bytes read and written")]
    for precision, chip in chips.items():
        (rate,) = chip.multiply_adds_per_second.values()
        rows.append(Row(part="chip", precision=precision, note=f"multiplies at {2 * rate / 1e12:,.1f} TFLOP/s"))
    return rows


# --- networks ---------------------------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, each tensor once for each operator; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


@dataclass(frozen=True, slots=True)
class Measured:
    """A network, its clips, and where it is measured."""

    name: str
    options: dict[str, Any]
    frames: int
    side: int
    device: torch.device
    chips: dict[str, Chip]
    rounds: int

    def network(self) -> nn.Module:
        """With weights as after training: a new network's routing functions compute nothing."""
        torch.manual_seed(0)
        network = create_model(self.name, num_classes=CLASSES, num_frames=self.frames, **self.options)
        stir(network)
        for module in network.modules():
            if isinstance(module, TAdaBlock):
                nn.init.normal_(module.expand.weight, std=0.02)
        return network

    def clips(self, batch: int) -> Tensor:
        """Uint8 [N, T, H, W, 3], on the host."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.frames, self.side, self.side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def numbers(self) -> list[Row]:
        """Logits and gradients against those of the CPU."""
        rows = []
        pixels = normalize(self.clips(2))
        try:
            wanted = self._numbers(torch.device("cpu"), pixels, "fp32")
            for precision in precisions_of(self.device):
                with computing_in(precision, self.device):
                    found = self._numbers(self.device, pixels, precision)
                for what, other in wanted.items():
                    difference = float((found[what] - other).norm() / other.norm())
                    limit = LIMITS[precision][what.startswith("gradient")]
                    rows.append(
                        Row(
                            part="numbers",
                            network=self.name,
                            precision=precision,
                            difference=difference,
                            note=what,
                            is_wrong=not difference <= limit,
                        )
                    )
        except Exception as error:  # the other rows are worth having all the same
            rows.append(_failed("numbers", self.name, error))
        return rows

    def _numbers(self, device: torch.device, pixels: Tensor, precision: str) -> dict[str, Tensor]:
        """Logits of the network and of its inference form, and the gradient of the first layer; on the host."""
        network, pixels = self.network().to(device).eval(), pixels.to(device)
        fused = fuse(network, dtype=PRECISIONS[precision.partition(",")[0]])
        with autocast(precision, device):
            logits = network(pixels)
        logits.float().logsumexp(1).sum().backward()
        gradient = next(p.grad for p in network.parameters() if p.grad is not None)
        found = {
            "logits": logits,
            "logits of the inference form": fused(pixels),
            "gradient of the first layer": gradient,
        }
        return {key: value.detach().float().cpu() for key, value in found.items()}

    def timed(self, part: str, build: Callable[..., Run], precision: str, batch: int, *, compiled: bool = False) -> Row:
        """Time a step of training or of inference."""
        words = "compiled" if compiled else ""
        try:
            _free(self.device)
            with computing_in(precision, self.device):
                run, label = build(precision, batch, compiled), f"{part} {self.name} {precision} {batch} {words}"
                traffic, counter = Traffic(), FlopCounterMode(display=False)
                if not compiled:
                    with counter, traffic:
                        run()
                (seconds,) = interleaved({label: run}, rounds=self.rounds, device=self.device, most_seconds=60).values()
            spread = Spread.of(seconds)
            chip, key = self.chips[precision], precision.partition(",")[0]
            return Row(
                part=part,
                network=self.name,
                precision=precision,
                batch=batch,
                clips_per_second=batch / spread.median,
                milliseconds=Spread.of([1000 * s for s in seconds]),
                matrix_share=None if compiled else chip.matrix_share(counter.get_total_flops() / 2, spread.median, key),
                memory_share=None if compiled else chip.copy_share(traffic.num_bytes, spread.median),
                peak_bytes=torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
                note=words,
            )
        except torch.cuda.OutOfMemoryError:
            return Row(part=part, network=self.name, precision=precision, batch=batch, note=f"{words} out of memory")
        except Exception as error:  # as above
            return _failed(part, f"{self.name} {words}".strip(), error)

    def training_step(self, precision: str, batch: int, compiled: bool) -> Run:
        """A step as `tada train` takes it, without the loader."""
        network = self.network().to(self.device).train()
        fused = fuses_optimizer(self.device) or None
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=fused)
        if compiled:
            network.compile()
        clips, labels = self.clips(batch), torch.arange(batch) % CLASSES

        def step() -> object:
            pixels, targets = copy_to_device((clips, labels), self.device)
            with autocast(precision, self.device):
                loss = F.cross_entropy(network(normalize(pixels)), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            return loss

        return step

    def inference(self, precision: str, batch: int, compiled: bool) -> Run:
        """The inference form, as `tada evaluate` and `tada predict` run it."""
        network = self.network().to(self.device).eval()
        fused = fuse(network, dtype=PRECISIONS[precision.partition(",")[0]], compile=compiled)
        clips = self.clips(batch)

        @torch.inference_mode()
        def run() -> object:
            return fused(normalize(copy_to_device(clips, self.device)))

        return run


def _failed(part: str, name: str, error: Exception) -> Row:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Row(part=part, network=name, note=f"{type(error).__name__}: {line[:120]}", is_wrong=True)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# --- what feeds them --------------------------------------------------------------------------------------------------


def copy_rows(device: torch.device, batch: int, side: int, rounds: int) -> list[Row]:
    """Copies of a batch of clips to the device."""
    clips = torch.randint(0, 256, (batch, 8, side, side, 3), dtype=torch.uint8)
    runs: dict[str, Run] = {
        "pageable": lambda: clips.to(device),
        "as training copies": lambda: copy_to_device(clips, device),
    }
    if device.type == "cuda":
        pinned = clips.pin_memory()
        runs["pinned before"] = lambda: copy_to_device(pinned, device)
    seconds = interleaved(runs, rounds=rounds, device=device)
    rows = []
    for name, values in seconds.items():
        spread = Spread.of(values)
        rows.append(
            Row(
                part="copies",
                batch=batch,
                clips_per_second=batch / spread.median,
                milliseconds=Spread.of([1000 * value for value in values]),
                note=f"{name}: {clips.numel() / spread.median / 1e9:.1f} GB/s",
            )
        )
    return rows


def loader_rows(side: int, num_workers: int, taken: float, *, small: bool) -> list[Row]:
    """Clips per second that the loader makes, and how that compares with the clips that training takes."""
    spec = ClipSpec(num_frames=4 if small else 8, interval=1 if small else 8, short_side=side, crop=side)
    augmentation = Augmentation(short_side_range=(side, side + side // 4), flip_swaps=[{}], reverse_swaps=[{}])
    try:
        with tempfile.TemporaryDirectory() as folder:
            draw_videos(Path(folder), 2 if small else 16, 1.0 if small else 10.0)
            clips = TrainingClips(read_dataset(Path(folder)), spec, augmentation, seed=0)
            batch_size = min(len(clips), 8)
            batches = ResumableBatches(len(clips), batch_size=batch_size, last_batch="fill", seed=0)
            loader = ResumableLoader(clips, batches, num_workers=0 if small else num_workers)
            list(loader)  # the workers start
            epochs = 1 if small else 8
            started = time.perf_counter()
            count = sum(len(batch.clips) for _ in range(epochs) for batch in loader)
            rate = count / (time.perf_counter() - started)
            loader.close()
    except Exception as error:  # as above
        return [_failed("loader", "", error)]
    headroom = f"headroom {rate / taken:.2f} of the fastest training" if taken else ""
    return [Row(part="loader", clips_per_second=rate, note=f"{loader.num_workers} workers; {headroom}")]


if __name__ == "__main__":
    sys.exit(main())
