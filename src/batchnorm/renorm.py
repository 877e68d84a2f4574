"""Batch renormalization: what turns the batch's statistics into the running ones, within limits that grow."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .moments import Moments

Doubles = NDArray[np.float64]


class Correction(NamedTuple):
    """r and d of each channel: ``y = (xhat * r + d) * weight + bias``; constants of the gradients."""

    r: Doubles
    d: Doubles

    def affine(self, weight: Doubles | None, bias: Doubles | None) -> tuple[Doubles, Doubles]:
        """The weight and bias that do the same to xhat: ``weight * r`` and ``bias + weight * d``."""
        scale = np.ones_like(self.r) if weight is None else weight
        shift = 0.0 if bias is None else bias
        return np.ascontiguousarray(scale * self.r), np.ascontiguousarray(shift + scale * self.d)

    def grad_weight(self, sum_g_xhat: Doubles, sum_g: Doubles) -> Doubles:
        """``r * sum g xhat + d * sum g``: the gradient of weight, where weight multiplies ``xhat * r + d``."""
        return self.r * sum_g_xhat + self.d * sum_g


@dataclass(frozen=True)
class Renorm:
    """Batch renormalization (Ioffe 2017): training that normalises as evaluation will, within limits.

    With the batch's mean and variance and the running ones, before this batch moves them::

        r = clip(sqrt(var + eps) / sqrt(running_var + eps), 1 / r_max, r_max)
        d = clip((mean - running_mean) / sqrt(running_var + eps), -d_max, d_max)
        y = (xhat * r + d) * weight + bias

    Where neither limit is met this is ``(x - running_mean) / sqrt(running_var + eps) * weight + bias``, exactly what
    evaluation computes. r and d are constants of the gradients. ``r_max=1, d_max=0`` is plain batch normalization.

    Parameters
    ----------
    r_max, d_max
        The limits at the end of their schedules: at least 1, and at least 0.
    start
        Batches of plain batch normalization (r_max 1, d_max 0) before the limits grow.
    r_end, d_end
        The batch at which r_max and d_max are reached; in between they grow linearly. With ``start=0, r_end=0,
        d_end=0`` the limits are constant.

    Notes
    -----
    The defaults are the paper's (section 3.2 and figure 1): 5000 steps, then r_max reaches 3 at 40000 and d_max 5 at
    25000. The step is the layer's `num_batches_tracked`, so the schedule's state is in `state_dict`.

    Examples
    --------
    >>> import batchnorm as bn
    >>> bn.Renorm().limits(0), bn.Renorm().limits(15_000), bn.Renorm().limits(40_000)
    ((1.0, 0.0), (1.5714285714285714, 2.5), (3.0, 5.0))
    >>> layer = bn.BatchNorm1d(4, renorm=bn.Renorm(r_max=3.0, d_max=5.0))
    """

    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5_000
    r_end: int = 40_000
    d_end: int = 25_000

    def __post_init__(self) -> None:
        for name, least in (("r_max", 1.0), ("d_max", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= float(value) < math.inf:
                raise ValueError(
                    f"Renorm: {name} must be finite and at least {least:g} ({least:g}: no correction); got {value!r}"
                )
        for name in ("start", "r_end", "d_end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
                raise ValueError(f"Renorm: {name} is a number of batches, an int of at least 0; got {value!r}")
        if min(self.r_end, self.d_end) < self.start:
            raise ValueError(
                f"Renorm: the limits grow from batch start={self.start} on, so r_end and d_end cannot come before it; "
                f"got {self.r_end} and {self.d_end}. For constant limits give start=0, r_end=0, d_end=0"
            )

    def limits(self, step: int) -> tuple[float, float]:
        """Return r_max and d_max for the batch after `step` batches."""
        grown = [self._grown(step, end) for end in (self.r_end, self.d_end)]
        return 1.0 + (float(self.r_max) - 1.0) * grown[0], float(self.d_max) * grown[1]

    def _grown(self, step: int, end: int) -> float:
        if step >= end:
            return 1.0
        return max(0.0, (step - self.start) / (end - self.start))

    def correction(self, m: Moments, running: Moments, eps: float = 1e-5, step: int | None = None) -> Correction:
        """Return r and d for a batch.

        Parameters
        ----------
        m
            The batch's moments; those of ghosts have an axis more.
        running
            The moments that evaluation would normalise with.
        eps
            As the normalisation has it.
        step
            Batches so far. Default: the limits at the end of the schedule.

        Examples
        --------
        >>> import numpy as np
        >>> import batchnorm as bn
        >>> x = np.array([[1.0], [5.0]])
        >>> m, running = bn.moments(x), bn.Moments.from_statistics([2.0], [1.0])
        >>> c = bn.Renorm().correction(m, running)
        >>> np.round(bn.normalize(x, m, correction=c), 4)  # as evaluation: (x - 2) / 1
        array([[-1.],
               [ 3.]])
        """
        r_max, d_max = (float(self.r_max), float(self.d_max)) if step is None else self.limits(step)
        if r_max == 1 and d_max == 0:  # plain, whatever the running statistics are
            return Correction(np.ones(m.shape), np.zeros(m.shape))
        with np.errstate(all="ignore"):  # what is not finite stays so
            sigma = np.sqrt(running.var() + eps)
            r = np.sqrt(m.m2 / m.count + eps) / sigma
            d = ((m.mean - running.mean) + (m.mean_low - running.mean_low)) / sigma
        return Correction(np.clip(r, 1 / r_max, r_max), np.clip(d, -d_max, d_max))


def checked(value: object, who: str) -> Renorm | None:
    """Check the option of a layer."""
    if value is None or isinstance(value, Renorm):
        return value
    raise TypeError(
        f"{who}: renorm must be bn.Renorm(r_max=3.0, d_max=5.0, ...) or None; got {value!r} of type "
        f"{type(value).__name__}"
    )


def checked_correction(value: object, m: Moments, who: str) -> Correction | None:
    """Check the option of a function: None, or what `Renorm.correction` gave for these moments."""
    if value is None:
        return None
    if not isinstance(value, Correction):
        raise TypeError(
            f"{who}: correction must come from bn.Renorm(...).correction(m, running); got {type(value).__name__}"
        )
    shapes = value.r.shape, value.d.shape
    if shapes != (m.shape, m.shape):
        raise ValueError(
            f"{who}: correction must be that of the same moments, one r and d for each of shape {m.shape}; got shapes "
            f"{shapes[0]} and {shapes[1]}"
        )
    return value
