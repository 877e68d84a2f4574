"""`recalibrate`: three definitions against plain lines, their laws, hard cases, and failures that change nothing."""

from __future__ import annotations

import copy
import json
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.torch import _lockstep
from networks import NETWORKS
from recalibration import Activated, Branches, Keeps, Oracle, Tokens, dense, everything, filled, norms, statistics

SIZES = {"even": [12, 12, 12, 12], "uneven": [1, 31, 2, 0, 14], "one": [48], "single": [1] * 48}


def _recalibrate(model, data, **options):
    return bnt.recalibrate(model, data, verbose=False, **options)


def _close(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, (mean, var) in expected.items():
        std = var.sqrt()
        assert torch.allclose(found[name][1], var, rtol=10 * tolerance, atol=0), name
        assert bool(((found[name][0] - mean).abs() <= 10 * tolerance * (std + mean.abs())).all()), name


def _of_tokens(seed=0):
    lengths = torch.tensor([5, 2, 6, 1, 3, 6, 4, 2])
    x = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.arange(6) < lengths[:, None]


def _by_words(model, batch):
    return model(*batch)


CASES = {
    "branches": (Branches, dense(48).split(SIZES["uneven"]), None),
    "keeps": (Keeps, dense(48).split([30, 18]), None),
    "tokens": (Tokens, [tuple(t[a:b] for t in _of_tokens()) for a, b in ((0, 5), (5, 6), (6, 8))], _by_words),
}


@pytest.fixture(params=["stacks", "threads"])
def waiting(request, monkeypatch):
    """How forwards wait for each other: with and without greenlet."""
    if request.param == "threads":
        monkeypatch.setattr(_lockstep, "is_light", lambda: False)
    return request.param


@pytest.mark.parametrize("max_memory", [None, 1], ids=["one pass", "passes"])
@pytest.mark.parametrize("case", CASES)
def test_whole_is_the_statistics_of_all_data_at_once(case, max_memory, waiting):
    build, data, forward = CASES[case]
    model = filled(build())
    calls = [lambda m, b=b: forward(m, b) if forward else m(b) for b in data if len(b)]
    expected = Oracle(model, calls).whole()
    done = _recalibrate(model, data, forward=forward, max_memory=max_memory)
    _close(statistics(model), expected)
    layers = len(norms(model))
    assert done.passes == (layers if max_memory or case == "keeps" else 1)
    assert [layer.name for layer in done.layers] == list(norms(model))
    assert all(layer.num_batches_tracked == len(data) for layer in norms(model).values())
    assert done.batches == len(data)


@pytest.mark.parametrize("how", ["pooled", "batches"])
@pytest.mark.parametrize("case", CASES)
def test_definitions_by_batch(case, how):
    build, data, forward = CASES[case]
    if case == "branches":
        data = dense(48).split([2, 30, 16])
    model = filled(build())
    calls = [lambda m, b=b: forward(m, b) if forward else m(b) for b in data]
    expected = Oracle(model, calls).by_batch(how)
    _recalibrate(model, data, how=how, forward=forward)
    _close(statistics(model), expected, 1e-11)


def test_batches_is_update_bn_without_its_faults():
    model, data = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4))), dense(40)
    theirs = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(data.split([10, 30]), theirs)
    _recalibrate(model, data.split([10, 30]), how="batches")
    _close(statistics(model), statistics(theirs))
    assert model[1].num_batches_tracked == theirs[1].num_batches_tracked == 2


def test_an_empty_batch_has_no_statistics():
    model, data = filled(nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3))), dense(40)
    other = copy.deepcopy(model)
    for how in ("batches", "pooled"):
        _recalibrate(model, data.split([10, 0, 30]), how=how)
        _recalibrate(other, data.split([10, 30]), how=how)
        _close(statistics(model), statistics(other))


# --- laws of "whole" ---


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_whole_does_not_depend_on_batches_or_order(sizes):
    x, model = dense(48), filled(Branches())
    other = copy.deepcopy(model)
    _recalibrate(model, [x])
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    _recalibrate(other, x[order].split(sizes))
    _close(statistics(other), statistics(model))


