"""CLIP's image transformer as the start of a TAdaFormer: its weights' names, in transformers and open_clip, and ours.

open_clip's names are OpenAI's. A file may hold the text transformer too, and the projections of both: they are left
out. The shapes of the weights tell a tower's width, depth and patches, but not the heads of its attention, nor its
activation; the configuration beside the file may.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tada.errors import CheckpointError, listed
from tada.models.tadaformer import TAdaFormerConfig
from tada.system.documents import MAX_CARD_BYTES, parse_json, read_bytes

# Theirs without the tower's prefix -> ours.
_TRANSFORMERS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.": "stem.",
    "pre_layrnorm.": "first_norm.",
    "post_layernorm.": "norm.",
}
_IN_TRANSFORMERS_BLOCK = {
    "self_attn.out_proj.": "attention.projection.",
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
    "mlp.fc1.": "widen.",
    "mlp.fc2.": "narrow.",
}
_OPEN_CLIP = {
    "class_embedding": "class_embedding",
    "positional_embedding": "positional_embedding",
    "conv1.": "stem.",
    "ln_pre.": "first_norm.",
    "ln_post.": "norm.",
}
_IN_OPEN_CLIP_BLOCK = {
    "attn.in_proj_": "attention.qkv.",
    "attn.out_proj.": "attention.projection.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "widen.",
    "mlp.c_proj.": "narrow.",
}
_BLOCK = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.(.+)")
_QUERY_KEY_OR_VALUE = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")
_PROJECTION = re.compile(r"(visual\.)?proj|visual_projection\..+|text_projection(\..+)?")
_POSITIONS = re.compile(r"(vision_model\.)?embeddings\.position_ids")
_TEXT = re.compile(
    r"(text|text_model|transformer|token_embedding|ln_final)\..+"
    r"|embeddings\.token_embedding\..+|positional_embedding|attn_mask"
)
_NUMBERS = re.compile("logit_scale|logit_bias|input_resolution|context_length|vocab_size")
_BESIDE = {
    "projection": _PROJECTION,
    "positions' numbers": _POSITIONS,
    "single number": _NUMBERS,
    "text transformer": _TEXT,
}

_TOWERS = {(768, 12, 32): "ViT-B/32", (768, 12, 16): "ViT-B/16", (1024, 24, 14): "ViT-L/14", (1280, 32, 14): "ViT-H/14"}
"""CLIP's names of towers, by width, number of blocks and side of the patches."""
_USUAL_PIXELS = 224


class Facts(NamedTuple):
    """What a configuration beside the weights says of an image tower."""

    file: str
    """Its name."""
    heads: int | None
    """Heads of the attention."""
    activation: str | None
    """Between the wide layers, as transformers calls it."""


class Tower(NamedTuple):
    """An image tower's weights as those of a TAdaFormer."""

    weights: dict[str, Tensor]
    """By our names; unknown names are marked, so that loading reports them."""
    reshaped: dict[str, str]
    """Our names of weights that were made from theirs -> how."""
    ignored: tuple[str, ...]
    """Their names of what was left out; ``beside_the_tower`` says what it is."""
    notes: list[str]
    """Other things to tell, in words."""


