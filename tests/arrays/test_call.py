"""The common call is taken as it comes, with the results and the refusals of one that is prepared in Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import batchnorm as bn
from batchnorm import _call, _inputs, _native

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.transpose(0, 3, 1, 2),
    "reversed": lambda x: x[::-1, :, ::-1],
    "sliced": lambda x: x[:, ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


def data(dtype: str, view: str, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((3, 4, 5, 6)) * 3 + 2
    return VIEWS[view](values.astype(dtype))


def parameters(x: np.ndarray, axis: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    C = x.shape[axis]
    return rng.standard_normal(2 * C).astype(dtype)[::2], rng.standard_normal(C).astype(dtype)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switch common calls off and on: off, every call is prepared in Python."""
    common = _call._is_common

    def switch(off: bool) -> None:
        monkeypatch.setattr(_call, "_is_common", (lambda x: False) if off else common)

    return switch


def bits(values: Any) -> list[Any]:
    return [None if v is None else (v.shape, v.dtype, v.strides, v.tobytes()) for v in values]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_same_bits_as_prepared(dtype: str, view: str, axis: int, prepared: Callable[[bool], None]) -> None:
    x = data(dtype, view)
    for parameter_dtype, activation in itertools.product(("float32", "float64"), (None, "relu", "leaky_relu", "silu")):
        weight, bias = parameters(x, axis, parameter_dtype)
        options: dict[str, Any] = {"axis": axis, "activation": activation, "eps": 1e-3}
        results = []
        for off in (False, True):
            prepared(off)
            m = bn.moments(x, axis)
            y, m2 = bn.batch_norm(x, weight, bias, **options)
            z = bn.normalize(x, m, None, bias, **options)
            g = bn.batch_norm_backward(y, x, m, weight, bias, **options)
            e = bn.batch_norm_backward(y, x, m, weight, training=False, **options)
            r, _ = bn.batch_norm(x, weight, residual=y, **options)
            h = bn.batch_norm_backward(z, x, m, weight, residual=y, **options)
            results.append(bits([m._table, y, m2._table, z, *g, *e, r, *h]))
        assert results[0] == results[1]


@pytest.mark.parametrize("view", ["contiguous", "channels-last"])
def test_given_outputs_as_prepared(view: str, prepared: Callable[[bool], None]) -> None:
    expected = bn.batch_norm(data("float32", view))[0]
    for off in (False, True):
        prepared(off)
        x = data("float32", view)
        out = np.empty_like(x)
        assert bn.batch_norm(x, out=out)[0] is out
        np.testing.assert_array_equal(out, expected)
        assert bn.batch_norm(x, residual=out, out=out)[0] is out
        np.testing.assert_array_equal(out, bn.batch_norm(x, residual=expected)[0])
        m, g = bn.moments(x), data("float32", view, 1)
        gradients = bn.batch_norm_backward(g, x, m)
        assert bn.batch_norm_backward(g, x, m, out=g).x is g
        np.testing.assert_array_equal(g, gradients.x)
        assert bn.batch_norm(x, out=x)[0] is x
        np.testing.assert_array_equal(x, expected)


