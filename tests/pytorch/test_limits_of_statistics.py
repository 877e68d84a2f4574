"""Running statistics at the limits of what holds them: overflow of a dtype, of counts, and what a cast makes of counts.

A batch is refused or left out by what would be *stored*, in every front end alike, and all or nothing.
"""

from __future__ import annotations

import copy
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt

NUMPY = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
NAMES = ("running_mean", "running_var", "num_batches_tracked", "running_count")
INT64_MAX = 2**63 - 1


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


def _numpy_layer(dtype, **options):
    layer = bn.BatchNorm1d(2, affine=False, **options)
    layer.running_mean, layer.running_var = (a.astype(NUMPY[dtype]) for a in (layer.running_mean, layer.running_var))
    return layer, layer


def _torch_layer(dtype, kind=bnt.BatchNorm1d, wrap=None, **options):
    layer = kind(2, affine=False, **options).to(dtype)
    return layer, lambda x: layer(torch.from_numpy(x) if wrap is None else torch.from_numpy(x).as_subclass(wrap))


FRONT_ENDS = {
    "numpy": _numpy_layer,
    "native": _torch_layer,
    "plain": lambda dtype, **options: _torch_layer(dtype, wrap=Plain, **options),
    "sync": lambda dtype, **options: _torch_layer(
        dtype, lambda *a, **k: bnt.SyncBatchNorm(*a, reproducible=True, **k), **options
    ),
}


def _state(layer):
    """The bits of the running statistics."""
    values = {name: getattr(layer, name) for name in NAMES}
    return {
        name: (value.double().numpy() if isinstance(value, torch.Tensor) else value.astype(np.float64)).copy()
        for name, value in values.items()
        if value is not None
    }


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def _batches(dtype, momentum):
    """Batches whose second channel is near a limit: two values each, of a mean and a variance of that size."""
    most = float(torch.finfo(dtype).max)
    a = 0.5 if momentum is None else momentum  # of the second batch
    good = np.array([[1.0, 2.0], [3.0, 8.0], [2.0, 1.0], [0.5, 0.0]])
    for factor in (0.01, 0.99, 1.01):
        if dtype is not torch.float64:  # which holds no mean beyond it
            yield good + np.array([0.0, most / a * factor])
        std = np.sqrt(most) * np.sqrt(factor / a)
        yield np.array([[1.0, -std], [3.0, std], [2.0, -std], [0.5, std]])
    yield np.where(good == 8, np.inf, good)
    yield np.where(good == 8, np.nan, good)


def _expected(before, x, dtype, momentum, correction):
    """The formula, in float64, rounded once as the buffers are; and whether all of it is finite there."""
    a = 1 / (before["num_batches_tracked"] + 1) if momentum is None else momentum
    with np.errstate(all="ignore"):
        mean = x.mean(0)
        m2 = np.square(x - mean).sum(0)
        values = {"running_mean": mean, "running_var": m2 / (len(x) - correction)}
        new = {
            name: (a * v + (1 - a) * before[name]).astype(NUMPY[dtype]).astype(np.float64) for name, v in values.items()
        }
    return new, all(np.isfinite(v).all() for v in new.values())


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_what_counts_as_finite_is_what_would_be_stored(dtype):
    """Dtypes of buffers, scales near their limits, momentum, corrections, counts; every front end, every rule."""
    good = np.array([[1.0, 2.0], [3.0, 8.0], [2.0, 1.0], [0.5, 0.0]])
    eps = float(torch.finfo(dtype).eps)
    seen = set()
    for momentum, correction, keep_count in itertools.product((0.1, None), (0, 1), (False, True)):
        options = {"momentum": momentum, "running_correction": correction, "keep_count": keep_count}
        for i, x in enumerate(_batches(dtype, momentum)):
            for rule, (name, make) in itertools.product(("propagate", "skip", "raise"), FRONT_ENDS.items()):
                if rule == "propagate" and name not in ("numpy", "native"):
                    continue  # as PyTorch, which other tests compare
                cell = f"{name} {rule} {options} batch {i}"
                layer, call = make(dtype, on_nonfinite=rule, **options)
                call(good)
                before = _state(layer)
                new, finite = _expected(before, x, dtype, momentum, correction)
                seen.add(finite)
                if rule == "raise" and not finite:
                    with pytest.raises(
                        ValueError, match=rf"channel 1 of the batch .*as {np.dtype(NUMPY[dtype])}, .*running_mean"
                    ):
                        call(x)
                elif name == "numpy":
                    with np.errstate(all="ignore"):
                        call(x)
                else:
                    call(x)
                after = _state(layer)
                if rule == "propagate" or finite:
                    assert after["num_batches_tracked"] == 2, cell
                    for key, value in new.items():  # PyTorch's own operations make NaN of some infinities
                        assert np.array_equal(np.isfinite(after[key]), np.isfinite(value)), f"{cell} {key}"
                        value = np.where(np.isfinite(value), value, after[key])
                        np.testing.assert_allclose(after[key], value, rtol=2 * eps, err_msg=f"{cell} {key}")
                    if keep_count and finite:
                        assert not np.isnan(after["running_count"]).any(), cell
                else:
                    assert _same(after, before), cell
    assert seen == {True, False}


