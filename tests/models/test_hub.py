"""The hub, with a folder in its place: what is published comes back, and every fault is told in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import errors

from tada.commands.cli import main
from tada.errors import CheckpointError, OptionError
from tada.models import create_model
from tada.models.hub import fetch_model, push_to_hub, readme
from tada.models.weights import ModelCard, save_model
from tada.recognition.recognizer import load_recognizer
from tada.video.sampling import ClipSpec

SMALL: dict[str, Any] = {"depths": (1,), "widths": (4,), "stem_width": 4}
CARD = ModelCard(
    model="tada2d_r18",
    options=SMALL,
    labels=("left", "right", "<b>zurück"),
    clip=ClipSpec(num_frames=4),
    metrics={"val_top1": 0.51234},
    trained_from="random weights",
    made_by="tada train clips/",
    license="Apache-2.0",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "run", create_model(CARD.model, num_classes=3, **SMALL), CARD)
    return tmp_path / "run"


def made(kind: type[Exception], text: str) -> Exception:
    """An error of the library's, without the answer of a server that it wants."""

    class Told(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            pass

        def __str__(self) -> str:
            return text

    return Told()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one folder for each repository, in the place of the network."""
    server = tmp_path / "server"

    def download(repo_id: str, name: str, *, revision: str | None) -> str:
        if not (server / repo_id).exists():
            raise made(errors.RepositoryNotFoundError, "404 Client Error.\n\nRepository Not Found for url: https://x")
        if not (server / repo_id / name).exists():
            raise made(errors.RemoteEntryNotFoundError, "404 Client Error.\n\nEntry Not Found for url: https://x")
        return str(server / repo_id / name)

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (server / repo_id).mkdir(parents=True, exist_ok=True)
            if private:
                (server / repo_id / ".private").touch()

        def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **_: str) -> str:
            for name in allow_patterns:
                shutil.copy(folder_path / name, server / repo_id / name)
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return server


def test_what_is_published_comes_back(run: Path, hub: Path) -> None:
    assert push_to_hub(run, "me/doors") == "https://hub/me/doors/commit/1"
    names = {"README.md", "model.json", "model.safetensors"}
    assert {path.name for path in (hub / "me" / "doors").iterdir()} == names
    ours, theirs = load_recognizer(run, device="cpu"), load_recognizer("hf-hub:me/doors", device="cpu")
    assert theirs.card == ours.card
    clips = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(theirs.model(clips), ours.model(clips))


def test_the_license_is_the_publishers_to_give(run: Path, hub: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "silent"
    save_model(folder, create_model(CARD.model, num_classes=3, **SMALL), replace(CARD, license=None))
    with pytest.raises(OptionError, match=r"silent says nothing of its license: give one to publish it under, such as"):
        push_to_hub(folder, "me/doors")
    assert not hub.exists()
    push_to_hub(folder, "me/doors", license="CC-BY-4.0", private=True)
    assert load_recognizer("hf-hub:me/doors", device="cpu").card.license == "CC-BY-4.0"
    assert (hub / "me" / "doors" / ".private").exists()
    push_to_hub(run, "me/doors", license="MIT")
    assert load_recognizer("hf-hub:me/doors", device="cpu").card.license == "MIT"


def test_the_command(run: Path, hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(run), "me/doors", "--private"]) == 0
    assert "tada predict hf-hub:me/doors VIDEO" in capsys.readouterr().out
    assert (hub / "me" / "doors" / ".private").exists()
    assert main(["predict", "hf-hub:me/windows", "a.mp4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tada: 'hf-hub:me/windows': model.safetensors cannot be fetched: 404 Client Error; check its")
    assert err.count("\n") == 1


def test_the_model_card() -> None:
    text = readme(CARD, "me/doors")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",
        "library_name": "tada-video",
        "pipeline_tag": "video-classification",
        "tags": ["tada", "video", "action-recognition"],
    }
    for part in (
        "# doors",
        'tada.load("hf-hub:me/doors").predict("video.mp4")',
        "| frames | 4, 8 apart at 30 frames a second |",
        "| chosen by | the exact rule |",
        "| size | short side 256 pixels, cut to 224 x 224 |",
        "| val_top1 | 0.5123 |",
        "0. left\n1. right\n2. &lt;b>zurück\n",
        "It started from random weights.",
        "made by `tada train clips/`",
        "## License\n\nApache-2.0\n",
    ):
        assert part in body
    other = replace(CARD, license="Ask: me", metrics={}, clip=ClipSpec(num_frames=8, sampling="segment"))
    _, header, body = readme(other, "me/doors").split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "other"
    assert yaml.safe_load(header)["license_name"] == "Ask: me"
    assert "None were measured." in body
    assert "| frames | 8, one from each of as many equal parts of the video |" in body


def test_a_repository_that_is_none_of_ours(hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'hf-hub:me/none': model.safetensors cannot be fetched: 404 Client Error;"
    ):
        load_recognizer("hf-hub:me/none")
    (hub / "me" / "bare").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"'hf-hub:me/bare': model.safetensors .*: the repository has no such file"
    ):
        load_recognizer("hf-hub:me/bare")
    (hub / "me" / "bare" / "model.safetensors").touch()
    with pytest.raises(
        CheckpointError, match=r"'hf-hub:me/bare' holds weights, but no model.json .* not published by t"
    ):
        load_recognizer("hf-hub:me/bare")


FAULTS = {
    "no network": (made(errors.LocalEntryNotFoundError, "..."), "the hub is out of reach, and the cache does not have"),
    "offline": (
        made(errors.OfflineModeIsEnabled, "..."),
        "the hub is out of reach, and the cache does not have it; con",
    ),
    "gated": (
        made(errors.GatedRepoError, "403 Forbidden\nAsk"),
        "403 Forbidden; accept its terms on the hub, and log in",
    ),
    "revision": (
        made(errors.RevisionNotFoundError, "404\nNo"),
        r"404; check its name \(OWNER/NAME\[@REVISION\]\), or log",
    ),
    "name": (errors.HFValidationError("Repo id must be so"), "Repo id must be so; check its name"),
    "server": (
        made(errors.HfHubHTTPError, "500 Server Error\n\nfor"),
        "500 Server Error; try again, or `hf auth login`",
    ),
    "disk": (OSError(28, "No space left on device"), "No space left on device; try again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_line(fault: str, run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error, message = FAULTS[fault]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        CheckpointError, match=rf"'hf-hub:me/x@v2': model.safetensors cannot be fetched: .*{message}"
    ) as told:
        fetch_model("hf-hub:me/x@v2")
    assert "\n" not in str(told.value)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(CheckpointError, match=rf"'hf-hub:me/x': the model cannot be published: .*{message}"):
        push_to_hub(run, "me/x")


def test_without_a_network_the_library_itself_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one, told not to use the network, and with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'hf-hub:timm/resnet50.tv_in1k': model.* the hub is out of reach"):
        load_recognizer("hf-hub:timm/resnet50.tv_in1k")
    with pytest.raises(
        CheckpointError, match=r"'hf-hub:a b': model.* cannot be fetched: Repo id must .*; check its name"
    ):
        load_recognizer("hf-hub:a b")
