"""Connection to a Ray cluster: made, checked before the work begins, and used in passes until nothing is left."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tada.errors import OptionError, UserError, VideoError, WorkerLostError, counted
from tada.system.files import absolute_path

Item = TypeVar("Item")

_CONNECT_SECONDS = 10.0
_PROBE_SECONDS = 120.0
# Loggers of Ray Data. Of an error it prints tracebacks, and a plea to report it to Ray: it is told here, in a line.
_TALKATIVE = (
    "_internal.execution.streaming_executor",
    "_internal.execution.streaming_executor_state",
    "_internal.progress",
    "exceptions",
)
_IDLE_PASSES = 3
"""Passes without a single result after which the work ends."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster, or start one of this machine alone.

    Meanwhile ``print`` goes to standard error: a thread of Ray prints a paragraph about each worker that dies.

    Args:
        address: of a cluster, such as "10.0.0.1:6379", "ray://..." or "auto"; "local": start one.

    Raises:
        OptionError: no cluster answers there, or it runs other versions of Python or Ray.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning for each actor without a GPU
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # where it starts a cluster, Ray would send statistics home
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it tells of each node and actor that dies; we go on
    if ray.is_initialized():  # by the caller, who also ends it
        with redirect_stdout(sys.stderr):
            yield
        return
    _check_answers(address)
    try:
        with _silent_stderr():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise OptionError(_why_not_connected(address, error)) from error
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise OptionError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise OptionError(_why_not_connected(address, error)) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send what C++ code writes to standard error nowhere: it says that it heeds the level of its log."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _why_not_connected(address: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "ersion mismatch" in said:
        return f"the Ray cluster at {address} runs other versions than this process: {said}"
    place = "this machine" if address == "local" else address
    return f"no Ray cluster can be reached at {place}: {said[:300]}; `ray status` says what runs"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """What a node answers before the work begins."""

    host: str
    tada: str
    python: str
    missing: tuple[str, ...]
    """Those of the given paths that it does not see."""


def check_nodes(paths: tuple[str, ...]) -> None:
    """Check that each node of the cluster has this tada and Python, and sees the same files.

    Args:
        paths: files or folders that each node has to see: the run, and a first video.

    Raises:
        OptionError: a node does not.
    """
    here = _here()
    looks = []
    for id, host in _live_nodes().items():
        at = NodeAffinitySchedulingStrategy(id, soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": at, "max_retries": 1}
        looks.append((id, host, ray.remote(_look).options(**options).remote(paths)))
    for id, host, look in looks:
        try:
            node = ray.get(look, timeout=_PROBE_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise OptionError(f"the node {host} gives no answer within {_PROBE_SECONDS:.0f} s") from error
        except ray.exceptions.RaySystemError as error:  # it cannot even unpickle the question
            raise OptionError(
                f"the node {host} has no tada {here.tada}: install it there, too ({_first(error)})"
            ) from error
        except ray.exceptions.RayError as error:
            if id not in _live_nodes():  # it has died since
                continue
            raise OptionError(f"the node {host} cannot work: {_first(error)}") from error
        if (node.tada, node.python) != (here.tada, here.python):
            raise OptionError(
                f"the node {host} has tada {node.tada} on Python {node.python}, and here is tada {here.tada} on Python "
                f"{here.python}: install the same on all machines"
            )
        if node.missing:
            raise OptionError(
                f"the node {host} does not see {node.missing[0]!r}: put runs and videos on a file system that all "
                "nodes share, under the same path, or give addresses of an object store"
            )


def _live_nodes() -> dict[str, str]:
    """Ids and hosts of the nodes that have something to work with."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and node["Resources"].get("CPU", 0) + node["Resources"].get("GPU", 0) > 0
    }


def _here() -> _Node:
    return _look(())


def _look(paths: tuple[str, ...]) -> _Node:
    return _Node(
        host=socket.gethostname(),
        tada=f"{version('tada-video')} (code {_code_hash()})",
        python=".".join(map(str, sys.version_info[:3])),
        missing=tuple(path for path in paths if not os.path.exists(path)),
    )


def _code_hash() -> str:
    """Tells apart two states of the code that have the same version."""
    package = Path(__file__).parents[1]
    content = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content.update(file.read_bytes())
    return content.hexdigest()[:8]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def shared_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Of the run and the videos: what each node has to see, the run's folder and the first of the files."""
    return tuple(islice((absolute_path(path) for path in paths if os.path.exists(path)), 2))


def in_passes(one_pass: Callable[[], Iterator[Item]], num_left: Callable[[], int], noun: str) -> Iterator[Item]:
    """Send what is left through the cluster, again and again until nothing is: a pass may lose some of it.

    Ray does again what a dead node has lost, but for what it cannot find out: then a pass ends early, or with gaps.

    Args:
        one_pass: yields results, and counts them out of what is left.
        noun: what is left, for messages: "video".

    Raises:
        UserError: an error that is not of one video: a full disk of a node, a store that refuses.
        WorkerLostError: three passes in a row gave no result.
    """
    import ray.data

    for name in _TALKATIVE:
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # ours is shown
    context.raise_original_map_exception = True  # else Ray Data wraps it, and what it wraps is lost on the way
    idle = 0
    while before := num_left():
        why = "they came back without them"
        try:
            yield from one_pass()
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError) and not isinstance(cause, VideoError):
                # Its first line alone: Ray Data adds some about its own settings.
                raise type(cause)(str(cause).partition("\n")[0]) from error
            why = _first(error)
        idle = 0 if num_left() < before else idle + 1
        if idle == _IDLE_PASSES:
            raise WorkerLostError(
                f"{counted(num_left(), noun)} got no result in {idle} passes over the cluster ({why}); what is done is "
                "written: see `ray status`, and give the same command again"
            )
