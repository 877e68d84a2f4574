"""Formulas that both front ends compute: `xp` is numpy, with numbers and arrays, or torch, with tensors.

On the CPU the kernels have moments and running statistics, too (cpp/core), operation by operation, so with these bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# --- moments: rows of count, mean, what rounding the mean left out, sum of squared deviations (M2) ---


def merge_moments(xp: Any, a: Any, b: Any) -> Any:
    """Moments of two parts to those of both: Chan, Golub and LeVeque (1983), with the mean in two doubles."""
    (count_a, mean_a, low_a, m2_a), (count_b, mean_b, low_b, m2_b) = a, b
    count = count_a + count_b
    delta = (mean_b - mean_a) + (low_b - low_a)
    fraction = count_b / count
    mean, low = two_sum(xp, mean_a, low_a + delta * fraction)
    m2 = (m2_a + m2_b) + (delta * delta) * (count_a * fraction)
    finite = xp.isfinite(delta)
    pooled = (count_a * mean_a + count_b * mean_b) / count
    m2 = xp.where(finite & xp.isfinite(m2), m2, xp.nan)  # from an infinite one every output would be 0
    merged = xp.stack([count, xp.where(finite, mean, pooled), xp.where(finite, low, 0.0), m2])
    return xp.where(count_a == 0, b, xp.where(count_b == 0, a, merged))


def two_sum(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Knuth's exact sum: high + low = a + b; low is 0 where the sum is not finite."""
    high = a + b
    rest = high - a
    low = (a - (high - rest)) + (b - rest)
    return high, xp.where(xp.isfinite(low), low, 0.0)


# --- running statistics ---


class Moved(NamedTuple):
    """Running statistics after a batch, before they are rounded."""

    mean: Any
    var: Any
    gap: Any  # the unbiased variance less the biased one; None where no count is kept
    counts: Any


def moved(xp: Any, running: tuple[Any, Any, Any], batch: tuple[Any, Any, Any], a: Any, correction: int) -> Moved:
    """Move a mean, a variance and a count (or None) toward a batch's count, mean and M2, which has weight `a`.

    The unbiased running variance and the biased one are averages with the same weights, so the gap between them is one,
    too: it moves toward ``M2 / (m (m - 1))``.
    """
    (mean, var, count), (m, batch_mean, m2) = running, batch
    mean = a * batch_mean + (1 - a) * mean
    new_var = a * (m2 / (m - correction)) + (1 - a) * var
    if count is None:
        return Moved(mean, new_var, None, None)
    gap = a * (m2 / (m * (m - 1))) + (1 - a) * variance_gap(var, count, correction)
    return Moved(mean, new_var, gap, count_behind(xp, new_var, gap, correction))


def variance_gap(var: Any, count: Any, correction: int) -> Any:
    """The unbiased variance less the biased one, of which `var` is that with this correction."""
    return var / (count - (1 - correction))


def count_behind(xp: Any, var: Any, gap: Any, correction: int) -> Any:
    """The count n for which ``var * (n - 1) / n`` is the biased variance, or ``var * n / (n - 1)`` the unbiased one."""
    return xp.where(gap == 0, xp.inf, var / gap + (1 - correction))


def other_variance(var: Any, count: Any, correction: int) -> Any:
    """The biased variance of an unbiased one (correction 1), or the unbiased one of a biased one (0).

    The gap is subtracted or added: it is small beside the variance where n is large, so this rounds less than a product
    with ``(n - 1) / n``, and an infinite n needs no case of its own.
    """
    gap = variance_gap(var, count, correction)
    return var - gap if correction else var + gap


def all_finite(xp: Any, mean: Any, var: Any, gap: Any) -> Any:
    """Of each channel, whether a mean and variance, as they are stored, and the gap, where there is one, are finite."""
    finite = xp.isfinite(mean) & xp.isfinite(var)
    return finite if gap is None else finite & xp.isfinite(gap)


# --- batch renormalization ---


def renorm_limits(xp: Any, renorm: Any, step: Any) -> tuple[Any, Any]:
    """r_max and d_max for the batch after `step` batches."""
    r, d = (_grown(xp, step, renorm.start, end) for end in (renorm.r_end, renorm.d_end))
    return 1.0 + (float(renorm.r_max) - 1.0) * r, float(renorm.d_max) * d


def _grown(xp: Any, step: Any, start: int, end: int) -> Any:
    """How far a limit has grown: 0 until batch `start`, 1 from batch `end` on; at once where these are one."""
    return xp.clip((step - start + int(start == end)) / max(end - start, 1), 0.0, 1.0)


def renorm_factors(
    xp: Any, limits: tuple[Any, Any], eps: float, distance: Any, var: Any, running_var: Any
) -> tuple[Any, Any]:
    """r and d of batch renormalization; `distance` is that of the batch's mean from the running one."""
    r_max, d_max = limits
    plain = (r_max == 1) & (d_max == 0)  # whatever the running statistics are
    sigma = xp.sqrt(running_var + eps)
    r = xp.clip(xp.sqrt(var + eps) / sigma, 1 / r_max, r_max)
    d = xp.clip(distance / sigma, -d_max, d_max)
    return xp.where(plain, 1.0, r), xp.where(plain, 0.0, d)