def test_whole_is_idempotent_and_its_layers_are_standard():
    data, model = dense(48).split([7, 40, 1]), filled(Branches())
    _recalibrate(model, data)
    before = statistics(model)
    again = _recalibrate(model, data)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], statistics(model)[name], strict=True))
    assert all(
        float(layer.mean_moved.abs().max()) == 0 and bool((layer.var_ratio == 1).all()) for layer in again.layers
    )
    for name, layer in norms(model).items():  # the output without what follows the normalization
        layer.weight.data.fill_(1), layer.bias.data.fill_(0)
        _recalibrate(model, data)
        seen = []
        handle = layer.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model.eval()(torch.cat(data))
        handle.remove()
        y = (seen[0] - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
        n, var = len(y), layer.running_var
        assert float(y.mean(0).abs().max()) < 1e-12 * float(layer.running_mean.abs().max() / var.min().sqrt() + 1), name
        assert torch.allclose(y.var(0, correction=0), var * (n - 1) / n / (var + layer.eps), rtol=1e-11), name


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_whole_of_real_networks(network):
    torch.manual_seed(0)
    model = network.build().double()
    ours = bnt.convert(copy.deepcopy(model), verbose=False)
    x = torch.randn(network.shape, dtype=torch.float64) * 3 + 1
    done = _recalibrate(model, [x])
    _recalibrate(ours, x.split([1, len(x) - 2, 1]))
    _close(statistics(ours), statistics(model), 1e-9)
    assert len(done.layers) == len(norms(model))
    fused = bnt.fuse(copy.deepcopy(ours), verbose=False)
    _recalibrate(fused, x.split([1, len(x) - 1]))
    _close(statistics(fused), statistics(model), 1e-9)


def test_large_offsets_are_exact():
    x = dense(400)[:, 2:] + 1e6
    model = filled(nn.Sequential(nn.BatchNorm1d(1)))
    for how in ("whole", "pooled"):
        _recalibrate(model, x.split(7), how=how)
        exact = x.numpy().astype(np.longdouble)
        assert abs(float(model[0].running_mean) - float(exact.mean())) < 1e-9 * float(exact.std())
        assert abs(float(model[0].running_var) / float(exact.var(ddof=1)) - 1) < 1e-9


# --- one pass, and several ---


class Loader:
    """Counts how often it is read."""

    def __init__(self, batches):
        self.batches, self.read = batches, 0

    def __iter__(self):
        self.read += 1
        return iter(self.batches)


def test_one_pass_reads_once_and_takes_an_iterator():
    loader = Loader(dense(48).split(6))
    done = _recalibrate(filled(Branches()), loader)
    assert (loader.read, done.passes, done.batches, done.samples) == (1, 1, 8, 48)
    iterated = _recalibrate(filled(Branches()), iter(dense(48).split(6)))
    assert iterated.passes == 1
    assert [t.name for t in threading.enumerate() if t.name.startswith("batch ")] == []


def test_memory_decides_between_one_pass_and_several():
    """Depths whose batches fit are held: first they do not (wide), then they do (narrow), then not again."""
    layers = [
        nn.Linear(3, 600),
        nn.BatchNorm1d(600),
        nn.Linear(600, 3),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.BatchNorm1d(3),
    ]
    model, data = filled(nn.Sequential(*layers)), dense(400).split(50)
    all_held = _recalibrate(copy.deepcopy(model), data)
    narrow = _recalibrate(copy.deepcopy(model), data, max_memory=all_held.bytes // 3)
    assert (all_held.passes, narrow.passes) == (1, 2)
    assert narrow.bytes <= all_held.bytes // 3 < all_held.bytes
    tight = _recalibrate(model, data, max_memory=1)
    assert tight.passes == 3
    assert tight.notes == ["3 passes over the data: memory did not allow one"]


def test_predicted_memory_is_what_tensors_take():
    """Three activations of 200 x 1000 doubles wait in each of five batches; a sixth is what the running one makes."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(1000)

        def forward(self, x):
            a, b = x.repeat(1, 1000) + 1, x.repeat(1, 1000) + 2
            return self.bn(a) + b

    done = _recalibrate(Wide().double(), Loader(torch.ones(1000, 1).double().split(200)))
    held = 5 * 2 * 200 * 1000 * 8
    assert held < done.bytes < 1.3 * held


def test_an_iterator_that_would_have_to_be_read_again():
    model = filled(Branches())
    before = everything(model)
    with pytest.raises(ValueError, match=r"must be read more than once.*got an iterator.*DataLoader"):
        _recalibrate(model, iter(dense(48).split(6)), max_memory=1)
    assert everything(model) == before
    only = _recalibrate(model, iter(dense(48).split(6)), max_memory=1, only="left.0")
    assert only.passes == 1


@pytest.mark.parametrize("other", ["others", "fewer"])
def test_data_that_are_others_in_every_pass(other):
    class Random:
        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            x = dense(48, seed=self.passes)
            return iter(x[: 48 - self.passes].split(6) if other == "fewer" else x.split(6))

    model = filled(Branches())
    before = everything(model)
    with pytest.raises(ValueError, match="every pass over the data must give the same samples"):
        _recalibrate(model, Random(), max_memory=1)
    assert everything(model) == before


def test_a_value_that_is_kept_once_needs_no_passes():
    class Caches(nn.Sequential):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.table = torch.ones(3, dtype=x.dtype)
            return super().forward(x * self.table)

    done = _recalibrate(filled(Caches(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3))), dense(48).split(6))
    assert done.passes == 1
    keeps = _recalibrate(filled(Keeps()), dense(48).split(6))
    assert keeps.notes == ["2 passes over the data: the model keeps values on its modules"]


# --- what is left, and what is refused ---


def test_layers_that_are_left():
    model = filled(
        nn.Sequential(
            nn.BatchNorm1d(3), bnt.BatchNorm1d(3, update_running_stats=False), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        )
    )
    model[3] = nn.BatchNorm1d(3, track_running_stats=False).double()
    model.unused = nn.BatchNorm1d(2).double()
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    frozen = model[1].running_mean.clone()
    done = _recalibrate(model, [dense(48)], only=lambda name, layer: name != "2")
    assert [layer.name for layer in done.layers] == ["0"]
    assert {name: reason.partition(" (")[0] for name, _, reason in done.left} == {
        "1": "it is frozen", "3": "it has no running statistics", "unused": "no batch reached it",
    }  # fmt: skip
    assert torch.equal(model[1].running_mean, frozen)
    assert float(model[2].running_mean[0]) == 0.7


def test_what_is_said(capsys):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].requires_grad_(False)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    bnt.recalibrate(model, [x, x], only="0")
    assert capsys.readouterr().out == (
        "recalibrated 1 batch normalization (whole: the whole data as one batch) from 4 samples in 2 batches, in "
        "one pass\n"
        "the mean of layer 0 moved most, by 1.73 standard deviations; the variance of layer 0 changed most, by a "
        "factor of 133\n"
    )
    bnt.recalibrate(nn.BatchNorm1d(2), [x / 10, x / 10])
    assert capsys.readouterr().out.endswith(
        "\nthe mean of the model itself moved most, by 1.73 standard deviations; the variance of the model itself "
        "changed most, by a factor of 0.0133\n"
    )
    _recalibrate(model, [x, x])
    assert capsys.readouterr().out == ""


def _shared():
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Linear(3, 3), norm, nn.BatchNorm1d(3))


class ByContent(nn.Module):
    """The branch follows the data: the second batch (negative) goes another way."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.c(self.a(x) if float(x[0, 0]) > 0 else self.b(x))


def _signs():
    return [torch.ones(4, 3).double(), -torch.ones(4, 3).double() * torch.arange(1.0, 5)[:, None].double()]


def _bad(batch, value=torch.nan):
    data = [t.clone() for t in dense(48).split(12)]
    data[batch][3, 1] = value
    return data


REFUSED = {
    "no module": (lambda: nn.BatchNorm1d, [], {}, TypeError, "model must be a torch.nn.Module"),
    "no layer": (lambda: nn.Sequential(nn.Linear(3, 3)), [dense(4)], {}, ValueError, "got none"),
    "all left": (
        lambda: nn.BatchNorm1d(3, track_running_stats=False), [dense(4)], {}, ValueError,
        "got 1 batch normalization: the model itself, it has no running statistics",
    ),
    "lazy": (lambda: nn.LazyBatchNorm1d(), [dense(4)], {}, ValueError, "which is lazy.*Call the model once first"),
    "meta": (lambda: nn.BatchNorm1d(3, device="meta"), [dense(4)], {}, ValueError, "got one on meta"),
    "how": (Branches, [dense(4)], {"how": "wholes"}, ValueError, "how says what.*did you mean 'whole'"),
    "samples": (Branches, [dense(4)], {"samples": 0}, ValueError, "samples is a number of samples"),
    "memory": (Branches, [dense(4)], {"max_memory": "4 GiB"}, TypeError, "max_memory is a number of bytes"),
    "nonfinite": (Branches, [dense(4)], {"on_nonfinite": "propagate"}, ValueError, "on_nonfinite says"),
    "only": (Branches, [dense(4)], {"only": "left.1"}, ValueError, "did you mean 'left.2'"),
    "text": (Branches, "data.npy", {}, TypeError, "data must be an iterable of batches"),
    "a number": (Branches, 5, {}, TypeError, "data must be an iterable of batches"),
    "a batch that is none": (Branches, ["x"], {}, ValueError, "batch 0 could not be read.*forward=lambda"),
    "no batch": (Branches, [], {}, ValueError, "data must have a batch at least"),
    "empty batches": (Branches, [dense(4)[:0]] * 2, {}, ValueError, "more than one position per channel.*got 0"),
    "one position": (Branches, [dense(1)], {}, ValueError, "more than one position per channel in all data; got 1"),
    "one position, pooled": (Branches, [dense(1)], {"how": "pooled"}, ValueError, "in all data; got 1"),
    "one position in a batch": (
        Branches, dense(5).split([4, 1]), {"how": "batches"}, ValueError, "got 1 from batch 1 at left.0",
    ),
    "a tensor by batch": (Branches, dense(5), {"how": "batches"}, ValueError, r"Use data.split\(batch_size\)"),
    "another width": (
        Branches, [dense(4), torch.ones(4, 2).double()], {}, ValueError,
        "got RuntimeError from batch 1, before the first batch normalization",
    ),
    "another dtype": (Branches, [dense(4).float()], {}, ValueError, "got RuntimeError from batch 0"),
    "NaN": (Branches, _bad(2), {}, ValueError, "got mean nan and variance nan in channel 0 of left.0, from batch 2"),
    "infinity, pooled": (Branches, _bad(1, torch.inf), {"how": "pooled"}, ValueError, "of left.0, from batch 1"),
    "NaN everywhere": (
        Branches, [dense(4) * torch.nan] * 2, {"on_nonfinite": "skip"}, ValueError, "got NaN or infinity in every one",
    ),
    "NaN everywhere, pooled": (
        Branches, [dense(4) * torch.nan] * 2, {"on_nonfinite": "skip", "how": "pooled"}, ValueError,
        "got NaN or infinity in every one",
    ),
    "overflow": (
        lambda: nn.Sequential(nn.BatchNorm1d(3)).half(), [dense(4)], {}, ValueError,
        r"finite in the dtype of the layer, torch.float16.*channel 2.*model.float\(\)",
    ),
    "a shared layer": (_shared, [dense(4)], {}, ValueError, "got 0 a second time, in batch 0.*how=\"pooled\""),
    "a shared layer, last": (
        lambda: _shared()[:3], [dense(4)], {"max_memory": 1}, ValueError, "got 0 a second time, in batch 0",
    ),
    "branches": (
        ByContent, _signs(), {}, ValueError,
        "got batch 1 at b when batch 0 was at a.*no common statistics of the whole data.*how=\"pooled\"",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    build, data, options, kind, words = REFUSED[case]
    model = build()
    if isinstance(model, nn.Module) and case not in ("lazy", "meta", "overflow"):
        filled(model)
    before = everything(model) if isinstance(model, nn.Module) and case != "meta" and case != "lazy" else None
    if case == "overflow":
        data = [torch.tensor([[1.0, 2.0, 3e4], [3.0, 4.0, -3e4]]).half()]
    with pytest.raises(kind, match=words) as caught:
        _recalibrate(model, data, **options)
    assert str(caught.value).startswith("recalibrate: ")
    if before is not None:
        assert everything(model) == before


def test_pooled_takes_what_whole_refuses():
    shared = filled(_shared())
    expected = Oracle(shared, [lambda m, b=b: m(b) for b in dense(48).split(12)]).by_batch("pooled")
    _recalibrate(shared, dense(48).split(12), how="pooled")
    _close(statistics(shared), expected)
    branches = _recalibrate(filled(ByContent()), _signs(), how="pooled")
    assert [layer.count for layer in branches.layers] == [4.0, 4.0, 8.0]


@pytest.mark.parametrize("max_memory", [None, 1])
@pytest.mark.parametrize("how", ["whole", "pooled", "batches"])
@pytest.mark.parametrize("batch", [0, 2])
def test_skipping_a_batch(how, batch, max_memory):
    """Left out from the layer on where it is not finite: in the first that is everywhere."""
    model, data = filled(Branches()), _bad(batch)
    other = copy.deepcopy(model)
    done = _recalibrate(model, data, how=how, on_nonfinite="skip", max_memory=max_memory)
    _recalibrate(other, data[:batch] + data[batch + 1 :], how=how)
    _close(statistics(model), statistics(other))
    assert done.skipped == 1


# --- nothing is changed by what fails ---


class Fails(nn.Module):
    """Raises in its n-th call, of all of its class: a count on itself would be a value that the model keeps."""

    calls: ClassVar[list[int]] = [0]

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error = at, error
        Fails.calls[0] = 0

    def forward(self, x):
        Fails.calls[0] += 1
        if Fails.calls[0] == self.at:
            raise self.error("planted")
        return x


def _failing(at, error):
    layers = [nn.BatchNorm1d(3), Fails(at, error), nn.Linear(3, 3), bnt.BatchNorm1d(3, keep_count=True)]
    return filled(nn.Sequential(*layers, nn.Dropout(), nn.BatchNorm1d(3)))


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"max_memory": 1}, {"how": "pooled"}, {"how": "batches"}], ids=str)
def test_a_failure_at_each_batch_changes_nothing(options, error):
    data = dense(40).split(10)
    for at in range(1, 5):
        model = _failing(at, error)
        model[0].eval()
        model[3].register_forward_hook(lambda *_: None)
        before = everything(model)
        with pytest.raises(ValueError if error is RuntimeError else error, match="planted") as caught:
            _recalibrate(model, data, **options)
        if error is RuntimeError:
            assert f"got RuntimeError from batch {at - 1}, after 0: planted. Nothing is changed" in str(caught.value)
        assert everything(model) == before
        assert [t.name for t in threading.enumerate() if t.name.startswith("batch ")] == []


@pytest.mark.parametrize("how", ["whole", "pooled"])
def test_a_failure_at_each_layer_and_read_changes_nothing(monkeypatch, how):
    """Wherever statistics are gathered, written or read, in the thread of the caller: as Ctrl-C."""
    from batchnorm.torch import _definitions, _layer_inputs
    from batchnorm.torch import _recalibrate as module

    model, data = filled(Branches()), dense(40).split(10)
    before = everything(model)
    planned = [(_layer_inputs, "write"), (_definitions, "write"), (_definitions, "_of_moments"), (module, "_compared")]
    failures = 0
    for where, name in planned:
        real = getattr(where, name)
        for at in range(1, 40):
            left = [at]

            def plan(*args, real=real, left=left):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt("planted")
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(where, name, plan)
                try:
                    _recalibrate(model, data, how=how).undo()
                    break
                except KeyboardInterrupt:
                    failures += 1
            assert everything(model) == before
            assert [t.name for t in threading.enumerate() if t.name.startswith("batch ")] == []
    assert failures >= 10


class Copies(torch.Tensor):
    """A buffer that is interrupted when it is written for the n-th time."""

    left: ClassVar[list[int]] = [0]

    def copy_(self, *args):
        Copies.left[0] -= 1
        if Copies.left[0] == 0:
            raise KeyboardInterrupt
        return super().copy_(*args)


def test_an_interrupted_write_is_undone():
    model, data = filled(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))), [dense(40)]
    for layer in model:
        for name in ("running_mean", "running_var"):
            layer._buffers[name] = layer._buffers[name].as_subclass(Copies)
    before = {k: v.as_subclass(torch.Tensor).clone() for k, v in model.state_dict().items()}
    interrupted = 0
    for at in range(1, 40):
        Copies.left[0] = at
        try:
            _recalibrate(model, data).undo()
        except KeyboardInterrupt:
            interrupted += 1
        Copies.left[0] = 0
        assert all(torch.equal(v.as_subclass(torch.Tensor), before[k]) for k, v in model.state_dict().items()), at
    assert interrupted >= 8


