"""The Hugging Face hub: download weights, and publish a trained model with a model card.

A hub id is written ``hf-hub:OWNER/NAME``, or ``hf-hub:OWNER/NAME@REVISION`` for a branch, tag or commit. Downloads are
kept in the hub's own cache and then work offline. ``huggingface_hub`` is imported when it is used, and only here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tada.errors import CheckpointError, OptionError
from tada.models.weights import CARD_FILE, WEIGHTS_FILE, ModelCard, load_model, save_model
from tada.system.calls import checked
from tada.video.sampling import normalization_in_words

PREFIX = "hf-hub:"
_OLD_WEIGHTS_FILE = "pytorch_model.bin"
"""What transformers wrote before safetensors; some repositories, as CLIP's, may have nothing else."""

_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")
"""Licenses that the hub has an identifier for; others are published as "other" with their name."""


def is_hub_id(source: str) -> bool:
    """Whether a source of weights is a hub id."""
    return source.startswith(PREFIX)


def fetch_file(hub_id: str, name: str) -> Path:
    """Fetch one file of a repository, from the network or from the cache.

    Raises:
        CheckpointError: no such repository or file, or no network and nothing in the cache.
    """
    import huggingface_hub

    repo_id, _, revision = hub_id.removeprefix(PREFIX).partition("@")
    with _told(hub_id, f"{name} cannot be fetched"):
        return Path(huggingface_hub.hf_hub_download(repo_id, name, revision=revision or None))


def fetch_model(hub_id: str) -> Path:
    """Fetch a model that ``push_to_hub`` published: the folder for ``load_model``.

    Raises:
        CheckpointError: as ``fetch_file``; also where the repository holds weights of another library.
    """
    weights, card = fetch_weights(hub_id)
    if card is None:
        raise CheckpointError(
            f"{hub_id!r} holds weights, but no {CARD_FILE} that says what they are: it was not published by tada; "
            "train from them (--init), or load another"
        )
    if weights.parent != card.parent:
        raise CheckpointError(f"{hub_id!r} changed while it was fetched; fetch it again")
    return card.parent


def fetch_weights(hub_id: str) -> tuple[Path, Path | None]:
    """Fetch model.safetensors, or pytorch_model.bin of a repository without it, and model.json where there is one.

    Raises:
        CheckpointError: as ``fetch_file``.
    """
    weights = fetch_if_there(hub_id, WEIGHTS_FILE) or fetch_if_there(hub_id, _OLD_WEIGHTS_FILE)
    return weights or fetch_file(hub_id, WEIGHTS_FILE), fetch_if_there(hub_id, CARD_FILE)


def fetch_if_there(hub_id: str, name: str) -> Path | None:
    """Fetch one file of a repository; None if it has none, or, without a network, the cache.

    Raises:
        CheckpointError: no such repository.
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch_file(hub_id, name)
    except CheckpointError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


@checked()
def push_to_hub(folder: Path, repo_id: str, *, license: str | None = None, private: bool = False) -> str:
    """Publish a trained model, with a README.md that holds its labels, clip specification, metrics and license.

    The repository is made if there is none. Who may write to it is the hub's matter: log in with `hf auth login`.

    Args:
        folder: of a run, or of any model that ``save_model`` wrote.
        license: under which terms it may be used, as an SPDX identifier or in words; by default what the model says.

    Returns:
        The address of the published version.

    Raises:
        OptionError: neither the model nor ``license`` says under which terms it may be used.
        CheckpointError: the folder holds no sound model, or the hub does not take it.
    """
    import huggingface_hub

    model, card = load_model(folder)
    license = license or card.license
    if license is None:
        raise OptionError(f"{folder} says nothing of its license: give one to publish it under, such as 'Apache-2.0'")
    card = replace(card, license=license)
    with tempfile.TemporaryDirectory() as temporary:
        published = Path(temporary)
        save_model(published, model, card)
        (published / "README.md").write_text(readme(card, repo_id), encoding="utf-8")
        with _told(f"{PREFIX}{repo_id}", "the model cannot be published"):
            hub = huggingface_hub.HfApi()
            hub.create_repo(repo_id, private=private, exist_ok=True)
            names = [WEIGHTS_FILE, CARD_FILE, "README.md"]
            commit = hub.upload_folder(
                repo_id=repo_id, folder_path=published, allow_patterns=names, commit_message=f"Publish {card.model}"
            )
    return str(commit)


def readme(card: ModelCard, repo_id: str) -> str:
    """The README.md of a published model: the hub's YAML header, then the model card as Markdown."""
    assert card.license is not None
    known = card.license.lower() in _LICENSES
    header = {
        "license": card.license.lower() if known else "other",
        **({} if known else {"license_name": card.license}),
        "library_name": "tada-video",
        "pipeline_tag": "video-classification",
        "tags": ["tada", "video", "action-recognition"],
    }
    clip = card.clip
    if clip.sampling == "segment":
        frames = f"{clip.num_frames}, one from each of as many equal parts of the video"
    else:
        rate = "the video's own rate" if clip.fps is None else f"{clip.fps:g} frames a second"
        frames = f"{clip.num_frames}, {clip.interval:g} apart at {rate}"
    made_by = [f"It was made by `{card.made_by}`.", ""] if card.made_by else []
    metrics = [f"| {name} | {value:.4f} |" for name, value in card.metrics.items()]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()),
        "---",
        "",
        f"# {repo_id.rpartition('/')[2]}",
        "",
        f"A {card.model} that tells {len(card.labels)} actions in video apart. It started from {card.trained_from}.",
        "",
        *made_by,
        "```python",
        "import tada",
        "",
        f'tada.load("{PREFIX}{repo_id}").predict("video.mp4")',
        "```",
        "",
        "## Clips",
        "",
        "| | |",
        "|---|---|",
        f"| frames | {frames} |",
        f"| chosen by | the {clip.mode} rule |",
        f"| size | short side {clip.short_side} pixels, cut to {clip.crop} x {clip.crop} |",
        f"| pixels | {normalization_in_words(clip.normalization)} |",
        "",
        "## Metrics",
        "",
        *(["| | |", "|---|---|", *metrics] if metrics else ["None were measured."]),
        "",
        "## Labels",
        "",
        *(f"{i}. {_one_line(label)}" for i, label in enumerate(card.labels)),
        "",
        "## License",
        "",
        card.license,
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """A label as Markdown: on one line, with "<" escaped."""
    return " ".join(text.split()).replace("<", "&lt;")


@contextmanager
def _told(hub_id: str, what: str) -> Iterator[None]:
    """Turn errors of the hub into a CheckpointError of one line that names the way out."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        refused = isinstance(error, errors.GatedRepoError)
        way_out = "accept its terms on the hub, and log in" if refused else "check its name (OWNER/NAME[@REVISION])"
        way_out += "" if refused else ", or log in with `hf auth login` if it is private"
        raise CheckpointError(f"{hub_id!r}: {what}: {_first_line(error)}; {way_out}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise CheckpointError(
            f"{hub_id!r}: {what}: the hub is out of reach, and the cache does not have it; connect to the network, "
            "or give the path of a file or folder that you have"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id!r}: {what}: the repository has no such file; give the path of a file that you have"
        ) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # its HTTP library's, whichever it is
        raise CheckpointError(f"{hub_id!r}: {what}: {_first_line(error)}; try again, or `hf auth login`") from error


def _first_line(error: BaseException) -> str:
    """The first line of an error's message; those of the hub's library have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
