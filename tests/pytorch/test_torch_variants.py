"""Variants of the modules, each a choice of moments: against one batch, plain layers and float64 autograd."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import rest_slow

import batchnorm as bn
import batchnorm.torch as bnt

C = 3


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


WAYS = {"kernels": lambda t: t, "plain": lambda t: None if t is None else t.as_subclass(Plain)}


def _randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- masks from lengths ---


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), extra=st.integers(0, 3))
def test_a_mask_counts_the_first_places_of_each_sequence(lengths, extra):
    L = max(lengths) + extra
    mask = bnt.mask_from_lengths(torch.tensor(lengths, dtype=torch.int32), L)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[place < n for place in range(L)] for n in lengths]
    if extra == 0:
        assert torch.equal(bnt.mask_from_lengths(torch.tensor(lengths)), mask)


@pytest.mark.parametrize(
    ("lengths", "longest", "kind", "words"),
    [
        (torch.tensor([1.0]), None, TypeError, "integers; got dtype torch.float32"),
        ([1, 2], None, TypeError, r"got list; use torch\.as_tensor\(lengths\)"),
        (torch.tensor([[1]]), None, ValueError, r"one axis.*\(1, 1\)"),
        (torch.tensor([2, -1]), None, ValueError, "got -1"),
        (torch.tensor([2, 5]), 4, ValueError, r"max_length \(4\); got 5"),
    ],
)
def test_lengths_that_are_none_are_refused(lengths, longest, kind, words):
    with pytest.raises(kind, match=words):
        bnt.mask_from_lengths(lengths, longest)


# --- the plain formulas, in float64, for autograd to differentiate ---


def _moments(x, w):
    """Count, mean and biased variance of each channel."""
    over = [d for d in range(x.dim()) if d != 1]
    w = torch.ones_like(x) if w is None else w.double().expand_as(x)
    count = w.sum(over)
    mean = (w * x).sum(over) / count
    return count, mean, (w * (x - _wide(mean, x)) ** 2).sum(over) / count


def _wide(values, x):
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _formula(x, w, weight, bias, eps=1e-5, correction=None):
    """y; `correction(mean, var)` gives r and d."""
    _, mean, var = _moments(x, w)
    xhat = (x - _wide(mean, x)) / (_wide(var, x) + eps).sqrt()
    if correction is not None:
        r, d = (_wide(t.detach(), x) for t in correction(mean, var))
        xhat = xhat * r + d
    return xhat * _wide(weight, x) + _wide(bias, x)


def _spread(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, C))
        layer.bias.copy_(torch.linspace(-1, 1, C))
    return layer


def _leaves(*tensors):
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def _close(ours, exact, tolerance=1e-10):
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.detach().as_subclass(torch.Tensor), b.detach(), rtol=tolerance, atol=tolerance)


def _selection(kind, N, *rest):
    if kind == "all":
        return {}, None
    w = _randn(N, *rest, seed=9).abs() + 0.1
    if kind == "mask":
        w = _randn(N, *rest, seed=9) < 0.8
        w.view(N, -1)[:, :2] = True
    return {("mask" if kind == "mask" else "sample_weight"): w}, w.double().unsqueeze(1)


SELECTIONS = ["all", "mask", "sample_weight"]


# --- ghost batches ---


@settings(max_examples=25)
@given(
    N=st.integers(2, 9), size=st.integers(1, 10), kind=st.sampled_from(SELECTIONS), way=st.sampled_from([*WAYS]),
    activation=st.sampled_from(["silu", "relu"]),
)  # fmt: skip
def test_ghosts_are_batches_of_their_own_whose_moments_become_one(N, size, kind, way, activation):
    """y and all gradients are those of the parts, running statistics those of the whole."""
    layer = _spread(bnt.BatchNorm1d(C, virtual_batch_size=size, activation=activation, dtype=torch.float64))
    given_, w = _selection(kind, N, 4)
    x, r = _leaves(_randn(N, C, 4, seed=N) * 3 + 1, _randn(N, C, 4, seed=1))
    y = layer(WAYS[way](x), **given_, residual=WAYS[way](r))
    g = _randn(N, C, 4, seed=2)
    ours = torch.autograd.grad(y, [x, r, layer.weight, layer.bias], g)

    xe, re, weight, bias = _leaves(x, r, layer.weight, layer.bias)
    parts = [slice(i, i + size) for i in range(0, N, size)]
    z = torch.cat([_formula(xe[p], None if w is None else w[p], weight, bias) for p in parts])
    exact = getattr(torch.nn.functional, activation)(z + re)
    _close([y, *ours], [exact, *torch.autograd.grad(exact, [xe, re, weight, bias], g)])
    count, mean, var = _moments(xe.detach(), w)
    _close([layer.running_mean, layer.running_var], [0.1 * mean, 0.9 + 0.1 * var * count / (count - 1)])
    assert layer.num_batches_tracked == 1


def _run(layer, x, g=None, **given_):
    (x,) = _leaves(x)
    y = layer(x, **given_)
    grads = torch.autograd.grad(y, [x, layer.weight, layer.bias], torch.ones_like(y) if g is None else g)
    return [y, *grads, layer.running_mean, layer.running_var, layer.num_batches_tracked]


def _same(ours, others):
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("size", [7, 100])
def test_one_ghost_is_the_plain_layer_with_its_bits(size, kind, dtype):
    x, g = _randn(7, C, 5, dtype=dtype), _randn(7, C, 5, seed=3, dtype=dtype)
    given_, _ = _selection(kind, 7, 5)
    assert _same(
        _run(_spread(bnt.BatchNorm1d(C, virtual_batch_size=size)), x, g, **given_),
        _run(_spread(bnt.BatchNorm1d(C)), x, g, **given_),
    )


def test_evaluation_knows_no_ghosts():
    layer, plain = bnt.BatchNorm1d(C, virtual_batch_size=2), bnt.BatchNorm1d(C)
    x = _randn(5, C, 4, dtype=torch.float32)
    layer(x)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    untracked = bnt.BatchNorm1d(C, virtual_batch_size=2, track_running_stats=False).eval()
    assert torch.equal(untracked(x), bnt.BatchNorm1d(C, track_running_stats=False).eval()(x))


@pytest.mark.parametrize("way", WAYS)
def test_a_ghost_of_one_value_is_refused(way):
    layer = bnt.BatchNorm1d(C, virtual_batch_size=4)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(
        ValueError, match=r"BatchNorm1d: every ghost batch .*\(5, 3\).* with virtual_batch_size=4 has 1,"
    ):
        layer(WAYS[way](_randn(5, C, dtype=torch.float32)))
    if way == "kernels":
        mask = torch.tensor([True] * 4 + [False, True, False, False])
        with pytest.raises(ValueError, match=r"ghost 1 of 2 .*virtual_batch_size=4 has 1,"):
            layer(_randn(8, C, dtype=torch.float32), mask=mask)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_ghosts_of_numpy_have_the_same_bits():
    x, g = _randn(11, C, 6, dtype=torch.float32), _randn(11, C, 6, seed=1, dtype=torch.float32)
    layer, numpy = bnt.BatchNorm1d(C, virtual_batch_size=4), bn.BatchNorm1d(C, virtual_batch_size=4)
    y, by_x, by_weight, by_bias, _, var, _ = _run(layer, x, g)
    assert np.array_equal(numpy(x.numpy()), y.detach().numpy())
    grads = numpy.backward(g.numpy())
    assert np.array_equal(grads.x, by_x.numpy())
    assert np.array_equal(grads.weight, by_weight.numpy())
    assert np.array_equal(grads.bias, by_bias.numpy())
    assert np.array_equal(numpy.running_var, var.numpy())


# --- batch renormalization ---

CONSTANT = {"start": 0, "r_end": 0, "d_end": 0}


def _exact_correction(layer, r_max, d_max):
    def correction(mean, var):
        sigma = (layer.running_var + layer.eps).sqrt()
        r = ((var + layer.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        return r, ((mean - layer.running_mean) / sigma).clamp(-d_max, d_max)

    return correction


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [None, 3], ids=["whole", "ghosts"])
@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.5, 0.3), (100.0, 100.0)])
def test_renormalization_is_the_papers_formula(r_max, d_max, kind, size, way):
    renorm = bn.Renorm(r_max, d_max, **CONSTANT)
    layer = _spread(bnt.BatchNorm1d(C, renorm=renorm, virtual_batch_size=size, dtype=torch.float64))
    layer.running_mean.copy_(torch.linspace(-1, 1, C))
    layer.running_var.copy_(torch.linspace(0.2, 3, C))
    given_, w = _selection(kind, 7, 4)
    x, xe, weight, bias = _leaves(_randn(7, C, 4), _randn(7, C, 4), layer.weight, layer.bias)
    correction = _exact_correction(copy.deepcopy(layer), r_max, d_max)
    y = layer(WAYS[way](x), **given_)
    g = _randn(7, C, 4, seed=2)
    parts = [slice(i, i + (size or 7)) for i in range(0, 7, size or 7)]
    exact = torch.cat([_formula(xe[p], None if w is None else w[p], weight, bias, 1e-5, correction) for p in parts])
    _close(
        [y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], g)],
        [exact, *torch.autograd.grad(exact, [xe, weight, bias], g)],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_renormalization_without_room_is_the_plain_layer_with_its_bits(dtype):
    """Limits of 1 and 0; and the first 5000 batches of the paper's schedule."""
    x, g = _randn(6, C, 5, dtype=dtype), _randn(6, C, 5, seed=3, dtype=dtype)
    plain = _run(_spread(bnt.BatchNorm1d(C)), x, g)
    for renorm in (bn.Renorm(1.0, 0.0), bn.Renorm()):
        assert _same(_run(_spread(bnt.BatchNorm1d(C, renorm=renorm)), x, g), plain)
        poisoned = _spread(bnt.BatchNorm1d(C, renorm=renorm))
        poisoned.running_mean.fill_(torch.nan)
        assert _same(_run(poisoned, x, g)[:4], plain[:4]), "whatever the running statistics are"


