"""The library as a program or a notebook uses it: calls with plain values, and results that show themselves."""

from __future__ import annotations

import json
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tada
from tada.data.annotations import read_dataset
from tada.data.table import Head
from tada.errors import CheckpointError, DataError, OptionError, UnknownNameError
from tada.export import export
from tada.localization.localizer import Localization, LocalizedSegment, Localizer, load_localizer
from tada.localization.recipe import LocalizationRecipe
from tada.localization.train_from_videos import train_on_videos
from tada.models import with_normalization
from tada.models.weights import packaged, packaged_names, read_weights
from tada.recognition.prediction import ClipScores, Prediction
from tada.recognition.recipe import Recipe
from tada.recognition.results import UNKNOWN, Evaluation
from tada.system.devices import Machine
from tada.video.reader import open_video


def silent(line: str) -> None:
    pass


QUIET: dict[str, Any] = {"num_workers": 0, "show_progress": False, "say": silent}


@pytest.fixture(scope="module")
def run(motion_videos: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained as a program would: with strings, and fields of the recipe as arguments."""
    folder = tmp_path_factory.mktemp("python")
    result = tada.train(small_recipe, str(motion_videos), str(folder / "run"), epochs=1, device="cpu", **QUIET)
    return result.run


class Balance(HTMLParser):
    """Makes sure that every tag is closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_names_the_calls_with_an_example_each() -> None:
    page = pydoc.plain(pydoc.render_doc(tada))
    described = page[: page.index("PACKAGE CONTENTS")]
    for call in ("predict", "train", "evaluate", "load", "create_model", "list_models", "adapt", "load_recipe"):
        assert f"tada.{call}(" in described
    for attribute in ("predict(frames", "explain()", "as_dict()", "to_rows()", "plot(", "save_video("):
        assert attribute in described
    named = set(re.findall(r"tada\.(\w+)", described))
    assert named <= {*tada.__all__}, "help tells of names that are not there"
    assert max(map(len, described.splitlines())) <= 80
    for name in ("predict", "train", "evaluate", "load", "create_model"):
        assert f"tada.{name}(" in pydoc.plain(pydoc.render_doc(getattr(tada, name)))


def test_no_module_hides_a_verb() -> None:
    """``import tada.X`` would put a module in the place of the function X."""
    modules = {path.stem for path in Path(tada.__file__).parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(tada.__all__)
    code = "import tada, tada.recognition.recognizer, tada.loading; assert callable(tada.predict), tada.predict"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ModuleNotFoundError, match=r"tada\.predict"):
        __import__("tada.predict")


# -- training and testing ---------------------------------------------------------------------------------------------


def test_training_takes_names_strings_and_fields(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").symlink_to(motion_videos)
    result = tada.train("quickstart", "clips", "run", epochs=1, batch_size=6, device="cpu", **QUIET)
    assert result.run == Path("run")
    trained = tada.load_recipe("run/recipe.yaml")
    asked = tada.load_recipe("quickstart", epochs=1, batch_size=6, warmup_epochs=None)
    clip = with_normalization(asked.clip, asked.model)
    assert replace(trained, warmup_epochs=None) == replace(asked, clip=clip, precision="fp32")
    tested = tada.evaluate("run", "clips", views="2x1", device="cpu", **QUIET)
    assert str(tested.views[0]) == "2x1"
    assert len(tested.paths) == 3
    tested.save("report")
    assert Path("report/evaluation.json").exists()


def test_training_without_a_recipe_takes_the_defaults_or_those_of_the_run(
    motion_videos: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    fields = {"model_options": small_recipe.model_options, "init": "none", "clip": small_recipe.clip, "epochs": 1}
    result = tada.train(
        None, motion_videos, tmp_path / "run", short_side_range=(20, 26), batch_size=4, device="cpu", **fields, **QUIET
    )
    trained = tada.load_recipe(result.run / "recipe.yaml")
    fields["clip"] = with_normalization(small_recipe.clip, trained.model)
    assert trained == replace(
        Recipe(),
        short_side_range=(20, 26),
        batch_size=4,
        warmup_epochs=trained.warmup_epochs,
        precision="fp32",
        **fields,
    )
    again = tada.train(None, motion_videos, result.run, resume=True, **QUIET)
    assert again.metrics == result.metrics
    more = tada.train(None, motion_videos, result.run, resume=True, epochs=2, **QUIET)
    assert tada.load_recipe(more.run / "recipe.yaml").epochs == 2
    with pytest.raises(OptionError, match=r"was begun with 2 epochs, and can only go on with more"):
        tada.train(None, motion_videos, result.run, resume=True, epochs=1, **QUIET)


def test_tables_and_lists_are_data_too(run: Path, motion_videos: Path, tmp_path: Path) -> None:
    table = read_dataset(motion_videos)
    lines = ["path,label,split"]
    lines += [f"{video.path},{table.heads[0].labels[video.labels[0]]},test" for video in table.videos[:3]]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"test videos were trained on|was trained on all"):
        tada.evaluate(str(run), str(tmp_path / "list.csv"), root="/", device="cpu", **QUIET)
    (tmp_path / "new").mkdir()
    for number, video in enumerate(table.videos[:3]):
        content = Path(video.path).read_bytes()
        (tmp_path / "new" / f"{number}.mp4").write_bytes(content + b"\0\0\0\x08free" + bytes([number]))
    del lines[1:]
    lines += [f"{n}.mp4,{table.heads[0].labels[video.labels[0]]},test" for n, video in enumerate(table.videos[:3])]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    assert len(tada.evaluate(run, str(tmp_path / "list.csv"), root=str(tmp_path / "new"), **QUIET).paths) == 3
    assert len(tada.evaluate(run, table, split="val", **QUIET).paths) == 3


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no field": (
        {"epoch": 3},
        UnknownNameError,
        "no recipe field or argument of train is called 'epoch'; did you mean",
    ),
    "short": ({"lr": 0.1}, UnknownNameError, "'lr'; did you mean 'learning_rate'"),
    "beginning": ({"batch": 4}, UnknownNameError, "'batch'; did you mean 'batch_size'"),
    "argument": ({"workers": 4}, UnknownNameError, "'workers'; did you mean 'num_workers'"),
    "in clip": ({"clip": {"frames": 4}}, UnknownNameError, "no field of clip is called 'frames'; did you mean"),
    "type": ({"epochs": "many"}, OptionError, "epochs must be a whole number or null, not 'many'"),
    "range": ({"epochs": 0}, OptionError, "the recipe's epochs must be 1 or more"),
    "device": ({"device": "cuda:1"}, OptionError, "should be 'cpu', 'cuda' or 'mps'"),
    "both": ({"device": "cpu", "machine": Machine()}, OptionError, "device and machine both say where to train"),
    "recipe": ({"recipe": "quickstar"}, UnknownNameError, "no recipe is called 'quickstar'; did you mean 'quickstart'"),
    "data": ({"data": "gone"}, DataError, "'gone' is not there"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_before_anything_is_written(
    case: str, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, kind, message = WRONG[case]
    call = {"recipe": "quickstart", "data": motion_videos, "out": "run", **options}
    with pytest.raises(kind, match=message) as raised:
        tada.train(**call, **QUIET)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_recipes_fields_may_be_given_in_any_plain_form() -> None:
    recipe = tada.load_recipe("quickstart", clip={"num_frames": 4}, epochs=np.int64(3), init=Path("a/run"))
    clip = tada.load_recipe("quickstart").clip
    assert (recipe.clip, recipe.epochs, recipe.init) == (replace(clip, num_frames=4), 3, "a/run")
    assert tada.load_recipe("quickstart", clip=replace(clip, crop=24)).clip == replace(clip, crop=24)
    assert tada.load_recipe("quickstart", model_options={"widths": (8, 8, 8, 8)}).model_options == {"widths": [8] * 4}
    with pytest.raises(UnknownNameError, match="no field is called 'epoch'; did you mean 'epochs'"):
        tada.load_recipe("quickstart", epoch=3)


# -- loading, answers in one call -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localizer_run(untrimmed: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("when") / "run"
    recipe = LocalizationRecipe(dim=16, epochs=1, batch_size=1, ema_decay=0.5)
    segments = untrimmed / "segments.csv"
    train_on_videos(recipe, untrimmed, segments, out, backbone=str(small_backbone), window_seconds=1.0, **QUIET)
    return out


def test_whatever_was_trained_is_loaded_and_predicts_alike(
    run: Path, localizer_run: Path, untrimmed: Path, motion_videos: Path, tmp_path: Path
) -> None:
    recognizer = tada.load(str(run))
    assert isinstance(recognizer, tada.Recognizer)
    export(str(run), str(tmp_path / "model.onnx"), say=silent)
    video = str(untrimmed / "v2.mp4")
    first = recognizer.predict(video)
    exported = tada.load(str(tmp_path / "model.onnx")).predict(video)
    assert isinstance(exported, Prediction)
    assert exported.scores == pytest.approx(first.scores, abs=1e-4)
    localizer = tada.load(localizer_run)
    assert isinstance(localizer, Localizer)
    found = localizer.predict(video, min_score=0.0)
    assert isinstance(found, Localization)
    assert found == localizer.localize(video, min_score=0.0)
    assert len(found.segments) > 0
    whole = localizer.predict(Path(video).read_bytes(), min_score=0.0)
    assert (whole.segments, whole.path) == (found.segments, "<bytes>")
    assert [one.path for one in localizer.predict([video, video])] == [video, video]
    answers = localizer.predict(iter([Path(video).read_bytes()]))
    answer = next(answers)
    answer.plot(str(tmp_path / "a.png"))
    answer.save_video(str(tmp_path / "a.mp4"))
    for model in (recognizer, localizer):
        assert "\n" not in repr(model)
        assert len(repr(model)) < 400


def test_a_localizer_takes_frames_with_their_rate(localizer_run: Path, untrimmed: Path) -> None:
    localizer = load_localizer(localizer_run)
    with open_video(untrimmed / "v2.mp4") as opened:
        frames = opened.frames(range(opened.info.num_frames))
    found = localizer.predict(frames, fps=8, min_score=0.0)
    assert found.segments == localizer.localize(untrimmed / "v2.mp4", min_score=0.0).segments
    with pytest.raises(OptionError, match=r"<array> does not say when .* and a localizer does: give fps"):
        localizer.predict(frames)


def test_an_answer_in_one_call(run: Path, motion_videos: Path) -> None:
    video = sorted((motion_videos / "left").iterdir())[0]
    found = tada.predict(str(video))
    assert isinstance(found, Prediction)
    assert found == tada.load(packaged_names()[0]).predict(video)
    own = tada.predict(video, str(run), device="cpu", num_clips=2)
    assert own == tada.predict(video, model=tada.load(run), num_clips=2)
    several = tada.predict([video, video], run)
    assert isinstance(several, list)
    assert len(several) == 2
    with pytest.raises(CheckpointError, match="'gone' is no folder"):
        tada.predict(video, "gone")


# -- networks with trained weights ------------------------------------------------------------------------------------


def test_networks_come_with_trained_weights(run: Path, tmp_path: Path) -> None:
    (name,) = packaged_names()
    weights = read_weights(packaged(name) / "model.safetensors")
    for pretrained in (True, name, str(packaged(name)), packaged(name)):
        model = tada.create_model("tada2d_tiny", pretrained=pretrained)
        assert model.training
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    for number, same in ((20, True), (5, False), (400, False)):
        model = tada.create_model("tada2d_tiny", pretrained=True, num_classes=number)
        assert model.state_dict()["head.bias"].shape == (number,)
        assert torch.equal(model.state_dict()["stem_conv.weight"], weights["stem_conv.weight"])
        assert (number == 20 and torch.equal(model.state_dict()["head.weight"], weights["head.weight"])) == same
    small = tada.create_model("tada2d_tiny", pretrained=str(run))  # of other widths, which its card tells
    assert small.state_dict().keys() == tada.load(run).model.state_dict().keys()  # type: ignore[union-attr]
    of_file = tada.create_model("tada2d_tiny", pretrained=packaged(name) / "model.safetensors", num_classes=3)
    assert torch.equal(of_file.state_dict()["stem_conv.weight"], weights["stem_conv.weight"])
    assert tada.create_model("tada2d_tiny").state_dict()["head.bias"].shape == (400,)
    for model_name, pretrained, kind, message in (
        ("tada2d_r50", True, OptionError, "no weights of tada2d_r50 ship with tada"),
        ("tada2d_r50", name, CheckpointError, "holds a tada2d_tiny, and no tada2d_r50"),
        ("tada2d_tiny", "gone", OptionError, "pretrained='gone' is neither there nor one of the weights"),
        ("tada2d_tin", True, UnknownNameError, "no model is called 'tada2d_tin'; did you mean 'tada2d_tiny'"),
    ):
        with pytest.raises(kind, match=message):
            tada.create_model(model_name, pretrained=pretrained)
    with pytest.raises(CheckpointError, match=f"the weights of {name} do not fit"):
        tada.create_model("tada2d_tiny", pretrained=name, stem_width=8)


# -- results ----------------------------------------------------------------------------------------------------------

LABELS = tuple(f"class {i} <b>&" for i in range(400))
PREDICTION = Prediction(
    path="a <day>.mp4",
    labels=LABELS,
    scores=tuple(np.linspace(0, 0.5, 400)),
    clips=tuple(
        ClipScores(start_seconds=float(i), end_seconds=i + 0.75, scores=tuple(np.linspace(0.5, 0, 400)))
        for i in range(40)
    ),
)
LOCALIZATION = Localization(
    path="long\x1b[2J.mp4",
    duration_seconds=60.0,
    segments=tuple(
        LocalizedSegment(start_seconds=float(i), end_seconds=i + 0.5, label=f"<{i % 7}>", score=0.5) for i in range(50)
    ),
)


def evaluation(**changes: Any) -> Evaluation:
    heads = (Head(name="action", labels=("left", "right", "up")),)
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 0, 1]] * 0.5 + 1 / 6
    return replace(
        Evaluation(
            heads=heads,
            ids=tuple("abcdef"),
            paths=tuple(f"{name}.mp4" for name in "abcdef"),
            groups=(None,) * 6,
            targets=np.array([[0], [1], [2], [0], [1], [1]]),
            scores=scores,
            unreadable=(),
            views=(),
        ),
        **changes,
    )


def test_results_print_in_a_line_or_two() -> None:
    shown = {
        repr(PREDICTION): "Prediction(a <day>.mp4: class 399 <b>& 0.50, class 398 <b>& 0.50, class 397 <b>& 0.50; 40",
        str(LOCALIZATION): r"long\x1b[2J.mp4: 50 segments in 60.0 s: <0> 0.0-0.5 s (0.50), <1> 1.0-1.5 s (0.50), ",
        repr(evaluation()): "Evaluation(6 videos of 3 action classes; top1 0.833 (95 %: 0.44 to 0.97))",
        repr(replace(LOCALIZATION, segments=())): r"Localization(long\x1b[2J.mp4: 0 segments in 60.0 s)",
        str(evaluation(targets=np.full((6, 1), UNKNOWN))): "6 videos of 3 action classes; whose classes are not known",
    }
    for text, beginning in shown.items():
        assert text.startswith(beginning)
        assert len(text) < 240
        assert text.isprintable()


def test_results_show_themselves_in_a_notebook() -> None:
    for result in (PREDICTION, LOCALIZATION, evaluation(), evaluation(targets=np.full((6, 1), UNKNOWN))):
        text = result._repr_html_()
        found = Balance(text)
        assert len(text) < 60_000
        assert "\x1b" not in text
    prediction = Balance(PREDICTION._repr_html_())
    assert "a <day>.mp4" in prediction.text  # as text, and no tag
    assert "class 399 <b>&" in prediction.text
    assert "and 10 more" in prediction.text
    assert "0.0-0.8" in prediction.text
    assert found.text


def test_a_notebook_without_a_display_shows_all(motion_videos: Path, tmp_path: Path) -> None:
    """Nothing that a result draws needs a display, and its HTML not even matplotlib."""
    video = sorted(motion_videos.rglob("*.mp4"))[0]
    code = (
        "import sys, tada\n"
        f"found = tada.predict({str(video)!r})\n"
        "html = found._repr_html_()\n"
        "assert 'matplotlib' not in sys.modules\n"
        "found.plot('a.png')\n"
        "found.explain().plot('b.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env["MPLBACKEND"] = "tkagg"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_rows_are_flat_and_plain() -> None:
    rows = PREDICTION.to_rows(2)
    assert rows[0] == {"video": "a <day>.mp4", "rank": 1, "label": "class 399 <b>&", "score": 0.5}
    assert len(PREDICTION.to_rows(2, clips=True)) == 80
    assert PREDICTION.to_rows(1, clips=True)[1] == {
        "video": "a <day>.mp4",
        "start_seconds": 1.0,
        "end_seconds": 1.75,
        "rank": 1,
        "label": "class 0 <b>&",
        "score": 0.5,
    }
    assert LOCALIZATION.to_rows()[1]["end_seconds"] == 1.5
    tested = evaluation()
    assert tested.to_rows()[4] == {
        "id": "e",
        "path": "e.mp4",
        "group": None,
        "label": "right",
        "predicted": "left",
        "score": pytest.approx(2 / 3),
        "correct": False,
    }
    heads = (Head(name="verb", labels=("open", "close")), Head(name="noun", labels=("door", "tap")))
    both = evaluation(heads=heads, scores=np.full((6, 4), 0.5, np.float32), targets=np.tile([1, UNKNOWN], (6, 1)))
    assert both.to_rows()[0] == {
        **{"id": "a", "path": "a.mp4", "group": None},
        **{"verb": "close", "verb_predicted": "open", "verb_score": 0.5, "verb_correct": False},
        **{"noun": None, "noun_predicted": "door", "noun_score": 0.5, "noun_correct": None},
    }
    for rows in (PREDICTION.to_rows(), LOCALIZATION.to_rows(), tested.to_rows(), both.to_rows()):
        assert json.loads(json.dumps(rows)) == rows
        assert len({tuple(row) for row in rows}) == 1


def test_a_test_is_told_as_plain_values_and_drawn(tmp_path: Path) -> None:
    tested = evaluation()
    told = json.loads(json.dumps(tested.as_dict()))
    assert told["top1"] == pytest.approx(5 / 6)
    right = told["per_class"]["right"]
    assert right == {"top1": pytest.approx(2 / 3), "videos": 3, "interval_95": right["interval_95"]}
    assert right["interval_95"] == pytest.approx([0.2077, 0.9385], abs=1e-4)  # Wilson's, of 2 of 3
    tested.plot(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(DataError, match="the true classes of these videos are not known"):
        evaluation(targets=np.full((6, 1), UNKNOWN)).plot(tmp_path / "b.png")