def test_common_calls_take_no_check_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = data("float32", "contiguous"), bn.BatchNorm2d(4, activation="relu")
    average = bn.BatchNorm2d(4, momentum=None, dtype=np.float64)
    weight, bias = parameters(x, 1, "float32")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a common call was checked in Python")

    monkeypatch.setattr(_inputs, "data", refuse)
    y, m = bn.batch_norm(x, weight, bias)
    bn.normalize(x, bn.moments(x), out=y)
    bn.batch_norm_backward(y, x, m, weight, bias)
    bn.batch_norm_backward(y, x, m, residual=bn.batch_norm(x, residual=x, activation="relu")[0], out=y)
    for used in (layer, average):
        used.train()(x)
        used.backward(y)
        used.eval()(x)
        used.backward(y)
    with pytest.raises(AssertionError, match="checked in Python"):
        bn.batch_norm(x, mask=np.ones((3, 5, 6), bool))


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics_move_by_the_same_bits(momentum: float | None, correction: int, dtype: str) -> None:
    running = [
        bn.RunningStatistics(4, momentum=momentum, running_correction=correction, dtype=dtype, on_nonfinite=rule)
        for rule in ("propagate", "skip")  # the second looks at the values, in Python
    ]
    for seed in range(4):
        m = bn.moments(data("float32", "contiguous", seed))
        for r in running:
            assert r.update(m)
    for a, b in zip(running[0]._state().values(), running[1]._state().values(), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    assert running[0].moments() == bn.Moments.from_statistics(running[0].running_mean, running[0].running_var)


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


x0 = np.arange(12, dtype=np.float32).reshape(4, 3)
one_memory = np.zeros(30, np.float32)

REFUSED: dict[str, dict[str, Any]] = {
    "unaligned": {"x": unaligned(x0)},
    "bytes swapped": {"x": x0.astype(">f4")},
    "integers": {"x": x0.astype(np.int64)},
    "masked": {"x": np.ma.masked_array(x0)},
    "no axes": {"x": np.float32(1)},
    "empty": {"x": x0[:0]},
    "one value": {"x": x0[:1]},
    "axis": {"axis": 2},
    "bool axis": {"axis": True},
    "weight's length": {"weight": np.ones(4, np.float32)},
    "weight's dtype": {"weight": np.ones(3, np.int64)},
    "weight's rank": {"weight": np.ones((1, 3), np.float32)},
    "bias masked": {"bias": np.ma.masked_array(np.ones(3))},
    "eps": {"eps": -1.0},
    "nan eps": {"eps": float("nan")},
    "activation": {"activation": "tanh"},
    "out's dtype": {"out": np.empty((4, 3))},
    "out's shape": {"out": np.empty((3, 4), np.float32)},
    "out read-only": {"out": np.broadcast_to(np.float32(0), (4, 3))},
    "out overlaps": {"x": one_memory[:12].reshape(4, 3), "out": one_memory[3:15].reshape(4, 3)},
    "out on weight": {"weight": one_memory[3:6], "out": one_memory[:12].reshape(4, 3)},
    "residual's dtype": {"residual": x0.astype(np.float64)},
    "residual's shape": {"residual": x0[:2]},
    "residual unaligned": {"residual": unaligned(x0)},
    "out on residual": {"residual": one_memory[3:15].reshape(4, 3), "out": one_memory[:12].reshape(4, 3)},
    "out on itself": {"out": np.lib.stride_tricks.as_strided(one_memory, (4, 3), (4, 4))},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(name: str, prepared: Callable[[bool], None]) -> None:
    call = {"x": x0, **REFUSED[name]}
    said = []
    for off in (False, True):
        prepared(off)
        before = one_memory.copy()
        with pytest.raises((TypeError, ValueError)) as error:
            bn.batch_norm(**call)
        said.append((type(error.value), str(error.value)))
        np.testing.assert_array_equal(one_memory, before)
    assert said[0] == said[1]


BACKWARD: dict[str, dict[str, Any]] = {
    "gradient's shape": {"grad_y": x0[:2]},
    "gradient's dtype": {"grad_y": x0.astype(np.float64)},
    "residual's shape": {"residual": x0[:2]},
    "other moments": {"moments": bn.moments(x0[:, :2])},
    "no moments": {"moments": bn.Moments.empty(3)},
    "weight's length": {"weight": np.ones(4, np.float32)},
    "one value": {"x": x0[:1], "grad_y": x0[:1]},
    "out's dtype": {"out": np.empty((4, 3))},
    "out overlaps": {"grad_y": one_memory[:12].reshape(4, 3), "out": one_memory[3:15].reshape(4, 3)},
    "out on residual": {"residual": one_memory[3:15].reshape(4, 3), "out": one_memory[:12].reshape(4, 3)},
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backwards_are_refused_in_the_same_words(name: str, prepared: Callable[[bool], None]) -> None:
    call = {"grad_y": x0, "x": x0, "moments": bn.moments(x0), "activation": "relu", **BACKWARD[name]}
    said = []
    for off in (False, True):
        prepared(off)
        before = one_memory.copy()
        with pytest.raises((TypeError, ValueError)) as error:
            bn.batch_norm_backward(**call)
        said.append((type(error.value), str(error.value)))
        np.testing.assert_array_equal(one_memory, before)
    assert said[0] == said[1]


def test_other_calls_are_served_all_the_same() -> None:
    expected = bn.batch_norm(x0, np.full(3, 2.0))[0]
    for x in (x0.astype(ml_dtypes.bfloat16), x0.astype(np.float64), np.asfortranarray(x0)):
        np.testing.assert_allclose(bn.batch_norm(x, [2.0, 2.0, 2.0])[0].astype(np.float32), expected, rtol=1e-2)
    np.testing.assert_array_equal(bn.batch_norm(x0, np.full(3, 2.0), axis=(1,), eps=np.float64(1e-5))[0], expected)


def test_a_state_out_of_the_ordinary_is_refused_and_nothing_moves() -> None:
    running = bn.RunningStatistics(3)
    kept = {name: value.copy() for name, value in running._state().items()}
    with pytest.raises(ValueError, match="more than 1"):
        running.update(bn.Moments([2, 1, 2], [0, 0, 0], [1, 0, 1]))
    with pytest.raises(ValueError, match="one value for each channel"):
        running.update(bn.moments(np.ones((4, 2))))
    for name, value in running._state().items():
        np.testing.assert_array_equal(value, kept[name])
    running.running_var[1] = -1
    with pytest.raises(ValueError, match="a variance is not negative"):
        running.moments()
    running.running_mean.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        running.update(bn.moments(x0))


def test_what_was_prepared_goes_through_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where C++ declines it, something of ours is wrong: it is said, and nothing is computed."""
    monkeypatch.setattr(_call, "_forward", lambda *_: False)
    monkeypatch.setattr(_call, "_backward", lambda *_: False)
    mask = np.ones(4, bool)
    with pytest.raises(AssertionError, match=r"batch_norm: the kernels do not take .*please report"):
        bn.batch_norm(x0, mask=mask)
    m = bn.Moments.from_statistics(np.zeros(3), np.ones(3), 4)
    with pytest.raises(AssertionError, match=r"batch_norm_backward: the kernels do not take"):
        bn.batch_norm_backward(x0, x0, m, mask=mask)


OUT_OF_MEMORY: dict[str, dict[int, Any]] = {
    "x of another format": {0: x0.astype(np.int32)},
    "y of another shape": {1: np.empty((4, 2), np.float32)},
    "residual of another dtype": {3: x0.astype(np.float64)},
    "weights of another shape": {4: np.ones((4, 1), bool)},
    "moments of another number of channels": {5: np.empty((4, 2))},
    "moments of ghosts": {5: np.empty((4, 2, 3))},
    "moments that lie apart": {5: np.empty((8, 3))[::2]},
    "a weight of another number of channels": {7: np.ones(2)},
    "a bias of ghosts": {8: np.ones((2, 3))},
    "an axis too far": {9: 2},
    "an axis twice": {9: (0, 0)},
    "no int": {9: 1.0},
    "a ghost of less than nothing": {13: -1},
}


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_the_door_takes_nothing_that_would_lead_out_of_memory(name: str) -> None:
    given = [x0, np.empty_like(x0), False, None, None, np.empty((4, 3)), True, None, None, 1, 1e-5, 0, 0.0, 0, False]
    assert _native.forward(*given)
    for position, value in OUT_OF_MEMORY[name].items():
        given[position] = value
    assert not _native.forward(*given)
    with pytest.raises(TypeError, match="takes 15 arguments; got 14"):
        _native.forward(*given[:-1])
