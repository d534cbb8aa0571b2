"""Arguments and checks that several commands share, and the report of videos that failed.

Files of this folder import nothing heavy at the top, since ``tada --help`` imports them all.
"""

from __future__ import annotations

import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.errors import OptionError, UserError, VideoError
from tada.recognition.recipe import Recipe
from tada.system.devices import is_first_process
from tada.system.files import distinct_names, try_folder
from tada.system.progress import Work
from tada.system.signals import last_chance
from tada.system.terminal import printable
from tada.training.recipe import RECIPE_FILE, Task, check_recipe, find_recipe

if TYPE_CHECKING:
    from tada.data.table import VideoTable
    from tada.video.inputs import VideoSource

Command = tuple[Callable[[ArgumentParser], None], Callable[[Namespace], int]]
"""A function that adds the command's arguments, and one that runs it and returns the exit code. The docstring of the
second is the command's help; `tada --help` shows its first line."""


def add_data(parser: ArgumentParser, name: str = "data", *, optional: bool = False, purpose: str = "") -> None:
    """Add DATA, as an argument or, if ``name`` begins with dashes, an option; and --videos and --fold."""
    maybe: dict[str, Any] = {"default": None} if optional else {}
    if optional and not name.startswith("--"):
        maybe["nargs"] = "?"
    parser.add_argument(
        name,
        type=Path | None if optional else Path,
        metavar="DATA",
        **maybe,
        help=f"{purpose}a folder of class folders, or of shards; a CSV with "
        "path,label[,split][,group][,start,end][,fps]; or the lists of Kinetics, Something-Something-v2, "
        "EPIC-KITCHENS-100, UCF101, HMDB51: one, or the folder of all. A "
        "video may be a folder of numbered frames",
    )
    parser.add_argument(
        "--videos",
        "--root",
        type=Path | None,
        metavar="DIR",
        default=None,
        help="the folder of the videos of a CSV or list",
    )
    parser.add_argument("--fold", type=PositiveInt, default=1, help="which split of UCF101 or HMDB51")


def add_fps(parser: ArgumentParser) -> None:
    parser.add_argument("--fps", type=float | None, default=None, help="frame rate of folders of frames, per second")


SHORT_DATA = "a folder of class folders, a CSV (path,label), or a published data set's lists"


def read_data(options: Namespace, name: str = "data", *, fps: float | None = None) -> VideoTable:
    from tada.data.annotations import read_dataset

    return read_dataset(options[name], root=options.videos, fold=options.fold, fps=fps)


def sources_of(paths: Sequence[str], fps: float | None, run: str | Path, *, needed: str) -> list[VideoSource]:
    """The videos at some paths; folders of frames get the rate of ``rate_of``."""
    from tada.video.inputs import source_at

    fps = rate_of(paths, fps, run, needed=needed)
    return [source_at(path, fps=fps) for path in paths]


def rate_of(paths: Sequence[str], fps: float | None, run: str | Path, *, needed: str) -> float | None:
    """The rate of folders of frames among some videos: ``fps``, or by default the rate in the run's training.

    Args:
        needed: what needs the times of frames, for the message; empty if nothing does.

    Raises:
        OptionError: a rate is needed and unknown; ``fps`` is given without such folders; or ``fps`` is out of range.
    """
    from tada.training.recipe import fps_of_run
    from tada.video.frames import check_rate

    check_rate(paths, fps)
    if fps is None and any(Path(path).is_dir() for path in paths):
        fps = fps_of_run(run)
        if fps is not None:
            rate = f"folders of frames are read at {fps:g} frames per second"
            say_aside(f"{rate}, as in the training of {run}; --fps changes it")
        check_rate(paths, fps, needed=needed)
    return fps


def data_options(options: Namespace) -> str:
    """The options after DATA that name the same data again."""
    return said_again(options, {"videos": None, "fold": 1})


def said_again(options: Namespace, defaults: Mapping[str, Any]) -> str:
    """The options whose values differ from ``defaults``, as they are typed: " --num-workers 0"."""
    given = {name: options[name] for name, default in defaults.items() if options[name] != default}
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())


