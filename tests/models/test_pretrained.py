"""Initial weights: image networks under every name they go by, runs, released files and the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import Tensor, nn

from reference.images import ConvNeXt, ResNet, timm_name, torchvision_form
from tada.errors import CheckpointError, OptionError
from tada.models import create_model, pretrained
from tada.models.pretrained import InitialReport, start_from, take_image_network
from tada.models.weights import ModelCard, save_model
from tada.video.sampling import ClipSpec

DEPTHS = {"r18": (2, 2, 2, 2), "r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "t": (3, 3, 9, 3), "s": (3, 3, 27, 3)}
WIDTHS = (64, 128, 256, 512)
SMALL_RESNET: dict[str, Any] = {"depths": (2, 1), "widths": (4, 6), "stem_width": 4}
SMALL_CONVNEXT: dict[str, Any] = {"depths": (1, 2), "widths": (4, 6), "layer_scale": 0.5}


def trained(model: nn.Module) -> nn.Module:
    """Every weight and buffer another number, in evaluation and double precision."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.double().state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if name.endswith("var") else torch.randn_like(value))
    return model.eval()


def small_resnet(*, bottleneck: bool) -> ResNet:
    model = trained(ResNet((2, 1), (4, 6), bottleneck=bottleneck, stem=4, classes=7))
    assert isinstance(model, ResNet)
    return model


def small_convnext() -> ConvNeXt:
    model = trained(ConvNeXt((1, 2), (4, 6), classes=7))
    assert isinstance(model, ConvNeXt)
    return model


def timm_form(name: str, value: Tensor) -> tuple[str, Tensor]:
    return timm_name(name), value


def authors_form(name: str, value: Tensor) -> tuple[str, Tensor]:
    return name, value


CONVNEXT_FORMS = [authors_form, timm_form, torchvision_form]


class TestResNet:
    @pytest.mark.parametrize("name", ["tada2d_r50", "tsn_r50", "tada2d_r101"])
    def test_every_published_weight_is_taken(self, name: str) -> None:
        with torch.device("meta"):
            given = ResNet(DEPTHS[name.rpartition("_")[2]], WIDTHS, bottleneck=True).state_dict()
        weights = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in given.items()}
        model = create_model(name, num_classes=5)
        report = take_image_network(model, weights, "it")
        assert report.ignored == ("fc.weight", "fc.bias")
        assert report.reshaped == {}
        assert len(report.taken) == len(weights) - 2
        numbers = sum(model.state_dict()[key].numel() for key in report.taken)
        assert numbers == sum(value.numel() for value in weights.values()) - 1000 * 2049
        assert all(key.startswith("head.") or "routing" in key or "pooled_norm" in key for key in report.fresh)

    def test_the_reference_has_the_published_size(self) -> None:
        with torch.device("meta"):
            sizes = [
                sum(p.numel() for p in ResNet(DEPTHS[name], WIDTHS, bottleneck=name != "r18").parameters())
                for name in ("r18", "r50", "r101")
            ]
        assert sizes == [11_689_512, 25_557_032, 44_549_160]

    @pytest.mark.parametrize("name", ["tada2d_r50", "tsn_r50"])
    def test_the_network_sees_frames_as_the_image_network_does(self, name: str) -> None:
        """But for the max-pool: the first stage strides instead, so the reference is made to."""
        images = small_resnet(bottleneck=True)
        model = create_model(name, num_classes=3, **SMALL_RESNET).double().eval()
        take_image_network(model, images.state_dict(), "it")
        block = images.get_submodule("layer1.0")
        block.conv2.stride, block.downsample[0].stride = (2, 2), (2, 2)  # type: ignore[union-attr, index, assignment]
        clips = torch.randn(2, 3, 4, 24, 24).double()
        frames = images(clips.transpose(1, 2).flatten(0, 1)).view(2, 4, -1)
        torch.testing.assert_close(model.features(clips), frames.mean(1), rtol=1e-10, atol=1e-10)

    def test_the_shortcut_that_resnet18_lacks_passes_on_what_it_gets(self) -> None:
        images = small_resnet(bottleneck=False)
        model = create_model("tada2d_r18", num_classes=3, **SMALL_RESNET).double().eval()
        report = take_image_network(model, images.state_dict(), "it")
        assert report.reshaped["stages.0.0.shortcut.0.weight"] == "which passes on what it gets"
        assert set(report.reshaped) == {key for key in model.state_dict() if key.startswith("stages.0.0.shortcut")}
        shortcut = model.get_submodule("stages.0.0.shortcut")
        x = torch.randn(1, 4, 6, 6).double()
        torch.testing.assert_close(shortcut(x), x[:, :, ::2, ::2], rtol=1e-5, atol=1e-5)  # a norm divides by 1 + eps
        assert torch.equal(
            model.get_parameter("stages.1.0.conv1.conv.weight"), images.get_parameter("layer2.0.conv1.weight")
        )

    def test_an_old_file_without_counts_of_batches(self) -> None:
        weights = {k: v for k, v in small_resnet(bottleneck=True).state_dict().items() if not k.endswith("tracked")}
        model = create_model("tada2d_r50", num_classes=3, **SMALL_RESNET)
        report = take_image_network(model, weights, "it")
        assert len(report.taken) == len(weights) - 2
        assert not any(key.endswith("tracked") for key in report.fresh)


