"""The four formulas, filled in for one channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..._blocks import working_dtype
from ..._functional import normalize
from ..._moments import Moments
from .labels import unravel
from .one_channel import moments_of

#: Values of the channel shown one by one: all of them up to this number, else these and the last.
SHOWN = 5


@dataclass(frozen=True)
class Formulas:
    """One channel's numbers.

    ``x`` are its first values and ``last`` the last one (None when ``x`` is all); ``xhat`` are the normalized ``x``,
    by the library. With ``weight`` √(var + eps) and ``bias`` the mean they become ``y``: the ``x`` again. ``var``
    divides by m; ``var_running`` is what a layer's running_var would take, var · m/(m-1), NaN for m = 1.
    """

    channel: int
    m: int
    x: tuple[float, ...]
    last: float | None
    mean: float
    var: float
    std: float
    var_running: float
    eps: float
    xhat: tuple[float, ...]
    xhat_last: float | None
    weight: float
    bias: float
    y: tuple[float, ...]


def fill_in(x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, channel: int, omits: bool) -> Formulas:
    """Return the formulas of ``channel``; only the values shown are read, or all to find those that are there."""
    at = unravel(channel, [x.shape[a] for a in kept])
    of_channel = x[tuple(at[kept.index(a)] if a in kept else slice(None) for a in range(x.ndim))]
    if omits and x.dtype.kind not in "iub":
        of_channel = of_channel[~np.isnan(of_channel)]
    count = of_channel.size
    positions = range(count) if count <= SHOWN + 1 else [*range(SHOWN), count - 1]
    shape = of_channel.shape
    values = np.array([of_channel[unravel(p, shape)] for p in positions], dtype=working_dtype(x.dtype))[:, None]
    one = moments_of(m, tuple(x.shape[a] for a in kept), channel)
    xhat = normalize(values, one, axis=1, eps=eps)
    numbers, normal = values[:, 0].astype(float).tolist(), xhat[:, 0].astype(float).tolist()
    var = float(one.var()[0])
    weight = math.sqrt(var + eps) if var >= 0 else math.nan
    y = normalize(values, one, np.array([weight]), one.mean, axis=1, eps=eps)
    return Formulas(
        channel=channel,
        m=count,
        x=tuple(numbers if count <= SHOWN + 1 else numbers[:-1]),
        last=None if count <= SHOWN + 1 else numbers[-1],
        mean=float(one.mean[0]),
        var=var,
        std=math.sqrt(var) if var >= 0 else math.nan,
        var_running=float(one.var(1)[0]) if count > 1 else math.nan,
        eps=float(eps),
        xhat=tuple(normal if count <= SHOWN + 1 else normal[:-1]),
        xhat_last=None if count <= SHOWN + 1 else normal[-1],
        weight=weight,
        bias=float(one.mean[0]),
        y=tuple(y[:SHOWN, 0].astype(float).tolist()),
    )
