"""Imports by names of before say where what they name is now."""

from __future__ import annotations

import doctest
import inspect
import pickle
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import pytest

from tada.moved import MOVED, MOVED_NAMES, RENAMED


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("import tada.recognizer", "tada.recognition.recognizer"),
        ("from tada import recipe", "tada.recognition.recipe"),
        ("from tada.localization.task import train_localizer", "tada.localization.training"),
        ("from tada.recognition import train", "tada.recognition.training.train"),
        ("from tada.localization.features import FeatureFolder", "tada.localization.features.folder.FeatureFolder"),
        ("from tada.localization.detectors import new_detector", "tada.localization.detectors.detector.new_detector"),
        ("from tada.localization.annotations import LabelSet", "tada.data.table.Head"),
        ("from tada.data.clips import Batch, TestVideos", "tada.data.views.TestVideos"),
        ("from tada.recognition.recognizer import find_videos as find", "tada.video.find.find_videos"),
        ("from tada.video.transforms import centre_crop", "tada.video.transforms.center_crop"),
    ],
)
def test_an_import_of_before_names_the_new_place(statement: str, place: str) -> None:
    with pytest.raises(ImportError, match=rf"^tada\.[\w.]+ is {place} now$"):
        exec(statement)


def test_what_never_was_is_told_as_python_does() -> None:
    with pytest.raises(ImportError, match=r"No module named 'tada.recognition_of_faces'"):
        import_module("tada.recognition_of_faces")
    with pytest.raises(ImportError, match=r"cannot import name 'teach' from 'tada.recognition'"):
        exec("from tada.recognition import teach")
    with pytest.raises(ImportError, match=r"cannot import name 'teach' from 'tada.data.clips'"):
        exec("from tada.data.clips import teach")


def test_who_looks_for_an_attribute_hears_that_it_is_not_there() -> None:
    import tada.data.clips
    import tada.recognition

    assert not hasattr(tada.recognition, "train")
    assert getattr(tada.data.clips, "TestVideos", None) is None
    with pytest.raises(AttributeError, match=r"'TestVideos': it is tada.data.views.TestVideos now$"):
        _ = tada.data.clips.TestVideos  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"'tada.data.clips' has no attribute 'teach'$"):
        _ = tada.data.clips.teach  # type: ignore[attr-defined]


def test_a_module_that_lost_names_is_a_module_as_others() -> None:
    import tada.data.clips

    assert pickle.loads(pickle.dumps(tada.data.clips.Batch)) is tada.data.clips.Batch
    assert "class Batch" in inspect.getsource(tada.data.clips)
    assert dict(inspect.getmembers(tada.data.clips))["Batch"] is tada.data.clips.Batch
    assert doctest.DocTestFinder().find(tada.data.clips)
    with pytest.raises(AttributeError, match="TestVideos"):
        pickle.loads(b"ctada.data.clips\nTestVideos\n.")


def test_every_new_place_is_there_and_no_old_one() -> None:
    assert all(find_spec(f"tada.{place}") is not None for place in MOVED.values())
    for name in MOVED:
        with pytest.raises(ImportError, match=r" now$"):
            find_spec(f"tada.{name}")
    for old, new in {**dict(_moved_names()), **RENAMED}.items():
        (module, name), (place, new_name) = old.rsplit(".", 1), new.rsplit(".", 1)
        is_now = vars(import_module(f"tada.{place}"))[new_name]
        if name in vars(import_module(f"tada.{module}")):  # which uses it, and imports it for that
            assert vars(import_module(f"tada.{module}"))[name] is is_now, old
            continue
        with pytest.raises(ImportError, match=rf"^tada\.{old} is tada\.{new} now$"):
            exec(f"from tada.{module} import {name}")


def _moved_names() -> Iterator[tuple[str, str]]:
    for old, places in MOVED_NAMES.items():
        for new, names in places.items():
            yield from ((f"{old}.{name}", f"{new}.{name}") for name in names.split())
