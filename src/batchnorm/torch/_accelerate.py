"""`accelerate`: ATen's CPU batch-norm kernels become ours, for models as they stand; and `status`, which says so."""

from __future__ import annotations

import html
import sys
import threading
import warnings
import weakref
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
    given = [_backend.tensors_of([a])[0] if type(a).__name__ == "PyCapsule" else a for a in args]
    try:
        results = (_answers.get(name) or _originals[name])(*given)
    except BaseException:
        raise  # as an exception: before Python 3.11 what C++ raised may be but the words for one until it is caught
    return [None if t is None else torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(t) for t in results]


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


class _Request:
    """One call of `accelerate`: in force until it is taken back, whether or not anybody still has its handle."""

    def __init__(self, handle: Acceleration) -> None:
        self.where = handle.where
        self.handle = weakref.ref(handle)


_requests: list[_Request] = []  # in force


def _take(request: _Request) -> None:
    with _lock:
        if not _requests:
            _add_aten()
        _requests.append(request)


def _give_back(*requests: _Request | None) -> None:
    """End requests, if they are in force; with the last one, PyTorch has its kernels back."""
    with _lock:
        left = [request for request in _requests if request not in requests]
        if not left:
            _native.torch.remove_aten()  # a second time does nothing
        _requests[:] = left


