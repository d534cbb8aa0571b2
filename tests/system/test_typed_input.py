"""What is said of what was typed wrongly: the user's own words, one line, the way on; for every command and option."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tada.commands.arguments import RecipeFile
from tada.commands.cli import COMMANDS, _parsers, main
from tada.commands.spelling import normalized
from tada.errors import UserError
from tada.recognition.recipe import recipe_of
from tada.system.typed_input import type_in_words, wrong_value

PARSERS: dict[str, ArgumentParser] = _parsers()[1]
INTERNAL = ("Parser key", "<class", "Union", "ubtypes", "typing.", "jsonargparse", "validate", "NoneType", "_", "\n")
"""Words of the parser, and names of fields where options are meant."""


def words_of(command: str) -> list[str]:
    """As they are typed."""
    return command.split("-", 1) if command.startswith("localize-") else [command]


def said(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a mistake."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tada: ")
    assert captured.err.count("\n") == 1
    line = captured.err.removeprefix("tada: ").strip()
    for word in INTERNAL:
        assert word not in line, line
    return line


def dashed(action: argparse.Action) -> str:
    return action.option_strings[0].replace("_", "-")


def options_of(command: str) -> list[argparse.Action]:
    return [
        action
        for action in PARSERS[command]._actions
        if action.option_strings and not action.dest.endswith(("help", "help_all")) and action.dest != "print_config"
    ]


def wrong_values(action: argparse.Action) -> list[str]:
    """What the type of an option refuses."""
    hint = getattr(action, "_typehint", None)
    if any(map(is_dataclass, get_args(hint))):
        return []  # given field by field
    parts = {hint, *get_args(hint)} if get_origin(hint) not in (Literal, dict, tuple) else {hint}
    if str in parts or Path in parts:
        return []
    if any(get_origin(part) is Literal for part in parts):
        return ["nonsense"]
    if parts & {PositiveInt}:
        return ["many", "0", "1.5"]
    if parts & {NonNegativeInt}:
        return ["many", "-1", "1.5"]
    return ["much"]


CASES = [
    (command, action, value)
    for command in COMMANDS
    for action in options_of(command)
    if getattr(action, "_typehint", None) is not None
    for value in wrong_values(action)
]
TYPED = [  # of the many options one in three, in a short run
    pytest.param(*case, id=f"{case[0]} {dashed(case[1])} {case[2]}", marks=[pytest.mark.slow] if i % 3 else [])
    for i, case in enumerate(CASES)
]


EVERY = [pytest.param(4, id="one in four"), pytest.param(1, id="all", marks=pytest.mark.slow)]


def test_the_table_covers_the_commands() -> None:
    assert len(TYPED) > 100
    assert {param.values[0] for param in TYPED} >= {"train", "evaluate", "predict", "localize-train", "check"}


@pytest.mark.parametrize(("command", "action", "value"), TYPED)
def test_a_value_of_the_wrong_type(
    command: str, action: argparse.Action, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said([*words_of(command), dashed(action), value], capsys)
    assert line.startswith(f"{dashed(action)} must be ")
    assert f"not '{value}'" in line
    # The other spelling, and the value behind a sign.
    assert said([*words_of(command), f"{action.option_strings[-1]}={value}"], capsys).endswith(line.partition(" ")[2])


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_without_its_value(command: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    for action in options_of(command)[::every]:
        if getattr(action, "_typehint", None) is bool:
            continue  # its name alone means true
        if action.nargs in (None, "+") or isinstance(action, RecipeFile):
            line = said([*words_of(command), dashed(action)], capsys)
            assert line.startswith(f"{dashed(action)} needs a value: ")
            assert len(line) > len(f"{dashed(action)} needs a value: ")
        elif action.nargs == 0:
            assert said([*words_of(command), f"{dashed(action)}=yes"], capsys) == (
                f"{dashed(action)} takes no value: leave 'yes' away"
            )


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_is_not_there(command: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = " ".join(words_of(command))
    assert said([*words_of(command), "--frobnicate", "3"], capsys) == (
        f"`tada {name}` has no option --frobnicate; `tada {name} --help` lists those it has"
    )
    names = [name.replace("_", "-") for action in options_of(command) for name in action.option_strings]
    for option in names[::every]:
        if len(option) > 6 and option[:-1] not in names:
            line = said([*words_of(command), option[:-1], "3"], capsys)
            assert line.startswith(f"`tada {name}` has no option {option[:-1]}; did you mean --"), line


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_that_lack(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = [action for action in PARSERS[command]._actions if action.required and "." not in action.dest]
    if not required:
        return
    line = said(words_of(command), capsys)
    assert line.startswith(f"`tada {' '.join(words_of(command))}` needs ")
    for action in required:
        assert (dashed(action) if action.option_strings else action.metavar or action.dest.upper()) in line


LINES: dict[str, tuple[list[str], str]] = {
    "no data": (["train"], "`tada train` needs DATA: a folder of class folders, or of shards; a CSV with "),
    "another folder than the run's": (
        ["train", "clips", "--resume", "run", "--out", "other"],
        "--resume run continues in that folder: leave --out away, or copy the run to other and resume it there",
    ),
    "data by name that are not there": (["train", "--data", "nowhere"], "'nowhere' is not there"),
    "several folders": (
        ["train", "clips/a", "clips/b"],
        "`tada train` takes DATA, and 'clips/b' is too much: put all classes into one folder, or list the videos in a ",
    ),
    "a video as data": (["train", "clip.mp4"], "'clip.mp4' is a video; give a folder of class folders"),
    "no folder": (["train", "nowhere"], "'nowhere' is not there"),
    "initials": (["train", "clips", "--wd", "0.1"], "`tada train` has no option --wd; did you mean --weight-decay?"),
    "a word of it": (["train", "clips", "--norm", "2"], "no option --norm; did you mean --clip-gradient-norm?"),
    "a short name": (
        ["train", "clips", "--worker", "2"],
        "`tada train` has no option --worker; did you mean --workers?",
    ),
    "of another program": (["train", "clips", "-o", "run"], "`tada train` has no option -o; did you mean --out?"),
    "one given by name": (
        ["export", "run", "--modle", "x"],
        "no option --modle; did you mean --model?",
    ),
    "a field of a group, with underscores": (
        ["train", "clips", "--clip.num_frame", "3"],
        "`tada train` has no option --clip.num-frame; did you mean --clip.num-frames?",
    ),
    "the wrong value of a short name": (["train", "clips", "--lr", "fast"], "--lr must be a number, not 'fast'"),
    "a short name out of range": (["train", "clips", "--batch", "0"], "--batch must be 1 or more, not 0"),
    "a short name without a value": (["train", "clips", "--workers"], "--workers needs a value: "),
    "output alone": (["export", "--out", "x.onnx"], "`tada export` needs RUN: the folder of a run"),
    "output twice": (["export", "run", "x", "--out", "y"], "`tada export` takes RUN --out FILE, and 'x' is too much"),
    "a name without a value": (["export", "run", "--out"], "--out needs a value: OUT.onnx, for ONNX Runtime"),
    "a command of two words": (
        ["localize", "trian", "--segments", "s.csv"],
        "no command is called 'localize trian', and no file 'trian'; did you mean 'localize train'?",
    ),
    "a command of two words, elsewhere": (["localize", "test", "--model", "m"], "did you mean 'localize evaluate'?"),
    "a command of another program": (["fit", "clips"], "no command is called 'fit'; did you mean 'train'?"),
    "an option of all, misspelled": (["--hlep"], "no option is called '--hlep'; did you mean --help?"),
    "one of another command": (
        ["predict", "run", "clip.mp4", "--epochs", "3"],
        "`tada predict` has no option --epochs, which is one of `tada train` and `tada localize train`; ",
    ),
    "one dash": (["train", "clips", "-e", "3"], "`tada train` has no option -e; `tada train --help` lists"),
    "a decimal comma": (
        ["train", "clips", "--learning-rate", "0,5"],
        "--learning-rate must be a number, not '0,5': write 0.5",
    ),
    "a near choice": (
        ["train", "clips", "--optimizer", "adam"],
        "must be sgd or adamw, not 'adam'; did you mean adamw?",
    ),
    "a list": (
        ["train", "clips", "--short-side-range", "48"],
        "--short-side-range must be a list of 2 whole numbers, such as [1, 2], not '48'",
    ),
    "a mapping": (
        ["train", "clips", "--model-options", "3"],
        "--model-options must be a mapping, such as '{name: 0.5}'",
    ),
    "a field of a group": (
        ["train", "clips", "--clip.num-frame", "3"],
        "`tada train` has no option --clip.num-frame; did you mean --clip.num-frames?",
    ),
    "another group of fields": (
        ["convert", "a", "b", "--clip", "x"],
        "--clip has its fields one by one: --clip.num-frames",
    ),
    "a field of a group without the one it needs": (
        ["convert", "a", "b", "--clip.crop", "224"],
        "--clip.crop needs --clip.num-frames beside it",
    ),
    "a field of a group with a wrong value": (
        ["convert", "a", "b", "--clip.num-frames", "16", "--clip.crop", "wide"],
        "one of --clip.num-frames 16, --clip.crop wide has a wrong value; `tada convert --help-all` explains them",
    ),
    "a group of fields": (
        ["train", "clips", "--clip", "x"],
        "--clip has its fields one by one: --clip.num-frames, --clip.",
    ),
    "nothing in a batch": (["train", "clips", "--batch-size", "0"], "--batch-size must be 1 or more, not 0"),
    "no frames": (["train", "clips", "--clip.num-frames", "0"], "--clip.num-frames must be at least 1, not 0"),
    "part of more than all": (
        ["train", "clips", "--val-fraction", "1.5"],
        "--val-fraction must be 0 or more and less than 1, not 1.5",
    ),
    "less than no part": (
        ["train", "clips", "--val-fraction", "-0.5"],
        "--val-fraction must be 0 or more and less than 1",
    ),
    "no groups": (["train", "clips", "--val-groups", "nobody"], "the data have no groups; add a column 'group'"),
    "recipe misspelled": (
        ["train", "clips", "--recipe", "gesture"],
        "no recipe is called 'gesture'; did you mean 'gestures'?",
    ),
    "no recipe file": (["train", "clips", "--recipe", "own.yaml"], "own.yaml: there is no such file; give a YAML file"),
    "no run to go on": (
        ["train", "clips", "--resume", "clips"],
        "clips holds no run (no recipe.yaml)",
    ),
    "no value at the end": (
        ["train", "clips", "--resume"],
        "--resume needs a value: the folder of the run that goes on",
    ),
    "of a recipe": (
        ["train", "clips", "--recipe", "wrong.yaml"],
        "wrong.yaml: epochs must be a whole number or null, not 'many'",
    ),
    "a recipe's range": (
        ["train", "clips", "--recipe", "none.yaml"],
        "--recipe none.yaml: the recipe's epochs must be 1 or more",
    ),
    "a model alone": (
        ["predict", "run"],
        "`tada predict` needs RUN VIDEO...; given is 'run' alone, and the videos are missing",
    ),
    "nothing that is there": (["predict", "nowhere"], "'nowhere' is not there: give a video, a folder of them, or a "),
    "a video as a model": (
        ["predict", "--model", "clip.mp4", "clip.mp4"],
        "'clip.mp4' is a video: the run that is asked comes first, `tada predict RUN clip.mp4`",
    ),
    "data before the run": (
        ["predict", "clips", "run"],
        "'clips' is no run, and 'run' is one: the run comes first, `tada predict run clips`",
    ),
    "test data before the run": (
        ["evaluate", "clips", "run"],
        "'clips' is no run, and 'run' is one: the run comes first, `tada evaluate run clips`",
    ),
    "a localizer": (
        ["predict", "when", "clip.mp4"],
        "'when' is a localizer, which says when things happen: `tada localize when VIDEO`",
    ),
    "a network without weights": (
        ["predict", "tada2d_tiny", "clip.mp4"],
        "'tada2d-tiny' is a network; weights of it that ship with tada have their own name: `tada predict tada2d-",
    ),
    "a network alone": (
        ["predict", "tada2d_tiny"],
        "'tada2d-tiny' is a network; weights of it that ship with tada have their own name: `tada predict tada2d-",
    ),
    "a network that nobody trained": (
        ["predict", "tada2d_r50", "clip.mp4"],
        "'tada2d_r50' is a network, and no weights of it ship with tada: train it (`tada train DATA --model tada",
    ),
    "weights misspelled": (
        ["predict", "tada2d_tiny_moton", "clip.mp4"],
        "did you mean 'tada2d-tiny-motion', weights that ship with tada?",
    ),
    "a dash before a file": (
        ["predict", "run", "-a.mp4"],
        "'-a.mp4' looks like an option; a file whose name begins with a dash is written './-a.mp4'",
    ),
    "a help before a file": (["predict", "run", "-help.mp4"], "'-help.mp4' looks like an option; "),
    "two dashes before a file": (["predict", "run", "--b.mp4"], "'--b.mp4' looks like an option; "),
    "views": (["evaluate", "run", "clips", "--views", "3x"], "--views should be CLIPSxCROPS, such as 1x1 or 10x3, not"),
    "no clips": (["predict", "run", "clip.mp4", "--clips", "0"], "--clips must be a whole number from 1 on, not '0'"),
    "localizing without videos": (["localize", "train", "--segments", "s.csv"], "--videos with a folder of videos"),
    "no command": (["trian", "clips"], "no command is called 'trian'; did you mean 'train'? Known: check, "),
    "no option of all": (
        ["--frobnicate"],
        "no option is called '--frobnicate'; options of a command stand ",
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people work in one: clips, a run, a localizer, files with odd names."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/a/1.mp4", "clips/a/2.mp4", "clips/b/1.mp4", "clips/b/2.mp4", "clip.mp4", "-a.mp4", "-help.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name, text in (
        ("--b.mp4", ""),
        ("run/model.json", "{}"),
        ("when/localizer.json", "{}"),
        ("wrong.yaml", "epochs: many\n"),
        ("none.yaml", "epochs: 0\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("mistake", LINES)
def test_the_line_shows_the_way(mistake: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = LINES[mistake]
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert expected.replace("tada2d-", "tada2d_").replace("tiny-mo", "tiny_mo") in line
    assert sorted(place.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("words", ["clip.mp4", "clip.mp4 clips", "clips", "*.mp4", "clips clip.mp4"])
def test_videos_alone_are_answered_by_the_best_weights(
    words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The videos are empty here, which is said after that."""
    assert main(["predict", *words.split()]) == 1
    first, second, *_ = capsys.readouterr().err.splitlines()
    own = f"your own: `tada predict RUN {words.split()[0]}`"
    assert first == f"tada: tada2d_tiny_motion answers, the best weights that ship with tada; {own}"
    assert "is empty (0 bytes)" in second
    assert main(["predict", *words.split(), "--model", "tada2d_tiny_motion"]) == 1
    assert capsys.readouterr().err.startswith("tada: no prediction: ")


