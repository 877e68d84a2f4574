"""Values to compare: all of them where they are few, else a fixed sample that is the same in every run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..._blocks import working_dtype
from ..._functional import normalize
from ..._moments import Moments

#: Up to this many values all are compared inside their channels.
ALL = 1 << 20
#: Of more values, this many are.
SAMPLE = 1 << 18
#: Channels sampled at most.
CHANNELS = 4096


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of some positions (rows) of some channels (columns), before and after, as float64."""

    x: np.ndarray
    y: np.ndarray
    positions: np.ndarray
    channels: np.ndarray
    complete: bool
    omits: bool = False  # whether NaN is a value that is not there


def spread(count: int, most: int) -> np.ndarray:
    """Return ``most`` different numbers below ``count``, ascending, without a period that could match the data's.

    Multiples of a step near count/φ and coprime to count: they fall evenly, and they are the same in every run.
    """
    if most >= count:
        return np.arange(count)
    step = max(1, round(count * 0.6180339887498949))
    while math.gcd(step, count) != 1:
        step += 1
    chosen: np.ndarray = np.arange(most, dtype=np.int64) * step % count
    chosen.sort()
    return chosen


def take_sample(x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, also: int, omits: bool) -> Sample:
    """Return the values to compare; channel ``also`` is among them."""
    shape = tuple(x.shape[a] for a in kept)
    reduced = tuple(x.shape[a] for a in range(x.ndim) if a not in kept)
    count, per_channel = math.prod(shape), math.prod(reduced)
    complete = x.size <= ALL
    channels = spread(count, count if complete else CHANNELS)
    if also not in channels:
        channels = np.sort(np.append(channels, also))
    positions = spread(per_channel, per_channel if complete else max(2, SAMPLE // len(channels)))
    view = np.moveaxis(x, kept, range(x.ndim - len(kept), x.ndim))
    index = (*(i[:, None] for i in _indices(positions, reduced)), *(i[None, :] for i in _indices(channels, shape)))
    values = np.asarray(view[index]).reshape(len(positions), len(channels)).astype(working_dtype(x.dtype), copy=False)
    flat = (np.asarray(a).reshape(-1)[channels] for a in (m.count, m.mean, m.m2, m.mean_low))
    y = normalize(values, Moments(*flat), axis=1, eps=eps)
    return Sample(values.astype(np.float64), y.astype(np.float64), positions, channels, complete, omits)


def _indices(flat: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Of one axis: NumPy 2.4's unravel_index is wrong for more than 8192 numbers with an axis of stride 0."""
    return np.unravel_index(flat, shape) if shape else ()
