"""Annotations of untrimmed videos: every form that is read, as one checked table."""

from typing import TYPE_CHECKING

from tada.moved import names_now_in

if not TYPE_CHECKING:  # which knows the names that there are
    __getattr__ = names_now_in(__name__, "tada.localization.annotations.table")
