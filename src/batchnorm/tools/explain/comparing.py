"""What normalizing keeps and what it loses, counted on values before and after.

Inside a channel: the order and the relative distances. Between channels: which of two values is greater.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sampling import Sample, spread

#: Values compared with each other between channels: about a million pairs.
CROSS = 1500
#: Channels compared with each other at most.
CROSS_CHANNELS = 256


@dataclass(frozen=True)
class Place:
    """Where ``value`` lies between ``low`` and ``high`` of its channel, before and after.

    ``fraction`` is 0 at low and 1 at high.
    """

    channel: int
    value: float
    low: float
    high: float
    fraction: float
    value_after: float
    low_after: float
    high_after: float
    fraction_after: float


@dataclass(frozen=True)
class Inside:
    """Comparisons of values of the same channel.

    ``complete`` says whether all values took part. ``reversed`` counts neighbors in sorted order that changed sides
    (0 means that no pair at all did); ``made_equal`` pairs of different values that rounding made equal. ``moved`` is
    the greatest change of a value's place between the least and the greatest of its channel (0 … 1), and
    ``tolerance`` what rounding explains. ``without_order`` counts channels left out: those with NaN or infinity.
    """

    complete: bool
    channels: int
    values: int
    pairs: int
    reversed: int
    made_equal: int
    moved: float
    tolerance: float
    without_order: int
    example: Place | None


@dataclass(frozen=True)
class Pair:
    """Two values of different channels, before and after."""

    position_a: int
    channel_a: int
    position_b: int
    channel_b: int
    a: float
    b: float
    a_after: float
    b_after: float


@dataclass(frozen=True)
class Between:
    """Comparisons of values of different channels: of ``pairs``, those that compare differently afterwards.

    A pair is ``reversed`` (> became <), ``made_equal`` or ``made_different``. ``beside`` counts the pairs at the same
    position (in one row of a table), ``beside_changed`` those of them that compare differently.
    """

    complete: bool
    pairs: int
    reversed: int
    made_equal: int
    made_different: int
    beside: int
    beside_changed: int
    example: Pair | None

    @property
    def changed(self) -> int:
        """How many pairs compare differently."""
        return self.reversed + self.made_equal + self.made_different


def compare_inside(sample: Sample, dtype: np.dtype, channel: int) -> Inside:
    """Count what changed inside the channels."""
    good = _finite(sample)
    x, y = sample.x[:, good], sample.y[:, good]
    by_x = np.argsort(x, axis=0, kind="stable")
    x, y = np.take_along_axis(x, by_x, 0), np.take_along_axis(y, by_x, 0)
    values, channels = x.shape
    there = np.count_nonzero(~np.isnan(x), axis=0)
    reversed_ = int(np.count_nonzero((np.diff(x, axis=0) > 0) & (np.diff(y, axis=0) < 0)))
    moved, tolerance = _moved(x, y, dtype)
    return Inside(
        complete=sample.complete,
        channels=channels,
        values=values,
        pairs=int((there * (there - 1) // 2).sum()),
        reversed=reversed_,
        made_equal=max(0, _equal_pairs(np.sort(y, axis=0)) - _equal_pairs(x)),
        moved=moved,
        tolerance=tolerance,
        without_order=int(np.count_nonzero(~good)),
        example=_place(sample, channel) if channels else None,
    )


def _finite(sample: Sample) -> np.ndarray:
    """Which channels have an order: those of finite values, beside missing ones."""
    missing = np.isnan(sample.x) if sample.omits else np.zeros(sample.x.shape, bool)
    finite = np.isfinite(sample.x) & np.isfinite(sample.y)
    usable: np.ndarray = (finite | missing).all(axis=0) & finite.any(axis=0)
    return usable


def _equal_pairs(ordered: np.ndarray) -> int:
    """Return how many pairs in the columns of an array sorted along axis 0 are equal."""
    values, channels = ordered.shape
    if values == 0:
        return 0
    begins = np.ones((channels, values), bool)
    begins[:, 1:] = (np.diff(ordered, axis=0) != 0).T
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, begins.size))
    return int((lengths * (lengths - 1) // 2).sum())


def _moved(x: np.ndarray, y: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """Return the greatest change of a value's place in its channel, and the greatest that rounding of y explains."""
    if x.size == 0:
        return 0.0, 0.0
    high, high_after = np.nanmax(x, axis=0), np.nanmax(y, axis=0)  # missing values are sorted last
    wide, wide_after = high - x[0], high_after - y[0]
    use = (wide > 0) & (wide_after > 0) & np.isfinite(wide)
    if not use.any():
        return 0.0, 0.0
    x, y, wide, wide_after = x[:, use], y[:, use], wide[use], wide_after[use]
    moved = np.nanmax(np.abs((x - x[0]) / wide - (y - y[0]) / wide_after))
    bits = 7 if dtype.name == "bfloat16" else np.finfo(dtype).nmant
    unit = np.ldexp(1.0, -bits)
    largest = np.maximum(abs(y[0]), abs(high_after[use]))
    return float(moved), float((4 * unit * np.maximum(largest / wide_after, 1)).max())


