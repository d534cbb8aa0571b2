"""Initialize a network from trained weights, and report which weights were taken.

A source is the folder of a run, a file of weights, or ``hf-hub:OWNER/NAME``. It may hold

- a network of ours, or a released one: everything but the classifier is taken, and must fit;
- an image network of the same shape, a ResNet (torchvision's names, which are timm's), a ConvNeXt (torchvision's,
  timm's or the authors'), an EfficientNet-Lite (timm's or efficientnet_pytorch's) or CLIP's image transformer
  (transformers' or open_clip's): its kernels and norms are taken one for one. Weights that an image network does not
  have keep their initialization: routing functions return 1, pooled norms 0, and so do a TAdaFormer's TAda blocks. So
  at first the network computes for each frame what the image network computes.

Some weights are reshaped or added. The 2-D stem kernel of a ConvNeXt or of CLIP becomes the middle frame of the three
of our stem kernel, with zeros on the other two: then each frame, also the first, gives exactly the features of the
image network. (A third of the kernel on each frame would blur motion, and dim the first one by a third.) CLIP's
positional embedding is resized to the TAdaFormer's grid. And a network of basic blocks has a shortcut where ResNet-18
has its max-pool; it is initialized as the identity. But for a TAdaFormer, which takes CLIP's numbers, pixels are
normalized here by mean .45 and std .225, as in the released code, not per channel as for ImageNet; an EfficientNetLite
converts them to the range of its weights, so its logits are ImageNet's. ``initialize`` tells where a training's clips
have other numbers than the source is meant for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tada.errors import CheckpointError, OptionError, UnknownNameError, listed
from tada.models import MODELS, Network, normalization_of
from tada.models import create_model as drawn
from tada.models.clip_tower import Facts, beside_the_tower, facts_of, tower_of
from tada.models.efficientnet_lite import EfficientNetLite
from tada.models.hub import fetch_if_there, fetch_weights, is_hub_id
from tada.models.imagenet_names import NOT_OF_IMAGES, THEIR_CLASSIFIER, made_to_fit, our_name, our_parts
from tada.models.imagenet_package import IMAGE_MODELS, IN_WORDS, NUM_CLASSES, image_weights
from tada.models.tada2d import TAda2D
from tada.models.tadaconvnext import TAdaConvNeXt
from tada.models.tadaformer import TAdaFormer
from tada.models.weights import (
    CARD_FILE,
    WEIGHT_ENDINGS,
    ModelCard,
    convert_published,
    load_model,
    other_numbers,
    packaged,
    packaged_names,
    read_weights,
    restore,
)
from tada.system.calls import checked
from tada.system.files import absolute_path
from tada.video.sampling import CLIP_NORMALIZATION, NORMALIZATION, Channels, ClipSpec, normalization_in_words

_HEAD = "head."
RANDOM_WEIGHTS = "random weights"
"""The words for a model's start where it took no trained weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialReport:
    """Which weights were taken from a source; ``str`` gives the counts."""

    source: str
    """The source, in words."""
    taken: tuple[str, ...]
    """Names of the network's weights that were copied from the source."""
    reshaped: Mapping[str, str]
    """Names of the network's weights that were made from the source's -> how."""
    fresh: tuple[str, ...]
    """Names of the network's weights that keep their random initialization."""
    ignored: tuple[str, ...]
    """Names of the source's weights that were not used."""
    normalization: tuple[Channels, Channels] | None
    """Mean and deviation of the pixels that the source is meant for; None: unknown."""
    notes: tuple[str, ...] = ()
    """Other things to tell, in words."""

    def __str__(self) -> str:
        """Lay out the counts."""
        lines = [f"taken: {len(self.taken)} weights"]
        lines += [f"made to fit: {name}, {how}" for name, how in self.reshaped.items()]
        lines.append(f"left as drawn: {len(self.fresh)}{_counted(_kind(name) for name in self.fresh)}")
        beside = [what for name in self.ignored if (what := beside_the_tower(name))]
        named = f" ({listed(self.ignored, quote=False)})" if self.ignored else ""
        words = _counted(beside) if len(beside) == len(self.ignored) else named
        lines.append(f"left out: {len(self.ignored)}{words}")
        return f"from {self.source}: " + "; ".join([*lines, *self.notes])


