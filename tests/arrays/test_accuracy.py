"""The ladders: offsets, scales and lengths from easy to hard. Every rung is within its bound, in every layout.

The worst errors are collected and printed after the run, as fractions of the bound asserted.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import oracle
import pytest
from canonical import same_bits
from cases import BENT, DTYPES, lay_out

import batchnorm as bn

LAYOUTS = ("contiguous", "channels-last", "sliced", "reversed")
OFFSETS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
FURTHER = (0.0, 1e3, 1e6, 1e9, 1e12)
SCALES = (1e-30, 1e-20, 1e-10, 1e-3, 1.0, 1e3, 1e10, 1e20, 1e30)
LENGTHS = (2, 3, 5, 17, 100, 2047, 2049, 10_000, 100_000, 1_000_000)


@dataclasses.dataclass(frozen=True)
class Rung:
    """Data of one mean (in standard deviations) and scale, and how to normalize it."""

    offset: float = 0.0
    scale: float = 1.0
    dtype: str = "float32"
    relative_eps: bool = False  # eps follows the scale, so that tiny data is not all eps
    weighted: bool = False

    @property
    def eps(self) -> float:
        return 1e-5 * self.scale**2 if self.relative_eps else 1e-5


@functools.cache
def _small(rung: Rung) -> tuple[oracle.Problem, np.ndarray]:
    """A (4, 3, 5, 4) problem with parameters, and a gradient."""
    rng = np.random.default_rng(11)
    shape = (4, 3, 5, 4)
    x = ((rng.standard_normal(shape) + rung.offset) * rung.scale).astype(DTYPES[rung.dtype])
    parameters = rng.standard_normal((2, 3)).astype(np.float64 if rung.dtype == "float64" else np.float32)
    sample_weight = np.broadcast_to(rng.random((4, 1, 5, 4)) + 0.1, shape) if rung.weighted else None
    problem = oracle.Problem(x, (1,), rung.eps, sample_weight, parameters[0], parameters[1])
    return problem, rng.standard_normal(shape).astype(DTYPES[rung.dtype])


@functools.cache
def _exact(rung: Rung) -> tuple[oracle.Forward, oracle.Backward]:
    problem, grad = _small(rung)
    statistics = oracle.statistics(problem)
    return oracle.forward(problem, statistics), oracle.backward(problem, grad, statistics)


def _weights(problem: oracle.Problem) -> np.ndarray | None:
    return None if problem.sample_weight is None else problem.sample_weight[:, 0]


def _forward_ratio(rung: Rung, layout: str) -> float:
    problem, _ = _small(rung)
    x = lay_out(problem.x, layout, (1,))
    y, _ = bn.batch_norm(x, problem.weight, problem.bias, eps=rung.eps, sample_weight=_weights(problem))
    exact = _exact(rung)[0]
    return oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), f"y, {layout}")


def _backward_ratio(rung: Rung, layout: str) -> float:
    problem, grad = _small(rung)
    x, grad = lay_out(problem.x, layout, (1,)), lay_out(grad, layout, (1,))
    given = {"eps": rung.eps, "sample_weight": _weights(problem)}
    m = bn.moments(x, sample_weight=given["sample_weight"])
    found = bn.batch_norm_backward(grad, x, m, problem.weight, problem.bias, **given)
    exact = _exact(rung)[1]
    smallest = 0.0 if rung.dtype == "float64" else float(np.finfo(np.float32).smallest_subnormal)
    ratios = []
    for name in ("x", "weight", "bias"):
        values, terms = getattr(exact, name), getattr(exact, f"{name}_terms")
        bound = oracle.gradient_bound(values, terms, problem.x.dtype) + smallest
        ratios.append(oracle.assert_within(getattr(found, name), values, bound, f"gradient of {name}, {layout}"))
    return max(ratios)


def _climb(measured, ladder: str, rung: Rung, step: float) -> None:
    for layout in LAYOUTS:
        measured.record(f"{ladder}, forward", f"{step:g}", _forward_ratio(rung, layout))
        measured.record(f"{ladder}, backward", f"{step:g}", _backward_ratio(rung, layout))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
def test_offset_ladder(offset, weighted, measured):
    rung = Rung(offset=offset, weighted=weighted)
    _climb(measured, "offset, float32" + weighted * ", weights", rung, offset)


@pytest.mark.parametrize("offset", [-1e6, -1e4])
def test_negative_offsets(offset, measured):
    _climb(measured, "negative offset, float32", Rung(offset=offset), offset)


@pytest.mark.parametrize("offset", FURTHER)
def test_offset_ladder_of_float64(offset, measured):
    _climb(measured, "offset, float64", Rung(offset=offset, dtype="float64"), offset)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("offset", [0.0, 1e1, 1e2, 1e3])
def test_offset_ladder_of_16_bits(offset, dtype, measured):
    _climb(measured, f"offset, {dtype}", Rung(offset=offset, dtype=dtype), offset)


@pytest.mark.parametrize("relative_eps", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("scale", SCALES)
def test_scale_ladder(scale, dtype, relative_eps, measured):
    rung = Rung(scale=scale, dtype=dtype, relative_eps=relative_eps)
    _climb(measured, f"scale, {dtype}" + relative_eps * ", eps follows", rung, scale)


@pytest.mark.parametrize("scale", [1e-100, 1e100, 1e150])
def test_scale_ladder_of_float64_goes_on(scale, measured):
    rung = Rung(scale=scale, dtype="float64", relative_eps=True)
    _climb(measured, "scale, float64, eps follows", rung, scale)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_offset_and_scale_together(offset, scale, measured):
    rung = Rung(offset=offset, scale=scale, relative_eps=True)
    _climb(measured, f"offset {offset:g} and scale, float32", rung, scale)


# --- near the limits of float32 ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["both ends", "one end", "far from zero", "one giant"])
def test_near_the_largest_float32(kind, layout, rng):
    """No overflow inside, for data up to the limits of float32."""
    largest = np.finfo(np.float32).max
    signs = rng.integers(0, 2, (6, 3, 9)) * 2.0 - 1.0
    values = {
        "both ends": largest * signs * (1 - 1e-3 * rng.random((6, 3, 9))),
        "one end": largest * rng.random((6, 3, 9)),
        "far from zero": largest * (1 - 1e-6 * rng.random((6, 3, 9))),
        "one giant": np.where(np.arange(9) == 4, largest, rng.standard_normal((6, 3, 9))),
    }[kind]
    x = lay_out(values.astype(np.float32), layout, (1,))
    problem = oracle.Problem(x, (1,))
    exact = oracle.forward(problem)
    y, m = bn.batch_norm(x)
    oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), "y")
    assert np.isfinite(m.m2).all()
    oracle.assert_within(bn.normalize(x, m), exact.y, oracle.forward_bound(exact, y.dtype, None), "y in evaluation")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_smallest_float32(layout, rng):
    """Subnormal data: its variance is nothing beside eps unless eps is as small."""
    x = lay_out((rng.integers(-9, 10, (6, 3, 9)) * 2.0**-149).astype(np.float32), layout, (1,))
    for eps in (1e-5, 1e-90):
        exact = oracle.forward(oracle.Problem(x, (1,), eps))
        y, _ = bn.batch_norm(x, eps=eps)
        oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), f"y, eps {eps}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation_with_statistics_far_from_the_data(layout, rng):
    """x - mean leaves the range of float32, y does not."""
    x = lay_out((3.4e38 * (1 - 1e-3 * rng.random((4, 3, 9)))).astype(np.float32), layout, (1,))
    mean, var = np.array([-3e38, 2.5e38, -1e36]), np.array([1e76, 1e72, 1e60])
    problem = oracle.Problem(x, (1,))
    exact = oracle.forward(problem, oracle.given_statistics(problem, 1.0, mean, var))
    y = bn.normalize(x, bn.Moments.from_statistics(mean, var))
    oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), "y")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("scale", "grad_scale", "weight"),
    [(1e-25, 1e15, 1e-10), (1e20, 1e-20, 1e20), (1.0, 3e37, 1e-5), (1.0, 1e-36, 1e6), (1e-12, 1e-30, 1.0)],
    ids=str,
)
def test_gradients_of_every_scale(scale, grad_scale, weight, layout, rng):
    """rstd * sum(g xhat) / m leaves the range of float32, or what it holds exactly; the gradients do not."""
    values = rng.standard_normal((2, 4, 3, 9)) + 0.5
    x = lay_out((scale * values[0]).astype(np.float32), layout, (1,))
    grad = lay_out((grad_scale * values[1]).astype(np.float32), layout, (1,))
    problem = oracle.Problem(x, (1,), 1e-5 * scale**2, None, np.full(3, weight), np.zeros(3))
    exact = oracle.backward(problem, grad, oracle.statistics(problem))
    given = {"eps": problem.eps}
    found = bn.batch_norm_backward(grad, x, bn.moments(x), problem.weight, problem.bias, **given)
    oracle.assert_within(found.x, exact.x, oracle.GRADIENT * exact.x_terms, "gradient of x")
    oracle.assert_within(found.weight, exact.weight, oracle.SUMS * exact.weight_terms, "gradient of weight")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_that_bring_huge_data_back(layout, rng):
    """weight / sqrt(var + eps) is below or above the range of float32, the products are not."""
    for scale in (1e-30, 1e30):
        x = lay_out((scale * rng.standard_normal((4, 2, 9))).astype(np.float32), layout, (1,))
        weight, bias = np.array([1e-12, 1e12]), np.array([1.0, -1e3])
        problem = oracle.Problem(x, (1,), 1e-5 * scale**2, None, weight, bias)
        exact = oracle.forward(problem)
        y, _ = bn.batch_norm(x, weight, bias, eps=problem.eps)
        oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), f"y, scale {scale}")


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_of_every_scale_in_one_call(layout, activation, rng):
    """Each channel has the bits it has alone, in float32 or, where its neighbors need that, beside float64."""
    scales = np.array([1.0, 1e30, 1e-30, 1e3, 3e37, 1e-38, 1.0] * 5).reshape(35, 1)
    x, grad, residual = (
        lay_out((rng.standard_normal((6, 35, 9)) * s).astype(np.float32), layout, (1,)) for s in (scales, 1, 1)
    )
    given = {"eps": 1e-70, "activation": activation}
    y, m = bn.batch_norm(x, residual=residual, **given)
    found = bn.batch_norm_backward(grad, x, m, residual=residual, **given)
    for channel in range(35):
        one = slice(channel, channel + 1)
        y_alone, m_alone = bn.batch_norm(x[:, one], residual=residual[:, one], **given)
        alone = bn.batch_norm_backward(grad[:, one], x[:, one], m_alone, residual=residual[:, one], **given)
        assert same_bits(y[:, one], y_alone), channel
        assert same_bits(found.x[:, one], alone.x), channel
        assert same_bits(found.residual[:, one], alone.residual), channel


FAR = (
    -3e38,
    -1e30,
    -1e10,
    -200.0,
    -104.0,
    -90.0,
    -88.0,
    -87.0,
    -80.0,
    -40.0,
    -13.0,
    -6.0,
    6.0,
    13.0,
    40.0,
    90.0,
    1e10,
    1e30,
)


@pytest.mark.parametrize("activation", ["silu", *BENT], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_far_from_zero(dtype, activation):
    """Where e^z leaves the range of the type, an activation and its slope are their limits, and never NaN."""
    x = np.array([[*FAR, -np.inf, np.inf, np.nan]], dtype=dtype).T
    given = {"eps": 1e-300, "activation": activation}
    standard = bn.Moments.from_statistics([0.0], [1.0])
    y = bn.normalize(x, standard, **given)[:, 0]
    slope = bn.batch_norm_backward(np.ones_like(x), x, standard, training=False, **given).x[:, 0]
    exact = oracle._activate(oracle.exact(x[: len(FAR), 0]), activation)
    exact_y, exact_slope = (oracle.to_float(np.asarray(part, dtype=object)) for part in exact)
    near = 1e-12 if dtype == "float64" else 1e-6
    # sigmoid(w) is as exact as w, of which there is much, where it is next to 0
    tail = near * (40 if activation == "gelu_tanh" else 1)
    size = np.abs(exact_y)
    assert (np.abs(y[: len(FAR)] - exact_y) <= 1e-35 + np.where(exact_y > 0, near, tail) * size).all()
    assert (
        np.abs(slope[: len(FAR)] - exact_slope)
        <= 1e-30 + np.where(exact_slope > 0.5, near, 40 * near) * np.abs(exact_slope)
    ).all()
    alpha = {"elu": -1.0, ("elu", 0.5): -0.5}
    assert np.array_equal(y[len(FAR) :], [alpha.get(activation, np.nan), np.inf, np.nan], equal_nan=True)  # PyTorch's
    if activation != "silu":
        assert slope[len(FAR) : -1].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_and_elu_to_their_last_digits(dtype, rng):
    """The normal distribution's tail, and e^z - 1 next to 0: relative to the result."""
    x = -np.concatenate([rng.uniform(0, 6, 600), rng.uniform(6, 36, 200), 10.0 ** rng.uniform(-7, 0, 200)])
    x = x[x > (-37 if dtype == "float64" else -13)][:, None].astype(dtype)
    standard, z = bn.Moments.from_statistics([0.0], [1.0]), oracle.exact(x[:, 0])
    for activation in ("gelu", "elu"):
        y = bn.normalize(x, standard, eps=1e-300, activation=activation)[:, 0]
        exact = oracle._activate(z, activation)[0]
        off = oracle.to_float(np.abs(oracle.exact(y) / exact - 1))
        assert off.max() <= 6 * np.finfo(dtype).eps, (activation, off.max() / np.finfo(dtype).eps, x[off.argmax()])


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-12, 1e-300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_outlier_of_hardly_any_weight(dtype, tiny, rng):
    """The first value is far away and next to weightless: neither the mean nor M2 may lose digits to it."""
    x = rng.standard_normal((40, 2)).astype(dtype)
    x[0] = 1e8
    sample_weight = np.ones((40, 1))
    sample_weight[0] = tiny
    problem = oracle.Problem(x, (1,), sample_weight=np.broadcast_to(sample_weight, x.shape))
    _, mean, m2 = oracle.statistics(problem)
    m = bn.moments(x, sample_weight=sample_weight[:, 0])
    np.testing.assert_allclose(m.m2, oracle.to_float(m2)[0], rtol=1e-12)
    off = oracle.to_float(mean[0] - oracle.exact(m.mean) - oracle.exact(m.mean_low))
    assert (np.abs(off) <= 1e-14 * np.sqrt(m.var())).all()


