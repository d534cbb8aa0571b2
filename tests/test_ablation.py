"""The paper's ablations: each is a few options in a recipe, and does to the network what it says."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tada.commands.cli import main
from tada.errors import OptionError
from tada.models import create_model
from tada.models.tada2d import TAda2D
from tada.models.weights import load_model
from tada.recognition.recipe import Recipe, load_recipe
from tada.recognition.training import train
from tada.tadaconv import Routing, TAdaConv2d, TemporalAggregation
from tada.training.recipe import recipe_yaml

_FILE = Path(__file__).parent.parent / "benchmarks" / "ablation.py"
_SPEC = importlib.util.spec_from_file_location("ablation", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
ablation = importlib.util.module_from_spec(_SPEC)
sys.modules["ablation"] = ablation
_SPEC.loader.exec_module(ablation)

SMALL: dict[str, Any] = {"depths": [1, 1], "widths": [8, 12], "stem_width": 8}


def variant(name: str) -> TAda2D:
    torch.manual_seed(0)
    model = create_model("tada2d_tiny", num_classes=3, **SMALL, **ablation.VARIANTS[name])
    assert isinstance(model, TAda2D)
    return model


def routings(model: torch.nn.Module) -> list[Routing]:
    return [module for module in model.modules() if isinstance(module, Routing)]


@pytest.mark.parametrize(
    "name", [pytest.param(v, marks=[pytest.mark.slow] if i % 2 else []) for i, v in enumerate(ablation.VARIANTS)]
)
def test_a_variant_goes_from_yaml_to_a_trained_model(
    name: str, small_recipe: Recipe, motion_videos: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, model_options=SMALL | ablation.VARIANTS[name], epochs=1)
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
    full = variant("TAda2D")
    assert len(routings(full)) == 4
    for name, model in ((name, variant(name)) for name in ablation.VARIANTS):
        options = ablation.VARIANTS[name]
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
                assert routing.reduce.out_channels == routing.in_channels // options.get("routing_ratio", 4)


BLIND = ("neither (TSN)", "no context", "global context", "one layer of 1")


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_what_is_blind_to_order(name: str) -> None:
    """Whatever it learns: with local context or aggregation order counts, otherwise it cannot."""
    model = variant(name).double().eval()
    for module in model.modules():
        if isinstance(module, Routing):
            torch.nn.init.normal_(module.alpha.weight)
        elif isinstance(module, TemporalAggregation):
            torch.nn.init.normal_(module.pooled_norm.weight)
    clips = torch.randn(1, 3, 5, 24, 24).double()
    shuffled = clips[:, :, [3, 0, 4, 2, 1]]
    difference = float((model(clips) - model(shuffled)).detach().abs().max())
    assert (difference < 1e-10) == (name in BLIND)


def test_every_variant_is_asked_for_and_every_question_is_of_variants() -> None:
    asked = {name for question in ablation.QUESTIONS for tier in question.order for name in tier}
    assert asked == set(ablation.VARIANTS)


def test_verdicts() -> None:
    top1 = {
        "neither (TSN)": [0.40, 0.42, 0.44],
        "calibration only": [0.60, 0.63, 0.63],
        "TAda2D": [0.61, 0.60, 0.65],
        "calibration of output": [0.71, 0.70, 0.74],
    }
    found = {(c.worse, c.better): (round(c.gain, 3), c.verdict) for c in ablation.compare(top1)}
    assert found == {
        ("neither (TSN)", "calibration only"): (0.2, "as in the paper"),
        ("neither (TSN)", "TAda2D"): (0.2, "as in the paper"),
        ("calibration only", "TAda2D"): (0.0, "undecided"),
        ("calibration of output", "TAda2D"): (-0.097, "the other way"),
    }
    single = ablation.compare({name: values[:1] for name, values in top1.items()})
    assert {c.verdict for c in single} == {"undecided"}


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
    if name == "tadaconvnext_mini" and "aggregation" in options:
        message = "tadaconvnext_mini has no option 'aggregation'"
    with pytest.raises(OptionError, match=message):
        create_model(name, num_classes=3, **options)
