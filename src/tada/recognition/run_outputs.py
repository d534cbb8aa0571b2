"""Output files of a recognizer's training: the weights, the test on held-out videos, the HTML report.

Shapes: N videos, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tada.data.clips import typical_seconds
from tada.data.multi_label import FEWEST, THRESHOLD, chosen_thresholds, positives_text
from tada.data.table import VideoTable
from tada.display.page import PAGE
from tada.errors import DataError, counted
from tada.models.weights import ModelCard, save_thresholds, save_weights
from tada.recognition.evaluation import evaluate_alone
from tada.recognition.intervals import interval_text
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.report import lead, report_sections
from tada.recognition.results import Evaluation
from tada.recognition.training_data import TrainingData
from tada.training.recipe import recipe_yaml
from tada.training.run_folder import noted_commands
from tada.training.run_page import VALIDATION, read_curves, write_run_page
from tada.video.sampling import clip_in_words

_MOST_TESTED = 2000
"""Largest number of held-out videos tested for the report: more take long on one device."""


def finite_metrics(metrics: dict[str, float], say: Callable[[str], None]) -> dict[str, float]:
    """The finite ones of a run's metrics, since JSON has no nan; a line tells which are left out."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            say(
                f"{name} is {value}: the network's outputs on held-out videos overflow, as after very few steps from "
                "random weights; train for more epochs, from trained weights (--init), or with a smaller learning rate"
            )
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_last_loss(metrics: dict[str, float], out: Path) -> dict[str, float]:
    """The last epoch's metrics; its loss is read from the logs if an earlier start of the run ended the epoch."""
    logged = read_curves(out).get("train_loss")
    if "train_loss" in metrics or logged is None:
        return metrics
    return metrics | {"train_loss": logged.values[-1]}


def save_network(
    out: Path,
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    videos: TrainingData,
    metrics: dict[str, float],
    *,
    trained_from: str,
) -> None:
    """Write the weights and their model card.

    Args:
        metrics: the training's final metrics.
        trained_from: as in ``ModelCard``.
    """
    card = ModelCard(
        model=recipe.model,
        options=recipe.model_options,
        labels=videos.labels,
        head_sizes=videos.head_sizes if len(videos.heads) > 1 else {},
        thresholds=(THRESHOLD,) * len(videos.labels) if videos.table.several else (),
        clip=recipe.clip,
        typical_seconds=typical_seconds(videos.training.videos) if recipe.clip.sampling == "segment" else None,
        metrics=metrics,
        trained_from=trained_from,
    )
    save_weights(out, weights, card)


def accuracies_in_words(metrics: Mapping[str, float], validation: VideoTable | None, num_tested: int) -> Iterator[str]:
    """Lines with the metrics on held-out videos, each with its confidence interval or numbers of videos."""
    for name, value in metrics.items():
        if name == "val_map" and validation is not None:
            positives = positives_text(list(validation.counts().values()))
            yield f"val_map {value:.3f} of {counted(num_tested, 'clip')}: {positives}"
        elif name.startswith("val_") and name != "val_loss" and num_tested:
            yield f"{name} {value:.3f} of {counted(num_tested, 'clip')} ({interval_text(value, num_tested)})"


def write_page(
    out: Path,
    recipe: Recipe,
    videos: TrainingData,
    *,
    network: str,
    trained_from: str,
    seconds: float,
    steps_per_epoch: int,
    device: str,
    num_workers: int,
    show_progress: bool,
    say: Callable[[str], None],
) -> None:
    """Test the saved network on the held-out videos, and write the HTML report."""
    training, epochs = counted(len(videos.training), "video"), counted(recipe.numbers.epochs, "epoch")
    facts = [
        ("network", network),
        ("started from", trained_from),
        ("data", f"{videos.table.root}: {training} of {videos.classes_in_words}"),
        ("held out", counted(videos.num_held_out, "video")),
        ("time", f"{seconds:.0f} s for {epochs} of {counted(steps_per_epoch, 'step')}"),
        ("clip", clip_in_words(recipe.clip)),
    ]
    validation = videos.validation
    result, words = None, "No videos were held out, so nothing says how good the network is."
    if validation is not None:
        if len(validation) > _MOST_TESTED:
            say(f"for the report, {_MOST_TESTED} of the {len(validation)} held-out videos are tested")
            places = {round(i) for i in np.linspace(0, len(validation) - 1, _MOST_TESTED)}
            validation = replace(validation, videos=tuple(validation.videos[i] for i in sorted(places)))
        try:
            result = evaluate_alone(
                load_recognizer(out, device=device),
                validation,
                num_workers=num_workers,
                show_progress=show_progress,
                say=say,
            )
        except DataError as error:  # the videos were removed during training; the network is complete nevertheless
            words = f"The held-out videos could not be tested once more: {error}"
            say(f"the report lacks its test: {error}")
        else:
            if result.several:
                result = _choose_thresholds(out, result, say)
            words = lead(result)
            result.save(out / VALIDATION, overwrite=True)
    write_run_page(
        out,
        facts,
        [] if result is None else report_sections(out / VALIDATION, result),
        lead=words,
        recipe=recipe_yaml(recipe),
        commands=noted_commands(out),
    )
    say(f"curves, every class and the worst mistakes: {out / PAGE}")


def _choose_thresholds(out: Path, result: Evaluation, say: Callable[[str], None]) -> Evaluation:
    """Choose each class's threshold on the held-out videos, and save it in the run's model card."""
    thresholds = chosen_thresholds(result.scores, result.targets)
    save_thresholds(out, thresholds)
    few = sum(score.videos < FEWEST for score in result.class_scores())
    best = "thresholds are those with the best F1 on the held-out videos"
    if few == len(thresholds):
        say(f"thresholds are {THRESHOLD}: of each class there are fewer than {FEWEST} held-out videos to choose by")
    else:
        say(best + (f"; {THRESHOLD} for the {few} classes that fewer than {FEWEST} of them have" if few else ""))
    return replace(result, thresholds=thresholds)
