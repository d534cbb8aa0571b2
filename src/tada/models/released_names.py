"""Map the weight names of the authors' released checkpoints (TAda2D, TAdaConvNeXt and V2, TAdaFormer) to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tada.errors import CheckpointError, listed

_TADA2D = {(3, 4, 6, 3): "tada2d_r50", (3, 4, 23, 3): "tada2d_r101"}
_TADACONVNEXT = {  # by the blocks of each stage, and the channels of the first
    ((3, 3, 9, 3), 96): "tadaconvnext_t",
    ((3, 3, 27, 3), 96): "tadaconvnext_s",
    ((3, 3, 27, 3), 128): "tadaconvnext_b",
}
_TADAFORMER: dict[tuple[int, tuple[int, ...]], str] = {  # by the number of blocks, and the shape of the stem's kernel
    (12, (768, 3, 3, 16, 16)): "tadaformer_b16",
    (24, (1024, 3, 3, 14, 14)): "tadaformer_l14",
}
_NAMES = {
    "backbone.conv1.a.": "stem_conv.",
    "backbone.conv1.a_bn.": "stem_norm.",
    "backbone.downsample_layers.0.0.": "stem.conv.",
    "backbone.downsample_layers.0.1.": "stem.norm.",
    "backbone.norm.": "norm.",
    "backbone.class_embedding": "class_embedding",
    "backbone.positional_embedding": "positional_embedding",
    "backbone.conv1.weight": "stem.weight",
    "backbone.ln_pre.": "first_norm.",
    "backbone.ln_post.": "norm.",
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
_NAMES_IN_ROUTING_V2 = {
    "a.": "reduce.",
    "norm.": "norm.",
    "norm_transformer.": "attention.norm.",
    "qkv_proj.": "attention.qkv.",
    "attn_out.": "attention.projection.",
    "b.": "alpha.",
    "b_bias.": "beta.",
}


def _inside(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names of a part, behind the names that the part has on both sides."""
    return {theirs + their_name: ours + our_name for their_name, our_name in names.items()}


_NAMES_IN_CONVNEXTV2_BLOCK = {
    **_inside("dwconv_rf.", "conv.routing.", _NAMES_IN_ROUTING_V2),
    "norm.": "norm.norm.",
    "norm_avgpool.": "norm.pooled_norm.",
}
_FORMER_BLOCK = re.compile(r"backbone\.layers\.(\d+)\.(.*)")
_NAMES_IN_TADA_BLOCK = {
    "tada_pre_proj.": "reduce.",
    **_inside("tadaconv.rf_func.", "conv.routing.", _NAMES_IN_ROUTING_V2),
    "tadaconv.bn_a.": "norm.norm.",
    "tadaconv.bn_b.": "norm.pooled_norm.",
    "tadaconv.": "conv.",
    "tada_proj.": "expand.",
}
_NAMES_IN_FORMER_BLOCK = {
    **_inside("tada.", "tada.", _NAMES_IN_TADA_BLOCK),
    **_inside("tada2.", "tada2.", _NAMES_IN_TADA_BLOCK),
    "attn.in_proj_": "attention.qkv.",
    "attn.out_proj.": "attention.projection.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "widen.",
    "mlp.c_proj.": "narrow.",
}
_DOWNSAMPLING = re.compile(r"backbone\.downsample_layers\.([123])\.(.*)")
_NAMES_IN_DOWNSAMPLING = {"0.": "norm.", "1.": "conv."}


