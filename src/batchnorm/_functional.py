"""The functions: moments and apply on arrays, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _call, _ghosts, _inputs, _missing, _native, _options, _renorm
from ._frames import frame_of
from ._moments import Moments, gathered
from ._options import Activation, NanPolicy
from ._plan import Axis
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
    p = _call.Prepared(r, s.weights, gamma, beta, eps, act, _ghosts.size(ghosts), policy == "omit")
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
    _check_moments(m, d, ghosts)
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


def _check_moments(m: object, d: _inputs.Data, ghosts: _ghosts.Ghosts | None) -> None:
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


def normalize(
    x: Any,
    moments: Moments,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    virtual_batch_size: int | None = None,
    renorm_factors: RenormFactors | None = None,
    nan_policy: NanPolicy = "propagate",
    out: Array | None = None,
) -> Any:
    """Normalize `x` with known moments: batch normalization in evaluation.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the biased variance
    ``var = M2 / count`` (Ioffe and Szegedy 2015, algorithm 2).

    Parameters
    ----------
    x
        Data of float64, float32, float16 or bfloat16; any shape and strides; may be empty. Or a table, a DataFrame of
        pandas or polars or a Table of pyarrow: its columns of the moments' names, or all of numbers.
    moments
        One value for each channel; with `virtual_batch_size`, for each ghost and channel.
    weight, bias
        Scale (gamma) and shift (beta): float32 or float64, one for each channel. Default: 1 and 0.
    axis
        The axis, or axes, of the channels.
    eps
        Added to the variance; positive.
    residual
        Added before the activation; x's shape and dtype.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope), "silu", "gelu"
        (with erf), "gelu_tanh", "hardswish", "elu" (alpha 1) or ("elu", alpha).
    virtual_batch_size
        As `moments` was given it: each ghost batch is normalized with its own row of them.
    renorm_factors
        Of batch renormalization, from `Renorm.factors`: ``(xhat * r + d) * weight + bias`` instead of
        ``xhat * weight + bias``.
    nan_policy
        "propagate" or "omit": where x is NaN, so is y, and nowhere else; "raise": ValueError where x has NaN.
    out
        Where to write y; may be `x` or `residual` itself.

    Returns
    -------
    ndarray
        y, in x's shape, dtype and memory order. Of a table: a table, with all else as it was.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks a rule above; nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> moments = bn.Moments.from_statistics(mean=[1.0], var=[4.0])
    >>> np.round(bn.normalize(np.array([[3.0], [5.0]]), moments), 4)
    array([[1.],
           [2.]])
    """
    if type(moments) is Moments and virtual_batch_size is None and renorm_factors is None and nan_policy == "propagate":
        common = _call.common_normalize(x, moments._table, weight, bias, axis, eps, residual, activation, out)
        if common is not None:
            return common
    frame = frame_of(x, "normalize", moments.names if isinstance(moments, Moments) else None)
    if frame is not None:
        frame.warn("normalize")
        _inputs.no_out(out, "normalize")
    d = _inputs.data(x if frame is None else frame.values, "normalize", axis)
    arguments = Arguments(
        weight, bias, eps, None, None, residual, activation, out, virtual_batch_size, renorm_factors, nan_policy
    )
    _check_moments(moments, d, _ghosts.of(virtual_batch_size, d))
    y = run_forward(d, arguments, moments)[0]
    return y if frame is None else frame.like(y)


def batch_norm(
    x: Any,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    virtual_batch_size: int | None = None,
    nan_policy: NanPolicy | None = None,
    out: Array | None = None,
) -> tuple[Any, Moments]:
    """Normalize `x` with its own moments: batch normalization in training.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)`` with the mean and biased variance of
    each channel over the positions that count (Ioffe and Szegedy 2015, algorithm 1). The same as `moments` and then
    `normalize`, with the second pass over x served from cache where it fits.

    Parameters
    ----------
    x
        Data of float64, float32, float16 or bfloat16; any shape and strides; at least two positions a channel. Or a
        table, a DataFrame of pandas or polars or a Table of pyarrow: its columns of numbers.
    weight, bias
        Scale (gamma) and shift (beta): float32 or float64, one for each channel. Default: 1 and 0.
    axis
        The axis, or axes, of the channels; the others are averaged over.
    eps
        Added to the variance; positive.
    mask
        Bool; broadcastable to x without its channel axes (or with them as length one). False positions do not count in
        the moments; every position is normalized. Or of x's shape, a mask per cell, for each channel its own: then x is
        copied once, and the gradient by x computed twice.
    sample_weight
        Non-negative floats, shaped like `mask`: the weight of each position in the moments.
    residual
        Added before the activation; x's shape and dtype.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope), "silu", "gelu"
        (with erf), "gelu_tanh", "hardswish", "elu" (alpha 1) or ("elu", alpha).
    virtual_batch_size
        Ghost batches (Hoffer, Hubara and Soudry 2017): normalize so many samples of the first reduced axis at a time,
        each ghost with its own moments; the last one may have fewer. None: the whole batch.
    nan_policy
        What NaN in x does: "propagate" to all of its channel; "omit": it is a missing value, which its channel's
        moments do not count and for which y is NaN; or "raise" ValueError, where it counts. With "omit" each channel
        needs two values. Infinity is a value. Default: "propagate"; of tables, whose missing values are NaN, "omit".
    out
        Where to write y; may be `x` or `residual` itself.

    Returns
    -------
    y : ndarray
        In x's shape, dtype and memory order; of a table, a table with all else as it was.
    moments : Moments
        Of the positions that count; with ghosts, a row for each of them (`moments.reduce()` are those of the batch).

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks a rule above; nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> y, moments = bn.batch_norm(np.array([[1.0, 10.0], [3.0, 30.0]]), weight=np.array([1.0, 2.0]))
    >>> np.round(y, 4)
    array([[-1., -2.],
           [ 1.,  2.]])
    """
    if mask is None and sample_weight is None and virtual_batch_size is None and nan_policy in _missing.COMMON:
        common = _call.common_batch_norm(x, weight, bias, axis, eps, residual, activation, out)
        if common is not None:
            return common[0], Moments._of_table(common[1])
    frame = frame_of(x, "batch_norm")
    policy = _options.nan_policy_of(nan_policy, frame is not None)
    arguments = Arguments(
        weight, bias, eps, mask, sample_weight, residual, activation, out, virtual_batch_size, nan_policy=policy
    )
    if frame is None:
        return run_forward(_inputs.data(x, "batch_norm", axis), arguments)
    frame.warn("batch_norm")
    _inputs.no_out(out, "batch_norm")
    y, moments = run_forward(_inputs.data(frame.values, "batch_norm", axis), arguments)
    return frame.like(y), moments.named(frame.named(axis))


def batch_norm_backward(
    grad_y: ArrayLike,
    x: ArrayLike,
    moments: Moments,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = 1,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: Activation = None,
    training: bool = True,
    virtual_batch_size: int | None = None,
    renorm_factors: RenormFactors | None = None,
    nan_policy: NanPolicy = "propagate",
    out: Array | None = None,
) -> Gradients:
    """Gradients of a loss through `batch_norm` or `normalize`, given its gradient by y.

    With ``a = weight / sqrt(var + eps)``, ``g`` the gradient before the activation, and W the sum of the weights w::

        bias    sum g
        weight  sum g * xhat
        x       a * (g - w / W * (sum g + xhat * sum g * xhat))     training
        x       a * g                                               evaluation

    Sums run over all positions; without mask and sample_weight, w is 1 and W is m.

    Parameters
    ----------
    grad_y
        dL/dy; x's shape and dtype.
    x, moments
        The forward's input, and the moments it used: in training those that `batch_norm` returned.
    weight, bias, axis, eps, mask, sample_weight, residual, activation
        As given to the forward. With an activation, what it was applied to is computed again from x.
    training
        False: the moments came from elsewhere (running statistics) and are constants; `virtual_batch_size` is ignored
        then.
    virtual_batch_size, renorm_factors
        As given to the forward. The factors r and d are constants (Ioffe 2017, section 3): the gradient by weight
        is ``r * sum g xhat + d * sum g``.
    nan_policy
        As given to the forward. "omit": where x is NaN gradients by x and residual are 0, no sum has a term, whatever
        grad_y is there, and W is what its channel counts.
    out
        Where to write dL/dx; may be `grad_y` or `x` itself.

    Returns
    -------
    Gradients
        ``(x, weight, bias, residual)``; x and residual in x's dtype, weight and bias in their own. None where the
        argument was None.

    Raises
    ------
    TypeError, ValueError
        Where an argument breaks a rule above; nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, moments = bn.batch_norm(x)
    >>> g = bn.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), x, moments)
    >>> bool(abs(g.x.sum()) < 1e-12)  # shifting x by a constant changes nothing
    True
    """
    plain = mask is None and sample_weight is None and nan_policy == "propagate"
    if plain and virtual_batch_size is None and renorm_factors is None and type(moments) is Moments:
        common = _call.common_backward(
            grad_y, x, moments._table, weight, bias, axis, eps, residual, activation, bool(training), out
        )
        if common is not None:
            return Gradients(*common)
    d = _inputs.data(x, "batch_norm_backward", axis)
    arguments = Arguments(
        weight, bias, eps, mask, sample_weight, residual, activation, out, virtual_batch_size, renorm_factors,
        nan_policy,
    )  # fmt: skip
    return run_backward(d, grad_y, moments, arguments, training)


def _in_dtype_of(parameter: ArrayLike | None, gradient: Array) -> Array | None:
    return None if parameter is None else np.asarray(gradient, dtype=np.asarray(parameter).dtype)


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use, its caller's among them; results do not depend on it.

    >>> import batchnorm as bn
    >>> before = bn.get_num_threads()
    >>> bn.set_num_threads(1)
    >>> bn.get_num_threads()
    1
    >>> bn.set_num_threads(before)
    """
    _native.set_num_threads(checked_threads(threads))


def get_num_threads() -> int:
    """How many threads a call may use; at first ``OMP_NUM_THREADS``, else the CPUs this process may run on."""
    return _native.get_num_threads()


def checked_threads(threads: object) -> int:
    """Check a number of threads."""
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"the number of threads must be an int; got {threads!r} of type {type(threads).__name__}")
    if not 1 <= threads <= 4096:
        raise ValueError(f"the number of threads must be from 1 to 4096; got {threads}")
    return int(threads)
