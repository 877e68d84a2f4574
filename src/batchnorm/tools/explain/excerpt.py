"""The part of an array that a page can hold: all of it, or its corner."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..._blocks import load, working_dtype

#: Values that a page holds at most: a megabyte of float64.
MOST = 1 << 17


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Values of the corner of an array, C-contiguous, in float32 or float64; ``whole`` says whether they are all."""

    values: np.ndarray
    whole: bool


def take_excerpt(x: np.ndarray, most: int = MOST) -> Excerpt:
    """Return the corner of ``x`` that cuts every axis at the same length, the greatest that keeps ``most`` values.

    >>> take_excerpt(np.zeros((1000, 3)), 300).values.shape, take_excerpt(np.zeros((9, 9, 9)), 300).values.shape
    ((100, 3), (6, 6, 6))
    """
    low, high = 1, max(x.shape)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if math.prod(min(n, middle) for n in x.shape) <= most else (low, middle - 1)
    corner = load(x, tuple(slice(0, min(n, low)) for n in x.shape))
    dtype = working_dtype(x.dtype)
    wide = np.float32 if dtype.itemsize == 2 else dtype  # every 16-bit number is one of float32
    return Excerpt(np.array(corner, dtype=wide, order="C"), corner.size == x.size)  # a copy: x may change later
