"""The canonical order of summation of docs/architecture.md, in plain NumPy: the kernels must give these bits.

Everything here works on ``(m, C)`` arrays of the compute type (float64 for float64 data, float32 for all others): m
positions of C channels, the positions numbered row-major over the reduced axes. It is written for reading and
comparing, not for speed, and shares no code with the package.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 2048  # positions that share one shift
LANES = 16  # partial sums of a cell
TERMS = 8  # of a lane in a cell, added in the compute type
CELL = LANES * TERMS  # positions between two additions in float64


class Sums(NamedTuple):
    """Moments in the canonical form: four float64 arrays of shape (C,)."""

    count: np.ndarray
    mean: np.ndarray
    mean_low: np.ndarray
    m2: np.ndarray


def columns(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """`values` as (m, C) in the compute type: positions row-major over the reduced axes, channels over the kept."""
    kept = tuple(axis % values.ndim for axis in kept)
    reduced = tuple(axis for axis in range(values.ndim) if axis not in kept)
    channels = int(np.prod([values.shape[axis] for axis in kept], dtype=np.int64))
    compute = np.float64 if values.dtype == np.float64 else np.float32
    return np.transpose(values, reduced + kept).reshape(-1, channels).astype(compute)


def moments(x: np.ndarray, sample_weight: np.ndarray | None = None, omit: bool = False) -> Sums:
    """Moments of the columns of `x` (m, C); `sample_weight` (m, 1) or (m, C), one for all channels, says what counts.

    With `omit`, what is NaN does not count in its column.
    """
    w = np.ones(len(x)) if sample_weight is None else sample_weight[:, 0].astype(np.float64)
    of_block = _block_of_some if omit else _block
    with np.errstate(all="ignore"):
        blocks = [of_block(x[i : i + BLOCK], w[i : i + BLOCK]) for i in range(0, len(x), BLOCK)]
        return _tree(blocks, _merge) if blocks else _nothing(x.shape[1])


def merge(a: Sums, b: Sums) -> Sums:
    """The moments of the union of two sets of positions."""
    with np.errstate(all="ignore"):
        return _merge(a, b)


def gradient_sums(
    grad: np.ndarray, x: np.ndarray, m: Sums, wide: np.ndarray, omit: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """``sum g`` and ``sum g (x - mean)`` of the columns; the tree adds. `wide` are those that float32 cannot hold.

    What is summed is about the mean rounded to the compute type; what rounding took follows in closed form. With
    `omit`, neither sum has a term where x is NaN.
    """
    with np.errstate(all="ignore"):
        if omit:
            grad = np.where(np.isnan(x), x.dtype.type(0), grad)
        center = np.where(wide, m.mean, m.mean.astype(x.dtype).astype(np.float64))
        blocks = [
            _block_of_gradients(grad[i : i + BLOCK], x[i : i + BLOCK], center, wide, omit)
            for i in range(0, len(x), BLOCK)
        ]
        sum_g, sum_gd = _tree(blocks, np.add)
        return sum_g, sum_gd - ((m.mean - center) + m.mean_low) * sum_g


def _nothing(channels: int) -> Sums:
    return Sums(*(np.zeros(channels) for _ in Sums._fields))


# --- sums: 16 lanes of 8 terms, folded, then added up in float64 ---


def _cells(terms: np.ndarray) -> np.ndarray:
    """Terms (n, C) as (cells, 8, 16, C): position r of a cell is term r // 16 of lane r mod 16; missing ones are 0."""
    missing = np.zeros((-len(terms) % CELL, terms.shape[1]), terms.dtype)
    return np.concatenate([terms, missing]).reshape(-1, TERMS, LANES, terms.shape[1])


def _sum(terms: np.ndarray) -> np.ndarray:
    return _sum_of_pairs(terms[:, 0::2] + terms[:, 1::2])


def _sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum_of_pairs(_multiply_add(a[:, 1::2], b[:, 1::2], a[:, 0::2] * b[:, 0::2]))


def _sum_of_pairs(pairs: np.ndarray) -> np.ndarray:
    """Of pairs (cells, 4, 16, C): four make a lane, lanes are folded to four, and cells are added up in float64."""
    lanes = _in_pairs(pairs.swapaxes(0, 1))
    four = np.zeros((4, lanes.shape[2]))
    for cell in _in_four(lanes.swapaxes(0, 1)).swapaxes(0, 1):
        four = four + cell.astype(np.float64)
    return _in_pairs(four)


def _in_pairs(four: np.ndarray) -> np.ndarray:
    return (four[0] + four[1]) + (four[2] + four[3])


