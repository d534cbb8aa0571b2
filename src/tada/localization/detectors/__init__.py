"""Detectors on features: ActionFormer and BMN, and the segments that they find."""

from typing import TYPE_CHECKING

from tada.moved import names_now_in

if not TYPE_CHECKING:  # a type checker should see only the names that exist
    __getattr__ = names_now_in(__name__, "tada.localization.detectors.detector")
