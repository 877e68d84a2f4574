"""oneDNN's C interface through ctypes, as much of it as batch normalization needs (version 3)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "onednn-cpu-gomp"

CPU, IN_ORDER = 1, 1
TRAINING, INFERENCE, BACKWARD = 64, 96, 128
GLOBAL_STATISTICS, SCALE, SHIFT, WITH_RELU, WITH_ADD_RELU = 1, 2, 4, 8, 16
WORKSPACE_DESCRIPTOR = 135
TYPES = {"float16": 1, "bfloat16": 2, "float32": 3, "uint8": 6}
SRC, SRC_1, DST, MEAN, VARIANCE, SCALES, SHIFTS, WORKSPACE = 1, 2, 17, 49, 50, 51, 52, 64
DIFF_SRC, DIFF_SRC_1, DIFF_DST, DIFF_SCALES, DIFF_SHIFTS = 129, 130, 145, 255, 256
STATUS = {1: "out of memory", 2: "invalid arguments", 3: "not implemented", 6: "a runtime error"}


class Failed(Exception):
    """A function of the library returned an error."""


class Argument(ctypes.Structure):
    """An input or output of a primitive: its role, and its memory."""

    _fields_ = (("arg", c_int), ("memory", c_void_p))


def library_file() -> Path | None:
    """The shared library in the installed package, or None."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith("libdnnl.so.3"):
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return path
    return None


class OneDNN:
    """The loaded library, with an engine for the processor and a stream of work."""

    def __init__(self, path: Path) -> None:
        self._gomp = ctypes.CDLL("libgomp.so.1")
        self._lib = ctypes.CDLL(str(path))
        self._lib.dnnl_memory_desc_get_size.restype = c_size_t
        self._lib.dnnl_memory_desc_get_size.argtypes = [c_void_p]
        self._lib.dnnl_primitive_desc_query_md.restype = c_void_p
        self._lib.dnnl_primitive_desc_query_md.argtypes = [c_void_p, c_int, c_int]
        self._execute = self._lib.dnnl_primitive_execute
        self._execute.argtypes = [c_void_p, c_void_p, c_int, POINTER(Argument)]
        self._wait = self._lib.dnnl_stream_wait
        self._wait.argtypes = [c_void_p]
        self._set_handle = self._lib.dnnl_memory_set_data_handle
        self._set_handle.argtypes = [c_void_p, c_void_p]
        self.engine = self._made("dnnl_engine_create", c_int(CPU), c_size_t(0))
        self.stream = self._made("dnnl_stream_create", self.engine, c_uint(IN_ORDER))

    def set_threads(self, threads: int) -> None:
        """How many threads the OpenMP runtime gives to this thread's parallel regions."""
        self._gomp.omp_set_num_threads(c_int(threads))

    def _made(self, function: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        status = getattr(self._lib, function)(byref(made), *arguments)
        if status != 0:
            raise Failed(STATUS.get(status, f"status {status}"))
        return made

    def descriptor(self, sizes: Sequence[int], strides: Sequence[int], dtype: str) -> c_void_p:
        """Describe a tensor; strides count elements."""
        n = len(sizes)
        dims = c_int64 * n
        return self._made(
            "dnnl_memory_desc_create_with_strides", c_int(n), dims(*sizes), c_int(TYPES[dtype]), dims(*strides)
        )

    def forward(self, kind: int, md: c_void_p, eps: float, flags: int) -> c_void_p:
        """Describe a forward from and to tensors like md."""
        return self._made(
            "dnnl_batch_normalization_forward_primitive_desc_create",
            self.engine, c_int(kind), md, md, c_float(eps), c_uint(flags), None,
        )  # fmt: skip

    def backward(self, md: c_void_p, eps: float, flags: int, forward: c_void_p) -> c_void_p:
        """Describe the backward of a forward."""
        return self._made(
            "dnnl_batch_normalization_backward_primitive_desc_create",
            self.engine, c_int(BACKWARD), md, md, md, c_float(eps), c_uint(flags), forward, None,
        )  # fmt: skip

    def workspace(self, forward: c_void_p) -> tuple[c_void_p, int]:
        """What a training forward with ReLU keeps for the backward: its descriptor, and its bytes."""
        md = c_void_p(self._lib.dnnl_primitive_desc_query_md(forward, WORKSPACE_DESCRIPTOR, 0))
        return md, int(self._lib.dnnl_memory_desc_get_size(md))

    def primitive(self, description: c_void_p) -> c_void_p:
        """Build the kernel."""
        return self._made("dnnl_primitive_create", description)

    def memory(self, md: c_void_p, address: int) -> c_void_p:
        """Tell of a tensor's memory."""
        return self._made("dnnl_memory_create", md, self.engine, c_void_p(address))

    def move(self, memory: c_void_p, address: int) -> None:
        """Let a tensor be elsewhere from now on."""
        self._set_handle(memory, address)

    def run(self, primitive: c_void_p, arguments: ctypes.Array[Argument]) -> None:
        """Compute, and wait for the end."""
        status = self._execute(primitive, self.stream, len(arguments), arguments) or self._wait(self.stream)
        if status != 0:
            raise Failed(STATUS.get(status, f"status {status}"))


@cache
def loaded() -> OneDNN:
    """The library, once for the process."""
    path = library_file()
    if path is None:
        raise Failed(f"{DISTRIBUTION} is not installed")
    try:
        return OneDNN(path)
    except OSError as error:
        raise Failed(f"the library could not be loaded: {error}") from error
