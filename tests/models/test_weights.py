"""Weights on disk: what is saved comes back, and every damaged or foreign file is told by name, with nothing run."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tada.errors import CheckpointError, OutputError, UnknownNameError
from tada.models import create_model, weights
from tada.models.weights import (
    ModelCard,
    convert_published,
    load_model,
    packaged,
    packaged_names,
    read_weights,
    restore,
    save_model,
)
from tada.system import files
from tada.video.sampling import ClipSpec

SMALL: dict[str, Any] = {"depths": (1,), "widths": (4,), "stem_width": 4}
CARD = ModelCard(
    model="tada2d_tiny",
    options=SMALL,
    labels=("left", "right", "zurück"),
    clip=ClipSpec(num_frames=4),
    metrics={"top1": 0.5},
    trained_from="random weights",
)


def small_model(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return create_model("tada2d_tiny", num_classes=num_classes, **SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "run", small_model(), CARD)
    return tmp_path / "run"


def edit_card(folder: Path, **entries: Any) -> None:
    about = json.loads((folder / "model.json").read_text()) | entries
    (folder / "model.json").write_text(json.dumps({name: v for name, v in about.items() if v is not ...}))


class Bomb:
    """Touches a file when it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


class TestTrainedModel:
    def test_comes_back_as_it_was(self, folder: Path) -> None:
        model, card = load_model(folder)
        assert card == replace(CARD, options={"depths": [1], "widths": [4], "stem_width": 4})
        assert not model.training
        clips = torch.randn(2, 3, 4, 16, 16)
        assert torch.equal(model(clips), small_model().eval()(clips))
        about = json.loads((folder / "model.json").read_text())
        assert about["format"] == 1
        assert sorted(file.name for file in folder.iterdir()) == ["model.json", "model.safetensors"]

    def test_saving_again_replaces(self, folder: Path) -> None:
        model = small_model()
        with torch.no_grad():
            model.get_parameter("head.bias").fill_(3.0)
        save_model(folder, model, replace(CARD, metrics={"top1": 0.75}))
        again, card = load_model(folder)
        assert again.get_parameter("head.bias").tolist() == [3.0] * 3
        assert card.metrics == {"top1": 0.75}

    def test_a_save_that_fails_leaves_the_old_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OutputError, match="cannot be written: the disk is full"):
            save_model(folder, small_model(), CARD)
        assert sorted(file.name for file in folder.iterdir()) == ["model.json", "model.safetensors"]
        load_model(folder)

    def test_a_card_of_another_network_is_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointError, match=r"the model is no tada2d_tiny with .*: the model has 2 classes, the w"
        ):
            save_model(tmp_path / "run", small_model(), replace(CARD, labels=("left", "right")))
        with pytest.raises(
            CheckpointError, match=r"the model is no tsn_tiny with .* weights do not match: .* is missing"
        ):
            save_model(tmp_path / "run", small_model(), replace(CARD, model="tsn_tiny"))
        assert not (tmp_path / "run").exists()

    def test_weights_that_are_no_numbers_are_not_saved(self, tmp_path: Path) -> None:
        model = small_model()
        with torch.no_grad():
            model.get_parameter("head.weight")[1, 2] = float("nan")
        with pytest.raises(CheckpointError, match=r"the model has weights that are not finite numbers: head.weight;"):
            save_model(tmp_path / "run", model, CARD)
        assert not (tmp_path / "run").exists()

    def test_a_flipped_bit(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        safetensors.torch.load_file(file)  # which does not see it
        with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged, .* SHA-256 .* copy or download"):
            load_model(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged"):
            load_model(folder)
        file.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"model.safetensors' is empty; copy or download it again"):
            load_model(folder)

    def test_weights_without_a_number(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = small_model()
        with torch.no_grad():
            model.get_parameter("head.weight")[0, 0] = float("inf")
        monkeypatch.setattr(weights, "_check_finite", lambda *_: None)
        save_model(folder, model, CARD)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=r"model.safetensors' has weights that are not finite .* head.weight"):
            load_model(folder)

    def test_missing_files(self, folder: Path, tmp_path: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model.safetensors' cannot be read: No such file"):
            load_model(folder)
        (folder / "model.json").unlink()
        with pytest.raises(CheckpointError, match=r"model.json' is not there: it is written last, when training ends"):
            load_model(folder)
        with pytest.raises(CheckpointError, match=r"nowhere' is no folder; give the folder of a trained model"):
            load_model(tmp_path / "nowhere")

    def test_a_pipe_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        os.mkfifo(folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model.safetensors' is not a regular file"):
            load_model(folder)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"format": 2, "tada": "9.0"}, r"has format 2, from tada 9.0; this tada reads format 1: update it"),
            ({"format": ...}, r"was not written by tada \(no format\)"),
            ({"sha256": ...}, r"entry 'sha256' is missing or not as tada writes it"),
            ({"labels": ...}, r"entry 'labels' is missing; it is not as tada writes it: copy or download"),
            ({"labels": []}, r"names no labels"),
            ({"labels": [1, 2, 3]}, r"entry 'labels\[0\]' should be a text, and is 1"),
            ({"labels": ["left", "right"]}, r"says tada2d_tiny: the model has 2 classes, the weights have 3"),
            ({"options": 3}, r"entry 'options' should be a mapping, and is 3"),
            ({"options": {"depth": 1}}, r"no option 'depth'; it has .*; update tada, or copy"),
            ({"options": {}}, r"does not fit model.json, which says tada2d_tiny: .* weights do not match"),
            ({"options": {"widths": [1 << 14], "depths": [1]}}, r"does not fit model.json"),
            ({"options": {"widths": [1 << 30], "depths": [1]}}, r"widths=\[1073741824\] is beyond any network"),
            ({"options": {"widths": [8] * 4, "depths": [300] * 4}}, r"depths=.* are more than 500 blocks"),
            ({"options": {"widths": [8], "depths": [1] * 10_000}}, r"depths=.* are more than 500 blocks"),
            ({"model": "tada3d"}, r"no model is called 'tada3d'.*; update tada, or copy"),
            ({"clip": {"num_frames": 4, "speed": 3}}, r"entry 'clip.speed' is not known here; remove it"),
            ({"clip": 3}, r"entry 'clip' should be a mapping, and is 3"),
            ({"clip": {"num_frames": 10**9}}, r"num_frames=1000000000 .* is more than a network can take"),
            ({"trained_from": None}, r"entry 'trained_from' should be a text, and is null"),
            ({"head_sizes": {"verb": -1, "noun": 4}}, r"head_sizes .* do not add up to 3 labels"),
        ],
    )
    def test_a_card_that_is_wrong(self, folder: Path, entries: dict[str, Any], message: str) -> None:
        edit_card(folder, **entries)
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(folder)
        assert "\n" not in str(error.value)
        assert "model.json" in str(error.value)

    @pytest.mark.parametrize("text", [b'{"format": 1', b"\xff\xfe\x00", b"[1, 2]", b"[" * 100_000])
    def test_a_card_that_is_no_card(self, folder: Path, text: bytes) -> None:
        (folder / "model.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=r"model.json' is damaged, or was not written by tada"):
            load_model(folder)


class TestReadWeights:
    state = {"head.weight": torch.arange(6.0).view(2, 3), "norm.num_batches_tracked": torch.tensor(3)}  # noqa: RUF012

    @pytest.mark.parametrize("name", ["w.pth", "w.PYTH", "w.pt"])
    @pytest.mark.parametrize("wrapper", [None, "model_state", "state_dict", "model"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_pickles(self, tmp_path: Path, name: str, wrapper: str | None, prefix: str) -> None:
        content: dict[str, Any] = {prefix + key: value for key, value in self.state.items()}
        if wrapper is not None:
            content = {wrapper: content, "epoch": 3, "optimizer_state": {"lr": [0.1]}, "cfg": "TRAIN: yes"}
        torch.save(content, tmp_path / name)
        read = read_weights(tmp_path / name)
        assert read.keys() == self.state.keys()
        assert all(torch.equal(read[key], value) for key, value in self.state.items())

    def test_the_form_of_old_pytorch(self, tmp_path: Path) -> None:
        torch.save(self.state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        assert read_weights(tmp_path / "w.pth").keys() == self.state.keys()

    def test_safetensors(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(self.state, tmp_path / "w.safetensors")
        read = read_weights(tmp_path / "w.safetensors")
        assert torch.equal(read["head.weight"], self.state["head.weight"])

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_bomb_does_not_go_off(self, tmp_path: Path, name: str, zipped: bool) -> None:
        marker = tmp_path / "marker"
        bomb = {"state_dict": dict(self.state), "extra": Bomb(marker)}
        torch.save(bomb, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"which could run code, or it is damaged|is no safetensors file"):
            read_weights(tmp_path / name)
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(marker)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(CheckpointError, match=name):
                read_weights(tmp_path / name)
        assert not said  # of the pickle's version, by PyTorch
        assert not marker.exists()
        pickle.loads((tmp_path / name).read_bytes())
        assert marker.exists()

    def test_a_tensor_that_claims_more_than_the_file_holds(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(1).expand(1 << 38)}, tmp_path / "w.pth")
        assert (tmp_path / "w.pth").stat().st_size < 3000
        with pytest.raises(
            CheckpointError, match=r"bytes but claims tensors of 1099511627776; it is damaged or unsafe"
        ):
            read_weights(tmp_path / "w.pth")

    def test_a_packed_archive(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as plain,
            zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        with pytest.raises(CheckpointError, match=r"w.pth': it is compressed: it unpacks to 4\d+ bytes"):
            read_weights(tmp_path / "w.pth")

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path: Path, zipped: bool, part: float) -> None:
        file = tmp_path / "w.pth"
        torch.save({"w": torch.zeros(1000)}, file, _use_new_zipfile_serialization=zipped)
        data = file.read_bytes()
        file.write_bytes(data[: int(part * len(data))])
        with pytest.raises(CheckpointError, match=r"w.pth' holds more than tensors .* or it is damaged"):
            read_weights(file)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", r"is empty; copy or download it again"),
            (b"\xff" * 8 + b"{}", r"is no safetensors file"),
            (b"\x02\0\0\0\0\0\0\0{}", r"holds no state dict"),
            (b"\x10\0\0\0\0\0\0\0{'not': 'json'}..", r"is no safetensors file"),
        ],
    )
    def test_safetensors_that_are_none(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "w.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / "w.safetensors")

    @pytest.mark.parametrize("name", ["w.zip", "w.tar", "w.tar.gz", "w.onnx", "w"])
    def test_other_endings(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(
            CheckpointError, match=r"read from .safetensors, .pth, .pyth, .pt or .bin; archives are not opened"
        ):
            read_weights(tmp_path / name)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (3, r"holds no state dict"),
            ({}, r"holds no state dict"),
            ({"w": torch.zeros(1), "epoch": 3}, r"holds, beside weights, epoch; a state dict may stand alone"),
            ({"weights": {"w": torch.zeros(1)}}, r"holds, beside weights, weights"),
            ({"w": torch.eye(2).to_sparse()}, r"holds, beside weights, w"),
            ({"w": torch.tensor([1.0, float("nan")])}, r"w.pth' has weights that are not finite numbers: w; training"),
        ],
    )
    def test_contents_that_are_no_weights(self, tmp_path: Path, content: Any, message: str) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / "w.pth")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read(self, tmp_path: Path) -> None:
        for name in ("w.pth", "w.safetensors"):
            (tmp_path / name).write_bytes(b"weights")
            (tmp_path / name).chmod(0)
            with pytest.raises(CheckpointError, match=rf"{name}' cannot be read: no permission; give this user"):
                read_weights(tmp_path / name)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"w.pth' cannot be read: No such file or directory"):
            read_weights(tmp_path / "w.pth")
        os.mkfifo(tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"w.pth' is not a regular file"):
            read_weights(tmp_path / "w.pth")


