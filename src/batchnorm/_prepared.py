"""The way that takes any call: arguments are checked and prepared, then C++ computes. Functions and layers share it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _call, _ghosts, _inputs, _missing, _native, _options, _renorm
from ._batch_moments import gathered
from ._moments import Moments
from ._options import Activation
from ._renorm import RenormFactors

Array = NDArray[Any]


class Gradients(NamedTuple):
    """Gradients of a loss; None for a parameter or residual that was not given."""

    x: Array
    weight: Array | None
    bias: Array | None
    residual: Array | None


class Arguments(NamedTuple):
    """What a caller may say around x, not yet checked; functions and layers share it."""

    weight: ArrayLike | None
    bias: ArrayLike | None
    eps: float
    mask: ArrayLike | None = None
    sample_weight: ArrayLike | None = None
    residual: ArrayLike | None = None
    activation: Activation = None
    out: Array | None = None
    virtual_batch_size: int | None = None
    renorm_factors: RenormFactors | None = None
    nan_policy: str = "propagate"


def run_moments(d: _inputs.Data, a: Arguments) -> Moments:
    """Gather the moments that `run_forward` would normalize with, and refuse what it would."""
    s, ghosts = _inputs.selection(d, a.mask, a.sample_weight), _ghosts.of(a.virtual_batch_size, d)
    _ghosts.trainable(d, s, ghosts)
    return _checked_moments(gathered(d, s, ghosts), d, s, ghosts, "propagate")


def run_forward(d: _inputs.Data, a: Arguments, m: Moments | None = None) -> tuple[Array, Moments]:
    """Normalize with the moments m, or, where there are none, with the input's own: checks first, then the kernel."""
    s, ghosts, policy, p = _prepared(d, a)
    known = m
    if m is None:
        _ghosts.trainable(d, s, ghosts)
        if s.cells is not None or (policy != "propagate" and a.out is not None):  # what is refused is not written to
            known = _checked_moments(gathered(d, s, ghosts, policy == "omit"), d, s, ghosts, policy)
    elif policy == "raise":
        _missing.refuse(d, s, gathered(d, s, None).mean)
    if known is None:
        table = np.empty((4, *_ghosts.rows(ghosts), *d.plan.channel_shape))
    else:
        table = known._table
        p, _ = _with_factors(p, a, known, d.who)
    y, buffer = _inputs.output(a.out, d, _operands(d, a))
    _call.forward(d, buffer, table, known is None, p)
    return y, _checked_moments(Moments._of_table(table), d, s, ghosts, policy) if known is None else known


def _prepared(d: _inputs.Data, a: Arguments) -> tuple[_inputs.Selection, _ghosts.Ghosts | None, str, _call.Prepared]:
    """Check what goes with x: the positions that count, the ghosts, what NaN does, and all as the kernels take it."""
    gamma, beta = _inputs.parameter(a.weight, "weight", d), _inputs.parameter(a.bias, "bias", d)
    s = _inputs.selection(d, a.mask, a.sample_weight)
    r = None if a.residual is None else _inputs.like(a.residual, "residual", d)
    act, eps = _options.checked_activation(a.activation, d.who), _options.EPS.checked(a.eps, d.who)
    ghosts, policy = _ghosts.of(a.virtual_batch_size, d), _missing.policy(a.nan_policy, d.who)
    p = _call.Prepared(r, s.position_weight, gamma, beta, eps, act, _ghosts.size(ghosts), policy == "omit")
    return s, ghosts, policy, p


def _with_factors(p: _call.Prepared, a: Arguments, m: Moments, who: str) -> tuple[_call.Prepared, RenormFactors | None]:
    """Weight and bias that do what the factors of renormalization do, too."""
    factors = _renorm.checked_factors(a.renorm_factors, m, who)
    if factors is None:
        return p, None
    weight, bias = factors.affine(p.weight, p.bias)
    return p._replace(weight=weight, bias=bias), factors


def _checked_moments(
    m: Moments, d: _inputs.Data, s: _inputs.Selection, ghosts: _ghosts.Ghosts | None, policy: str
) -> Moments:
    """The moments of an input, unless what is missing is refused."""
    if policy == "raise":
        _missing.refuse(d, s, m.mean)
    if policy == "omit" or s.cells is not None:
        mask = _inputs.as_mask(s)
        if mask is s:
            _missing.trainable(d, m.count)
        elif not (m.m2 > 0).all():  # a channel of one value has an M2 of 0, whatever its weight
            _missing.trainable(d, gathered(d, mask, ghosts, policy == "omit").count)
    return m


def run_backward(d: _inputs.Data, grad_y: ArrayLike, m: Moments, a: Arguments, training: bool) -> Gradients:
    """Differentiate `run_forward`: checks first, then the kernel."""
    g = _inputs.like(grad_y, "grad_y", d)
    s, ghosts, policy, p = _prepared(d, a if training else a._replace(virtual_batch_size=None))
    check_moments(m, d, ghosts)
    if training:
        _ghosts.trainable(d, s, ghosts)
    if policy == "raise":
        _missing.refuse(d, s, gathered(d, s, None).mean)
    p, factors = _with_factors(p, a, m, d.who)
    grad_x, buffer = _inputs.output(a.out, d, {**_operands(d, a), "grad_y": grad_y})
    grad_r, r_buffer = (None, None) if p.residual is None else _inputs.output(None, d, {})
    sums = np.zeros((2, *_ghosts.rows(ghosts), *d.plan.channel_shape))
    if training and s.cells is not None:  # what does not count moves its own output and nothing else
        alone, to = _inputs.output(None, d, {})
        _call.backward(d, g, to, r_buffer, sums, m._table, False, p)
    _call.backward(d, g, buffer, r_buffer, sums, m._table, bool(training), p)
    if training and s.cells is not None:
        np.copyto(grad_x, alone, where=~s.cells)
    if factors is not None:
        sums[0] = factors.grad_weight(sums[0], sums[1])
    if ghosts is not None:
        of_ghosts, sums = sums, np.empty((2, *d.plan.channel_shape))
        _native.merge(of_ghosts, sums)
    return Gradients(grad_x, _in_dtype_of(a.weight, sums[0]), _in_dtype_of(a.bias, sums[1]), grad_r)


def check_moments(m: object, d: _inputs.Data, ghosts: _ghosts.Ghosts | None) -> None:
    """Refuse what are no moments, or not those of x's channels."""
    if not isinstance(m, Moments):
        raise TypeError(
            f"{d.who}: moments must be Moments (from bn.moments, bn.batch_norm or "
            f"bn.Moments.from_statistics(mean, var)); got {type(m).__name__}"
        )
    _inputs.known_moments(m.shape, m.count, d, _ghosts.rows(ghosts))


def _operands(d: _inputs.Data, a: Arguments) -> dict[str, object]:
    """What an output may not overlap in part."""
    return {
        "x": d.x,
        "residual": a.residual,
        "weight": a.weight,
        "bias": a.bias,
        "mask": a.mask,
        "sample_weight": a.sample_weight,
    }


def _in_dtype_of(parameter: ArrayLike | None, gradient: Array) -> Array | None:
    return None if parameter is None else np.asarray(gradient, dtype=np.asarray(parameter).dtype)
