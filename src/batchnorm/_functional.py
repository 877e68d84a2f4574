"""The functions on arrays: forward and backward."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import _call, _ghosts, _inputs, _missing, _options
from ._frames import frame_of
from ._moments import Moments
from ._options import Activation, NanPolicy
from ._plan import Axis
from ._prepared import Arguments, Gradients, check_moments, run_backward, run_forward
from ._renorm import RenormFactors

Array = NDArray[Any]


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
        y, in x's shape, dtype and memory order; for a table, a table in which all the rest is as before.

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
    check_moments(moments, d, _ghosts.of(virtual_batch_size, d))
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
        the moments; every position is normalized. A mask of x's shape is a mask for each channel; x is then copied
        once, and the gradient by x is computed twice.
    sample_weight
        Non-negative floats, shaped like `mask`: the weight of each position in the moments.
    residual
        Added before the activation; x's shape and dtype.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope), "silu", "gelu"
        (with erf), "gelu_tanh", "hardswish", "elu" (alpha 1) or ("elu", alpha).
    virtual_batch_size
        Size of the ghost batches (Hoffer, Hubara and Soudry 2017): this many samples along the first reduced axis are
        normalized together, with their own moments; the last ghost may have fewer. None: the whole batch.
    nan_policy
        What NaN in x does. "propagate": its whole channel becomes NaN. "omit": it is a missing value, which does not
        count and where y is NaN; each channel needs two values. "raise": ValueError, if it counts. Infinity is a value.
        Default: "propagate"; for tables, whose missing values are NaN, "omit".
    out
        Where to write y; may be `x` or `residual` itself.

    Returns
    -------
    y : ndarray
        In x's shape, dtype and memory order; for a table, a table in which everything else is as it was.
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
