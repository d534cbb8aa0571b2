"""What can be said of the package without building it; `make test-package` and `make test-oldest` do that."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
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


def test_the_healthcheck_asks_a_server_and_nothing_else(tmp_path: Path) -> None:
    (options,) = [rest for kind, rest in STEPS if kind == "HEALTHCHECK"]
    first = tmp_path / "cmdline"
    check = (
        options.partition(" CMD ")[2]
        .replace("/proc/1/cmdline", str(first))
        .replace("python -c", f"{shlex.quote(sys.executable)} -c")
    )

    class Health(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    def code(command: str) -> int:
        first.write_bytes(command.replace(" ", "\0").encode() + b"\0")
        return subprocess.run(["sh", "-c", check.replace("8000", str(port))], capture_output=True).returncode

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert code("python tada serve run --host 0.0.0.0") == 0
        Health.status = 503  # it is ending
        assert code("python tada serve run") == 1
        server.shutdown()
    assert code("python tada serve run") == 1
    assert code("python tada predict serve.mp4") == 0