def test_renormalization_within_its_limits_computes_what_evaluation_does():
    layer = bnt.BatchNorm1d(C, renorm=bn.Renorm(100.0, 100.0, **CONSTANT), momentum=0.0, dtype=torch.float64)
    layer.running_mean.copy_(torch.linspace(-1, 1, C))
    x = _randn(6, C)
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [0, 4_999, 5_000, 12_345, 25_000, 39_999, 40_000, 99_999])
def test_the_schedule_is_that_of_numpy_and_its_state_is_the_count_of_batches(step):
    layer, numpy = (cls(C, renorm=bn.Renorm()) for cls in (bnt.BatchNorm1d, bn.BatchNorm1d))
    for each in (layer, numpy):
        state = each.state_dict()
        state["num_batches_tracked"] = torch.tensor(step) if each is layer else np.array(step)
        state["running_mean"] += 9  # beyond every limit
        each.load_state_dict(state)
    assert list(layer.state_dict()) == list(torch.nn.BatchNorm1d(C).state_dict())
    x = _randn(6, C, dtype=torch.float32)
    assert np.array_equal(layer(x).detach().numpy(), numpy(x.numpy()))


# --- which statistics, whether they move, whether weight and bias learn ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("statistics", "update", "train_affine"),
    list(itertools.product(["auto", "batch", "running"], [None, True, False], [True, False])),
)
def test_each_switch_does_one_thing(statistics, update, train_affine, training, way):
    options = {"normalize_with": statistics, "update_running_stats": update, "train_affine": train_affine}
    layer = _spread(bnt.BatchNorm1d(C, **options, dtype=torch.float64)).train(training)
    layer.running_mean.copy_(torch.linspace(-1, 1, C))
    before = copy.deepcopy(layer)
    (x,) = _leaves(_randn(6, C, 4) + 2)
    y = layer(WAYS[way](x))
    by_batch = training if statistics == "auto" else statistics == "batch"
    plain = torch.nn.functional.batch_norm(
        x, None if by_batch else before.running_mean, None if by_batch else before.running_var, layer.weight,
        layer.bias, by_batch,
    )  # fmt: skip
    _close([y], [plain])
    y.sum().backward()
    assert (layer.weight.grad is not None) == (layer.bias.grad is not None) == train_affine
    count, mean, var = _moments(x.detach(), None)
    if training if update is None else update:
        expected = 0.9 * before.running_mean + 0.1 * mean, 0.9 * before.running_var + 0.1 * var * count / (count - 1)
    else:
        expected = before.running_mean, before.running_var
    _close([layer.running_mean, layer.running_var], expected)


