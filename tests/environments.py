"""The package in empty environments, away from the checkout: `make test-package` and `make test-oldest`.

``package``: wheel and sdist, with each Python named that this machine has, and the pinned dependencies.
``oldest``: the wheel with the lowest versions that pyproject.toml allows, and a training, a test and an export too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"

DRAW = """
from pathlib import Path
from tada.data.motion import write_motion_videos
write_motion_videos(
    Path("clips"), videos_per_class=4, seed=0, num_frames=16, width=64, height=48, fps=8.0, motions=["left", "right"]
)
"""
SMOKE = [
    (["--help"], 0, "predict"),
    (["predict", "clips/left/left_000.mp4"], 0, "left"),
    (["doctor"], 0, "written and read back"),
]
MISSING = [
    (["export", "run", "--out", "model.onnx"], 2, "pip install 'tada-video[export]'"),
    (["train", "clips", "--model", "tada_lite0", "--out", "image"], 2, "pip install 'tada-video[image]'"),
]
TRAINED = [
    (["train", "clips", "--out", "run", "--epochs", "1", "--num-workers", "0"], 0, "trained"),
    (["evaluate", "run", "clips", "--num-workers", "0"], 0, "top-1"),
]
EXPORTED = [(["export", "run", "--out", "model.onnx"], 0, "model.onnx")]
Steps = list[tuple[list[str], int, str]]
"""Arguments of tada, its exit code, and what it prints."""


def main(what: str, *pythons: str) -> None:
    """Check the package in fresh environments."""
    built = ROOT / "build" / "package"
    shutil.rmtree(built, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(built), str(ROOT))
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    found = {name: path for name in pythons if (path := find(name))}
    for name in pythons:
        if name not in found:
            print(f"{name} is not on this machine: not tried")
    if not found:
        raise SystemExit(f"none of these is here: {', '.join(pythons)}")
    for path in found.values():
        with tempfile.TemporaryDirectory(prefix="tada_package_") as folder:
            if what == "oldest":
                pins = Path(folder) / "oldest.txt"
                pins.write_text("\n".join(oldest()) + "\n", encoding="utf-8")
                python = environment(Path(folder), path, pins, "torch", f"{wheel}[export,hdf5]")
                try_it(python, SMOKE + TRAINED + EXPORTED)
            else:
                python = environment(Path(folder), path, ROOT / "constraints.txt", TORCH, str(wheel))
                try_it(python, SMOKE + TRAINED + MISSING)
                run(python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", str(sdist))
                try_it(python, SMOKE)
        print(f"{path}: passed")


def find(python: str) -> str | None:
    """The path of a Python, on PATH or among pyenv's; None if the machine has none.

    A shim of pyenv may lead nowhere.
    """
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in filter(None, [shutil.which(python), *map(str, sorted(versions.glob(f"*/bin/{python}"), reverse=True))]):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def oldest() -> list[str]:
    """The lowest versions that pyproject.toml allows, of dependencies and of the extras that are for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [lowest(line) for line in [*project["dependencies"], *extras["export"], *extras["hdf5"]]]


def lowest(line: str) -> str:
    """A requirement's lower bound, as a pin.

    Raises:
        ValueError: it has none.
    """
    requirement = Requirement(line)
    for bound in requirement.specifier:
        if bound.operator in (">=", "=="):
            return f"{requirement.name}=={bound.version}"
    raise ValueError(f"{line!r} has no lower bound")


def environment(folder: Path, python: str, pins: Path, *packages: str) -> str:
    """Install packages, one after the other, into a new environment, and return its interpreter."""
    run(python, "-m", "venv", str(folder / "env"))
    inner = str(folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    for package in packages:
        run(inner, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(pins), package)
    return inner


def try_it(python: str, steps: Steps) -> None:
    """Draw videos, and run commands on them, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="tada_smoke_") as folder:
        run(python, "-I", "-c", DRAW, cwd=folder)
        for words, code, told in steps:
            done = subprocess.run([python, "-I", "-m", "tada", *words], cwd=folder, capture_output=True, text=True)
            if done.returncode != code or told not in done.stdout + done.stderr:
                raise SystemExit(f"tada {' '.join(words)} ends with {done.returncode}:\n{done.stdout}{done.stderr}")


def run(*command: str, cwd: str | None = None) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ends with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(*sys.argv[1:])
