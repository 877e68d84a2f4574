"""The values of one channel, walked in pieces, and the statistics to normalize them with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..._blocks import blocks, load, part
from ..._functional import normalize
from ..._moments import Moments
from .labels import unravel

#: Values in a piece.
PIECE = 1 << 18


def pieces(x: np.ndarray, kept: tuple[int, ...], channel: int) -> Iterator[np.ndarray]:
    """Yield the values of a channel, in the dtype that is computed in; what is missing is NaN."""
    of_channel = _of_channel(x, kept, channel)
    for block in blocks(of_channel):
        values = load(of_channel, block).reshape(-1)
        for start in range(0, len(values), PIECE):
            yield values[start : start + PIECE]


def placed(x: np.ndarray, kept: tuple[int, ...], channel: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the values of a channel in larger pieces, and with each its position."""
    of_channel = _of_channel(x, kept, channel)
    for block in blocks(of_channel):
        where: np.ndarray = np.zeros((), np.int64)
        for n, part_of_axis in zip(of_channel.shape, block, strict=True):
            where = where[..., None] * n + np.arange(n)[part_of_axis]
        yield load(of_channel, block).reshape(-1), where.reshape(-1)


def _of_channel(x: np.ndarray, kept: tuple[int, ...], channel: int) -> np.ndarray:
    at = unravel(channel, [x.shape[a] for a in kept])
    view: np.ndarray = x[tuple(at[kept.index(a)] if a in kept else slice(None) for a in range(x.ndim))]
    return view


def moments_of(m: Moments, kept_shape: tuple[int, ...], channel: int) -> Moments:
    """Return the moments of one channel, as those of an array of one column."""
    one = part(m, tuple(slice(i, i + 1) for i in unravel(channel, kept_shape)))
    return Moments(one.count.reshape(1), one.mean.reshape(1), one.m2.reshape(1), one.mean_low.reshape(1))


def normalized(values: np.ndarray, one: Moments, eps: float) -> np.ndarray:
    """Return values of a channel after normalization, computed by the library in their dtype, as float64."""
    y = normalize(np.ascontiguousarray(values)[None], one, axis=0, eps=eps)  # a channel that lies in one piece
    return np.asarray(y[0].astype(np.float64))
