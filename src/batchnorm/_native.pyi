from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_Doubles = NDArray[np.float64]

def forward(
    x: _Array,
    y: _Array | None,
    given: bool,
    residual: _Array | None,
    position_weight: _Array | None,
    moments: _Doubles,
    gathers: bool,
    weight: _Array | None,
    bias: _Array | None,
    axes: int | tuple[int, ...],
    eps: float,
    activation: int,
    slope: float,
    ghost_size: int,
    omit: bool,
) -> bool: ...
def backward(
    grad_y: _Array,
    x: _Array,
    grad_x: _Array | None,
    given: bool,
    residual: _Array | None,
    grad_residual: _Array | None,
    position_weight: _Array | None,
    moments: _Doubles,
    weight: _Array | None,
    bias: _Array | None,
    grad_weight: _Array | None,
    grad_bias: _Array | None,
    axes: int | tuple[int, ...],
    eps: float,
    activation: int,
    slope: float,
    training: bool,
    ghost_size: int,
    omit: bool,
    sums_known: bool,
    residual_is_y: bool,
) -> bool: ...
def merge(parts: _Doubles, merged: _Doubles) -> bool: ...
def move_running(
    mean: _Array, var: _Array, batches: _Array, moments: _Doubles, momentum: float, correction: int
) -> bool: ...
def running_moments(mean: _Array, var: _Array, moments: _Doubles) -> bool: ...
def copy(to: _Array, source: _Array, streaming: bool) -> None: ...
def read(source: _Array) -> int: ...

class Block:
    """Memory of the pool, with the buffer protocol; given back when nobody holds it."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

POOLED_FROM: int

def allocate(bytes: int) -> Block | None: ...
def memory_stats() -> dict[str, Any]: ...
def set_memory_limit(limit: int, seconds: float) -> None: ...
def empty_cache() -> None: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def activations() -> list[tuple[str, bool, str, float]]: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...

class torch:
    """The submodule of the PyTorch front end: kernels in PyTorch's dispatcher."""

    @staticmethod
    def connect(libtorch: str) -> str: ...
    @staticmethod
    def use_python(fallback: Callable[..., Any], raiser: type, libtorch_python: str) -> None: ...
    @staticmethod
    def read_through(table: object, tensor: type, parameter: type, steals: Callable[..., Any]) -> bool: ...
    @staticmethod
    def step(x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float, /) -> list[Any] | None: ...
    @staticmethod
    def update(
        mean: Any,
        var: Any,
        count: Any,
        table: Any,
        momentum: float | None,
        correction: int,
        on_nonfinite: int,
        running_count: Any,
        /,
    ) -> bool | None: ...
    @staticmethod
    def add_ours() -> None: ...
    @staticmethod
    def add_steps() -> None: ...
    @staticmethod
    def of_steps() -> list[str]: ...
    @staticmethod
    def add_aten() -> None: ...
    @staticmethod
    def remove_aten() -> None: ...
    @staticmethod
    def names() -> list[str]: ...
    @staticmethod
    def counts() -> dict[str, tuple[int, int]]: ...
