"""Processes that decode, started once for all tests of servers: that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tada.serving.readers import Readers


@pytest.fixture(scope="session")
def readers() -> Iterator[Readers]:
    readers = Readers()
    readers.start()
    yield readers
    readers.close()
