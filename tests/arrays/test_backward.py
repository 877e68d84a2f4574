"""batch_norm_backward gives the exact gradients, for every line of the table, in training and in evaluation."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal

import numpy as np
import oracle
import pytest
from canonical import same_bits
from cases import (
    ACTIVATIONS,
    CASES,
    DTYPES,
    SMALL,
    Built,
    Case,
    build,
    check_gradients,
    exact_forward,
    exact_statistics,
    lay_out,
)  # fmt: skip

import batchnorm as bn

UNSELECTED = [case for case in CASES if case.select == "all" and math.prod(case.shape) < 1000]
KINK = 1e-5  # nearer than this to a kink of the activation, rounding decides which slope is the right one


def _selected(built: Built, training: bool) -> dict:
    return built.selection if training else {}


def _backward(built: Built, m: bn.Moments, training: bool = True, **more) -> bn.Gradients:
    given = _selected(built, training) | built.options | {"training": training} | more
    return bn.batch_norm_backward(built.grad, built.x, m, built.weight, built.bias, **given)


def _away_from_kinks(case: Case, z: np.ndarray) -> None:
    smooth = dict.fromkeys((None, "silu", "gelu", "gelu_tanh", "elu"), ())
    kinks = (smooth | {"relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}).get(case.activation, (0.0,))
    for kink in kinks:
        assert np.abs(z - kink).min() > KINK, f"the data of {case} touch the kink of {case.activation} at {kink}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gradients_are_exact(case: Case):
    built = build(case)
    m = bn.moments(built.x, case.axis, **built.selection)
    before = built.x.tobytes(), built.grad.tobytes()
    found = _backward(built, m)
    assert isinstance(found, bn.Gradients)
    _away_from_kinks(case, exact_forward(case).z)
    check_gradients(built, built.grad, found, oracle.backward(built.problem, built.grad, exact_statistics(case)))
    assert (built.x.tobytes(), built.grad.tobytes()) == before, "the inputs are not changed"


@pytest.mark.parametrize("case", UNSELECTED, ids=str)
def test_evaluation_gradients_are_exact(case: Case, rng):
    built = build(case)
    mean, var = rng.standard_normal(case.kept_shape), 0.2 + rng.random(case.kept_shape)
    given = oracle.given_statistics(built.problem, 1.0, mean, var)
    if case.activation is not None:
        _away_from_kinks(case, oracle.forward(built.problem, given).z)
    found = _backward(built, bn.Moments.from_statistics(mean, var), training=False)
    check_gradients(built, built.grad, found, oracle.backward(built.problem, built.grad, given, training=False))


# --- the oracle's own backward, and the package's, against differences of the forward pass ---


@pytest.mark.parametrize("case", [c for c in CASES if np.prod(c.shape) == 50 and c.dtype == "float64"][::7], ids=str)
def test_the_oracle_differentiates_itself(case: Case):
    """Central differences in 100 digits: the oracle's backward formulas are the derivative of its forward formulas."""
    built = build(case)
    problem = built.problem
    exact = oracle.backward(problem, built.grad, exact_statistics(case))
    step = Decimal(10) ** -20
    grad = oracle.exact(built.grad)
    for at in ((0, 0, 0), (1, 1, 2), (4, 1, 4)):
        losses = []
        for sign in (1, -1):
            moved = oracle.exact(problem.x).copy()
            moved[at] = moved[at] + sign * step
            losses.append((grad * oracle.forward_exact(problem, moved)).sum())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert math.isclose(slope, exact.x[at], rel_tol=1e-14, abs_tol=1e-15)


SELECTED = ("all", "mask", "sample_weight", "mask+sample_weight")
DIFFERENCES = list(itertools.product(SELECTED, (False, True), ACTIVATIONS, (True, False)))