def test_files_that_begin_with_a_dash_are_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways reach the video, which is empty here."""
    for arguments in (["--", "-a.mp4"], ["./-a.mp4"]):
        assert main(["predict", "tada2d_tiny_motion", *arguments]) == 1
        assert "-a.mp4' is empty (0 bytes)" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_written_with_dashes_or_underscores(command: str) -> None:
    """Also where another command has an option of that name, spelled otherwise."""
    _, of_command = _parsers()
    for action in options_of(command):
        for name in set(action.option_strings) - {"--recipe", "--resume"}:
            for spelling in (name.replace("_", "-"), "--" + name[2:].replace("-", "_")):
                has_value = action.nargs not in (0, "?")  # --ray takes only what looks like an address
                words = [name, "x"] if has_value else ["x", name]  # what is no option's comes first
                assert normalized([command, spelling, "x"], of_command)[1:] == words
                assert normalized([command, f"{spelling}=x"], of_command)[1:] == [f"{name}=x"]


SPELLINGS = {
    "options between arguments": ("evaluate run --views 2x3 clips", "evaluate run clips --views 2x3"),
    "a flag between arguments": ("export run --overwrite out.onnx", "export run out.onnx --overwrite"),
    "a switch alone": ("train clips --compile --out r", "train clips --compile true --out r"),
    "a switch before a file": ("train --compile tests --out r", "train tests --compile true --out r"),
    "a switch off": ("train clips --sync-batch-norm false", "train clips --sync_batch_norm false"),
    "several values": ("evaluate --scores a b --out c", "evaluate --scores a b --out c"),
    "the model by name": ("evaluate --model run clips", "evaluate run clips"),
    "the model behind": ("export out.onnx --model run", "export run out.onnx"),
    "the output by name": ("export run --out=out.onnx", "export run out.onnx"),
    "both by name": ("extract --out features --model run clips", "extract run clips features"),
    "a copy": ("prepare --out fast clips", "prepare clips fast"),
    "a cluster": ("predict run a.mp4 --ray 10.0.0.1:6379 --out o", "predict run a.mp4 --ray 10.0.0.1:6379 --out o"),
    "a cluster of this machine": ("predict run --ray a.mp4 --out o", "predict run a.mp4 --ray --out o"),
    "a negative number": ("train clips --val-fraction -0.5", "train clips --val-fraction -0.5"),
    "standard input": ("localize --stream - --model run", "localize run - --stream"),
    "two words": ("localize train --segments s.csv", "localize-train --segments s.csv"),
    "short names": ("train clips --batch 4 --lr 0.1 --workers 0", "train clips --batch 4 --lr 0.1 --workers 0"),
    "a nested field": ("train clips --clip.num-frames=4", "train clips --clip.num_frames=4"),
    "an entry of a mapping": ("train clips --model-options.a 1", "train clips --model_options.a 1"),
    "the recipe first": ("train clips --epochs 3 --recipe r", "train --recipe r clips --epochs 3"),
    "help alone": ("train clips --recipe nowhere.yaml --help", "train --help"),
    "dashes": ("predict run --top 1 -- -a.mp4", "predict --top 1 -- run -a.mp4"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_typed_becomes_what_is_read(spelling: str) -> None:
    typed, read = SPELLINGS[spelling]
    assert " ".join(normalized(typed.split(), PARSERS)) == read


EARLIER = {
    "tada localize new.mp4 --model runs/doors --plots plots/": "tada localize runs/doors new.mp4 --plots plots/",
    "tada localize - --model runs/doors --stream --format json": "tada localize runs/doors - --stream --format json",
    "tada localize evaluate --model runs/anet --segments s": "tada localize evaluate runs/anet --segments s",
    "tada export runs/doors doors.onnx --int8 clips/": "tada export runs/doors --out doors.onnx --int8 clips/",
    "tada extract runs/doors clips/ features": "tada extract runs/doors clips/ --out features",
    "tada prepare clips/ fast/": "tada prepare clips/ --out fast/",
    "tada convert a.pyth models/a --protocol ssv2-8": "tada convert a.pyth --out models/a --protocol ssv2-8",
    "tada localize import theirs ours --fps 30 --stride 4 --clip-frames 16": (
        "tada localize import theirs --out ours --fps 30 --stride 4 --clip-frames 16"
    ),
    "tada train clips/ --batch_size 16 --clip.num_frames 16": "tada train clips/ --batch-size 16 --clip.num-frames 16",
    "tada train clips/ --model_options '{adapted: true}'": "tada train clips/ --model-options '{adapted: true}'",
    "tada evaluate runs/a clips/ --num_nodes 2": "tada evaluate runs/a clips/ --num-nodes 2",
    "tada localize-train --segments s.csv": "tada localize train --segments s.csv",
}
"""Commands as they were written in earlier versions, and as they are now."""


@pytest.mark.parametrize("earlier", EARLIER)
def test_commands_of_earlier_versions_mean_the_same(earlier: str) -> None:
    parser, of_command = _parsers()
    old, new = (normalized(shlex.split(line)[1:], of_command) for line in (earlier, EARLIER[earlier]))
    assert old == new
    assert parser.parse_args(old).command == old[0]


def test_short_names_are_those_of_the_options() -> None:
    for command, short, dest in (
        ("train", "--lr", "learning_rate"),
        ("train", "--device", "accelerator"),
        ("train", "--workers", "num_workers"),
        ("localize-train", "--batch", "batch_size"),
        ("localize-train", "--device", "device"),
        ("extract", "--batch", "batch_size"),
        ("predict", "--device", "device"),
    ):
        assert PARSERS[command]._option_string_actions[short].dest == dest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, r"^epochs must be a whole number or null, not 'many'$"),
        ({"epochs": True}, r"^epochs must be a whole number or null, not True$"),
        ({"epoch": 3}, r"^no field is called 'epoch'; did you mean 'epochs'\?"),
        ({"clip": {"num_frame": 3}}, r"^no field of clip is called 'num_frame'; did you mean 'num_frames'\?"),
        ({"clip": {"num_frames": "x"}}, r"^clip\.num_frames must be a whole number, not 'x'$"),
        ({"clip": 3}, r"^clip must be a mapping of its fields: num_frames, .*, not 3$"),
        ({"model": 3}, r"^model must be a text, not 3$"),
        (
            {"short_side_range": [1]},
            r"^short_side_range must be a list of 2 whole numbers, such as \[1, 2\], not \[1\]$",
        ),
        (
            {"color_jitter": "x"},
            r"^color_jitter must be a list of 4 numbers, such as \[0\.1, 0\.2, 0\.3, 0\.4\], not 'x'$",
        ),
        ({"optimizer": "adam"}, r"^optimizer must be sgd or adamw, not 'adam'; did you mean adamw\?$"),
        ({"learning_rate": "0,5"}, r"^learning_rate must be a number, not '0,5': write 0\.5$"),
        ({3: 4}, r"^the name of a field is a word, not 3$"),
    ],
)
def test_fields_are_called_by_their_names(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(values)


def test_types_in_words() -> None:
    assert type_in_words(int | None) == "a whole number"
    assert type_in_words(float | None, null=True) == "a number or null"
    assert type_in_words(Literal[1, 3]) == "1 or 3"
    assert type_in_words(tuple[float, ...]) == "a list such as [0.1, 0.2, 0.3]"
    assert wrong_value("--top", PositiveInt, "0") == "--top must be a whole number from 1 on, not '0'"
