"""Convert the authors' released checkpoints to models that ``tada.load`` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models import create_model
from tada.models.weights import ModelCard, convert_published, read_weights, restore, save_model
from tada.system.documents import read_bytes
from tada.system.locks import holds, is_used
from tada.video.sampling import ClipSpec

_TEST_CLIP = ClipSpec(num_frames=8, mode="official", short_side=256, crop=256)
PROTOCOLS = {
    "k400-8x8": _TEST_CLIP,
    "k400-16x5": replace(_TEST_CLIP, num_frames=16, interval=5),
    "ssv2-8": replace(_TEST_CLIP, sampling="segment"),
    "ssv2-16": replace(_TEST_CLIP, num_frames=16, sampling="segment"),
}
"""The clips of the published results, by data set and number of frames (x interval)."""


@holds("out")
def convert_checkpoint(
    file: Path, out: Path, *, clip: ClipSpec, labels: Path | None = None, license: str | None = None
) -> ModelCard:
    """Convert a released TAda2D or TAdaConvNeXt checkpoint to a folder for ``tada.load``.

    Args:
        file: .pyth, .pth, .pt or .safetensors.
        out: a new or empty folder.
        clip: the clips that the network was trained on: one of PROTOCOLS, or others.
        labels: a text file with one class name per line, in the order of the logits. Without it classes are called
            class_000, class_001, ...
        license: the license of the weights, which a checkpoint does not state.

    Raises:
        CheckpointError: the file is no released checkpoint, is damaged, or holds more than tensors and plain values.
        OptionError: the number of labels is not the network's, or ``out`` is not empty.
        OutputError: ``out`` cannot be written. Nothing is written in any of these cases.
    """
    if is_used(out):
        raise OptionError(f"{str(out)!r} is not empty: choose another folder")
    try:
        name, weights = convert_published(read_weights(file))
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if str(file) in message else f"{str(file)!r}: {message}") from error
    num_classes = weights["head.weight"].shape[0]
    model = create_model(name, num_classes=num_classes)
    restore(model, weights)
    card = ModelCard(
        model=name,
        labels=_default_labels(num_classes) if labels is None else _read_labels(labels, num_classes, file),
        clip=clip,
        trained_from=f"the released checkpoint {file.name}",
        made_by=f"tada convert {file.name}",
        license=license,
    )
    save_model(out, model, card)
    return card


def protocol(name: str) -> ClipSpec:
    """The clips of a published result, by its name in PROTOCOLS.

    Raises:
        UnknownNameError: no such name.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError.of("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def _default_labels(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class_{i:03d}" for i in range(num_classes))


def _read_labels(file: Path, num_classes: int, checkpoint: Path) -> tuple[str, ...]:
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"{str(file)!r} cannot be read as text: {error}; give one name on each line") from error
    labels = tuple(line.strip() for line in lines)
    if len(labels) != num_classes:
        raise OptionError(
            f"{str(file)!r} has {len(labels)} lines, {str(checkpoint)!r} has {num_classes} classes; give the name of "
            "each on a line of its own, in the order of the logits"
        )
    seen: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label or label in seen:
            other = f"the name of line {seen[label]} again" if label else "empty"
            raise OptionError(f"{str(file)!r}, line {number} is {other}; each class needs a name of its own")
        seen[label] = number
    return labels
