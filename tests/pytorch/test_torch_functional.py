"""The function that changes nothing, and our operations on tables: the same in PyTorch's own."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_torch_variants import (
    SELECTIONS,
    WAYS,
    C,
    _close,
    _formula,
    _leaves,
    _moments,
    _randn,
    _same,
    _selection,
    _spread,
)

import batchnorm.torch as bnt
from batchnorm.torch import _plain
from batchnorm.torch.functional import RunningStatistics, batch_norm

# --- the function that changes nothing ---


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_function_is_the_layer_with_its_bits(momentum, kind):
    layer = _spread(bnt.BatchNorm1d(C, momentum=momentum, activation="relu"))
    stats, before = RunningStatistics.from_layer(layer), RunningStatistics.from_layer(layer)
    for step in range(3):
        given_, _ = _selection(kind, 6, 4)
        x, xf = _leaves(*[_randn(6, C, 4, seed=step, dtype=torch.float32)] * 2)
        y = layer(x, **given_)
        yf, stats = batch_norm(
            xf, stats, layer.weight, layer.bias, momentum=momentum, activation="relu", **given_, training=True
        )
        assert torch.equal(y, yf)
        assert _same(torch.autograd.grad(y.sum(), x), torch.autograd.grad(yf.sum(), xf))
        assert _same(stats, RunningStatistics.from_layer(layer))
        assert not any(t.requires_grad for t in stats)
    layer.eval()
    yf, after = batch_norm(xf, stats, layer.weight, layer.bias, training=False, activation="relu")
    assert torch.equal(layer(xf), yf)
    assert after is stats
    assert _same(before, RunningStatistics.initial(C))


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), kind=st.sampled_from(SELECTIONS), plain=st.booleans())
def test_micro_batches_are_the_whole_batch(sizes, kind, plain):
    """y, statistics and every gradient; also where one micro-batch alone could not be trained on."""
    N = sum(sizes)
    if N < 2:
        sizes, N = [*sizes, 1], N + 1
    given_, w = _selection(kind, N, 3)
    x, r, weight, bias = _leaves(_randn(N, C, 3) + 1, _randn(N, C, 3, seed=1), _randn(C, seed=2), _randn(C, seed=3))
    xs, rs = _leaves(*x.split(sizes)), _leaves(*r.split(sizes))
    cut = {k: v.split(sizes) for k, v in given_.items()}
    wrap = WAYS["plain" if plain else "kernels"]
    ys, stats = batch_norm(
        [wrap(t) for t in xs], RunningStatistics.initial(C, dtype=torch.float64), weight, bias,
        residual=[wrap(t) for t in rs], activation="silu", **cut, training=True
    )  # fmt: skip
    g = _randn(N, C, 3, seed=4)
    ours = torch.autograd.grad(ys, [*xs, *rs, weight, bias], list(g.split(sizes)))
    exact = torch.nn.functional.silu(_formula(x, w, weight, bias) + r)
    by_x, by_r, *by = torch.autograd.grad(exact, [x, r, weight, bias], g)
    _close([*ys, *ours], [*exact.split(sizes), *by_x.split(sizes), *by_r.split(sizes), *by])
    count, mean, var = _moments(x.detach(), w)
    _close(stats[:2], [0.1 * mean, 0.9 + 0.1 * var * count / (count - 1)])
    assert stats.num_batches_tracked == 1


@pytest.mark.parametrize("kind", ["all", "sample_weight"])
def test_micro_batches_have_second_derivatives(kind):
    given_, _ = _selection(kind, 5, 2)
    cut = {k: v.split([2, 1, 2]) for k, v in given_.items()}
    xs, rs = (_randn(5, C, 2, seed=seed).split([2, 1, 2]) for seed in (0, 1))
    inputs = _leaves(*xs, _randn(C, seed=2), _randn(C, seed=3), *rs)
    activation = "silu" if kind == "all" else "leaky_relu"  # y tells the derivative

    def run(a, b, c, weight, bias, *rs):
        return tuple(
            batch_norm([a, b, c], None, weight, bias, residual=rs, activation=activation, **cut, training=True)[0]
        )

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_the_function_under_vmap_and_grad():
    """An ensemble's statistics at once, and gradients by torch.func."""
    xs, g = _randn(4, 6, C, 5), _randn(6, C, 5, seed=1)
    weight, bias = _randn(C, seed=2), _randn(C, seed=3)
    stats = RunningStatistics(torch.zeros(4, C).double(), torch.ones(4, C).double(), torch.zeros(4, dtype=torch.int64))
    ys, moved = torch.func.vmap(lambda x, s: batch_norm(x, s, weight, bias, training=True))(xs, stats)
    for i in range(4):
        y, alone = batch_norm(xs[i], RunningStatistics.initial(C, dtype=torch.float64), weight, bias, training=True)
        _close([ys[i], *(t[i] for t in moved)], [y, *alone])

    def loss(x, weight):
        y, new = batch_norm(x, RunningStatistics.initial(C, dtype=torch.float64), weight, bias, training=True)
        return (y * g).pow(2).sum(), new

    by, new = torch.func.grad(loss, argnums=(0, 1), has_aux=True)(xs[0], weight)
    x, w = _leaves(xs[0], weight)
    expected, stats = loss(x, w)
    _close([*by, *new], [*torch.autograd.grad(expected, [x, w]), *stats])
    micro = torch.func.grad(
        lambda x: batch_norm(x.split([1, 5]), None, weight, bias, training=True)[0][1].pow(3).sum()
    )(xs[0])
    whole = torch.func.grad(lambda x: batch_norm(x, None, weight, bias, training=True)[0][1:].pow(3).sum())(xs[0])
    _close([micro], [whole])