@checked(num_classes=1, num_frames=1)
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_frames: int | None = None,
    pretrained: bool | str | PathLike[str] = False,
    **options: Any,
) -> Network:
    """Build the network called ``name``: [N, 3, T, H, W] -> logits [N, K].

        tada.create_model("tada2d_r50", num_classes=174)
        tada.create_model("tada2d_tiny", pretrained=True, num_classes=5)  # all but the classifier is trained

    Args:
        num_classes: K. By default 400, or that of the pretrained weights (of a trained model, or "image").
        num_frames: T of the clips; see ``tada.models.create_model``.
        pretrained: True: the weights that this network starts from by default, which ship with tada or, "image", come
            with the package of tada-video[image]; or the name of such weights, the folder of a run, a file of weights,
            or hf-hub:OWNER/NAME, as a recipe's ``init`` takes them. Their classifier is taken too where it has as many
            classes; else it is random. False: all weights are random.
        options: fields of the network's config, as ``tada.models.create_model`` takes them; by default those of the
            pretrained model.

    Raises:
        UnknownNameError: no such network.
        OptionError: no such option or weights, or no weights ship for this network.
        CheckpointError: the weights do not fit.
    """
    build = partial(drawn, name, num_frames=num_frames)
    if pretrained is False:
        return build(num_classes=400 if num_classes is None else num_classes, **options)
    if name not in MODELS:
        raise UnknownNameError.of("model", name, MODELS)
    source = _trained_source(name, pretrained)
    if source == "image" and num_classes is None:
        num_classes = NUM_CLASSES
    if is_hub_id(source) and (card := fetch_weights(source)[1]) is not None:
        source = str(card.parent)
    if source != "image" and Path(source).is_dir():
        trained, about = _load_run(Path(source))
        if about.model != name:
            raise CheckpointError(f"{pretrained} holds a {about.model}, and no {name}")
        options = about.options | options
        if num_classes is None or num_classes == len(about.labels):
            model = build(num_classes=len(about.labels), **options)
            try:
                restore(model, trained.state_dict())
            except CheckpointError as error:
                raise CheckpointError(f"the weights of {pretrained} do not fit: {error}") from error
            return model
    model = build(num_classes=400 if num_classes is None else num_classes, **options)
    start_from(model, name, source, classifier=True)
    return model


def _trained_source(name: str, pretrained: bool | str | PathLike[str]) -> str:
    """The folder, file or hub id of ``pretrained`` weights, or "image"."""
    if pretrained == "image" or (pretrained is True and name in IMAGE_MODELS):
        return "image"
    if isinstance(pretrained, bool):
        found = next((packed for packed in packaged_names() if packed.startswith(f"{name}_")), None)
        if found is None:
            raise OptionError(
                f"no weights of {name} ship with tada (only {', '.join(packaged_names())}): let pretrained be the "
                "folder of a run, a file of weights or hf-hub:OWNER/NAME"
            )
        return str(packaged(found))
    source = fspath(pretrained)
    if is_hub_id(source):
        return source
    if Path(source).exists():
        return absolute_path(source) if source == "image" else source  # Path("image") is a path, and "image" a word
    if source in packaged_names():
        return str(packaged(source))
    image = "'image', " if name in IMAGE_MODELS else ""
    raise OptionError(
        f"pretrained={source!r} is neither there nor one of the weights that ship with tada "
        f"({', '.join(packaged_names())}): give {image}the folder of a run, a file of weights or hf-hub:OWNER/NAME"
    )


def initialize(
    model: nn.Module, name: str, init: str, *, clip: ClipSpec | None = None, say: Callable[[str], None] = print
) -> str:
    """Load the weights of a recipe's ``init`` into a new model, without the classifier; return their description.

    Args:
        clip: that of the training, if known.
        say: receives the ``InitialReport`` where the weights come from a file, a run or the hub; and a line where they
            are meant for pixels that are normalized by other numbers than the clip's.

    Raises:
        OptionError: ``init`` is "motion" and no such weights ship for this model, or it names no existing source.
        CheckpointError: the weights do not fit.
    """
    start = _start(name, init)
    if start == "none":
        return RANDOM_WEIGHTS
    report = start_from(model, name, str(packaged(f"{name}_motion")) if start == "motion" else start)
    if start != "motion":
        say(str(report))
    theirs = report.normalization
    if clip is not None and theirs not in (None, clip.normalization):
        assert theirs is not None
        mean, std = (f"'{list(values)}'" for values in theirs)
        say(
            f"{report.source}: meant for pixels {normalization_in_words(theirs)}; those of this training are "
            f"{normalization_in_words(clip.normalization)}: give --clip.mean {mean} --clip.std {std} for the same"
        )
    return start_in_words(name, init)


def start_in_words(name: str, init: str) -> str:
    """The description that ``initialize`` returns, without loading the weights."""
    start = _start(name, init)
    known = {"none": RANDOM_WEIGHTS, "motion": "weights learned on generated motion", "image": IN_WORDS}
    return known.get(start, f"the weights of {start}")


