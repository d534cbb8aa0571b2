"""The numbers of a training that follow from how much data there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tada.data.epochs import steps_of_epoch
from tada.errors import OptionError
from tada.recognition.recipe import Recipe, load_recipe
from tada.training.recipe import named_recipes
from tada.training.schedule import Numbers, between_tests_in_words, epochs_between_tests, fitted, in_words


@pytest.mark.parametrize("num_clips", [1, 2, 3, 5, 9, 20, 25, 31, 33, 40, 64, 100, 146, 300, 1000, 10_001])
def test_whatever_there_is_can_be_trained_on(num_clips: int) -> None:
    recipe = fitted(Recipe(), num_clips)
    epochs, batch_size, warmup_epochs = recipe.numbers
    steps = steps_of_epoch(num_clips, batch_size, recipe.last_batch)
    assert 1 <= batch_size <= min(num_clips, Recipe.FIT.batch_size)
    assert steps * batch_size - num_clips < steps, "steps are as equal as they can be"
    assert epochs >= Recipe.FIT.epochs
    assert epochs * steps >= Recipe.FIT.steps
    assert epochs == Recipe.FIT.epochs or (epochs - 1) * steps < Recipe.FIT.steps, "no more than needed"
    assert warmup_epochs == epochs / 10
    assert fitted(recipe, 7) == recipe, "numbers stay"


def test_hundreds_of_clips_are_trained_on_as_ever() -> None:
    """45 epochs of batches of up to 32."""
    assert fitted(Recipe(), 300).numbers == Numbers(epochs=45, batch_size=30, warmup_epochs=4.5)
    assert fitted(Recipe(), 3200).numbers == Numbers(epochs=45, batch_size=32, warmup_epochs=4.5)


def test_what_the_recipe_says_stays() -> None:
    assert fitted(Recipe(epochs=3, batch_size=8), 25).numbers == Numbers(3, 8, 0.3)
    assert fitted(Recipe(warmup_epochs=0), 300).numbers.warmup_epochs == 0
    with pytest.raises(OptionError, match=r"warmup_epochs must be between 0 and epochs \(45\), or null"):
        fitted(Recipe(warmup_epochs=50), 300)


@pytest.mark.parametrize("name", sorted(named_recipes()))
def test_named_recipes_have_numbers_of_their_own(name: str) -> None:
    recipe = load_recipe(name)
    assert fitted(recipe, 5).numbers == fitted(recipe, 100_000).numbers
    assert (fitted(recipe, 5).numbers.epochs, fitted(recipe, 5).numbers.batch_size) == (
        recipe.epochs,
        recipe.batch_size,
    )
    assert recipe.last_batch == "drop"


@pytest.mark.parametrize(("accumulate", "multiple_of"), [(1, 1), (2, 1), (1, 4), (2, 6), (3, 2)])
@pytest.mark.parametrize("num_clips", [1, 10, 33, 146])
def test_the_batch_can_be_divided(num_clips: int, accumulate: int, multiple_of: int) -> None:
    recipe = fitted(Recipe(accumulate=accumulate), num_clips, multiple_of=multiple_of)
    assert recipe.numbers.batch_size % (accumulate * multiple_of) == 0


def test_the_rate_is_scaled_to_the_batch_that_was_chosen() -> None:
    recipe = fitted(Recipe(learning_rate=0.4, learning_rate_batch=60), 300)
    assert recipe.peak_learning_rate == pytest.approx(0.2)


def test_what_is_done_with_the_clips_is_said() -> None:
    assert in_words(Numbers(50, 7, 5.0), 25, "fill") == (
        "50 epochs of 4 steps, 7 clips in each; warm-up 5 epochs; 3 clips once more to fill the last step"
    )
    assert in_words(Numbers(45, 32, 4.5), 40, "drop") == (
        "45 epochs of 1 step, 32 clips in each; warm-up 4.5 epochs; each epoch leaves 8 of the 40 clips out "
        "(--last-batch fill: none)"
    )
    assert in_words(Numbers(1, 4, 0.1), 8, "drop") == "1 epoch of 2 steps, 4 clips in each; warm-up 0.1 epochs"


@pytest.mark.parametrize(
    ("epochs", "steps", "between"), [(200, 1, 4), (100, 2, 2), (67, 3, 1), (45, 4, 1), (45, 1000, 1), (3, 1, 1)]
)
def test_short_epochs_are_not_all_tested(epochs: int, steps: int, between: int) -> None:
    assert epochs_between_tests(epochs, steps) == between
    assert f"after every {between} of them" in between_tests_in_words(between)
    assert epochs % between == 0, "the last is"


def test_every_recipe_of_few_clips_is_one_of_many() -> None:
    """Rounding does not make a step empty, whatever the rule's numbers."""
    for small in (1, 2, 8, 40):
        recipe = Recipe()
        fit = replace(recipe.FIT, small_batch_size=small)
        kind = type("Own", (Recipe,), {"FIT": fit})
        for num_clips in range(1, 80):
            assert 1 <= fitted(kind(), num_clips).numbers.batch_size <= num_clips