class TestConvNeXt:
    @pytest.mark.parametrize("form", CONVNEXT_FORMS)
    def test_every_published_weight_is_taken(self, form: Callable[[str, Tensor], tuple[str, Tensor]]) -> None:
        with torch.device("meta"):
            images = ConvNeXt(DEPTHS["t"], (96, 192, 384, 768))
        assert sum(p.numel() for p in images.parameters()) == 28_589_128
        weights = dict(form(key, torch.empty(value.shape)) for key, value in images.state_dict().items())
        model = create_model("tadaconvnext_t", num_classes=5)
        report = take_image_network(model, weights, "it")
        assert len(report.taken) + len(report.reshaped) + len(report.ignored) == len(weights)
        assert len(report.ignored) == 2
        assert report.reshaped == {"stem.conv.weight": "the image kernel on the middle of three frames"}
        assert all(key.startswith("head.") or "routing" in key for key in report.fresh)

    @pytest.mark.parametrize("form", CONVNEXT_FORMS)
    @pytest.mark.parametrize("name", ["tadaconvnext_t", "convnext_t"])
    def test_a_still_clip_gives_what_the_image_gives(
        self, name: str, form: Callable[[str, Tensor], tuple[str, Tensor]]
    ) -> None:
        images = small_convnext()
        model = create_model(name, num_classes=3, **SMALL_CONVNEXT).double().eval()
        take_image_network(model, dict(form(*item) for item in images.state_dict().items()), "it")
        image = torch.randn(2, 3, 16, 24).double()
        still = image[:, :, None].expand(-1, -1, 6, -1, -1)
        torch.testing.assert_close(model.features(still), images(image), rtol=1e-10, atol=1e-10)
        stem = model.get_submodule("stem")(still)[0].view(2, 3, 4, 4, 6)
        for t in range(3):  # also at the clip's beginning
            torch.testing.assert_close(stem[:, t], images.downsample_layers[0](image), rtol=1e-10, atol=1e-10)

    def test_kernels_of_one_pixel_for_layers(self) -> None:
        """As timm writes some of its own."""
        weights = {timm_name(key): value for key, value in small_convnext().state_dict().items()}
        weights = {
            key: value[:, :, None, None] if "fc" in key and value.ndim == 2 else value for key, value in weights.items()
        }
        del weights["head.fc.weight"], weights["head.fc.bias"]
        model = create_model("tadaconvnext_t", num_classes=3, **SMALL_CONVNEXT)
        assert take_image_network(model, weights, "it").ignored == ()

    @pytest.mark.parametrize("form", CONVNEXT_FORMS)
    def test_the_second_papers_network_takes_them_too(self, form: Callable[[str, Tensor], tuple[str, Tensor]]) -> None:
        v2 = {"routing_head_channels": 1}
        model = create_model("tadaconvnextv2_t", num_classes=3, **SMALL_CONVNEXT, **v2).double().eval()
        images = small_convnext()
        report = take_image_network(model, dict(form(*item) for item in images.state_dict().items()), "it")
        assert all("head." in key or "routing" in key or "pooled_norm" in key for key in report.fresh)
        assert torch.equal(
            model.get_parameter("stages.1.1.norm.norm.weight"), images.state_dict()["stages.1.1.norm.weight"]
        )


