"""TAda: video understanding with temporally-adaptive convolutions.

Predict, with weights that ship with tada:

    import tada
    tada.predict("a.mp4")

Train on a folder of class folders, or on a CSV; test on the held-out
videos; load the result (a recognizer, a localizer that finds segments,
or an ONNX file, all used alike):

    tada.train(None, "clips", "run", epochs=3)
    tada.evaluate("run", "clips").accuracy()
    model = tada.load("run")
    model.predict("a.mp4").label
    model.predict(frames, fps=30).top(3)  # uint8 [T, H, W, 3]
    model.predict(["a.mp4", "b.mp4"])  # a list of answers
    model.predict("a.mp4").explain().plot("why.png")
    tada.load("runs/when").predict("long.mp4").segments

Networks, clips [N, 3, T, H, W] -> logits [N, K], and TAdaConv layers:

    tada.list_models("tada2d_*")
    tada.create_model("tada2d_r50", num_classes=174)
    tada.create_model("tada2d_tiny", pretrained=True)
    tada.class_names("k400")  # Kinetics-400's, in the published order
    network, report = tada.adapt(network)
    tada.TAdaConv2d(64, 128, 3, padding=1, routing=tada.Routing(64))

Recipes, which hold all settings of a training; and publishing:

    recipe = tada.load_recipe("quickstart", epochs=3)
    tada.push_to_hub("run", "me/model", license="MIT")

Answers and tests (Prediction, Localization, Evaluation) print in a line
or two, show themselves in a notebook, and have as_dict(), to_rows() for
pandas.DataFrame, plot("a.png") and, of videos, save_video("b.mp4").
Mistakes raise tada.UserError, whose message says the way out.

These names are the public ones; each is imported when it is first used.
"""

from __future__ import annotations

from tada.moved import put_up_signpost

TYPE_CHECKING = False  # not imported: ``typing`` takes time, in which a Ctrl-C would print a traceback
if TYPE_CHECKING:
    from typing import Any

    from tada.adaptation import AdaptReport, adapt
    from tada.errors import UserError
    from tada.loading import load, predict
    from tada.localization.localizer import Localization, Localizer
    from tada.models import list_models
    from tada.models.class_names import class_names
    from tada.models.hub import push_to_hub
    from tada.models.pretrained import create_model
    from tada.recognition.evaluation import evaluate
    from tada.recognition.explanation import Explanation
    from tada.recognition.prediction import Prediction
    from tada.recognition.recipe import Recipe, load_recipe
    from tada.recognition.recognizer import Recognizer
    from tada.recognition.results import Evaluation
    from tada.recognition.training import train
    from tada.tadaconv import Routing, TAdaConv2d, TAdaConv3d, TemporalAggregation
    from tada.tadaconv.routing_v2 import RoutingV2
    from tada.video.sampling import ClipSpec

    __version__: str

put_up_signpost()

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
    "RoutingV2",
    "TAdaConv2d",
    "TAdaConv3d",
    "TemporalAggregation",
    "UserError",
    "adapt",
    "class_names",
    "create_model",
    "evaluate",
    "list_models",
    "load",
    "load_recipe",
    "predict",
    "push_to_hub",
    "train",
]

_HOME = {
    "AdaptReport": "tada.adaptation",
    "ClipSpec": "tada.video.sampling",
    "Evaluation": "tada.recognition.results",
    "Explanation": "tada.recognition.explanation",
    "Localization": "tada.localization.localizer",
    "Localizer": "tada.localization.localizer",
    "Prediction": "tada.recognition.prediction",
    "Recipe": "tada.recognition.recipe",
    "Recognizer": "tada.recognition.recognizer",
    "Routing": "tada.tadaconv",
    "RoutingV2": "tada.tadaconv.routing_v2",
    "TAdaConv2d": "tada.tadaconv",
    "TAdaConv3d": "tada.tadaconv",
    "TemporalAggregation": "tada.tadaconv",
    "UserError": "tada.errors",
    "adapt": "tada.adaptation",
    "class_names": "tada.models.class_names",
    "create_model": "tada.models.pretrained",
    "evaluate": "tada.recognition.evaluation",
    "list_models": "tada.models",
    "load": "tada.loading",
    "load_recipe": "tada.recognition.recipe",
    "predict": "tada.loading",
    "push_to_hub": "tada.models.hub",
    "train": "tada.recognition.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tada-video")
    if name not in _HOME:
        raise AttributeError(f"module 'tada' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
