"""What a process that was killed leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WRITE = """
import os, sys
from pathlib import Path
from tada.system.files import whole_file
with whole_file(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print(part.name, flush=True)
    os._exit(9)
"""


def killed_in_a_write(file: Path) -> str:
    """Let a process begin to write ``file`` and die; the name of what it leaves in the folder."""
    done = subprocess.run([sys.executable, "-c", _WRITE, file], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    return done.stdout.strip()
