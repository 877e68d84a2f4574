"""The specification a student reads, `batchnorm._reference`, says what the oracle says."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import CASES, Built, Case, build, exact_forward, exact_statistics

from batchnorm import _options, _reference

WIDE = [case for case in CASES if case.dtype == "float64" and np.prod(case.shape) < 1000]


def _kind(activation) -> tuple[str | None, float]:
    return activation if isinstance(activation, tuple) else (activation, _options.activation_code(activation)[1])


def _parameters(built: Built) -> tuple[np.ndarray, np.ndarray]:
    ones = np.ones(built.case.kept_shape)
    weight = ones if built.weight is None else built.weight
    return weight.ravel(), (0 * ones if built.bias is None else built.bias).ravel()


def _columns(values, case: Case) -> np.ndarray:
    return _reference.arrange(np.asarray(values), case.axis)


def _close(found: np.ndarray, expected: np.ndarray, terms: np.ndarray | float = 1.0) -> None:
    assert (np.abs(found - expected) <= 1e-12 * np.maximum(1.0, terms)).all()


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_the_specification_is_the_oracle(case: Case):
    built = build(case)
    x, grad = _columns(built.x, case), _columns(built.grad, case)
    weight, bias = _parameters(built)
    w = None if built.counted is None else _columns(built.counted, case)[:, 0]
    residual = 0.0 if built.residual is None else _columns(built.residual, case)
    kind = _kind(case.activation)

    count, mean, var = _reference.moments(x, w)
    exact = [oracle.to_float(oracle.kept_shape(part, built.problem)).ravel() for part in exact_statistics(case)]
    np.testing.assert_allclose(count, exact[0], rtol=1e-14)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(var, exact[2] / exact[0], rtol=1e-11, atol=1e-25)

    xhat, z = _reference.normalize(x, mean, var, weight, bias, case.eps, residual)
    forward = exact_forward(case)
    slack = 1e3 if case.data == "constant" else 10.0  # x - mean of a constant is all rounding, times 1/sqrt(eps)
    _close(_reference.activate(z, *kind), _columns(forward.y, case), slack * _columns(forward.scale, case))

    g = grad * _reference.derivative(z, *kind)
    found = _reference.backward(g, xhat, var, weight, case.eps, w)
    gradients = oracle.backward(built.problem, built.grad, exact_statistics(case))
    _close(found[0], _columns(gradients.x, case), slack * _columns(gradients.x_terms, case))
    _close(found[1], gradients.weight.ravel(), slack * gradients.weight_terms.ravel())
    _close(found[2], gradients.bias.ravel(), slack * gradients.bias_terms.ravel())
