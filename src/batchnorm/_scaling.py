"""(x - mean) / scale and its inverse, exactly, with the statistics that scikit-learn's StandardScaler has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._functional import normalize
from ._moments import Doubles, Moments

Array = NDArray[Any]
Coefficients = tuple[Doubles, Doubles, Doubles | None]  # mean, what rounding left of it, and scale

_NO_EPS = 1e-300  # added to a variance of 1, which it leaves as it is


def statistics(m: Moments) -> tuple[Doubles, Doubles, Doubles]:
    """Mean, variance, and scale; NaN for a column of no value. A constant column has the scale 1."""
    nothing = m.count == 0
    mean = np.where(nothing, np.nan, m.mean)
    with np.errstate(invalid="ignore", over="ignore"):
        var = m.m2 / np.where(nothing, np.nan, m.count)
        # scikit-learn's rule: a variance within the rounding errors of its two passes is that of a constant.
        eps = np.finfo(np.float64).eps
        constant = var <= m.count * eps * var + (m.count * mean * eps) ** 2
        return mean, var, np.where(constant, 1.0, np.sqrt(var))


def apply(c: Coefficients, x: Array, out: Array | None, inverse: bool) -> Array:
    """(x - mean) / scale, or its inverse x * scale + mean."""
    mean, low, scale = c
    table = np.ones((4, len(mean)))  # variances of 1, which leave the scale to the weight
    table[1:3] = 0
    weight, bias = scale, mean if inverse else None
    if not inverse:
        table[1], table[2] = mean, low
        with np.errstate(divide="ignore"):
            weight = None if scale is None else 1 / scale
    y: Array = normalize(x, Moments._of_table(table), weight, bias, eps=_NO_EPS, out=out)
    return y
