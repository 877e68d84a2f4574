"""The worked example of the design: five samples of one row, five columns. It must always run, literally."""

from __future__ import annotations

import numpy as np
import pytest

import batchnorm as bn

STANDARDIZED = np.array([-1.4142, -0.7071, 0.0, 0.7071, 1.4142])


@pytest.fixture(params=["float32", "float64"])
def rows(request) -> np.ndarray:
    """Rows [1..5], [2..6], [3..7], [4..8], [5..9], as the shape (5, 1, 5, 1)."""
    return np.add.outer(np.arange(5), np.arange(1, 6)).astype(request.param).reshape(5, 1, 5, 1)


def _is_right(y: np.ndarray, rows: np.ndarray) -> None:
    """Row k is five times (-1.4142, -0.7071, 0, 0.7071, 1.4142)[k]."""
    assert y.shape == (5, 1, 5, 1)
    assert y.dtype == rows.dtype
    expected = np.repeat(STANDARDIZED[:, None], 5, axis=1)
    np.testing.assert_allclose(y[:, 0, :, 0], expected, rtol=0, atol=5e-5)
    exact = (np.arange(5)[:, None] - 2.0) / np.sqrt(2.0 + 1e-5) + np.zeros(5)
    np.testing.assert_allclose(y[:, 0, :, 0], exact, rtol=0, atol=2.5e-7)


def test_batch_norm_1d(rows):
    _is_right(bn.BatchNorm1d(5)(rows), rows)


def test_batch_norm_layer_of_axis_2(rows):
    _is_right(bn.BatchNorm(5, axis=2)(rows), rows)


def test_batch_norm_of_axis_2(rows):
    y, m = bn.batch_norm(rows, axis=2)
    _is_right(y, rows)
    assert m == bn.moments(rows, axis=2)


def test_statistics_of_the_columns(rows):
    m = bn.moments(rows, axis=2)
    assert m.count.tolist() == [5.0] * 5
    assert m.mean.tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert m.m2.tolist() == [10.0] * 5
    assert m.var().tolist() == [2.0] * 5
    np.testing.assert_allclose(m.std(), 1.4142, atol=5e-5)


def test_order_is_kept_inside_a_column_and_lost_between_columns(rows):
    y = bn.BatchNorm1d(5)(rows)[:, 0, :, 0]
    assert (np.diff(y, axis=0) > 0).all()
    np.testing.assert_allclose(np.diff(y, axis=0), 0.7071, atol=5e-5)
    assert len(set(y[0].tolist())) == 1, "1, 2, 3, 4 and 5 of the first row are one value afterwards"


def test_layer_keeps_the_running_statistics_of_the_example(rows):
    layer = bn.BatchNorm1d(5)
    layer(rows)
    np.testing.assert_allclose(layer.running_mean, 0.1 * np.array([3, 4, 5, 6, 7]), rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * 2.5, rtol=1e-6)
    assert int(layer.num_batches_tracked) == 1


def test_nested_lists_are_taken_as_float64():
    y, m = bn.batch_norm([[1.0, 2.0], [3.0, 6.0]])
    assert y.dtype == np.float64
    assert m.mean.tolist() == [2.0, 4.0]
    np.testing.assert_allclose(y, [[-1.0, -1.0], [1.0, 1.0]], atol=1e-5)
