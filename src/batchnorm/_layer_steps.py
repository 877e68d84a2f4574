"""One step of a layer: what its backward needs of a forward, and batches whose parts are normalized each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _inputs
from ._moments import Moments
from ._plan import Axis
from ._prepared import Arguments, Gradients, run_backward, run_forward
from ._renorm import RenormFactors

Array = NDArray[Any]
Index = tuple[slice, ...]


class Forward(NamedTuple):
    """What backward needs of the last forward: references, no copies."""

    x: Array
    axis: Axis
    moments: Moments
    mask: ArrayLike | None
    sample_weight: ArrayLike | None
    residual: ArrayLike | None
    training: bool
    virtual_batch_size: int | None
    renorm_factors: RenormFactors | None
    parts: tuple[tuple[Index, Forward], ...] = ()  # where it was of several, each by itself


def ran(d: _inputs.Data, axis: Axis, a: Arguments, m: Moments, by_batch: bool) -> Forward:
    return Forward(d.x, axis, m, a.mask, a.sample_weight, a.residual, by_batch, a.virtual_batch_size, a.renorm_factors)


def _sum(gradients: list[Array | None]) -> Array | None:
    """Of the parts of a batch; None of a parameter that is not there."""
    found = [g for g in gradients if g is not None]
    return np.sum(found, 0, found[0].dtype) if found else None


def forward_by_parts(
    d: _inputs.Data,
    axis: Axis,
    a: Arguments,
    parts: list[tuple[slice, bool]],
    known_moments: Callable[[_inputs.Data, Arguments], tuple[Moments | None, Arguments]],
    running: Moments,
) -> tuple[Array, Forward, Moments | None]:
    """Normalize each part by itself: with its own moments, or with the running ones, and then it adds nothing.

    Returns y, what backward needs, and the moments that move the running ones, if any.
    """
    weights = _inputs.selection(d, a.mask, a.sample_weight).position_weight
    is_mask = weights is not None and weights.dtype == np.bool_
    once = tuple(slice(0, 1) if i in d.plan.axis else slice(None) for i in range(d.x.ndim))
    y, _ = _inputs.output(None, d, {})
    steps, tables = [], []
    for samples, batch in parts:
        index = (slice(None),) * d.plan.reduced[0] + (samples,)
        part = _inputs.data(d.x[index], d.who, axis, d.plan.channel_shape)
        w = None if weights is None else weights[index][once]
        of_part = a._replace(
            mask=w if is_mask else None,
            sample_weight=None if is_mask else w,
            residual=None if a.residual is None else np.asarray(a.residual)[index],
            virtual_batch_size=a.virtual_batch_size if batch else None,
        )
        known, of_part = known_moments(part, of_part) if batch else (running, of_part)
        y[index], m = run_forward(part, of_part, known)
        steps.append((index, ran(part, axis, of_part, m, batch)))
        tables += [m._table] if batch else []
    gathered = Moments._of_table(np.concatenate(tables, 1)).reduce() if tables else None
    return y, steps[0][1]._replace(x=d.x, parts=tuple(steps)), gathered


def backward(last: Forward, grad_y: ArrayLike, own: Arguments, who: str, shape: tuple[int, ...]) -> Gradients:
    """Differentiate a forward of the layer `who` with its `own` arguments; part by part where it was of several."""
    d = _inputs.data(last.x, who, last.axis, shape)
    if not last.parts:
        a = own._replace(
            mask=last.mask,
            sample_weight=last.sample_weight,
            residual=last.residual,
            virtual_batch_size=last.virtual_batch_size,
            renorm_factors=last.renorm_factors,
        )
        return run_backward(d, grad_y, last.moments, a, last.training)
    _inputs.like(grad_y, "grad_y", d)
    parts = [(index, backward(part, np.asarray(grad_y)[index], own, who, shape)) for index, part in last.parts]
    by_x, by_residual = (_inputs.output(None, d, {})[0] for _ in range(2))
    for index, part in parts:
        by_x[index] = part.x
        if part.residual is not None:
            by_residual[index] = part.residual
    weight, bias = _sum([part.weight for _, part in parts]), _sum([part.bias for _, part in parts])
    return Gradients(by_x, weight, bias, None if last.residual is None else by_residual)
