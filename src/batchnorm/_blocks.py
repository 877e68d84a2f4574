"""Arrays that may be larger than memory, walked in blocks: moments gathered and merged, then applied.

A block is a tuple of slices. The axis that varies slowest in memory is cut first, so a file is read from its
beginning to its end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from ._batch_moments import moments
from ._foreign import Rounded, beyond_exact, rounding
from ._functional import normalize
from ._inputs import is_odd
from ._moments import Moments

#: Values in a block: 32 MiB of float64, small enough to answer Ctrl-C at once, large enough to cost nothing.
BLOCK = 1 << 22

Block = tuple[slice, ...]
Advance = Callable[[int], None]


def working_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which ``dtype`` is computed: float64 for integers and booleans, else the native one."""
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype.newbyteorder("=")


def blocks(x: np.ndarray) -> Iterator[Block]:
    """Yield blocks of at most BLOCK values that cover ``x``, in the order of memory."""
    slowest_first = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))
    step = list(x.shape)
    inner = x.size
    for a in slowest_first:
        if inner <= BLOCK:
            break
        inner //= max(x.shape[a], 1)
        step[a] = max(1, BLOCK // max(inner, 1))
    starts = [range(0, x.shape[a], max(step[a], 1)) for a in slowest_first]
    for corner in itertools.product(*starts):
        block = [slice(None)] * x.ndim
        for a, start in zip(slowest_first, corner, strict=True):
            block[a] = slice(start, min(start + step[a], x.shape[a]))
        yield tuple(block)


def load(x: np.ndarray, block: Block) -> np.ndarray:
    """Return a block in its working dtype, as the kernels read it: a view where nothing needs converting.

    A file's data may begin at any byte; what is not aligned is copied here, a block at a time.
    """
    values = np.asarray(x[block]).astype(working_dtype(x.dtype), copy=False)
    return np.array(values) if is_odd(values) else values


def load_exactly(x: np.ndarray, block: Block) -> np.ndarray:
    """Return what `load` does, and refuse integers that it would round."""
    values = np.asarray(x[block])
    if len(found := beyond_exact(values)):
        where = np.unravel_index(found[0], values.shape)
        index = tuple(int(i) + (s.start or 0) for i, s in zip(where, block, strict=True))
        raise Rounded(rounding(f"{x[index]} at index {index}"))
    return load(x, block)


def part(m: Moments, where: Block) -> Moments:
    """Return the moments of some of the channels."""
    return Moments(m.count[where], m.mean[where], m.m2[where], m.mean_low[where])


class Gathered:
    """Moments of all channels, grown block by block; a block may hold only some of the channels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._count, self._mean, self._m2, self._mean_low = (np.zeros(shape) for _ in range(4))

    def add(self, where: Block, m: Moments) -> None:
        """Merge ``m`` into the channels ``where``."""
        merged = part(self.moments(), where) + m
        self._count[where], self._mean[where] = merged.count, merged.mean
        self._m2[where], self._mean_low[where] = merged.m2, merged.mean_low

    def moments(self) -> Moments:
        """Return what has been gathered so far."""
        return Moments(self._count, self._mean, self._m2, self._mean_low)


def block_moments(x: np.ndarray, kept: tuple[int, ...], nan_policy: str) -> Moments:
    """Return the moments of a block; who asks for the policy ``raise`` finds NaN in them."""
    return moments(x, kept, nan_policy="omit" if nan_policy == "omit" else "propagate")


def gather(
    x: np.ndarray,
    kept: tuple[int, ...],
    advance: Advance | None = None,
    load: Callable[[np.ndarray, Block], np.ndarray] = load,
    nan_policy: str = "propagate",
) -> Moments:
    """Return the moments of ``x``, block by block; an array of one block has exactly ``bn.moments(x, kept)``."""
    gathered = Gathered(tuple(x.shape[a] for a in kept))
    for block in blocks(x):
        gathered.add(tuple(block[a] for a in kept), block_moments(load(x, block), kept, nan_policy))
        if advance is not None:
            advance(math.prod(s.stop - s.start for s in block))
    return gathered.moments()


def apply(
    x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, out: np.ndarray, advance: Advance | None = None
) -> None:
    """Write ``bn.normalize(x, m)`` to ``out``, block by block; ``out`` may be a memory map, not ``x`` itself."""
    for block in blocks(x):
        where = tuple(block[a] for a in kept)
        normalize(load_exactly(x, block), part(m, where), axis=kept, eps=eps, out=np.asarray(out[block]))
        if advance is not None:
            advance(math.prod(s.stop - s.start for s in block))
