"""NaN and infinity propagate as in PyTorch's forward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import batchnorm as bn
from batchnorm import _options
from batchnorm.torch import _activations

PLACES = list(itertools.product((np.nan, np.inf, -np.inf), ("float32", "float64")))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize(("value", "dtype"), PLACES)
def test_training_with_non_finite_values(value, dtype, layout, rng):
    x = rng.standard_normal((4, 3, 5, 5)).astype(dtype)
    x[1, 1, 2, 3] = value
    if layout == "channels-last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    y, m = bn.batch_norm(x)
    expected = F.batch_norm(torch.from_numpy(x), None, None, training=True).numpy()
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_allclose(y[:, ::2], expected[:, ::2], rtol=1e-4, atol=1e-5)
    assert np.isnan(m.var()).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "activation", [None, "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hardswish", "elu"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_evaluation_with_non_finite_values(dtype, activation):
    """NaN stays NaN, infinity stays infinity of its sign, through the activation too; also as running statistics."""
    x = np.array([np.nan, np.inf, -np.inf, 3.0, -3.0], dtype=dtype)[:, None] + np.zeros(7, dtype=dtype)
    mean = np.array([0.5, np.nan, np.inf, -np.inf, 0.5, 0.5, 0.5])
    var = np.array([2.0, 1.0, 1.0, 1.0, np.inf, np.nan, 0.0])
    weight = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    y = bn.normalize(x, bn.Moments.from_statistics(mean, var), weight, np.zeros(7), activation=activation)
    given = (torch.from_numpy(part.astype(dtype)) for part in (mean, var, weight))
    mean_t, var_t, weight_t = given
    expected = F.batch_norm(torch.from_numpy(x), mean_t, var_t, weight_t, torch.zeros_like(weight_t), training=False)
    code = _options.checked_activation(activation, "")
    expected = _activations.activate(expected.double(), *code).numpy()  # F.gelu of infinity is NaN in float32
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(y), finite)
    assert np.array_equal(np.where(finite, 0, y), np.where(finite, 0, expected), equal_nan=True)
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-5, atol=1e-6)


def test_non_finite_gradients_stay_in_their_channel(rng):
    x, grad = rng.standard_normal((2, 6, 3))
    grad[2, 1] = np.nan
    found = bn.batch_norm_backward(grad, x, bn.moments(x), np.ones(3), np.zeros(3))
    assert np.isnan(found.x[:, 1]).all()
    assert np.isfinite(found.x[:, ::2]).all()
    assert np.isnan(found.weight).tolist() == np.isnan(found.bias).tolist() == [False, True, False]