class TestFaults:
    @staticmethod
    def take(name: str, weights: dict[str, Tensor], **options: Any) -> None:
        model = create_model(name, num_classes=3, **options)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            take_image_network(model, weights, "'it'")
        finally:
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_another_depth(self) -> None:
        weights = dict(small_resnet(bottleneck=True).state_dict())
        with pytest.raises(CheckpointError, match=r"'it' is no ResNet of this shape: \d+ of \d+ weights do not match"):
            self.take("tada2d_r50", weights, **SMALL_RESNET | {"depths": (3, 1)})
        with pytest.raises(CheckpointError, match=r"layer1.1.bn1.bias \(unknown\) is missing in the model"):
            self.take("tada2d_r50", weights, **SMALL_RESNET | {"depths": (1, 1)})

    def test_another_width(self) -> None:
        weights = dict(small_convnext().state_dict())
        with pytest.raises(CheckpointError, match=r"'it' is no ConvNeXt of this shape: .* is \[8\] in the model"):
            self.take("tadaconvnext_t", weights, **SMALL_CONVNEXT | {"widths": (8, 6)})

    def test_a_part_that_is_not_ours(self) -> None:
        weights = small_resnet(bottleneck=True).state_dict() | {"layer1.0.se.fc1.weight": torch.zeros(2, 2)}
        with pytest.raises(CheckpointError, match=r"1 of \d+ weights do not match: layer1.0.se.fc1.weight \(unknown\)"):
            self.take("tada2d_r50", weights, **SMALL_RESNET)

    def test_a_missing_weight(self) -> None:
        weights = dict(small_resnet(bottleneck=True).state_dict())
        del weights["layer2.0.bn3.bias"]
        with pytest.raises(CheckpointError, match=r"1 of \d+ weights do not match: stages.1.0.norm3.bias is \[24\]"):
            self.take("tada2d_r50", weights, **SMALL_RESNET)

    @pytest.mark.parametrize("name", ["tada2d_r50", "tadaconvnext_t"])
    def test_another_network(self, name: str) -> None:
        with pytest.raises(CheckpointError, match=r"'it' is no (ResNet|ConvNeXt) as torchvision or timm names it; .*"):
            self.take(name, {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)})

    def test_a_network_without_an_image_network(self) -> None:
        with pytest.raises(CheckpointError, match=r"'it' is no start for a Linear: TAda2D, .* have one"):
            take_image_network(nn.Linear(2, 2), {}, "'it'")


def test_the_report_in_words() -> None:
    model = create_model("tadaconvnext_t", num_classes=3, **SMALL_CONVNEXT)
    report = take_image_network(model, dict(small_convnext().float().state_dict()), "the image network of a.pth")
    assert str(report) == (
        "from the image network of a.pth: taken: 36 weights; made to fit: stem.conv.weight, the image kernel on the "
        "middle of three frames; left as drawn: 26 (routing functions 24, classifier 2); left out: 2 (head.weight, "
        "head.bias)"
    )


