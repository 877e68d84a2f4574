"""Synchronized batch normalization in real processes, against one process and float64 autograd of the formulas."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import os
import pickle
import re
import signal
import time

import numpy as np
import pytest
import ranks as workers
import torch
import torch.distributed as dist
from pairs import pairs
from ranks import Failed, Ranks, group_of
from torch import nn

import batchnorm as bn
import batchnorm.torch as bnt

C = 3
GROUPS = [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (2, 3)]


@pytest.fixture(scope="module")
def four():
    """Four processes, and groups of some of them."""
    pool = Ranks(4, GROUPS)
    yield pool
    pool.close()


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


def _randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _spread(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
        layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
        layer.running_mean.fill_(0.3)
    return layer


def _tensors(given):
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


def _arrays(*tensors):
    return [None if t is None else t.detach().as_subclass(torch.Tensor).numpy() for t in tensors]


def _cut(values, sizes):
    """A dictionary of tensors of the whole batch, one for each rank; a list is one for each already."""
    ends = np.cumsum([0, *sizes])
    return [
        {k: (v[i] if isinstance(v, list) else v[a:b].numpy()) for k, v in values.items()}
        for i, (a, b) in enumerate(itertools.pairwise(ends))
    ]


# --- one step, in a rank and in one process ---


def step(rank, group, given, options, plain=False):
    """Forward, backward: y, gradients by x, residual, weight and bias, running statistics."""
    dtype = options.get("dtype", torch.float64)
    layer = _spread(bnt.SyncBatchNorm(C, process_group=group_of(group), **options | {"dtype": dtype}))
    return _step(layer, given, plain)


def _step(layer, given, plain=False):
    t = _tensors(given)
    leaves = [t[k].requires_grad_() for k in ("x", "residual") if k in t]
    seen = [leaf.as_subclass(Plain) if plain else leaf for leaf in leaves]
    selection = {k: t[k] for k in ("mask", "sample_weight") if t.get(k) is not None}
    y = layer(seen[0], **selection, **({"residual": seen[1]} if len(seen) > 1 else {}))
    by = torch.autograd.grad(y, [*leaves, layer.weight, layer.bias], t["g"].to(y.dtype))
    return _arrays(y, *by, layer.running_mean, layer.running_var, layer.num_batches_tracked)


def _exact(values, options, correction=None):
    """The same from the formulas in float64, for the batch as a whole."""
    x, r = (values[k].double().clone().requires_grad_() if k in values else None for k in ("x", "residual"))
    layer = _spread(bnt.SyncBatchNorm(C, dtype=torch.float64))
    w = torch.ones_like(x)
    for name in ("mask", "sample_weight"):
        if name in values:
            w = w * values[name].double().unsqueeze(1)
    over = [d for d in range(x.dim()) if d != 1]
    shape = (1, C, *[1] * (x.dim() - 2))
    count = w.sum(over)
    mean = (w * x).sum(over) / count
    var = (w * (x - mean.reshape(shape)) ** 2).sum(over) / count
    z = (x - mean.reshape(shape)) / (var.reshape(shape) + layer.eps).sqrt()
    if correction is not None:
        d, r_ = correction(layer, mean.detach(), var.detach())
        z = z * r_.reshape(shape) + d.reshape(shape)
    z = z * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    z = z if r is None else z + r
    activation = options.get("activation")
    y = z if activation is None else getattr(nn.functional, activation)(z)
    leaves = [leaf for leaf in (x, r) if leaf is not None]
    by = torch.autograd.grad(y, [*leaves, layer.weight, layer.bias], values["g"].double(), create_graph=True)
    running = 0.9 * layer.running_mean + 0.1 * mean, 0.9 * layer.running_var + 0.1 * var * count / (count - 1)
    return [y, *by, *running], (x, layer)


def _compare(found, exact, sizes, tolerance=1e-10):
    """Of ranks with the whole: what has samples is cut, gradients of parameters add up, statistics are everybody's."""
    for answer in found:
        assert not isinstance(answer, Failed), answer
    *cut, by_weight, by_bias, mean, var = (t.detach() for t in exact)
    ends = np.cumsum([0, *sizes])
    for i, of_rank in enumerate(found):
        for ours, whole in zip(of_rank[:-5], cut, strict=True):
            assert np.allclose(ours, whole[ends[i] : ends[i + 1]].numpy(), rtol=tolerance, atol=tolerance)
        assert np.allclose(of_rank[-3], mean.numpy(), rtol=tolerance)
        assert np.allclose(of_rank[-2], var.numpy(), rtol=tolerance)
        assert of_rank[-1] == 1
        assert all(np.array_equal(a, b) for a, b in zip(of_rank[-3:], found[0][-3:], strict=True)), "the same bits"
    assert np.allclose(sum(of_rank[-5] for of_rank in found), by_weight.numpy(), rtol=tolerance, atol=tolerance)
    assert np.allclose(sum(of_rank[-4] for of_rank in found), by_bias.numpy(), rtol=tolerance, atol=tolerance)


