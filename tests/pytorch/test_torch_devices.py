"""Operands that do not live together: every entry refuses every pair of devices before anything is moved."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.torch.functional import RunningStatistics

N, C = 6, 4
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "running_count")
PARAMETERS = ("weight", "bias")


def _tensors(device, given=()):
    """Operands of a call, by name: x, those of a layer's state, and those that are given."""
    made = {
        "x": torch.arange(float(N * C), device=device).reshape(N, C).sin(),
        "weight": torch.full((C,), 2.0, device=device),
        "bias": torch.full((C,), 0.5, device=device),
        "running_mean": torch.zeros(C, device=device),
        "running_var": torch.ones(C, device=device),
        "num_batches_tracked": torch.zeros((), dtype=torch.int64, device=device),
        "running_count": torch.full((C,), torch.inf, dtype=torch.float64, device=device),
        "mask": torch.ones(N, dtype=torch.bool, device=device),
        "sample_weight": torch.ones(N, 1, device=device),
        "residual": torch.ones(N, C, device=device),
    }
    return {name: t for name, t in made.items() if name not in ("mask", "sample_weight", "residual") or name in given}


class Layer:
    """An entry: a layer with options, in a mode, alone or in a fused model."""

    def __init__(self, kind, *given, training=True, needs_count=False, fused=False, **options):
        self.kind, self.given, self.training, self.options = kind, given, training, options
        self.needs_count, self.fused = needs_count, fused

    def needs(self, name):
        """Whether that operand matters: torch.nn's layer goes on to train with a count that has no value."""
        if name == "running_count":
            return "keep_count" in self.options
        return name != "num_batches_tracked" or self.needs_count

    def __call__(self, tensors):
        """The call; its layer has these very tensors."""
        layer = self.kind(C, **self.options).train(self.training)
        own = {name: t for name, t in tensors.items() if name in layer._buffers}
        layer._buffers.update(own)
        for name in PARAMETERS:
            layer._parameters[name] = torch.nn.Parameter(tensors[name])
        model = bnt.fuse(torch.nn.Sequential(layer, torch.nn.ReLU()), verbose=False) if self.fused else layer
        return lambda: model(tensors["x"], **{name: tensors[name] for name in self.given})


class Function:
    """An entry: the function without state, or one of our operations."""

    def __init__(self, call, *names, given=()):
        self.call, self.names, self.given = call, names, given

    def needs(self, name):
        return name in self.names

    def __call__(self, tensors):
        return lambda: self.call(*(tensors[name] for name in self.names))


def _functional(training, x, weight, bias, mean, var, batches, residual):
    stats = RunningStatistics(mean, var, batches)
    return bnt.functional.batch_norm(x, stats, weight, bias, residual=residual, training=training)


def _backward(x, weight, bias, residual):
    table = torch.ones(4, C, dtype=torch.float64, device=x.device)
    return torch.ops.batchnorm.backward(x, x, table, weight, bias, None, residual, 1e-5, 1, 0.0, True)


def _update(mean, var, count, kept):
    table = torch.full((4, C), 2.0, dtype=torch.float64, device=mean.device)
    return torch.ops.batchnorm.update_(mean, var, count, table, 0.1, 1, 0, kept)


_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ENTRIES = {
    "training": Layer(bnt.BatchNorm1d),
    "residual": Layer(bnt.BatchNorm1d, "residual", activation="relu"),
    "mask": Layer(bnt.BatchNorm1d, "mask"),
    "sample_weight": Layer(bnt.BatchNorm1d, "sample_weight", "residual"),
    "biased": Layer(bnt.BatchNorm1d, running_correction=0),
    "momentum=None": Layer(bnt.BatchNorm1d, momentum=None, needs_count=True),
    "keep_count": Layer(bnt.BatchNorm1d, keep_count=True),
    "renorm": Layer(bnt.BatchNorm1d, renorm=bn.Renorm(), needs_count=True),
    "ghosts": Layer(bnt.BatchNorm1d, "residual", virtual_batch_size=3),
    "running": Layer(bnt.BatchNorm1d, normalize_with="running"),
    "evaluation": Layer(bnt.BatchNorm1d, "residual", training=False),
    "evaluation that moves": Layer(bnt.BatchNorm1d, training=False, update_running_stats=True),
    "synchronized": Layer(bnt.SyncBatchNorm, "residual", reproducible=True, keep_count=True),
    "synchronized, mask": Layer(bnt.SyncBatchNorm, "mask", reproducible=True, renorm=bn.Renorm(), needs_count=True),
    "fused": Layer(bnt.BatchNorm1d, fused=True),
    "fused evaluation": Layer(bnt.BatchNorm1d, fused=True, training=False),
    "function": Function(lambda *t: _functional(True, *t), "x", *_STATE, "residual", given=("residual",)),
    "function, evaluation": Function(lambda *t: _functional(False, *t), "x", *_STATE, "residual", given=("residual",)),
    "operation": Function(
        lambda x, w, b, m, r: torch.ops.batchnorm.forward(x, w, b, None, None, m, r, 1e-5, 0, 0.0),
        "x", "weight", "bias", "sample_weight", "residual", given=("sample_weight", "residual"),
    ),
    "operation in evaluation": Function(
        lambda x, w, m, v: torch.ops.batchnorm.forward(x, w, None, m, v, None, None, 1e-5, 0, 0.0),
        "x", "weight", "running_mean", "running_var",
    ),
    "backward": Function(_backward, "x", "weight", "bias", "residual", given=("residual",)),
    "update_": Function(_update, *BUFFERS),
    "moments": Function(lambda x, w: torch.ops.batchnorm.moments(x, w), "x", "sample_weight", given=("sample_weight",)),
}  # fmt: skip


