"""Variants of the modules, each a choice of moments: against one batch, plain layers and float64 autograd."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.torch import _plain
from batchnorm.torch.functional import RunningStatistics, batch_norm

C = 3


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


WAYS = {"kernels": lambda t: t, "plain": lambda t: None if t is None else t.as_subclass(Plain)}


def _randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- states of models trained apart ---


def _trained(x, **options):
    """A layer whose running statistics are those of one batch, exactly."""
    layer = bnt.BatchNorm1d(C, momentum=1.0, dtype=torch.float64, **options)
    layer(x)
    return layer


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    correction=st.sampled_from([0, 1]),
    seed=st.integers(0, 1000),
)
def test_merged_running_statistics_are_those_of_all_the_data(counts, correction, seed):
    """The law of total variance, with offsets between the parts."""
    parts = [_randn(n, C, seed=seed + i) * (i + 1) + 10 * i for i, n in enumerate(counts)]
    layers = [_trained(x, running_correction=correction) for x in parts]
    merged = bnt.merge_state_dicts(layers, counts, running_correction=correction)
    whole = torch.cat(parts)
    torch.testing.assert_close(merged["running_mean"], whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged["running_var"], whole.var(0, correction=correction), rtol=1e-12, atol=1e-12)
    assert merged["num_batches_tracked"] == len(counts)
    again = bnt.merge_state_dicts([layer.state_dict() for layer in layers[::-1]], counts[::-1],
                                 running_correction=correction)  # fmt: skip
    torch.testing.assert_close(again["running_var"], merged["running_var"], rtol=1e-13, atol=0)


def _model():
    return torch.nn.Sequential(torch.nn.Linear(2, C), torch.nn.BatchNorm1d(C), torch.nn.Linear(C, 1))


def test_a_whole_model_is_merged_parameters_averaged_by_their_shares():
    torch.manual_seed(0)
    models = [_model() for _ in range(3)]
    for i, model in enumerate(models):
        model(torch.randn(8, 2) + i)
    merged = bnt.merge_state_dicts([m.state_dict() for m in models], [10, 0, 30])
    assert isinstance(merged, collections.OrderedDict)
    assert list(merged) == list(models[0].state_dict())
    target = _model()
    target.load_state_dict(merged)
    torch.testing.assert_close(target[0].weight, 0.25 * models[0][0].weight + 0.75 * models[2][0].weight)
    assert target[1].num_batches_tracked == 2, "a state of no positions is not there"
    mean = 0.25 * models[0][1].running_mean + 0.75 * models[2][1].running_mean
    torch.testing.assert_close(target[1].running_mean, mean)
    between = 0.25 * (models[0][1].running_mean - mean) ** 2 + 0.75 * (models[2][1].running_mean - mean) ** 2
    within = (9 * models[0][1].running_var + 29 * models[2][1].running_var) / 39
    torch.testing.assert_close(target[1].running_var, within + between * 40 / 39)


def test_equal_states_stay_as_they_are():
    """Pooling the ranks of data-parallel training: parameters are alike there, and keep their bits."""
    models = [_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    merged = bnt.merge_state_dicts(models, [7, 13], running_correction=0)
    for name, value in models[0].state_dict().items():
        assert name.endswith("batches_tracked") or torch.equal(merged[name], value), name
        assert merged[name].data_ptr() != value.data_ptr()


STATE = {"running_mean": torch.zeros(C), "running_var": torch.ones(C)}
REFUSED_STATES = {
    "nothing": ([], [], ValueError, "at least one state"),
    "not a state": ([STATE, [1]], [2, 2], TypeError, "number 1 is list"),
    "names": ([STATE, {"running_mean": torch.zeros(C), "x": 1}], [2, 2], ValueError, "lacks running_var and has x"),
    "shapes": ([STATE, STATE | {"running_var": torch.ones(4)}], [2, 2], ValueError, r"\(3,\) .*\(4,\)"),
    "dtypes": ([STATE, STATE | {"running_var": torch.ones(C).double()}], [2, 2], ValueError, "float32 .*float64"),
    "counts": ([STATE, STATE], [2], ValueError, "got 1 for 2 states"),
    "shares as counts": ([STATE, STATE], [1, 1], ValueError, "above 1, or 0; .*running_correction=0"),
    "negative": ([STATE, STATE], [2, -1], ValueError, "number 1 is -1"),
    "NaN": ([STATE, STATE], [2, float("nan")], ValueError, "number 1 is nan"),
    "zeros": ([STATE, STATE], [0, 0], ValueError, "nothing to merge"),
    "integers": ([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}], [2, 2], ValueError, "a .int64. differs"),
    "objects": ([{"a": "b"}, {"a": "c"}], [2, 2], ValueError, "not a tensor"),
}


@pytest.mark.parametrize("name", REFUSED_STATES)
def test_states_that_do_not_fit_are_refused(name):
    states, counts, kind, words = REFUSED_STATES[name]
    with pytest.raises(kind, match=words):
        bnt.merge_state_dicts(states, counts)


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
        ([1, 2], None, TypeError, "got list"),
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIONED)
def test_options_compile(name, way, monkeypatch):
    """Gradients are those of the running statistics as they were, though the graph moves them before its backward."""
    torch._dynamo.reset()  # it counts the times that a code is compiled anew
    if way == "plain":
        monkeypatch.setattr(bnt._layers, "is_native", lambda x: False)
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