def _batch(N, kind, residual, *rest):
    values = {"x": _randn(N, C, *rest) * 2 + 1, "g": _randn(N, C, *rest, seed=1)}
    if residual:
        values["residual"] = _randn(N, C, *rest, seed=2)
    if kind == "mask":
        values["mask"] = _randn(N, *rest, seed=3) < 0.7
    if kind == "sample_weight":
        values["sample_weight"] = _randn(N, *rest, seed=3).abs() + 0.1
    return values


SPLITS = {
    "one": [7],
    "two": [4, 3],
    "uneven": [6, 1],
    "an empty one": [3, 0, 4],
    "three": [2, 2, 3],
    "four": [1, 3, 1, 2],
    "most of them empty": [0, 7, 0, 0],
}


PRODUCT = list(itertools.product(SPLITS, ("all", "mask", "sample_weight"), (False, True)))
QUICK = pairs(SPLITS, ("all", "mask", "sample_weight"), (False, True))


@pytest.mark.parametrize(
    ("split", "kind", "reproducible"),
    [pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow) for row in PRODUCT],
)
def test_ranks_together_are_the_batch_as_a_whole(four, split, kind, reproducible):
    sizes, activation = SPLITS[split], "relu" if kind == "mask" else "silu"  # what y tells the derivative of, and not
    options = {"activation": activation, "reproducible": reproducible}
    values = _batch(7, kind, True, 4)
    world = tuple(range(len(sizes)))
    for plain in (False, True):
        found = four.run(
            step, [world] * len(sizes), _cut(values, sizes), [options] * len(sizes), [plain] * len(sizes), ranks=world
        )
        _compare(found, _exact(values, options)[0], sizes)


@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
def test_a_rank_of_which_nothing_counts(four, kind):
    values = _batch(7, kind, False, 4)
    values[kind][2:5] = 0
    sizes = [2, 3, 2]
    found = four.run(step, [(0, 1, 2)] * 3, _cut(values, sizes), [{}] * 3, ranks=range(3))
    _compare(found, _exact(values, {})[0], sizes)


def test_a_mask_on_one_rank_only(four):
    values = _batch(7, "mask", False, 4)
    values["mask"][:4] = True
    parts = _cut(values, [4, 3])
    parts[0]["mask"] = None
    _compare(four.run(step, [(0, 1)] * 2, parts, [{}] * 2, ranks=range(2)), _exact(values, {})[0], [4, 3])


@pytest.mark.parametrize("rest", [(), (5,), (2, 3), (2, 3, 2)], ids=str)
def test_any_rank_of_input_and_all_processes_by_default(four, rest):
    values = _batch(9, "all", False, *rest)
    sizes = [2, 3, 1, 3]
    _compare(four.run(step, [None] * 4, _cut(values, sizes), [{}] * 4), _exact(values, {})[0], sizes)


def test_groups_of_processes_are_apart(four):
    """Two groups at the same time, each a batch of its own."""
    halves = [_batch(5, "all", False, 4), {k: v + 3 for k, v in _batch(6, "all", False, 4).items()}]
    parts = [*_cut(halves[0], [2, 3]), *_cut(halves[1], [5, 1])]
    found = four.run(step, [(0, 1), (0, 1), (2, 3), (2, 3)], parts, [{}] * 4)
    _compare(found[:2], _exact(halves[0], {})[0], [2, 3])
    _compare(found[2:], _exact(halves[1], {})[0], [5, 1])


