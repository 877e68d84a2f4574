"""Refusals of layers state the rule, what came and the fix; and nothing is changed by a call that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_errors import _assert_says

import batchnorm as bn


def _ones(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.ones(shape, dtype=dtype)


FORWARDS: list[
    tuple[str, Callable[[], bn.BatchNorm], tuple[Any, ...], dict[str, Any], type[Exception], tuple[str, ...]]
] = [
    ("1d, rank 1", lambda: bn.BatchNorm1d(3), (_ones(3),), {}, ValueError, (r"\(N, C\)", r"\(N, C, L\)", r"\(3,\)")),
    (
        "1d, rank 4",
        lambda: bn.BatchNorm1d(3),
        (_ones(2, 3, 4, 4),),
        {},
        ValueError,
        (r"\(N, C, L\)", r"\(2, 3, 4, 4\)", "BatchNorm2d"),
    ),
    (
        "2d, rank 2",
        lambda: bn.BatchNorm2d(3),
        (_ones(4, 3),),
        {},
        ValueError,
        (r"\(N, C, H, W\)", r"\(4, 3\)", "BatchNorm1d"),
    ),
    (
        "2d, rank 3",
        lambda: bn.BatchNorm2d(3),
        (_ones(2, 3, 4),),
        {},
        ValueError,
        (r"\(N, C, H, W\)", r"\(2, 3, 4\)", "BatchNorm1d"),
    ),
    (
        "2d, rank 5",
        lambda: bn.BatchNorm2d(3),
        (_ones(2, 3, 1, 1, 1),),
        {},
        ValueError,
        (r"\(N, C, H, W\)", r"\(2, 3, 1, 1, 1\)", "BatchNorm3d"),
    ),
    (
        "3d, rank 4",
        lambda: bn.BatchNorm3d(3),
        (_ones(2, 3, 4, 4),),
        {},
        ValueError,
        (r"\(N, C, D, H, W\)", r"\(2, 3, 4, 4\)", "BatchNorm2d"),
    ),
    (
        "1d, channels",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 5),),
        {},
        ValueError,
        ("3 channels", "5 channels", "axis 1", r"\(4, 5\)"),
    ),
    (
        "2d, channels last",
        lambda: bn.BatchNorm2d(3),
        (_ones(2, 8, 8, 3),),
        {},
        ValueError,
        ("3 channels", "8 channels", r"\(2, 8, 8, 3\)"),
    ),
    (
        "any, channels",
        lambda: bn.BatchNorm(3, axis=-1),
        (_ones(3, 4),),
        {},
        ValueError,
        ("3 channels", "4 channels", "axis"),
    ),
    (
        "any, two axes",
        lambda: bn.BatchNorm((2, 3), axis=(0, 2)),
        (_ones(2, 5, 4),),
        {},
        ValueError,
        (r"\(2, 3\)", r"\(2, 4\)"),
    ),
    (
        "any, axis",
        lambda: bn.BatchNorm(3, axis=4),
        (_ones(3, 4),),
        {},
        ValueError,
        ("axis 4 does not exist", r"\(3, 4\)"),
    ),
    ("empty", lambda: bn.BatchNorm1d(3), (_ones(0, 3),), {}, ValueError, ("empty batch", r"\(0, 3\)")),
    (
        "one value",
        lambda: bn.BatchNorm1d(5),
        (_ones(1, 5),),
        {},
        ValueError,
        ("one value per channel", r"\(1, 5\)", "channels on axis 1", "batch of at least 2"),
    ),
    (
        "one pixel",
        lambda: bn.BatchNorm2d(5),
        (_ones(1, 5, 1, 1),),
        {},
        ValueError,
        ("one value per channel", r"\(1, 5, 1, 1\)"),
    ),
    (
        "int",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3, dtype=int),),
        {},
        TypeError,
        ("integer", "int64", r"\(4, 3\)", "astype"),
    ),
    (
        "mask",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"mask": _ones(3, dtype=bool)},
        ValueError,
        ("mask", r"\(4,\)", r"\(3,\)"),
    ),
    (
        "mask of nothing",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"mask": np.zeros(4, bool)},
        ValueError,
        ("select nothing",),
    ),
    (
        "sample_weight",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"sample_weight": -_ones(4)},
        ValueError,
        ("sample_weight", "negative"),
    ),
    (
        "weights below 1",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"sample_weight": _ones(4) / 8},
        ValueError,
        ("running_var", "more than 1", r"0\.5", "running_correction=0"),
    ),
    (
        "residual",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"residual": _ones(4, 2)},
        ValueError,
        ("residual", r"\(4, 3\)", r"\(4, 2\)"),
    ),
    (
        "residual dtype",
        lambda: bn.BatchNorm1d(3),
        (_ones(4, 3),),
        {"residual": np.ones((4, 3))},
        TypeError,
        ("residual", "float32", "float64"),
    ),
]


def _contents_of(layer: bn.BatchNorm) -> list[Any]:
    values = {name: value.tobytes() for name, value in layer.state_dict().items()}
    return [values, layer.training, layer.momentum, layer.eps]


@pytest.mark.parametrize(
    ("make", "args", "given", "error", "says"), [row[1:] for row in FORWARDS], ids=[row[0] for row in FORWARDS]
)
def test_layers_refuse(make, args, given, error, says):
    layer = make()
    before = _contents_of(layer)
    with pytest.raises((TypeError, ValueError)) as caught:
        layer(*args, **given)
    assert caught.type is error
    _assert_says(caught.value, (type(layer).__name__, *says))
    assert _contents_of(layer) == before


def test_a_failed_forward_leaves_the_one_before(rng):
    """After a refused batch the layer is where it was: state, and what backward differentiates."""
    layer = bn.BatchNorm1d(3, dtype=np.float64)
    x, grad = rng.standard_normal((2, 6, 3))
    layer(x)
    expected, before = layer.backward(grad), _contents_of(layer)
    for bad in (x[:1], x[:0], x[:, :2], x.astype(int)):
        with pytest.raises((TypeError, ValueError)):
            layer(bad)
        assert _contents_of(layer) == before
        assert np.array_equal(layer.backward(grad).x, expected.x)
    for bad in (grad[:3], grad.astype(np.float32)):
        with pytest.raises((TypeError, ValueError)):
            layer.backward(bad)
        assert _contents_of(layer) == before


def test_backward_before_forward_is_refused():
    layer = bn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"BatchNorm1d.*backward.*forward"):
        layer.backward(_ones(4, 3))


STATES: list[tuple[str, Callable[[dict[str, Any]], Any], tuple[str, ...]]] = [
    ("missing", lambda state: state.pop("running_var"), ("missing", "running_var")),
    ("unexpected", lambda state: state.update(gamma=_ones(3)), ("unexpected", "gamma")),
    ("shape", lambda state: state.update(bias=_ones(4)), ("bias", r"\(3,\)", r"\(4,\)")),
    ("scalar", lambda state: state.update(running_mean=np.float32(0)), ("running_mean", r"\(3,\)", r"\(\)")),
    ("complex", lambda state: state.update(weight=_ones(3, dtype=complex)), ("weight", "float32", "complex128")),
    ("text", lambda state: state.update(weight=np.array(list("abc"))), ("weight", "float32", "<U1")),
    (
        "float counter",
        lambda state: state.update(num_batches_tracked=np.float32(3)),
        ("num_batches_tracked", "int64", "float32"),
    ),
    (
        "counter beyond int64",
        lambda state: state.update(num_batches_tracked=np.uint64(2**63)),
        ("num_batches_tracked", "int64", str(2**63)),
    ),
]


@pytest.mark.parametrize(("spoil", "says"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_load_state_dict_loads_all_or_nothing(spoil, says, rng):
    layer, other = bn.BatchNorm1d(3), bn.BatchNorm1d(3)
    other(rng.standard_normal((5, 3)).astype(np.float32))
    other.weight[...] = 5.0
    state = other.state_dict()
    spoil(state)
    before = _contents_of(layer)
    with pytest.raises((TypeError, ValueError)) as caught:
        layer.load_state_dict(state)
    _assert_says(caught.value, ("BatchNorm1d", *says))
    assert _contents_of(layer) == before