def _small_problem(select: str, residual: bool, activation) -> dict[str, np.ndarray | None]:
    """float64 arrays of 24 positions whose activations stay clear of every kink."""
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        arrays = {
            "x": rng.standard_normal((4, 2, 3)),
            "weight": rng.standard_normal(2) * 2,
            "bias": rng.standard_normal(2) + 1,
            "residual": rng.standard_normal((4, 2, 3)) * 3 if residual else None,
        }
        selection = {
            "mask": rng.random((4, 3)) < 0.7 if "mask" in select else None,
            "sample_weight": rng.random((4, 3)) * (rng.random((4, 3)) < 0.9) if "sample_weight" in select else None,
        }
        y, m = bn.batch_norm(arrays["x"], arrays["weight"], arrays["bias"], residual=arrays["residual"], **selection)
        if m.count.min() > 1.5 and min(np.abs(y).min(), np.abs(y - 6).min()) > 1e-3:
            return {"arrays": arrays, "selection": selection, "m": m, "grad": rng.standard_normal(y.shape)}
    raise AssertionError("no seed keeps clear of the kinks")


@pytest.mark.parametrize(("select", "residual", "activation", "training"), DIFFERENCES, ids=str)
def test_gradients_are_the_slopes_of_the_loss(select, residual, activation, training):
    """Central differences of sum(grad * y) through the public API, one number of one argument at a time."""
    small = _small_problem(select, residual, activation)
    arrays, m, grad = small["arrays"], small["m"], small["grad"]
    given = {"activation": activation, **(small["selection"] if training else {})}

    def loss() -> float:
        if training:
            y, _ = bn.batch_norm(**arrays, **given)
        else:
            y = bn.normalize(arrays["x"], m, arrays["weight"], arrays["bias"], residual=arrays["residual"], **given)
        return float((grad * y).sum())

    found = bn.batch_norm_backward(grad, moments=m, training=training, **arrays, **given)
    step = 1e-5
    for name, array in arrays.items():
        if array is None:
            assert getattr(found, name) is None
            continue
        slopes = np.empty_like(array)
        for at in np.ndindex(array.shape):
            value = array[at]
            array[at] = value + step
            above = loss()
            array[at] = value - step
            slopes[at] = (above - loss()) / (2 * step)
            array[at] = value
        np.testing.assert_allclose(getattr(found, name), slopes, rtol=2e-7, atol=2e-7, err_msg=name)


# --- what else a gradient has to be ---


