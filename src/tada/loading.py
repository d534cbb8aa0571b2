"""Whatever was trained, loaded for use."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import tada.predict
from tada.localization.localizer import CARD_FILE, Localizer, load_localizer
from tada.predict import Recognizer


def load(run: str | PathLike[str], *, device: str | None = None) -> Recognizer | Localizer:
    """Load a trained model: the folder of a run, the name of weights that ship with tada, or ``hf-hub:OWNER/NAME``.

    Returns:
        What `tada train` left says what happens (``.predict``); what `tada localize train` left says also when
        (``.localize``).

    Raises:
        CheckpointError: the folder holds no model, or a damaged one; or the hub has none or is out of reach.
    """
    if (Path(fspath(run)) / CARD_FILE).exists():
        return load_localizer(run, device=device)
    return tada.predict.load(run, device=device)
