"""What explains an answer: which clip, which class, where in the frames; its pictures and files; the command."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tada.commands.cli import main
from tada.errors import OptionError, OutputError, UnknownNameError
from tada.models import create_model
from tada.models.gradcam import look
from tada.models.onnx_model import OnnxNetwork
from tada.models.weights import ModelCard
from tada.recognition.explanation import Explanation
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.video.reader import open_video
from tada.video.sampling import ClipSpec
from tada.video.transforms import normalize, test_crops
from tada.video.writer import write_video

SPEC = ClipSpec(num_frames=4, interval=5, fps=10.0, short_side=36, crop=32)
SMALL = {"widths": (6, 8), "depths": (1, 1), "stem_width": 4, "start": "image"}


def recognizer(model: str = "tada2d_tiny", spec: ClipSpec = SPEC, **card: object) -> Recognizer:
    labels = card.pop("labels", ("dark", "bright"))
    assert isinstance(labels, tuple)
    torch.manual_seed(0)
    network = create_model(model, num_classes=len(labels), **SMALL)
    return Recognizer(
        network,
        ModelCard(model=model, labels=labels, clip=spec, trained_from="thought", **card),  # type: ignore[arg-type]
        device="cpu",
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at ten frames per second, 72 x 48 pixels, ever brighter."""
    path = tmp_path_factory.mktemp("video") / "dusk till dawn.mp4"
    noise = np.random.default_rng(0).integers(0, 60, (80, 48, 72, 3))
    write_video(path, (noise + np.linspace(0, 190, 80)[:, None, None, None]).astype(np.uint8), fps=10)
    return path


@pytest.fixture(scope="module")
def explained(video: Path) -> Explanation:
    return recognizer().explain(video)


def test_the_clip_is_the_one_in_which_the_class_is_most_probable(video: Path) -> None:
    model = recognizer()
    prediction = model.predict(video)
    assert len(prediction.clips) == 4
    for place, label in enumerate(model.labels):
        explanation = prediction.explain(label=label)
        best = max(prediction.clips, key=lambda clip: clip.scores[place])
        assert explanation.label == label
        assert explanation.score == best.scores[place]
        assert explanation.frame_numbers == best.frame_numbers
        assert explanation.times_seconds[0] == best.start_seconds
        assert explanation.times_seconds[-1] == best.end_seconds
    assert prediction.explain().label == prediction.label == model.explain(video).label
    assert prediction.explain(clip=2).frame_numbers == prediction.clips[2].frame_numbers


def test_it_is_the_look_of_the_network_as_it_was_trained(video: Path) -> None:
    mean, std = (0.1, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = recognizer(spec=replace(SPEC, mean=mean, std=std))
    explanation = model.explain(video, label="bright")
    with open_video(video) as reader:
        frames = torch.from_numpy(reader.frames(explanation.frame_numbers))
    (view,) = test_crops(frames, short_side=36, crop=32, num_crops=1, antialias=False)
    found = look(model.model, normalize(view[None], mean, std), lambda logits: logits[1])
    assert torch.equal(explanation.heat, found.heat)
    assert explanation.layers == found.layers == ("stages.0.0",)
    assert explanation.calibrations.keys() == found.calibrations.keys()
    assert np.array_equal(explanation.frames, frames.numpy())
    assert explanation.crop == pytest.approx((2 * 4 / 3, 11 * 4 / 3, 32 * 4 / 3, 32 * 4 / 3))


def test_an_answer_of_two_heads_is_what_speaks_for_both(video: Path) -> None:
    labels = ("open", "close", "door", "drawer", "lid")
    model = recognizer(labels=labels, head_sizes={"verb": 2, "noun": 3})
    explanation = model.explain(video, label="close drawer")
    with open_video(video) as reader:
        frames = torch.from_numpy(reader.frames(explanation.frame_numbers))
    (view,) = test_crops(frames, short_side=36, crop=32, num_crops=1, antialias=False)
    found = look(model.model, normalize(view[None]), lambda logits: logits[1] + logits[3])
    torch.testing.assert_close(explanation.heat, found.heat)
    with pytest.raises(UnknownNameError, match=r"no class is called 'close draw'; did you mean 'close drawer'"):
        model.explain(video, label="close draw")


def bright_square(path: Path, top: int, left: int, width: int, height: int) -> Path:
    frames = np.full((8, height, width, 3), 115, np.uint8)  # 0 once it is normalized
    frames[:, top : top + 8, left : left + 8] = 255
    write_video(path, frames, fps=10, crf=5)
    return path


def positive(model: Recognizer) -> Recognizer:
    """Every feature is how bright its surroundings are."""
    for parameter in model.model.parameters():
        parameter.data.abs_()
    for module in model.model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.fill_(1 / module.weight[0].numel())
    return model


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (192, 128)])
@pytest.mark.parametrize(("down", "right"), [(0.3, 0.4), (0.5, 0.6), (0.62, 0.35)])
def test_the_heat_is_where_in_the_frame_it_came_from(
    tmp_path: Path, width: int, height: int, down: float, right: float
) -> None:
    short = min(width, height)
    top = int((height - short) / 2 + down * short) - 4
    left = int((width - short) / 2 + right * short) - 4
    video = bright_square(tmp_path / "square.mp4", top, left, width, height)
    spec = ClipSpec(num_frames=2, sampling="segment", short_side=64, crop=60)
    explanation = positive(recognizer("tsn_tiny", spec)).explain(video, label="bright")
    heat = explanation.heat_in_frames()
    assert heat.shape == (2, height, width)
    mass = heat[0] * (heat[0] > 0.5 * heat[0].max())
    y, x = (np.average(np.arange(n) + 0.5, weights=mass.sum(axis)) for n, axis in ((height, 1), (width, 0)))
    cell = 4 * short / 64
    assert abs(y - top - 4) < cell / 2
    assert abs(x - left - 4) < cell / 2
    beside = (width - short) // 2
    if beside:
        assert not heat[:, :, :beside].any()
        assert not heat[:, :, -beside:].any()


