"""Faults of torch.compile in words: what cannot be built on a machine is no fault of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tada.errors import OptionError


@contextmanager
def told_if_not_compiled() -> Iterator[None]:
    """A block in which a compiled network is called: its code is built at the first call.

    Raises:
        OptionError: it cannot be built on this machine.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # heavy

    try:
        yield
    except BackendCompilerFailed as error:
        raise OptionError(
            f"torch.compile cannot build the network on this machine ({_reason(error)}): leave --compile out, or "
            "install what is missing; on a CPU it needs a C++ compiler"
        ) from error


def _reason(error: BaseException) -> str:
    """The line of a compiler's output that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"cannot find|not found|No such file|error:|No working", line)]
    return (telling or lines or [type(error).__name__])[0][:200]
