"""A TAdaFormer starts from CLIP's image transformer, under every name it goes by, and is it on every frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

import tada
from tada.errors import CheckpointError
from tada.models import create_model
from tada.models.clip_tower import Facts, facts_of
from tada.models.pretrained import initialize, start_from, take_image_network
from tada.models.tadaformer import TAdaFormer
from tada.models.weights import ModelCard, save_model
from tada.video.sampling import CLIP_NORMALIZATION, ClipSpec

SMALL: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "grid": [3, 3], "routing_head_channels": 3}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
}
TEXT = {**VISION, "vocab_size": 9, "max_position_embeddings": 5, "bos_token_id": 7, "eos_token_id": 8}
SSV2: dict[str, Any] = {"tada_blocks": 2, "reduce_over_time": True}


def former(**options: Any) -> TAdaFormer:
    model = create_model("tadaformer_tiny", num_classes=3, **SMALL | options).eval()
    assert isinstance(model, TAdaFormer)
    return model


def stirred(model: nn.Module) -> nn.Module:
    """With no weight at 0 or 1, and attention that tells tokens apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def tower() -> CLIPVisionModel:
    return stirred(CLIPVisionModel(CLIPVisionConfig(**VISION)))


@pytest.fixture(scope="module")
def whole(tower: CLIPVisionModel) -> CLIPModel:
    """Both transformers."""
    model = stirred(CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8)))
    model.vision_model.load_state_dict(tower.state_dict())
    return model


