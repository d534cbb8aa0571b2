"""Released checkpoints become models that answer; files that are none are told by name."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden.fill import fill_state
from tada.commands.cli import main
from tada.errors import CheckpointError, OptionError, UnknownNameError
from tada.models import create_model, with_normalization
from tada.models.class_names import class_names
from tada.models.convert import clip_of_settings, convert_checkpoint
from tada.models.published import PROTOCOLS, protocol
from tada.models.released_names import join_heads, names_here
from tada.models.weights import convert_published, read_weights
from tada.recognition.recognizer import load_recognizer
from tada.video.sampling import CLIP_NORMALIZATION, ClipSpec

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
    assert recognizer.clip == PROTOCOLS["k400-8x8"]
    assert recognizer.card.model == "tada2d_r50"
    assert recognizer.card.trained_from == "the released checkpoint tada2d_8x8.pyth"
    assert recognizer.card.license == "Apache-2.0"
    weights = convert_published(released)[1]
    assert all(torch.equal(value, weights[name]) for name, value in recognizer.model.state_dict().items())


def test_a_clip_specification_of_ones_own(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", checkpoint, tmp_path / "out", "--clip.num_frames", "4", "--clip.sampling", "segment"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "tada2d_r50, 3 classes" in capsys.readouterr().out
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    clip = with_normalization(ClipSpec(num_frames=4, sampling="segment"), "tada2d_r50")
    assert card["clip"] == json.loads(json.dumps(asdict(clip)))
    assert card["labels"] == ["class_000", "class_001", "class_002"]


def with_head(released: dict[str, Tensor], *sizes: int) -> dict[str, Tensor]:
    """The weights with a head of so many classes; of two sizes, the head for verbs and nouns."""
    layers = ["head.out"] if len(sizes) == 1 else ["head.linear1", "head.linear2"]
    state = {name: value for name, value in released.items() if not name.startswith("head.")}
    for layer, size in zip(layers, sizes, strict=True):
        state[f"{layer}.weight"] = torch.linspace(-1, 1, size * 2048).view(size, 2048)
        state[f"{layer}.bias"] = torch.linspace(0, 1, size)
    return state


def settings(**data: Any) -> str:
    """The settings that the released code saves with the weights, as far as the test reads them."""
    size = {"TEST_SCALE": 256, "TEST_CROP_SIZE": 256}
    pixels = {"MEAN": [0.45, 0.45, 0.45], "STD": [0.225, 0.225, 0.225]}
    data = {"TARGET_FPS": 30, "SAMPLING_MODE": "interval_based", **size, **pixels, **data}
    return json.dumps({"TRAIN": {"ENABLE": True}, "DATA": data}, indent=2)


def test_a_released_file_needs_no_options(
    released: dict[str, Tensor], motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Network and classes are told by names and shapes, clips by the file's settings; half precision is told."""
    cfg = settings(NUM_INPUT_FRAMES=4, SAMPLING_RATE=5, TEST_SCALE=40, TEST_CROP_SIZE=32)
    half = {name: value.half() if value.is_floating_point() else value for name, value in released.items()}
    torch.save({"model_state": with_head(half, 400), "cfg": cfg}, tmp_path / "epoch_100.pyth")
    assert main(["convert", str(tmp_path / "epoch_100.pyth"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "epoch_100.pyth holds float16: the model is saved in float32",
        "class names: those of Kinetics-400; if it was trained on others, give --labels",
        "tada2d_r50, 400 classes (abseiling, ...), 4 frames; next:",
        f"  tada predict {tmp_path / 'out'} VIDEO",
    ]
    card = load_recognizer(tmp_path / "out", device="cpu").card
    assert card.clip == replace(PROTOCOLS["k400-16x5"], num_frames=4, short_side=40, crop=32)
    assert card.labels == class_names("k400")
    video = sorted(motion_videos.rglob("*.mp4"))[0]
    assert main(["predict", str(tmp_path / "out"), str(video), "--top", "1", "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["label"] in card.labels


def test_classes_tell_the_data_set_and_its_protocol(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model_state": with_head(released, 174), "cfg": "of other code"}, tmp_path / "something.pyth")
    said: list[str] = []
    card = convert_checkpoint(tmp_path / "something.pyth", tmp_path / "ssv2", say=said.append)
    assert (card.labels, card.head_sizes, card.clip) == (class_names("ssv2"), {}, PROTOCOLS["ssv2-8"])
    assert said == [
        "class names: those of Something-Something-v2; if it was trained on others, give --labels",
        "something.pyth does not say which frames it takes: --protocol ssv2-8 is taken; if that is not so, give "
        "--protocol ssv2-16",
    ]

    state = with_head(released, 97, 300)
    cfg = settings(NUM_INPUT_FRAMES=32, SAMPLING_RATE=2, TARGET_FPS=60)
    torch.save({"model_state": state, "cfg": cfg}, tmp_path / "epic.pyth")
    card = convert_checkpoint(tmp_path / "epic.pyth", tmp_path / "epic", clip=PROTOCOLS["k400-8x8"], say=said.append)
    assert said[2:] == [
        "class names: those of EPIC-KITCHENS-100; if it was trained on others, give --labels",
        "the settings in epic.pyth say 32 frames, one of every 2 at 60 a second: 1.07 s of video; short side 256, "
        "crop 256 x 256 pixels: they are not used",
    ]
    assert card.labels == class_names("epic100_verbs") + class_names("epic100_nouns")
    assert (card.head_sizes, card.clip) == ({"verb": 97, "noun": 300}, PROTOCOLS["k400-8x8"])
    head = read_weights(tmp_path / "epic" / "model.safetensors")["head.weight"]
    assert torch.equal(head, torch.cat([state["head.linear1.weight"], state["head.linear2.weight"]]))


def released_former(num_classes: int) -> dict[str, Tensor]:
    """The weights of a ``tadaformer_tiny`` under the names of TAdaFormer-B/16's."""
    entries = json.loads((GOLDEN / "tadaformer_b16_train.json").read_text())["entries"]
    theirs = [entry["name"] for entry in entries if not re.match(r"backbone\.layers\.([4-9]|1\d)\.", entry["name"])]
    torch.manual_seed(0)
    ours = create_model("tadaformer_tiny", num_classes=num_classes).state_dict()
    return {theirs: ours[here] for theirs, here in names_here(theirs).items()}


@pytest.mark.parametrize(
    ("num_classes", "labels", "said"),
    [
        (
            400,
            class_names("k400"),
            [
                "class names: those of Kinetics-400; if it was trained on others, give --labels",
                "it.pyth does not say which frames it takes: --protocol tadaformer-16 is taken; if that is not so, "
                "give --protocol tadaformer-32 or tadaformer-64",
                "its positions are those of frames of 48 x 48 pixels: its clips have this size",
            ],
        ),
        (
            710,
            tuple(f"class_{i:03d}" for i in range(710)),
            [
                "the classes are Kinetics-710's, whose order was not published: they are called class_000 and on; "
                "--labels gives their names",
                "it.pyth does not say which frames it takes: --protocol tadaformer-16 is taken",
                "its positions are those of frames of 48 x 48 pixels: its clips have this size",
            ],
        ),
    ],
)
def test_a_released_tadaformer_needs_no_options(
    num_classes: int,
    labels: tuple[str, ...],
    said: list[str],
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tada.models.released_names._TADAFORMER", {(4, (96, 3, 3, 8, 8)): "tadaformer_tiny"})
    torch.save({"model_state": released_former(num_classes)}, tmp_path / "it.pyth")
    assert main(["convert", str(tmp_path / "it.pyth"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == said
    card = load_recognizer(tmp_path / "out", device="cpu").card
    clip = replace(PROTOCOLS["tadaformer-16"], short_side=48, crop=48)
    assert (card.labels, card.clip, card.options) == (labels, clip, {"grid": [6, 6]})
    video = sorted(motion_videos.rglob("*.mp4"))[0]
    assert main(["predict", str(tmp_path / "out"), str(video), "--top", "1", "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["label"] in labels


def released_convnext(name: str) -> dict[str, Tensor]:
    """A TAdaConvNeXt's weights under the released names: TAdaConvNeXt-T's, with more blocks in the third stage."""
    entries = json.loads((GOLDEN / "tadaconvnext_t.json").read_text())["entries"]
    theirs = [str(entry["name"]) for entry in entries]
    first_block = [key for key in theirs if key.startswith("backbone.stages.2.0.")]
    more = range(9, 9 if name == "tadaconvnext_t" else 27)
    theirs += [key.replace("stages.2.0.", f"stages.2.{block}.") for block in more for key in first_block]
    with torch.device("meta"):
        ours = create_model(name).state_dict()
    return {theirs: torch.rand(ours[here].shape) for theirs, here in names_here(theirs).items()}


@pytest.mark.parametrize(
    "name", ["tadaconvnext_t", *(pytest.param(f"tadaconvnext_{size}", marks=pytest.mark.slow) for size in "sb")]
)
def test_a_released_convnext_needs_no_options(name: str, tmp_path: Path) -> None:
    state = released_convnext(name)
    torch.save(state, tmp_path / "pytorch_model.pt")
    said: list[str] = []
    card = convert_checkpoint(tmp_path / "pytorch_model.pt", tmp_path / "out", say=said.append)
    assert (card.model, card.labels, card.clip) == (name, class_names("k400"), PROTOCOLS["k400-16x5"])
    assert said == [
        "class names: those of Kinetics-400; if it was trained on others, give --labels",
        "pytorch_model.pt does not say which frames it takes: --protocol k400-16x5 is taken",
    ]
    weights = read_weights(tmp_path / "out" / "model.safetensors")
    assert len(weights) == len(state)
    assert all(torch.equal(state[theirs], weights[here]) for theirs, here in names_here(state).items())


def test_clips_that_are_too_small_for_it_are_refused(tmp_path: Path) -> None:
    torch.save(released_convnext("tadaconvnext_t"), tmp_path / "pytorch_model.pt")
    small = ClipSpec(num_frames=16, sampling="segment", short_side=32, crop=24)
    with pytest.raises(
        OptionError, match=r"clips of 24 x 24 pixels are smaller than this network's stride: .* 32 x 32"
    ):
        convert_checkpoint(tmp_path / "pytorch_model.pt", tmp_path / "out", clip=small, say=print)
    assert not (tmp_path / "out").exists()


def test_settings_of_the_released_code() -> None:
    """A clip where they say all; what other code saved says nothing."""
    eight = {"NUM_INPUT_FRAMES": 8, "SAMPLING_RATE": 8}
    for name, text in {
        "k400-8x8": settings(**eight),
        "k400-16x5": settings(NUM_INPUT_FRAMES=16, SAMPLING_RATE=5),
        "ssv2-16": settings(NUM_INPUT_FRAMES=16, SAMPLING_MODE="segment_based", SAMPLING_RATE=4),
        "epic100-8x8": settings(**eight, TARGET_FPS=60),
    }.items():
        assert clip_of_settings(text) == PROTOCOLS[name]
    mean, std = CLIP_NORMALIZATION
    of_clip = clip_of_settings(settings(**eight, MEAN=mean, STD=std))
    assert of_clip == replace(PROTOCOLS["k400-8x8"], mean=mean, std=std)
    silent = clip_of_settings(settings(**eight, MEAN=None, STD=None))
    assert silent == replace(PROTOCOLS["k400-8x8"], mean=None, std=None)
    for text in ("", "TRAIN: true", "[1]", "{}", '{"DATA": 3}', settings(NUM_INPUT_FRAMES="8", SAMPLING_RATE=8)):
        assert clip_of_settings(text) is None
    assert clip_of_settings(settings(**eight, TEST_CROP_SIZE=1 << 40)) is None


def test_the_head_of_verbs_and_nouns_is_joined_only_whole() -> None:
    layers = {
        f"head.linear{i}.{end}": torch.zeros(i, *rest) for i in (1, 2) for end, rest in (("weight", (4,)), ("bias", ()))
    }
    joined, sizes = join_heads(layers | {"backbone.norm.weight": torch.ones(2)})
    assert {name: tuple(value.shape) for name, value in joined.items()} == {
        "backbone.norm.weight": (2,),
        "head.out.weight": (3, 4),
        "head.out.bias": (3,),
    }
    assert sizes == {"verb": 1, "noun": 2}
    for name in layers:
        rest = {other: value for other, value in layers.items() if other != name}
        assert join_heads(rest) == (rest, {})


def test_the_published_protocols() -> None:
    assert [(clip.num_frames, clip.sampling, clip.interval) for clip in PROTOCOLS.values()] == [
        (8, "interval", 8),
        (16, "interval", 5),
        (8, "segment", 8),
        (16, "segment", 8),
        (32, "segment", 8),
        (8, "interval", 8),
        (16, "segment", 8),
        (32, "segment", 8),
        (64, "segment", 8),
    ]
    for name, clip in PROTOCOLS.items():
        side = 224 if name.startswith("tadaformer-") else 256
        assert (clip.mode, clip.short_side, clip.crop, clip.antialias) == ("official", side, side, False)
    assert {name: clip.fps for name, clip in PROTOCOLS.items() if clip.fps != 30} == {"epic100-8x8": 60}
    with pytest.raises(UnknownNameError, match=r"no protocol is called 'k400-8'; did you mean 'k400-8x8'"):
        protocol("k400-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "'FILE' does not say which frames it was trained on: give --protocol, one of k400-8x8, k400-16x5, ssv2-8, ",
        ),
        (["--protocol", "k400"], "no protocol is called 'k400'; did you mean 'k400-8x8'"),
        (["--protocol", "ssv2-8", "--clip.num_frames", "8"], "--protocol and --clip both say which frames: give one"),
        (["--protocol", "ssv2-8", "--labels", "LABELS"], "'LABELS' has 2 lines, 'FILE' has 3 classes; give the name"),
        (["--protocol", "ssv2-8", "--labels", "DOUBLE"], "'DOUBLE', line 3 is the name of line 1 again; each class ne"),
        (["--protocol", "ssv2-8", "--labels", "BLANK"], "'BLANK', line 2 is empty; each class needs a name of its own"),
        (["--protocol", "ssv2-8", "--labels", "gone.txt"], "'gone.txt' cannot be read as text:"),
        (["--protocol", "ssv2-8", "--labels", "FILE"], "'FILE' cannot be read as text:"),
        (["--protocol", "ssv2-8", "--labels", "FOLDER"], "'FOLDER' cannot be read as text: it is a folder, pipe or"),
        (["--protocol", "ssv2-8", "--labels", "hmdb51"], "the list 'hmdb51' has 51 names, 'FILE' has 3 classes; give"),
        (["--protocol", "ssv2-8", "--labels", "epic100"], "the list 'epic100' has 97 + 300 names, 'FILE' has 3 clas"),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str],
    message: str,
    checkpoint: Path,
    released: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tada.models.convert.read_checkpoint", lambda file: (released, ""))  # the same, and faster
    places = {"FILE": checkpoint, "FOLDER": tmp_path}
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


@pytest.mark.slow
def test_a_released_tadaformer_of_other_frames(tmp_path: Path) -> None:
    """Of 112 x 112 pixels: the model remembers its grid, and takes others too."""
    entries = json.loads((GOLDEN / "tadaformer_b16_train.json").read_text())["entries"]
    state = {entry["name"]: torch.rand(entry["shape"]).half() for entry in entries}
    torch.save({"model_state": state}, tmp_path / "b16.pyth")
    said: list[str] = []
    clip = ClipSpec(num_frames=4, sampling="segment", short_side=112, crop=112)
    card = convert_checkpoint(tmp_path / "b16.pyth", tmp_path / "out", clip=clip, say=said.append)
    assert said[0] == "b16.pyth holds float16: the model is saved in float32"
    assert (card.model, card.options, len(card.labels)) == ("tadaformer_b16", {"grid": [7, 7]}, 400)
    model = load_recognizer(tmp_path / "out", device="cpu").model
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 4, 112, 112)).shape == model(torch.randn(1, 3, 2, 64, 96)).shape == (1, 400)
