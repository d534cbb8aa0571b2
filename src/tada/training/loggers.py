"""Loggers of a training: CSV files always, and TensorBoard, W&B or MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from tada.errors import OptionError
from tada.system.devices import LoggerName

_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow")}


def check_logger(name: LoggerName) -> None:
    """Check that the package of a logger is installed, without importing it.

    Raises:
        OptionError: it is not.
    """
    packages = _PACKAGES.get(name, ())
    if packages and not any(map(_is_installed, packages)):
        raise OptionError(f"--logger {name} needs the package {packages[0]}: pip install {packages[0]}")


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def make_loggers(
    name: LoggerName, out: Path, start: str, recipe: Mapping[str, Any], say: Callable[[str], None]
) -> list[Logger]:
    """The CSV logger, and the named one if that is another.

    Args:
        out: the folder of the run; logs are written to its ``logs``.
        start: name of this start of the run, as "start_0".
        recipe: logged as hyperparameters, by which W&B and MLflow compare runs.

    Raises:
        OptionError: the logger does not work, for example because it is not installed or not signed in.
    """
    check_logger(name)
    folder = out / "logs"
    loggers: list[Logger] = [CSVLogger(folder, name="", version=start)]
    if name == "tensorboard":
        try:
            str(folder.absolute()).encode()
        except UnicodeEncodeError:
            say(
                "TensorBoard writes only to paths that are UTF-8, as this run's is not: the numbers are in logs/ as CSV"
            )
        else:
            loggers.append(TensorBoardLogger(folder, name="", version=start))
    elif name != "csv":
        run = f"{out.absolute().name} {start}"
        try:
            loggers.append(_start_logger(name, folder, run, recipe))
        except Exception as error:  # each logger raises its own types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OptionError(f"--logger {name} does not work: {reason}") from error
    return loggers


def _start_logger(name: LoggerName, folder: Path, run: str, recipe: Mapping[str, Any]) -> Logger:
    """Make a logger and connect it, so that it fails now rather than after the first epoch."""
    logger: Logger
    if name == "wandb":
        logger = WandbLogger(
            name=run, group=run.rpartition(" ")[0], save_dir=folder, project=os.environ.get("WANDB_PROJECT", "tada")
        )
        _ = logger.experiment
    else:
        # MLflow 3 writes into a folder only when told so; its small package has no other way without a server.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "tada"),
            run_name=run,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
            save_dir=str(folder.absolute() / "mlruns"),
        )
        _ = logger.run_id
    logger.log_hyperparams(dict(recipe))
    return logger
