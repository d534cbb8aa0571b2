"""TAdaConv and TAda2D give the numbers of the released code: ``golden/README.md`` says how those were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.fill import fill_input, fill_state
from tada.models import Network, create_model
from tada.models.fuse import fuse
from tada.models.released_names import network_of
from tada.models.tada2d import TAda2D
from tada.models.weights import convert_published, restore
from tada.tadaconv import Routing, TAdaConv2d, TAdaConv3d

GOLDEN = Path(__file__).parents[1] / "golden"


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    if isinstance(about.get("entries"), str):  # the parameters of another case
        about["entries"] = json.loads((GOLDEN / about["entries"]).read_text())["entries"]
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        about |= {key: value.tolist() for key, value in arrays.items() if value.dtype.kind == "U"}
        return about, {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind != "U"}


def filled(about: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """The parameters and the input of a case."""
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in fill_state(about["entries"]).items()}
    return state, torch.from_numpy(fill_input(about["case"], tuple(about["input_shape"])))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over the norm."""
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    "name",
    ["op_cin", "op_cin_stride_bias", "op_cout", "op_depthwise_cout", "op_dilated_cin_widen", "op3d_cin", "op1d_cin"],
)
def test_operator(name: str) -> None:
    about, golden = case(name)
    state, clips = filled(about)
    released = about["conv"]
    build, sides = (TAdaConv3d, slice(3)) if name in ("op3d_cin", "op1d_cin") else (TAdaConv2d, slice(1, 3))
    conv: TAdaConv2d | TAdaConv3d = build(  # type: ignore[operator]
        released["in_channels"],
        released["out_channels"],
        tuple(released["kernel_size"][sides]),
        stride=tuple(released["stride"][sides]),
        padding=tuple(released["padding"][sides]),
        dilation=tuple(released["dilation"][sides]),
        groups=released["groups"],
        bias=released["bias"],
        calibrate={"cin": "in", "cout": "out"}[released["cal_dim"]],  # type: ignore[arg-type]
        routing=Routing(about["route"]["c_in"], ratio=about["route"]["ratio"]),
    )
    conv = conv.double().eval()
    ours = {
        "conv.": "",
        "rf.g.": "routing.context.",
        "rf.a.": "routing.reduce.",
        "rf.bn.": "routing.norm.",
        "rf.b.": "routing.alpha.",
    }
    weights = {}
    for theirs, value in state.items():
        start = next(start for start in ours if theirs.startswith(start))
        key = ours[start] + theirs.removeprefix(start)
        weights[key] = value.reshape(conv.state_dict()[key].shape)
    restore(conv, weights)

    clips.requires_grad_()
    assert conv.routing is not None
    alpha = conv.routing(clips.mean((3, 4))).alpha
    output = conv(clips)
    output.square().mean().backward()
    assert difference(alpha, golden["alpha"][..., 0, 0]) < 1e-12
    assert difference(output, golden["output"]) < 1e-12
    assert clips.grad is not None
    assert difference(clips.grad, golden["grad_input"]) < 1e-8
    assert conv.weight.grad is not None
    assert difference(conv.weight.grad, golden["grad_weight"][0, 0]) < 1e-8
    assert conv.routing.reduce is not None
    assert conv.routing.reduce.weight.grad is not None
    assert difference(conv.routing.reduce.weight.grad, golden["grad_rf_a"][..., 0, 0]) < 1e-8


def our_names(about: Mapping[str, Any]) -> dict[str, str]:
    """The released names -> ours: through the conversion, with gradients and buffers in the weights' place."""
    entries = {entry["name"]: entry["shape"] for entry in about["entries"]}
    marks = {name: torch.full(tuple(shape), float(i)) for i, (name, shape) in enumerate(entries.items())}
    our_name = {int(value.flatten()[0]): name for name, value in convert_published(marks)[1].items()}
    return {name: our_name[i] for i, name in enumerate(entries)}


def assert_gradients(model: nn.Module, about: Mapping[str, Any], golden: Mapping[str, Tensor], *, rel: float) -> None:
    """The norm of every parameter's gradient is the released code's."""
    ours = our_names(about)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(about["grad_names"]) == len(gradients)
    for name, norm in zip(about["grad_names"], golden["grad_norms"].tolist(), strict=True):
        gradient = gradients[ours[name]]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=rel, abs=1e-8 if rel > 1e-8 else 1e-12), name


@pytest.fixture(scope="module")
def published() -> tuple[str, dict[str, Tensor]]:
    """TAda2D-R50's weights as the released code would have saved them, converted."""
    about, _ = case("tada2d_r50_8f")
    return convert_published(filled(about)[0])


