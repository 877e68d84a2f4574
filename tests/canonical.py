"""The canonical order of summation of docs/architecture.md, in plain NumPy: the kernels must give these bits.

Everything here works on ``(m, C)`` float64 arrays: m positions of C channels, the positions numbered row-major over the
reduced axes. It is written for reading and comparing, not for speed, and shares no code with the package.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 2048  # positions that share one shift
LANES = 16  # partial sums of a block


class Sums(NamedTuple):
    """Moments in the canonical form: four float64 arrays of shape (C,)."""

    count: np.ndarray
    mean: np.ndarray
    mean_low: np.ndarray
    m2: np.ndarray


def columns(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """`values` as (m, C) float64: positions in row-major order of the reduced axes, channels of the kept."""
    kept = tuple(axis % values.ndim for axis in kept)
    reduced = tuple(axis for axis in range(values.ndim) if axis not in kept)
    channels = int(np.prod([values.shape[axis] for axis in kept], dtype=np.int64))
    return np.transpose(values, reduced + kept).reshape(-1, channels).astype(np.float64)


def moments(x: np.ndarray, weights: np.ndarray | None = None) -> Sums:
    """Moments of the columns of `x` (m, C); `weights`, of the same shape, say how much each position counts."""
    with np.errstate(all="ignore"):
        blocks = []
        for start in range(0, x.shape[0], BLOCK):
            rows = slice(start, start + BLOCK)
            blocks.append(_block(x[rows], None if weights is None else weights[rows]))
        return _tree(blocks, _merge) if blocks else _nothing(x.shape[1])


def merge(a: Sums, b: Sums) -> Sums:
    """The moments of the union of two sets of positions."""
    with np.errstate(all="ignore"):
        return _merge(a, b)


def gradient_sums(grad: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``sum g`` and ``sum g (x - mean)`` of the columns, in the order of `moments`; the tree adds."""
    with np.errstate(all="ignore"):
        blocks = []
        for start in range(0, x.shape[0], BLOCK):
            g = grad[start : start + BLOCK]
            d = x[start : start + BLOCK] - mean
            blocks.append(np.stack([_lane_sum(g), _lane_sum(g * d)]))
        sums = _tree(blocks, np.add)
        return sums[0], sums[1]


def _nothing(channels: int) -> Sums:
    return Sums(*(np.zeros(channels) for _ in Sums._fields))


def _lane_sum(terms: np.ndarray) -> np.ndarray:
    """Position r adds to lane r mod 16, one after the other; then the lanes fold 16 → 8 → 4 → 2 → 1."""
    missing = -terms.shape[0] % LANES
    padded = np.concatenate([terms, np.zeros((missing, terms.shape[1]))])
    lanes = np.zeros((LANES, terms.shape[1]))
    for row in padded.reshape(-1, LANES, terms.shape[1]):
        lanes = lanes + row
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return lanes[0]


def _shift(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The value at the first position of the largest weight of every column, or 0 where that is not finite."""
    chosen = np.take_along_axis(x, np.argmax(weights, axis=0)[None], axis=0)[0]
    return np.where(np.isfinite(chosen), chosen, 0.0)


def _block(x: np.ndarray, weights: np.ndarray | None) -> Sums:
    if weights is None:
        shift = _shift(x, np.ones(x.shape))
        d = x - shift
        count = np.full(x.shape[1], float(x.shape[0]))
        s1, s2 = _lane_sum(d), _lane_sum(d * d)
    else:
        counted = weights > 0
        shift = _shift(x, weights)
        d = np.where(counted, x - shift, 0.0)
        wd = np.where(counted, weights * d, 0.0)
        count = _lane_sum(np.where(counted, weights, 0.0))
        s1, s2 = _lane_sum(wd), _lane_sum(wd * d)
    some = count > 0
    q = s1 / np.where(some, count, 1.0)
    mean, low = _two_sum(shift, q)
    m2 = s2 - s1 * q
    m2 = np.where(m2 < 0, 0.0, m2)
    zero = np.zeros_like(count)
    return Sums(count, np.where(some, mean, zero), np.where(some, low, zero), np.where(some, m2, zero))


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b exactly, as the rounded sum and what rounding lost (0 where that is not finite)."""
    high = a + b
    kept = high - a
    low = (a - (high - kept)) + (b - kept)
    return high, np.where(np.isfinite(low), low, 0.0)


def _merge(a: Sums, b: Sums) -> Sums:
    count = a.count + b.count
    safe = np.where(count > 0, count, 1.0)
    delta = (b.mean - a.mean) + (b.mean_low - a.mean_low)
    fraction = b.count / safe
    mean, low = _two_sum(a.mean, a.mean_low + delta * fraction)
    m2 = (a.m2 + b.m2) + (delta * delta) * (a.count * fraction)
    finite = np.isfinite(delta)
    pooled = (a.count * a.mean + b.count * b.mean) / safe
    merged = Sums(count, np.where(finite, mean, pooled), np.where(finite, low, 0.0), np.where(finite, m2, np.nan))
    chosen = []
    for of_a, of_b, of_both in zip(a, b, merged, strict=True):
        chosen.append(np.where(b.count == 0, of_a, np.where(a.count == 0, of_b, of_both)))
    return Sums(*chosen)


def _tree(items: list, combine):
    """Combine items left to right; the left part of a node has the largest power of two smaller than the whole."""
    if len(items) == 1:
        return items[0]
    left = 1
    while left * 2 < len(items):
        left *= 2
    return combine(_tree(items[:left], combine), _tree(items[left:], combine))


_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits, in whatever layout; any NaN is as good as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    equal = np.ascontiguousarray(a).view(_BITS[a.itemsize]) == np.ascontiguousarray(b).view(_BITS[b.itemsize])
    return bool((equal.reshape(a.shape) | ((a != a) & (b != b))).all())
