"""Recipes: what may be in them, and that YAML keeps them as they are."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tada.errors import OptionError, UnknownNameError
from tada.recipe import Recipe, load_recipe, named_recipes, recipe_of, recipe_yaml
from tada.video.sampling import ClipSpec

SOURCE = Path(__file__).parents[1] / "src" / "tada"


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
        ("warmup_epochs: 50", r"warmup_epochs must be between 0 and epochs \(45\)"),
        ("clip: {num_frames: 0}", r"own\.yaml: .*num_frames"),
        ("epochs: [", r"own\.yaml: not a readable YAML file"),
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
    with pytest.raises(OptionError, match=r"none\.yaml: not a readable YAML file: .*No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_every_field_is_read_somewhere() -> None:
    """A setting that nothing reads is a trap: its name must be taken from a recipe or a clip specification."""
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        checks: list[Any] = [
            node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in ("Recipe", "ClipSpec")
        ]
        own = {id(node) for check in checks for node in ast.walk(check)}
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in own}
    unread = {field.name for kind in (Recipe, ClipSpec) for field in fields(kind)} - read
    assert not unread