def test_a_reader_that_fails(monkeypatch):
    def batches():
        yield dense(4)
        raise OSError("disk")

    model = filled(Branches())
    before = everything(model)
    with pytest.raises(ValueError, match=r"batch 1 could not be read; got OSError: disk\. Nothing is changed"):
        _recalibrate(model, batches())
    assert everything(model) == before


# --- undo, and what it is given ---


def test_undo_and_context():
    model = filled(Branches())
    before = everything(model)
    with _recalibrate(model, [dense(40)]) as done:
        inside = statistics(model)
        assert everything(model) != before
    assert everything(model) == before
    done.undo()
    assert everything(model) == before
    again = _recalibrate(model, [dense(40)])
    assert all(torch.equal(a, b) for name in inside for a, b in zip(inside[name], statistics(model)[name], strict=True))
    again.undo()
    assert everything(model) == before


def test_data_in_many_forms():
    x, model = dense(300), filled(Branches())
    expected = copy.deepcopy(model)
    _recalibrate(expected, [x])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, 0]), batch_size=50, shuffle=True)
    named = [{"x": part} for part in x.split(50)]
    pairs = [(part, 1) for part in x.split(50)]
    told = {"forward": lambda m, batch: m(batch["of"][0])}
    for data, options in (
        (x, {}), (x.numpy(), {}), (x.numpy().astype("float32").astype("float64"), {}), (loader, {}), (named, {}),
        (pairs, {}), ([part.numpy() for part in x.split(50)], {}), ([{"of": [x]}], told),
        (torch.cat([x, x]).split(50), {"samples": 300}),
    ):  # fmt: skip
        other = copy.deepcopy(model)
        done = _recalibrate(other, data, **options)
        assert done.samples == 300
        _close(statistics(other), statistics(expected), 1e-6 if isinstance(data, np.ndarray) else 1e-12)


