"""Convert the authors' released checkpoints to models that ``tada.load`` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from tada.errors import CheckpointError, OptionError, why_unread
from tada.models import check_clips_of, create_model, with_normalization
from tada.models.class_names import class_lists, class_names
from tada.models.published import DATA_SETS, PROTOCOLS, fitting_protocols
from tada.models.released_names import join_heads, network_of
from tada.models.weights import ModelCard, convert_published, other_numbers, read_checkpoint, save_weights
from tada.system.documents import parse_json, read_bytes, typed
from tada.system.locks import holds, is_used
from tada.video.sampling import ClipSpec, clip_in_words

_DATA_SET_OF_CLASSES = {(400,): "k400", (710,): "k710", (174,): "ssv2", (97, 300): "epic100"}
"""The data set of a released checkpoint, by the number of classes of each head."""
_LISTS_OF_HEADS = {"epic100": ("epic100_verbs", "epic100_nouns")}
"""Data sets of several heads: their lists of class names."""


@holds("out")
def convert_checkpoint(
    file: Path,
    out: Path,
    *,
    clip: ClipSpec | None = None,
    labels: Path | str | None = None,
    license: str | None = None,
    say: Callable[[str], None] = print,
) -> ModelCard:
    """Convert a released checkpoint to a folder for ``tada.load``.

    Names and shapes of the weights tell the network and the data set.

    Args:
        file: .pyth, .pth, .pt or .safetensors.
        out: a new or empty folder.
        clip: the clips that the network is tested with: one of PROTOCOLS, or others. None: those of the settings in
            the file; if it has none, those of the published test of this network on this data set.
        labels: a text file with one class name per line, in the order of the logits; or the name of a list that comes
            with tada: one of ``class_lists()``, or "epic100". None: the list of the data set; without one, classes are
            called class_000, class_001, ...
        license: the license of the weights, which a checkpoint does not state.
        say: receives a line for each thing that the file did not state, or that was changed.

    Raises:
        CheckpointError: the file is no released checkpoint, is damaged, or holds more than tensors and plain values.
        OptionError: the number of labels is not the network's, its clips are unknown or too small for it, or ``out`` is
            not empty.
        OutputError: ``out`` cannot be written. Nothing is written in any of these cases.
    """
    if is_used(out):
        raise OptionError(f"{str(out)!r} is not empty: choose another folder")
    try:
        released, settings = read_checkpoint(file)
        name, weights = convert_published(released)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if str(file) in message else f"{str(file)!r}: {message}") from error
    num_classes = weights["head.weight"].shape[0]
    head_sizes = join_heads(released)[1]
    sizes = tuple(head_sizes.values()) or (num_classes,)
    data_set = _DATA_SET_OF_CLASSES.get(sizes)
    others = other_numbers(weights)
    notes = [f"{file.name} holds {others}: the model is saved in float32"] if others else []
    options = network_of(released)[1]
    # A TAdaFormer of another grid than 224 x 224 pixels give was trained at another size.
    side = options["grid"][0] * weights["stem.weight"].shape[-1] if "grid" in options else None
    card = ModelCard(
        model=name,
        options=options,
        labels=_find_labels(labels, data_set, sizes, file, notes),
        head_sizes=head_sizes,
        clip=_find_clip(clip, clip_of_settings(settings), name, data_set, side, file, notes),
        trained_from=f"the released checkpoint {file.name}",
        made_by=f"tada convert {file.name}",
        license=license,
    )
    with torch.device("meta"):
        network = create_model(name, num_classes=num_classes, **options)
    check_clips_of(network, card.clip.num_frames, card.clip.crop)
    in_float32 = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    save_weights(out, in_float32, card)
    for note in notes:
        say(note)
    return card


# -- clips ------------------------------------------------------------------------------------------------------------


def clip_of_settings(text: str) -> ClipSpec | None:
    """The test clips by the settings that the released code saves with the weights, as JSON; None if it has none."""
    try:
        data = parse_json(text)["DATA"]
        is_segment = data["SAMPLING_MODE"] == "segment_based"
        values = {
            "num_frames": data["NUM_INPUT_FRAMES"],
            "sampling": "segment" if is_segment else "interval",
            "fps": data["TARGET_FPS"],
            "mode": "official",
            "short_side": data["TEST_SCALE"],
            "crop": data["TEST_CROP_SIZE"],
            "mean": data.get("MEAN"),
            "std": data.get("STD"),
        }
        return typed(ClipSpec, values if is_segment else values | {"interval": data["SAMPLING_RATE"]})
    except (ValueError, KeyError, TypeError):  # other code's text
        return None


def _find_clip(
    wanted: ClipSpec | None,
    own: ClipSpec | None,
    network: str,
    data_set: str | None,
    side: int | None,
    file: Path,
    notes: list[str],
) -> ClipSpec:
    """The clips that were asked for, else the file's ``own``, else those of the published test.

    Args:
        side: of the frames that the network was trained on, in pixels, if the weights tell.
    """
    own = None if own is None else with_normalization(own, network)
    if wanted is None:
        clip = own or with_normalization(_published_clip(network, data_set, file, notes), network)
        if own is None and side is not None:
            notes.append(f"its positions are those of frames of {side} x {side} pixels: its clips have this size")
            clip = replace(clip, short_side=side, crop=side)
        return clip
    wanted = with_normalization(wanted, network)
    if own is not None and own != wanted:
        notes.append(f"the settings in {file.name} say {clip_in_words(own)}: they are not used")
    return wanted


def _published_clip(network: str, data_set: str | None, file: Path, notes: list[str]) -> ClipSpec:
    """The clips of the published test, or of the first of several; a note tells which."""
    fitting = fitting_protocols(network, data_set)
    if not fitting:
        raise OptionError(
            f"{str(file)!r} does not say which frames it was trained on: give --protocol, one of "
            f"{', '.join(PROTOCOLS)}, or --clip.num-frames and what else differs from its defaults"
        )
    others = f"; if that is not so, give --protocol {' or '.join(fitting[1:])}" if len(fitting) > 1 else ""
    notes.append(f"{file.name} does not say which frames it takes: --protocol {fitting[0]} is taken{others}")
    return PROTOCOLS[fitting[0]]


# -- class names ------------------------------------------------------------------------------------------------------


def _find_labels(
    wanted: Path | str | None, data_set: str | None, sizes: tuple[int, ...], file: Path, notes: list[str]
) -> tuple[str, ...]:
    """The class names of all heads, one after the other.

    Args:
        sizes: the number of classes of each head.
    """
    if wanted is None and data_set in (None, "k710"):
        unknown = "the file does not name its classes"
        if data_set == "k710":
            unknown = "the classes are Kinetics-710's, whose order was not published"
        notes.append(f"{unknown}: they are called class_000 and on; --labels gives their names")
        return tuple(f"class_{i:03d}" for i in range(sum(sizes)))
    name = data_set if wanted is None else str(wanted)
    assert name is not None
    if name in _LISTS_OF_HEADS or name in class_lists():
        heads = [class_names(part) for part in _LISTS_OF_HEADS.get(name, (name,))]
        if tuple(map(len, heads)) != sizes:
            raise OptionError(
                f"the list {name!r} has {_in_words(map(len, heads))} names, {str(file)!r} has {_in_words(sizes)} "
                "classes; give the name of each in a text file, on a line of its own, in the order of the logits"
            )
        if wanted is None:
            notes.append(f"class names: those of {DATA_SETS[name]}; if it was trained on others, give --labels")
        return tuple(label for head in heads for label in head)
    return _read_labels(Path(name), sizes, file)


def _in_words(sizes: Iterator[int] | Sequence[int]) -> str:
    return " + ".join(map(str, sizes))


def _read_labels(file: Path, sizes: tuple[int, ...], checkpoint: Path) -> tuple[str, ...]:
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = why_unread(error) if isinstance(error, OSError) else error
        raise OptionError(
            f"{str(file)!r} cannot be read as text: {why}; give one name on each line, or a list that comes with "
            f"tada: {', '.join(sorted([*class_lists(), *_LISTS_OF_HEADS]))}"
        ) from error
    labels = tuple(line.strip() for line in lines)
    if len(labels) != sum(sizes):
        raise OptionError(
            f"{str(file)!r} has {len(labels)} lines, {str(checkpoint)!r} has {_in_words(sizes)} classes; give the name "
            "of each on a line of its own, in the order of the logits"
        )
    for first, end in pairwise(accumulate(sizes, initial=0)):
        _check_distinct(file, labels, range(first, end))
    return labels


def _check_distinct(file: Path, labels: tuple[str, ...], of_head: range) -> None:
    seen: dict[str, int] = {}
    for i in of_head:
        if not labels[i] or labels[i] in seen:
            other = f"the name of line {seen[labels[i]]} again" if labels[i] else "empty"
            raise OptionError(f"{str(file)!r}, line {i + 1} is {other}; each class needs a name of its own")
        seen[labels[i]] = i + 1