def test_renormalization_by_the_moments_of_all(four):
    renorm = bn.Renorm(1.5, 0.3, start=0, r_end=0, d_end=0)
    values = _batch(7, "all", False, 4)

    def correction(layer, mean, var):
        sigma = (layer.running_var + layer.eps).sqrt()
        r = ((var + layer.eps).sqrt() / sigma).clamp(1 / 1.5, 1.5)
        return ((mean - layer.running_mean) / sigma).clamp(-0.3, 0.3), r

    found = four.run(step, [(0, 1, 2)] * 3, _cut(values, [2, 4, 1]), [{"renorm": renorm}] * 3, ranks=range(3))
    _compare(found, _exact(values, {}, correction)[0], [2, 4, 1])


# --- the same bits for any number of processes ---


@pytest.mark.parametrize(
    ("dtype", "plain"),
    [(torch.float32, False), (torch.float64, False), (torch.bfloat16, False), (torch.float32, True)],
    ids=["float32", "float64", "bfloat16", "float32, plain"],
)
@pytest.mark.parametrize("kind", ["all", "mask", "sample_weight"])
def test_reproducible_is_the_same_bits_for_any_contiguous_split(four, kind, dtype, plain):
    values = {k: v.to(dtype) if k in ("x", "g", "residual") else v for k, v in _batch(13, kind, True, 5).items()}
    activation = "relu" if plain else "silu"  # PyTorch's exp has other bits at the end of an array
    options = {"reproducible": True, "activation": activation, "dtype": torch.float32 if dtype.itemsize == 2 else dtype}
    carried = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in values.items()}
    (alone,) = (bits(0, None, part, options, dtype, plain) for part in _cut(carried, [13]))
    for sizes in ([6, 7], [1, 12], [4, 4, 5], [0, 8, 5], [13, 0, 0], [3, 4, 1, 5], [1, 1, 1, 10]):
        n = len(sizes)
        found = four.run(
            bits, [tuple(range(n))] * n, _cut(carried, sizes), [options] * n, [dtype] * n, [plain] * n, ranks=range(n)
        )
        for answer in found:
            assert not isinstance(answer, Failed), answer
            assert all(np.array_equal(a, b) for a, b in zip(answer[3:], alone[3:], strict=True)), "running statistics"
        for i in range(3):
            assert np.array_equal(np.concatenate([answer[i] for answer in found]), alone[i])


def bits(rank, group, given, options, dtype, plain):
    """Of y, the gradients by x and residual, and running statistics."""
    given = {k: torch.from_numpy(v) for k, v in given.items()}
    given = {k: v.to(dtype) if k in ("x", "g", "residual") else v for k, v in given.items()}
    layer = _spread(bnt.SyncBatchNorm(C, process_group=group_of(group), **options))
    x, r = (given[k].requires_grad_() for k in ("x", "residual"))
    seen = [t.as_subclass(Plain) if plain else t for t in (x, r)]
    y = layer(seen[0], residual=seen[1], **{k: given[k] for k in ("mask", "sample_weight") if k in given})
    by = torch.autograd.grad(y, [x, r], given["g"])
    wide = [t.double() if t.dtype == torch.bfloat16 else t for t in (y, *by)]
    return _arrays(*wide, layer.running_mean, layer.running_var)


def test_without_processes_it_is_the_plain_layer_with_its_bits():
    x, g = _randn(6, C, 4, dtype=torch.float32), _randn(6, C, 4, seed=1, dtype=torch.float32)
    given = {"x": x.numpy(), "g": g.numpy()}
    synced = _step(_spread(bnt.SyncBatchNorm(C)), copy.deepcopy(given))
    assert all(np.array_equal(a, b) for a, b in zip(synced, _step(_spread(bnt.BatchNorm1d(C)), given), strict=True))


# --- higher derivatives, one collective each way ---


def second(rank, group, given, options):
    """A gradient penalty: gradients by x, weight, bias and g of the squared gradients by x and weight."""
    t = _tensors(given)
    layer = _spread(bnt.SyncBatchNorm(C, process_group=group_of(group), dtype=torch.float64, **options))
    x, g = t["x"].requires_grad_(), t["g"].requires_grad_()
    y = layer(x, **{k: t[k] for k in ("sample_weight",) if k in t})
    by_x, by_weight = torch.autograd.grad(y, [x, layer.weight], g, create_graph=True)
    own = by_x.pow(3).sum() + (by_weight * torch.arange(1.0, C + 1)).sum()
    return _arrays(*torch.autograd.grad(own, [x, g, layer.weight]))