def _start(name: str, init: str) -> str:
    """A recipe's ``init`` with 'auto' resolved."""
    if init == "motion" and f"{name}_motion" not in packaged_names():
        known = listed([packed.removesuffix("_motion") for packed in packaged_names()], quote=False)
        image = "'image', " if name in IMAGE_MODELS else ""
        raise OptionError(
            f"init 'motion' is for {known}; for a {name} give {image}'none', the folder of a run, a file of weights or "
            "hf-hub:OWNER/NAME"
        )
    if init != "auto":
        return init
    if name in IMAGE_MODELS:
        return "image"
    return "motion" if f"{name}_motion" in packaged_names() else "none"


def absolute_source(init: str) -> str:
    """A recipe's ``init`` with a path made absolute."""
    is_word = init in ("auto", "motion", "image", "none") or is_hub_id(init)
    return init if is_word or not Path(init).exists() else absolute_path(init)


def start_from(model: nn.Module, name: str, source: str, *, classifier: bool = False) -> InitialReport:
    """Load the weights of a source into a new model, the network called ``name``, without the classifier.

    Args:
        classifier: take the source's classifier too, where it has as many classes.

    Raises:
        OptionError: there is no such source.
        CheckpointError: the weights do not fit; the model is then unchanged.
    """
    if source == "image":
        return take_image_network(model, read_weights(image_weights(name)), IN_WORDS, classifier=classifier)
    folder, file = Path(source), Path(source)
    words = f"the weights of {source}"
    if is_hub_id(source):
        file, card = fetch_weights(source)
        folder = file if card is None else card.parent
    if folder.is_dir():
        given, card_of_it = _load_run(folder)
        _check_same_network(card_of_it.model, name, source)
        return _take_own(
            model, given.state_dict(), words, classifier=classifier, normalization=card_of_it.clip.normalization
        )
    if not file.exists():
        raise OptionError(
            f"init {source!r} should be 'auto', 'motion', 'image', 'none', the folder of a run, a file of weights, or "
            "hf-hub:OWNER/NAME"
        )
    weights = read_weights(file)
    if "head.weight" in weights and not weights.keys().isdisjoint(_OUR_STEMS):
        return _take_own(model, weights, words, classifier=classifier)
    if any(key.startswith("backbone.") for key in weights):
        released, weights = convert_published(weights)
        _check_same_network(released, name, source)
        words = f"the released weights of {source}"
        return _take_own(model, weights, words, classifier=classifier, normalization=normalization_of(name))
    words, facts = f"the image network of {source}", None
    if isinstance(model, TAdaFormer):
        facts = _facts_beside(source, file)
    return take_image_network(model, weights, words, classifier=classifier, facts=facts)


_OUR_STEMS = ("stem_conv.weight", "stem.conv.weight", "stem.weight")


def _load_run(folder: Path) -> tuple[nn.Module, ModelCard]:
    """As ``load_model``; the message for a downloaded repository of another library names its weight files."""
    if not (folder / CARD_FILE).exists():
        files = sorted(str(file) for file in folder.iterdir() if file.suffix in WEIGHT_ENDINGS)
        if files:
            raise CheckpointError(
                f"{str(folder)!r} has no {CARD_FILE}, so it is not the folder of a finished run; to start from weights "
                f"in it, give their file: {listed(files)}"
            )
    return load_model(folder)


def _check_same_network(theirs: str, name: str, source: str) -> None:
    if theirs != name:
        raise CheckpointError(
            f"{source} holds a {theirs}; a {name} cannot start from it: give --model {theirs}, or other weights"
        )


def _facts_beside(source: str, file: Path) -> Facts | None:
    """What a configuration says of an image tower: from the same repository, or the same folder."""
    for name in ("config.json", "open_clip_config.json"):
        config = fetch_if_there(source, name) if is_hub_id(source) else file.parent / name
        if config is not None and (facts := facts_of(config)) is not None:
            return facts
    return None


def _take_own(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    words: str,
    *,
    classifier: bool,
    normalization: tuple[Channels, Channels] | None = None,
) -> InitialReport:
    names = model.state_dict()
    fits = all(key in weights and weights[key].shape == names[key].shape for key in names if key.startswith(_HEAD))
    fresh: tuple[str, ...] = () if classifier and fits else (_HEAD,)
    try:
        restore(model, weights, fresh=fresh)
    except CheckpointError as error:
        raise CheckpointError(f"{words} do not fit: {error}") from error
    return InitialReport(
        source=words,
        taken=tuple(key for key in names if not key.startswith(fresh)),
        reshaped={},
        fresh=tuple(key for key in names if key.startswith(fresh)),
        ignored=tuple(key for key in weights if key.startswith(fresh)),
        normalization=normalization,
        notes=_notes(model, weights),
    )


