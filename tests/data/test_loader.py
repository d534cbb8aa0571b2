"""Batches from worker processes: the same in every way of transport; a message where transport fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hang import HANG_SECONDS
from tada.data.loader import VideoLoader, closing, note_reading
from tada.data.shared_batches import Packer, Parcel, Unpacker
from tada.errors import DataError, WorkerLostError


class Mixed(NamedTuple):
    """All that a batch may hold."""

    clips: Tensor
    labels: Tensor
    names: list[str]
    nothing: Tensor
    half: Tensor


def mixed(number: int, *, large: bool = True) -> Mixed:
    generator = torch.Generator().manual_seed(number)
    return Mixed(
        clips=torch.randint(0, 256, (3, 100_001 if large else 5), dtype=torch.uint8, generator=generator),
        labels=torch.arange(7).view(7, 1)[::2],  # not contiguous
        names=["a", "ü\udc80"],
        nothing=torch.empty((0, 4), dtype=torch.int64),
        half=torch.rand(5, generator=generator).to(torch.bfloat16),
    )


def assert_same(one: Mixed, other: Mixed) -> None:
    assert one.names == other.names
    for name in ("clips", "labels", "nothing", "half"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["shared memory", "small", "no such system call", "no memory"])
def test_a_batch_comes_as_it_was_packed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> int:
        raise OSError("cannot allocate memory")

    if way == "no such system call":
        monkeypatch.delattr(os, "memfd_create")
    if way == "no memory":
        monkeypatch.setattr(os, "pwrite", refused)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packer, unpacker = Packer(0, theirs), Unpacker(ours)
        batches = [mixed(number, large=way != "small") for number in range(3)]
        parcels = [packer.pack(batch) for batch in batches]
        assert all((parcel.memory is None) == (way == "shared memory") for parcel in parcels)
        del parcels[1]  # an epoch that was given up
        for batch, parcel in zip([batches[0], batches[2]], parcels, strict=True):
            found = unpacker.unpack(parcel)
            assert_same(batch, found)
            found.clips.add_(1)  # nobody else's memory


def test_memory_goes_when_its_batch_goes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packer, unpacker = Packer(0, theirs), Unpacker(ours)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(50):
            assert isinstance(unpacker.unpack(packer.pack(mixed(number))), Mixed)
        assert len(os.listdir("/proc/self/fd")) == before
        assert Path("/proc/self/maps").read_text().count("tada_batch") == 0


class Clips(Dataset[Tensor]):
    """Clips that show their own number; the sixth does what ``fault`` says."""

    def __init__(self, num_clips: int, size: int, *, fault: str = "") -> None:
        self.num_clips, self.size, self.fault = num_clips, size, fault

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, number: int) -> Tensor:
        note_reading(f"clips/{number}.mp4")
        if number == 5:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.fault == "user":
                raise DataError("clips/5.mp4 is not right: mend it")
            if self.fault == "ours":
                raise KeyError("a fault of ours")
            if self.fault == "memory":
                torch.empty(1 << 60)
            if self.fault == "print":
                print("a decoder says something")
            if self.fault == "slow":
                time.sleep(1000)
        return torch.full((self.size,), number, dtype=torch.int32)


def loader_of(clips: Clips, *, num_workers: int = 2, lines: list[str] | None = None) -> VideoLoader:
    say = [].append if lines is None else lines.append
    return VideoLoader(clips, num_workers=num_workers, collate=torch.stack, batch_size=3, say=say)


def numbers(loader: VideoLoader) -> list[int]:
    """The numbers that the clips of an epoch show."""
    return [int(clip[-1]) for batch in loader for clip in batch]


def test_workers_deliver_in_order_epoch_after_epoch() -> None:
    loader = loader_of(Clips(20, 40_000))
    with closing(loader):
        for _ in range(3):
            assert numbers(loader) == list(range(20))
        iterator = iter(loader)
        next(iterator)  # an epoch that is given up
        assert [len(batch) for batch in loader] == [3] * 6 + [2]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill", r"signal SIGKILL; was memory short\?\) while it read 'clips/5\.mp4'; use fewer --num-workers"),
        ("crash", r"has died \(signal SIGSEGV\) while it read 'clips/5\.mp4'; `tada check` finds such files"),
    ],
)
def test_a_worker_that_dies_is_told_of_with_its_file(fault: str, message: str) -> None:
    loader = loader_of(Clips(20, 10, fault=fault))
    with pytest.raises(WorkerLostError, match=message), closing(loader):
        list(loader)
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_while_it_waits() -> None:
    loader = loader_of(Clips(6, 10))

    def two_epochs() -> None:
        with closing(loader):
            list(loader)
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.1)
            list(loader)

    with pytest.raises(WorkerLostError, match=r"has died \(signal SIGKILL; was memory short\?\); use fewer"):
        two_epochs()


def test_a_fault_of_the_main_process_is_not_laid_on_workers_that_have_ended() -> None:
    loader = loader_of(Clips(6, 10))

    def one_epoch() -> None:
        with closing(loader):
            list(loader)
            assert loader._iterator is not None
            loader._iterator._shutdown_workers()  # as PyTorch does where the iterator is no longer used
            assert {process.exitcode for process in loader._pool.processes} == {0}
            raise RuntimeError("our own fault")

    with pytest.raises(RuntimeError, match="our own fault"):
        one_epoch()


def test_what_a_user_can_mend_crosses_as_it_is_and_the_rest_with_its_traceback() -> None:
    loader = loader_of(Clips(20, 10, fault="user"))
    with pytest.raises(DataError, match=r"^clips/5\.mp4 is not right: mend it$"), closing(loader):
        list(loader)
    loader = loader_of(Clips(20, 10, fault="memory"))
    with pytest.raises(WorkerLostError, match=r"^not enough memory .*: use fewer --num-workers"), closing(loader):
        list(loader)
    loader = loader_of(Clips(20, 10, fault="ours"))
    with pytest.raises(KeyError, match=r"Traceback[\s\S]*a fault of ours"), closing(loader):
        list(loader)


def test_a_worker_may_print_whoever_held_the_terminal_as_it_was_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the thread does that draws a progress bar, which prints in place of the usual output."""

    class Held:
        def write(self, text: str) -> int:
            assert os.getpid() == parent, "it would wait for ever"
            return len(text)

        def flush(self) -> None:
            pass

    parent = os.getpid()
    monkeypatch.setattr(sys, "stdout", Held())
    loader = loader_of(Clips(20, 10, fault="print"))
    with closing(loader):
        assert numbers(loader) == list(range(20))


