"""A device guard: tensors that count as being on a GPU, while their numbers are on the CPU.

Within ``accelerator_guard()`` a tensor that was moved to "cuda" is marked (by its storage), says that its device is
"cuda:0", and computes on the CPU, with the CPU's numbers. What would fail or cost time on a GPU raises an error:

    HostMixError           host and device tensors meet in one operation
    SynchronizationError   the host waits for the device: ``item``, ``tolist``, ``bool(tensor)``, ``nonzero``, masks as
                           indices, ``torch.equal``, copies that are not pinned and non-blocking, ``torch.tensor`` on
                           the device, ``torch.cuda.synchronize``; where it is meant, use ``guard.allowed()``
    TypeError              the device has no such type: float64 on "mps"; or a tensor of the device is read by NumPy
    StreamError            a tensor is used on another stream than it was copied on, without waiting for that stream, or
                           without ``record_stream``

As on CUDA, a host tensor without dimensions may take part in pointwise arithmetic, and an integer index may be on the
host, which synchronizes.

What it cannot see: operations inside of compiled graphs, memory, what only one kernel of the GPU does or lacks, and
factories (``torch.zeros(n, device=x.device)``) inside of PyTorch's own Python functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class HostMixError(RuntimeError):
    """Host and device tensors meet in one operation."""


class SynchronizationError(RuntimeError):
    """The host waits for the device."""


class StreamError(RuntimeError):
    """A tensor is used on another stream than it was made on, without the precautions that this needs."""


_WAITING = {
    aten._local_scalar_dense: "reads a number from the device (item, bool, float, int)",
    aten.nonzero: "counts on the device how many elements there are",
    aten.masked_select: "counts on the device how many elements there are",
    aten.equal: "torch.equal reads its answer from the device",
    aten.unique_consecutive: "counts on the device how many elements there are",
    aten._unique2: "counts on the device how many elements there are",
    aten.unique_dim: "counts on the device how many elements there are",
    aten.bincount: "counts on the device how many elements there are",
}
"""Operators after which the host waits for the device -> why."""

_FACTORIES_OF_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except NotImplementedError:  # sparse, or of a functional transform
        return None


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor counts as being on the accelerator."""
    with torch._C.DisableTorchFunction():
        return getattr(_storage(tensor), "is_on_accelerator", False)


def _mark(tensor: Tensor, there: bool) -> None:
    storage = _storage(tensor)
    if storage is not None:
        storage.is_on_accelerator = there


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _names_device(value: Any) -> bool:
    """Whether an argument names the accelerator."""
    if isinstance(value, torch.device):
        return value.type in ("cuda", "mps")
    return isinstance(value, str) and value.startswith(("cuda", "mps"))


class Stream:
    """In place of ``torch.cuda.Stream``."""

    def __init__(self, device: Any = None, **options: Any) -> None:
        self.waited: dict[Stream, int] = {}
        self.guard: AcceleratorGuard | None = None

    def wait_stream(self, other: Stream) -> None:
        assert _GUARDS, "streams live within a guard"
        self.waited[other] = _GUARDS[-1].clock


class Event:
    """In place of ``torch.cuda.Event``: everything recorded before it is done once somebody waits for it."""

    def __init__(self, **options: Any) -> None:
        self.is_recorded = False

    def record(self, stream: Stream | None = None) -> None:
        if stream is None:
            raise StreamError(
                "an event of no stream is recorded on the current device's, perhaps another GPU's: name it"
            )
        self.is_recorded = True

    def query(self) -> bool:
        return self.is_recorded

    def synchronize(self) -> None:
        assert self.is_recorded, "waiting for an event that was not recorded returns at once"
        _GUARDS[-1].counts["event.synchronize"] += 1


_GUARDS: list[AcceleratorGuard] = []