# --- the count behind a variance ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_kept_count_makes_both_variances_exact(momentum, correction, way):
    """Batches of several sizes: each running variance is the average of that variance of the batches."""
    layer = bnt.BatchNorm1d(C, keep_count=True, momentum=momentum, running_correction=correction, dtype=torch.float64)
    assert layer.running_count.isinf().all()
    expected = {0: torch.ones(C).double(), 1: torch.ones(C).double()}
    for step, n in enumerate([4, 9, 2, 30], 1):
        x = _randn(n, C, seed=step) * step
        layer(WAYS[way](x))
        a = 1 / step if momentum is None else momentum
        expected = {c: (1 - a) * v + a * x.var(0, correction=c) for c, v in expected.items()}
    for c, v in expected.items():
        torch.testing.assert_close(layer.running_variance(c), v, rtol=1e-9, atol=0)
    numpy = bn.BatchNorm1d(C, keep_count=True, momentum=momentum, running_correction=correction, dtype=np.float64)
    for step, n in enumerate([4, 9, 2, 30], 1):
        numpy((_randn(n, C, seed=step) * step).numpy())
    assert np.allclose(numpy.state_dict()["running_count"], layer.running_count, rtol=1e-10)


def test_a_count_is_in_states_where_it_is_asked_for_only():
    plain, counting = bnt.BatchNorm1d(C), bnt.BatchNorm1d(C, keep_count=True)
    plain(_randn(5, C, dtype=torch.float32))
    assert list(plain.state_dict()) == list(torch.nn.BatchNorm1d(C).state_dict())
    assert set(counting.state_dict()) - set(plain.state_dict()) == {"running_count"}
    counting(_randn(5, C, dtype=torch.float32))
    own = copy.deepcopy(counting)
    counting.load_state_dict(plain.state_dict())
    assert counting.running_count.isinf().all(), "the count behind a variance of another layer is not known"
    counting.load_state_dict(own.state_dict())
    assert torch.equal(counting.running_count, own.running_count)
    torch.nn.Sequential(bnt.BatchNorm1d(C, keep_count=True)).load_state_dict(torch.nn.Sequential(plain).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
        counting.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "running_var"})
    counting.reset_running_stats()
    assert counting.running_count.isinf().all()
    counting.keep_count = False
    assert list(counting.state_dict()) == list(plain.state_dict())
    with pytest.raises(ValueError, match="keep_count=True"):
        counting.running_variance(0)
    for layer in (bnt.BatchNorm1d(C, track_running_stats=False), bn.BatchNorm1d(C, track_running_stats=False)):
        with pytest.raises(ValueError, match="BatchNorm1d: running_variance needs running statistics"):
            layer.running_variance()