def _place(sample: Sample, channel: int) -> Place | None:
    column = int(np.searchsorted(sample.channels, channel))
    x, y = sample.x[:, column], sample.y[:, column]
    if sample.omits:
        x, y = x[~np.isnan(x)], y[~np.isnan(x)]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    distinct, first = np.unique(x, return_index=True)
    if len(distinct) < 3:
        return None
    low, some, high = first[0], first[len(first) // 4 or 1], first[-1]
    if y[high] == y[low]:
        return None
    return Place(
        channel=channel,
        value=float(x[some]),
        low=float(x[low]),
        high=float(x[high]),
        fraction=float((x[some] - x[low]) / (x[high] - x[low])),
        value_after=float(y[some]),
        low_after=float(y[low]),
        high_after=float(y[high]),
        fraction_after=float((y[some] - y[low]) / (y[high] - y[low])),
    )


def compare_between(sample: Sample) -> Between:
    """Count what changed between channels."""
    columns = np.flatnonzero(_finite(sample))
    whole = sample.complete and len(columns) * len(sample.x) <= CROSS
    columns = columns[spread(len(columns), len(columns) if whole else CROSS_CHANNELS)]
    rows = spread(len(sample.x), CROSS // max(1, len(columns)))
    if len(columns) < 2:
        return Between(whole, 0, 0, 0, 0, 0, 0, None)
    x, y = sample.x[np.ix_(rows, columns)].ravel(), sample.y[np.ix_(rows, columns)].ravel()
    first, second = np.triu_indices(len(x), 1)
    other_channel = first % len(columns) != second % len(columns)
    other_channel &= ~(np.isnan(x[first]) | np.isnan(x[second]))
    first, second = first[other_channel], second[other_channel]
    before, after = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    changed = before != after
    beside = first // len(columns) == second // len(columns)
    example = None
    if changed.any():
        i = _telling(x, y, first, second, changed, beside)
        example = _pair(sample, rows, columns, x, y, int(first[i]), int(second[i]))
    return Between(
        complete=whole,
        pairs=len(first),
        reversed=int(np.count_nonzero(before * after < 0)),
        made_equal=int(np.count_nonzero(changed & (after == 0))),
        made_different=int(np.count_nonzero(changed & (before == 0))),
        beside=int(np.count_nonzero(beside)),
        beside_changed=int(np.count_nonzero(beside & changed)),
        example=example,
    )


def _telling(
    x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, changed: np.ndarray, beside: np.ndarray
) -> int:
    """Return the changed pair to show: at one position if there is one, and far apart before and after."""
    candidates = np.flatnonzero(changed & beside)
    if len(candidates) == 0:
        candidates = np.flatnonzero(changed)
    before = np.abs(x[first[candidates]] - x[second[candidates]])
    after = np.abs(y[first[candidates]] - y[second[candidates]])
    score = before / max(float(before.max()), np.finfo(float).tiny) + after / max(float(after.max()), 1e-300)
    return int(candidates[np.argmax(score)])


def _pair(
    sample: Sample, rows: np.ndarray, columns: np.ndarray, x: np.ndarray, y: np.ndarray, first: int, second: int
) -> Pair:
    if x[first] < x[second]:
        first, second = second, first
    width = len(columns)
    return Pair(
        position_a=int(sample.positions[rows[first // width]]),
        channel_a=int(sample.channels[columns[first % width]]),
        position_b=int(sample.positions[rows[second // width]]),
        channel_b=int(sample.channels[columns[second % width]]),
        a=float(x[first]),
        b=float(x[second]),
        a_after=float(y[first]),
        b_after=float(y[second]),
    )