def facts_of(file: Path) -> Facts | None:
    """The facts in a configuration of transformers or open_clip; None if it is none of CLIP's."""
    try:
        about = parse_json(read_bytes(file, MAX_CARD_BYTES))
        if "model_cfg" in about:  # open_clip
            model = about["model_cfg"]
            vision = model["vision_cfg"]
            heads = vision["width"] // vision.get("head_width", 64)
            return Facts(file.name, int(heads), "quick_gelu" if model.get("quick_gelu") else "gelu")
        vision = about if about.get("model_type") == "clip_vision_model" else about["vision_config"]
        return Facts(file.name, vision.get("num_attention_heads"), vision.get("hidden_act"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # another library's file
        return None


def beside_the_tower(name: str) -> str:
    """What a weight of CLIP is that is not of its image transformer, in words; empty for others."""
    return next((kind for kind, pattern in _BESIDE.items() if pattern.fullmatch(name)), "")


def tower_of(weights: Mapping[str, Tensor], config: TAdaFormerConfig, words: str, facts: Facts | None) -> Tower:
    """The image tower of CLIP in a state dict, made to fit a TAdaFormer.

    Args:
        words: a description of the weights, for messages.
        facts: from the configuration beside them.

    Raises:
        CheckpointError: they hold no image tower, or another one than the TAdaFormer's.
    """
    tower, ignored = _split(weights, words)
    given, blocks = _renamed(tower, words)
    notes = [*_check_same(given, blocks, config, words, facts)]
    reshaped = {}
    kernel, positions = given.get("stem.weight"), given.get("positional_embedding")
    if kernel is not None and kernel.ndim == 4:
        given["stem.weight"] = torch.stack([torch.zeros_like(kernel), kernel, torch.zeros_like(kernel)], dim=2)
        reshaped["stem.weight"] = "the image kernel on the middle of three frames"
    side = _side(positions)
    if positions is not None and side and (side, side) != tuple(config.grid):
        rows, columns = config.grid
        grid = positions[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        given["positional_embedding"] = torch.cat([positions[:1], grid[0].flatten(1).T])
        reshaped["positional_embedding"] = (
            f"that of {_in_words(given, blocks, side)}, resized from {side} x {side} patches to {rows} x {columns}"
        )
    return Tower(given, reshaped, ignored, notes)


def _split(weights: Mapping[str, Tensor], words: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tower's weights without its prefix; and the names of what is left out."""
    prefixes = [prefix for prefix in ("vision_model.", "visual.") if any(name.startswith(prefix) for name in weights)]
    is_bare = "embeddings.patch_embedding.weight" in weights or {"class_embedding", "conv1.weight"} <= weights.keys()
    if not prefixes and not is_bare:
        if any(name.endswith("token_embedding.weight") for name in weights):
            raise CheckpointError(
                f"{words} is CLIP's text transformer alone ({len(weights)} weights): a TAdaFormer starts from the "
                "image transformer; give a file that holds it"
            )
        raise CheckpointError(
            f"{words} is no image transformer of CLIP as transformers or open_clip names it; its first names are "
            f"{listed(weights, quote=False)}"
        )
    prefix = prefixes[0] if prefixes else ""
    beside = {name: beside_the_tower(name) for name in weights}
    # Without its prefix, a tower's names are also those of open_clip's text transformer.
    ignored = tuple(name for name, what in beside.items() if what and (prefix or what != "text transformer"))
    return {name.removeprefix(prefix): value for name, value in weights.items() if name not in ignored}, ignored


def _renamed(tower: Mapping[str, Tensor], words: str) -> tuple[dict[str, Tensor], int]:
    """The weights by our names, and the number of blocks; queries, keys and values are one layer here."""
    names, in_block = _OPEN_CLIP, _IN_OPEN_CLIP_BLOCK
    if any(name.startswith("embeddings.") for name in tower):
        names, in_block = _TRANSFORMERS, _IN_TRANSFORMERS_BLOCK
    given: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    blocks = set()
    for name, value in tower.items():
        beginning, rest, known = "", name, names
        if match := _BLOCK.fullmatch(name):
            beginning, rest, known = f"blocks.{match[1]}.", match[2], in_block
            blocks.add(match[1])
        if part := _QUERY_KEY_OR_VALUE.fullmatch(rest):
            parts.setdefault(f"{beginning}attention.qkv.{part[2]}", {})[part[1]] = value
            continue
        ours = next((known[theirs] + rest.removeprefix(theirs) for theirs in known if rest.startswith(theirs)), None)
        given[f"{name} (unknown)" if ours is None else beginning + ours] = value
    for name, of_layer in parts.items():
        if len({value.shape for value in of_layer.values()}) > 1 or not all(v.ndim for v in of_layer.values()):
            shapes = ", ".join(f"{part} {list(of_layer[part].shape)}" for part in "qkv" if part in of_layer)
            raise CheckpointError(
                f"{words} has queries, keys and values that are not of one shape ({name}: {shapes}); it is damaged: "
                "download it again"
            )
        given[name] = torch.cat([of_layer[part] for part in "qkv" if part in of_layer])
    return given, len(blocks)


def _check_same(
    given: Mapping[str, Tensor], blocks: int, config: TAdaFormerConfig, words: str, facts: Facts | None
) -> list[str]:
    """What the facts leave open, in words.

    Raises:
        CheckpointError: it is another tower than the TAdaFormer's.
    """
    shape = _shape(given, blocks)
    if shape != (config.width, config.depth, config.patch):
        ours = _named(config.width, config.depth, config.patch)
        raise CheckpointError(
            f"{words} is {_in_words(given, blocks, _side(given.get('positional_embedding')))}; this TAdaFormer starts "
            f"from {ours}: give that, or another --model (tadaformer_b16 is for ViT-B/16, tadaformer_l14 for ViT-L/14)"
        )
    heads = None if facts is None else facts.heads
    if facts is None or heads is None:
        return [
            f"{config.heads} heads are taken, since neither the weights nor a configuration beside them say how many"
        ]
    if heads != config.heads:
        raise CheckpointError(
            f"{words} has attention of {heads} heads, as {facts.file} beside it says, and this TAdaFormer of "
            f"{config.heads}: give weights with as many, or --model-options '{{heads: {heads}}}'"
        )
    if facts.activation not in (None, "quick_gelu"):
        return [f"{facts.file} says that it was trained with {facts.activation}, and a TAdaFormer has quick_gelu"]
    return []


def _shape(given: Mapping[str, Tensor], blocks: int) -> tuple[int, int, int]:
    """Width, number of blocks and side of the patches."""
    kernel = given.get("stem.weight")
    return (kernel.shape[0], blocks, kernel.shape[-1]) if kernel is not None and kernel.ndim else (0, blocks, 0)


def _side(positions: Tensor | None) -> int:
    """Rows of patches of a square positional embedding; 0 if there is none."""
    if positions is None or positions.ndim != 2:
        return 0
    side = math.isqrt(max(len(positions) - 1, 0))
    return side if 1 + side**2 == len(positions) else 0


def _in_words(given: Mapping[str, Tensor], blocks: int, side: int) -> str:
    shape = _shape(given, blocks)
    pixels = side * shape[2]
    return _named(*shape, f" at {pixels} pixels" if pixels not in (0, _USUAL_PIXELS) else "")


def _named(width: int, depth: int, patch: int, at: str = "") -> str:
    numbers = f"{depth} blocks of {width} channels, patches of {patch} pixels"
    return f"CLIP's {_TOWERS.get((width, depth, patch), 'image transformer')}{at} ({numbers})"
