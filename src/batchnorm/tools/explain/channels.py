"""Statistics of every channel before and after, gathered in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..._blocks import Gathered, block_moments, blocks, load, part
from ..._functional import normalize
from ..._moments import Moments


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """One number per channel in every field, as float64 or int64 arrays of shape (channels,).

    ``minimum`` and ``maximum`` are those of the finite values, NaN where there is none. ``mean_after`` and
    ``std_after`` are measured on the library's output. ``std`` and ``var`` divide by ``count``, the values of the
    channel without missing ones.
    """

    mean: np.ndarray
    std: np.ndarray
    var: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    mean_after: np.ndarray
    std_after: np.ndarray
    nans: np.ndarray
    infinities: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def rows(self) -> Iterator[dict[str, float | int]]:
        """Yield one dict per channel."""
        names = tuple(self.__dataclass_fields__)
        for values in zip(*(_plain_floats(getattr(self, name)) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _plain_floats(values: np.ndarray) -> list[float | int | str]:
    return [v if np.isfinite(v) else str(v) for v in values.tolist()]


def channel_statistics(x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, nan_policy: str) -> ChannelTable:
    """Return the table of all channels of ``x``, whose moments are ``m``."""
    shape = tuple(x.shape[a] for a in kept)
    reduced = tuple(a for a in range(x.ndim) if a not in kept)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    nans, infinities = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    gathered = Gathered(shape)
    for block in blocks(x):
        where = tuple(block[a] for a in kept)
        data = load(x, block)
        y = normalize(data, part(m, where), axis=kept, eps=eps)
        gathered.add(where, block_moments(y.astype(np.float64, copy=False), kept, nan_policy))
        least, most, nan, infinite = _extremes(data, reduced)
        low[where], high[where] = np.minimum(low[where], least), np.maximum(high[where], most)
        nans[where] += nan
        infinities[where] += infinite
    after = gathered.moments()
    nothing = low > high
    low[nothing] = high[nothing] = np.nan
    var = np.atleast_1d(m.var()).ravel()
    with np.errstate(invalid="ignore"):  # a channel with infinity has no value after
        mean_after, std_after = np.where(after.count > 0, after.mean, np.nan), np.sqrt(after.m2 / after.count)
    flat = (
        np.atleast_1d(a).ravel() for a in (low, high, mean_after, std_after, nans, infinities, m.count.astype(np.int64))
    )
    return ChannelTable(np.atleast_1d(m.mean).ravel(), np.sqrt(var), var, *flat)


def _extremes(
    data: np.ndarray, reduced: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | int, np.ndarray | int]:
    """Return least and greatest finite value, and how many are NaN and infinite."""
    if data.itemsize == 2:
        data = data.astype(np.float32)  # NumPy has no fast loop for 16-bit floats
    low, high = data.min(axis=reduced), data.max(axis=reduced)
    if np.isfinite(low).all() and np.isfinite(high).all():
        return low, high, 0, 0
    nan, infinite = np.isnan(data), np.isinf(data)
    bad = nan | infinite
    low = np.where(bad, np.inf, data).min(axis=reduced)
    high = np.where(bad, -np.inf, data).max(axis=reduced)
    return low, high, nan.sum(axis=reduced), infinite.sum(axis=reduced)