def open_clip_form(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tower of transformers without its prefix -> under open_clip's names, which are OpenAI's, with a text tower."""
    ours = {
        "visual.class_embedding": weights["embeddings.class_embedding"],
        "visual.positional_embedding": weights["embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["embeddings.patch_embedding.weight"],
        "visual.proj": torch.ones(24, 8),
    }
    for end in ("weight", "bias"):
        ours[f"visual.ln_pre.{end}"] = weights[f"pre_layrnorm.{end}"]
        ours[f"visual.ln_post.{end}"] = weights[f"post_layernorm.{end}"]
        for i in range(2):
            of, to = f"encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
            ours[f"{to}.attn.in_proj_{end}"] = torch.cat([weights[f"{of}.self_attn.{x}_proj.{end}"] for x in "qkv"])
            ours[f"{to}.attn.out_proj.{end}"] = weights[f"{of}.self_attn.out_proj.{end}"]
            ours[f"{to}.ln_1.{end}"] = weights[f"{of}.layer_norm1.{end}"]
            ours[f"{to}.ln_2.{end}"] = weights[f"{of}.layer_norm2.{end}"]
            ours[f"{to}.mlp.c_fc.{end}"] = weights[f"{of}.mlp.fc1.{end}"]
            ours[f"{to}.mlp.c_proj.{end}"] = weights[f"{of}.mlp.fc2.{end}"]
    return ours


def open_clip_text() -> dict[str, Tensor]:
    names = ("positional_embedding", "text_projection", "token_embedding.weight", "ln_final.weight")
    block = ("transformer.resblocks.0.ln_1.weight", "transformer.resblocks.0.attn.in_proj_weight")
    return {name: torch.ones(3, 3) for name in (*names, *block)} | {"logit_scale": torch.tensor(4.6)}


FORMS = ["transformers", "transformers, both", "open_clip, both", "open_clip, bare"]


def weights_of(form: str, tower: CLIPVisionModel, whole: CLIPModel) -> dict[str, Tensor]:
    if form == "transformers, both":
        return dict(whole.state_dict())
    weights = dict(tower.state_dict())
    if form == "open_clip, both":
        return open_clip_form(weights) | open_clip_text()
    if form == "open_clip, bare":
        return {name.removeprefix("visual."): value for name, value in open_clip_form(weights).items()}
    return weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [pytest.param({}, id="kinetics"), pytest.param(SSV2, id="something", marks=pytest.mark.slow)]
)
def test_a_new_tadaformer_is_clip_on_every_frame(
    form: str, options: dict[str, Any], tower: CLIPVisionModel, whole: CLIPModel
) -> None:
    """On every second one, which its stem keeps; the class tokens are averaged before the last norm."""
    model = former(**options)
    report = take_image_network(model, weights_of(form, tower, whole), "it")
    clips = torch.randn(2, 3, 5, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        frames = clips[:, :, ::2].transpose(1, 2).flatten(0, 1)
        tokens = tower(pixel_values=frames).last_hidden_state[:, 0]
        expected = tower.post_layernorm(tokens.view(2, 3, 24).mean(1))
        torch.testing.assert_close(model.features(clips), expected, rtol=1e-5, atol=1e-5)
        still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
        pooled = tower(pixel_values=clips[:, :, 0]).pooler_output
        torch.testing.assert_close(model.features(still), pooled, rtol=1e-5, atol=1e-5)
    assert report.normalization == CLIP_NORMALIZATION
    assert all(name.startswith("head.") or ".tada" in name for name in report.fresh)
    assert report.reshaped == {"stem.weight": "the image kernel on the middle of three frames"}


def test_the_report_counts_what_is_left_out(tower: CLIPVisionModel, whole: CLIPModel) -> None:
    halves = {name: value.half() for name, value in whole.state_dict().items()}
    model = former()
    report = take_image_network(model, halves, "it")
    # Taken: 2 embeddings, 2 norms, 12 weights in each of two blocks; joined are queries, keys and values.
    assert str(report) == (
        "from it: taken: 30 weights; made to fit: stem.weight, the image kernel on the middle of three frames; left as "
        "drawn: 54 (TAda blocks 52, classifier 2); left out: 39 (single number 1, text transformer 36, projection 2); "
        "float16 numbers are taken as float32; 3 heads are taken, since neither the weights nor a configuration beside "
        "them say how many"
    )
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert torch.equal(model.first_norm.weight, tower.pre_layrnorm.weight.half().float())


def test_positions_are_resized_for_another_grid(tower: CLIPVisionModel) -> None:
    """As the network itself does for frames of another size."""
    model, same = former(grid=[2, 5]), former()
    report = take_image_network(model, tower.state_dict(), "it")
    take_image_network(same, tower.state_dict(), "it")
    assert report.reshaped["positional_embedding"] == (
        "that of CLIP's image transformer at 12 pixels (2 blocks of 24 channels, patches of 4 pixels), resized from "
        "3 x 3 patches to 2 x 5"
    )
    clips = torch.randn(1, 3, 2, 8, 20)
    torch.testing.assert_close(model.features(clips), same.features(clips))


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt"])
def test_a_file_and_what_lies_beside_it(ending: str, whole: CLIPModel, tmp_path: Path) -> None:
    file, weights = tmp_path / f"clip.{ending}", dict(whole.state_dict())
    if ending == "safetensors":
        safetensors.torch.save_file(weights, file)
    else:
        torch.save(weights, file)
    (tmp_path / "config.json").write_text(whole.config.to_json_string())
    assert start_from(former(), "tadaformer_tiny", str(file)).notes == ()
    model = former(heads=4)
    with pytest.raises(
        CheckpointError, match=r"3 heads, as config.json beside it says, and this TAdaFormer of 4: give"
    ):
        start_from(model, "tadaformer_tiny", str(file))


def test_the_hub(whole: CLIPModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repositories of CLIP may have their weights in transformers' older form only."""
    torch.save(dict(whole.state_dict()), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(whole.config.to_json_string())

    def download(repo_id: str, name: str, *, revision: str | None) -> str:
        if not (tmp_path / name).exists():
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    lines: list[str] = []
    words = initialize(former(), "tadaformer_tiny", "hf-hub:openai/clip", clip=ClipSpec(num_frames=2), say=lines.append)
    assert words == "the weights of hf-hub:openai/clip"
    assert "taken: 30 weights" in lines[0]
    assert "heads" not in lines[0]
    assert lines[1].startswith("the image network of hf-hub:openai/clip: meant for pixels")


@pytest.mark.parametrize(
    ("about", "facts"),
    [
        ({"model_type": "clip_vision_model", "num_attention_heads": 5}, (5, None)),
        ({"vision_config": {"num_attention_heads": 16, "hidden_act": "gelu"}}, (16, "gelu")),
        ({"model_cfg": {"vision_cfg": {"width": 768}, "quick_gelu": True}}, (12, "quick_gelu")),
        ({"model_cfg": {"vision_cfg": {"width": 1280, "head_width": 80}}}, (16, "gelu")),
        ({"model_type": "resnet"}, None),
        ([1], None),
    ],
)
def test_facts(about: Any, facts: tuple[int, str | None] | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert facts_of(tmp_path / "config.json") == (None if facts is None else Facts("config.json", *facts))
    assert facts_of(tmp_path / "gone.json") is None


def test_another_activation_is_told(tower: CLIPVisionModel) -> None:
    report = take_image_network(former(), tower.state_dict(), "it", facts=Facts("config.json", 3, "gelu"))
    assert report.notes == ("config.json says that it was trained with gelu, and a TAdaFormer has quick_gelu",)


def empty_tower(width: int, blocks: int, patch: int, pixels: int) -> dict[str, Tensor]:
    """Shapes alone of a published tower."""
    embeddings = {
        "visual.class_embedding": torch.empty(width, device="meta"),
        "visual.positional_embedding": torch.empty(1 + (pixels // patch) ** 2, width, device="meta"),
        "visual.conv1.weight": torch.empty(width, 3, patch, patch, device="meta"),
    }
    norms = {f"visual.transformer.resblocks.{i}.ln_1.bias": torch.empty(width, device="meta") for i in range(blocks)}
    return embeddings | norms


class TestFaults:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1024, 24, 14, 336), r"'it' is CLIP's ViT-L/14 at 336 pixels \(24 blocks of 1024 channels, patches of 14"),
            ((768, 12, 32, 224), r"'it' is CLIP's ViT-B/32 \(12 blocks of 768 channels, patches of 32 pixels\); this"),
            ((96, 12, 16, 224), r"'it' is CLIP's image transformer \(12 blocks of 96 channels, patches of 16 pixels\)"),
        ],
    )
    def test_another_tower(self, shape: tuple[int, int, int, int], message: str) -> None:
        with torch.device("meta"):
            model = create_model("tadaformer_b16")
        with pytest.raises(CheckpointError, match=message) as caught:
            take_image_network(model, empty_tower(*shape), "'it'")
        assert "starts from CLIP's ViT-B/16 (12 blocks of 768 channels, patches of 16 pixels): give" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("form", ["transformers", "open_clip"])
    def test_the_text_transformer_alone(self, form: str, whole: CLIPModel) -> None:
        weights = open_clip_text()
        if form == "transformers":
            weights = {name: value for name, value in whole.state_dict().items() if name.startswith("text_")}
        count = len(weights)
        with pytest.raises(
            CheckpointError, match=rf"'it' is CLIP's text transformer alone \({count} weights\): a TAda"
        ):
            take_image_network(former(), weights, "'it'")

    def test_no_clip(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"'it' is no image transformer of CLIP as .* first names are blocks.0"
        ):
            take_image_network(former(), {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, "'it'")

    def test_a_missing_weight_and_one_too_many(self, tower: CLIPVisionModel) -> None:
        model = former()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        weights = dict(tower.state_dict()) | {"embeddings.patch_embedding.bias": torch.zeros(24)}
        del weights["encoder.layers.1.self_attn.k_proj.bias"]
        with pytest.raises(
            CheckpointError, match=r"blocks.1.attention.qkv.bias is \[72\] in the model and \[48\] in the"
        ):
            take_image_network(model, weights, "'it'")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            (
                "encoder.layers.1.self_attn.k_proj.weight",
                (5, 5),
                r"'it' has queries, keys and values that are not of one shape \(blocks.1.attention.qkv.weight: "
                r"q \[24, 24\], k \[5, 5\], v \[24, 24\]\); it is damaged",
            ),
            ("encoder.layers.0.self_attn.v_proj.bias", (), r"\(blocks.0.attention.qkv.bias: q \[24\], .* v \[\]\)"),
            ("embeddings.patch_embedding.weight", (), r"'it' is CLIP's .* \(2 blocks of 0 channels"),
            ("embeddings.patch_embedding.weight", (24, 3, 3, 4), r"stem.weight is \[24, 3, 3, 4, 4\] in the model and"),
            ("embeddings.position_embedding.weight", (), r"positional_embedding is \[10, 24\] in the model and \[\]"),
        ],
    )
    def test_a_weight_of_another_shape(
        self, name: str, shape: tuple[int, ...], message: str, tower: CLIPVisionModel
    ) -> None:
        weights = dict(tower.state_dict()) | {name: torch.ones(shape)}
        with pytest.raises(CheckpointError, match=message) as caught:
            take_image_network(former(), weights, "'it'")
        assert "\n" not in str(caught.value)

    def test_the_folder_of_a_downloaded_repository(self, tmp_path: Path) -> None:
        """It is no run: the message names the weights in it."""
        (tmp_path / "model.safetensors").write_bytes(b"")
        (tmp_path / "config.json").write_text("{}")
        message = r"has no model.json, so it is not .* run; to start from .* their file: '.*/model.safetensors'$"
        with pytest.raises(CheckpointError, match=message):
            start_from(former(), "tadaformer_tiny", str(tmp_path))
        with pytest.raises(CheckpointError, match=message):
            tada.create_model("tadaformer_tiny", pretrained=tmp_path)


