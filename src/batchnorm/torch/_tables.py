"""Tables of statistics as tensors, on any device: moments (4, C) or, of G parts, (4, G, C); sums (2, C) or (2, G, C).

Rows of moments: count, mean, what rounding the mean left out, sum of squared deviations. Rows of sums: of g·xhat and
of g. Parts become one in the canonical tree of the kernels (cpp/core/canonical.h), operation by operation, so with
its bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor


def of_statistics(count: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Moments of that many positions with a given mean and biased variance; a count of 0 is nothing at all."""
    n, m, v = (t.detach().to(torch.float64) for t in (count, mean, var))
    counts = n > 0
    zero = torch.zeros_like(m)
    return torch.stack([n.expand_as(m), torch.where(counts, m, zero), zero, torch.where(counts, v * n, zero)])


def merge_moments(parts: Tensor) -> Tensor:
    """Moments (4, G, C) of parts to those of the whole, (4, C)."""
    return _up_the_tree(parts, _merge)


def add_sums(parts: Tensor) -> Tensor:
    """Sums (2, G, C) of parts to those of the whole, (2, C)."""
    return _up_the_tree(parts, torch.add)


def mean_and_variance(table: Tensor, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Of moments (4, C), in float64."""
    return table[1], table[3] / (table[0] - correction)


def _up_the_tree(parts: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join neighbours, level by level; an odd one is carried up."""
    if parts.shape[1] == 0:
        return parts.new_zeros(parts.shape[0], parts.shape[2])
    while parts.shape[1] > 1:
        even = parts.shape[1] // 2 * 2
        joined = join(parts[:, 0:even:2], parts[:, 1:even:2])
        parts = torch.cat([joined, parts[:, even:]], 1)
    return parts[:, 0]


def _merge(a: Tensor, b: Tensor) -> Tensor:
    """Chan, Golub and LeVeque (1983), with the mean in two doubles."""
    (count_a, mean_a, low_a, m2_a), (count_b, mean_b, low_b, m2_b) = a, b
    count = count_a + count_b
    delta = (mean_b - mean_a) + (low_b - low_a)
    fraction = count_b / count
    mean, low = _two_sum(mean_a, low_a + delta * fraction)
    m2 = (m2_a + m2_b) + (delta * delta) * (count_a * fraction)
    finite = torch.isfinite(delta)
    pooled = (count_a * mean_a + count_b * mean_b) / count
    merged = torch.stack(
        [count, torch.where(finite, mean, pooled), torch.where(finite, low, 0.0), torch.where(finite, m2, torch.nan)]
    )
    return torch.where(count_a == 0, b, torch.where(count_b == 0, a, merged))


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Knuth's exact sum: high + low = a + b; low is 0 where the sum is not finite."""
    high = a + b
    rest = high - a
    low = (a - (high - rest)) + (b - rest)
    return high, torch.where(torch.isfinite(low), low, 0.0)