def test_random_generators_are_as_they_were():
    x = dense(64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16, shuffle=True)
    model = filled(Branches())
    before = everything(model)
    _recalibrate(model, loader).undo()
    assert everything(model) == before


class ModelEmaV3(nn.Module):
    """As timm's: the averaged model is its `module`."""

    def __init__(self, model):
        super().__init__()
        self.module = model


class FullyShardedDataParallel(ModelEmaV3):
    """Known by its name: PyTorch's needs a process group."""


def test_parameters_that_are_spread_over_ranks_are_refused():
    model = FullyShardedDataParallel(filled(Branches()))
    before = everything(model)
    for function in (bnt.recalibrate, bnt.diagnose):
        with pytest.raises(ValueError, match=r"must have its parameters whole; got a FullyShardedDataParallel"):
            function(model, dense(40).split(10))
    assert everything(model) == before


@pytest.mark.parametrize("wrap", ["average", "ema", "parallel", "compiled", "compiled inside"])
def test_wrappers(wrap):
    model, data = filled(Branches()), dense(40).split(10)
    expected = copy.deepcopy(model)
    _recalibrate(expected, data)
    if wrap == "average":
        wrapped = torch.optim.swa_utils.AveragedModel(model)
        model = wrapped.module
    elif wrap in ("parallel", "ema"):
        wrapped = (nn.DataParallel if wrap == "parallel" else ModelEmaV3)(model)
    elif wrap == "compiled":
        wrapped = torch.compile(model, backend="eager")
    else:
        wrapped = model
        model.left = torch.compile(model.left, backend="eager")
        model.compile(backend="eager")
    done = _recalibrate(wrapped, data)
    found = {name.replace("_orig_mod.", ""): value for name, value in statistics(model).items()}
    _close(found, statistics(expected))
    assert done.notes == ([] if wrap == "compiled inside" else [f"{type(wrapped).__name__}: the model inside was used"])


