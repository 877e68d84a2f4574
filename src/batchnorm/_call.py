"""The one door into C++, by which every call on arrays goes, in one of two ways.

A common call is offered as it came: arrays of NumPy's of float64, float32 or float16, one channel axis, no mask, no
ghosts. C++ computes it, or declines and has changed nothing. What it declines, and any other call, `_inputs` refuses in
words or makes into what the kernels take. On small inputs, checks in Python take several times as long as the kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._inputs import Data
from ._memory import empty_like
from ._options import ACTIVATIONS

Array = NDArray[Any]
Doubles = NDArray[np.float64]

_ndarray = np.ndarray
_forward, _backward = _native.forward, _native.backward
_NONE = ACTIVATIONS[None]


class Prepared(NamedTuple):
    """What goes with x, checked, as the kernels take it."""

    residual: Array | None = None
    position_weight: Array | None = None  # of positions: bool or float, of x's shape
    weight: Doubles | None = None
    bias: Doubles | None = None
    eps: float = 1.0
    activation: tuple[int, float] = _NONE
    ghost_size: int = 0  # samples of a ghost batch; 0: all are one
    omit: bool = False


def forward(d: Data, y: Array | None, moments: Doubles, gathers: bool, p: Prepared) -> None:
    """Gather moments, where they are not known, and, where there is a y, normalize."""
    residual, position_weight, weight, bias, eps, activation, ghost_size, omit = p
    if d.x.size and not _forward(
        d.buffer,
        y,
        False,
        residual,
        position_weight,
        moments,
        gathers,
        weight,
        bias,
        d.plan.axis,
        eps,
        *activation,
        ghost_size,
        omit,
    ):
        raise _declined(d)


def backward(
    d: Data, grad_y: Array, grad_x: Array, grad_residual: Array | None, sums: Doubles, moments: Doubles, training: bool,
    p: Prepared,
) -> None:  # fmt: skip
    """Differentiate; the sums are those of weight and bias. Moments are constants where it is not training."""
    residual, position_weight, weight, bias, eps, activation, ghost_size, omit = p
    if d.x.size and not _backward(
        grad_y, d.buffer, grad_x, False, residual, grad_residual, position_weight if training else None, moments,
        weight, bias, sums[0, ...], sums[1, ...], d.plan.axis, eps, *activation, training, ghost_size, omit, False,
        False,
    ):  # fmt: skip
        raise _declined(d)


def _declined(d: Data) -> AssertionError:
    return AssertionError(f"{d.who}: the kernels do not take what was prepared for them; please report it")


def _is_common(x: Any) -> bool:
    return type(x) is _ndarray and x.dtype.char in "dfe"  # before a result is allocated in vain


def common_moments(x: Any, axis: Any) -> Doubles | None:
    """Gather the moments of x."""
    if not _is_common(x) or type(axis) is not int or not -x.ndim <= axis < x.ndim:
        return None
    m = np.empty((4, x.shape[axis]))
    return m if _forward(x, None, False, None, None, m, True, None, None, axis, 1.0, 0, 0.0, 0, False) else None


def common_batch_norm(
    x: Any, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any, out: Any
) -> tuple[Array, Doubles] | None:
    """Normalize x with its own moments; return y and them."""
    if not _is_common(x) or type(axis) is not int or not -x.ndim <= axis < x.ndim:
        return None
    m = np.empty((4, x.shape[axis]))
    y = _normalized(x, m, True, weight, bias, axis, eps, residual, activation, out)
    return None if y is None else (y, m)


def common_normalize(
    x: Any, moments: Doubles, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any, out: Any
) -> Array | None:
    """Normalize x with known moments."""
    if not _is_common(x) or type(axis) is not int:
        return None
    return _normalized(x, moments, False, weight, bias, axis, eps, residual, activation, out)


def _normalized(
    x: Array, moments: Doubles, gathers: bool, weight: Any, bias: Any, axis: int, eps: Any, residual: Any,
    activation: Any, out: Any,
) -> Array | None:  # fmt: skip
    act = _NONE if activation is None else _code(activation)
    if act is None or type(eps) is not float:
        return None
    code, slope = act
    y: Array = empty_like(x) if out is None else out
    done = _forward(
        x, y, out is not None, residual, None, moments, gathers, weight, bias, axis, eps, code, slope, 0, False
    )
    return y if done else None


def common_backward(
    grad_y: Any, x: Any, moments: Doubles, weight: Any, bias: Any, axis: Any, eps: Any, residual: Any, activation: Any,
    training: bool, out: Any = None,
) -> tuple[Array, Array | None, Array | None, Array | None] | None:  # fmt: skip
    """Gradients by x, weight, bias and residual, given the forward's moments."""
    act = _NONE if activation is None else _code(activation)
    if act is None or not _is_common(x) or type(axis) is not int or type(eps) is not float:
        return None
    if not (weight is None or type(weight) is _ndarray) or not (bias is None or type(bias) is _ndarray):
        return None
    code, slope = act
    grad_x = empty_like(x) if out is None else out
    grad_residual = None if residual is None else empty_like(x)
    grad_weight = None if weight is None else np.empty(weight.shape, weight.dtype)
    grad_bias = None if bias is None else np.empty(bias.shape, bias.dtype)
    done = _backward(
        grad_y, x, grad_x, out is not None, residual, grad_residual, None, moments, weight, bias, grad_weight,
        grad_bias, axis, eps, code, slope, training, 0, False, False, False,
    )  # fmt: skip
    return (grad_x, grad_weight, grad_bias, grad_residual) if done else None


def _code(activation: Any) -> tuple[int, float] | None:
    return ACTIVATIONS.get(activation) if type(activation) is str else None
