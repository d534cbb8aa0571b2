"""Whatever was trained, loaded for use."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import torch

import tada.recognizer
from tada.errors import OptionError
from tada.localization.localizer import CARD_FILE, Localizer, load_localizer
from tada.recognizer import Recognizer


def load(
    run: str | PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None, compile: bool = False
) -> Recognizer | Localizer:
    """Load a trained model: the folder of a run, the name of weights that ship with tada, or ``hf-hub:OWNER/NAME``.

    Args:
        device: "cpu", "cuda", ...; by default a GPU where there is one.
        dtype: in which a recogniser computes, such as torch.bfloat16; by default that of its weights.
        compile: whether torch.compile works on a recogniser, when it first sees clips: takes a minute.

    Returns:
        What `tada train` left says what happens (``.predict``); what `tada localize train` left says also when
        (``.localize``).

    Raises:
        CheckpointError: the folder holds no model, or a damaged one; or the hub has none or is out of reach.
        OptionError: dtype or compile for a localizer, whose detector was trained on features as they are without.
    """
    if (Path(fspath(run)) / CARD_FILE).exists():
        if dtype is not None or compile:
            raise OptionError(f"{str(run)!r} is a localizer: it is loaded without dtype and compile")
        return load_localizer(run, device=device)
    return tada.recognizer.load(run, device=device, dtype=dtype, compile=compile)
