"""`recalibrate`: three definitions against plain lines, their laws, hard cases, and failures that change nothing."""

from __future__ import annotations

import copy
import json
import threading

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
import batchnorm.torch as bnt
from networks import NETWORKS
from recalibration import (
    Activated,
    Branches,
    Keeps,
    Oracle,
    Tokens,
    assert_close,
    dense,
    everything,
    filled,
    norms,
    recalibrate,
    statistics,
)

SIZES = {"even": [12, 12, 12, 12], "uneven": [1, 31, 2, 0, 14], "one": [48], "single": [1] * 48}


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


@pytest.mark.parametrize("max_memory", [None, 1], ids=["one pass", "passes"])
@pytest.mark.parametrize("case", CASES)
def test_whole_is_the_statistics_of_all_data_at_once(case, max_memory, waiting):
    build, data, forward = CASES[case]
    model = filled(build())
    calls = [lambda m, b=b: forward(m, b) if forward else m(b) for b in data if len(b)]
    expected = Oracle(model, calls).whole()
    done = recalibrate(model, data, forward=forward, max_memory=max_memory)
    assert_close(statistics(model), expected)
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
    recalibrate(model, data, how=how, forward=forward)
    assert_close(statistics(model), expected, 1e-11)


def test_batches_is_update_bn_without_its_faults():
    model, data = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4))), dense(40)
    theirs = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(data.split([10, 30]), theirs)
    recalibrate(model, data.split([10, 30]), how="batches")
    assert_close(statistics(model), statistics(theirs))
    assert model[1].num_batches_tracked == theirs[1].num_batches_tracked == 2


def test_an_empty_batch_has_no_statistics():
    model, data = filled(nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3))), dense(40)
    other = copy.deepcopy(model)
    for how in ("batches", "pooled"):
        recalibrate(model, data.split([10, 0, 30]), how=how)
        recalibrate(other, data.split([10, 30]), how=how)
        assert_close(statistics(model), statistics(other))


# --- laws of "whole" ---


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_whole_does_not_depend_on_batches_or_order(sizes):
    x, model = dense(48), filled(Branches())
    other = copy.deepcopy(model)
    recalibrate(model, [x])
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    recalibrate(other, x[order].split(sizes))
    assert_close(statistics(other), statistics(model))


def test_whole_is_idempotent_and_its_layers_are_standard():
    data, model = dense(48).split([7, 40, 1]), filled(Branches())
    recalibrate(model, data)
    before = statistics(model)
    again = recalibrate(model, data)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], statistics(model)[name], strict=True))
    assert all(
        float(layer.mean_moved.abs().max()) == 0 and bool((layer.var_ratio == 1).all()) for layer in again.layers
    )
    for name, layer in norms(model).items():  # the output without what follows the normalization
        layer.weight.data.fill_(1), layer.bias.data.fill_(0)
        recalibrate(model, data)
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
    done = recalibrate(model, [x])
    recalibrate(ours, x.split([1, len(x) - 2, 1]))
    assert_close(statistics(ours), statistics(model), 1e-9)
    assert len(done.layers) == len(norms(model))
    fused = bnt.fuse(copy.deepcopy(ours), verbose=False)
    recalibrate(fused, x.split([1, len(x) - 1]))
    assert_close(statistics(fused), statistics(model), 1e-9)


def test_large_offsets_are_exact():
    x = dense(400)[:, 2:] + 1e6
    model = filled(nn.Sequential(nn.BatchNorm1d(1)))
    for how in ("whole", "pooled"):
        recalibrate(model, x.split(7), how=how)
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
    done = recalibrate(filled(Branches()), loader)
    assert (loader.read, done.passes, done.batches, done.samples) == (1, 1, 8, 48)
    iterated = recalibrate(filled(Branches()), iter(dense(48).split(6)))
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
    all_held = recalibrate(copy.deepcopy(model), data)
    narrow = recalibrate(copy.deepcopy(model), data, max_memory=all_held.bytes // 3)
    assert (all_held.passes, narrow.passes) == (1, 2)
    assert narrow.bytes <= all_held.bytes // 3 < all_held.bytes
    tight = recalibrate(model, data, max_memory=1)
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

    done = recalibrate(Wide().double(), Loader(torch.ones(1000, 1).double().split(200)))
    held = 5 * 2 * 200 * 1000 * 8
    assert held < done.bytes < 1.3 * held


def test_an_iterator_that_would_have_to_be_read_again():
    model = filled(Branches())
    before = everything(model)
    with pytest.raises(ValueError, match=r"must be read more than once.*got an iterator.*DataLoader"):
        recalibrate(model, iter(dense(48).split(6)), max_memory=1)
    assert everything(model) == before
    only = recalibrate(model, iter(dense(48).split(6)), max_memory=1, only="left.0")
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
        recalibrate(model, Random(), max_memory=1)
    assert everything(model) == before


def test_a_value_that_is_kept_once_needs_no_passes():
    class Caches(nn.Sequential):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.table = torch.ones(3, dtype=x.dtype)
            return super().forward(x * self.table)

    done = recalibrate(filled(Caches(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3))), dense(48).split(6))
    assert done.passes == 1
    keeps = recalibrate(filled(Keeps()), dense(48).split(6))
    assert keeps.notes == ["2 passes over the data: the model keeps values on its modules"]