def _notes(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """That the weights hold other numbers than the model, if so."""
    kinds, own = other_numbers(weights), other_numbers(model.state_dict())
    return (f"{kinds} numbers are taken as {own or 'float32'}",) if kinds not in ("", own) else ()


# -- image networks ---------------------------------------------------------------------------------------------------


def take_image_network(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    words: str,
    *,
    classifier: bool = False,
    facts: Facts | None = None,
) -> InitialReport:
    """Load the weights of an image network of the same shape into a new model.

    Args:
        words: a description of the weights, for the report and for messages.
        classifier: take the classifier too, where it has as many classes.
        facts: of an image tower of CLIP, where a configuration states them.

    Raises:
        CheckpointError: names or shapes of another network; the model is then unchanged.
    """
    own = model.state_dict()
    if isinstance(model, TAdaFormer):
        return _take_tower(model, weights, words, facts)
    if not isinstance(model, TAda2D | TAdaConvNeXt | EfficientNetLite):
        raise CheckpointError(
            f"{words} is no start for a {type(model).__name__}: TAda2D, TAdaConvNeXt, TAdaFormer and EfficientNetLite "
            "have one"
        )
    kind, named_by = _IMAGE_NETWORKS[type(model)]
    names = our_parts(model.config, own)
    known = max(names, key=lambda parts: sum(our_name(key, parts) is not None for key in weights))
    theirs = [key for key in weights if our_name(key, known) is None and THEIR_CLASSIFIER.fullmatch(key)]
    head = {f"{_HEAD}{key.rpartition('.')[2]}": weights[key] for key in theirs}
    fits = {key: value.shape for key, value in head.items()} == {k: own[k].shape for k in own if k.startswith(_HEAD)}
    ignored = () if classifier and fits else tuple(theirs)
    given = {our_name(key, known) or f"{key} (unknown)": value for key, value in weights.items() if key not in theirs}
    if not ignored:
        given |= head
    if not given.keys() & own.keys():
        raise CheckpointError(
            f"{words} is no {kind} as {named_by} names it; its first names are {listed(weights, quote=False)}"
        )
    reshaped = made_to_fit(given, own)
    # Old files lack num_batches_tracked, and nothing here needs it.
    fresh = {key for key in own if NOT_OF_IMAGES.match(key) and key not in given}
    fresh |= {key for key in own if key.endswith(".num_batches_tracked") and key not in given}
    try:
        restore(model, given, fresh=tuple(fresh))
    except CheckpointError as error:
        raise CheckpointError(f"{words} is no {kind} of this shape: {error}") from error
    return InitialReport(
        source=words,
        taken=tuple(key for key in own if key in given and key not in reshaped),
        reshaped=reshaped,
        fresh=tuple(key for key in own if key in fresh and not key.endswith(".num_batches_tracked")),
        ignored=ignored,
        normalization=NORMALIZATION,
        notes=_notes(model, weights),
    )


def _take_tower(model: TAdaFormer, weights: Mapping[str, Tensor], words: str, facts: Facts | None) -> InitialReport:
    own = model.state_dict()
    precise = {
        key: value.to(own["head.weight"]) if value.is_floating_point() else value for key, value in weights.items()
    }
    given, reshaped, ignored, notes = tower_of(precise, model.config, words, facts)
    fresh = tuple(key for key in own if key.startswith(_HEAD) or ".tada" in key)
    try:
        restore(model, given, fresh=fresh)
    except CheckpointError as error:
        raise CheckpointError(f"{words} is no image transformer of this shape: {error}") from error
    return InitialReport(
        source=words,
        taken=tuple(key for key in own if key in given and key not in reshaped),
        reshaped=reshaped,
        fresh=tuple(key for key in fresh if not key.endswith(".num_batches_tracked")),
        ignored=ignored,
        normalization=CLIP_NORMALIZATION,
        notes=(*_notes(model, weights), *notes),
    )


_IMAGE_NETWORKS: dict[type[nn.Module], tuple[str, str]] = {
    TAda2D: ("ResNet", "torchvision or timm"),
    TAdaConvNeXt: ("ConvNeXt", "torchvision or timm"),
    EfficientNetLite: ("EfficientNet-Lite", "timm or efficientnet_pytorch"),
}
"""What each network of ours is without TAdaConv, and under whose names such weights are known."""


def _kind(name: str) -> str:
    for part, words in (
        ("head.", "classifier"),
        (".tada", "TAda blocks"),
        ("routing.", "routing functions"),
        ("pooled_norm.", "pooled norms"),
    ):
        if part in name:
            return words
    return name


def _counted(kinds: Iterable[str]) -> str:
    """How many there are of each kind, in parentheses; empty if there are none."""
    counts = Counter(kinds)
    return f" ({', '.join(f'{kind} {count}' for kind, count in counts.items())})" if counts else ""
