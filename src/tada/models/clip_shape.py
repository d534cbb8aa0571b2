"""What networks of clips take, checked at their door."""

from __future__ import annotations

from torch import Tensor

from tada.errors import OptionError


def check_clips(clips: Tensor) -> None:
    """See whether a tensor is clips [N, 3, T, H, W].

    Raises:
        OptionError: it is not.
    """
    if clips.ndim == 5 and clips.shape[1] == 3:
        return
    way_out = ""
    if clips.ndim == 4 and clips.shape[0] == 3:
        way_out = ": this seems to be one clip, clips[None] is a batch of it"
    elif clips.ndim == 5 and clips.shape[2] == 3:
        way_out = ": this seems to be [N, T, 3, H, W], clips.transpose(1, 2) is what is needed"
    raise OptionError(f"clips {list(clips.shape)} should be [N, 3, T, H, W], with three colors{way_out}")
