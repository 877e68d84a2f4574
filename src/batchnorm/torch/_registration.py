"""Kernels into PyTorch's dispatcher and out again: natively, through LibTorch's stable C ABI, or from Python."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import _native
from . import _backend, _operations, _python_kernels, _python_operations, _table_operations  # noqa: F401

_native_torch = _native.torch
_ATEN = tuple(_native_torch.names())


def _library(name: str) -> str:
    folder = Path(torch.__file__).parent / "lib"
    suffix = ".dylib" if (folder / "libtorch_cpu.dylib").exists() else ".so"
    return str(folder / (name + suffix))


def _connect() -> str:
    """Connect `_native` with the libtorch of this process; return why it is not, or nothing."""
    if os.environ.get("BATCHNORM_TORCH") == "python":
        return "the environment variable BATCHNORM_TORCH asks for it"
    missing = _native_torch.connect(_library("libtorch_cpu"))
    return f"this PyTorch has no {missing}" if missing else ""


def _silence_first_override() -> None:
    """Let PyTorch say here, where it is not heard, what it says once in a process when a kernel is overridden."""
    library = torch.library.Library("batchnorm_once", "DEF")
    library.define("override() -> ()")
    assert library.m is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # by `m`, since `impl` refuses the second one before PyTorch 2.13
            library.m.impl("override", "CPU", lambda: None, False)


class _Raiser:
    """Raises what it holds when PyTorch's C++ calls it, so that a Python exception passes through C++ as it is."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def __torch_dispatch__(self, *_: object, **__: object) -> object:
        raise self.exception


_get_kernel: Callable[..., Any] | None = getattr(torch.library, "get_kernel", None)
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Original:
    """PyTorch's own CPU kernel of an operation, as it was before ours."""

    def __init__(self, name: str, key: str = "CPU") -> None:
        self.name = name
        self.keys = _KEYS | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        self.kernel = _get_kernel(f"aten::{name}", key) if _get_kernel else None

    def __call__(self, *args: Any) -> tuple[torch.Tensor | None, ...]:
        if self.kernel is not None:
            return tuple(self.kernel.call_boxed(self.keys, *args))
        return _python_kernels.without_kernel(self.name, args)


class _Native:
    """Boxed C++ kernels: no Python in the call."""

    def __init__(self) -> None:
        self.originals: dict[str, Callable[..., Any]] = {}  # while `accelerate` holds
        self.answers: dict[str, Callable[..., Any]] = {}  # of the kernels that are there for good
        # A call that is still inside a removed kernel needs the object it runs in: the last few stay.
        self.alive: deque[list[Any]] = deque(maxlen=16)
        _native_torch.use_python(self._answer, _Raiser, _library("libtorch_python"))
        _native_torch.add_ours()
        if _get_kernel is not None:
            self._add_steps()

    def _add_steps(self) -> None:
        """Let steps of our modules have autograd's own node; PyTorch's kernels go on answering everybody else."""
        self.answers = {name: Original(name) for name in _native_torch.of_steps()}
        self.answers["autograd"] = Original("batch_norm_backward", "AutogradCPU")
        self.answers["step"] = _operations.step_backward_of_record
        _native_torch.add_steps()
        _backend.has_steps = True

    def add_aten(self) -> None:
        self.originals = {name: Original(name) for name in _ATEN if name not in self.answers}
        _native_torch.add_aten()
        self.alive.append([torch.library.get_kernel(f"aten::{name}", "CPU") for name in _ATEN])

    def remove_aten(self) -> None:
        _native_torch.remove_aten()

    def counts(self) -> dict[str, tuple[int, int]]:
        return dict(_native_torch.counts())

    def _answer(self, name: str, args: Sequence[Any]) -> list[Any]:
        """Call PyTorch's own kernel; tensors come and go as owning pointers."""
        aoti = torch._C._aoti
        given = [aoti.alloc_tensor_by_stealing_from_void_ptr(a) if type(a).__name__ == "PyCapsule" else a for a in args]
        try:
            results = (self.answers.get(name) or self.originals[name])(*given)
        except BaseException:
            raise  # as an exception: before Python 3.11 what C++ raised may be but the words for one until it is caught
        return [None if t is None else aoti.unsafe_alloc_void_ptr_from_tensor(t) for t in results]


class _Python:
    """The same through torch.library, for a torch without the C ABI."""

    def __init__(self) -> None:
        self.library: torch.library.Library | None = None
        self.counted = {name: [0, 0] for name in _ATEN}
        for name, kernel in _python_operations.KERNELS.items():
            _operations.LIBRARY.impl(name, kernel, "CPU")

    def add_aten(self) -> None:
        self.library = torch.library.Library("aten", "IMPL")
        for name in _ATEN:
            self.library.impl(name, self._kernel(name, Original(name)), "CPU")

    def remove_aten(self) -> None:
        assert self.library is not None
        self.library._destroy()
        self.library = None

    def counts(self) -> dict[str, tuple[int, int]]:
        return {name: (served, passed) for name, (served, passed) in self.counted.items()}

    def _kernel(self, name: str, original: Original) -> Callable[..., Any]:
        ours, counted = _python_kernels.ATEN[name], self.counted[name]

        def kernel(*args: Any) -> Any:
            results = ours(*args)
            counted[results is None] += 1
            return original(*args) if results is None else results

        return kernel


WHY_PYTHON = _connect()
_silence_first_override()
NATIVE = not WHY_PYTHON
registration: _Native | _Python = _Native() if NATIVE else _Python()