@pytest.mark.parametrize("rule", ["skip", "raise"])
def test_the_other_variance_has_to_be_finite_too(rule):
    """Where counts are kept: biased it is 1e300, but unbiased, of weights that sum to hardly more than 1, infinite."""
    x, sample_weight = np.array([[1.0, 1e150], [2.0, -1e150]]), np.array([0.5, 0.5 + 2.0**-52])
    for wrap in (None, torch.Tensor, Plain):
        options = {"running_correction": 0, "keep_count": True, "on_nonfinite": rule}
        layer = bn.BatchNorm1d(2, dtype=np.float64, **options)
        given = x, sample_weight
        if wrap is not None:
            layer = bnt.BatchNorm1d(2, dtype=torch.float64, **options)
            given = torch.from_numpy(x).as_subclass(wrap), torch.from_numpy(sample_weight)
        before = _state(layer)
        if rule == "skip":
            layer(given[0], sample_weight=given[1])
        else:
            with pytest.raises(ValueError, match=r"channel 1 .*running_var 1e\+299, and the other variance not finite"):
                layer(given[0], sample_weight=given[1])
        assert _same(_state(layer), before), wrap


# --- what a cast makes of counts ---

CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.float16),
    "type": lambda m: m.type(torch.bfloat16),
    "back and forth": lambda m: m.half().float().bfloat16(),
    "to another device": lambda m: m.to("meta", torch.float16).to_empty(device="cpu"),
    "a pickle": lambda m: pickle.loads(pickle.dumps(m.half())),
    "a copy": lambda m: copy.deepcopy(m).half(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_leaves_the_count_exact(cast):
    """As it leaves num_batches_tracked; float16 would make it infinite, bfloat16 round it to two digits."""
    layer = bnt.BatchNorm1d(3, keep_count=True, momentum=1.0)
    layer(torch.randn(70001, 3, generator=torch.Generator().manual_seed(0)))
    counted = layer.running_count.clone()
    model = CASTS[cast](torch.nn.Sequential(copy.deepcopy(layer)))
    assert model[0].running_count.dtype == torch.float64
    assert list(dict(model.named_buffers())) == [f"0.{name}" for name in NAMES]
    if cast != "to another device":
        assert torch.equal(model[0].running_count, counted)
        assert model[0].running_var.dtype != torch.float32
    state = torch.nn.Sequential(layer).state_dict()
    for assign in (False, True):
        model.load_state_dict(state, assign=assign)
        assert torch.equal(model[0].running_count, counted)
    model.load_state_dict({name: value.half() for name, value in state.items()}, assign=True)
    assert model[0].running_count.dtype == torch.float64, "whatever the state has, later batches are counted exactly"


def test_a_count_that_is_too_narrow_is_refused():
    for wrap in (torch.Tensor, Plain):
        layer = bnt.BatchNorm1d(3, keep_count=True)
        layer._buffers["running_count"] = layer.running_count.half()
        before = _state(layer)
        with pytest.raises(ValueError, match=r"running_count must be float64, .*keep_count to False"):
            layer(torch.randn(4, 3).as_subclass(wrap))
        assert _same(_state(layer), before)


# --- how far a count goes ---


@pytest.mark.parametrize(
    ("name", "rule"),
    [("numpy", "skip"), ("numpy", "propagate"), ("native", "skip"), ("native", "propagate"), ("plain", "skip")],
)
def test_a_count_of_batches_does_not_run_over(name, rule):
    """One less than the most is counted to the end; what cannot be counted, or weighed by, is refused."""
    x = np.array([[1.0, 2.0], [3.0, 8.0]], np.float32)
    for value, momentum, moves in (
        (INT64_MAX - 1, None, True),
        (2**53, None, True),
        (-5, 0.1, True),
        (-5, None, False),
        (-1, None, False),
        (INT64_MAX, None, False),
        (INT64_MAX, 0.1, name == "plain"),  # nothing looks at it there, which may be a GPU
    ):
        layer, call = FRONT_ENDS[name](torch.float32, momentum=momentum, on_nonfinite=rule)
        layer.num_batches_tracked[...] = value
        before = _state(layer)
        if moves:
            call(x)
            assert name == "plain" or int(layer.num_batches_tracked) == value + 1, (value, momentum)
        else:
            with pytest.raises(ValueError, match=rf"num_batches_tracked must count from 0 to .*; got {value}"):
                call(x)
            assert _same(_state(layer), before), (value, momentum)
