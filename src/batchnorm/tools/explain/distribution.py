"""The distribution of one channel before and after: its histogram and its skewness, each side counted by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..._blocks import working_dtype
from ..._moments import Moments
from .channels import ChannelTable
from .one_channel import moments_of, normalized, pieces

#: Bars of a histogram: about twice the cube root of the number of values, within these limits. The page has the same.
FEWEST, MOST = 5, 30


@dataclass(frozen=True)
class Side:
    """A histogram of bars of equal width from ``low`` to ``high``, and the skewness, the mean of ((x - mean)/std)³."""

    low: float
    high: float
    counts: tuple[int, ...]
    skewness: float


@dataclass(frozen=True)
class Distribution:
    """The distribution of ``channel`` before and after."""

    channel: int
    before: Side
    after: Side

    @property
    def is_kept(self) -> bool:
        """Whether the shape is the same, but for what rounding moves."""
        a, b = self.before, self.after
        moved = sum(abs(m - n) for m, n in zip(a.counts, b.counts, strict=True)) / 2
        return moved <= 0.01 * sum(a.counts) and abs(a.skewness - b.skewness) <= 0.01 * max(1.0, abs(a.skewness))


def find_distribution(
    x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, channel: int, table: ChannelTable, tolerance: float
) -> Distribution | None:
    """Return the distribution of ``channel``, None where it is constant or not finite.

    ``tolerance`` is the part of the range by which rounding moves a value: so far below its end a bar takes it up.
    """
    low, high = float(table.minimum[channel]), float(table.maximum[channel])
    if not (np.isfinite(table.std_after[channel]) and low < high):
        return None
    one = moments_of(m, tuple(x.shape[a] for a in kept), channel)
    low_after, high_after = map(float, normalized(np.array([low, high]).astype(working_dtype(x.dtype)), one, eps))
    if not low_after < high_after:
        return None
    bars = max(FEWEST, min(MOST, math.ceil(2 * np.cbrt(int(table.count[channel])))))
    slack = bars * min(tolerance, 0.005)
    before = _Tally(low, high, bars, slack, float(table.mean[channel]), float(table.std[channel]))
    after = _Tally(
        low_after, high_after, bars, slack, float(table.mean_after[channel]), float(table.std_after[channel])
    )
    for values in pieces(x, kept, channel):
        there = values[~np.isnan(values)]
        before.add(there.astype(np.float64))
        after.add(normalized(there, one, eps))
    return Distribution(channel, before.side(), after.side())


class _Tally:
    """Values counted in bars, and the sum of their cubes."""

    def __init__(self, low: float, high: float, bars: int, slack: float, mean: float, std: float) -> None:
        self._low, self._high, self._slack, self._mean, self._std = low, high, slack, mean, std
        self._counts = np.zeros(bars, np.int64)
        self._cubes = 0.0

    def add(self, values: np.ndarray) -> None:
        bars = len(self._counts)
        place = (values / 2 - self._low / 2) / (self._high / 2 - self._low / 2) * bars + self._slack
        self._counts += np.bincount(np.clip(place.astype(np.int64), 0, bars - 1), minlength=bars)
        standard = (values - self._mean) / self._std
        self._cubes += float((standard * standard * standard).sum())  # a power of 3 takes NumPy ten times as long

    def side(self) -> Side:
        skewness = self._cubes / int(self._counts.sum())
        return Side(self._low, self._high, tuple(self._counts.tolist()), skewness)