def test_a_skipped_batch_leaves_the_count():
    layer = bnt.BatchNorm1d(C, keep_count=True, on_nonfinite="skip")
    layer(_randn(5, C, dtype=torch.float32))
    before = copy.deepcopy(layer.state_dict())
    layer(torch.full((4, C), torch.nan))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    with pytest.raises(ValueError, match="sum is more than 1"):
        layer(_randn(5, C, dtype=torch.float32), sample_weight=torch.full((5,), 0.1))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


# --- around the options ---

OPTIONED = {
    "ghosts": {"virtual_batch_size": 3},
    "renorm": {"renorm": bn.Renorm(2.0, 1.0, **CONSTANT)},
    "both": {"virtual_batch_size": 3, "renorm": bn.Renorm(2.0, 1.0, **CONSTANT)},
    "switches": {"normalize_with": "running", "update_running_stats": True, "train_affine": False},
    "count": {"keep_count": True},
}


@pytest.mark.parametrize("name", OPTIONED)
def test_options_are_copied_pickled_printed_and_named_by_revert(name, capsys):
    layer = bnt.BatchNorm1d(C, **OPTIONED[name])
    x = _randn(8, C, dtype=torch.float32)
    layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(again) == repr(layer)
        assert torch.equal(copy.deepcopy(layer)(x), again(x))
    for option, value in OPTIONED[name].items():
        assert f"{option}={value!r}" in repr(layer)
    bnt.revert(layer)
    assert f"torch.nn's has no {', '.join(f'{k}={v!r}' for k, v in OPTIONED[name].items())}" in capsys.readouterr().out