class AcceleratorGuard:
    """The state of a guard: where waiting is allowed, and how often it happened there."""

    def __init__(self, kind: Literal["cuda", "mps"]) -> None:
        self.device = torch.device(kind, 0)
        self.counts: Counter[str] = Counter()
        """How often the host waited where it may, by what made it wait."""
        self.clock = 0
        self.default_stream = self.stream = Stream()
        self._allowed = 0
        self._internal = 0
        self.functions, self.operators = _Functions(self), _Operators(self)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within the block the host may wait for the device; mixing stays an error."""
        self._allowed += 1
        try:
            yield
        finally:
            self._allowed -= 1

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block nothing is checked: it stands for one operator of the device."""
        self._internal += 1
        try:
            yield
        finally:
            self._internal -= 1

    @property
    def is_inside(self) -> bool:
        return self._internal > 0

    def waits(self, why: str) -> None:
        """Note that the host waits; raise unless that is allowed."""
        if self._internal:
            return
        if not self._allowed:
            raise SynchronizationError(f"the host waits for the device: {why}")
        self.counts[why] += 1

    def move(self, tensor: Tensor, there: bool, *, non_blocking: bool) -> Tensor:
        """Copy to the device, or back."""
        storage = _storage(tensor)
        if not there:
            self.waits("a copy to the host")
        elif not (non_blocking and getattr(storage, "is_pinned_for_guard", False)):
            self.waits("a copy to the device that is not both pinned and non-blocking")
        if there:
            self.check_type(tensor)
        with self.inside():
            moved = tensor.clone()
        _mark(moved, there)
        self.note_stream(moved)
        return moved

    def check_type(self, tensor: Tensor) -> None:
        """Raise where Apple's GPUs lack the type."""
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("the MPS framework does not support float64")

    def note_stream(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is not None and self.stream is not self.default_stream:
            self.clock += 1
            storage.made_on, storage.made_at, storage.is_recorded = self.stream, self.clock, False

    def check_stream(self, tensor: Tensor) -> None:
        """Raise where a tensor was made on another stream and is used on this one without precautions."""
        storage = _storage(tensor)
        made_on = getattr(storage, "made_on", None)
        if made_on is None or made_on is self.stream:
            return
        if self.stream.waited.get(made_on, -1) < storage.made_at:
            raise StreamError("a tensor of another stream is used before this stream has waited for that one")
        if not storage.is_recorded:
            raise StreamError("a tensor of another stream is used without record_stream: its memory may be given away")


@contextmanager
def accelerator_guard(kind: Literal["cuda", "mps"] = "cuda") -> Iterator[AcceleratorGuard]:
    """Within the block tensors can be moved to "cuda" (or "mps"), and mistakes raise."""
    guard = AcceleratorGuard(kind)

    @contextmanager
    def on_stream(stream: Stream | None) -> Iterator[None]:
        before = guard.stream
        guard.stream = before if stream is None else stream
        try:
            yield
        finally:
            guard.stream = before

    class Autocast(torch.amp.autocast_mode.autocast):
        def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
            super().__init__("cpu" if device_type in ("cuda", "mps") else device_type, *arguments, **options)

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        _storage(tensor).is_recorded = True

    group = torch._C._group_tensors_by_device_and_dtype

    def groups(lists: Any, with_indices: bool = False) -> Any:
        return {
            (guard.device if is_there(found[0][0][0]) else device, dtype): found
            for (device, dtype), found in group(lists, with_indices).items()
        }

    stand_ins = {
        "torch.Tensor.record_stream": record_stream,
        "torch._C._group_tensors_by_device_and_dtype": groups,
        "torch.cuda.Stream": Stream,
        "torch.cuda.Event": Event,
        "torch.cuda.stream": on_stream,
        "torch.cuda.current_stream": lambda device=None: guard.stream,
        "torch.cuda.synchronize": lambda device=None: guard.waits("torch.cuda.synchronize"),
        "torch.autocast": Autocast,
    }
    _GUARDS.append(guard)
    patches = [mock.patch(name, stand_in) for name, stand_in in stand_ins.items()]
    try:
        for patch in patches:
            patch.start()
        with guard.operators, guard.functions:
            yield guard
    finally:
        for patch in patches:
            patch.stop()
        _GUARDS.pop()


# --- below autograd: every operator, forward and backward -----------------------------------------------------------


class _Operators(TorchDispatchMode):
    def __init__(self, guard: AcceleratorGuard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            tensors = _tensors((args, kwargs))
            there = [tensor for tensor in tensors if is_there(tensor)]
            if there and not self.guard.is_inside:
                self._check(func, args, kwargs, tensors, there)
            result = func(*args, **kwargs)
            # Autograd makes zeros for outputs without a gradient, on the device of these outputs.
            in_backward = not tensors and torch._C._current_graph_task_id() != -1
            if (there or in_backward) and func.overloadpacket is not aten.copy_:
                for tensor in _tensors(result):
                    self.guard.check_type(tensor)
                    _mark(tensor, True)
                    if self.guard.stream is not self.guard.default_stream and not _is_among(tensor, tensors):
                        self.guard.note_stream(tensor)
            return result

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], there: list[Tensor]) -> None:
        guard, packet = self.guard, func.overloadpacket
        for tensor in there:
            guard.check_stream(tensor)
        if packet is aten.copy_:
            self._check_copy(args[0], args[1], non_blocking=bool((*args, False)[2]))
            return
        if packet in _WAITING:
            guard.waits(_WAITING[packet])
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            self._check_index(packet, args)
            tensors = [args[0], *args[2:3]]
            there = [tensor for tensor in _tensors(tensors) if is_there(tensor)]
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            guard.waits("repeat_interleave counts on the device how many elements there are")
        takes_numbers = (
            torch.Tag.pointwise in func.tags
            or packet in (aten.index_put, aten.index_put_, aten._index_put_impl_, aten.masked_fill, aten.masked_fill_)
            or "_foreach_" in func.name()
        )
        away = [tensor for tensor in _tensors(tensors) if not is_there(tensor)]
        strangers = [tensor for tensor in away if tensor.ndim or not takes_numbers]
        if strangers and there:
            shapes = [list(tensor.shape) for tensor in strangers]
            raise HostMixError(f"{func.name()} gets tensors of the host, {shapes}, among those of the device")

    def _check_copy(self, target: Tensor, source: Tensor, *, non_blocking: bool) -> None:
        if is_there(target) == is_there(source):
            return
        host = source if is_there(target) else target
        pinned = getattr(_storage(host), "is_pinned_for_guard", False)
        if not (pinned and non_blocking):
            self.guard.waits("a copy between host and device that is not both pinned and non-blocking")

    def _check_index(self, packet: Any, args: Any) -> None:
        indices = [index for index in args[1] if index is not None]
        if not is_there(args[0]) and any(map(is_there, indices)):
            raise HostMixError("a tensor of the host is indexed by one of the device")
        if is_there(args[0]) and not all(map(is_there, indices)):
            self.guard.waits("an index that has to be copied from the host")
        is_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        fills = packet is not aten.index and args[2].ndim == 0  # becomes masked_fill
        if is_mask and not fills:
            self.guard.waits("a mask as an index: how many elements it holds is counted on the device")