@pytest.mark.parametrize("kind", ["all", "sample_weight"])
@pytest.mark.parametrize("sizes", [[4, 3], [3, 0, 4]], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("reproducible", [False, True], ids=["", "reproducible"])
def test_gradients_of_gradients(four, sizes, kind, activation, reproducible):
    values, n = _batch(7, kind, False, 4), len(sizes)
    options = {"activation": activation, "reproducible": reproducible}
    found = four.run(second, [tuple(range(n))] * n, _cut(values, sizes), [options] * n, ranks=range(n))
    for answer in found:
        assert not isinstance(answer, Failed), answer
    values["g"].requires_grad_()
    (_, by_x, by_weight, *_), (x, layer) = _exact(values, options)
    own = by_x.pow(3).sum() + (by_weight * torch.arange(1.0, C + 1)).sum()
    exact = torch.autograd.grad(own, [x, values["g"], layer.weight])
    for i, whole in enumerate(exact):
        together = sum(a[i] for a in found) if i == 2 else np.concatenate([a[i] for a in found])
        assert np.allclose(together, whole.numpy(), rtol=1e-9, atol=1e-9)


def collectives(rank, x):
    """Sizes of what is gathered, in the forward and in the backward."""
    sizes, gather = [], dist.all_gather

    def counted(out, message, group=None):
        sizes.append(message.numel())
        return gather(out, message, group=group)

    dist.all_gather = counted
    try:
        layer = bnt.SyncBatchNorm(x.shape[1], process_group=group_of((0, 1)))
        leaf = torch.from_numpy(x).requires_grad_()
        y = layer(leaf)
        forward = len(sizes)
        y.sum().backward()
        backward = len(sizes) - forward
        layer(torch.from_numpy(x)).sum().backward()  # as in the first layer of a network: no gradient by x is asked for
        return forward, backward, len(sizes) - forward - backward, sizes
    finally:
        dist.all_gather = gather


def test_one_collective_each_way_of_a_size_that_is_the_channels(four):
    for answer in four.run(
        collectives, [np.ones((4, 50, 9), np.float32), np.ones((3, 50, 9), np.float32)], ranks=(0, 1)
    ):
        assert not isinstance(answer, Failed), answer
        forward, backward, without_x, sizes = answer
        assert (forward, backward, without_x) == (1, 1, 1)
        assert max(sizes) <= 4 * 50 + 10


# --- all raise, or none ---


def refused(rank, group, x, options, given, good):
    """What is raised, whether the state is as it was, and that the next call works."""
    layer = _spread(bnt.SyncBatchNorm(C, process_group=group_of(group), **options))
    before = copy.deepcopy(layer.state_dict())
    try:
        y = layer(torch.from_numpy(x), **_tensors(given))
        said = ("nothing", str(tuple(y.shape)))
    except Exception as error:
        said = (type(error).__name__, str(error))
    same = all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer(torch.from_numpy(good))
    return *said, same, int(layer.num_batches_tracked)


ONE, NONE = np.ones((1, C), np.float32), np.ones((0, C), np.float32)
THREE = np.arange(3.0 * C, dtype=np.float32).reshape(3, C)
BAD = THREE * np.nan
REFUSALS = {
    "channels of one": (
        [THREE, np.ones((3, C + 1), np.float32)],
        {},
        [{}, {}],
        ["rank 1 .*refused", "expected 3 channels"],
    ),
    "rank of one": ([THREE, np.ones(3, np.float32)], {}, [{}, {}], ["rank 1 .*refused", "at least 2D"]),
    "mask of one": ([THREE, THREE], {}, [{"mask": np.ones(2, bool)}, {}], ["mask says", "rank 0 .*refused"]),
    "weights of one": ([THREE, THREE], {}, [{}, {"sample_weight": -np.ones(3)}], ["rank 1 .*refused", "non-negative"]),
    "residual of one": ([THREE, THREE], {}, [{}, {"residual": np.ones((7, 2))}], ["rank 1 .*refused", "broadcast"]),
    "dtype of one": ([THREE.astype(np.int64), THREE], {}, [{}, {}], ["input must be float32", "rank 0 .*refused"]),
    "one value": ([ONE, NONE], {}, [{}, {}], ["one value per channel in the batches of all ranks"] * 2),
    "nothing counts": ([THREE, THREE], {}, [{"mask": np.zeros(3, bool)}] * 2, ["select nothing"] * 2),
    "not finite": ([THREE, BAD], {"on_nonfinite": "raise"}, [{}, {}], ["is not finite|has mean nan"] * 2),
    "small weights": ([THREE, THREE], {}, [{"sample_weight": np.full(3, 0.1)}] * 2, ["running_correction=0"] * 2),
}


@pytest.mark.parametrize("reproducible", [False, True], ids=["", "reproducible"])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_one_rank_refuses_all_refuse_and_nothing_is_changed(four, name, reproducible):
    xs, options, given, words = REFUSALS[name]
    options = options | {"reproducible": reproducible}
    found = four.run(refused, [(0, 1)] * 2, xs, [options] * 2, given, [THREE] * 2, ranks=(0, 1))
    for answer, expected in zip(found, words, strict=True):
        assert not isinstance(answer, Failed), answer
        kind, message, same, batches = answer
        assert kind in ("ValueError", "TypeError"), message
        assert re.search(expected, message), message
        assert same
        assert batches == 1, "the call after it, of all ranks"


@pytest.mark.parametrize(
    ("xs", "options"),
    [([ONE, NONE], {"on_single_value": "running"}), ([NONE, NONE], {}), ([THREE, BAD], {"on_nonfinite": "skip"})],
    ids=["one value", "all empty", "not finite"],
)
def test_what_moves_nothing_moves_nothing_on_any_rank(four, xs, options):
    for answer, x in zip(
        four.run(refused, [(0, 1)] * 2, xs, [options] * 2, [{}] * 2, [THREE] * 2, ranks=(0, 1)), xs, strict=True
    ):
        assert not isinstance(answer, Failed), answer
        assert answer == ("nothing", str(x.shape), True, 1)


def evaluated(rank, x):
    """By one rank alone."""
    layer = bnt.SyncBatchNorm(C, process_group=group_of((0, 1))).eval()
    frozen = bnt.SyncBatchNorm(C, process_group=group_of((0, 1)), normalize_with="running", update_running_stats=False)
    return _arrays(layer(torch.from_numpy(x)), frozen(torch.from_numpy(x)))


def test_evaluation_needs_no_other_rank(four):
    (answer,) = four.run(evaluated, [THREE], ranks=(0,))
    assert not isinstance(answer, Failed), answer
    for y in answer:
        assert np.allclose(y, THREE, atol=1e-4)


# --- models ---


def _model():
    torch.manual_seed(3)
    layers = [nn.Conv1d(2, C, 3), nn.BatchNorm1d(C), nn.ReLU(), nn.Conv1d(C, 4, 3), nn.BatchNorm1d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 1)).double()


