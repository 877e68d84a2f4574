"""The common call, checked and run natively in one go; None for any other, which `_inputs` then takes or refuses.

On small inputs, checks in Python take several times as long as the kernels. The common call has NumPy
arrays of float64, float32 or float16, one channel axis, no mask, no ghosts. Its results are those of the long way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._memory import empty_like
from ._options import ACTIVATIONS

Array = NDArray[Any]
Doubles = NDArray[np.float64]

_ndarray = np.ndarray
_forward, _backward = _native.usual.forward, _native.usual.backward


_NONE = ACTIVATIONS[None]


def _is_usual(x: Any) -> bool:
    return type(x) is _ndarray and x.dtype.char in "dfe"  # before a result is allocated in vain


def moments(x: Any, axis: Any) -> Doubles | None:
    """Gather the table of moments of x."""
    if not _is_usual(x) or type(axis) is not int or not -x.ndim <= axis < x.ndim:
        return None
    table = np.empty((4, x.shape[axis]))
    return table if _forward(x, None, False, None, table, True, None, None, axis, 1.0, 0, 0.0) else None


def batch_norm(
    x: Any, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any, out: Any
) -> tuple[Array, Doubles] | None:
    """Normalize x with its own moments; return y and their table."""
    if not _is_usual(x) or type(axis) is not int or not -x.ndim <= axis < x.ndim:
        return None
    table = np.empty((4, x.shape[axis]))
    y = _normalized(x, table, True, weight, bias, axis, eps, residual, activation, out)
    return None if y is None else (y, table)


def normalize(
    x: Any, table: Doubles, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any, out: Any
) -> Array | None:
    """Normalize x with the moments of a table."""
    if not _is_usual(x) or type(axis) is not int:
        return None
    return _normalized(x, table, False, weight, bias, axis, eps, residual, activation, out)


def _normalized(
    x: Array, table: Doubles, gathers: bool, weight: Any, bias: Any, axis: int, eps: Any, residual: Any,
    activation: Any, out: Any,
) -> Array | None:  # fmt: skip
    act = _NONE if activation is None else _code(activation)
    if act is None or type(eps) is not float:
        return None
    code, slope = act
    y: Array = empty_like(x) if out is None else out
    done = _forward(x, y, out is not None, residual, table, gathers, weight, bias, axis, eps, code, slope)
    return y if done else None


def backward(
    grad_y: Any, x: Any, table: Doubles, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any,
    training: bool, out: Any = None,
) -> tuple[Array, Array | None, Array | None, Array | None] | None:  # fmt: skip
    """Gradients by x, weight, bias and residual, given the table of the forward's moments."""
    act = _NONE if activation is None else _code(activation)
    if act is None or not _is_usual(x) or type(axis) is not int or type(eps) is not float:
        return None
    if not (weight is None or type(weight) is _ndarray) or not (bias is None or type(bias) is _ndarray):
        return None
    code, slope = act
    grad_x = empty_like(x) if out is None else out
    grad_residual = None if residual is None else empty_like(x)
    grad_weight = None if weight is None else np.empty(weight.shape, weight.dtype)
    grad_bias = None if bias is None else np.empty(bias.shape, bias.dtype)
    done = _backward(
        grad_y, x, grad_x, out is not None, residual, grad_residual, table, weight, bias, grad_weight, grad_bias, axis,
        eps, code, slope, training,
    )  # fmt: skip
    return (grad_x, grad_weight, grad_bias, grad_residual) if done else None


def _code(activation: Any) -> tuple[int, float] | None:
    return ACTIVATIONS.get(activation) if type(activation) is str else None
