"""A folder in the place of an object store: fast, and for tests of what is done with the files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "s3://bucket/doors/"


@dataclass(frozen=True, kw_only=True)
class FolderStore:
    """Stands for an object store: the addresses below ``ADDRESS`` are files of a folder."""

    allowed: tuple[str, ...]
    max_file_bytes: int = 4 * 2**30

    def check_access(self, addresses: list[str]) -> None:
        assert all(address.startswith(self.allowed) for address in addresses)

    def fetch(self, address: str, folder: Path) -> Path:
        source = Path(os.environ["TADA_TEST_STORE"], address.removeprefix(ADDRESS))
        assert address.startswith(self.allowed)
        assert source.stat().st_size <= self.max_file_bytes
        with Path(os.environ["TADA_TEST_STORE"], "fetched.log").open("a") as log:
            log.write(f"{source.name}\n")
        return Path(shutil.copy(source, folder / f"fetched-{os.getpid()}-{source.name}"))
