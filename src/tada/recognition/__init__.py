"""Action recognition: what happens in a video."""

from typing import TYPE_CHECKING

from tada.moved import names_now_in

if not TYPE_CHECKING:  # which knows the names that there are
    __getattr__ = names_now_in(__name__, "tada.recognition.training")
