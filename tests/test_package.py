"""What can be said of the package without building it; `make test-package` and `make test-oldest` do that."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from environments import TORCH, lowest, oldest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEPS = [
    line.split(maxsplit=1)
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_every_dependency_has_a_lower_bound() -> None:
    assert "av==18" in oldest()
    assert lowest("a[b]>=1.2,<2") == "a==1.2"
    with pytest.raises(ValueError, match=r"'a<2' has no lower bound"):
        lowest("a<2")


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"]) - {"dev", "docs"}))
def test_a_missing_extra_is_named_with_its_install_line(extra: str) -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    assert f"pip install 'tada-video[{extra}]'" in sources


def test_install_lines_name_extras_that_exist() -> None:
    texts = [*(ROOT / "src").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for file in texts:
        for extra in re.findall(r"tada-video\[([\w-]+)\]", file.read_text(encoding="utf-8")):
            assert extra in PROJECT["optional-dependencies"], f"{file.name} names the extra {extra}"


def test_the_image_copies_what_there_is_and_installs_what_is_tested() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for kind, rest in STEPS:
        if kind == "COPY":
            for name in shlex.split(rest)[:-1]:
                assert (ROOT / name).exists()
                assert f"!{name}" in ignored, f"{name} is not in the build's context"
        if kind == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest], capture_output=True).returncode == 0
    assert any(kind == "RUN" and rest.endswith(TORCH) for kind, rest in STEPS)
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= {word for kind, rest in STEPS if kind == "COPY" for word in rest.split()}


def test_the_image_runs_as_a_user_without_rights_and_has_a_healthcheck() -> None:
    kinds = [kind for kind, _ in STEPS]
    users = [rest for kind, rest in STEPS if kind == "USER"]
    assert users[-1] not in ("root", "0")
    assert "RUN" not in kinds[kinds.index("USER") :]
    assert "HEALTHCHECK" in kinds
