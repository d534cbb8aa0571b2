"""Training a part of a network, with the rest frozen."""

from __future__ import annotations

from torch import nn

from tada.errors import OptionError
from tada.models.tadaformer import TAdaBlock
from tada.recognition.recipe import TrainedPart
from tada.tadaconv import Routing, TemporalAggregation

_HEAD = "head."
_IN_WORDS = {
    "head": "those of the classifier",
    "calibration": "those of the classifier and of what TAdaConv adds",
}


def train_only(model: nn.Module, part: TrainedPart, name: str) -> str:
    """Freeze all parameters of a network except those of a part; return a line with the number of trained ones.

    After each ``model.train()`` call ``rest_in_evaluation``.

    Args:
        part: "head": the classifier; "calibration": the classifier, and what TAdaConv adds to an image network: routing
            functions and norms of pooled frames, or a TAdaFormer's TAda blocks; "all".
        name: the network's name, for the message.

    Returns:
        The line; empty for "all".

    Raises:
        OptionError: "calibration" of a network without TAdaConv.
    """
    if part == "all":
        return ""
    trained = {id(parameter) for key, parameter in model.named_parameters() if key.startswith(_HEAD)}
    if part == "calibration":
        own: list[nn.Module] = [module for module in model.modules() if isinstance(module, Routing)]
        own += [module for module in model.modules() if isinstance(module, TAdaBlock)]
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
    return f"--train {part}: {count:,} of {of:,} parameters are trained, {_IN_WORDS[part]}; the others are frozen"


def rest_in_evaluation(model: nn.Module) -> None:
    """Set frozen modules to evaluation mode, so that their norms keep their statistics and dropout is off.

    A module without weights, such as a dropout, is set with the module that contains it.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for child in model.children():
        has_weights = any(True for _ in child.parameters()) or any(True for _ in child.buffers())
        if has_weights and not any(parameter.requires_grad for parameter in child.parameters()):
            child.eval()
        else:
            rest_in_evaluation(child)
