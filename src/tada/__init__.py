"""TAda: video understanding with temporally-adaptive convolutions.

The names below are what a program needs; each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tada.adaptation import AdaptReport, adapt
    from tada.errors import UserError
    from tada.evaluation import evaluate
    from tada.explanation import Explanation
    from tada.loading import load
    from tada.localization.localizer import Localization, Localizer
    from tada.models import create_model, list_models
    from tada.models.hub import push_to_hub
    from tada.prediction import Prediction
    from tada.recipe import Recipe, load_recipe
    from tada.recognition import train
    from tada.recognizer import Recognizer
    from tada.results import Evaluation
    from tada.tadaconv import Routing, TAdaConv2d, TAdaConv3d, TemporalAggregation
    from tada.video.sampling import ClipSpec

__version__ = version("tada-video")

__all__ = [
    "AdaptReport",
    "ClipSpec",
    "Evaluation",
    "Explanation",
    "Localization",
    "Localizer",
    "Prediction",
    "Recipe",
    "Recognizer",
    "Routing",
    "TAdaConv2d",
    "TAdaConv3d",
    "TemporalAggregation",
    "UserError",
    "adapt",
    "create_model",
    "evaluate",
    "list_models",
    "load",
    "load_recipe",
    "push_to_hub",
    "train",
]

_HOME = {
    "AdaptReport": "tada.adaptation",
    "ClipSpec": "tada.video.sampling",
    "Evaluation": "tada.results",
    "Explanation": "tada.explanation",
    "Localization": "tada.localization.localizer",
    "Localizer": "tada.localization.localizer",
    "Prediction": "tada.prediction",
    "Recipe": "tada.recipe",
    "Recognizer": "tada.recognizer",
    "Routing": "tada.tadaconv",
    "TAdaConv2d": "tada.tadaconv",
    "TAdaConv3d": "tada.tadaconv",
    "TemporalAggregation": "tada.tadaconv",
    "UserError": "tada.errors",
    "adapt": "tada.adaptation",
    "create_model": "tada.models",
    "evaluate": "tada.evaluation",
    "list_models": "tada.models",
    "load": "tada.loading",
    "load_recipe": "tada.recipe",
    "push_to_hub": "tada.models.hub",
    "train": "tada.recognition",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tada' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