_train_step = functools.partial(batch_norm, training=True)

REFUSED_CALLS = {
    "one value": (lambda x: _train_step(x[:1, :, 0], None), ValueError, r"one value per channel \(input \(1, 3\)"),
    "empty mask": (lambda x: _train_step(x, None, mask=torch.zeros(4, 2, dtype=torch.bool)), ValueError, "nothing"),
    "no statistics": (lambda x: batch_norm(x, None, training=False), ValueError, "running=None"),
    "channels": (
        lambda x: _train_step(x, RunningStatistics.initial(4)), ValueError, r"running_mean .* 3 channels; got \(4,\)"
    ),
    "weight": (lambda x: _train_step(x, None, torch.ones(2)), ValueError, "weight must"),
    "rank": (lambda x: _train_step(x[:, 0, 0], None), ValueError, "channels on axis 1"),
    "no parts": (lambda x: _train_step([], None), ValueError, "at least one micro-batch"),
    "parts": (lambda x: _train_step([x, x[:, :2]], None), ValueError, "3 of .* and 2 of"),
    "masks": (lambda x: _train_step([x, x], None, mask=[torch.ones(4, 2).bool()]), ValueError, "each of 2 .*got 1"),
    "a mask": (lambda x: _train_step([x], None, mask=torch.ones(4, 2).bool()), TypeError, "sequence of tensors"),
    "residual": (lambda x: _train_step(x, None, residual=x[:2]), ValueError, "residual must have"),
    "no running statistics": (
        lambda x: RunningStatistics.from_layer(bnt.BatchNorm1d(3, track_running_stats=False)), ValueError,
        "no running statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_calls_of_the_function_that_do_not_fit_are_refused(name):
    call, kind, words = REFUSED_CALLS[name]
    with pytest.raises(kind, match=words):
        call(_randn(4, C, 2))


# --- our operations on tables, and the same in PyTorch's own ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("group", [0, 1, 3, 50])
def test_tables_are_the_same_whoever_makes_them(group, kind, dtype):
    native = torch.ops.batchnorm
    x, g, r = (_randn(7, C, 4, seed=s, dtype=dtype) for s in range(3))
    weight, bias = torch.linspace(0.5, 2, C), torch.linspace(-1, 1, C)
    w = _selection(kind, 7, 4)[1]
    options = (1e-5, 4, 0.0)
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.float16 else {"rtol": 1e-4, "atol": 1e-4}
    table = native.moments(x, w, group)
    torch.testing.assert_close(_plain.moments(x, w, group), table, **near)
    whole = native.moments(x, w)
    if group:
        merged = native.merge(table)
        assert torch.equal(_plain.merge(table), merged), "the same tree in tensor operations"
        torch.testing.assert_close(merged, whole, rtol=1e-6, atol=1e-6)  # sums of cells are float's
        y, stats = native.forward(x, weight, bias, None, None, w, r, *options, None, group)
        assert torch.equal(stats, table)
        given = native.forward(x, weight, bias, None, None, w, r, *options, table, group)
        assert _same(given, (y, stats)), "a table that is given"
        torch.testing.assert_close(
            _plain.forward(x, weight, bias, None, None, w, r, *options, None, group)[0], y, **near
        )
    sums = native.sums(g, x, whole, weight, bias, r, *options, group)
    torch.testing.assert_close(_plain.sums(g, x, whole, weight, bias, r, *options, group), sums, **near)
    if group:
        sums = native.merge(sums)
        assert torch.equal(_plain.merge(native.sums(g, x, whole, weight, bias, r, *options, group)), sums)
    sums = 2 * sums  # as those of a larger batch: they are given, not gathered again
    expected = _plain.input_gradients(g, x, whole, sums, weight, bias, w, r, *options)
    parts = native.input_gradients(g, x, whole, sums, weight, bias, w, r, *options)
    for ours, other in zip(parts, expected, strict=True):
        torch.testing.assert_close(other, ours, **near)


OUT_OF_MEMORY = {
    "negative group": (lambda o, x, t: o.moments(x, None, -1), "at least 1"),
    "a table of ghosts": (lambda o, x, t: o.forward(x, *[None] * 6, 1e-5, 0, 0.0, t, 2), "table that forward returned"),
    "a table of others": (lambda o, x, t: o.sums(x, x, t[:, :2], None, None, None, 1e-5, 0, 0.0), "table"),
    "sums": (lambda o, x, t: o.input_gradients(x, x, t, t, None, None, None, None, 1e-5, 0, 0.0), "two rows"),
    "parts": (lambda o, x, t: o.merge(t), "parts must be"),
    "negative weights": (lambda o, x, t: o.moments(x, -torch.ones(4, 1), 0), "non-negative"),
    "rows": (lambda o, x, t: o.forward(x, torch.ones(3, C), *[None] * 5, 1e-5, 0, 0.0, None, 2), "for each"),
    "ghosts of given": (
        lambda o, x, t: o.forward(x, None, None, torch.ones(C), torch.ones(C), None, None, 1e-5, 0, 0.0, None, 2),
        "no ghost_size",
    ),
}


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_operations_on_tables_refuse_what_would_lead_out_of_memory(name):
    native = torch.ops.batchnorm
    call, words = OUT_OF_MEMORY[name]
    x = _randn(4, C)
    with pytest.raises(ValueError, match=words):
        call(native, x, native.moments(x, None))
