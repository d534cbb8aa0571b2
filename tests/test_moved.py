"""Imports by names of before say where what they name is now."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

from tada.moved import MOVED


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("import tada.recognizer", "tada.recognition.recognizer"),
        ("from tada import recipe", "tada.recognition.recipe"),
        ("from tada.localization.task import train_localizer", "tada.localization.training"),
        ("from tada.recognition import train", "tada.recognition.training"),
        ("from tada.localization.features import FeatureFolder", "tada.localization.features.folder"),
        ("from tada.localization.annotations import read_segments", "tada.localization.annotations.table"),
        ("from tada.localization.detectors import new_detector", "tada.localization.detectors.detector"),
    ],
)
def test_an_import_of_before_names_the_new_place(statement: str, place: str) -> None:
    with pytest.raises(ImportError, match=rf" is (in )?{place} now$"):
        exec(statement)


def test_what_never_was_is_told_as_python_does() -> None:
    with pytest.raises(ImportError, match=r"No module named 'tada.recognition_of_faces'"):
        import_module("tada.recognition_of_faces")
    with pytest.raises(ImportError, match=r"cannot import name 'teach' from 'tada.recognition'"):
        exec("from tada.recognition import teach")


def test_who_looks_for_an_attribute_hears_that_it_is_not_there() -> None:
    import tada.recognition

    assert not hasattr(tada.recognition, "train")


def test_every_new_place_is_there_and_no_old_one() -> None:
    assert all(find_spec(f"tada.{place}") is not None for place in MOVED.values())
    for name in MOVED:
        with pytest.raises(ImportError, match=r" now$"):
            find_spec(f"tada.{name}")
