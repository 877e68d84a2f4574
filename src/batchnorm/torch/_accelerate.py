"""`accelerate`: ATen's CPU batch-norm kernels become ours, for models as they stand; and `status`, which says so."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from .. import _native
from . import _backend, _operations

# --- kernels in PyTorch's dispatcher ---


class Original:
    """PyTorch's own kernel of an operation, as it was before ours."""

    def __init__(self, name: str, key: str = "CPU") -> None:
        of = torch._C.DispatchKey
        self.keys = torch._C.DispatchKeySet(of.CPU) | torch._C.DispatchKeySet(getattr(of, key))
        self.kernel = torch.library.get_kernel(f"aten::{name}", key)

    def __call__(self, *args: Any) -> tuple[torch.Tensor | None, ...]:
        return tuple(self.kernel.call_boxed(self.keys, *args))


_ATEN = tuple(_native.torch.names())
_originals: dict[str, Callable[..., Any]] = {}  # while `accelerate` holds
# A call that is still inside a removed kernel needs the object it runs in: the last few stay.
_alive: deque[list[Any]] = deque(maxlen=16)


def _answer(name: str, args: Sequence[Any]) -> list[Any]:
    """Call PyTorch's own kernel; tensors come and go as owning pointers."""
    aoti = torch._C._aoti
    given = [aoti.alloc_tensor_by_stealing_from_void_ptr(a) if type(a).__name__ == "PyCapsule" else a for a in args]
    try:
        results = (_answers.get(name) or _originals[name])(*given)
    except BaseException:
        raise  # as an exception: before Python 3.11 what C++ raised may be but the words for one until it is caught
    return [None if t is None else aoti.unsafe_alloc_void_ptr_from_tensor(t) for t in results]


class _Raiser:
    """Raises what it holds when PyTorch's C++ calls it, so that a Python exception passes through C++ as it is."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def __torch_dispatch__(self, *_: object, **__: object) -> object:
        raise self.exception


def _silence_first_override() -> None:
    """Let PyTorch say here, where it is not heard, what it says once in a process when a kernel is overridden."""
    library = torch.library.Library("batchnorm_once", "DEF")
    library.define("override() -> ()")
    assert library.m is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # by `m`, since `impl` refuses the second one before PyTorch 2.13
            library.m.impl("override", "CPU", lambda: None, False)


_silence_first_override()
_native.torch.use_python(_answer, _Raiser, _backend.library("libtorch_python"))
# Steps of our modules have autograd's own node (`_operations.step`), by two operations of ATen's whose kernels are ours
# from now on. PyTorch's go on answering everybody else.
_answers: dict[str, Callable[..., Any]] = {name: Original(name) for name in _native.torch.of_steps()}
_answers |= {"autograd": Original("batch_norm_backward", "AutogradCPU"), "step": _operations.step_backward_of_record}
_native.torch.add_steps()


def _add_aten() -> None:
    _originals.update({name: Original(name) for name in _ATEN if name not in _answers})
    _native.torch.add_aten()
    _alive.append([torch.library.get_kernel(f"aten::{name}", "CPU") for name in _ATEN])


# --- who asks for them ---

_lock = threading.Lock()
_holders: list[Acceleration] = []  # whoever asks for our kernels, whether or not anybody else holds the handle


class Acceleration:
    """What `accelerate` returns: `remove()` it, or leave its `with` block, to give PyTorch its own kernels back."""

    def __init__(self) -> None:
        self._where = _place_outside()
        with _lock:
            if not _holders:
                _add_aten()
            _holders.append(self)

    @property
    def active(self) -> bool:
        """Whether this handle still asks for our kernels."""
        return self in _holders

    @property
    def where(self) -> str:
        """The line that called `accelerate`."""
        return self._where

    def remove(self) -> None:
        """Give PyTorch its kernels back, unless another handle still asks for ours. A second time does nothing."""
        with _lock:
            if not self.active:
                return
            if len(_holders) == 1:
                _native.torch.remove_aten()
            _holders.remove(self)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<batchnorm.torch.accelerate: {f'active, {self._where}' if self.active else 'removed'}>"


def _place_outside() -> str:
    """The line outside of this package that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def accelerate() -> Acceleration:
    """Let our kernels compute every batch normalization of PyTorch on the CPU, forward and backward, from now on.

    Existing models, `torch.nn.functional.batch_norm` and whatever else reaches ATen's `native_batch_norm`,
    `_native_batch_norm_legit`, `_batch_norm_with_update` and their backwards are served; nothing else changes. What
    ours does not take (an eps of 0, an empty batch, what PyTorch refuses) goes to PyTorch's kernel, whose errors stay
    its own.

    It holds for the whole process, all threads included. Handles nest: PyTorch's kernels are back when all are removed.
    Those that nobody has any more, of a notebook's cell that ran twice, say, are in ``status().handles``.
    Take and remove handles while no other thread is inside a batch normalization, as with any change of kernels in
    PyTorch.

    Returns
    -------
    Acceleration
        With `remove()`; also a context manager.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = torch.nn.BatchNorm1d(2)
    >>> with bnt.accelerate():
    ...     y = layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> y.detach().round(decimals=3)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    >>> bnt.status().active
    False
    """
    return Acceleration()


@dataclass(frozen=True)
class Status:
    """What runs: see `status`.

    Attributes
    ----------
    active
        Whether PyTorch's batch normalization is ours now.
    handles
        Who asks for it: every handle that was not removed, in the order in which they were taken.
    torch
        PyTorch's version.
    isa
        Instruction set of the kernels.
    threads
        How many threads a call may use: `torch.get_num_threads()`.
    served
        Calls that ours computed since the process began, by name of the ATen function.
    passed_on
        Calls that ours gave to PyTorch's kernel.
    """

    active: bool
    handles: tuple[Acceleration, ...]
    torch: str
    isa: str
    threads: int
    served: dict[str, int]
    passed_on: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"batchnorm.torch: {'active' if self.active else 'not active'}",
            f"  PyTorch {self.torch}, {self.isa} kernels, {self.threads} thread{'s' * (self.threads != 1)}",
        ]
        for where, times in Counter(handle.where for handle in self.handles).items():
            lines.append(f"  asked for at {where}" + (f", {times} times" if times > 1 else ""))
        for name in self.served:
            if self.served[name] or self.passed_on[name]:
                lines.append(f"  {name}: {self.served[name]} served, {self.passed_on[name]} passed on")
        return "\n".join(lines)


def status() -> Status:
    """Say what is active and who asked, which PyTorch and instruction set, how many threads, which calls were served.

    To give PyTorch its kernels back whoever asked for ours::

        for handle in bnt.status().handles:
            handle.remove()

    >>> import batchnorm.torch as bnt
    >>> bnt.status().active
    False
    """
    counts = _native.torch.counts()
    handles = tuple(_holders)
    return Status(
        active=bool(handles),
        handles=handles,
        torch=torch.__version__,
        isa=_native.isa(),
        threads=torch.get_num_threads(),
        served={name: served for name, (served, _) in counts.items()},
        passed_on={name: passed for name, (_, passed) in counts.items()},
    )