class RecipeFile(ActionConfigFile):  # type: ignore[misc]  # jsonargparse is not typed
    """``--recipe NAME``: read the fields of a recipe that comes with tada, or of a YAML file."""

    task: Task = "recognition"
    """The task of the named recipes."""
    kind: type = Recipe
    """The dataclass of their fields."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = find_recipe(str(values), self.task)
            check_recipe(path, self.kind)
        except UserError as error:
            raise ArgumentError(self, str(error)) from error
        super().__call__(parser, cfg, str(path), option_string)


def check_run(run: str | Path, others: Sequence[str | Path], *, command: str) -> None:
    """Check that the argument RUN may be a recognizer, and is not one of the arguments after it.

    Args:
        others: the arguments after it.
        command: as in "tada predict".

    Raises:
        UserError: RUN is a video, or does not exist.
    """
    check_order(run, others, command=command)
    if not _is_model(str(run)) and not Path(run).exists():
        raise UserError(_no_run(str(run), command))


def check_order(run: str | Path, others: Sequence[str | Path], *, command: str) -> None:
    """Check that RUN comes before the other arguments.

    Raises:
        UserError: RUN is a video, or is not a run while a later argument is one.
    """
    from tada.video.numbered import VIDEO_EXTENSIONS, is_frame_folder

    path, name = Path(run), str(run)
    if _is_model(name):
        return
    swapped = next((other for other in others if _is_model(str(other))), None)
    if swapped is not None:
        raise UserError(
            f"{name!r} is no run, and {str(swapped)!r} is one: the run comes first, `{command} {swapped} {name}`"
        )
    if path.suffix.lower() in VIDEO_EXTENSIONS or is_frame_folder(path):
        raise UserError(f"{name!r} is a video: the run that is asked comes first, `{command} RUN {name}`")


def _no_run(name: str, command: str) -> str:
    """The message that RUN does not exist; for a network's name, it suggests weights of that network."""
    from tada.models import list_models
    from tada.models.weights import packaged_names

    if name in list_models():
        own = [packed for packed in packaged_names() if packed.startswith(f"{name}_")]
        if own:
            return f"{name!r} is a network; weights of it that ship with tada have their own name: `{command} {own[0]}`"
        return (
            f"{name!r} is a network, and no weights of it ship with tada: train it (`tada train DATA --model {name}`) "
            "or convert a released checkpoint (`tada convert`)"
        )
    near = get_close_matches(name, packaged_names(), n=1)
    hint = f"; did you mean {near[0]!r}, weights that ship with tada?" if near else ""
    return f"{name!r} is not there: give the folder of a run, with model.json in it{hint}"


def model_and_videos(model: str | None, words: Sequence[str]) -> tuple[str, list[str]]:
    """The model and the videos of a command: ``[RUN] VIDEO...``, or only videos with ``--model RUN``.

    Without a model, the best one that ships with tada is used; a message on standard error says so.

    Raises:
        UserError: RUN is not a run, or there are no videos.
    """
    from tada.models import list_models
    from tada.models.weights import BEST_PACKAGED

    command = "tada predict"
    if model is not None:
        check_run(model, words, command=command)
        return model, list(words)
    first, *others = words
    path = Path(first)
    if not others and _is_model(first):
        raise UserError(f"`{command}` needs RUN VIDEO...; given is {first!r} alone, and the videos are missing")
    is_footage = (_is_footage(path) if others else path.exists() or first == "-") or is_list(first)
    swapped = any(map(_is_model, others))
    if (is_footage or has_magic(first)) and not swapped and not _is_model(first):
        print(
            f"tada: {BEST_PACKAGED} answers, the best weights that ship with tada; your own: "
            f"`{command} RUN {printable(first)}`",
            file=sys.stderr,
        )
        return BEST_PACKAGED, list(words)
    if not others and first not in list_models():
        raise UserError(f"{first!r} is not there: give a video, a folder of them, or a pattern such as 'clips/*.mp4'")
    check_run(first, others, command=command)
    return first, others


def _is_model(name: str) -> bool:
    """Whether a name is a run, weights that ship with tada, or a model on the hub."""
    from tada.models.weights import packaged_names

    path = Path(name)
    return _is_run(path) or name.startswith("hf-hub:") or (name in packaged_names() and not path.exists())


def _is_run(path: Path) -> bool:
    """Whether a path is a run's folder, or a file of `tada export`."""
    return (path / "model.json").is_file() or (path / RECIPE_FILE).is_file() or path.suffix.lower() in (".onnx", ".pt2")


def _is_footage(path: Path) -> bool:
    """Whether a path is a video, or a folder with videos and without a model."""
    from tada.video.numbered import VIDEO_EXTENSIONS, is_frame_folder

    if not path.is_dir():
        return path.suffix.lower() in VIDEO_EXTENSIONS
    is_model = any((path / name).exists() for name in ("model.json", RECIPE_FILE, "localizer.json", "data.json"))
    if is_model:
        return False
    return is_frame_folder(path) or any(
        file.suffix.lower() in VIDEO_EXTENSIONS or is_frame_folder(file) for file in path.rglob("*")
    )