def _in_four(lanes: np.ndarray) -> np.ndarray:
    return ((lanes[:4] + lanes[4:8]) + lanes[8:12]) + lanes[12:]


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c: in float32 rounded once, in float64 rounded twice.

    The product of two float32 numbers is exact in float64. The sum is rounded to odd there (to the neighbor whose last
    bit is 1, unless it is exact), so that rounding it again, to float32, rounds as the exact sum would.
    """
    if a.dtype == np.float64:
        return a * b + c
    total, lost = _two_sum(a.astype(np.float64) * b, c.astype(np.float64))
    bits = total.view(np.int64)
    outwards = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((lost != 0) & (bits & 1 == 0), bits + outwards, bits)
    return odd.view(np.float64).astype(np.float32)


# --- blocks, and the tree that merges them ---


def _block_of_some(x: np.ndarray, w: np.ndarray) -> Sums:
    """The like, column by column, of what is not NaN; what the weights of positions are decides for all columns."""
    is_mask = bool(((w == 0) | (w == 1)).all())
    columns = [x[:, c : c + 1] for c in range(x.shape[1])]
    found = [_block(column, np.where(np.isnan(column[:, 0]), 0.0, w), is_mask) for column in columns]
    return Sums(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _block(x: np.ndarray, w: np.ndarray, is_mask: bool | None = None) -> Sums:
    """Moments of at most 2048 positions."""
    if not (((w == 0) | (w == 1)).all() if is_mask is None else is_mask) and w.any():
        count, shift, s, q = _weighted(x.astype(np.float64), w)
    elif w.any():
        count, shift, s, q = _counted(x, w == 1)
    else:
        return _nothing(x.shape[1])
    mean, low = _two_sum(shift, s / count)
    m2 = q - s * (s / count)
    return Sums(np.full(x.shape[1], count), mean, low, _or_nan(np.where(m2 < 0, 0.0, m2)))


def _counted(x: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Count, shift and shifted sums of the positions that count; again in float64 where float32 does not do."""
    n = float(counts.sum())
    shift = _near_mean(x, counts)
    s, q = _shifted(x, counts, shift)
    shift = shift.astype(np.float64)
    if x.dtype == np.float32:
        trusted = np.isfinite(q) & (q >= n * 2.0**-90) & (q - s * (s / n) >= q / 2)
        wide = x.astype(np.float64)
        mean = _or(_shifted(wide, counts, np.zeros_like(shift))[0] / n, 0.0)
        again = _shifted(wide, counts, mean)
        shift, s, q = (np.where(trusted, *pair) for pair in ((shift, mean), (s, again[0]), (q, again[1])))
    return n, shift, s, q


def _shifted(x: np.ndarray, counts: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d = _cells(np.where(counts[:, None], x - shift, x.dtype.type(0)))
    return _sum(d), _sum_of_products(d, d)


def _near_mean(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the first 16 values that count at 128 scattered positions, or of fewer; else the first that counts.

    Near the data, whatever its offset and order.
    """
    n = len(x)
    scattered = np.arange(n) if n < LANES else np.arange(min(n, 128)) * (n * 1265 // BLOCK | 1) % n
    chosen = scattered[counts[scattered]][:LANES]
    found = x[chosen if len(chosen) else np.argmax(counts)[None]]
    values = np.concatenate([found, np.zeros((LANES - len(found), x.shape[1]))])
    return _or(_in_pairs(_in_four(values)) / len(found), _or(values[0], 0.0)).astype(x.dtype)


def _weighted(x: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The like for other weights, in float64; the shift is the first value of the largest weight."""
    shift = _or(x[np.argmax(w)], 0.0)
    d = _cells(np.where(w[:, None] > 0, x - shift, 0.0))
    h = _cells(w[:, None]) * d
    return _sum(_cells(w[:, None]))[0], shift, _sum(h), _sum_of_products(h, d)


def _block_of_gradients(g: np.ndarray, x: np.ndarray, center: np.ndarray, wide: np.ndarray, omit: bool) -> np.ndarray:
    """The two sums of a block, as rows; in float64 where float32 overflows or its products may underflow."""
    distance = x - center.astype(x.dtype)
    terms, d = _cells(g), _cells(np.where(np.isnan(x), x.dtype.type(0), distance) if omit else distance)
    sums = np.stack([_sum(terms), _sum_of_products(terms, d)])
    if x.dtype == np.float64:
        return sums
    trusted = ~wide & np.isfinite(sums).all(axis=0) & (np.abs(sums[1]) >= len(x) * 2.0**-90)
    again = _block_of_gradients(g.astype(np.float64), x.astype(np.float64), center, wide, omit)
    return np.where(trusted, sums, again)


def _or(values: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    return np.where(np.isfinite(values), values, otherwise)


def _or_nan(m2: np.ndarray) -> np.ndarray:
    """Squares that leave the range of float64 leave no variance."""
    return np.where(np.isinf(m2), np.nan, m2)


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
    m2 = _or_nan((a.m2 + b.m2) + (delta * delta) * (a.count * fraction))
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
