"""batch_norm and normalize give the exact result to within the bounds, for every line of the table of cases."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import oracle
import pytest
from canonical import same_bits
from cases import ACTIVATIONS, BENT, CASES, DTYPES, SMALL, Built, Case, build, exact_forward, lay_out

import batchnorm as bn

UNSELECTED = [case for case in CASES if case.select == "all" and math.prod(case.shape) < 1000]


def _forward(built: Built, **more) -> tuple[np.ndarray, bn.Moments]:
    return bn.batch_norm(built.x, built.weight, built.bias, **built.selection, **(built.options | more))


def _bytes(built: Built) -> list[bytes]:
    arrays = (built.x, built.grad, built.weight, built.bias, built.mask, built.sample_weight, built.residual)
    return [array.tobytes() for array in arrays if array is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_norm_is_exact(case: Case):
    built = build(case)
    before = _bytes(built)
    y, m = _forward(built)
    assert type(y) is np.ndarray
    assert y.shape == case.shape
    assert y.dtype == built.x.dtype
    expected = exact_forward(case)
    oracle.assert_within(y, expected.y, oracle.forward_bound(expected, y.dtype, case.activation), "y")
    assert m == bn.moments(built.x, case.axis, **built.selection)
    assert _bytes(built) == before, "the inputs are not changed"
    assert same_bits(bn.normalize(built.x, m, built.weight, built.bias, **built.options), y)


@pytest.mark.parametrize("case", UNSELECTED, ids=str)
def test_evaluation_is_exact(case: Case, rng):
    """With statistics that come from elsewhere, as a trained layer's do."""
    built = build(case)
    mean, var = rng.standard_normal(case.kept_shape), 0.2 + rng.random(case.kept_shape)
    before = _bytes(built)
    y = bn.normalize(built.x, bn.Moments.from_statistics(mean, var), built.weight, built.bias, **built.options)
    given = oracle.given_statistics(built.problem, 1.0, mean, var)
    expected = oracle.forward(built.problem, given)
    oracle.assert_within(y, expected.y, oracle.forward_bound(expected, y.dtype, case.activation), "y")
    assert _bytes(built) == before, "the inputs are not changed"


