"""Weights: save and load trained models, read other weight files, and convert released names to ours.

A trained model is a folder with two files:

    model.safetensors   the weights: numbers only, no code
    model.json          the description of the model (``ModelCard``), and the SHA-256 of model.safetensors

Each file is written atomically, model.json last, so a folder whose model.json has the right SHA-256 is complete.
Weights are loaded strictly by name: the caller names those that may differ, any other difference is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tada.errors import CheckpointError, UnknownNameError, listed, nearest, why_unread
from tada.models import create_model
from tada.models.released_names import join_heads, names_here, network_of
from tada.system.array_files import check_unpacked
from tada.system.documents import MAX_CARD_BYTES, open_regular, parse_json, typed
from tada.system.files import write_whole
from tada.video.sampling import ClipSpec

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
_PICKLES = (".pth", ".pyth", ".pt", ".bin")
WEIGHT_ENDINGS = (".safetensors", *_PICKLES)
"""Of the files that ``read_weights`` reads."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """The description of trained weights: network, classes, clips, metrics and origin."""

    model: str
    """Name of the network, for ``create_model``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``create_model`` besides the number of classes, as JSON values."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    head_sizes: dict[str, int] = field(default_factory=dict)
    """Several classification heads: their names ("verb", "noun") and numbers of classes; their logits are concatenated.
    Empty: one head."""
    thresholds: tuple[float, ...] = ()
    """Multi-label models: for each label the least probability at which a video has it. Empty: a video has exactly one
    label."""
    clip: ClipSpec
    """Which frames of a video the network expects, and how large."""
    typical_seconds: float | None = None
    """Median duration of the training videos. None: the clips determine it, or it is unknown."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Measured metrics by name: accuracies in [0, 1]."""
    trained_from: str
    """The weights before training, in words."""
    made_by: str | None = None
    """The command that makes these weights again."""
    license: str | None = None
    """The license, as an SPDX identifier or in words."""


# -- a trained model --------------------------------------------------------------------------------------------------


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write a model and its card to a folder, for ``load_model``.

    Raises:
        CheckpointError: the model is not the one that the card describes, or has weights that are not finite.
    """
    save_weights(folder, model.state_dict(), card)


def save_weights(folder: Path, weights: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a state dict and its card to a folder; as ``save_model``."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    differences = _differences(_skeleton(card), weights)
    if differences:
        raise CheckpointError(f"the model is no {card.model} with {card.options}: {differences}")
    _check_finite(weights, "the model")
    data = safetensors.torch.save(weights)
    text = write_card(card, sha256=hashlib.sha256(data).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, data)
    write_whole(folder / CARD_FILE, text.encode())


def save_thresholds(folder: Path, thresholds: tuple[float, ...]) -> None:
    """Set the thresholds of a multi-label model in its saved card; the weights are not changed.

    Raises:
        CheckpointError: the card is missing or damaged.
    """
    file = folder / CARD_FILE
    card, sha256 = _read_card(file)
    write_whole(file, write_card(replace(card, thresholds=thresholds), sha256=sha256).encode())


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Load a model of ``save_model``, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or does not fit the other; the message names
            it and the way out.
    """
    card, sha256 = _read_card(folder / CARD_FILE)
    file = folder / WEIGHTS_FILE
    data = read_bytes(file)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            f"{str(file)!r} is damaged, or its {CARD_FILE} belongs to other weights: its SHA-256 is not the one that "
            f"{CARD_FILE} states; {_RENEW}"
        )
    weights = _parse_safetensors(file, data)
    _check_finite(weights, repr(str(file)))
    try:
        # First on the "meta" device, so that a card cannot make us allocate a vast network.
        differences = _differences(_skeleton(card), weights)
        if differences:
            raise CheckpointError(
                f"{str(file)!r} does not fit {CARD_FILE}, which says {card.model}: {differences}; {_RENEW}"
            )
        model = create_model(card.model, num_classes=len(card.labels), num_frames=card.clip.num_frames, **card.options)
    except CheckpointError:
        raise
    except Exception as error:  # unusual options can raise any type of error
        raise CheckpointError(f"{str(folder / CARD_FILE)!r}: {error}; update tada, or {_RENEW}") from error
    model.load_state_dict(weights)
    return model.eval(), card