def _same(before, tensors):
    return all(
        t.device == before[name].device and (t.device.type == "meta" or torch.equal(t, before[name]))
        for name, t in tensors.items()
    )


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(("here", "there"), [("cpu", "meta"), ("meta", "cpu")])
def test_an_operand_elsewhere_is_refused_and_nothing_changes(name, here, there):
    entry, refused = ENTRIES[name], 0
    at_home, apart = _tensors(here, entry.given), _tensors(there, entry.given)
    if here == "cpu":
        entry(at_home)()
    for operand in getattr(entry, "names", apart):
        tensors = _tensors(here, entry.given) | {operand: apart[operand]}
        before = {n: t.clone() for n, t in tensors.items()}
        # One number on the CPU goes with any device, unless a kernel is to write to it.
        alone = operand == "num_batches_tracked" and there == "cpu" and name != "update_"
        if entry.needs(operand) and not alone:
            with pytest.raises(ValueError, match=r"device.*meta|meta.*device|meta tensor"):
                entry(tensors)()
            assert _same(before, tensors), operand
            refused += 1
        elif here == "cpu":
            entry(tensors)()
            assert torch.equal(tensors["running_mean"], at_home["running_mean"]), operand
    assert refused >= 2


ALONE = [name for name in ENTRIES if "synchronized" not in name]  # ranks exchange values


@pytest.mark.parametrize("name", ALONE)
def test_operands_together_on_meta_have_shapes(name):
    entry = ENTRIES[name]
    if name == "momentum=None":  # torch.nn asks for the count's value, too
        with pytest.raises(ValueError, match=r"averages by num_batches_tracked; got a meta tensor"):
            entry(_tensors("meta"))()
        return
    y = entry(_tensors("meta", entry.given))()
    y = y[0] if isinstance(y, tuple) else y
    assert y is None or y.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in ALONE if "fused" not in name])  # fuse reads random states
def test_fake_tensors_of_two_devices_are_refused(name):
    entry = ENTRIES[name]
    with FakeTensorMode():
        for here, there in (("cpu", "cuda"), ("cuda", "cpu")):
            for operand in ("x", "weight", "running_var", "residual", "sample_weight"):
                tensors = _tensors(here, entry.given)
                if operand not in tensors or not entry.needs(operand):
                    continue
                tensors[operand] = _tensors(there, entry.given)[operand]
                with pytest.raises(ValueError, match="device"):
                    entry(tensors)()


def test_under_accelerate_torch_nn_refuses_as_ever():
    x = torch.randn(N, C)

    def refused(operand, training):
        layer = torch.nn.BatchNorm1d(C).train(training)
        (layer._buffers if operand in layer._buffers else layer._parameters)[operand] = torch.ones(C, device="meta")
        with pytest.raises(RuntimeError, match="device"):
            layer(x)
        return {name: layer._buffers[name] for name in ("running_mean", "running_var")}

    for operand in ("weight", "bias", "running_mean", "running_var"):
        for training in (True, False):
            stock = refused(operand, training)
            with bnt.accelerate():
                assert _same(stock, refused(operand, training)), (operand, training)


def test_a_layer_built_on_meta_that_a_state_without_a_count_fills_trains():
    for ours, options in ((True, {}), (True, {"on_nonfinite": "skip"}), (False, {})):
        with torch.device("meta"):
            layer = bnt.BatchNorm1d(2, **options) if ours else torch.nn.BatchNorm1d(2)
        state = torch.nn.BatchNorm1d(2).state_dict()
        del state["num_batches_tracked"]
        layer.load_state_dict(state, assign=True, strict=False)
        assert layer.num_batches_tracked.is_meta
        layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        assert torch.allclose(layer.running_mean, torch.tensor([0.2, 2.0])), (ours, options)