def network_of(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The network of a released state dict, found by names and shapes: its name, and options that differ.

    Raises:
        CheckpointError: no released network has these blocks.
    """
    former_blocks = [match for name in state_dict if (match := _FORMER_BLOCK.match(name))]
    if former_blocks:
        return _former_of(state_dict, len({match[1] for match in former_blocks}))
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
        name = _TADACONVNEXT[shape]
        return name.replace("next_", "nextv2_") if _is_v2(state_dict) else name, {}
    blocks = [match for name in state_dict if (match := _BLOCK.match(name))]
    depths = tuple(len({match[2] for match in blocks if match[1] == stage}) for stage in "2345")
    if depths not in _TADA2D:
        known = " or ".join(str(list(depths)) for depths in _TADA2D)
        raise CheckpointError(
            f"these are no weights of a released TAda2D: stages of {list(depths)} blocks instead of {known} "
            f"('backbone.conv2.res_1...' and on), nor of a TAdaConvNeXt ('backbone.stages.0.0...') or a TAdaFormer "
            f"('backbone.layers.0...'); the first names are {listed(state_dict, quote=False) or 'nothing'}"
        )
    return _TADA2D[depths], {}


def _is_v2(names: Collection[str]) -> bool:
    """Whether the routing functions of a released TAdaConvNeXt have attention over time."""
    return "backbone.stages.0.0.dwconv_rf.qkv_proj.weight" in names


def _former_of(state_dict: Mapping[str, Tensor], depth: int) -> tuple[str, dict[str, Any]]:
    stem, positions = (state_dict.get(f"backbone.{name}") for name in ("conv1.weight", "positional_embedding"))
    kernel = () if stem is None else tuple(stem.shape)
    if (depth, kernel) not in _TADAFORMER:
        known = " or ".join(f"{depth} behind a stem {list(shape)}" for depth, shape in _TADAFORMER)
        raise CheckpointError(
            f"these are no weights of a released TAdaFormer: {depth} blocks behind a stem {list(kernel)} instead of "
            f"{known} ('backbone.layers.0...', 'backbone.conv1.weight')"
        )
    name = _TADAFORMER[depth, kernel]
    if any(name.startswith("backbone.layers.0.tada2.") for name in state_dict):
        name += "_ssv2"
    if positions is None:
        return name, {}
    side = math.isqrt(max(len(positions) - 1, 0)) if positions.ndim == 2 else 0
    if side < 1 or 1 + side**2 != len(positions):
        raise CheckpointError(
            f"'backbone.positional_embedding' {list(positions.shape)} is not that of a released TAdaFormer: a row for "
            "the class token, and one for each patch of a square"
        )
    usual = 224 // kernel[-1]
    return name, {} if side == usual else {"grid": [side, side]}


def join_heads(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Join the two layers of the released head for EPIC-KITCHENS-100, of verbs and nouns, to one as in other heads.

    Returns:
        The state dict, and the number of classes of "verb" and "noun"; empty for other heads.
    """
    parts = {end: [state_dict.get(f"{layer}.{end}") for layer in _EPIC_HEAD] for end in ("weight", "bias")}
    joined = {
        f"head.out.{end}": torch.cat([verb, noun])
        for end, (verb, noun) in parts.items()
        if verb is not None and noun is not None and verb.ndim == noun.ndim > 0 and verb.shape[1:] == noun.shape[1:]
    }
    if len(joined) < len(parts):
        return dict(state_dict), {}
    others = {name: value for name, value in state_dict.items() if name.rpartition(".")[0] not in _EPIC_HEAD}
    sizes = [len(state_dict[f"{layer}.bias"]) for layer in _EPIC_HEAD]
    return others | joined, dict(zip(("verb", "noun"), sizes, strict=True))


def names_here(names: Collection[str]) -> dict[str, str]:
    """Our name for each weight name of a released state dict; unknown ones are marked, so that loading reports them."""
    in_convnext_block = _NAMES_IN_CONVNEXT_BLOCK | (_NAMES_IN_CONVNEXTV2_BLOCK if _is_v2(names) else {})
    return {name: _name_here(name, in_convnext_block) for name in names}


def _name_here(name: str, in_convnext_block: Mapping[str, str]) -> str:
    beginning, names, rest = "", _NAMES, name
    if match := _BLOCK.match(name):
        beginning, names, rest = f"stages.{int(match[1]) - 2}.{int(match[2]) - 1}.", _NAMES_IN_BLOCK, match[3]
    elif match := _CONVNEXT_BLOCK.match(name):
        beginning, names, rest = f"stages.{match[1]}.{match[2]}.", dict(in_convnext_block), match[3]
    elif match := _FORMER_BLOCK.match(name):
        beginning, names, rest = f"blocks.{match[1]}.", _NAMES_IN_FORMER_BLOCK, match[2]
    elif match := _DOWNSAMPLING.match(name):
        beginning, names, rest = f"downsamplings.{match[1]}.", _NAMES_IN_DOWNSAMPLING, match[2]
    for theirs, ours in names.items():
        if rest.startswith(theirs):
            return beginning + ours + rest.removeprefix(theirs)
    return f"{name} (unknown)"
