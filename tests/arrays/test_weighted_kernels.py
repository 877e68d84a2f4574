"""Masks and weights in the kernels: whatever a block of 2048 positions holds, the bits of the scalar specification."""

from __future__ import annotations

import numpy as np
import pytest
from canonical import same_bits
from cases import DTYPES, lay_out
from pairs import pairs

import batchnorm as bn

ISAS = tuple(bn._native.available_isas())
SCALAR = "reference" if "reference" in ISAS else "portable"
LAYOUTS = ("contiguous", "channels-last", "permuted", "sliced", "sliced-channels", "reversed")
# Long runs, runs that end within a block, planes of fewer than 16, rows; channels too few to share memory, and many.
SHAPES = [(3, 2, 4100), (5, 33, 300), (9, 40, 7, 7), (70, 36, 3, 3), (4500, 3), (2100, 40), (2, 1, 40, 70)]


def _prefixes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    lengths = rng.integers(0, shape[-1] + 1, (*shape[:-1], 1))
    return np.arange(shape[-1]) < lengths


def _blocks(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Blocks of all, of none, of 0 and 1, and of fractions after a long beginning of zeros, in turn."""
    w = np.ones(int(np.prod(shape)))
    w[500:900] = 0
    w[1030:1040] = 2.5
    w[2048:4096] = 0
    w[4096:] = rng.random(w[4096:].size) * (rng.random(w[4096:].size) < 0.5)
    return w.reshape(shape)


KINDS = {
    "all": lambda shape, rng: np.ones(shape, bool),
    "prefixes": _prefixes,
    "random": lambda shape, rng: rng.random(shape) < 0.4,
    "whole samples": lambda shape, rng: (np.arange(shape[0]) % 2 == 0).reshape(-1, *(1,) * (len(shape) - 1)),
    "the same in all samples": lambda shape, rng: rng.random((1, *shape[1:])) < (0.6 if len(shape) > 1 else 2),
    "float32 mask": lambda shape, rng: _prefixes(shape, rng).astype(np.float32),
    "float64 blocks": _blocks,
    "float32 blocks": lambda shape, rng: _blocks(shape, rng).astype(np.float32),
    "tiny float32": lambda shape, rng: (rng.random(shape) * 1e-42).astype(np.float32),
    "huge float64": lambda shape, rng: rng.random(shape) * 1e280,
    "strided": lambda shape, rng: rng.random((*shape, 2))[..., 1],
}


def _run(arrays: dict[str, np.ndarray], w: np.ndarray) -> list[np.ndarray]:
    given = {"mask": w} if w.dtype == np.bool_ else {"sample_weight": w}
    m = bn.moments(arrays["x"], **given)
    y, m = bn.batch_norm(arrays["x"], activation="relu", **given)
    ones = np.ones(arrays["x"].shape[1])
    g = bn.batch_norm_backward(arrays["grad"], arrays["x"], m, ones, ones, **given)
    with_residual = bn.batch_norm_backward(
        arrays["grad"], arrays["x"], m, residual=arrays["residual"], activation="relu", **given
    )
    return [m.count, m.mean, m.mean_low, m.m2, y, g.x, g.weight, g.bias, with_residual.x, with_residual.residual]


VECTORS = [isa for isa in ISAS if isa != SCALAR] or ISAS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_the_specification(shape, kind):
    """Each layout; instruction sets and threads in turn, so that each meets each shape, kind and layout."""
    first = SHAPES.index(shape) + list(KINDS).index(kind)
    _same_bits(
        shape,
        kind,
        [
            (layout, VECTORS[(first + i) % len(VECTORS)], 1 + 2 * ((first + i // 2) % 2))
            for i, layout in enumerate(LAYOUTS)
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_every_instruction_set(shape, kind):
    _same_bits(shape, kind, pairs(LAYOUTS, VECTORS, (1, 3)))


def _same_bits(shape, kind, ways):
    rng = np.random.default_rng(len(kind))
    positions = (shape[0], *shape[2:])
    w = KINDS[kind](positions, rng)
    w[(0,) * w.ndim] = 1
    dtypes = ("float32", "float64") if kind in ("random", "float64 blocks") else ("float32",)
    for dtype in dtypes:
        values = {name: rng.standard_normal(shape).astype(DTYPES[dtype]) + 3 for name in ("x", "grad", "residual")}
        # What does not count may be anything.
        values["x"][np.broadcast_to(np.expand_dims(w == 0, 1), shape)] = np.nan
        bn._native.force_isa(SCALAR)
        expected = _run(values, w)
        for layout, isa, threads in ways:
            bn._native.force_isa(isa)
            bn.set_num_threads(threads)
            arrays = {name: lay_out(value, layout, (1,)) for name, value in values.items()}
            for i, (found, wanted) in enumerate(zip(_run(arrays, w), expected, strict=True)):
                assert same_bits(found, wanted), f"result {i}: {dtype}, {layout}, {isa}, {threads} threads"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_all_true_is_no_mask(dtype, layout):
    """A mask of True, and weights of 1: the moments and the output without, to the bit."""
    shape = (6, 5, 31, 29)
    x = lay_out(np.random.default_rng(0).standard_normal(shape).astype(DTYPES[dtype]), layout, (1,))
    y, m = bn.batch_norm(x)
    for options in (
        {"mask": np.ones((6, 31, 29), bool)},
        {"sample_weight": np.ones((6, 31, 29))},
        {"mask": np.ones((31, 1), bool)},
    ):
        found_y, found = bn.batch_norm(x, **options)
        assert found == m
        assert same_bits(found_y, y)


@pytest.mark.slow
@pytest.mark.parametrize("sample_weight", ["mask", "float32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_results_that_go_past_the_cache(layout, sample_weight):
    """Weighted runs of any beginning are stored past the cache as ordinary stores would have written them."""
    rng = np.random.default_rng(2)
    shape = (3, 29, 223, 227)
    x, grad = (lay_out(rng.standard_normal(shape, np.float32), layout, (1,)) for _ in range(2))
    w = rng.random((3, 1, 223, 227), np.float32) if sample_weight == "float32" else rng.random((3, 1, 223, 227)) < 0.5
    given = {"mask": w} if sample_weight == "mask" else {"sample_weight": w}
    results = []
    for isa in (ISAS[-2], ISAS[0]):  # of the vectors, the plainest and the best
        bn._native.force_isa(isa)
        bn.set_num_threads(3)
        y, m = bn.batch_norm(x, **given)
        results.append((y, bn.batch_norm_backward(grad, x, m, **given).x))
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])