# --- undo, and what it is given ---


def test_undo_and_context():
    model = filled(Branches())
    before = everything(model)
    with recalibrate(model, [dense(40)]) as done:
        inside = statistics(model)
        assert everything(model) != before
    assert everything(model) == before
    done.undo()
    assert everything(model) == before
    again = recalibrate(model, [dense(40)])
    assert all(torch.equal(a, b) for name in inside for a, b in zip(inside[name], statistics(model)[name], strict=True))
    again.undo()
    assert everything(model) == before


def test_data_in_many_forms():
    x, model = dense(300), filled(Branches())
    expected = copy.deepcopy(model)
    recalibrate(expected, [x])
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
        done = recalibrate(other, data, **options)
        assert done.samples == 300
        assert_close(statistics(other), statistics(expected), 1e-6 if isinstance(data, np.ndarray) else 1e-12)


def test_random_generators_are_as_they_were():
    x = dense(64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16, shuffle=True)
    model = filled(Branches())
    before = everything(model)
    recalibrate(model, loader).undo()
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
    recalibrate(expected, data)
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
    done = recalibrate(wrapped, data)
    found = {name.replace("_orig_mod.", ""): value for name, value in statistics(model).items()}
    assert_close(found, statistics(expected))
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
        recalibrate(model, [x[:4], x[4:]])
    assert seen == [(True, True, torch.device("meta"))] * 2
    del seen[:]
    recalibrate(model, [x[:4], x[4:]])
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
    done = recalibrate(model, data)
    recalibrate(other, [dense(48)])
    assert_close(statistics(model), statistics(other))
    assert done.notes == [
        "2 passes over the data: the model changes autocast or the like around its layers, so each batch needs a thread"
    ]
    before = everything(model)
    with pytest.raises(ValueError, match="changes autocast around its layers; got an iterator"):
        recalibrate(model, iter(data))
    assert everything(model) == before
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_options_of_ours_do_not_change():
    """Ghosts, renorm and a biased variance: the statistics are those of the whole data, the options stay."""
    options = {"running_correction": 0, "renorm": bn.Renorm(), "keep_count": True, "virtual_batch_size": 4}
    model = filled(nn.Sequential(bnt.BatchNorm1d(3, **options)))
    x = dense(40)
    recalibrate(model, x.split(10))
    assert torch.allclose(model[0].running_var, x.var(0, correction=0), rtol=1e-12)
    assert torch.allclose(model[0].running_variance(1), x.var(0), rtol=1e-12)
    assert bool((model[0].running_count == 40).all())
    assert {name: getattr(model[0], name) for name in options} == options


def test_running_count_of_batches():
    model, data = filled(nn.Sequential(bnt.BatchNorm1d(3, keep_count=True))), dense(40).split([10, 30])
    recalibrate(model, data, how="batches")
    biased = torch.stack([x.var(0, correction=0) for x in data]).mean(0)
    assert torch.allclose(model[0].running_variance(0), biased, rtol=1e-12)


def test_sample_weights_count():
    model = filled(nn.Sequential(bnt.BatchNorm1d(3)))
    x = dense(40)
    weight = torch.linspace(0, 2, 40, dtype=torch.float64)
    recalibrate(
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

    done = recalibrate(filled(Branches()), dense(40).split(10), progress=progress)
    assert told == [("recalibrating", 5), 1, 1, 1, 1, 1]
    facts = json.loads(done.to_json())
    assert (facts["how"], facts["samples"], facts["batches"], facts["passes"]) == ("whole", 40, 4, 1)
    layer = facts["layers"][0]
    assert layer["name"] == "left.0"
    assert layer["count"] == 40
    assert layer["mean_moved"] == float(done.layers[0].mean_moved.abs().max())
    assert layer["var_ratio"] == [float(done.layers[0].var_ratio.min()), float(done.layers[0].var_ratio.max())]
    del told[:]
    recalibrate(filled(Branches()), dense(40).split(10), how="pooled", progress=progress)
    assert told == [("recalibrating", 4), 1, 1, 1, 1]
    constant = recalibrate(nn.BatchNorm1d(1), [torch.ones(4, 1)])
    assert json.loads(constant.to_json())["layers"][0]["var_ratio"] == [0.0, 0.0]


def test_a_subclass_with_a_forward_of_its_own_is_seen_where_it_normalizes():
    assert type(Branches().right[1]) is Activated  # and its statistics are compared above


def test_float32_and_halves_are_rounded_once():
    x = dense(64)[:, :2].float()
    model = nn.Sequential(nn.BatchNorm1d(2))
    recalibrate(model, x.split(10))
    exact = x.double()
    assert torch.allclose(model[0].running_mean.double(), exact.mean(0), rtol=1e-7)
    assert torch.allclose(model[0].running_var.double(), exact.var(0), rtol=1e-7)