@pytest.mark.usefixtures("waiting")
def test_batches_have_the_settings_of_the_caller():
    """Autocast, inference mode and the default device reach every batch."""
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(
                (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.get_default_device())
            )
            return x

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Looks(), nn.BatchNorm1d(3))
    x = dense(8).float()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        _recalibrate(model, [x[:4], x[4:]])
    assert seen == [(True, True, torch.device("meta"))] * 2
    del seen[:]
    _recalibrate(model, [x[:4], x[4:]])
    assert seen == [(False, False, torch.device("cpu"))] * 2


class OwnAutocast(nn.Module):
    """Switches for a part of its forward what a thread has once."""

    def __init__(self, switch):
        super().__init__()
        self.a, self.b, self.switch = nn.BatchNorm1d(3), nn.BatchNorm1d(3), switch

    def forward(self, x):
        seen = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        with self.switch():
            x = self.b(self.a(x).tanh())
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == seen
        return x


@pytest.mark.parametrize("switch", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_model_that_switches_autocast_around_its_layers(switch):
    """Stacks in one thread would see each other's switches; threads do not."""
    model, data = filled(OwnAutocast(switch)), dense(48).split(16)
    other = copy.deepcopy(model)
    done = _recalibrate(model, data)
    _recalibrate(other, [dense(48)])
    _close(statistics(model), statistics(other))
    assert done.notes == [
        "2 passes over the data: the model changes autocast or the like around its layers, so each batch needs a thread"
    ]
    before = everything(model)
    with pytest.raises(ValueError, match="changes autocast around its layers; got an iterator"):
        _recalibrate(model, iter(data))
    assert everything(model) == before
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_options_of_ours_do_not_change():
    """Ghosts, renorm and a biased variance: the statistics are those of the whole data, the options stay."""
    options = {"running_correction": 0, "renorm": bn.Renorm(), "keep_count": True, "virtual_batch_size": 4}
    model = filled(nn.Sequential(bnt.BatchNorm1d(3, **options)))
    x = dense(40)
    _recalibrate(model, x.split(10))
    assert torch.allclose(model[0].running_var, x.var(0, correction=0), rtol=1e-12)
    assert torch.allclose(model[0].running_variance(1), x.var(0), rtol=1e-12)
    assert bool((model[0].running_count == 40).all())
    assert {name: getattr(model[0], name) for name in options} == options


def test_running_count_of_batches():
    model, data = filled(nn.Sequential(bnt.BatchNorm1d(3, keep_count=True))), dense(40).split([10, 30])
    _recalibrate(model, data, how="batches")
    biased = torch.stack([x.var(0, correction=0) for x in data]).mean(0)
    assert torch.allclose(model[0].running_variance(0), biased, rtol=1e-12)


def test_sample_weights_count():
    model = filled(nn.Sequential(bnt.BatchNorm1d(3)))
    x = dense(40)
    weight = torch.linspace(0, 2, 40, dtype=torch.float64)
    _recalibrate(
        model, [(x[:30], weight[:30]), (x[30:], weight[30:])], forward=lambda m, b: m[0](b[0], sample_weight=b[1])
    )
    mean = (weight[:, None] * x).sum(0) / weight.sum()
    assert torch.allclose(model[0].running_mean, mean, rtol=1e-12)
    var = (weight[:, None] * (x - mean) ** 2).sum(0) / (weight.sum() - 1)
    assert torch.allclose(model[0].running_var, var, rtol=1e-11)


def test_json_and_progress():
    told = []

    def progress(phase, total):
        told.append((phase, total))
        return lambda done: told.append(done)

    done = _recalibrate(filled(Branches()), dense(40).split(10), progress=progress)
    assert told == [("recalibrating", 5), 1, 1, 1, 1, 1]
    facts = json.loads(done.to_json())
    assert (facts["how"], facts["samples"], facts["batches"], facts["passes"]) == ("whole", 40, 4, 1)
    layer = facts["layers"][0]
    assert layer["name"] == "left.0"
    assert layer["count"] == 40
    assert layer["mean_moved"] == float(done.layers[0].mean_moved.abs().max())
    assert layer["var_ratio"] == [float(done.layers[0].var_ratio.min()), float(done.layers[0].var_ratio.max())]
    del told[:]
    _recalibrate(filled(Branches()), dense(40).split(10), how="pooled", progress=progress)
    assert told == [("recalibrating", 4), 1, 1, 1, 1]
    constant = _recalibrate(nn.BatchNorm1d(1), [torch.ones(4, 1)])
    assert json.loads(constant.to_json())["layers"][0]["var_ratio"] == [0.0, 0.0]


def test_a_subclass_with_a_forward_of_its_own_is_seen_where_it_normalizes():
    assert type(Branches().right[1]) is Activated  # and its statistics are compared above


def test_float32_and_halves_are_rounded_once():
    x = dense(64)[:, :2].float()
    model = nn.Sequential(nn.BatchNorm1d(2))
    _recalibrate(model, x.split(10))
    exact = x.double()
    assert torch.allclose(model[0].running_mean.double(), exact.mean(0), rtol=1e-7)
    assert torch.allclose(model[0].running_var.double(), exact.var(0), rtol=1e-7)