def train(rank, group, batches, how):
    """Three steps of data-parallel training; the state after them. Held: each with a forward that does not count."""
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.checkpoint import checkpoint

    model = bnt.convert_sync(_model(), group_of(group), verbose=False)
    assert [type(m).__name__ for m in model].count("SyncBatchNorm") == 2
    parallel = DistributedDataParallel(model, process_group=group_of(group))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        x = torch.from_numpy(x)
        y = checkpoint(parallel, x, use_reentrant=False) if how == "checkpointed" else parallel(x)
        y.square().mean().backward()
        if how == "held":
            with bnt.hold(parallel):
                parallel(x + 1).square().mean().backward()
        optimizer.step()
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("how", ["plainly", "checkpointed", "held"])
def test_data_parallel_training_is_training_in_one_process(four, how):
    batches = [_randn(6, 2, 8, seed=s) for s in range(3)]
    parts = [[b[i : i + 2].numpy() for b in batches] for i in (0, 2, 4)]
    found = four.run(train, [(0, 1, 2)] * 3, parts, [how] * 3, ranks=range(3))
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if how == "held":
            with bnt.hold(model):
                model(x + 1).square().mean().backward()
        optimizer.step()
    for answer in found:
        assert not isinstance(answer, Failed), answer
        for k, v in model.state_dict().items():
            assert np.allclose(answer[k], v.numpy(), rtol=1e-9, atol=1e-11), k
            assert np.array_equal(answer[k], found[0][k]), k


