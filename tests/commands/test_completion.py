"""What a shell completes: asked of real shells, where they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hang import HANG_SECONDS
from tada.commands.cli import COMMANDS, main
from tada.system.typed_input import typed_name
from tada.training.recipe import named_recipes

# As bash does when TAB is pressed behind these words: it calls the function that `complete` was told.
ASK_BASH = """
source "$1"; shift
spec=$(complete -p tada)
[[ $spec =~ -F\\ ([^ ]+) ]] || exit 3
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
"${BASH_REMATCH[1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    file = folder / f"tada.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


BASH: dict[str, set[str]] = {
    "": {typed_name(name) for name in COMMANDS if "-" not in name},
    "ex": {"extract", "export"},
    "localize ": {"train", "evaluate", "import"},
    "train --batch": {"--batch-size", "--batch"},
    "train --lea": {"--learning-rate", "--learning-rate-batch", "--learning-rate-end"},
    "train --lr": {"--lr"},
    "train --clip.s": {"--clip.sampling", "--clip.short-side", "--clip.std"},
    "train clips --optimizer ": {"sgd", "adamw"},
    "train clips --optimizer a": {"adamw"},
    "train clips --recipe quick": {"quickstart"},
    "train clips --help": {"--help", "--help-all"},
    "localize train --recipe ": set(named_recipes("localization")),
    "localize train --bound": {"--boundary-scores"},
    "localize train --boundary-scores ": {"true", "false"},
    "localize evaluate --mo": {"--model"},
    "predict run --format ": {"table", "json", "jsonl", "csv"},
    "predict run one": {"one.mp4"},
    "train clips --out ": {"one.mp4", "tada.bash"},
    "export run --o": {"--out", "--overwrite"},
    "convert weights --clip.n": {"--clip.num-frames"},
    "completion ": {"bash", "zsh", "fish"},
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script("bash", tmp_path, capsys)
    (tmp_path / "one.mp4").touch()
    for words, expected in BASH.items():
        done = subprocess.run(
            ["bash", "-c", ASK_BASH, "ask", str(file), "tada", *words.split(" ")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == expected, words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_read_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script(shell, tmp_path, capsys)
    text = file.read_text()
    for word in ("localize", "quickstart", "num-workers", "clip.num-frames", "boundary-scores"):
        assert word in text
    assert "--num_workers" not in text
    assert str(Path.home()) not in text
    if shutil.which(shell) is not None:
        done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, timeout=HANG_SECONDS)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
def test_fish_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script("fish", tmp_path, capsys)
    for words, expected in (
        ("localize tra", {"train"}),
        ("train --batch", {"--batch", "--batch-size"}),
        ("predict run --format js", {"json", "jsonl"}),
    ):
        ask = f"source {file}; complete -C 'tada {words}'"
        done = subprocess.run(["fish", "-c", ask], capture_output=True, text=True, timeout=HANG_SECONDS, cwd=tmp_path)
        assert {line.split("\t")[0] for line in done.stdout.splitlines()} == expected, words


def test_completion_loads_nothing_heavy() -> None:
    code = "import sys; from tada.commands.cli import main; main(['completion', 'bash']); "
    code += "print({'torch', 'lightning', 'matplotlib', 'av'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert done.stdout.endswith("set()\n")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "SHELL must be bash, zsh or fish" in capsys.readouterr().err