def test_busy_workers_are_not_waited_for() -> None:
    loader = loader_of(Clips(20, 10, fault="slow"))
    with closing(loader):
        next(iter(loader))
    assert multiprocessing.active_children() == []


def test_a_loader_that_nobody_closed_leaves_no_worker() -> None:
    loader = loader_of(Clips(20, 10, fault="slow"))
    next(iter(loader))
    del loader
    assert multiprocessing.active_children() == []


def test_where_no_process_can_be_started_this_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    start = multiprocessing.process.BaseProcess.start
    started: list[Any] = []

    def refused(process: Any) -> None:
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
    lines: list[str] = []
    loader = loader_of(Clips(20, 10), lines=lines)
    with closing(loader):
        assert numbers(loader) == list(range(20))
        assert multiprocessing.active_children() == []
        assert numbers(loader) == list(range(20))
    reason = "Resource temporarily unavailable"
    assert lines == [f"no worker processes can be started ({reason}): this process reads the videos itself"]


SMALL = """
import sys
import torch
sys.path[:0] = sys.argv[1:3]
from test_loader import Clips, loader_of, numbers
from tada.data.loader import closing
lines = []
loader = loader_of(Clips(20, 500_000), lines=lines)  # 6 MB a batch, and four are prepared ahead
with closing(loader):
    assert numbers(loader) == list(range(20))
print(lines)
"""

IN_SMALL_MEMORY = """
mount -t tmpfs -o size={size} none /dev/shm || exit 77
{fill}
exec "$@"
"""


@pytest.mark.parametrize(
    ("size", "fill", "said"),
    [
        ("8m", "", "[]"),  # Docker has 64 MB: less than what is prepared ahead of frames of usual size
        (
            "64k",
            "cat /dev/zero > /dev/shm/full 2> /dev/null",
            "['no worker processes can be started (No space left on device): this process reads the videos itself']",
        ),
    ],
)
def test_a_small_shared_memory_keeps_nothing_from_coming(size: str, fill: str, said: str) -> None:
    script = IN_SMALL_MEMORY.format(size=size, fill=fill)
    program = [sys.executable, "-c", SMALL, str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"a file system of our own may not be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said


def test_parcels_are_plain(tmp_path: Path) -> None:
    """A queue's own thread pickles them, where a fault would be printed and the batch be lost."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        parcel = Packer(3, theirs).pack(mixed(0))
    plain = (int, bytes, tuple, type(None))
    assert isinstance(parcel, Parcel)
    assert all(isinstance(getattr(parcel, name), plain) for name in Parcel.__slots__)


class Locked:
    """Stands in for an output while something is displayed, as rich does: what is written waits for the display."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def write(self, text: str) -> int:
        assert self.lock.acquire(timeout=3.0), "the display that was being drawn when the worker began is waited for"
        self.lock.release()
        return len(text)

    def flush(self) -> None:
        pass


class Talking(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        print("a frame is odd", file=sys.stderr)
        print("a line")
        return index


def test_a_worker_that_says_something_waits_for_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Locked()
    monkeypatch.setattr(sys, "stdout", display)
    monkeypatch.setattr(sys, "stderr", display)
    loader = VideoLoader(Talking(), num_workers=1, batch_size=None)
    with closing(loader), display.lock:
        assert list(loader) == [0, 1, 2, 3]