def fused(rank, group, given, options):
    """A step with activation and residual in one pass, and one whose rank is refused."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = _spread(bnt.SyncBatchNorm(C, process_group=group_of(group), dtype=torch.float64))

        def forward(self, x, residual):
            return torch.relu(self.norm(x) + residual)

    block = bnt.fuse(Block(), verbose=False)
    passes, together = [], bnt.SyncBatchNorm._synchronized
    t = _tensors(given)
    x, r = t["x"].requires_grad_(), t["residual"].requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bnt.SyncBatchNorm, "_synchronized", lambda *a: passes.append(a[-1]) or together(*a))
        y = block(x, r)
    assert [code for code, _ in passes] == [1], "ReLU, in the same pass"
    by = torch.autograd.grad(y, [x, r, block.norm.weight, block.norm.bias], t["g"])
    found = _arrays(y, *by, block.norm.running_mean, block.norm.running_var, block.norm.num_batches_tracked)
    try:
        block(x if rank else x[0, 0], r)
    except ValueError:
        return found
    raise AssertionError("one rank's input has another rank: all refuse")


def test_a_fused_model_is_one_pass_on_all_ranks(four):
    values = _batch(7, "all", True, 4)
    found = four.run(fused, [(0, 1, 2)] * 3, _cut(values, [2, 4, 1]), [{}] * 3, ranks=range(3))
    _compare(found, _exact(values, {"activation": "relu"})[0], [2, 4, 1])


def compiled(rank, x):
    """A compiled model around the layer: the graph breaks there."""
    layer = bnt.SyncBatchNorm(C, process_group=group_of((0, 1)))
    model = torch.compile(nn.Sequential(nn.Linear(C, C), layer, nn.ReLU()), backend="eager")
    plain = copy.deepcopy(model._orig_mod[0]), bnt.SyncBatchNorm(C, process_group=group_of((0, 1)))
    y = model(torch.from_numpy(x))
    expected = torch.relu(plain[1](plain[0](torch.from_numpy(x))))
    y.sum().backward()
    return bool(torch.equal(y, expected)), bool(torch.equal(layer.running_var, plain[1].running_var))


@pytest.mark.slow
def test_a_compiled_model_breaks_its_graph_at_the_layer(four):
    assert four.run(compiled, [THREE, THREE + 1], ranks=(0, 1)) == [(True, True)] * 2


def statistics(rank, group, x):
    """Of a layer that each rank trained by itself."""
    layer = bnt.BatchNorm1d(C, momentum=1.0, dtype=torch.float64)
    layer(torch.from_numpy(x))
    states = [None] * 2
    dist.all_gather_object(states, (layer.state_dict(), len(x)), group=group_of(group))
    merged = bnt.merge_state_dicts([state for state, _ in states], [n for _, n in states])
    return _arrays(merged["running_mean"], merged["running_var"])


def test_ranks_that_trained_apart_are_pooled(four):
    x = _randn(9, C)
    for answer in four.run(statistics, [(0, 1)] * 2, [x[:4].numpy(), x[4:].numpy()], ranks=(0, 1)):
        assert not isinstance(answer, Failed), answer
        assert np.allclose(answer[0], x.mean(0))
        assert np.allclose(answer[1], x.var(0))


# --- the layer as a module ---


def test_it_has_the_arguments_and_the_state_of_torch_nns_layer():
    """But not its class: DistributedDataParallel refuses that on the CPU."""
    assert not issubclass(bnt.SyncBatchNorm, nn.SyncBatchNorm)
    theirs = list(inspect.signature(nn.SyncBatchNorm.__init__).parameters.values())
    ours = list(inspect.signature(bnt.SyncBatchNorm.__init__).parameters.values())
    positional = [p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in ours[: len(positional)]] == [(p.name, p.default) for p in positional]
    if "bias" in inspect.signature(nn.BatchNorm1d.__init__).parameters:  # PyTorch 2.11 has none
        assert bnt.SyncBatchNorm(4, bias=False).bias is None
    layer, stock = bnt.SyncBatchNorm(4), nn.SyncBatchNorm(4)
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert repr(layer) == repr(stock)
    assert list(layer.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(layer.state_dict())
    assert "reproducible=True" in repr(bnt.SyncBatchNorm(4, reproducible=True))
    again = pickle.loads(pickle.dumps(bnt.SyncBatchNorm(4, reproducible=True, activation="relu")))
    assert again.reproducible
    assert again.activation == "relu"


def test_ghosts_are_refused():
    with pytest.raises(TypeError, match="virtual_batch_size"):
        bnt.SyncBatchNorm(C, virtual_batch_size=2)
    with pytest.raises(ValueError, match=r"convert_sync: 0 has ghost batches .virtual_batch_size=2"):
        bnt.convert_sync(nn.Sequential(bnt.BatchNorm1d(C, virtual_batch_size=2)))


def test_convert_sync_and_revert(capsys):
    model = nn.Sequential(
        nn.BatchNorm1d(4), bnt.BatchNorm2d(4, activation="relu"), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d(),
        nn.BatchNorm3d(4),
    )  # fmt: skip
    held = [dict(m.__dict__) for m in model]
    kinds = [type(m) for m in model]
    assert bnt.convert_sync(model) is model
    assert [type(m) for m in model] == [bnt.SyncBatchNorm] * 3 + [nn.LazyBatchNorm1d, bnt.SyncBatchNorm]
    assert capsys.readouterr().out.splitlines() == [
        "converted 4 batch normalizations",
        "layer 3 (LazyBatchNorm1d) is left: it has no parameters yet; call the model once, then convert",
    ]
    with pytest.raises(ValueError, match="expected 5D"):
        model[4](torch.ones(2, 4))
    bnt.convert_sync(model, "another group", verbose=False)
    assert [m.process_group for m in model if isinstance(m, bnt.SyncBatchNorm)] == ["another group"] * 4
    bnt.revert(model)
    assert capsys.readouterr().out.splitlines() == [
        "reverted 3 batch normalizations",
        "layer 1 (BatchNorm2d) is left: torch.nn's has no activation='relu'",
    ]
    assert [type(m) for m in model] == kinds
    assert [m.__dict__.keys() for m in model] == [h.keys() for h in held]
    assert model[2].process_group == "another group", "of torch.nn's layer it is its own"
    converted = bnt.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(4)), None)
    assert type(converted[0]) is bnt.SyncBatchNorm
    bnt.revert(bnt.SyncBatchNorm(4, reproducible=True))
    assert "torch.nn's has no reproducible=True" in capsys.readouterr().out


# --- ranks that die, or hang ---


def alone(rank, group, x, seconds):
    """A forward of which the other rank does its part never; what is raised, and after how long."""
    if rank == 1 and group == (0,):
        os.kill(os.getpid(), signal.SIGKILL)
    layer = bnt.SyncBatchNorm(C, process_group=group_of((0, 1)))
    before = copy.deepcopy(layer.state_dict())
    if rank == 1:
        time.sleep(seconds)
        return None
    start = time.monotonic()
    with contextlib.suppress(ValueError):
        try:
            layer(torch.from_numpy(x))
        except RuntimeError as error:
            same = all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
            return str(error), same, time.monotonic() - start
    return "nothing was raised", False, 0.0


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["hangs", "is killed"])
def test_a_rank_that_never_comes_is_an_error_within_the_timeout(fate):
    pool = Ranks(2, [(0, 1)], seconds=3)
    try:
        group = (0,) if fate == "is killed" else (0, 1)
        answer, other = pool.run(alone, [group] * 2, [THREE] * 2, [6] * 2)
        if fate == "is killed":
            assert isinstance(other, Failed)
            assert other.kind == "Dead"
        message, same, seconds = answer
        assert "SyncBatchNorm: rank 0 of 2 could not gather the statistics of the others" in message
        assert "ended, or did not come" in message
        assert same
        assert seconds < 60, "gloo's own timeout is half an hour"
    finally:
        pool.close()


assert workers  # the module that the processes import


def grouped(rank, group, x, labels):
    torch.manual_seed(0)
    layer = bnt.convert_sync(bnt.GroupedBatchNorm1d(3, 3, dtype=torch.float64), group_of(group), verbose=False)
    y = layer(x, labels)
    return y.detach(), _arrays(*(one.running_mean for one in layer.layers))


def test_groups_that_some_ranks_lack(four):
    """Each group is synchronized by itself, on ranks that have none of its samples as well."""
    x = _randn(8, 3)
    parts = [(x[:5], torch.tensor([0, 1, 0, 0, 1])), (x[5:], 1)]
    answers = four.run(grouped, [(0, 1)] * 2, *zip(*parts, strict=True), ranks=(0, 1))
    whole = bnt.GroupedBatchNorm1d(3, 3, dtype=torch.float64)
    expected = whole(x, torch.tensor([0, 1, 0, 0, 1, 1, 1, 1]))
    torch.testing.assert_close(torch.cat([y for y, _ in answers]), expected.detach())
    for _, means in answers:
        for mean, layer in zip(means, whole.layers, strict=True):
            np.testing.assert_allclose(mean, layer.running_mean)
