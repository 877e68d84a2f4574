"""Batch normalization in exact-enough arithmetic: decimal numbers of 100 digits, by the formulas and nothing else.

The oracle shares nothing with the package: no plan, no moments, no kernel. It takes arrays whose values are exact in
float64 (all four data types are), works in 100 digits, and rounds once, to float64, when it hands a result back.
Weights come already expanded to the shape of x (`None` when every position counts once), so the oracle knows nothing
of broadcasting rules either. Keep the arrays small: a position costs some microseconds.

Python's decimal numbers take a fifth of the time of mpmath's, which has what they lack: erfc and tanh.
"""

from __future__ import annotations

import decimal
import itertools
import math
from decimal import Decimal
from typing import NamedTuple

import mpmath
import numpy as np

DIGITS = 100  # the sums of a constant are exact in so many
_CONTEXT = decimal.Context(
    DIGITS, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[decimal.InvalidOperation, decimal.DivisionByZero]
)
decimal.setcontext(_CONTEXT)  # of the process: those who take the numbers of the oracle compute in them, too


def _of_mpmath(name: str) -> np.ufunc:
    def call(value: Decimal) -> Decimal:
        with mpmath.workdps(DIGITS):
            return _CONTEXT.create_decimal(mpmath.nstr(getattr(mpmath, name)(mpmath.mpf(str(value))), DIGITS))

    return np.frompyfunc(call, 1, 1)


_exact = np.frompyfunc(lambda value: Decimal(float(value)), 1, 1)
_sqrt = np.frompyfunc(Decimal.sqrt, 1, 1)
_exp = np.frompyfunc(Decimal.exp, 1, 1)
_erfc, _tanh = _of_mpmath("erfc"), _of_mpmath("tanh")
_to_float = np.frompyfunc(float, 1, 1)
with mpmath.workdps(DIGITS):
    _PI = Decimal(mpmath.nstr(mpmath.pi, DIGITS))


class Statistics(NamedTuple):
    """Count, mean and M2 per channel, as exact numbers with the reduced axes kept as length one."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray


class Forward(NamedTuple):
    """What the forward pass gives: float64 arrays of the shape of x."""

    y: np.ndarray
    z: np.ndarray  # before the activation
    scale: np.ndarray  # max(1, |weight xhat| + |bias| + |residual|), what errors are measured against


class Backward(NamedTuple):
    """Gradients in float64, and the size of the terms each is made of, to which its error is compared."""

    x: np.ndarray
    weight: np.ndarray  # of the kept shape
    bias: np.ndarray
    residual: np.ndarray
    x_terms: np.ndarray
    weight_terms: np.ndarray
    bias_terms: np.ndarray


class Problem(NamedTuple):
    """One call, as the oracle sees it. `kept` are the channel axes; the optional arrays may be None."""

    x: np.ndarray
    kept: tuple[int, ...]
    eps: float = 1e-5
    sample_weight: np.ndarray | None = None  # of the shape of x
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: object = None


def exact(values) -> np.ndarray:
    """An array of exact numbers; always an array, also without axes; what holds such numbers already stays."""
    values = np.asarray(values)
    if values.dtype == object:
        return values
    return np.asarray(_exact(values.astype(np.float64)), dtype=object)


def to_float(values) -> np.ndarray:
    """Rounded once to float64."""
    return np.asarray(_to_float(values)).astype(np.float64)


def high_and_low(values) -> tuple[np.ndarray, np.ndarray]:
    """An array of exact numbers as the float64 next to it and the float64 next to the rest."""
    high = to_float(values)
    return high, to_float(values - exact(high))


def statistics(problem: Problem) -> Statistics:
    """count = sum w, mean = sum w x / count, m2 = sum w (x - mean)²; a position of weight 0 is not there."""
    if problem.sample_weight is None:
        x = exact(problem.x)
        count = _over_channels(x.size / math.prod(x.shape[axis] for axis in _kept(problem)), problem)
        mean = _sum(x, problem) / count
        return Statistics(count, mean, _sum((x - mean) ** 2, problem))
    x, w = _counted(problem)
    count = _sum(w, problem)
    mean = _sum(w * x, problem) / count
    return Statistics(count, mean, _sum(w * (x - mean) ** 2, problem))


def given_statistics(problem: Problem, count, mean, var) -> Statistics:
    """Statistics that were given, as in evaluation; `mean` and `var` have the kept shape, exact or float."""
    count, mean, var = (_over_channels(value, problem) for value in (count, mean, var))
    return Statistics(count, mean, var * count)


def kept_shape(values: np.ndarray, problem: Problem) -> np.ndarray:
    """Drop the reduced axes, which have length one."""
    return values.reshape([problem.x.shape[axis] for axis in _kept(problem)])


def forward(problem: Problem, given: Statistics | None = None) -> Forward:
    """y = activation(xhat * weight + bias + residual), with the problem's own statistics unless some are given."""
    xhat, z = _normalized(problem, given or statistics(problem))
    y = z if problem.activation is None else _activate(z, problem.activation)[0]
    return Forward(to_float(y), to_float(z), _size_of_terms(problem, to_float(xhat)))


