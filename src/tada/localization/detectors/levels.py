"""Settings of ActionFormer's levels that recipes have too: apart from the network, whose file imports torch."""

from __future__ import annotations

from typing import Literal

from tada.errors import OptionError

MAX_LEVELS = 8

PaddingLeak = Literal["none", "opentad", "actionformer"]
"""Where biases of layer norms leak from the padding into the last steps of a padded video: nowhere; before attention
and before the heads, as in OpenTAD; or between the convolutions too, as in the released ActionFormer."""


def check_window(window: int | tuple[int, ...], num_levels: int | None) -> None:
    """Raise OptionError where a window is not odd, or there is not one for each level."""
    windows = (window,) if isinstance(window, int) else window
    shown = window if isinstance(window, int) else list(window)
    if not 1 <= len(windows) <= MAX_LEVELS:
        raise OptionError(
            f"the attention window {shown} should be one for all levels, or one for each of 1 to {MAX_LEVELS}"
        )
    if any(one != -1 and (one < 1 or one % 2 == 0) for one in windows):
        raise OptionError(f"the attention window {shown} should be odd, or -1 for all steps")
    if not isinstance(window, int) and num_levels is not None and len(window) != num_levels:
        raise OptionError(
            f"the attention window {shown} should be one for all levels, or a list of {num_levels}, as many as "
            "num_levels: change attention_window, too"
        )