class TestRestore:
    def test_name_for_name(self) -> None:
        source, target = small_model(), small_model()
        with torch.no_grad():
            for value in source.state_dict().values():
                value += 1
        restore(target, source.state_dict())
        for name, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[name], value), name

    def test_other_classes(self) -> None:
        target = small_model(num_classes=5)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        source = {name: value + 1 for name, value in small_model(num_classes=3).state_dict().items()}
        with pytest.raises(
            CheckpointError, match=r"the model has 5 classes, the weights have 3 \(head.bias, head.weigh"
        ):
            restore(target, source)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
        restore(target, source, fresh=("head.",))
        for name, value in target.state_dict().items():
            assert torch.equal(value, before[name] if name.startswith("head.") else source[name]), name

    def test_missing_and_extra_names(self) -> None:
        source = small_model().state_dict()
        source["extra"] = source.pop("stem_norm.bias")
        message = (
            r"2 of \d+ weights do not match: extra is missing in the model and \[4\] in the weights, stem_norm.bias is"
        )
        with pytest.raises(CheckpointError, match=message):
            restore(small_model(), source)

    def test_many_differences_are_counted(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"\d+ weights do not match: .*, and \d+ more; give weights of this net"
        ):
            restore(small_model(), {})


class TestConvertPublished:
    """That the values are right, ``test_parity`` shows."""

    def released(self, depths: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, Tensor]:
        names: dict[str, Tensor] = {"head.out.weight": torch.zeros(5, 2048)}
        for stage, depth in enumerate(depths, start=2):
            names |= {f"backbone.conv{stage}.res_{i + 1}.conv_branch.c_bn.bias": torch.zeros(1) for i in range(depth)}
        return names

    def test_another_depth(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"stages of \[3, 4, 5, 3\] blocks instead of \[3, 4, 6, 3\] or \[3, 4, 23"
        ):
            convert_published(self.released((3, 4, 5, 3)))

    def test_another_network(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"no weights of a released TAda2D: .* the first names are layer1.weight"
        ):
            convert_published({"layer1.weight": torch.zeros(1)})

    @pytest.mark.parametrize(("depths", "model"), [((3, 4, 6, 3), "tada2d_r50"), ((3, 4, 23, 3), "tada2d_r101")])
    def test_missing_names(self, depths: tuple[int, ...], model: str) -> None:
        with pytest.raises(
            CheckpointError, match=rf"not the weights of a released {model}: \d+ of \d+ weights do not m"
        ):
            convert_published(self.released(depths))


class TestPackaged:
    def test_by_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "_packaged_folder", lambda: tmp_path)
        assert packaged_names() == []
        save_model(tmp_path / "tada2d_tiny_motion", small_model(), CARD)
        assert packaged_names() == ["tada2d_tiny_motion"]
        assert load_model(packaged("tada2d_tiny_motion"))[1].labels == CARD.labels
        with pytest.raises(
            UnknownNameError, match=r"ships with tada is called 'tada2d_tiny'; did you mean 'tada2d_tiny_"
        ):
            packaged("tada2d_tiny")

    @pytest.mark.parametrize("name", packaged_names())
    def test_what_ships_loads(self, name: str) -> None:
        _, card = load_model(packaged(name))
        assert card.made_by
        assert sum(file.stat().st_size for file in packaged(name).iterdir()) < 3_000_000