def forward_exact(problem: Problem, x: np.ndarray) -> np.ndarray:
    """y as exact numbers for an `x` of exact numbers, to differentiate the oracle itself."""
    moved = problem._replace(x=x)
    return _activate(_normalized(moved, statistics(moved))[1], problem.activation)[0]


def backward(problem: Problem, grad: np.ndarray, stats: Statistics, *, training: bool = True) -> Backward:
    """Gradients of sum(grad * y). In training the statistics are functions of x; else they are constants."""
    xhat, z = _normalized(problem, stats)
    g = exact(grad)
    if problem.activation is not None:
        g = g * _activate(z, problem.activation)[1]
    a = _rstd(stats, problem) * _weight(problem)
    sum_g, sum_gx = _sum(g, problem), _sum(g * xhat, problem)
    dx = a * g
    if training:
        sample_weight = Decimal(1) if problem.sample_weight is None else exact(problem.sample_weight)
        dx = a * (g - sample_weight / stats.count * (sum_g + xhat * sum_gx))
    terms = _gradient_terms(problem, grad, to_float(g), to_float(xhat), to_float(a), to_float(stats.count), training)
    d_weight, d_bias = (to_float(kept_shape(v, problem)) for v in (sum_gx, sum_g))
    return Backward(to_float(dx), d_weight, d_bias, to_float(g), *terms)


def _gradient_terms(problem: Problem, grad, g, xhat, a, count, training: bool) -> tuple[np.ndarray, ...]:
    """The sizes of the terms of the gradients of x, weight and bias; float64 is enough for a size."""
    size = np.abs(g)
    if problem.activation not in (None, "relu", "relu6"):  # a slope that is not 0 or 1 has an error of its own
        size = np.abs(np.asarray(grad).astype(np.float64)) * _size_of_terms(problem, xhat)
    reduced = tuple(axis for axis in range(problem.x.ndim) if axis not in _kept(problem))
    of_bias = size.sum(axis=reduced, keepdims=True)
    of_weight = (size * np.abs(xhat)).sum(axis=reduced, keepdims=True)
    of_x = size
    if training:
        sample_weight = 1.0 if problem.sample_weight is None else problem.sample_weight
        of_x = size + sample_weight / count * (of_bias + np.abs(xhat) * of_weight)
    return np.abs(a) * of_x, kept_shape(of_weight, problem), kept_shape(of_bias, problem)


def _kept(problem: Problem) -> tuple[int, ...]:
    return tuple(sorted(axis % problem.x.ndim for axis in problem.kept))


def _sum(values: np.ndarray, problem: Problem) -> np.ndarray:
    reduced = tuple(axis for axis in range(problem.x.ndim) if axis not in _kept(problem))
    values = np.broadcast_to(values, problem.x.shape)
    return np.asarray(values.sum(axis=reduced, keepdims=True), dtype=object)


