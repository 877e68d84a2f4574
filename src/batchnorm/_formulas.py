"""Formulas that both front ends compute: `xp` is numpy, with numbers and arrays, or torch, with tensors."""

from __future__ import annotations

from typing import Any


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
