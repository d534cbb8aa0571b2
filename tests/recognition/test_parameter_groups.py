"""Learning rates and weight decay of every kind of parameter, as the released optimizers set them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from tada.errors import OptionError
from tada.models import create_model
from tada.recognition.parameter_groups import check_rule, parameter_groups
from tada.recognition.recipe import Recipe, load_recipe
from tada.training.schedule import learning_rate_factor

# For a recipe: parts of names -> the factor of the rate, and whether it decays; "*" stands for several names.
TADACONVNEXTV2 = {
    "stem.conv.weight": (1, True),
    "stem.conv.bias": (1, False),
    "stem.norm.weight": (1, True),
    "stem.norm.bias": (1, False),
    "downsamplings.2.norm.weight": (1, True),
    "downsamplings.2.norm.bias": (1, False),
    "downsamplings.2.conv.weight": (1, True),
    "downsamplings.2.conv.bias": (1, False),
    "stages.2.8.layer_scale": (1, True),
    "stages.2.8.conv.weight": (1, True),
    "stages.2.8.conv.bias": (1, False),
    "stages.2.8.conv.routing.reduce.weight": (5, True),
    "stages.2.8.conv.routing.reduce.bias": (10, False),
    "stages.2.8.conv.routing.norm.weight": (5, True),
    "stages.2.8.conv.routing.norm.bias": (10, False),
    "stages.2.8.conv.routing.alpha.weight": (5, True),
    "stages.2.8.conv.routing.beta.weight": (10, False),
    "stages.2.8.conv.routing.attention.norm.weight": (5, True),
    "stages.2.8.conv.routing.attention.norm.bias": (10, False),
    "stages.2.8.conv.routing.attention.qkv.weight": (5, True),
    "stages.2.8.conv.routing.attention.qkv.bias": (10, False),
    "stages.2.8.conv.routing.attention.projection.weight": (5, True),
    "stages.2.8.conv.routing.attention.projection.bias": (10, False),
    "stages.2.8.norm.norm.weight": (1, False),
    "stages.2.8.norm.norm.bias": (1, False),
    "stages.2.8.norm.pooled_norm.weight": (1, False),
    "stages.2.8.norm.pooled_norm.bias": (1, False),
    "stages.2.8.widen.weight": (1, True),
    "stages.2.8.widen.bias": (1, False),
    "stages.2.8.narrow.weight": (1, True),
    "stages.2.8.narrow.bias": (1, False),
    "norm.weight": (1, False),
    "norm.bias": (1, False),
    "head.weight": (5, True),
    "head.bias": (10, False),
}
TADAFORMER = {
    "stem.weight": (0.7**13, True),
    "class_embedding": (0.7**13, False),
    "positional_embedding": (0.7**13, True),
    "first_norm.weight": (0.7**13, False),
    "first_norm.bias": (0.7**13, False),
    "blocks.0.norm1.weight": (0.7**12, False),
    "blocks.0.tada.expand.weight": (10 * 0.7**12, True),
    "blocks.4.attention.qkv.weight": (0.7**8, True),
    "blocks.4.attention.qkv.bias": (0.7**8, False),
    "blocks.4.attention.projection.weight": (0.7**8, True),
    "blocks.4.attention.projection.bias": (0.7**8, False),
    "blocks.4.tada.reduce.weight": (10 * 0.7**8, True),
    "blocks.4.tada.reduce.bias": (10 * 0.7**8, False),
    "blocks.4.tada.conv.weight": (10 * 0.7**8, True),
    "blocks.4.tada.conv.bias": (10 * 0.7**8, False),
    "blocks.4.tada.conv.routing.beta.weight": (10 * 0.7**8, True),
    "blocks.4.tada.conv.routing.norm.weight": (10 * 0.7**8, False),
    "blocks.4.tada.norm.norm.weight": (10 * 0.7**8, False),
    "blocks.4.tada.norm.pooled_norm.bias": (10 * 0.7**8, False),
    "blocks.4.tada2.conv.routing.attention.qkv.weight": (10 * 0.7**8, True),
    "blocks.11.narrow.weight": (0.7, True),
    "blocks.11.narrow.bias": (0.7, False),
    "blocks.11.tada2.expand.weight": (7, True),
    "norm.weight": (1, False),
    "norm.bias": (1, False),
    "head.weight": (10, True),
    "head.bias": (10, False),
}


@cache
def network(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


def found(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Of each parameter, its learning rate and weight decay."""
    model = network(recipe.model)
    groups = parameter_groups(
        model,
        rate=recipe.learning_rate,
        head_factor=recipe.head_learning_rate_factor,
        added_factor=recipe.tada_learning_rate_factor,
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
        rule=recipe.parameter_rule,
    )
    of = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    names = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(names) == sum(len(group["params"]) for group in groups), "each is in one group"
    return names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ssv2_tadaconvnextv2_t_16", TADACONVNEXTV2), ("ssv2_tadaformer_b16_16", TADAFORMER)],
)
def test_rates_and_decay_as_released(name: str, expected: dict[str, tuple[float, bool]]) -> None:
    recipe = load_recipe(name)
    groups = found(recipe)
    for parameter, (factor, is_decayed) in expected.items():
        wanted = (factor * recipe.learning_rate, recipe.weight_decay if is_decayed else 0.0)
        assert groups[parameter] == pytest.approx(wanted, rel=1e-12), parameter
    kinds = {_kind(parameter) for parameter in groups}
    if "tadaconvnext" in name:
        assert kinds == {_kind(parameter) for parameter in expected}, "every kind of parameter is in the list"


def _kind(name: str) -> str:
    return ".".join("0" if part.isdigit() else part for part in name.split("."))


def test_rules_for_other_networks_are_refused() -> None:
    tada2d, former = create_model("tada2d_tiny"), create_model("tadaformer_tiny")
    with pytest.raises(OptionError, match=r"layer_decay 0.7 is for a TAdaFormer, .*: for a tada2d_tiny give 1$"):
        check_rule(tada2d, "tada2d_tiny", layer_decay=0.7, rule="kernels")
    with pytest.raises(
        OptionError, match=r"parameter_rule 'released' is for a TAdaConvNeXt: for a tadaformer_tiny give"
    ):
        check_rule(former, "tadaformer_tiny", layer_decay=0.7, rule="released")


def test_the_cosine_may_begin_after_the_warmup_and_end_above_zero() -> None:
    """Expected: 1e-6 + (5e-5 - 1e-6) * (1 + cos(pi * (epoch - 5) / 25)) / 2 from epoch 5 on."""
    recipe = load_recipe("k400_tadaformer_b16_16")
    rates = [
        recipe.learning_rate
        * learning_rate_factor(
            epoch,
            epochs=30,
            warmup_epochs=5,
            warmup_start=recipe.warmup_start,
            end=recipe.learning_rate_end,
            after_warmup=recipe.cosine_after_warmup,
        )
        for epoch in (0, 2.5, 5, 17.5, 30)
    ]
    assert rates == pytest.approx([1e-6, 25.5e-6, 50e-6, 25.5e-6, 1e-6], rel=1e-9)
