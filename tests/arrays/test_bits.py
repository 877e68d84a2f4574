"""One answer: the same bits for any number of threads, any memory layout, any instruction set, run after run."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterable
from typing import Any

import canonical
import numpy as np
import pytest
from canonical import same_bits
from cases import BENT, DTYPES, lay_out
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairs import pairs

import batchnorm as bn
from batchnorm import _inputs

THREADS = (1, 2, 3, 7)
LAYOUTS = ("contiguous", "channels-last", "permuted", "sliced", "sliced-channels", "reversed")
ISAS = tuple(bn._native.available_isas())  # the best of this machine first
SCALAR = "reference" if "reference" in ISAS else "portable"  # what every other one is compared with
PLAIN = "portable" if "portable" in ISAS else SCALAR

# Planes of 1, 7x7, 14x14 and 56x56; channels that fill vectors and that do not; below and above what one thread does
# alone (32768 elements).
SMALL = [
    (33, 3),
    (65, 100),
    (2, 3, 1, 1),
    (3, 16, 7, 7),
    (2, 3, 14, 14),
    (1, 2, 56, 56),
    (2, 100, 3, 5),
    (4100, 2),
    (4, 1030),
]
MIDDLE = (3, 16, 27, 27)
LARGE = [(2048, 100), (35_001, 3), (2, 64, 56, 56), (32, 16, 14, 14), (20, 100, 7, 7), (1, 3, 200, 301)]
STREAMED = {
    "float64": 2,
    "float32": 3,
    "float16": 6,
    "bfloat16": 6,
}  # samples of (29, 223, 227) that make 17 MB or more


def _values(shape: tuple[int, ...], dtype: str) -> dict[str, np.ndarray]:
    """x, grad and residual of a problem, contiguous; and its parameters and mask."""
    rng = np.random.default_rng(shape)
    channels = shape[1]
    found = {"x": 3.0 * rng.standard_normal(shape) + rng.standard_normal((channels,) + (1,) * (len(shape) - 2)) * 50}
    found |= {"grad": rng.standard_normal(shape) + 0.1, "residual": rng.standard_normal(shape)}
    if (
        channels > 4
    ):  # some whose sums in float32 do not do: constant, tiny, huge, of tiny gradients, far from their shift
        found["x"][:, -1] = 3.1
        found["x"][:, 1] *= 1e-20
        found["x"][:, 2] *= 1 if dtype == "float16" else 1e30
        found["grad"][:, 3] *= 1e-30
        found["x"][(0, 4, *[0] * (len(shape) - 2))] = (
            5e3  # the first position is one of those that the shift is the mean of
        )
    arrays = {name: value.astype(DTYPES[dtype]) for name, value in found.items()}
    parameters = rng.standard_normal((2, channels)).astype(np.float64 if dtype == "float64" else np.float32)
    sample_weight = rng.random(shape[:1] + shape[2:]) * (rng.random(shape[:1] + shape[2:]) < 0.9) + 0.0
    sample_weight.flat[-2:] = 1.0
    ghost = max(shape[0] // 3, 1 if len(shape) > 2 and shape[2] > 1 else 2)  # samples: three of them and a short one
    return arrays | {
        "weight": parameters[0],
        "bias": parameters[1],
        "sample_weight": sample_weight,
        "ghost": np.asarray(ghost),
    }


def _everything(arrays: dict[str, np.ndarray], masked: bool = True) -> dict[str, np.ndarray]:
    """What forward, evaluation and backward give, with and without options, by name."""
    x, grad, weight, bias = (arrays[name] for name in ("x", "grad", "weight", "bias"))
    found: dict[str, np.ndarray] = {}

    def keep(name: str, **results) -> None:
        found.update({f"{name}: {part}": value for part, value in results.items()})

    y, m = bn.batch_norm(x)
    keep("plain", y=y, mean=m.mean, mean_low=m.mean_low, m2=m.m2)
    alone = bn.moments(x)
    keep("moments alone", mean=alone.mean, mean_low=alone.mean_low, m2=alone.m2)
    trained = bn.Moments.from_statistics(m.mean * 0.9, m.var() * 1.1)
    keep("evaluation", y=bn.normalize(x, trained, weight, bias, activation="relu6"))
    g = bn.batch_norm_backward(grad, x, m, weight, bias)
    keep("backward", x=g.x, weight=g.weight, bias=g.bias)
    options = {"residual": arrays["residual"], "activation": "silu"}
    y, m = bn.batch_norm(x, weight, bias, **options)
    keep("silu", y=y)
    g = bn.batch_norm_backward(grad, x, m, weight, bias, **options)
    keep("silu backward", x=g.x, weight=g.weight, bias=g.bias, residual=g.residual)
    g = bn.batch_norm_backward(grad, x, m, weight, bias, training=False, activation="relu")
    keep("evaluation backward", x=g.x, weight=g.weight, bias=g.bias)
    ghosts = {"virtual_batch_size": int(arrays["ghost"]), "activation": "relu"}
    y, m = bn.batch_norm(x, weight, bias, **ghosts)
    keep("ghosts", y=y, mean=m.mean, mean_low=m.mean_low, m2=m.m2, merged=m.reduce().m2)
    g = bn.batch_norm_backward(grad, x, m, weight, bias, **ghosts)
    keep("ghosts backward", x=g.x, weight=g.weight, bias=g.bias)
    if masked:
        options = {"sample_weight": arrays["sample_weight"], "virtual_batch_size": int(arrays["ghost"])}
        m = bn.moments(x, **options)
        keep("ghosts weights", count=m.count, mean=m.mean, m2=m.m2)
        m = bn.moments(x, mask=arrays["sample_weight"] > 0.5)
        keep("mask", count=m.count, mean=m.mean, m2=m.m2)
        options = {"sample_weight": arrays["sample_weight"], "activation": "leaky_relu"}
        y, m = bn.batch_norm(x, weight, bias, **options)
        keep("sample_weight", y=y, count=m.count, mean=m.mean, m2=m.m2)
        g = bn.batch_norm_backward(grad, x, m, weight, bias, **options)
        keep("weights backward", x=g.x, weight=g.weight, bias=g.bias)
    return found


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], how: str) -> None:
    differ = [name for name, value in expected.items() if not same_bits(found[name], value)]
    assert not differ, f"{how}: other bits in {differ}"


def _laid_out(values: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    strided = {name: lay_out(values[name], layout, (1,)) for name in ("x", "grad", "residual")}
    return values | strided


def _same_every_way(shape: tuple[int, ...], dtype: str, ways: Iterable[tuple[str, str, int]]) -> None:
    """One thread of the scalar kernels on contiguous arrays, against other layouts, instruction sets and threads."""
    values = _values(shape, dtype)
    bn._native.force_isa(SCALAR)
    bn.set_num_threads(1)
    expected = _everything(values)
    for layout, isa, threads in ways:
        bn._native.force_isa(isa)
        bn.set_num_threads(threads)
        found = _everything(_laid_out(values, layout))
        _assert_same(found, expected, f"{shape}, {dtype}, {layout}, {isa}, {threads} threads")


PROBLEMS = list(itertools.product(SMALL, DTYPES))
SMALL_WAYS: dict[Any, list[tuple[str, str, int]]] = {problem: [] for problem in PROBLEMS}
for _problem, *_way in pairs(PROBLEMS, LAYOUTS, ISAS, (1, 3)):
    SMALL_WAYS[_problem].append(tuple(_way))


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_problems(dtype):
    """Each shape and dtype in each layout, and in each instruction set; on one thread and three in turn."""
    for shape in SMALL:
        _same_every_way(shape, dtype, SMALL_WAYS[shape, dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_thread_count_and_instruction_set(dtype):
    _same_every_way(MIDDLE, dtype, pairs(LAYOUTS, ISAS, THREADS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_of_any_number(dtype):
    """Each and its derivative, from the smallest number to infinity, alone and behind sums, in each instruction set."""
    rng = np.random.default_rng(5)
    sizes = np.concatenate([10.0 ** rng.uniform(-40, 38, 300), rng.uniform(0, 110, 1000), rng.uniform(0, 7, 1000)])
    sizes[:7] = 0, 3, 32, 40, 87, 708, np.inf
    with np.errstate(over="ignore"):
        x = np.concatenate([sizes, -sizes, [np.nan]]).astype(DTYPES[dtype])[:, None]
    standard, grad = bn.Moments.from_statistics([0.0], [1.0]), rng.standard_normal(x.shape).astype(x.dtype)
    for activation in ("silu", *BENT):
        found = {}
        for isa in (SCALAR, *ISAS):
            bn._native.force_isa(isa)
            given = {"eps": 1e-300, "activation": activation, "training": False}
            g = bn.batch_norm_backward(grad, x, standard, **given, residual=0 * grad)
            y = bn.normalize(x, standard, eps=1e-300, activation=activation)
            finite = x[np.isfinite(x.astype(float)) & (np.abs(x.astype(float)) < 100)][:, None]
            trained, m = bn.batch_norm(finite, activation=activation)
            sums = bn.batch_norm_backward(finite, finite, m, activation=activation)
            found[isa] = {"y": y, "x": g.x, "residual": g.residual, "trained": trained, "behind sums": sums.x}
            _assert_same(found[isa], found[SCALAR], f"{activation}, {dtype}, {isa}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SMALL, MIDDLE], ids=str)
def test_the_whole_product(shape, dtype):
    _same_every_way(shape, dtype, itertools.product(LAYOUTS, ISAS, THREADS if shape == MIDDLE else (1, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_problems(shape):
    _same_every_way(shape, "float32", itertools.product(LAYOUTS[:4], ISAS[:1], THREADS))


VECTORS = [isa for isa in ISAS if isa not in ("portable", "reference")]


def _past_the_cache(dtype: str, layout: str, isa: str) -> None:
    """Vector stores past the cache, in odd runs, write what the portable kernels' ordinary ones write."""
    rng = np.random.default_rng(1)
    shape = (STREAMED[dtype], 29, 223, 227)
    x, grad = (lay_out(rng.standard_normal(shape, np.float32).astype(DTYPES[dtype]), layout, (1,)) for _ in range(2))
    bn.set_num_threads(3)
    bn._native.force_isa(PLAIN)
    y, m = bn.batch_norm(x)
    dx = bn.batch_norm_backward(grad, x, m).x
    bn._native.force_isa(isa)
    found, m_found = bn.batch_norm(x)
    assert m_found == m
    assert same_bits(found, y)
    assert same_bits(bn.batch_norm_backward(grad, x, m).x, dx)
    assert same_bits(bn.normalize(x[-1:], m), y[-1:]), "one sample alone stays in the cache"


