"""Names of the classes of published data sets, in the order of the class numbers that published checkpoints use.

Each list is a text file in ``class_lists``, with one name on each line. docs/data.md says where each order comes from.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tada.errors import UnknownNameError
from tada.system.calls import checked


@checked()
def class_names(name: str) -> tuple[str, ...]:
    """The class names of a published data set, in the order of their numbers.

    Args:
        name: "activitynet", "epic100_nouns", "epic100_verbs", "hmdb51", "imagenet1k", "k400" (Kinetics-400), "ssv2"
            (Something-Something-v2) or "ucf101".

    Raises:
        UnknownNameError: no list has this name.
    """
    if name not in class_lists():
        raise UnknownNameError.of("list of class names", name, class_lists())
    return tuple((_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def class_lists() -> list[str]:
    """Names of the lists, for ``class_names``."""
    return sorted(file.stem for file in _FOLDER.glob("*.txt"))


_FOLDER = Path(str(resources.files("tada.models"))) / "class_lists"