def network(published: tuple[str, dict[str, Tensor]]) -> TAda2D:
    name, weights = published
    model = create_model(name, num_classes=400).double()
    restore(model, weights)
    return model


@pytest.mark.parametrize("name", ["tada2d_r50_8f", "tada2d_r50_16f_rect"])
def test_tada2d_in_evaluation(name: str, published: tuple[str, dict[str, Tensor]]) -> None:
    about, golden = case(name)
    _, clips = filled(about)
    model = network(published).eval()
    assert published[0] == "tada2d_r50"
    assert sum(parameter.numel() for parameter in model.parameters()) == about["params"] == 27_485_472
    stem: list[Tensor] = []
    model.stem_norm.register_forward_hook(lambda module, inputs, output: stem.append(F.relu(output)))
    with torch.no_grad():
        features = model.features(clips)
        logits = model(clips)
        single = model.float()(clips.float())
    n, t = clips.shape[0], clips.shape[2]
    stem_frames = stem[0].view(n, t, *stem[0].shape[1:]).transpose(1, 2)
    assert difference(stem_frames[:, :4, :2, :8, :8], golden["stem"]) < 1e-9
    assert difference(features, golden["features"]) < 1e-9
    assert difference(logits, golden["logits"]) < 1e-9
    assert difference(single, golden["logits"]) < 1e-4


def test_tada2d_in_training(published: tuple[str, dict[str, Tensor]]) -> None:
    about, golden = case("tada2d_r50_train")
    _, clips = filled(about)
    model = network(published).train()
    model.dropout.p = 0.0
    logits = model(clips)
    loss = F.cross_entropy(logits, torch.tensor(about["labels"]))
    loss.backward()
    assert difference(logits, golden["logits"]) < 1e-9
    assert difference(loss[None], golden["loss"]) < 1e-9

    ours = our_names(about)
    assert_gradients(model, about, golden, rel=1e-8)
    buffers = dict(model.named_buffers())
    for name, norm in zip(about["running_mean_names"], golden["running_mean_norms"].tolist(), strict=True):
        assert buffers[ours[name]].norm().item() == pytest.approx(norm, rel=1e-8), name


def test_tadaconvnext() -> None:
    about, golden = case("tadaconvnext_t")
    state, clips = filled(about)
    name, weights = convert_published(state)
    assert name == "tadaconvnext_t"
    model = create_model(name, num_classes=400).double().eval()
    restore(model, weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == about["params"] == 38_661_688
    with torch.no_grad():
        features, logits = model.features(clips), model(clips)
        single = model.float()(clips.float())
    assert difference(features, golden["features"]) < 1e-9
    assert difference(logits, golden["logits"]) < 1e-9
    assert difference(single, golden["logits"]) < 1e-4


# -- TAdaConvV2 -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network", "num_parameters"),
    [
        ("tadaconvnextv2_t", "tadaconvnextv2_t", 45_971_488),
        ("tadaformer_b16", "tadaformer_b16", 104_195_728),
        ("tadaformer_b16_ssv2", "tadaformer_b16_ssv2", 134_973_870),
    ],
)
def test_the_second_paper_in_evaluation(name: str, network: str, num_parameters: int) -> None:
    about, golden = case(name)
    state, clips = filled(about)
    assert network_of(state)[0] == network
    model = released_network(state).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == about["params"] == num_parameters
    with torch.no_grad():
        features = model.features(clips)
        logits = model.head(features)
    assert difference(features, golden["features"]) < 1e-9
    assert difference(logits, golden["logits"]) < 1e-9
    with torch.no_grad():
        assert difference(fuse(model)(clips), golden["logits"]) < 1e-9
        assert difference(model.float()(clips.float()), golden["logits"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tadaconvnextv2_t_train", "tadaformer_b16_train"])
def test_the_second_paper_in_training(name: str) -> None:
    about, golden = case(name)
    state, clips = filled(about)
    model = released_network(state, dropout=0.0, stochastic_depth=0.0).train()
    logits = model(clips)
    loss = F.cross_entropy(logits, torch.tensor(about["labels"]))
    loss.backward()
    assert difference(logits, golden["logits"]) < 1e-9
    assert difference(loss[None], golden["loss"]) < 1e-9
    assert_gradients(model, about, golden, rel=1e-6)


def released_network(state: Mapping[str, Tensor], **options: Any) -> Network:
    """The network of released weights, with them, in float64."""
    name, weights = convert_published(state)
    model = create_model(name, num_classes=len(weights["head.bias"]), **network_of(state)[1] | options).double()
    restore(model, weights)
    return model
