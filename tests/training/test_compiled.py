"""Compiled training: the numbers of the uncompiled one, and weights of the same names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config

from drawn_features import silent
from tada.errors import OptionError
from tada.models import create_model
from tada.models.fuse import fuse
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.system.devices import Machine


def fit(recipe: Recipe, data: Path, out: Path, *, compile: bool) -> dict[str, torch.Tensor]:
    machine = Machine(accelerator="cpu", compile=compile)
    train(recipe, data, out, machine=machine, num_workers=0, show_progress=False, say=silent)
    return load_file(out / "model.safetensors")


def assert_compiled_as_uncompiled(recipe: Recipe, data: Path, folder: Path) -> None:
    options = recipe.model_options | {"dropout": 0.0}  # compiled code draws its own random numbers
    recipe = replace(recipe, model_options=options, optimizer="sgd", learning_rate=0.01, ema_decay=0.5, epochs=1)
    torch._dynamo.reset()
    counters.clear()
    compiled = fit(recipe, data, folder / "compiled", compile=True)
    assert counters["stats"]["unique_graphs"] >= 2  # of training and of the test after it
    plain = fit(recipe, data, folder / "plain", compile=False)
    assert list(compiled) == list(plain)
    for name, value in compiled.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler, about itself
def test_a_compiled_training(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, forward and backward, but not turned into machine code, which takes a minute."""
    monkeypatch.setattr(nn.Module, "compile", partial_method(nn.Module.compile))
    assert_compiled_as_uncompiled(small_recipe, motion_videos, tmp_path)


def partial_method(compile):  # type: ignore[no-untyped-def]
    return lambda module: compile(module, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_training_in_machine_code(small_recipe: Recipe, motion_videos: Path, tmp_path: Path) -> None:
    assert_compiled_as_uncompiled(small_recipe, motion_videos, tmp_path)


def test_what_does_not_go_together_with_it() -> None:
    with pytest.raises(OptionError, match="compile and checkpoint_gradients do not work together"):
        Machine(compile=True, checkpoint_gradients=True)
    with pytest.raises(OptionError, match="compile and fsdp do not work together"):
        Machine(compile=True, strategy="fsdp")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_training", [True, False])
def test_a_machine_without_a_compiler(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, *, is_training: bool
) -> None:
    def compiled() -> None:
        if is_training:
            fit(small_recipe, motion_videos, tmp_path / "run", compile=True)
        else:
            fuse(create_model("tada2d_tiny", num_classes=2), compile=True)(torch.zeros(1, 3, 4, 32, 32))

    torch._dynamo.reset()
    told = r"^torch.compile cannot build the network on this machine \(.+\): leave --compile out, or install"
    without = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with config.patch(without), pytest.raises(OptionError, match=told):
        compiled()