COMPILED = list(itertools.product(OPTIONED, WAYS))
IN_TURN = [("ghosts", "kernels"), ("renorm", "plain"), ("switches", "plain"), ("count", "kernels")]


@pytest.mark.parametrize(("name", "way"), rest_slow(COMPILED, *map(COMPILED.index, IN_TURN)))
def test_options_compile(name, way, monkeypatch):
    """Gradients are those of the running statistics as they were, though the graph moves them before its backward."""
    torch._dynamo.reset()  # it counts the times that a code is compiled anew
    if way == "plain":
        for name_of in ("is_native", "is_alone"):
            monkeypatch.setattr(bnt._layers, name_of, lambda x: False)
    layer = bnt.BatchNorm1d(C, **OPTIONED[name])
    layer.running_mean.fill_(0.5)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for step in range(2):
        (x, xc) = _leaves(*[_randn(8, C, seed=step, dtype=torch.float32)] * 2)
        layer(x).square().sum().backward()
        compiled(xc).square().sum().backward()
        assert torch.equal(x.grad, xc.grad)
    for p, q in zip(layer.parameters(), compiled.parameters(), strict=True):
        assert p.grad is q.grad is None or torch.equal(p.grad, q.grad)
    for k, v in layer.state_dict().items():
        assert torch.equal(v, compiled._orig_mod.state_dict()[k]), k


@pytest.mark.parametrize("name", ["ghosts", "renorm", "both"])
@pytest.mark.parametrize("kind", ["all", "sample_weight"])
def test_second_derivatives(name, kind):
    """Of renormalization where both limits are met: elsewhere r and d move with x, though gradients take no notice."""
    layer = bnt.BatchNorm1d(C, **OPTIONED[name], dtype=torch.float64)
    layer.running_mean.fill_(10.0)
    layer.running_var.fill_(0.01)
    given_, _ = _selection(kind, 5, 2)
    (x,) = _leaves(_randn(5, C, 2))
    layer.update_running_stats = False
    parameters = tuple(_leaves(layer.weight, layer.bias))

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,), given_)

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("name", ["ghosts", "renorm", "switches", "count"])
def test_options_on_converted_layers(name):
    """A layer whose class was swapped takes them as attributes."""
    layer, built = bnt.convert(torch.nn.BatchNorm1d(C), verbose=False), bnt.BatchNorm1d(C, **OPTIONED[name])
    for option, value in OPTIONED[name].items():
        setattr(layer, option, value)
    x = _randn(8, C, dtype=torch.float32)
    assert torch.equal(layer(x), built(x))
    assert all(torch.equal(v, built.state_dict()[k]) for k, v in layer.state_dict().items())


# --- one value per channel ---


def test_a_frozen_layer_takes_one_sample_in_training():
    layer = _spread(bnt.BatchNorm1d(C, normalize_with="running", update_running_stats=False))
    x = torch.randn(5, C)
    samples = torch.cat([layer(sample) for sample in x.split(1)])
    plain = torch.func.vmap(layer)(x[:, None])[:, 0]
    assert layer.num_batches_tracked == 0
    assert torch.equal(samples, layer.eval()(x))
    torch.testing.assert_close(plain, samples)


def test_one_value_is_refused_wherever_the_batch_normalizes():
    for layer in (
        bnt.BatchNorm1d(C, track_running_stats=False).eval(),
        bnt.BatchNorm1d(C, normalize_with="batch").eval(),
    ):
        with pytest.raises(ValueError, match="one value per channel"):
            layer(torch.randn(1, C))
    moving = bnt.BatchNorm1d(C, normalize_with="running")  # normalizes with the running ones, but moves them
    with pytest.raises(ValueError, match="one value per channel"):
        moving(torch.randn(1, C))
    assert moving.num_batches_tracked == 0