def test_the_overlay_is_gray_where_it_is_cold_and_dark_where_nothing_was_seen(explained: Explanation) -> None:
    heat, overlay = explained.heat_in_frames(), explained.overlay()
    cold = heat < 1e-3
    assert overlay.shape == explained.frames.shape
    assert (np.ptp(overlay[cold].astype(int), axis=-1) <= 1).all()
    hottest = np.unravel_index(heat.argmax(), heat.shape)
    assert np.ptp(overlay[hottest].astype(int)) > 50
    assert overlay[:, 0, 0].mean() < 0.5 * explained.frames[:, 0, 0].mean()


def test_large_frames_are_kept_smaller(tmp_path: Path) -> None:
    write_video(tmp_path / "large.mp4", np.zeros((4, 720, 960, 3), np.uint8), fps=10)
    explanation = recognizer().explain(tmp_path / "large.mp4")
    assert explanation.frames.shape[1:3] == (360, 480)
    assert explanation.crop == pytest.approx((20, 80, 320, 320))


def test_what_is_saved(explained: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    explained.save("new/why")
    folder = Path("new/why")
    assert sorted(file.name for file in folder.iterdir()) == [
        "calibration.png",
        "explanation.json",
        "explanation.npz",
        "heat.png",
    ]
    about = json.loads((folder / "explanation.json").read_text())
    assert about["label"] == explained.label
    assert about["times_seconds"] == pytest.approx(explained.times_seconds)
    assert about["mean_heat"] == pytest.approx(explained.heat.mean((1, 2)).tolist(), abs=1e-6)
    with np.load(folder / "explanation.npz") as arrays:
        assert np.array_equal(arrays["heat"], explained.heat.numpy())
        for name, alpha in explained.calibrations.items():
            assert np.array_equal(arrays[f"calibration/{name}"], alpha.numpy())
            rms = [float(np.sqrt((frame**2).mean())) for frame in arrays[f"calibration/{name}"]]
            assert about["calibration_strength"][name] == pytest.approx(rms, abs=1e-6)
    for picture in ("heat.png", "calibration.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match=r"'new/why' is there already: give another name, or overwrite=True"):
        explained.save("new/why")
    (folder / "old.txt").write_text("of the explanation before")
    explained.save("new/why", overwrite=True)
    assert not (folder / "old.txt").exists()
    Path("new/mine").mkdir()
    with pytest.raises(OptionError, match=r"'new/mine' holds no explanation \(explanation\.json\), so it is not"):
        explained.save("new/mine", overwrite=True)
    assert sorted(file.name for file in Path("new").iterdir()) == ["mine", "why"]


def test_nothing_is_left_of_what_could_not_be_saved_whole(
    explained: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    explained.save(tmp_path / "old")
    before = (tmp_path / "old" / "explanation.json").stat()
    monkeypatch.setattr(np, "savez_compressed", full)
    for name in ("new", "old"):
        with pytest.raises(OutputError, match=rf"{name}' cannot be written: the disk is full; make room"):
            explained.save(tmp_path / name, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "explanation.json").stat() == before


def test_pictures_of_many_frames_and_of_one(video: Path, tmp_path: Path) -> None:
    for num_frames in (1, 40):
        spec = ClipSpec(num_frames=num_frames, sampling="segment", short_side=36, crop=32)
        explanation = recognizer("tada2d_tiny", spec).explain(video)
        explanation.plot(tmp_path / "heat.png")
        explanation.plot_calibration(tmp_path / "calibration.png", layer="stages.1.0.conv2.conv")
        assert (tmp_path / "heat.png").stat().st_size > 10_000
    with pytest.raises(UnknownNameError, match=r"no calibrated layer is called 'stages\.1\.0\.conv3'; did you mean"):
        explanation.plot_calibration(tmp_path / "other.png", layer="stages.1.0.conv3")


def test_without_tadaconv_there_is_a_heat_map_only(video: Path, tmp_path: Path) -> None:
    explanation = recognizer("tsn_tiny").explain(video)
    assert explanation.note == "the network has no TAdaConv, so no kernel is calibrated: there is a heat map only"
    explanation.save(tmp_path / "why")
    assert not (tmp_path / "why" / "calibration.png").exists()
    assert (tmp_path / "why" / "heat.png").exists()
    assert json.loads((tmp_path / "why" / "explanation.json").read_text())["note"] == explanation.note
    with pytest.raises(OptionError, match="no kernel is calibrated"):
        explanation.plot_calibration(tmp_path / "calibration.png")


def test_what_speaks_for_nothing_is_said(video: Path) -> None:
    model = positive(recognizer("tsn_tiny"))
    model.model.get_parameter("head.weight").data[0] = -1
    assert "nothing in stages.0.0 speaks for 'dark'" in model.explain(video, label="dark").note


class _NoSession:
    pass


def test_what_cannot_be_explained(video: Path) -> None:
    model = recognizer()
    prediction = model.predict(video)
    onnx = Recognizer(OnnxNetwork(_NoSession()), model.card, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"an ONNX file gives logits only, .* explain with the run"):
        onnx.explain(video)
    with pytest.raises(OptionError, match=r"clip = 4 should be from 0 to 3"):
        prediction.explain(clip=4)
    with pytest.raises(OptionError, match=r"a recognizer with other classes"):
        recognizer(labels=("a", "b", "c")).explain(prediction)
    for other in (pickle.loads(pickle.dumps(prediction)), copy.copy(prediction)):
        assert other == prediction
        with pytest.raises(
            OptionError, match=r"was pickled without its recognizer: call recognizer\.explain\(prediction\)"
        ):
            other.explain()
        assert torch.equal(model.explain(other).heat, prediction.explain().heat)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a video of the same name in two folders."""
    monkeypatch.chdir(tmp_path)
    frames = np.full((8, 48, 64, 3), 40, np.uint8)
    for i in range(8):
        frames[i, 16:32, 4 + 5 * i : 20 + 5 * i] = (200, 180, 90)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        write_video(Path(folder) / "clip.mp4", frames, fps=8)
    return tmp_path


def test_the_command_writes_a_folder_for_each_video(motion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "tada2d_tiny_motion", "one", "two", "--explain", "why", "--device", "cpu"]
    assert main(command) == 0
    assert sorted(file.name for file in Path("why").iterdir()) == ["one_clip", "two_clip"]
    about = json.loads(Path("why/two_clip/explanation.json").read_text())
    assert about["video"] == "two/clip.mp4"
    assert about["label"] == "right"
    capsys.readouterr()
    assert main(command) == 2
    message = "tada: 'why/one_clip' is there already: give another folder, or replace it with --overwrite\n"
    assert capsys.readouterr().err == message
    assert main([*command, "--overwrite", "--explain-label", "left"]) == 0
    assert json.loads(Path("why/two_clip/explanation.json").read_text())["label"] == "left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "why", "--explain-label", "rigth"], "no class is called 'rigth'; did you mean 'right'"),
        (["--explain-label", "right"], "--explain-label goes with --explain DIR"),
    ],
)
def test_the_command_says_what_is_wrong_before_the_work(
    motion: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["predict", "tada2d_tiny_motion", "one", "--device", "cpu", *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not Path("why").exists()


def test_a_prediction_of_the_shipped_weights_explains_itself(motion: Path) -> None:
    explanation = load_recognizer("tada2d_tiny_motion", device="cpu").predict("one/clip.mp4").explain()
    assert explanation.label == "right"
    assert explanation.heat.shape == (8, 12, 12)
    assert explanation.note == ""
    assert [tuple(alpha.shape) for alpha in explanation.calibrations.values()][:2] == [(8, 16), (8, 24)]