class TestSources:
    name = "tada2d_r50"

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return create_model(self.name, num_classes=3, **SMALL_RESNET)

    @staticmethod
    def image_weights() -> dict[str, Tensor]:
        return {key: value.contiguous() for key, value in small_resnet(bottleneck=True).float().state_dict().items()}

    def save_run(self, folder: Path, model: nn.Module) -> None:
        labels, clip = ("a", "b", "c"), ClipSpec(num_frames=2)
        card = ModelCard(model=self.name, options=SMALL_RESNET, labels=labels, clip=clip, trained_from="nothing")
        save_model(folder, model, card)

    def taken(self, report: InitialReport, model: nn.Module) -> None:
        weights = self.image_weights()
        assert torch.equal(model.get_parameter("stages.1.0.conv2.conv.weight"), weights["layer2.0.conv2.weight"])
        assert len(report.taken) == len(weights) - 2

    @pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
    def test_a_file(self, model: nn.Module, file: str, tmp_path: Path) -> None:
        weights = self.image_weights()
        if file.endswith("pth"):
            torch.save({"model": weights}, tmp_path / file)
        else:
            safetensors.torch.save_file(weights, tmp_path / file)
        report = start_from(model, self.name, str(tmp_path / file))
        assert report.source == f"the image network of {tmp_path / file}"
        self.taken(report, model)

    def test_a_run_and_its_file(self, model: nn.Module, tmp_path: Path) -> None:
        torch.manual_seed(4)
        self.save_run(tmp_path / "run", create_model(self.name, num_classes=3, **SMALL_RESNET))
        given = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
        head = model.get_parameter("head.weight").clone()
        for source in ("run", "run/model.safetensors"):
            fresh = create_model(self.name, num_classes=3, **SMALL_RESNET)
            with torch.no_grad():
                fresh.get_parameter("head.weight").copy_(head)
            report = start_from(fresh, self.name, str(tmp_path / source))
            assert report.fresh == ("head.weight", "head.bias")
            assert set(report.ignored) == set(report.fresh)
            assert all(torch.equal(fresh.state_dict()[key], given[key]) for key in report.taken)
            assert len(report.taken) == len(given) - 2
            assert torch.equal(fresh.get_parameter("head.weight"), head)
            whole = pretrained.create_model(self.name, pretrained=tmp_path / source, num_classes=3, **SMALL_RESNET)
            assert all(torch.equal(value, given[key]) for key, value in whole.state_dict().items())
            report = start_from(fresh, self.name, str(tmp_path / source), classifier=True)
            assert (report.fresh, report.ignored, len(report.taken)) == ((), (), len(given))
            wider = create_model(self.name, num_classes=4, **SMALL_RESNET)
            assert start_from(wider, self.name, str(tmp_path / source), classifier=True).fresh == (
                "head.weight",
                "head.bias",
            )
        small = create_model(self.name, num_classes=3, **SMALL_RESNET | {"routing_ratio": 2})
        with pytest.raises(CheckpointError, match=r"the weights of .*run do not fit: \d+ of \d+ weights do not match"):
            start_from(small, self.name, str(tmp_path / "run"))

    def test_nothing_there(self, model: nn.Module) -> None:
        with pytest.raises(OptionError, match=r"init 'gone.pth' should be 'auto', .* a file of weights, or hf-hub:OWN"):
            start_from(model, self.name, "gone.pth")

    def test_the_hub(self, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def download(repo_id: str, name: str, *, revision: str | None) -> str:
            asked.append((repo_id, name, revision))
            if not (tmp_path / name).exists():
                raise _not_found()
            return str(tmp_path / name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        safetensors.torch.save_file(self.image_weights(), tmp_path / "model.safetensors")
        report = start_from(model, self.name, "hf-hub:timm/resnet50.tv_in1k@v1")
        assert asked[0] == ("timm/resnet50.tv_in1k", "model.safetensors", "v1")
        assert report.source == "the image network of hf-hub:timm/resnet50.tv_in1k@v1"
        self.taken(report, model)

        self.save_run(tmp_path, create_model(self.name, num_classes=3, **SMALL_RESNET))
        report = start_from(model, self.name, "hf-hub:someone/doors")
        assert report.source == "the weights of hf-hub:someone/doors"
        assert report.fresh == ("head.weight", "head.bias")


def _not_found() -> Exception:
    return RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