@pytest.mark.parametrize("value", [1.0, 255.0, 2047.0, 65504.0])
def test_near_the_largest_float16(value, rng):
    x = (value * (2 * rng.random((6, 3, 9)) - 1)).astype(np.float16)
    exact = oracle.forward(oracle.Problem(x, (1,)))
    y, _ = bn.batch_norm(x)
    oracle.assert_within(y, exact.y, oracle.forward_bound(exact, y.dtype, None), "y")


# --- long data ---


def test_long_statistics_agree_with_the_oracle(rng):
    """The correctly rounded sums used below are the oracle's."""
    x = (rng.standard_normal((500, 1)) + 1e4).astype(np.float32)
    count, mean, m2 = oracle.statistics(oracle.Problem(x, (1,)))
    high, low, var = oracle.long_statistics(x[:, 0])
    exact_high, exact_low = oracle.high_and_low(mean)
    assert high == exact_high[0, 0]
    np.testing.assert_allclose(low, exact_low[0, 0], rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(var, oracle.to_float(m2 / count)[0, 0], rtol=1e-14)


def _assert_long(x: np.ndarray, what: str) -> float:
    exact = oracle.long_forward(x, 1e-5)
    y, _ = bn.batch_norm(x)
    return oracle.assert_within(y, exact, oracle.N1 * np.maximum(1.0, np.abs(exact)), what)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("length", LENGTHS)
def test_length_ladder(length, offset, measured, rng):
    x = (rng.standard_normal((length, 1)) + offset).astype(np.float32)
    measured.record(f"length, float32, offset {offset:g}", f"{length:g}", _assert_long(x, f"{length} positions"))


@pytest.mark.slow
@pytest.mark.parametrize("offset", OFFSETS)
def test_offset_ladder_of_a_real_batch(offset, measured, rng):
    """(8, 4, 32, 32), the case field.md measures of PyTorch, contiguous and channels-last."""
    x = (rng.standard_normal((8, 4, 32, 32)) + offset).astype(np.float32)
    columns = np.moveaxis(x, 1, -1).reshape(-1, 4)
    exact = np.moveaxis(oracle.long_forward(columns, 1e-5).reshape(8, 32, 32, 4), -1, 1)
    for layout in LAYOUTS:
        y, _ = bn.batch_norm(lay_out(x, layout, (1,)))
        ratio = oracle.assert_within(y, exact, oracle.N1 * np.maximum(1.0, np.abs(exact)), layout)
        measured.record("offset, float32, (8, 4, 32, 32)", f"{offset:g}", ratio)


def test_data_that_drifts(measured, rng):
    """The mean walks a million standard deviations from the first position to the last."""
    x = (rng.standard_normal((100_000, 1)) + np.linspace(0, 1e6, 100_000)[:, None]).astype(np.float32)
    measured.record("drift, float32", "1e+06", _assert_long(x, "drifting data"))


def test_a_first_value_far_from_the_rest(measured, rng):
    """The value that shifts the sums of a block is the worst it can be."""
    x = rng.standard_normal((5000, 1)).astype(np.float32)
    for far in (1e2, 1e4, 1e6, 1e8):
        x[0] = far
        measured.record("first value an outlier, float32", f"{far:g}", _assert_long(x, f"first value {far:g}"))