_RENEW = "copy or download the folder again, or train anew"


BEST_PACKAGED = "tada2d_tiny_motion"
"""The weights that `tada predict` and ``tada.predict`` use where no model is named."""


def packaged(name: str) -> Path:
    """The folder of weights that ship with tada, for ``load_model``.

    Raises:
        UnknownNameError: no weights of this name ship.
    """
    if name not in packaged_names():
        raise UnknownNameError.of("set of weights that ships with tada", name, packaged_names())
    return _packaged_folder() / name


def packaged_names() -> list[str]:
    """Names of the weights that ship with tada."""
    folder = _packaged_folder()
    return sorted(file.parent.name for file in folder.glob(f"*/{CARD_FILE}"))


def _packaged_folder() -> Path:
    return Path(str(resources.files("tada.models"))) / "weights_data"


def _skeleton(card: ModelCard) -> nn.Module:
    """The card's network on the "meta" device: names and shapes, but no memory for weights."""
    with torch.device("meta"):
        return create_model(card.model, num_classes=len(card.labels), num_frames=card.clip.num_frames, **card.options)


def _read_card(file: Path) -> tuple[ModelCard, str]:
    if not file.parent.is_dir():
        near = nearest(str(file.parent), packaged_names())
        hint = f", nor the name of weights that ship with tada (did you mean {near!r}?)" if near else ""
        raise CheckpointError(
            f"{str(file.parent)!r} is no folder{hint}; give the folder of a trained model, with {CARD_FILE} in it"
        )
    if not file.exists():
        raise CheckpointError(
            f"{str(file)!r} is not there: it is written last, when training ends; give the folder of a finished "
            "run, or continue this one"
        )
    card, about = parse_card(file, read_bytes(file, MAX_CARD_BYTES))
    if not isinstance(about.get("sha256"), str):
        raise CheckpointError(f"{str(file)!r}: entry 'sha256' is missing or not as tada writes it; {_RENEW}")
    return card, about["sha256"]


def write_card(card: ModelCard, **more: Any) -> str:
    """A card as JSON, with the extra entries ``more``."""
    about = {"format": _FORMAT, "tada": metadata.version("tada-video"), **more, **asdict(card)}
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def parse_card(file: Path, text: str | bytes) -> tuple[ModelCard, dict[str, Any]]:
    """Parse the text of ``write_card``, read from ``file``: the card, and all entries.

    Raises:
        CheckpointError: it is damaged, of another version, or was not written by tada.
    """
    try:
        about = parse_json(text)
        if not isinstance(about, dict) or "format" not in about:
            raise ValueError("no format")
    except ValueError as error:
        raise CheckpointError(f"{str(file)!r} is damaged, or was not written by tada ({error}); {_RENEW}") from error
    if about["format"] != _FORMAT:
        raise CheckpointError(
            f"{str(file)!r} has format {about['format']}, from tada {about.get('tada')}; this tada reads format "
            f"{_FORMAT}: update it"
        )
    if "licence" in about:  # the spelling of earlier versions
        about["license"] = about.pop("licence")
    try:
        names = {entry.name for entry in fields(ModelCard)}
        card = typed(ModelCard, {name: value for name, value in about.items() if name in names})
    except ValueError as error:
        raise CheckpointError(f"{str(file)!r}: {error}; it is not as tada writes it: {_RENEW}") from error
    sizes = card.head_sizes
    if not card.labels:
        raise CheckpointError(f"{str(file)!r} names no labels; {_RENEW}")
    if sizes and (min(sizes.values()) < 1 or sum(sizes.values()) != len(card.labels)):
        raise CheckpointError(f"{str(file)!r}: head_sizes {sizes} do not add up to {len(card.labels)} labels; {_RENEW}")
    if card.thresholds and (sizes or len(card.thresholds) != len(card.labels)):
        raise CheckpointError(
            f"{str(file)!r} has {len(card.thresholds)} thresholds, and {len(card.labels)} labels of "
            f"{max(len(sizes), 1)} heads: it should have one of each label, or none; {_RENEW}"
        )
    return card, about