def test_gradients_of_x_sum_to_nothing(rng):
    """Adding a constant to a channel, or stretching it about its mean, changes nothing: two sums are zero."""
    x, grad = rng.standard_normal((2, 40, 3))
    m = bn.moments(x)
    dx = bn.batch_norm_backward(grad, x, m, eps=1e-300).x
    np.testing.assert_allclose(dx.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose((dx * (x - x.mean(0))).sum(0), 0, atol=1e-12)


def test_positions_that_do_not_count_still_get_gradients(rng):
    """A masked position is normalized, so its gradient is that of evaluation: weight / sqrt(var + eps) * g."""
    x, grad = rng.standard_normal((2, 9, 3))
    mask = np.arange(9) < 6
    m = bn.moments(x, mask=mask)
    dx = bn.batch_norm_backward(grad, x, m, mask=mask).x
    np.testing.assert_allclose(dx[6:], grad[6:] / np.sqrt(m.var() + 1e-5), rtol=1e-13)


def test_what_is_not_given_has_no_gradient(rng):
    x, grad = rng.standard_normal((2, 9, 3))
    found = bn.batch_norm_backward(grad, x, bn.moments(x))
    assert found._fields == ("x", "weight", "bias", "residual")
    assert found[1:] == (None, None, None)


@pytest.mark.parametrize("name", ["grad", "x"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced", "field"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 17, 5), (3, 2, 2500)], ids=str)
def test_in_place(shape, dtype, layout, training, name, rng):
    arrays = {}
    for key in ("grad", "x", "residual"):
        arrays[key] = lay_out(rng.standard_normal(shape).astype(DTYPES[dtype]), layout, (1,))
    given = {"residual": arrays["residual"], "activation": "relu", "training": training}
    m = bn.moments(arrays["x"])
    expected = bn.batch_norm_backward(arrays["grad"], arrays["x"], m, **given)
    found = bn.batch_norm_backward(arrays["grad"], arrays["x"], m, **given, out=arrays[name])
    assert found.x is arrays[name]
    assert same_bits(found.x, expected.x)
    assert same_bits(found.residual, expected.residual)


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "channels-last", "sliced", "reversed"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_out_of_any_layout(case: Case, layout):
    built = build(case)
    m = bn.moments(built.x, case.axis)
    expected = _backward(built, m)
    out = lay_out(np.zeros_like(built.x), layout, case.kept)
    assert _backward(built, m, out=out).x is out
    assert same_bits(out, expected.x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mixed", [("channels-last", "contiguous"), ("contiguous", "sliced"), ("reversed", "fortran")])
def test_grad_and_x_may_lie_differently(mixed, dtype, rng):
    values = [rng.standard_normal((4, 5, 3, 7)).astype(DTYPES[dtype]) for _ in range(3)]
    x, grad = lay_out(values[0], mixed[0], (1,)), lay_out(values[1], mixed[1], (1,))
    residual = lay_out(values[2], mixed[0], (1,))
    m = bn.moments(x)
    found = bn.batch_norm_backward(grad, x, m, residual=residual, activation="relu6")
    expected = bn.batch_norm_backward(values[1], values[0], m, residual=values[2], activation="relu6")
    assert same_bits(found.x, expected.x)
    assert same_bits(found.residual, expected.residual)
    assert found.x.strides == np.empty_like(x).strides, "the gradient of x lies as x does"


def test_mask_and_weights_do_not_matter_in_evaluation(rng):
    """The moments are constants then: what counted in them says nothing of the gradients."""
    x, grad = rng.standard_normal((2, 9, 3))
    mask, sample_weight = np.arange(9) < 6, rng.random(9)
    m, parameters = bn.moments(x, mask=mask, sample_weight=sample_weight), (np.ones(3), np.zeros(3))
    plain = bn.batch_norm_backward(grad, x, m, *parameters, training=False)
    given = bn.batch_norm_backward(grad, x, m, *parameters, mask=mask, sample_weight=sample_weight, training=False)
    for name in ("x", "weight", "bias"):
        assert same_bits(getattr(given, name), getattr(plain, name))


@pytest.mark.parametrize("power", [-1000, -200, -100, 100, 200, 900])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_scaling_all_weights_changes_no_gradient(layout, dtype, power, rng):
    """Only the ratios of weights matter, also of weights that float32 cannot hold."""
    x, grad = (lay_out(rng.standard_normal((6, 5, 4)).astype(DTYPES[dtype]), layout, (1,)) for _ in range(2))
    sample_weight = rng.random((6, 4)) * (rng.random((6, 4)) < 0.8)
    found = []
    for factor in (1.0, 2.0**power):
        given = {"sample_weight": sample_weight * factor}
        found.append(bn.batch_norm_backward(grad, x, bn.moments(x, **given), np.ones(5), **given))
    tolerance = 1e-12 if dtype == "float64" else 1e-6 if dtype == "float32" else 2e-2
    for name in ("x", "weight"):
        plain, scaled = (getattr(g, name).astype(np.float64) for g in found)
        np.testing.assert_allclose(scaled, plain, rtol=tolerance, atol=tolerance, err_msg=name)


KINKS = {
    "relu": {-1: 0, 0: 0, 1: 1, 6: 1},
    "relu6": {-1: 0, 0: 0, 1: 1, 6: 0},
    "leaky_relu": {-1: 0.01, 0: 0.01, 1: 1, 6: 1},
    "hardswish": {-4: 0, -3: 0, 0: 0.5, 3: 1, 4: 1},
    ("elu", 0.5): {0: 0.5, 1: 1},
}


@pytest.mark.parametrize("activation", KINKS, ids=str)
def test_slope_at_a_kink_is_the_one_of_pytorch(activation):
    """At exactly 0 the slope is that of the negative side; at exactly 6 relu6 is flat; hardswish bends at -3 and 3."""
    x = np.array([*KINKS[activation]], dtype=float)[:, None]
    m = bn.Moments.from_statistics(np.zeros(1), np.ones(1))
    given = {"eps": 1e-300, "activation": activation, "training": False}
    found = bn.batch_norm_backward(np.ones(x.shape), x, m, np.ones(1), np.zeros(1), **given)
    assert found.x[:, 0].tolist() == [*KINKS[activation].values()]
