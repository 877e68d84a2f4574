"""The columns that an array is to batch normalization, and what they become."""

from __future__ import annotations

import math

import numpy as np


def reduced_axes(x: np.ndarray, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    kept = (axis,) if isinstance(axis, int) else axis
    return tuple(a for a in range(x.ndim) if a not in [k % x.ndim for k in kept])


def columns_of(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """x as a table of float64: a row per position, a column per channel."""
    reduced = reduced_axes(x, axis)
    kept = [a for a in range(x.ndim) if a not in reduced]
    m = math.prod(x.shape[a] for a in reduced)
    return x.transpose(*reduced, *kept).reshape(m, -1).astype(np.float64)


def normalized(table: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return (table - table.mean(axis=0)) / np.sqrt(table.var(axis=0) + eps)