def _counted(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """x and its weights; what does not count is 0, whatever stands there."""
    w = np.asarray(problem.sample_weight, dtype=np.float64)
    return exact(np.where(w > 0, problem.x, np.zeros_like(problem.x))), exact(w)


def _over_channels(values, problem: Problem) -> np.ndarray:
    """An array of the kept shape, ready to broadcast against x."""
    values = exact(values)
    shape = [length if axis in _kept(problem) else 1 for axis, length in enumerate(problem.x.shape)]
    return np.broadcast_to(values, [problem.x.shape[axis] for axis in _kept(problem)]).reshape(shape)


def _weight(problem: Problem) -> np.ndarray:
    return _over_channels(1.0 if problem.weight is None else problem.weight, problem)


def _rstd(stats: Statistics, problem: Problem) -> np.ndarray:
    return Decimal(1) / np.asarray(_sqrt(stats.m2 / stats.count + Decimal(problem.eps)), dtype=object)


def _normalized(problem: Problem, stats: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """xhat, and what goes into the activation."""
    xhat = (exact(problem.x) - stats.mean) * _rstd(stats, problem)
    z = xhat if problem.weight is None else xhat * _weight(problem)
    if problem.bias is not None:
        z = z + _over_channels(problem.bias, problem)
    return xhat, z if problem.residual is None else z + exact(problem.residual)


def _size_of_terms(problem: Problem, xhat: np.ndarray) -> np.ndarray:
    """max(1, |weight xhat| + |bias| + |residual|)"""
    size = np.abs(xhat * to_float(_weight(problem)))
    if problem.bias is not None:
        size = size + np.abs(to_float(_over_channels(problem.bias, problem)))
    if problem.residual is not None:
        size = size + np.abs(problem.residual.astype(np.float64))
    return np.maximum(1.0, size)


def _activate(z: np.ndarray, activation) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative; at a kink the derivative is PyTorch's (0, or the slope of leaky_relu)."""
    zero, one, six = Decimal(0), Decimal(1), Decimal(6)
    positive = (z > zero) * one
    if activation is None:
        return z, z * zero + one
    if activation == "relu":
        return z * positive, positive
    if activation == "relu6":
        return np.minimum(np.maximum(z, zero), six), positive * ((z < six) * one)
    if activation == "silu":
        sigmoid = one / (one + np.asarray(_exp(-z), dtype=object))
        return z * sigmoid, sigmoid * (one + z * (one - sigmoid))
    if activation == "gelu":
        below = np.asarray(_erfc(-z / Decimal(2).sqrt()), dtype=object) / 2
        return z * below, below + z * np.asarray(_exp(-z * z / 2), dtype=object) / (2 * _PI).sqrt()
    if activation == "gelu_tanh":
        root, cubic = (2 / _PI).sqrt(), Decimal("0.044715")
        tanh = np.asarray(_tanh(root * (z + cubic * z**3)), dtype=object)
        return z * (one + tanh) / 2, (one + tanh + z * (one - tanh**2) * root * (one + 3 * cubic * z**2)) / 2
    if activation == "hardswish":
        rising = ((z > -3 * one) * one) * ((z < 3 * one) * one)
        above = (z >= 3 * one) * one
        return z * (rising * (z + 3) / 6 + above), rising * (z / 3 + one / 2) + above
    slope = Decimal({"leaky_relu": "0.01", "elu": "1"}[activation] if isinstance(activation, str) else activation[1])
    if activation == "elu" or activation[0] == "elu":
        e = slope * np.asarray(_exp(np.minimum(z, zero)), dtype=object)
        return positive * z + (one - positive) * (e - slope), positive + (one - positive) * e
    inclination = positive + (one - positive) * slope
    return z * inclination, inclination


# --- long data: correctly rounded sums instead of exact numbers ---


def long_statistics(column: np.ndarray) -> tuple[float, float, float]:
    """Mean (in two parts) and biased variance of a long float32 column, to a few units of the last place of float64."""
    values = column.astype(np.float64)
    high = math.fsum(values) / values.size
    low = math.fsum(itertools.chain(values, itertools.repeat(-high, values.size))) / values.size
    return high, low, math.fsum(((values - high) - low) ** 2) / values.size


def long_forward(columns: np.ndarray, eps: float) -> np.ndarray:
    """xhat of the columns (m, C), in float64."""
    xhat = np.empty(columns.shape)
    for channel in range(columns.shape[1]):
        high, low, var = long_statistics(columns[:, channel])
        xhat[:, channel] = ((columns[:, channel].astype(np.float64) - high) - low) / math.sqrt(var + eps)
    return xhat


# --- how far a result may be from the exact one ---

N1 = 2.5e-7  # float32, and the float32 part of 16-bit results: docs/numerics.md
N4 = 1e-12  # float64
GRADIENT = 4e-7  # float32 gradients, relative to the size of the terms they are made of
# Statistics and the sums of a backward of data whose short sums are in float32; of float64 data and of weights: N4.
MEAN = 1.5e-7  # in standard deviations
M2 = 5e-7  # relative
SUMS = 5e-7  # relative to the sum of the sizes of the terms


def half_ulp(values: np.ndarray, dtype) -> np.ndarray:
    """Half the distance between neighbors of a 16-bit type around `values`; 0 for wider types."""
    name = np.dtype(dtype).name
    if name not in ("float16", "bfloat16"):
        return np.zeros(np.shape(values))
    digits, smallest = (11, -13) if name == "float16" else (8, -125)
    _, exponent = np.frexp(np.abs(values))
    return np.ldexp(0.5, np.maximum(exponent, smallest) - digits)


def bends(activation) -> bool:
    """Whether the derivative changes with z: then its error is relative to z, too."""
    name = activation[0] if isinstance(activation, tuple) else activation
    return name in ("silu", "gelu", "gelu_tanh", "hardswish", "elu")


def forward_bound(result: Forward, dtype, activation) -> np.ndarray:
    """N1, N4 or, in 16 bits, half an ulp more than N1; what bends, whose slope exceeds 1, may double it."""
    relative = N4 if np.dtype(dtype) == np.float64 else N1
    within = relative * result.scale * (2.0 if bends(activation) else 1.0)
    return within + half_ulp(np.abs(result.y) + within, dtype)


def gradient_bound(values: np.ndarray, terms: np.ndarray, dtype) -> np.ndarray:
    """The like for a gradient, relative to the size of its terms."""
    within = (N4 if np.dtype(dtype) == np.float64 else GRADIENT) * terms
    return within + half_ulp(np.abs(values) + within, dtype)


def worst_ratio(found: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> float:
    """The largest error as a multiple of its bound; infinite where `found` is not finite."""
    found = np.asarray(found).astype(np.float64)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    error = np.where(np.isfinite(found), np.abs(found - expected), np.inf)
    ratio = error / np.maximum(np.broadcast_to(bound, expected.shape), np.finfo(np.float64).tiny)
    return float(ratio.max(initial=0.0))


def assert_within(found: np.ndarray, expected: np.ndarray, bound: np.ndarray, what: str = "result") -> float:
    """Fail, naming the worst position, unless every error is within its bound."""
    ratio = worst_ratio(found, expected, bound)
    if ratio > 1:
        error = np.abs(np.asarray(found).astype(np.float64) - expected) / np.broadcast_to(bound, expected.shape)
        where = np.unravel_index(np.nanargmax(error), expected.shape) if expected.ndim else ()
        at = [int(index) for index in where]
        raise AssertionError(
            f"{what}: error is {ratio:.3g} bounds at {at}: {found[where]} instead of {expected[where]}"
        )
    return ratio
