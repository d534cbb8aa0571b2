"""The training of a recognizer that ends before some step, as when the power fails; and a comparison of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tada.recognition.training_step import RecognitionTask


@contextmanager
def stopping_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Expect that a training comes to this optimizer step, counted from 0, and goes no further."""
    begin = RecognitionTask.on_train_batch_start

    def stop_there(task: RecognitionTask, batch: Any, batch_idx: int) -> None:
        if task.global_step == step:
            raise ConnectionError("the machine goes down")
        begin(task, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(RecognitionTask, "on_train_batch_start", stop_there)
        with pytest.raises(ConnectionError, match="goes down"):
            yield


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether these are the same weights, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
