"""N1 and the bounds of statistics and gradients for data that is hard on sums, whatever its distribution and order."""

from __future__ import annotations

import functools
from typing import NamedTuple

import distributions
import numpy as np
import oracle
import pytest
from cases import DTYPES, lay_out

import batchnorm as bn

LENGTHS = (5, 16, 17, 33, 64, 100, 128, 200, 777, 2048, 2100, 9000)
EPS = 1e-5


class Exact(NamedTuple):
    """What the columns of (m, C) should give, all in extended precision."""

    mean: np.ndarray
    mean_low: np.ndarray
    m2: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dx_terms: np.ndarray
    sums: np.ndarray  # of g and of g xhat
    sums_terms: np.ndarray


def _exact(x: np.ndarray, g: np.ndarray) -> Exact:
    """By the formulas in long double, whose last place is 2^-63 or less.

    The mean is a sum of two, the second the mean of what the first leaves, so that it is good to some 2^-63 of the
    spread and not only of the offset. Every other step loses a few units of 2^-63 of the sizes summed, a millionth of
    any bound here.
    """
    x, g = x.astype(np.longdouble), g.astype(np.longdouble)
    mean = x.mean(0)
    rest = (x - mean).mean(0)
    d = (x - mean) - rest
    m2 = (d * d).sum(0)
    rstd = 1 / np.sqrt(m2 / len(x) + np.longdouble(EPS))
    y = d * rstd
    sums, sizes = np.stack([g.sum(0), (g * y).sum(0)]), np.stack([np.abs(g).sum(0), np.abs(g * y).sum(0)])
    dx = rstd * (g - (sums[0] + y * sums[1]) / len(x))
    terms = rstd * (np.abs(g) + (sizes[0] + np.abs(y) * sizes[1]) / len(x))
    return Exact(mean, rest, m2, y, dx, terms, sums, sizes)


@functools.cache
def _problem(m: int, dtype: str) -> tuple[np.ndarray, np.ndarray, list[str], Exact]:
    rng = np.random.default_rng(m)
    x, names = distributions.draw(rng, m, 2 if m > 1000 else 8)
    kept = np.abs(x).max(0) < float(np.finfo("float32").max if dtype != "float16" else 6e4)
    x = x[:, kept].astype(DTYPES[dtype])
    g = (rng.standard_normal(x.shape) + rng.integers(0, 2, x.shape[1])).astype(DTYPES[dtype])
    return x, g, [name for name, k in zip(names, kept, strict=True) if k], _exact(x.astype(float), g.astype(float))


def _worst(error: np.ndarray, bound: np.ndarray, names: list[str], what: str) -> float:
    """The largest error as a multiple of its bound; fails, naming the column, where that exceeds 1."""
    ratio = np.asarray(error / np.maximum(bound, np.finfo(np.float64).tiny), dtype=np.float64)
    columns = np.where(np.isfinite(ratio), ratio, np.inf).reshape(-1, len(names)).max(0)
    assert columns.max() <= 1, f"{what}: {columns.max():.3g} bounds off in {names[int(columns.argmax())]!r}"
    return float(columns.max())


def test_the_oracle_is_the_oracle():
    """The long doubles are the oracle's 100 digits, for a column of every kind."""
    x, g, _, exact = _problem(33, "float32")
    x, g, exact = x[:, ::8], g[:, ::8], Exact(*(part[..., ::8] for part in exact))
    problem = oracle.Problem(x, (1,), EPS)
    statistics = oracle.statistics(problem)
    y, gradients = oracle.forward(problem, statistics), oracle.backward(problem, g, statistics)
    np.testing.assert_allclose(y.y, exact.y.astype(float), rtol=1e-13, atol=1e-13)
    assert (np.abs(gradients.x - exact.dx) <= 1e-13 * exact.dx_terms).all()
    np.testing.assert_allclose(gradients.x_terms, exact.dx_terms.astype(float), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_distribution(dtype, measured):
    """y within N1 of float32 (and half a place of 16 bits), statistics and gradients within their bounds."""
    for m in LENGTHS if dtype == "float32" else LENGTHS[::3]:
        x, g, names, exact = _problem(m, dtype)
        y, moments = bn.batch_norm(x, eps=EPS)
        gradients = bn.batch_norm_backward(g, x, moments, eps=EPS)
        std = np.sqrt(exact.m2 / m)
        found = {
            "mean": (np.abs((moments.mean - exact.mean) + (moments.mean_low - exact.mean_low)), oracle.MEAN * std),
            "M2": (np.abs(moments.m2 - exact.m2), oracle.M2 * exact.m2),
        }
        within = oracle.N1 * np.maximum(1, np.abs(exact.y.astype(float)))
        found["y"] = np.abs(y.astype(float) - exact.y), within + oracle.half_ulp(np.abs(exact.y) + within, x.dtype)
        bound = oracle.gradient_bound(exact.dx.astype(float), exact.dx_terms.astype(float), x.dtype)
        found["dx"] = np.abs(gradients.x.astype(float) - exact.dx), bound
        for name, (error, bound) in found.items():
            ratio = _worst(error, np.asarray(bound, dtype=float), names, f"{name}, {dtype}, m = {m}")
            measured.record(f"distributions, {dtype}", name, ratio)
        if dtype == "float32":
            _sums(g, x, moments, exact, names, measured)


def _sums(g, x, moments, exact: Exact, names: list[str], measured) -> None:
    """The gradients of the parameters, taken in float64."""
    ones = np.ones(x.shape[1])
    found = bn.batch_norm_backward(g, x, moments, ones, ones, eps=EPS)
    error = np.abs(np.stack([found.bias, found.weight]) - exact.sums)
    ratio = _worst(error, oracle.SUMS * exact.sums_terms, names, f"sums, m = {len(x)}")
    measured.record("distributions, float32", "sums", ratio)


@pytest.mark.parametrize("layout", ["channels-last", "sliced"])
def test_every_distribution_in_other_layouts(layout):
    """The same bits, so the same errors: seen once for a shape with long and short runs."""
    x, _, _, _ = _problem(2100, "float32")
    images = np.ascontiguousarray(x.reshape(21, 100, -1).swapaxes(1, 2))
    y, m = bn.batch_norm(images)
    y_other, m_other = bn.batch_norm(lay_out(images, layout, (1,)))
    assert m_other == m
    assert np.array_equal(y_other, y)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_more_columns_of_every_distribution(seed, measured):
    """N1 in a hundred thousand columns of up to 2048 positions."""
    rng = np.random.default_rng(seed)
    for m in (16, 32, 64, 100, 128, 256, 2048):
        values, names = distributions.draw(rng, m, 8 if m > 1000 else 128)
        x = values.astype(np.float32)
        exact = _exact(x, np.zeros_like(x))
        y, _ = bn.batch_norm(x, eps=EPS)
        bound = oracle.N1 * np.maximum(1, np.abs(exact.y))
        measured.record(
            "distributions, float32", "y, more columns", _worst(np.abs(y - exact.y), bound, names, f"m {m}")
        )