def _is_among(tensor: Tensor, tensors: list[Tensor]) -> bool:
    storage = _storage(tensor)
    return any(_storage(other) is storage for other in tensors)


# --- above autograd: moves, and what a tensor says of itself --------------------------------------------------------


class _Functions(TorchFunctionMode):
    def __init__(self, guard: AcceleratorGuard) -> None:
        super().__init__()
        self.guard = guard
        self._own: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,  # type: ignore[attr-defined]
            Tensor.is_cuda.__get__: lambda func, tensor: is_there(tensor) and guard.device.type == "cuda",  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda func, tensor: not is_there(tensor),  # type: ignore[attr-defined]
            Tensor.get_device: lambda func, tensor: 0 if is_there(tensor) else -1,
            Tensor.to: self._to,
            Tensor.cpu: lambda func, tensor, **options: self._moved(func, tensor, False),
            Tensor.cuda: self._cuda,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._numpy,
            Tensor.tolist: self._tolist,
            Tensor.pin_memory: self._pin,
            Tensor.is_pinned: lambda func, tensor, *device: getattr(_storage(tensor), "is_pinned_for_guard", False),
            Tensor.__deepcopy__: self._deepcopy,
            Tensor.new_tensor: self._new_tensor,
            torch._C._nn._parse_to: lambda func, *args, **options: func(*args, **options),
            torch.nn.functional.one_hot: self._one_hot,
            torch._C._nn.one_hot: self._one_hot,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._own:
            return self._own[func](func, *args, **kwargs)
        device = kwargs.get("device")
        pinned = kwargs.pop("pin_memory", False) if func in (torch.empty, torch.zeros, torch.full) else False
        there = None if device is None else _names_device(device)
        if there:
            kwargs["device"] = "cpu"
            if func in _FACTORIES_OF_DATA:
                return self._of_data(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if there is not None and not isinstance(func, type):
            for tensor in _tensors(result):
                if there:
                    self.guard.check_type(tensor)
                _mark(tensor, there)
        if pinned:
            _storage(result).is_pinned_for_guard = True
        return result

    def _device(self, func: Any, tensor: Tensor) -> torch.device:
        return self.guard.device if is_there(tensor) else func(tensor)

    def _moved(self, func: Any, tensor: Tensor, there: bool, *, non_blocking: bool = False) -> Tensor:
        if is_there(tensor) == there:
            return tensor
        return self.guard.move(tensor, there, non_blocking=non_blocking)

    def _cuda(self, func: Any, tensor: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
        return self._moved(func, tensor, True, non_blocking=non_blocking)

    def _to(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        there, dtype = is_there(tensor), kwargs.pop("dtype", None)
        given = [*args]
        device = kwargs.pop("device", None)
        if given and not isinstance(given[0], torch.dtype | Tensor):
            device = given.pop(0)
        if given and isinstance(given[0], Tensor):
            other = given.pop(0)
            there, dtype = is_there(other), other.dtype
        elif given and (given[0] is None or isinstance(given[0], torch.dtype)):
            dtype = given.pop(0)
        if device is not None:
            there = _names_device(device)
        non_blocking = bool(given.pop(0)) if given else kwargs.pop("non_blocking", False)
        moved = self._moved(func, tensor, there, non_blocking=non_blocking)
        rest = {
            name: value for name, value in {"dtype": dtype, "copy": bool(given and given[0]), **kwargs}.items() if value
        }
        return func(moved, **rest) if rest else moved

    def _numpy(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_there(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
        return func(tensor, *args, **kwargs)

    def _tolist(self, func: Any, tensor: Tensor) -> Any:
        if is_there(tensor):
            self.guard.waits("tolist")
        with self.guard.inside():
            return func(tensor)

    def _pin(self, func: Any, tensor: Tensor, *device: Any) -> Tensor:
        assert not is_there(tensor), "memory of the device cannot be pinned"
        pinned = tensor.clone()
        _storage(pinned).is_pinned_for_guard = True
        return pinned

    def _deepcopy(self, func: Any, tensor: Tensor, memo: Any) -> Tensor:
        with self.guard.inside():
            copied: Tensor = func(tensor, memo)
        _mark(copied, is_there(tensor))
        return copied

    def _new_tensor(self, func: Any, tensor: Tensor, data: Any, **options: Any) -> Tensor:
        device = options.pop("device", None)
        there = is_there(tensor) if device is None else _names_device(device)
        return self._of_data(func, tensor, data, **options) if there else func(tensor, data, **options)

    def _of_data(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        data = args[-1] if func is Tensor.new_tensor else args[0]
        is_same = isinstance(data, Tensor) and is_there(data)
        if not is_same:
            self.guard.waits("a tensor on the device from numbers of the host")
        made: Tensor = func(*args, **kwargs)
        _mark(made, True)
        return made

    def _one_hot(self, func: Any, tensor: Tensor, num_classes: int = -1) -> Tensor:
        # The CPU's looks at the numbers to check them, and CUDA's does not, unless it has to find num_classes.
        if is_there(tensor) and num_classes < 0:
            self.guard.waits("one_hot without num_classes")
        with self.guard.inside():
            return func(tensor, num_classes)