class Acceleration:
    """What `accelerate` returns: `remove()` it, or leave its `with` block, to give PyTorch its own kernels back."""

    def __init__(self) -> None:
        self._where = _place_outside()
        self._depth = 0  # of open `with` blocks
        self._request: _Request | None = _Request(self)
        _take(self._request)

    @property
    def active(self) -> bool:
        """Whether this handle still asks for our kernels."""
        return self._request in _requests

    @property
    def where(self) -> str:
        """The line that called `accelerate`."""
        return self._where

    def remove(self) -> None:
        """Give PyTorch its kernels back, unless another handle still asks for ours. A second time does nothing.

        Warns if the only other handles were dropped: nobody can remove those but `decelerate`.
        """
        removed = self.active
        _give_back(self._request)
        dropped = [request.where for request in _requests if request.handle() is None]
        if removed and dropped and len(dropped) == len(_requests):
            warnings.warn(
                f"batchnorm.torch: this handle is removed, but {_counted(len(dropped), 'other handle')} that nobody "
                f"has any more still asks for our kernels (taken at {', '.join(dict.fromkeys(dropped))}). "
                "bnt.decelerate() gives PyTorch its kernels back",
                stacklevel=2,
            )

    def __enter__(self) -> Acceleration:
        if not self.active:  # a handle may be used again
            self._request = _Request(self)
            _take(self._request)
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            _give_back(self._request)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or one from a pickle, asks for nothing."""
        return {"_where": self._where, "_depth": 0, "_request": None}

    def __repr__(self) -> str:
        if self.active:
            state = f"active, taken at {self._where}; remove() it, or bnt.decelerate() removes all"
        else:
            state = "removed"
            if _requests:
                state += f"; {_counted(len(_requests), 'other handle')} in force, see bnt.status()"
        return f"<batchnorm.torch.accelerate: {state}>"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _place_outside() -> str:
    """The line outside of this package that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def accelerate() -> Acceleration:
    """Let our kernels compute every batch normalization of PyTorch on the CPU, forward and backward, from now on.

    Existing models, `torch.nn.functional.batch_norm` and whatever else reaches ATen's `native_batch_norm`,
    `_native_batch_norm_legit`, `_batch_norm_with_update` and their backwards are served; nothing else changes. Calls
    that our kernels do not take (an eps of 0, an empty batch, what PyTorch refuses) go to PyTorch's kernel, and errors
    are PyTorch's own.

    It holds for the whole process, all threads included. Handles nest: PyTorch's kernels are back when all are removed.
    A handle that is dropped stays in force, as in a script whose first line is ``bnt.accelerate()``, or in a notebook
    whose cell ran twice. `decelerate` removes all handles, also those that nobody has any more.
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


def decelerate() -> None:
    """Give PyTorch its own kernels back, whoever asked for ours: every handle of `accelerate` is removed.

    Handles that were lost are removed, too, and those of `with` blocks that are still open. If none is in force, it
    does nothing. `accelerate` may be called again afterwards.

    Examples
    --------
    >>> import batchnorm.torch as bnt
    >>> _ = bnt.accelerate()
    >>> handle = bnt.accelerate()
    >>> len(bnt.status().handles)
    2
    >>> bnt.decelerate()
    >>> bnt.status().active, handle.active
    (False, False)
    """
    _give_back(*_requests)


@dataclass(frozen=True, repr=False)
class Status:
    """What runs: see `status`.

    Attributes
    ----------
    active
        Whether our kernels compute PyTorch's batch normalization now.
    handles
        Who asks for it: every handle that was not removed, in the order in which they were taken.
    torch
        PyTorch's version.
    isa
        Instruction set of the kernels.
    threads
        How many threads a call may use: `torch.get_num_threads()`.
    served
        Calls that our kernels computed since the process began, by name of the ATen function.
    passed_on
        Calls that were passed on to PyTorch's kernel.
    """

    active: bool
    handles: tuple[Acceleration, ...]
    torch: str
    isa: str
    threads: int
    served: dict[str, int]
    passed_on: dict[str, int]

    def _facts(self) -> list[str]:
        n = len(self.handles)
        facts = ["not active: no handle is in force"]
        if self.active:
            facts = [
                f"active: {_counted(n, 'handle')} {'is' if n == 1 else 'are'} in force "
                f"(bnt.decelerate() removes {'it' if n == 1 else 'them'})"
            ]
        for where, times in Counter(handle.where for handle in self.handles).items():
            facts.append(f"{times} {'was' if times == 1 else 'were'} taken at {where}")
        threads = _counted(self.threads, "thread")
        return [*facts, f"PyTorch {self.torch}, {self.isa} kernels, {threads}"]

    def _calls(self) -> list[tuple[str, int, int]]:
        each = [(name, self.served[name], self.passed_on[name]) for name in self.served]
        return [call for call in each if call[1] or call[2]]

    def __str__(self) -> str:
        first, *more = self._facts()
        calls = [f"{name}: {served} served, {passed_on} passed on" for name, served, passed_on in self._calls()]
        return "\n  ".join([f"batchnorm.torch: {first}", *more, *(calls or ["no call has come yet"])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *more = (html.escape(fact) for fact in self._facts())
        rows = "".join(
            f"<tr><td><code>{name}</code></td><td>{served:,}</td><td>{passed_on:,}</td></tr>"
            for name, served, passed_on in self._calls()
        )
        head = "<tr><th>function of ATen</th><th>calls served</th><th>passed on to PyTorch</th></tr>"
        calls = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if rows else "<p>no call has come yet</p>"
        return f"<p><b>batchnorm.torch</b>: {'<br>'.join([first, *more])}</p>{calls}"


def status() -> Status:
    """Say what is active and who asked, which PyTorch and instruction set, how many threads, which calls were served.

    ``len(bnt.status().handles)`` counts the handles in force. Printed, or as the last line of a notebook's cell, it is
    a short report.

    >>> import batchnorm.torch as bnt
    >>> bnt.status().active
    False
    >>> with bnt.accelerate() as handle:
    ...     bnt.status().handles == (handle,)
    True
    """
    counts = _native.torch.counts()
    handles = tuple(request.handle() or _handle_of(request) for request in tuple(_requests))
    return Status(
        active=bool(handles),
        handles=handles,
        torch=torch.__version__,
        isa=_native.isa(),
        threads=torch.get_num_threads(),
        served={name: served for name, (served, _) in counts.items()},
        passed_on={name: passed for name, (_, passed) in counts.items()},
    )


def _handle_of(request: _Request) -> Acceleration:
    """A handle in place of one that was dropped."""
    handle = Acceleration.__new__(Acceleration)
    handle._where, handle._depth, handle._request = request.where, 0, request
    request.handle = weakref.ref(handle)
    return handle