def is_list(name: str) -> bool:
    """Whether a name stands for many videos, as only a job reads them: an address, or a list of paths."""
    from tada.jobs.videos import is_table
    from tada.system.object_store import is_address

    return is_address(name) or is_table(name)


def check_here(names: Sequence[str], or_else: str) -> None:
    """Check that names are of files or folders of this machine.

    Raises:
        UserError: one is an address, or a list of videos.
    """
    from tada.system.object_store import masked, refuse_other_schemes

    for name in names:
        refuse_other_schemes(name)
    other = next(filter(is_list, names), None)
    if other is not None:
        raise UserError(f"{masked(other)!r} is a list of videos, or an address: {or_else}")


def say_aside(line: str) -> None:
    """Print a note on standard error, apart from the results."""
    print(printable(f"tada: {line}"), file=sys.stderr)


def add_workers(parser: ArgumentParser) -> None:
    parser.add_argument("--num-workers", type=NonNegativeInt | None, default=None, help="processes that decode videos")


def add_windows(parser: ArgumentParser) -> None:
    """Add the options of sliding windows over untrimmed videos: ``--window-seconds`` and ``--stride-seconds``."""
    parser.add_argument("--window-seconds", type=float | None, default=None, help="span of a feature's clip")
    parser.add_argument(
        "--stride-seconds", type=float | None, default=None, help="interval from one feature to the next"
    )


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, mps, ...; a GPU by default, if any")


def check_new(places: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse, before the work, to write where a file or folder exists.

    Raises:
        UserError: one exists, and ``overwrite`` is false.
    """
    for place in places:
        if place.exists() and not overwrite:
            raise UserError(f"{str(place)!r} is there already: give another folder, or replace it with --overwrite")


def video_files(folder: Path | None, videos: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """The file of each video's copy, for ``--save-video``; empty without a folder.

    Raises:
        UserError: a file exists, and ``overwrite`` is false; or it is the video itself.
        OutputError: the folder cannot be written.
    """
    if folder is None:
        return {}
    try_folder(folder)
    files = {video: folder / f"{name}.mp4" for video, name in distinct_names(videos).items()}
    for video, file in files.items():
        if file.exists() and Path(video).exists() and file.samefile(video):
            raise UserError(f"{str(file)!r} is the video itself: give --save-video another folder")
    check_new(files.values(), overwrite=overwrite)
    return files


class _Answer(Protocol):
    def save_video(self, target: Path, *, overwrite: bool, advance: Callable[[float], None]) -> None: ...


def save_video(answer: _Answer, file: Path, *, overwrite: bool) -> list[str]:
    """Write a copy of a video with the answer drawn in; return the error as a list, empty if there is none."""
    with warnings.catch_warnings(record=True) as told, Work(f"writing {file.name}", 1.0) as work:
        warnings.simplefilter("always")
        try:
            answer.save_video(file, overwrite=overwrite, advance=work.advance)
        except VideoError as error:
            return [f"{file} was not written: {error}"]
    for warning in told:
        print(printable(f"tada: {file}: {warning.message}"), file=sys.stderr)
    return []


def picture_files(folder: Path | None, videos: Sequence[str]) -> dict[str, Path]:
    """The file of each video's picture, for ``--plots``; empty without a folder. Checks that it can be written.

    Raises:
        OptionError: a file exists that is no picture of tada's.
        OutputError: the folder cannot be written.
    """
    if folder is None:
        return {}
    from tada.display.plots import is_ours

    try_folder(folder)
    pictures = {video: folder / f"{name}.png" for video, name in distinct_names(videos).items()}
    for picture in pictures.values():
        if picture.exists() and not is_ours(picture):
            raise OptionError(f"{str(picture)!r} is there, and was not drawn by tada: give --plots another folder")
    return pictures


@contextmanager
def reported(report: Callable[[], None]) -> Iterator[None]:
    """Call ``report`` once at the end of the block, also after an interruption or a failure."""
    reporting = threading.Lock()

    def once() -> None:
        if reporting.acquire(blocking=False):
            report()
            print(end="", flush=True)  # raises here where standard output cannot be written

    with last_chance(once):
        try:
            yield
        finally:
            once()


def report_failures(outcome: str, failures: Iterable[str]) -> int:
    """Print which videos failed, and why.

    Returns:
        The exit code: 0, or 1 where there were failures.
    """
    messages = list(failures)
    if is_first_process():
        for message in messages:
            print(f"tada: {outcome}: {printable(message)}", file=sys.stderr)
    return 1 if messages else 0
