"""Released checkpoints become models that answer; files that are none are told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden.fill import fill_state
from tada.commands.cli import main
from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models.convert import PROTOCOLS, convert_checkpoint, protocol
from tada.models.weights import convert_published
from tada.recognition.recognizer import load_recognizer
from tada.video.sampling import ClipSpec

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """TAda2D-R50's weights under the released names, with three classes."""
    entries = json.loads((GOLDEN / "tada2d_r50_8f.json").read_text())["entries"]
    state = {name: torch.from_numpy(value).float() for name, value in fill_state(entries).items() if value.ndim}
    return {name: value[:3] if name.startswith("head.") else value for name, value in state.items()} | {
        entry["name"]: torch.tensor(0) for entry in entries if entry["shape"] == []
    }


@pytest.fixture(scope="module")
def checkpoint(released: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the released code saves it."""
    file = tmp_path_factory.mktemp("released") / "tada2d_8x8.pyth"
    torch.save({"epoch": 99, "model_state": released, "optimizer_state": {"state": {}}, "cfg": "TRAIN: true"}, file)
    return file


def test_a_released_checkpoint_answers(checkpoint: Path, released: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("abseiling\nair drumming\nzumba\n", encoding="utf-8")
    arguments = ["convert", checkpoint, tmp_path / "out", "--protocol", "k400-8x8"]
    options = ["--labels", tmp_path / "labels.txt", "--license", "Apache-2.0"]
    assert main([str(argument) for argument in arguments + options]) == 0
    recognizer = load_recognizer(tmp_path / "out", device="cpu")
    assert recognizer.labels == ("abseiling", "air drumming", "zumba")
    assert recognizer.clip == ClipSpec(num_frames=8, interval=8, fps=30, mode="official", short_side=256, crop=256)
    assert recognizer.card.model == "tada2d_r50"
    assert recognizer.card.trained_from == "the released checkpoint tada2d_8x8.pyth"
    assert recognizer.card.license == "Apache-2.0"
    weights = convert_published(released)[1]
    assert all(torch.equal(value, weights[name]) for name, value in recognizer.model.state_dict().items())


def test_a_clip_specification_of_ones_own(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", checkpoint, tmp_path / "out", "--clip.num_frames", "4", "--clip.sampling", "segment"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "tada2d_r50, 3 classes" in capsys.readouterr().out
    recognizer = load_recognizer(tmp_path / "out", device="cpu")
    assert recognizer.clip == ClipSpec(num_frames=4, sampling="segment")
    assert recognizer.labels == ("class_000", "class_001", "class_002")


def test_the_published_protocols() -> None:
    assert [(clip.num_frames, clip.sampling, clip.interval) for clip in PROTOCOLS.values()] == [
        (8, "interval", 8),
        (16, "interval", 5),
        (8, "segment", 8),
        (16, "segment", 8),
    ]
    assert all(
        (clip.mode, clip.fps, clip.short_side, clip.crop, clip.antialias) == ("official", 30, 256, 256, False)
        for clip in PROTOCOLS.values()
    )
    with pytest.raises(UnknownNameError, match=r"no protocol is called 'k400-8'; did you mean 'k400-8x8'"):
        protocol("k400-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "say which frames the checkpoint was trained on: --protocol, one of k400-8x8, k400-16x5, ssv2-8, ssv2-16,",
        ),
        (["--protocol", "k400"], "no protocol is called 'k400'; did you mean 'k400-8x8'"),
        (["--protocol", "ssv2-8", "--clip.num_frames", "8"], "--protocol and --clip both say which frames: give one"),
        (["--protocol", "ssv2-8", "--labels", "LABELS"], "'LABELS' has 2 lines, 'FILE' has 3 classes; give the name"),
        (["--protocol", "ssv2-8", "--labels", "DOUBLE"], "'DOUBLE', line 3 is the name of line 1 again; each class ne"),
        (["--protocol", "ssv2-8", "--labels", "BLANK"], "'BLANK', line 2 is empty; each class needs a name of its own"),
        (["--protocol", "ssv2-8", "--labels", "gone.txt"], "'gone.txt' cannot be read as text:"),
        (["--protocol", "ssv2-8", "--labels", "FILE"], "'FILE' cannot be read as text:"),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"FILE": checkpoint}
    for name, text in (("LABELS", "a\nb\n"), ("DOUBLE", "a\nb\na\n"), ("BLANK", "a\n\nc\n")):
        places[name] = tmp_path / f"{name}.txt"
        places[name].write_text(text)
    words = [str(places.get(option, option)) for option in options]
    assert main(["convert", str(checkpoint), str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    for name, path in places.items():
        message = message.replace(f"'{name}'", repr(str(path)))
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


class Wish:
    """Something that weights_only does not allow."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model_state": {}, "extra": Wish()},
            r"x.pyth' holds more than tensors and plain values, which could run cod",
        ),
        ({"epoch": 3}, r"x.pyth' holds, beside weights, epoch; a state dict may stand alone, or as 'model_state'"),
        ({"fc.weight": torch.zeros(2, 2)}, r"x.pyth': these are no weights of a released TAda2D: .* fc.weight"),
    ],
)
def test_files_that_are_no_released_checkpoint(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pyth")
    with pytest.raises(CheckpointError, match=message) as error:
        convert_checkpoint(tmp_path / "x.pyth", tmp_path / "out", clip=PROTOCOLS["ssv2-8"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_extra_and_other_weights(released: dict[str, Tensor], tmp_path: Path) -> None:
    """Each is listed, and nothing is loaded in part."""
    name = "backbone.conv3.res_2.conv_branch.b.weight"
    faults: list[tuple[dict[str, Any], str]] = [
        (
            {name: ...},
            r"1 of \d+ weights do not match: stages.1.1.conv2.conv.weight is \[128, 128, 3, 3\] in the model",
        ),
        (
            {"backbone.extra": torch.zeros(1)},
            r"1 of \d+ weights do not match: backbone.extra \(unknown\) is missing in",
        ),
        ({name: torch.zeros(128, 128, 1, 1)}, r"1 of \d+ weights do not match: stages.1.1.conv2.conv.weight is"),
    ]
    for change, message in faults:
        state = {key: value for key, value in (released | change).items() if value is not ...}
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=rf"x.pth': these are not the .* released tada2d_r50: {message}"):
            convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", clip=PROTOCOLS["ssv2-8"])


def test_a_used_folder_is_not_written_over(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"is not empty: choose another folder"):
        convert_checkpoint(checkpoint, tmp_path, clip=PROTOCOLS["ssv2-8"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
