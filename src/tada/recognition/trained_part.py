"""Which part of a network is trained, and which stays as it came."""

from __future__ import annotations

from torch import nn

from tada.errors import OptionError
from tada.recognition.recipe import TrainedPart
from tada.tadaconv import Routing, TemporalAggregation

_HEAD = "head."
_IN_WORDS = {
    "head": "those of the classifier",
    "calibration": "those of the classifier, the routing functions and the second norms",
}


def train_only(model: nn.Module, part: TrainedPart, name: str) -> str:
    """Freeze all parameters of a network but those of a part, and say in a line how many are left.

    Whoever sets the network to training has to call ``rest_in_evaluation`` then.

    Args:
        part: "head": the classifier; "calibration": the classifier, and what TAdaConv adds to a network, which are
            routing functions and the norms of pooled frames; "all".
        name: what the network is called, for the message.

    Returns:
        The line; empty for "all".

    Raises:
        OptionError: the calibration of a network that has none.
    """
    if part == "all":
        return ""
    trained = {id(parameter) for key, parameter in model.named_parameters() if key.startswith(_HEAD)}
    if part == "calibration":
        own: list[nn.Module] = [module for module in model.modules() if isinstance(module, Routing)]
        own += [module.pooled_norm for module in model.modules() if isinstance(module, TemporalAggregation)]
        if not own:
            raise OptionError(
                f"train is 'calibration', but {name} has no TAdaConv whose calibration could be trained: choose head "
                "or all, or a network that has it (such as tada2d_tiny, or model_options {adapted: true} where there "
                "is that option)"
            )
        trained |= {id(parameter) for module in own for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    every = list(model.parameters())
    count, of = sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)
    return f"--train {part}: {count:,} of {of:,} parameters are trained, {_IN_WORDS[part]}; the others stay as they are"


def rest_in_evaluation(model: nn.Module) -> None:
    """Set what is frozen of a network in training to evaluation: its norms keep their statistics, nothing is dropped.

    A part without weights of its own, such as a dropout, goes with the part that it lies in.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for child in model.children():
        has_weights = any(True for _ in child.parameters()) or any(True for _ in child.buffers())
        if has_weights and not any(parameter.requires_grad for parameter in child.parameters()):
            child.eval()
        else:
            rest_in_evaluation(child)