def read_bytes(file: Path, max_bytes: int | None = None) -> bytes:
    """Read a regular file.

    Raises:
        CheckpointError: it is missing, empty, larger than ``max_bytes``, or cannot be read.
    """
    with _open(file, max_bytes) as opened:
        return opened.read()


def _open(file: Path, max_bytes: int | None = None) -> BinaryIO:
    try:
        opened = open_regular(file, max_bytes)
    except ValueError as error:
        raise CheckpointError(f"{str(file)!r} is not as tada writes it: {error}; {_RENEW}") from error
    except OSError as error:
        if error.errno == 0:
            raise CheckpointError(f"{str(file)!r} is not a regular file; give a file of weights") from error
        raise CheckpointError(f"{str(file)!r} cannot be read: {why_unread(error)}") from error
    if os.fstat(opened.fileno()).st_size == 0:
        opened.close()
        raise CheckpointError(f"{str(file)!r} is empty; copy or download it again")
    return opened


# -- other weight files -----------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, by name: .safetensors, or a state dict in .pth, .pyth, .pt or .bin.

    A training checkpoint that holds its model's state dict as "model_state", "state_dict" or "model" is unwrapped, and
    the prefix "module." of data-parallel training is removed. No code in a file is executed: a pickle of more than
    tensors and plain values is refused.

    Raises:
        CheckpointError: the file is none of these, is damaged or unsafe, or has weights that are not finite.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """As ``read_weights``, with the settings of the training that the released code saves as text ("cfg"), or ""."""
    if path.suffix.lower() == ".safetensors":
        content: Any = _parse_safetensors(path, read_bytes(path))
    elif path.suffix.lower() in _PICKLES:
        content = _unpickle(path)
    else:
        raise CheckpointError(
            f"{str(path)!r}: weights are read from .safetensors, .pth, .pyth, .pt or .bin; archives are not opened: "
            "unpack it and give the file in it"
        )
    weights = _state_dict(path, content)
    # A tensor of a few bytes can claim any shape (by stride 0), and would fill the memory when it is copied.
    claimed, size = sum(value.numel() * value.element_size() for value in weights.values()), path.stat().st_size
    if claimed > size:
        raise CheckpointError(f"{str(path)!r} has {size} bytes but claims tensors of {claimed}; {_UNSAFE}")
    _check_finite(weights, repr(str(path)))
    settings = content.get("cfg", "")
    return weights, settings if isinstance(settings, str) else ""


_UNSAFE = "it is damaged or unsafe: download it again from a source you trust"


def _parse_safetensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{str(file)!r} is no safetensors file ({error}); {_UNSAFE}") from error
    return weights


def _unpickle(file: Path) -> Any:
    try:
        with _open(file) as opened:
            try:
                check_unpacked(opened)
            except ValueError as error:
                raise CheckpointError(f"{str(file)!r}: {error}; {_UNSAFE}") from error
            with warnings.catch_warnings():  # of pickles by other programs: what matters is whether they load
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(opened, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file can raise any type of error
        raise CheckpointError(
            f"{str(file)!r} holds more than tensors and plain values, which could run code, or it is damaged "
            f"({type(error).__name__}); download it again, or, where you trust it, save its state dict alone"
        ) from error


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    for wrapper in ("model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{str(file)!r} holds no state dict (a mapping from names to tensors); save one alone")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and _is_plain_tensor(value))]
    if others:
        raise CheckpointError(
            f"{str(file)!r} holds, beside weights, {listed(others, quote=False)}; a state dict may stand alone, or as "
            "'model_state', 'state_dict' or 'model': save it so"
        )
    before = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(before): value.detach() for name, value in content.items()}


