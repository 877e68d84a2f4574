"""Batch renormalization: what turns the batch's statistics into the running ones, within limits that grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _formulas, _options
from ._moments import Moments

Doubles = NDArray[np.float64]


class RenormFactors(NamedTuple):
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
class Renorm(_options.RenormOption):
    """Batch renormalization (Ioffe 2017): training that normalizes as evaluation will, within limits.

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
        The batch at which r_max and d_max are reached; in between they grow linearly. Where one is `start`, its limit
        is reached at once; with ``start=0, r_end=0, d_end=0`` both are constant.

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
        for option in _options.RENORM_PARAMETERS:
            option.checked(getattr(self, option.name), "Renorm")
        if min(self.r_end, self.d_end) < self.start:
            raise ValueError(
                f"Renorm: the limits grow from batch start={self.start} on, so r_end and d_end cannot come before it; "
                f"got {self.r_end} and {self.d_end}. For constant limits give start=0, r_end=0, d_end=0"
            )

    def limits(self, step: int) -> tuple[float, float]:
        """Return r_max and d_max for the batch after `step` batches."""
        r_max, d_max = _formulas.renorm_limits(np, self, step)
        return float(r_max), float(d_max)

    def factors(self, moments: Moments, running: Moments, eps: float = 1e-5, step: int | None = None) -> RenormFactors:
        """Return r and d for a batch.

        Parameters
        ----------
        moments
            The batch's moments; those of ghosts have an axis more.
        running
            The moments that evaluation would normalize with.
        eps
            As the normalization has it.
        step
            Batches so far. Default: the limits at the end of the schedule.

        Examples
        --------
        >>> import numpy as np
        >>> import batchnorm as bn
        >>> x = np.array([[1.0], [5.0]])
        >>> moments, running = bn.moments(x), bn.Moments.from_statistics([2.0], [1.0])
        >>> factors = bn.Renorm().factors(moments, running)
        >>> np.round(bn.normalize(x, moments, renorm_factors=factors), 4)  # as evaluation: (x - 2) / 1
        array([[-1.],
               [ 3.]])
        """
        eps = _options.EPS.checked(eps, "Renorm.factors")
        limits = (float(self.r_max), float(self.d_max)) if step is None else self.limits(step)
        with np.errstate(all="ignore"):  # what is not finite stays so
            distance = (moments.mean - running.mean) + (moments.mean_low - running.mean_low)
            return RenormFactors(
                *_formulas.renorm_factors(np, limits, eps, distance, moments.m2 / moments.count, running.var())
            )


def checked_factors(value: object, m: Moments, who: str) -> RenormFactors | None:
    """Check the option of a function: None, or what `Renorm.factors` gave for these moments."""
    if value is None:
        return None
    if not isinstance(value, RenormFactors):
        raise TypeError(
            f"{who}: renorm_factors must come from bn.Renorm(...).factors(moments, running); got {type(value).__name__}"
        )
    shapes = value.r.shape, value.d.shape
    if shapes != (m.shape, m.shape):
        raise ValueError(
            f"{who}: renorm_factors must be those of the same moments, one r and d for each of shape {m.shape}; got "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    return value
