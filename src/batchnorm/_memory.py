"""Memory of large results: a pool that keeps what is dropped, and what users may ask and tell it."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _native

Array = NDArray[Any]


class MemoryStats(NamedTuple):
    """What the pool holds.

    Attributes
    ----------
    in_use
        Bytes of blocks that belong to living results.
    idle
        Bytes of blocks that are cached for the next results.
    peak
        The most that `in_use` and `idle` together have been.
    limit
        The most that `idle` may be; 0: the pool is off.
    seconds
        How long a block is cached at most.
    served
        Blocks handed out so far.
    reused
        Of these, blocks that had been cached.
    """

    in_use: int
    idle: int
    peak: int
    limit: int
    seconds: float
    served: int
    reused: int


def empty_like(x: Array) -> Array:
    """As ``np.empty_like(x)``; a large array lies in a block of the pool and gives it back when it is dropped."""
    if x.nbytes < _native.POOLED_FROM:
        return np.empty_like(x, subok=False)
    block = _native.allocate(x.nbytes)
    if block is None:
        return np.empty_like(x, subok=False)
    # NumPy's own rule for the strides, asked of an array whose memory is never touched.
    strides = x.strides if x.flags.c_contiguous else np.empty_like(x, subok=False).strides
    return np.ndarray(x.shape, x.dtype, buffer=block, strides=strides)  # type: ignore[arg-type]  # NumPy's stub lists types


def memory_stats() -> MemoryStats:
    """What the pool for large results holds, NumPy's and PyTorch's together.

    Results of 4 MiB and more lie in blocks of a pool: aligned to 2 MiB, in huge pages where the system has them. When
    a result is dropped its block is cached for the next one, which saves the system's page faults. The blocks that have
    been idle longest go back to the system where all of them are more than `limit`, where one has been idle for more
    than `seconds` (seen when the next large result comes or goes), and on `empty_cache`.

    >>> import batchnorm as bn
    >>> bn.memory_stats().seconds
    30.0
    """
    return MemoryStats(**_native.memory_stats())


def empty_cache() -> None:
    """Give all cached blocks back to the system.

    >>> import batchnorm as bn
    >>> bn.empty_cache()
    >>> bn.memory_stats().idle
    0
    """
    _native.empty_cache()


def set_memory_limit(limit: int, seconds: float = 30.0) -> None:
    """Set how much memory of dropped results is cached, and for how long.

    Parameters
    ----------
    limit
        In bytes; 0 switches the pool off. The default is 1 GiB, or an eighth of the machine's memory where that is
        less; the environment variable ``BATCHNORM_MEMORY_LIMIT`` sets another when the package is imported.
    seconds
        A block that has been idle for longer goes back to the system; at least 0.

    Raises
    ------
    TypeError, ValueError
        For what is not a number, or is negative; nothing is changed then.

    Examples
    --------
    >>> import batchnorm as bn
    >>> before = bn.memory_stats()
    >>> bn.set_memory_limit(256 * 2**20)
    >>> bn.memory_stats().limit
    268435456
    >>> bn.set_memory_limit(before.limit, before.seconds)
    """
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)):
        raise TypeError(f"the memory limit is a number of bytes, an int; got {limit!r} of type {type(limit).__name__}")
    if not 0 <= limit < 2**63:
        raise ValueError(f"the memory limit must lie between 0 bytes (keep nothing) and 2^63 - 1; got {limit}")
    _native.set_memory_limit(int(limit), _checked_seconds(seconds))


def _checked_seconds(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (numbers.Real, np.floating, np.integer)):
        raise TypeError(f"seconds must be a number; got {seconds!r} of type {type(seconds).__name__}")
    if not float(seconds) >= 0:
        raise ValueError(f"seconds (how long an idle block is kept) must be at least 0; got {seconds!r}")
    return float(seconds)
