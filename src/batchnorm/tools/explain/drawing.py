"""What to draw of the plan: a table with one column lit, or samples side by side with one channel lit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..._blocks import load, part
from ..._functional import normalize
from ..._moments import Moments
from .labels import unravel

Shown = tuple[int | None, ...]  # None stands for what is left out


@dataclass(frozen=True)
class Grid:
    """A table of real numbers, a row per averaged position and a column per channel. Every column is averaged by
    itself.

    ``rows`` and ``columns`` are the numbers of those shown, None where some are left out; ``before`` and ``after``
    hold the shown rows' values of the shown columns, without those left out; ``lit`` is the channel whose formulas
    are filled in. ``row_indices`` are the row's indices along the averaged axes longer than one.
    """

    rows: Shown
    columns: Shown
    row_indices: tuple[tuple[int, ...], ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    lit: int


@dataclass(frozen=True)
class Stack:
    """Samples side by side, each with its channels one below the other; one channel is averaged over all samples.

    ``plane`` is the shape of one channel of one sample.
    """

    samples: Shown
    channels: Shown
    plane: tuple[int, ...]
    lit: int


def draw(x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, lit: int) -> Grid | Stack:
    """Choose and fill in the drawing of ``x``: a stack for (N, C, S…) with S > 1, else a grid."""
    shape = [x.shape[a] for a in kept]
    channels = int(np.prod(shape, dtype=np.int64))
    if len(kept) == 1 and kept[0] > 0 and any(n > 1 for n in x.shape[kept[0] + 1 :]):
        samples = int(np.prod(x.shape[: kept[0]], dtype=np.int64))
        plane = tuple(n for n in x.shape[kept[0] + 1 :] if n > 1)
        return Stack(shown(samples, 4, 0), shown(channels, 6, lit), plane, lit)
    reduced = [a for a in range(x.ndim) if a not in kept]
    positions = [x.shape[a] for a in reduced]
    rows = shown(int(np.prod(positions, dtype=np.int64)), 6, 0)
    columns = shown(channels, 6, lit)
    row_indices = [unravel(r, positions) for r in rows if r is not None]
    before, after = _values(x, m, kept, eps, row_indices, [unravel(c, shape) for c in columns if c is not None])
    long = tuple(tuple(i for i, n in zip(index, positions, strict=True) if n > 1) for index in row_indices)
    return Grid(rows, columns, long, before, after, lit)


def shown(count: int, most: int, lit: int) -> Shown:
    """Return which of ``count`` to show: all up to ``most``, else the first three, ``lit``, the last, and None between.

    >>> shown(4, 6, 0), shown(64, 6, 17)
    ((0, 1, 2, 3), (0, 1, 2, None, 17, None, 63))
    """
    if count <= most:
        return tuple(range(count))
    return with_gaps(sorted({0, 1, 2, lit, count - 1}))


def with_gaps(numbers: Sequence[int]) -> Shown:
    """Return ascending numbers with None wherever some are left out."""
    result: list[int | None] = []
    for i in numbers:
        if result and result[-1] != i - 1:
            result.append(None)
        result.append(i)
    return tuple(result)


def _values(
    x: np.ndarray,
    m: Moments,
    kept: tuple[int, ...],
    eps: float,
    rows: list[tuple[int, ...]],
    columns: list[tuple[int, ...]],
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    before, after = [], []
    for row in rows:
        pairs = []
        for column in columns:
            inside, across = iter(row), iter(column)
            index = [next(across) if a in kept else next(inside) for a in range(x.ndim)]
            value = load(x, tuple(slice(i, i + 1) for i in index))
            y = normalize(value, part(m, tuple(slice(i, i + 1) for i in column)), axis=kept, eps=eps)
            pairs.append((float(value.ravel()[0]), float(y.ravel()[0])))
        before.append(tuple(v for v, _ in pairs))
        after.append(tuple(y for _, y in pairs))
    return tuple(before), tuple(after)
