"""Map the weight names of the authors' released TAda2D and TAdaConvNeXt checkpoints to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tada.errors import CheckpointError, listed

_TADA2D = {(3, 4, 6, 3): "tada2d_r50", (3, 4, 23, 3): "tada2d_r101"}
_TADACONVNEXT = {  # by the blocks of each stage, and the channels of the first
    ((3, 3, 9, 3), 96): "tadaconvnext_t",
    ((3, 3, 27, 3), 96): "tadaconvnext_s",
    ((3, 3, 27, 3), 128): "tadaconvnext_b",
}
_NAMES = {
    "backbone.conv1.a.": "stem_conv.",
    "backbone.conv1.a_bn.": "stem_norm.",
    "backbone.downsample_layers.0.0.": "stem.conv.",
    "backbone.downsample_layers.0.1.": "stem.norm.",
    "backbone.norm.": "norm.",
    "head.out.": "head.",
}
_EPIC_HEAD = ("head.linear1", "head.linear2")
_BLOCK = re.compile(r"backbone\.conv([2-5])\.res_(\d+)\.(.*)")
_NAMES_IN_BLOCK = {
    "short_cut.": "shortcut.0.",
    "short_cut_bn.": "shortcut.1.",
    "conv_branch.a.": "conv1.",
    "conv_branch.a_bn.": "norm1.",
    "conv_branch.b.": "conv2.conv.",
    "conv_branch.b_rf.g.": "conv2.conv.routing.context.",
    "conv_branch.b_rf.a.": "conv2.conv.routing.reduce.",
    "conv_branch.b_rf.bn.": "conv2.conv.routing.norm.",
    "conv_branch.b_rf.b.": "conv2.conv.routing.alpha.",
    "conv_branch.b_bn.": "conv2.norm.norm.",
    "conv_branch.b_avgpool_bn.": "conv2.norm.pooled_norm.",
    "conv_branch.c.": "conv3.",
    "conv_branch.c_bn.": "norm3.",
}
_CONVNEXT_BLOCK = re.compile(r"backbone\.stages\.(\d+)\.(\d+)\.(.*)")
_NAMES_IN_CONVNEXT_BLOCK = {
    "dwconv.": "conv.",
    "dwconv_rf.g.": "conv.routing.context.",
    "dwconv_rf.a.": "conv.routing.reduce.",
    "dwconv_rf.ln.": "conv.routing.norm.",
    "dwconv_rf.b.": "conv.routing.alpha.",
    "dwconv_rf.b_bias.": "conv.routing.beta.",
    "norm.": "norm.",
    "pwconv1.": "widen.",
    "pwconv2.": "narrow.",
    "gamma": "layer_scale",
}
_DOWNSAMPLING = re.compile(r"backbone\.downsample_layers\.([123])\.(.*)")
_NAMES_IN_DOWNSAMPLING = {"0.": "norm.", "1.": "conv."}


def network_of(state_dict: Mapping[str, Tensor]) -> str:
    """The name of the network of a released state dict, found by the number of blocks in its stages.

    Raises:
        CheckpointError: no released network has these blocks.
    """
    convnext_blocks = [match for name in state_dict if (match := _CONVNEXT_BLOCK.match(name))]
    if convnext_blocks:
        depths = tuple(len({match[2] for match in convnext_blocks if match[1] == stage}) for stage in "0123")
        gamma = state_dict.get("backbone.stages.0.0.gamma")
        shape = depths, 0 if gamma is None else gamma.numel()
        if shape not in _TADACONVNEXT:
            known = " or ".join(f"{list(depths)} from {width}" for depths, width in _TADACONVNEXT)
            raise CheckpointError(
                f"these are no weights of a released TAdaConvNeXt: stages of {list(depths)} blocks from {shape[1]} "
                f"channels instead of {known} ('backbone.stages.0.0.gamma' and on)"
            )
        return _TADACONVNEXT[shape]
    blocks = [match for name in state_dict if (match := _BLOCK.match(name))]
    depths = tuple(len({match[2] for match in blocks if match[1] == stage}) for stage in "2345")
    if depths not in _TADA2D:
        known = " or ".join(str(list(depths)) for depths in _TADA2D)
        raise CheckpointError(
            f"these are no weights of a released TAda2D: stages of {list(depths)} blocks instead of {known} "
            f"('backbone.conv2.res_1...' and on), nor of a TAdaConvNeXt ('backbone.stages.0.0...'); the first names "
            f"are {listed(state_dict, quote=False) or 'nothing'}"
        )
    return _TADA2D[depths]


def join_heads(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Join the two layers of the released head for EPIC-KITCHENS-100, of verbs and nouns, to one as in other heads.

    Returns:
        The state dict, and the number of classes of "verb" and "noun"; empty for other heads.
    """
    parts = {end: [state_dict.get(f"{layer}.{end}") for layer in _EPIC_HEAD] for end in ("weight", "bias")}
    joined = {
        f"head.out.{end}": torch.cat([verb, noun])
        for end, (verb, noun) in parts.items()
        if verb is not None and noun is not None and verb.shape[1:] == noun.shape[1:]
    }
    if len(joined) < len(parts):
        return dict(state_dict), {}
    others = {name: value for name, value in state_dict.items() if name.rpartition(".")[0] not in _EPIC_HEAD}
    sizes = [len(state_dict[f"{layer}.bias"]) for layer in _EPIC_HEAD]
    return others | joined, dict(zip(("verb", "noun"), sizes, strict=True))


def name_here(name: str) -> str:
    """Our name for a released weight name; an unknown name is marked, so that loading reports it."""
    beginning, names, rest = "", _NAMES, name
    if match := _BLOCK.match(name):
        beginning, names, rest = f"stages.{int(match[1]) - 2}.{int(match[2]) - 1}.", _NAMES_IN_BLOCK, match[3]
    elif match := _CONVNEXT_BLOCK.match(name):
        beginning, names, rest = f"stages.{match[1]}.{match[2]}.", _NAMES_IN_CONVNEXT_BLOCK, match[3]
    elif match := _DOWNSAMPLING.match(name):
        beginning, names, rest = f"downsamplings.{match[1]}.", _NAMES_IN_DOWNSAMPLING, match[2]
    for theirs, ours in names.items():
        if rest.startswith(theirs):
            return beginning + ours + rest.removeprefix(theirs)
    return f"{name} (unknown)"
