"""Recipes: what may be in them, and that YAML keeps them as they are."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tada.data.clips import Augmentation
from tada.errors import OptionError, UnknownNameError
from tada.recognition.recipe import EXPECTED, Recipe, load_recipe, recipe_of
from tada.training.recipe import named_recipes, recipe_yaml
from tada.video.sampling import CLIP_NORMALIZATION, ClipSpec

SOURCE = Path(__file__).parents[2] / "src" / "tada"


def test_yaml_keeps_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe(
        model="tsn_r18",
        model_options={"dropout": 0.1, "widths": [1, 2]},
        clip=ClipSpec(num_frames=16, interval=5, short_side=128, crop=112),
        short_side_range=(120, 160),
        ema_decay=0.99,
        learning_rate=2e-3,
    )
    path = tmp_path / "own.yaml"
    path.write_text(recipe_yaml(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", sorted(named_recipes()))
def test_each_named_recipe_loads_and_says_what_it_is_for(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_of({}) != recipe
    assert named_recipes()[name].read_text().startswith("# ")


def test_changes_go_over_the_file() -> None:
    assert load_recipe("quickstart", seed=7).seed == 7


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no recipe is called 'quickstar'; did you mean 'quickstart'\?"):
        load_recipe("quickstar")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", r"own\.yaml: .*epochs.*many"),
        ("epoch: 3", r"own\.yaml: .*epoch"),
        ("epochs: 0", r"own\.yaml: the recipe's epochs must be 1 or more"),
        ("batch_size: 5\naccumulate: 2", r"batch_size must be a multiple of accumulate \(2\)"),
        ("short_side_range: [10, 20]", r"short_side_range must be rising, from clip\.crop \(48\) on"),
        ("warmup_epochs: 50\nepochs: 45", r"warmup_epochs must be between 0 and epochs \(45\), or null, .* a tenth"),
        ("batch_size: 0\naccumulate: 2", r"batch_size must be 1 or more$"),
        ("last_batch: keep", r"own\.yaml: .*last_batch.*keep"),
        ("clip: {num_frames: 0}", r"own\.yaml: .*num_frames"),
        ("epochs: [", r"own\.yaml: not a readable YAML file"),
        ("train_crop: 300\nclip: {num_frames: 8}", r"short_side_range must be rising, from train_crop \(300\) on"),
        ("crop_area_range: [0.5, 0.2]", r"crop_area_range must be rising, above 0 and up to 1"),
        ("color_jitter: [0, 0, 0, 0.7]", r"color_jitter must be 0 or more, hue up to 0.5"),
        ("randaugment_magnitude: 11", r"randaugment_magnitude must be between 0 and 10"),
        ("- 3", r"own\.yaml: a recipe is a mapping of fields to values"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.yaml: there is no such file; give a YAML file, or one of `tada rec"):
        load_recipe(tmp_path / "none.yaml")


def test_every_field_is_read_somewhere() -> None:
    """A setting that nothing reads is a trap: it must be taken from a recipe (or clip specification) in the code."""
    read: set[str] = set()
    of_clips = {field.name for field in fields(Augmentation)}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        checks: list[Any] = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
        ]
        own = {id(node) for check in checks for node in ast.walk(check)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in own:
                # What a field is taken from: "recipe.epochs", "self.recipe.epochs", "spec.fps", "recognizer.clip.fps".
                source = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                if source in ("recipe", "spec", "clip") or (
                    path.name in ("recipe.py", "recognizer.py") and source == "self"
                ):
                    read.add(node.attr)
                if path.name == "clips.py" and source == "self" and node.attr in of_clips:  # what Augmentation is told
                    read.add(node.attr)
    unread = {field.name for kind in (Recipe, ClipSpec) for field in fields(kind)} - read
    assert not unread


# --- the published recipes -------------------------------------------------------------------------------------------

TADA2D = {
    # name: frames, sampling, epochs, warm-up, start rate, rate, batch; shared/spec/recognition.md 1.1
    "k400_tada2d_r50_8x8": (8, "interval", 100, 8, 0.01, 0.24, 256),
    "k400_tada2d_r50_16x5": (16, "interval", 100, 8, 0.01, 0.12, 128),
    "ssv2_tada2d_r50_8": (8, "segment", 64, 4, 1e-4, 0.48, 256),
    "ssv2_tada2d_r50_16": (16, "segment", 64, 4, 1e-4, 0.24, 128),
}


@pytest.mark.parametrize("name", TADA2D)
def test_tada2d_as_published(name: str) -> None:
    recipe = load_recipe(name)
    frames, sampling, epochs, warmup, start, rate, batch = TADA2D[name]
    assert (recipe.clip.num_frames, recipe.clip.sampling, recipe.clip.mode) == (frames, sampling, "official")
    if sampling == "interval":
        assert (recipe.clip.interval, recipe.clip.fps) == ({8: 8, 16: 5}[frames], 30)
    assert (recipe.epochs, recipe.warmup_epochs) == (epochs, warmup)
    assert recipe.warmup_start * recipe.learning_rate == pytest.approx(start, rel=1e-6)
    assert (recipe.learning_rate, recipe.batch_size, recipe.learning_rate_batch) == (rate, batch, batch)
    assert recipe.model == "tada2d_r50"
    assert recipe.model_options == {"dropout": 0.5}
    assert recipe.init == "hf-hub:timm/resnet50.tv_in1k"
    assert (recipe.short_side_range, recipe.train_crop) == ((224, 340), 224)
    assert (recipe.clip.short_side, recipe.clip.crop, recipe.clip.antialias) == (256, 256, False)
    assert (recipe.optimizer, recipe.weight_decay, recipe.head_learning_rate_factor) == ("sgd", 1e-4, 1)
    assert recipe.flip_probability == 0.5
    off = ("color_strength", "grayscale_probability", "randaugment_operations", "erase_probability", "label_smoothing")
    assert not any(getattr(recipe, field) for field in (*off, "mixup_alpha", "cutmix_alpha", "reverse_probability"))
    assert recipe.crop_area_range is recipe.clip_gradient_norm is recipe.ema_decay is None


@pytest.mark.parametrize("size", ["t", "s", "b"])
def test_tadaconvnext_as_published(size: str) -> None:
    recipe = load_recipe(f"k400_tadaconvnext_{size}_16x5")
    assert recipe.model == f"tadaconvnext_{size}"
    assert (recipe.clip.num_frames, recipe.clip.interval) == (16, 5)
    assert (recipe.optimizer, recipe.epochs, recipe.warmup_epochs) == ("adamw", 100, 8)
    assert (recipe.learning_rate, recipe.learning_rate * recipe.head_learning_rate_factor) == (1e-4, 1e-3)
    assert recipe.model_options["stochastic_depth"] == 0.4
    assert (recipe.crop_area_range, recipe.randaugment_operations) == ((0.08, 1.0), 4)


SECOND_PAPER = {
    # name: batch, rate, decay, epochs, warm-up, start, end, drop path, layers' decay; the released configs
    "k400_tadaconvnextv2_t_16x5": (512, 5e-4, 0.02, 100, 8, 1e-6, 0, 0.2, 1),
    "k400_tadaconvnextv2_s_16x5": (256, 2.5e-4, 0.02, 100, 8, 1e-6, 0, 0.4, 1),
    "k400_tadaconvnextv2_b_16x5": (256, 2.5e-4, 0.02, 100, 8, 1e-6, 0, 0.6, 1),
    "ssv2_tadaconvnextv2_t_16": (512, 5e-4, 0.02, 64, 2.5, 1e-6, 0, 0.3, 1),
    "ssv2_tadaconvnextv2_s_16": (256, 2.5e-4, 0.02, 64, 2.5, 1e-6, 0, 0.5, 1),
    "ssv2_tadaconvnextv2_b_16": (256, 2.5e-4, 0.02, 64, 2.5, 1e-6, 0, 0.6, 1),
    "k400_tadaformer_b16_16": (256, 5e-5, 0.05, 30, 5, 1e-6, 1e-6, 0, 0.7),
    "k400_tadaformer_l14_16": (64, 2e-5, 0.05, 24, 5, 1e-6, 1e-6, 0, 0.85),
    "ssv2_tadaformer_b16_16": (256, 5e-4, 0.05, 24, 4, 1e-8, 1e-6, 0, 0.7),
    "ssv2_tadaformer_l14_16": (128, 2.5e-4, 0.05, 24, 4, 1e-8, 1e-6, 0.2, 0.85),
}


@pytest.mark.parametrize("name", SECOND_PAPER)
def test_the_second_paper_as_released(name: str) -> None:
    recipe = load_recipe(name)
    batch, rate, decay, epochs, warmup, start, end, drop, layers = SECOND_PAPER[name]
    is_former = "former" in name
    assert recipe.batch_size == recipe.learning_rate_batch == batch
    assert (recipe.learning_rate, recipe.weight_decay, recipe.layer_decay) == (rate, decay, layers)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.cosine_after_warmup) == (epochs, warmup, is_former)
    assert recipe.warmup_start * rate == pytest.approx(start)
    assert recipe.learning_rate_end * rate == pytest.approx(end)
    assert recipe.model_options == {"dropout": 0.5, "stochastic_depth": drop}
    factors = (recipe.head_learning_rate_factor, recipe.tada_learning_rate_factor, recipe.parameter_rule)
    assert factors == ((10, 10, "kernels") if is_former else (5, 5, "released"))
    assert recipe.clip.num_frames == 16
    assert recipe.clip.sampling == ("interval" if name.endswith("x5") else "segment")
    assert (recipe.clip.short_side, recipe.clip.crop, recipe.train_crop) == (*(224 if is_former else 256,) * 2, 224)
    assert recipe.clip.mean == (CLIP_NORMALIZATION[0] if is_former else None)
    assert recipe.label_smoothing == (0.1 if is_former else 0.0)
    assert (recipe.crop_area_range, recipe.randaugment_operations) == ((0.08, 1.0), 4)
    assert (recipe.grayscale_probability, recipe.color_jitter_probability, recipe.color_strength) == (0.2, 0.0, 0.0)
    if is_former:
        assert recipe.init == f"hf-hub:openai/clip-vit-{'base-patch16' if 'b16' in name else 'large-patch14'}"
    elif name.startswith("ssv2"):
        assert recipe.init == f"runs/k400_{recipe.model}_16x5"


def test_epic_as_published() -> None:
    recipe = load_recipe("epic100_tada2d_r50_8x8")
    assert (recipe.epochs, recipe.warmup_epochs, recipe.learning_rate) == (50, 10, 0.48)
    assert recipe.short_side_range == (256, 320)
    assert recipe.init == "runs/k400_tada2d_r50_8x8"


def test_what_a_recipe_should_reach_is_known_for_the_published() -> None:
    published = {name for name in named_recipes() if name.split("_")[0] in ("k400", "ssv2", "epic100")}
    assert set(EXPECTED) == published
    assert str(EXPECTED["k400_tada2d_r50_8x8"]) == (
        "Kinetics-400 val, 10x3 views: top1 76.7 %, top5 92.6 % (the authors' table)"
    )
    for name in published:
        text = named_recipes()[name].read_text()
        assert "inferred" in text, "what is not published is marked"


def test_the_rate_goes_with_the_batch() -> None:
    assert load_recipe("k400_tada2d_r50_8x8", batch_size=64).peak_learning_rate == pytest.approx(0.06)
    assert load_recipe("quickstart", batch_size=64).peak_learning_rate == load_recipe("quickstart").learning_rate