@pytest.mark.parametrize("count", [1.0, 7.0, 1e6])
def test_the_count_of_given_statistics_does_not_matter(count, rng):
    x, var = rng.standard_normal((5, 3)), np.array([0.5, 1.0, 2.0])
    with_one = bn.normalize(x, bn.Moments.from_statistics(np.zeros(3), var))
    with_count = bn.normalize(x, bn.Moments.from_statistics(np.zeros(3), var, count=count))
    np.testing.assert_allclose(with_count, with_one, rtol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_float32_rounded_once(dtype, residual, activation, rng):
    """Bit for bit: widened, computed in float32 and rounded at the end, also in evaluation."""
    x = (3.0 * rng.standard_normal((7, 5, 33)) + 2.0).astype(DTYPES[dtype])
    added = rng.standard_normal(x.shape).astype(x.dtype) if residual else None
    wide = x.astype(np.float32)
    wide_added = None if added is None else added.astype(np.float32)
    weight, bias = rng.standard_normal((2, 5)).astype(np.float32)
    y, m = bn.batch_norm(x, weight, bias, residual=added, activation=activation)
    y_wide, m_wide = bn.batch_norm(wide, weight, bias, residual=wide_added, activation=activation)
    assert m == m_wide
    assert same_bits(y, y_wide.astype(x.dtype))


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "channels-last", "permuted", "sliced", "reversed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_y_has_the_memory_order_of_x(layout, dtype, rng):
    x = lay_out(rng.standard_normal((4, 3, 5, 2)).astype(DTYPES[dtype]), layout, (1,))
    y, m = bn.batch_norm(x)
    assert y.strides == np.empty_like(x).strides
    assert bn.normalize(x, m).strides == y.strides
    assert y.flags.writeable


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "channels-last", "sliced", "sliced-channels", "reversed"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_out_of_any_layout(case: Case, layout):
    built = build(case)
    y, m = _forward(built)
    out = lay_out(np.zeros_like(built.x), layout, case.kept)
    returned, m_out = _forward(built, out=out)
    assert returned is out
    assert m_out == m
    assert same_bits(out, y)
    out[...] = 0
    assert bn.normalize(built.x, m, built.weight, built.bias, **built.options, out=out) is out
    assert same_bits(out, y)


def test_out_may_be_a_memory_map(rng, tmp_path):
    x = rng.standard_normal((6, 3, 4)).astype(np.float32)
    out = np.lib.format.open_memmap(tmp_path / "y.npy", mode="w+", dtype=np.float32, shape=x.shape)
    assert bn.batch_norm(x, out=out)[0] is out
    out.flush()
    assert same_bits(np.load(tmp_path / "y.npy"), bn.batch_norm(x)[0])


def test_out_writes_nothing_beside_its_view(rng):
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    around = np.full((9, 7, 11), 7.0, dtype=np.float32)
    inside = (slice(1, 9, 2), slice(1, 7, 2), slice(1, 11, 2))
    bn.batch_norm(x, out=around[inside])
    assert same_bits(around[inside], bn.batch_norm(x)[0])
    around[inside] = 7.0
    assert (around == 7.0).all()


@pytest.mark.parametrize("name", ["x", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced", "field"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 17, 5), (3, 2, 2500)], ids=str)
def test_in_place(shape, dtype, layout, name, rng):
    """`out` may be x or the residual itself: the result is that of a separate array."""
    arrays = {}
    for key in ("x", "residual"):
        arrays[key] = lay_out(rng.standard_normal(shape).astype(DTYPES[dtype]), layout, (1,))
    expected, m_expected = bn.batch_norm(arrays["x"], residual=arrays["residual"], activation="relu")
    kept = {key: value.copy() for key, value in arrays.items()}
    y, m = bn.batch_norm(arrays["x"], residual=arrays["residual"], activation="relu", out=arrays[name])
    assert y is arrays[name]
    assert m == m_expected
    assert same_bits(y, expected)
    other = "residual" if name == "x" else "x"
    assert same_bits(arrays[other], kept[other])


def test_x_and_residual_may_be_one_array(rng):
    x = rng.standard_normal((5, 3)).astype(np.float32)
    y, _ = bn.batch_norm(x, residual=x)
    assert same_bits(y, bn.batch_norm(x, residual=x.copy())[0])


@pytest.mark.parametrize("layout", ["channels-last", "sliced", "permuted", "reversed", "broadcast"])
def test_strided_input_is_not_copied(layout, rng):
    x = lay_out(rng.standard_normal((64, 32, 64)).astype(np.float32), layout, (1,))
    m = bn.moments(x)
    out = np.empty(x.shape, dtype=x.dtype)
    tracemalloc.start()
    try:
        bn.moments(x)
        bn.normalize(x, m, out=out)
        bn.batch_norm(x, out=out)
        bn.batch_norm_backward(x, x, m, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 32 * 64 * 4 / 4, f"{peak} bytes allocated for an input of {x.size * 4}"


@pytest.mark.parametrize("parameters", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_either_width(dtype, parameters, rng):
    x = rng.standard_normal((6, 4)).astype(DTYPES[dtype])
    weight, bias = rng.standard_normal((2, 4)).astype(np.float32)
    y, _ = bn.batch_norm(x, weight.astype(parameters), bias.astype(parameters))
    assert y.dtype == x.dtype
    assert same_bits(y, bn.batch_norm(x, weight, bias)[0])


def test_strided_parameters_mask_and_weights(rng):
    x = rng.standard_normal((6, 4, 5))
    weight, bias = rng.standard_normal((2, 8))
    mask, sample_weight = rng.random((12, 10)) < 0.7, rng.random((5, 6)) + 0.5
    y, m = bn.batch_norm(x, weight[::-2], bias[::2], mask=mask[::2, ::-2], sample_weight=sample_weight.T)
    packed = (weight[::-2].copy(), bias[::2].copy())
    y_packed, m_packed = bn.batch_norm(x, *packed, mask=mask[::2, ::-2].copy(), sample_weight=sample_weight.T.copy())
    assert same_bits(y, y_packed)
    assert m == m_packed


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_of_any_float_type(kind, rng):
    x = rng.standard_normal((6, 4))
    sample_weight = np.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0])
    m = bn.moments(x, sample_weight=sample_weight.astype(kind))
    assert m == bn.moments(x, sample_weight=sample_weight)


def test_an_empty_batch_is_normalized_to_an_empty_batch(rng):
    m = bn.Moments.from_statistics(np.zeros(3), np.ones(3))
    y = bn.normalize(np.empty((0, 3, 5), dtype=np.float32), m)
    assert y.shape == (0, 3, 5)
    assert y.dtype == np.float32


@pytest.mark.parametrize("activation", ACTIVATIONS + BENT, ids=str)
def test_activation_is_applied_after_bias_and_residual(activation, rng):
    x, residual = rng.standard_normal((2, 50, 3)) * 4
    weight, bias = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, -3.0])
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * weight + bias + residual
    expected = {
        None: z,
        "relu": np.maximum(z, 0),
        "relu6": np.clip(z, 0, 6),
        "leaky_relu": np.where(z > 0, z, 0.01 * z),
        ("leaky_relu", 0.2): np.where(z > 0, z, 0.2 * z),
        "silu": z / (1 + np.exp(-z)),
        "gelu": z / 2 * (1 + np.vectorize(math.erf)(z / np.sqrt(2))),
        "gelu_tanh": z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        "hardswish": z * np.clip(z + 3, 0, 6) / 6,
        "elu": np.where(z > 0, z, np.expm1(z)),
        ("elu", 0.5): np.where(z > 0, z, 0.5 * np.expm1(z)),
    }[activation]
    y, _ = bn.batch_norm(x, weight, bias, residual=residual, activation=activation)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