def other_numbers(weights: Mapping[str, Tensor]) -> str:
    """The kinds of floating-point numbers in weights besides float32, in words; empty if there are none."""
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()}
    return " and ".join(sorted(kinds - {"float32"}))


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def restore(model: nn.Module, weights: Mapping[str, Tensor], *, fresh: tuple[str, ...] = ()) -> None:
    """Copy ``weights`` into ``model`` by name, strictly.

    Args:
        fresh: prefixes of names that keep the model's own values, whether ``weights`` has them or not.

    Raises:
        CheckpointError: names or shapes differ; the model is then unchanged.
    """
    check_fits(model, weights, fresh=fresh)
    model.load_state_dict({name: v for name, v in weights.items() if not name.startswith(fresh)}, strict=not fresh)


def check_fits(model: nn.Module, weights: Mapping[str, Tensor], *, fresh: tuple[str, ...] = ()) -> None:
    """Raise CheckpointError where ``restore`` would; the model may be on the "meta" device."""
    differences = _differences(model, weights, fresh)
    if differences:
        raise CheckpointError(f"{differences}; give weights of this network")


def _differences(model: nn.Module, weights: Mapping[str, Tensor], fresh: tuple[str, ...] = ()) -> str:
    """The differences of names and shapes, in one line; empty if there are none."""
    want = {name: tuple(v.shape) for name, v in model.state_dict().items() if not name.startswith(fresh)}
    have = {name: tuple(v.shape) for name, v in weights.items() if not name.startswith(fresh)}
    wrong = sorted(name for name in want | have if want.get(name) != have.get(name))
    if not wrong:
        return ""
    if wrong == ["head.bias", "head.weight"] and set(wrong) <= want.keys() & have.keys():
        classes = want["head.bias"][0], have["head.bias"][0]
        return f"the model has {classes[0]} classes, the weights have {classes[1]} (head.bias, head.weight)"
    lines = (
        f"{name} is {_shape(want, name)} in the model and {_shape(have, name)} in the weights" for name in wrong[:8]
    )
    more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    return f"{len(wrong)} of {len(want)} weights do not match: {', '.join(lines)}{more}"


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"{list(shapes[name])}" if name in shapes else "missing"


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    broken = [name for name, v in weights.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{where} has weights that are not finite numbers: {listed(broken, quote=False)}; training diverged: go "
            "back to an earlier state, and lower the learning rate"
        )


# -- published weights ------------------------------------------------------------------------------------------------


def convert_published(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Convert the names and shapes of the authors' released weights to ours.

    The released kernels are 3-D ([D, C, 1, k, k], a TAdaConv's [1, 1, D, C, k, k]); here dimensions of 1 are removed.

    Returns:
        The model's name, to be built with as many classes as ``head.weight`` has rows and with the options of
        ``released_names.network_of`` (a TAdaFormer's grid, where it was trained on frames of another size than 224 x
        224), and its weights.

    Raises:
        CheckpointError: names are missing, or are none of a released network's.
    """
    name, options = network_of(state_dict)
    state_dict, _ = join_heads(state_dict)
    ours_of = names_here(state_dict)
    weights = {ours_of[key]: value for key, value in state_dict.items()}
    classifier = weights.get("head.weight")
    num_classes = len(classifier) if classifier is not None and classifier.ndim and len(classifier) else 400
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes, **options)
    for key, ours in model.state_dict().items():
        if key in weights and without_ones(weights[key]) == without_ones(ours):
            weights[key] = weights[key].reshape(ours.shape)
    differences = _differences(model, weights)
    if differences:
        raise CheckpointError(f"these are not the weights of a released {name}: {differences}")
    return name, weights


def without_ones(tensor: Tensor) -> list[int]:
    """A shape without dimensions of 1: [C, 1, 1] equals [C], and a 1x1 kernel equals a linear layer's weight."""
    return [side for side in tensor.shape if side != 1]
