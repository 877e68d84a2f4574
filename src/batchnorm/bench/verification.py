"""A fast wrong answer is not timed: every contestant's results are compared with the specification first."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .data import Exact


class Allowed(NamedTuple):
    """The largest errors that pass."""

    y: float  # relative to the larger of 1 and the sizes of what is added up
    gradients: float  # relative to the largest value in the tensor


#: For others: what single precision, or a composition of steps that each round to 16 bits, can do.
THEIRS = {
    "float64": Allowed(1e-12, 1e-11),
    "float32": Allowed(1e-4, 1e-4),
    "float16": Allowed(2**-9, 2**-8),
    "bfloat16": Allowed(2**-6, 2**-5),
}
#: For us: a rounding or two. 16-bit results are computed in float32 and rounded once, by half a unit at most. In
#: float64 the specification's own sums, one value after the other, are no better than this.
OURS = {
    "float64": Allowed(1e-12, 1e-11),
    "float32": Allowed(2.5e-7, 1e-6),
    "float16": Allowed(2**-11 * 1.01, 2**-11 * 1.01),
    "bfloat16": Allowed(2**-8 * 1.01, 2**-8 * 1.01),
}
EXACTLY = Allowed(0.0, 0.0)


class Wrong(ValueError):
    """Results that are not the specification's."""


def verify(who: str, results: dict[str, NDArray[Any]], exact: Exact, allowed: Allowed) -> dict[str, float]:
    """Return the largest error of each result, relative to its scale; raise `Wrong` where one is too large."""
    if set(results) != set(exact.results):
        raise Wrong(f"{who} returned {sorted(results)}; the operation computes {sorted(exact.results)}")
    errors = {}
    for name, want in exact.results.items():
        got = results[name]
        if got.shape != want.shape:
            raise Wrong(f"{who}: {name} has shape {got.shape}, not {want.shape}")
        off = np.abs(got.astype(np.float64) - want)
        if name in ("y", "copy"):
            off /= np.maximum(1, exact.terms)
            limit = allowed.y
        else:
            scale = float(np.max(np.abs(want))) or 1.0
            if name in exact.slack:
                off = np.maximum(0.0, off - exact.slack[name])
            off /= scale
            limit = allowed.gradients
        worst = float(np.max(off))
        if not worst <= limit:  # NaN is wrong, too
            raise Wrong(f"{who}: {name} is off by {worst:.2g} of its scale; allowed is {limit:.2g}")
        errors[name] = worst
    return errors