@pytest.mark.skipif(not VECTORS, reason="this machine has no vectors")
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float32", "contiguous"), ("bfloat16", "channels-last"), ("float64", "sliced-channels")]
)
def test_results_that_go_past_the_cache(dtype, layout):
    _past_the_cache(dtype, layout, VECTORS[0])


@pytest.mark.slow
@pytest.mark.parametrize("isa", VECTORS)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced-channels"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_results_that_go_past_the_cache(dtype, layout, isa):
    _past_the_cache(dtype, layout, isa)


def _as_columns(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The problem reshaped to (N * S, C): the same positions in the same order."""
    channels = values["x"].shape[1]
    flat = {name: np.moveaxis(values[name], 1, -1).reshape(-1, channels) for name in ("x", "grad", "residual")}
    ghost = values["ghost"] * (values["x"].size // (len(values["x"]) * channels))
    return values | flat | {"sample_weight": values["sample_weight"].reshape(-1), "ghost": ghost}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 16, 7, 7), (2, 3, 14, 14), (1, 2, 56, 56), (32, 16, 14, 14)], ids=str)
def test_reshaped_to_columns(shape, dtype):
    """(N, C, H, W) and (N * H * W, C) are one case."""
    values = _values(shape, dtype)
    expected = {}
    for name, value in _everything(values).items():
        expected[name] = np.moveaxis(value, 1, -1).reshape(-1, shape[1]) if value.ndim == 4 else value
    _assert_same(_everything(_as_columns(values)), expected, "reshaped to columns")


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_on_any_axis(dtype):
    """Moving the channel axis moves the results and changes no bit."""
    values = _values((6, 17, 5, 9), dtype)
    x, weight, bias = values["x"], values["weight"], values["bias"]
    y, m = bn.batch_norm(x, weight, bias)
    for axis in range(4):
        moved, m_moved = bn.batch_norm(np.moveaxis(x, 1, axis), weight, bias, axis=axis)
        assert m_moved == m, axis
        assert same_bits(np.moveaxis(moved, axis, 1), y), axis


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [*SMALL, (70_001, 3), (3, 16, 56, 56)], ids=str)
def test_kernels_sum_in_the_canonical_order(shape, dtype, isa):
    """Forward and backward sums are those of canonical.py, bit for bit."""
    values = _values(shape, dtype)
    bn._native.force_isa(isa)
    x, grad = (canonical.columns(values[name], (1,)) for name in ("x", "grad"))
    m, expected = bn.moments(values["x"]), canonical.moments(x)
    for name in canonical.Sums._fields:
        assert same_bits(getattr(m, name), getattr(expected, name)), name
    sample_weight = np.broadcast_to(values["sample_weight"].reshape(-1, 1), x.shape)
    m_weighted, expected = (
        bn.moments(values["x"], sample_weight=values["sample_weight"]),
        canonical.moments(x, sample_weight),
    )
    for name in canonical.Sums._fields:
        assert same_bits(getattr(m_weighted, name), getattr(expected, name)), name
    ones = np.ones(shape[1])
    found = bn.batch_norm_backward(values["grad"], values["x"], m, ones, ones)
    rstd = 1.0 / np.sqrt(m.var() + 1e-5)
    wide = (rstd < 2.0**-100) | (np.abs(m.mean) > 2.0**102)
    sum_g, sum_gd = canonical.gradient_sums(grad, x, m, wide)
    assert same_bits(found.bias, sum_g)
    assert same_bits(found.weight, sum_gd * rstd)


def _half(arrays: dict[str, np.ndarray], m: bn.Moments, sums: np.ndarray, group: int = 0) -> np.ndarray | None:
    """One half of the backward: with a `group` size `sums` is filled, else the gradient by x follows from it."""
    d = _inputs.data(arrays["x"], "test", 1)
    grad, sample_weight = _inputs.like(arrays["grad"], "grad", d), _inputs.selection(d, None, arrays["sample_weight"])
    weight, bias = (arrays[name].astype(np.float64) for name in ("weight", "bias"))
    out, buffer = (None, None) if group else _inputs.output(None, d, {})
    assert bn._native.backward(
        grad, d.buffer, buffer, False, None, None, sample_weight.position_weight, m._table, weight, bias, *sums, 1,
        1e-5, 1, 0.0, not group, group, False, out is not None, False,
    )  # fmt: skip
    return out


def _sums(arrays: dict[str, np.ndarray], m: bn.Moments, group: int) -> np.ndarray:
    """The sums of each group of samples; all groups are normalized with the same moments."""
    sums = np.zeros((2, -(-len(arrays["x"]) // group), arrays["x"].shape[1]))
    _half(arrays, m, sums, group=group)
    return sums


def _merged(sums: np.ndarray) -> np.ndarray:
    merged = np.empty((2, sums.shape[2]))
    bn._native.merge(sums, merged)
    return merged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 3), (65, 100), (3, 16, 7, 7), (5, 3, 14, 14), (2, 100, 3, 5)], ids=str)
def test_backward_in_two_halves(shape, dtype):
    """Sums first and applied later give the bits of one call; by samples, the same on every instruction set."""
    values = _values(shape, dtype)
    options = {"sample_weight": values["sample_weight"], "activation": "relu"}
    m = bn.moments(values["x"], sample_weight=values["sample_weight"])
    expected = None
    for layout, isa, threads in itertools.product(LAYOUTS[:3], ISAS, (1, 3)):
        arrays = _laid_out(values, layout)
        bn._native.force_isa(isa)
        bn.set_num_threads(threads)
        whole = bn.batch_norm_backward(arrays["grad"], arrays["x"], m, values["weight"], values["bias"], **options)
        sums = _merged(_sums(arrays, m, len(values["x"])))
        assert same_bits(_half(arrays, m, sums), whole.x)
        assert same_bits(sums[0].astype(whole.weight.dtype), whole.weight)
        by_samples = _sums(arrays, m, 1)
        tolerance = 1e-11 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(_merged(by_samples), sums, rtol=tolerance, atol=tolerance)
        expected = by_samples if expected is None else expected
        assert same_bits(by_samples, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 3), (5, 16, 7, 7), (7, 3, 14, 14)], ids=str)
@pytest.mark.parametrize("cuts", [[2], [1, 3], [0, 2, 4]], ids=str)
def test_any_split_over_processes(shape, dtype, cuts):
    """Moments and sums of single samples, gathered in their order: the bits of one process, on any contiguous split."""
    values = _values(shape, dtype)
    names = ("x", "grad", "sample_weight")
    parts = [
        values | {name: values[name][a:b] for name in names}
        for a, b in itertools.pairwise([0, *cuts, len(values["x"])])
    ]
    parts = [part for part in parts if len(part["x"])]

    def run(pieces: list[dict[str, np.ndarray]]) -> tuple[bn.Moments, np.ndarray, np.ndarray]:
        tables = [bn.moments(p["x"], sample_weight=p["sample_weight"], virtual_batch_size=1)._table for p in pieces]
        m = bn.Moments._of_table(np.concatenate(tables, axis=1)).reduce()
        sums = _merged(np.concatenate([_sums(p, m, 1) for p in pieces], axis=1))
        return m, sums, np.concatenate([_half(p, m, sums) for p in pieces])

    expected, found = run([values]), run(parts)
    assert found[0] == expected[0]
    assert same_bits(found[1], expected[1])
    assert same_bits(found[2], expected[2])
    options = {"sample_weight": values["sample_weight"], "activation": "relu"}
    plain = bn.batch_norm_backward(
        values["grad"], values["x"], expected[0], values["weight"], values["bias"], **options
    )
    size = float(np.abs(plain.x.astype(np.float64)).max())
    tolerance = {"float64": 1e-12, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype] * size
    np.testing.assert_allclose(found[2].astype(np.float64), plain.x.astype(np.float64), atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(65, 100), (3, 16, 7, 7), (20, 3, 14, 14)], ids=str)
def test_a_ghost_is_a_batch_of_its_own(shape, dtype):
    """Ghost by ghost in calls of their own: the same bits, forward and backward."""
    values = _values(shape, dtype)
    ghosts = {"virtual_batch_size": int(values["ghost"]), "activation": "silu"}
    y, m = bn.batch_norm(values["x"], values["weight"], values["bias"], **ghosts)
    g = bn.batch_norm_backward(values["grad"], values["x"], m, values["weight"], values["bias"], **ghosts)
    for i in range(m.shape[0]):
        part = slice(i * int(values["ghost"]), (i + 1) * int(values["ghost"]))
        x, grad = values["x"][part], values["grad"][part]
        own_y, own = bn.batch_norm(x, values["weight"], values["bias"], activation="silu")
        assert same_bits(own_y, y[part])
        assert same_bits(own.m2, m.m2[i])
        own_g = bn.batch_norm_backward(grad, x, own, values["weight"], values["bias"], activation="silu")
        assert same_bits(own_g.x, g.x[part])


@pytest.mark.parametrize("shape", [(65, 100), (8, 16, 56, 56)], ids=str)
def test_run_after_run(shape):
    bn.set_num_threads(3)
    values = _values(shape, "float32")
    expected = _everything(values)
    for _ in range(5):
        _assert_same(_everything(values), expected, "another run")


@pytest.mark.parametrize("shift", range(1, 16))
def test_where_the_array_begins_in_memory(shift):
    """Every misalignment of whole items against vectors and cache lines."""
    values = _values((5, 17, 9), "float32")
    expected = _everything(values, masked=False)
    moved = {}
    for name in ("x", "grad", "residual"):
        array = values[name]
        memory = np.zeros(array.nbytes + 64, dtype=np.uint8)
        moved[name] = memory[shift * 4 : shift * 4 + array.nbytes].view(np.float32).reshape(array.shape)
        moved[name][...] = array
    _assert_same(_everything(values | moved, masked=False), expected, f"shifted by {shift} items")


@pytest.mark.parametrize("isa", ISAS)
def test_non_finite_values_have_the_same_bits_everywhere(isa):
    values = _values((3, 20, 7, 7), "float32")
    for channel, value in enumerate((np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45)):
        values["x"][1, channel, 3, channel] = value
    bn._native.force_isa(PLAIN)
    expected = _everything(values)
    bn._native.force_isa(isa)
    for layout in LAYOUTS:
        _assert_same(_everything(_laid_out(values, layout)), expected, layout)


@pytest.mark.parametrize("isa", ISAS)
def test_an_infinity_in_one_of_several_blocks(isa):
    """The merge of sixteen channels at once leaves to each channel what is not finite: its mean is infinite."""
    x = np.random.default_rng(5).standard_normal((5000, 35))
    x[3, 2], x[4900, 17], x[2500, 33] = np.inf, -np.inf, np.inf
    x[:2500, 5], x[2500:, 5] = 1.5e308, -1.5e308  # their distance is infinite
    bn._native.force_isa(SCALAR)
    with np.errstate(all="ignore"):
        expected = bn.moments(x)
        bn._native.force_isa(isa)
        found = bn.moments(x)
    assert list(expected.mean[[2, 17, 33]]) == [np.inf, -np.inf, np.inf]
    assert np.isnan(expected.m2[[2, 5, 17, 33]]).all()
    for name in ("count", "mean", "mean_low", "m2"):
        assert same_bits(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_16_bits_is_numpys(dtype, isa):
    """Of every exponent that the type has, its ties, its subnormals, and what becomes infinite."""
    bn._native.force_isa(isa)
    bn.set_num_threads(1)
    last = 24 if dtype == "float16" else 133
    scales = np.ldexp(1.0, np.arange(-last, 18 if dtype == "float16" else 128)).astype(np.float32)
    x = np.random.default_rng(5).integers(1 << 11, 1 << 12, (64, len(scales))).astype(np.float32) / np.float32(1 << 11)
    x = x.astype(DTYPES[dtype])
    standard = bn.Moments.from_statistics(np.zeros(len(scales)), np.ones(len(scales)))
    for factor in (1.0, 1.0 + 2.0**-9, 1.0 + 2.0**-11):
        given = {"weight": (scales * np.float32(factor)), "eps": 1e-300}
        y, wide = bn.normalize(x, standard, **given), bn.normalize(x.astype(np.float32), standard, **given)
        with np.errstate(over="ignore"):
            assert same_bits(y, wide.astype(y.dtype)), factor


def _any_view(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """The same values with axes in any order in memory, any steps forwards or backwards, and NaN in between."""
    order, steps = rng.permutation(values.ndim), rng.choice([1, 1, 2, 3, -1, -2], values.ndim)
    around = np.full([values.shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True)], np.nan)
    view = around.astype(values.dtype)[tuple(slice(None, None, step) for step in steps)].transpose(np.argsort(order))
    view[...] = values
    return view


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(sorted(DTYPES)))
@settings(max_examples=400)
def test_any_view_of_any_shape(seed, shape, dtype):
    """Axes, strides, threads, kernels and options drawn at random; the scalar kernels on contiguous arrays agree."""
    rng = np.random.default_rng(seed)
    axis = tuple(np.flatnonzero(rng.random(len(shape)) < 0.4).tolist())
    assume(np.prod([length for i, length in enumerate(shape) if i not in axis], initial=1) > 1)
    x, grad, residual = rng.standard_normal((3, *shape)).astype(DTYPES[dtype])
    options = {"axis": axis, "activation": rng.choice(np.array([None, "relu", "silu"], dtype=object))}
    sample_weight = rng.random([length for i, length in enumerate(shape) if i not in axis]) + 0.01
    selection = {"sample_weight": sample_weight} if rng.random() < 0.4 else {}
    residuals = (residual, _any_view(rng, residual)) if rng.random() < 0.4 else (None, None)

    def compute(x: np.ndarray, grad: np.ndarray, residual: np.ndarray | None) -> dict[str, np.ndarray]:
        given = {**options, **selection, "residual": residual}
        y, m = bn.batch_norm(x, **given)
        g = bn.batch_norm_backward(grad, x, m, **given)
        found = {"y": y, "mean": m.mean, "m2": m.m2, "gradient of x": g.x}
        return found if residual is None else found | {"gradient of residual": g.residual}

    bn._native.force_isa(SCALAR)
    expected = compute(x, grad, residuals[0])
    bn._native.force_isa(str(rng.choice(ISAS)))
    bn.set_num_threads(int(rng.choice(THREADS)))
    _assert_same(compute(_any_view(rng, x), _any_view(rng, grad), residuals[1]), expected, "another view")


@pytest.mark.parametrize("axis", [(0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11), (), 11, tuple(range(11))], ids=str)
def test_many_axes(axis):
    """Twelve axes that no layout joins: the same bits as the array brought to (m, C)."""
    rng = np.random.default_rng(2)
    x, grad = (rng.standard_normal((2, 3) * 6)[(slice(None, None, -1),) * 12] for _ in range(2))
    y, m = bn.batch_norm(x, axis=axis)
    dx = bn.batch_norm_backward(grad, x, m, axis=axis).x
    kept = axis if isinstance(axis, tuple) else (axis,)
    x_columns, grad_columns = canonical.columns(x, kept), canonical.columns(grad, kept)
    y_columns, m_columns = bn.batch_norm(x_columns)
    assert same_bits(canonical.columns(y, kept), y_columns)
    assert same_bits(m.mean.ravel(), m_columns.mean)
    assert same_bits(canonical.columns(dx, kept), bn.batch_norm_backward(grad_columns, x_columns, m_columns).x)


def test_as_many_axes_as_numpy_has():
    """64 axes (32 before NumPy 2), most of length one."""
    limit = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    shape = [1] * limit
    shape[0], shape[limit // 2], shape[-1] = 4, 5, 3
    x = np.random.default_rng(3).standard_normal(shape)
    y, m = bn.batch_norm(x, axis=(limit // 2, -1))
    y_flat, m_flat = bn.batch_norm(x.reshape(4, 15))
    assert same_bits(y.reshape(4, 15), y_flat)
    assert same_bits(m.m2.ravel(), m_flat.m2)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beside_the_arrays_is_touched(dtype, at, isa):
    """Arrays that end, or begin, beside memory that may not be touched: one item too many crashes here."""
    bn._native.force_isa(isa)
    for shape in ((17, 3), (3, 17, 5), (2, 5, 7, 7), (33, 65), (2, 3, 2050), (65, 1)):
        values = _values(shape, dtype)
        for layout in ("contiguous", "channels-last"):
            order = [0, *range(2, len(shape)), 1] if layout == "channels-last" else range(len(shape))
            guarded = {name: _guarded(values[name], order, at) for name in ("x", "grad", "residual")}
            options = {"residual": guarded["residual"], "activation": "relu"}
            out = _guarded(values["x"], order, at)
            y, m = bn.batch_norm(guarded["x"], **options, out=out)
            assert same_bits(y, bn.batch_norm(values["x"], residual=values["residual"], activation="relu")[0])
            bn.batch_norm_backward(guarded["grad"], guarded["x"], m, **options, out=out)
            sample_weight = _guarded(values["sample_weight"], range(values["sample_weight"].ndim), at)
            m = bn.moments(guarded["x"], sample_weight=sample_weight)
            bn.batch_norm_backward(guarded["grad"], guarded["x"], m, sample_weight=sample_weight, out=out)


def _guarded(values: np.ndarray, order, at: str) -> np.ndarray:
    """A copy of `values`, laid out in the given order of axes, beside a page that may not be touched."""
    page, forbidden = mmap.PAGESIZE, 0
    pages = -(-values.nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    whole = np.frombuffer(memory, dtype=np.uint8)
    guard = 0 if at == "start" else pages * page
    first = page if at == "start" else pages * page - values.nbytes
    # frombuffer keeps the mapping alive for as long as the array; the guard page goes with it
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + guard), ctypes.c_size_t(page), forbidden) == 0
    flat = whole[first : first + values.nbytes].view(values.dtype)
    array = flat.reshape([values.shape[axis] for axis in order]).transpose(np.argsort(order))
    array[...] = values
    return array