class TestRuns:
    """The Something-Something rows of TAdaConvNeXtV2 start from runs on Kinetics."""

    @staticmethod
    def saved(folder: Path, name: str, options: dict[str, Any]) -> nn.Module:
        model = create_model(name, num_classes=4, **options)
        card = ModelCard(
            model=name, options=options, labels=tuple("abcd"), clip=ClipSpec(num_frames=2), trained_from="nothing"
        )
        save_model(folder, model, card)
        return model

    @pytest.mark.parametrize("source", ["run", "run/model.safetensors"])
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("tadaconvnextv2_t", {"depths": [1, 1], "widths": [8, 16], "routing_head_channels": 4}),
            ("tadaformer_tiny", SMALL),
        ],
    )
    def test_another_number_of_classes(self, name: str, options: dict[str, Any], source: str, tmp_path: Path) -> None:
        given = self.saved(tmp_path / "run", name, options).state_dict()
        model = create_model(name, num_classes=7, **options, stochastic_depth=0.3)
        report = start_from(model, name, str(tmp_path / source))
        assert set(report.fresh) == set(report.ignored) == {"head.weight", "head.bias"}
        assert all(torch.equal(model.state_dict()[key], given[key]) for key in report.taken)
        assert len(report.taken) == len(given) - 2

    def test_another_form_is_refused(self, tmp_path: Path) -> None:
        self.saved(tmp_path / "run", "tadaformer_tiny", SMALL)
        with pytest.raises(
            CheckpointError, match=r"holds a tadaformer_tiny; a tadaformer_b16_ssv2 cannot start from it: g"
        ):
            start_from(former(), "tadaformer_b16_ssv2", str(tmp_path / "run"))
        for source in ("run", "run/model.safetensors"):
            with pytest.raises(
                CheckpointError, match=r"do not fit: .*\.tada\.reduce\.weight is \[12, 24, 3, 1\] in the mod"
            ):
                start_from(former(**SSV2), "tadaformer_tiny", str(tmp_path / source))
