"""The specification: batch normalization in float64 NumPy, in the order of its formulas.

For reading, for the tests, and for `batchnorm bench` to verify what it times; nothing else in the package calls it.
Positions stand on the first axis here, channels on the second: x has shape (m, C). `arrange` brings any shape to this
one.
"""

from __future__ import annotations

from math import erfc, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def arrange(x: NDArray[Any], axis: int | tuple[int, ...]) -> Doubles:
    """Any shape to (m, C): positions row-major over the reduced axes, channels row-major over the channel axes."""
    kept = sorted(i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,)))
    reduced = [i for i in range(x.ndim) if i not in kept]
    channels = int(np.prod([x.shape[i] for i in kept]))
    arranged: Doubles = x.transpose(reduced + kept).reshape(-1, channels).astype(np.float64)
    return arranged


def moments(x: Doubles, w: Doubles | None = None) -> tuple[float, Doubles, Doubles]:
    """Count, mean and biased variance of each channel; w: the weight of each position."""
    w = np.ones(len(x)) if w is None else w
    x = np.where(w[:, None] > 0, x, 0.0)  # a position of weight 0 is not there
    W = w.sum()
    mean = (w[:, None] * x).sum(0) / W
    var = (w[:, None] * (x - mean) ** 2).sum(0) / W
    return float(W), mean, var


def activate(z: Doubles, kind: str | None, slope: float = 0.01) -> Doubles:
    """Apply the activation named `kind`; slope: the number that goes with it."""
    if kind == "relu":
        return np.where(z < 0, 0.0, z)
    if kind == "relu6":
        return np.where(z < 0, 0.0, np.where(z > 6, 6.0, z))
    if kind == "leaky_relu":
        return np.where(z < 0, slope * z, z)
    if kind == "gelu":
        return z * normal_below(z)
    if kind == "gelu_tanh":
        return z * sigmoid(2 * tanh_argument(z))
    if kind == "hardswish":
        return z * np.clip(z + 3, 0, 6) / 6
    if kind == "elu":
        return np.where(z < 0, slope * np.expm1(np.minimum(z, 0)), z)
    return z * sigmoid(z) if kind == "silu" else z


def sigmoid(z: Doubles) -> Doubles:
    """1 / (1 + exp(-z))."""
    s: Doubles = 1 / (1 + np.exp(-z))
    return s


def normal_below(z: Doubles) -> Doubles:
    """Return how likely a standard normal variable is below z."""
    return np.array([erfc(-v / sqrt(2)) / 2 for v in z.flat]).reshape(z.shape)


def tanh_argument(z: Doubles) -> Doubles:
    """sqrt(2 / pi) * (z + 0.044715 z^3): its tanh is close to erf(z / sqrt(2))."""
    return sqrt(2 / pi) * (z + 0.044715 * z**3)


def derivative(z: Doubles, kind: str | None, slope: float = 0.01) -> Doubles:
    """The activation's derivative at z."""
    if kind == "relu":
        return (z > 0).astype(np.float64)
    if kind == "relu6":
        return ((z > 0) & (z < 6)).astype(np.float64)
    if kind == "leaky_relu":
        return np.where(z > 0, 1.0, slope)
    if kind == "silu":
        s = sigmoid(z)
        return s * (1 + z * (1 - s))
    if kind == "gelu":
        return normal_below(z) + z * np.exp(-(z**2) / 2) / sqrt(2 * pi)
    if kind == "gelu_tanh":
        s = sigmoid(2 * tanh_argument(z))
        return s * (1 + z * (1 - s) * 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * z**2))
    if kind == "hardswish":
        return np.where(z <= -3, 0.0, np.where(z < 3, z / 3 + 0.5, 1.0))
    if kind == "elu":
        return np.where(z <= 0, slope * np.exp(np.minimum(z, 0)), 1.0)
    return np.ones_like(z)


def normalize(
    x: Doubles, mean: Doubles, var: Doubles, weight: Doubles, bias: Doubles, eps: float, residual: Doubles | float = 0.0
) -> tuple[Doubles, Doubles]:
    """xhat, and z: what the activation is applied to."""
    xhat = (x - mean) / np.sqrt(var + eps)
    return xhat, weight * xhat + bias + residual


def backward(
    g: Doubles,
    xhat: Doubles,
    var: Doubles,
    weight: Doubles,
    eps: float,
    w: Doubles | None = None,
    training: bool = True,
) -> tuple[Doubles, Doubles, Doubles]:
    """Gradients by x, weight and bias; g is the gradient by z, before the activation; w weighs the positions."""
    w = np.ones(len(g)) if w is None else w
    grad_bias = g.sum(0)
    grad_weight = (g * xhat).sum(0)
    through_moments = w[:, None] / w.sum() * (grad_bias + xhat * grad_weight) if training else 0.0
    return weight / np.sqrt(var + eps) * (g - through_moments), grad_weight, grad_bias
