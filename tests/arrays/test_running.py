"""Running statistics: one object that moves whole or not at all, and the switches of the layers that use it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from canonical import same_bits
from hypothesis import given
from hypothesis import strategies as st

import batchnorm as bn

SEEDS = st.integers(0, 2**32 - 1)
MOMENTUM = st.sampled_from([None, 0.1, 0.5, 1.0])


def _batches(seed: int, sizes: list[int], channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, channels)) * (i + 1) + i for i, size in enumerate(sizes)]


def _snapshot(running: bn.RunningStatistics) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in running._state().items()}


def _unchanged(running: bn.RunningStatistics, before: dict[str, np.ndarray]) -> bool:
    return all(same_bits(value, before[name]) for name, value in running._state().items())


# --- biased and unbiased ---


@given(SEEDS, st.lists(st.integers(2, 9), min_size=1, max_size=12), MOMENTUM, st.sampled_from([0, 1]))
def test_biased_and_unbiased_are_exact_for_batches_of_any_size(seed, sizes, momentum, correction):
    """One object with a count, against two that keep one variance each."""
    both = bn.RunningStatistics(3, momentum=momentum, running_correction=correction, keep_count=True, dtype=np.float64)
    apart = [bn.RunningStatistics(3, momentum=momentum, running_correction=c, dtype=np.float64) for c in (0, 1)]
    for x in _batches(seed, sizes):
        for running in (both, *apart):
            assert running.update(bn.moments(x))
    for c in (0, 1):
        np.testing.assert_allclose(both.running_variance(correction=c), apart[c].running_var, rtol=1e-13)


@given(SEEDS, st.lists(st.integers(2, 9), min_size=1, max_size=12))
def test_running_count_is_the_n_of_its_definition(seed, sizes):
    running = bn.RunningStatistics(2, keep_count=True, dtype=np.float64)
    biased = bn.RunningStatistics(2, running_correction=0, dtype=np.float64)
    assert np.isinf(running.running_count).all()
    for x in _batches(seed, sizes, 2):
        running.update(bn.moments(x))
        biased.update(bn.moments(x))
    n = running.running_count
    np.testing.assert_allclose(running.running_var * (n - 1) / n, biased.running_var, rtol=1e-13)


def test_batches_of_one_size_have_that_count():
    """Once the initial 1 is gone, n is m."""
    running = bn.RunningStatistics(3, momentum=None, keep_count=True)
    for x in _batches(0, [7] * 5):
        running.update(bn.moments(x))
    np.testing.assert_allclose(running.running_count, 7.0, rtol=1e-6)


def test_in_float32_the_biased_variance_is_as_exact_as_the_other():
    """The count keeps the ratio of the two, so rounding running_var to float32 is all that is lost."""
    single, double = (bn.RunningStatistics(3, keep_count=True, dtype=d) for d in (np.float32, np.float64))
    for x in _batches(3, [2, 50, 3, 2, 100, 9] * 20):
        single.update(bn.moments(x))
        double.update(bn.moments(x))
    for correction in (0, 1):
        np.testing.assert_allclose(single.running_variance(correction), double.running_variance(correction), rtol=1e-6)


def test_the_other_variance_needs_the_count():
    running = bn.RunningStatistics(2)
    assert same_bits(running.running_variance(correction=1), np.ones(2))
    with pytest.raises(ValueError, match=r"running_var is unbiased.* correction=1, or build with keep_count=True"):
        running.running_variance(correction=0)
    with pytest.raises(ValueError, match=r"must be 1 .* or 0"):
        running.running_variance(correction=2)


def test_constant_data_has_no_variance_of_either_kind():
    running = bn.RunningStatistics(1, momentum=1.0, keep_count=True)
    running.update(bn.moments(np.ones((4, 1))))
    assert running.running_variance(0) == running.running_variance(1) == 0


# --- an update is all or nothing ---


@pytest.mark.parametrize("momentum", [0.1, None])
def test_cumulative_and_exponential(momentum):
    running = bn.RunningStatistics(3, momentum=momentum, dtype=np.float64)
    layer = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    for x in _batches(1, [5, 9, 2]):
        running.update(bn.moments(x))
        layer(torch.from_numpy(x))
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(getattr(running, name), getattr(layer, name).numpy(), rtol=1e-12)
    assert running.num_batches_tracked == 3


def _not_finite() -> bn.Moments:
    x = _batches(2, [5])[0]
    x[2, 1] = np.nan
    return bn.moments(x)


def test_what_is_not_finite_propagates_is_skipped_or_raises():
    for rule, moved in (("propagate", True), ("skip", False)):
        running = bn.RunningStatistics(3, on_nonfinite=rule, keep_count=True)
        before = _snapshot(running)
        assert running.update(_not_finite()) is moved
        assert _unchanged(running, before) is not moved
    assert np.isnan(bn.RunningStatistics(3).running_mean).sum() == 0
    running = bn.RunningStatistics(3, on_nonfinite="raise", keep_count=True)
    before = _snapshot(running)
    with pytest.raises(ValueError, match="channel 1 of the batch has mean nan and variance nan"):
        running.update(_not_finite())
    assert _unchanged(running, before)


def _read_only(running: bn.RunningStatistics) -> bn.Moments:
    running.running_var.flags.writeable = False
    return bn.moments(np.eye(3))


REFUSED = {
    "other channels": (lambda r: bn.moments(np.eye(4)), r"shape \(3,\); got \(4,\)"),
    "ghosts": (lambda r: bn.moments(np.eye(3), virtual_batch_size=2), r"with moments\.reduce\(\)"),
    "nothing": (lambda r: bn.Moments.empty(3), "more than 1; got a sum of 0"),
    "weights too small": (
        lambda r: bn.moments(np.eye(3), sample_weight=np.full(3, 0.2)),
        r"more than 1; got a sum of 0\.6",
    ),
    "an array that cannot be written": (_read_only, "running_var must be a writeable array"),
}


@pytest.mark.parametrize("keep_count", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_batches_change_nothing(case, keep_count):
    make, message = REFUSED[case]
    running = bn.RunningStatistics(3, keep_count=keep_count)
    before = _snapshot(running)
    with pytest.raises(ValueError, match=message):
        running.update(make(running))
    assert _unchanged(running, before)


def test_a_count_needs_weights_that_sum_to_more_than_one():
    """Without the unbiased variance of a batch there is no count; the biased one alone can do without."""
    m = bn.moments(np.eye(3), sample_weight=np.full(3, 0.2))
    assert bn.RunningStatistics(3, running_correction=0).update(m)
    with pytest.raises(ValueError, match="more than 1; got a sum of"):
        bn.RunningStatistics(3, running_correction=0, keep_count=True).update(m)


def test_arrays_that_cannot_be_made():
    with pytest.raises(TypeError, match="float32 or float64"):
        bn.RunningStatistics(3, dtype=np.float16)
    with pytest.raises(ValueError, match="must not be negative"):
        bn.RunningStatistics(-1)


def test_reset_goes_back_to_the_beginning():
    running, fresh = (bn.RunningStatistics(3, keep_count=True) for _ in range(2))
    running.update(bn.moments(_batches(0, [4])[0]))
    running.reset()
    assert _unchanged(running, _snapshot(fresh))


# --- in layers ---


def test_a_layer_and_its_running_statistics_are_one():
    layer = bn.BatchNorm1d(3, keep_count=True, on_nonfinite="skip")
    layer(_batches(0, [6])[0])
    assert layer.running_mean is layer.running.running_mean
    assert layer.running_count is layer.running.running_count
    layer.momentum = 0.5
    layer.running_mean = np.full(3, 7.0, np.float32)
    assert layer.running.momentum == 0.5
    assert layer.running.running_mean[0] == 7
    before = layer.state_dict()
    bad = _batches(0, [6])[0]
    bad[0, 0] = np.inf
    with np.errstate(all="ignore"):
        layer(bad)
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())


def test_without_running_statistics_there_are_none():
    layer = bn.BatchNorm1d(3, track_running_stats=False, momentum=0.3)
    assert layer.running is None
    assert layer.running_mean is layer.running_var is layer.running_count is layer.num_batches_tracked is None
    assert (layer.momentum, layer.running_correction) == (0.3, 1)


def test_copies_have_running_statistics_of_their_own():
    layer = bn.BatchNorm1d(3, keep_count=True)
    layer(_batches(0, [6])[0])
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(same_bits(value, layer.state_dict()[name]) for name, value in other.state_dict().items())
        other(_batches(1, [6])[0])
        assert not same_bits(other.running_count, layer.running_count)
        assert layer.num_batches_tracked == 1


def test_states_load_with_and_without_a_count():
    counting, plain = bn.BatchNorm1d(3, keep_count=True), bn.BatchNorm1d(3)
    for layer in (counting, plain):
        layer(_batches(0, [6])[0])
    assert set(counting.state_dict()) - set(plain.state_dict()) == {"running_count"}
    other = bn.BatchNorm1d(3, keep_count=True)
    other.load_state_dict(counting.state_dict())
    assert same_bits(other.running_count, counting.running_count)
    other.load_state_dict(plain.state_dict())
    assert np.isinf(other.running_count).all()
    plain.load_state_dict(counting.state_dict())
    assert same_bits(plain.running_var, counting.running_var)
    theirs = torch.nn.BatchNorm1d(3)
    other.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"running_count must have shape \(3,\)"):
        other.load_state_dict(counting.state_dict() | {"running_count": np.ones(2), "running_mean": np.ones(3)})
    assert all(same_bits(value, before[name]) for name, value in other.state_dict().items())


def test_ghosts_move_the_running_statistics_once_by_the_whole():
    ghosts, plain = bn.BatchNorm1d(3, virtual_batch_size=4, dtype=np.float64), bn.BatchNorm1d(3, dtype=np.float64)
    x = _batches(0, [11])[0]
    assert same_bits(ghosts(x), bn.batch_norm(x, virtual_batch_size=4)[0])
    plain(x)
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(ghosts.state_dict()[name], value, rtol=1e-13, err_msg=name)
    g = ghosts.backward(x)
    expected = bn.batch_norm_backward(x, x, bn.moments(x, virtual_batch_size=4), virtual_batch_size=4)
    assert same_bits(g.x, expected.x)
    ghosts.load_state_dict(plain.state_dict())
    assert same_bits(ghosts.eval()(x), plain.eval()(x))


SWITCHES = {  # statistics, update, training: what it normalizes with, and whether it moves
    ("auto", None, True): ("batch", True),
    ("auto", None, False): ("running", False),
    ("auto", False, True): ("batch", False),
    ("auto", True, False): ("running", True),
    ("batch", None, True): ("batch", True),
    ("batch", None, False): ("batch", False),
    ("batch", True, False): ("batch", True),
    ("running", None, True): ("running", True),
    ("running", False, True): ("running", False),
    ("running", True, False): ("running", True),
}


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_switches(switches):
    """What is normalized with, what moves, and the gradient that follows; each by itself."""
    statistics, update, training = switches
    uses, moves = SWITCHES[switches]
    layer = bn.BatchNorm1d(3, normalize_with=statistics, update_running_stats=update, dtype=np.float64).train(training)
    layer.running_mean[...], layer.running_var[...] = [0.5, -1.0, 2.0], [1.0, 2.0, 3.0]
    known, (x, grad) = layer.running.moments(), _batches(0, [6, 6])
    batch = bn.moments(x)
    y = layer(x)
    assert same_bits(y, bn.normalize(x, batch if uses == "batch" else known))
    expected = bn.RunningStatistics(3, dtype=np.float64)
    expected.running_mean[...], expected.running_var[...] = known.mean, known.var()
    if moves:
        expected.update(batch)
    assert _unchanged(layer.running, _snapshot(expected))
    g = bn.batch_norm_backward(grad, x, batch if uses == "batch" else known, training=uses == "batch")
    assert same_bits(layer.backward(grad).x, g.x)


def test_a_layer_whose_running_statistics_are_frozen():
    """It trains, also on a batch that could not move them."""
    layer = bn.BatchNorm1d(3, normalize_with="running", update_running_stats=False, dtype=np.float64)
    before = layer.state_dict()
    x = np.ones((1, 3))
    assert same_bits(layer(x), bn.normalize(x, layer.running.moments()))
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("mask", [None, np.arange(6) < 4], ids=["usual", "mask"])
def test_affine_parameters_that_are_not_trained(mask):
    layer = bn.BatchNorm1d(3, train_affine=False)
    trained = bn.BatchNorm1d(3)
    x = _batches(0, [6])[0].astype(np.float32)
    assert same_bits(layer(x, mask), trained(x, mask))
    g, expected = layer.backward(x), trained.backward(x)
    assert g.weight is None
    assert g.bias is None
    assert same_bits(g.x, expected.x)
    layer.train_affine = True
    assert same_bits(layer.backward(x).weight, expected.weight)


def test_a_refused_forward_moves_nothing():
    layer = bn.BatchNorm1d(3, virtual_batch_size=2, on_nonfinite="raise", keep_count=True)
    x = _batches(0, [6])[0]
    layer(x)
    before = layer.state_dict()
    y = layer.backward(x).x
    for bad in (x[:5], np.where(x == x[0, 0], np.nan, x)):
        with pytest.raises(ValueError, match=r"ghost 2 of 3|on_nonfinite='raise'"):
            layer(bad)
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())
    assert same_bits(layer.backward(x).x, y)


def test_a_repr_names_what_is_not_usual():
    layer = bn.BatchNorm1d(
        3, virtual_batch_size=16, renorm=bn.Renorm(2.0, 1.0), normalize_with="batch", train_affine=False
    )
    for said in ("virtual_batch_size=16", "renorm=Renorm(r_max=2.0", "normalize_with='batch'", "train_affine=False"):
        assert said in repr(layer)
    assert "statistics" not in repr(bn.BatchNorm1d(3)).partition(";")[0]
