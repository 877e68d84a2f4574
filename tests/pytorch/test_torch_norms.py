"""The batch normalizations of a model: which there are, which `only` chooses, and what their records say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from frameworks import evaluated
from torch import nn

import batchnorm.torch as bnt
from batchnorm.torch._norms import chosen, norms_of, record_of
from networks import resnet18


class Model(nn.Module):
    """A layer in two places, one deep inside, and one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm1d(3)
        self.back = nn.Sequential(nn.Linear(3, 3), nn.ModuleList([nn.BatchNorm2d(3), self.stem]), nn.InstanceNorm1d(3))
        self.head = bnt.BatchNorm3d(3, activation="relu")


def test_each_layer_is_found_once_under_all_its_names():
    found = norms_of(Model())
    assert [norm.names for norm in found] == [("stem", "back.1.1"), ("back.1.0",), ("head",)]
    assert norms_of(nn.Linear(2, 2)) == []
    assert str(norms_of(nn.BatchNorm1d(2))[0]) == "the model itself"


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (None, ["stem", "back.1.0", "head"]),
        ("back", ["stem", "back.1.0"]),  # what is in it, under whatever name
        ("back.*", ["stem", "back.1.0"]),
        ("*.0", ["back.1.0"]),
        (["head", "st?m"], ["stem", "head"]),
        (iter(["head"]), ["head"]),
        (lambda name, layer: isinstance(layer, nn.BatchNorm2d), ["back.1.0"]),
        (lambda name, layer: name == "back.1.1", ["stem"]),
        (lambda name, layer: False, []),
        ([], []),
    ],
    ids=["all", "inside", "pattern", "end", "several", "iterator", "by class", "by name", "none", "no names"],
)
def test_only_chooses(only, names):
    assert [norm.name for norm in chosen(norms_of(Model()), only, "f")] == names


@pytest.mark.parametrize(
    ("only", "kind", "said"),
    [
        ("haed", ValueError, "f: only names no batch normalization of this model; got 'haed'; did you mean 'head'?"),
        (["head", "7"], ValueError, "got '7'; see model.named_modules()"),
        (7, TypeError, "f: only must be names or patterns of layers, or a function of a name and a module; got 7"),
    ],
)
def test_only_that_chooses_nothing_is_refused(only, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        chosen(norms_of(Model()), only, "f")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, bnt.BatchNorm2d])
def test_a_record_evaluates_as_its_layer(make, affine):
    torch.manual_seed(0)
    layer = make(3, eps=1e-3, momentum=None, affine=affine).double()
    for _ in range(2):
        layer(torch.randn(4, 3, 5, 5).double() * 3 + 2)
    if affine:
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    record = record_of(norms_of(layer)[0])
    assert (record.eps, record.momentum, record.correction, record.batches) == (1e-3, "cumulative", 1, 2)
    x = torch.randn(2, 3, 4, 4).double()
    assert np.allclose(evaluated(record, x.numpy()), layer.eval()(x).detach().numpy(), rtol=1e-13, atol=1e-13)
    before = record.mean.copy()
    layer.running_mean.zero_()
    assert np.array_equal(record.mean, before)  # as it was


def test_what_is_unknown_is_none():
    record = record_of(norms_of(nn.BatchNorm1d(3, track_running_stats=False, device="meta"))[0])
    assert record.mean is record.var is record.weight is record.batches is None
    assert record_of(norms_of(bnt.BatchNorm1d(3, running_correction=0, momentum=0.3))[0]).correction == 0


def test_state_names_are_found_by_class():
    """ResNet-18 has 20 layers of five entries, those of its shortcuts among them, whatever they are called."""
    model = resnet18()
    names = bnt.state_names(model)
    assert len(names) == len(set(names)) == 100
    affine, statistics = bnt.state_names(model, statistics=False), bnt.state_names(model, affine=False)
    assert (len(affine), len(statistics), {*affine} | {*statistics}) == (40, 60, {*names})
    assert names == [name for name in model.state_dict() if name in {*names}], "in the order of the state"
    assert bnt.state_names(model, False, False) == []


def test_state_names_of_shared_parametrized_and_plain_layers():
    layer = bnt.BatchNorm1d(3, keep_count=True)
    model = torch.nn.Sequential(layer, torch.nn.GroupNorm(1, 3), layer, torch.nn.BatchNorm1d(3, affine=False))
    once, of_all = bnt.state_names(model), bnt.state_names(model, remove_duplicate=False)
    assert (len(once), len(of_all)) == (9, 15)
    assert {*of_all} == {name for name in model.state_dict() if name[0] != "1"}
    assert bnt.state_names(layer) == list(layer.state_dict())
    torch.nn.utils.parametrizations.weight_norm(layer, "weight", dim=0)
    assert bnt.state_names(layer, statistics=False) == [
        "bias", "parametrizations.weight.original0", "parametrizations.weight.original1"
    ]  # fmt: skip
    assert {*bnt.state_names(layer)} == {*layer.state_dict()}
    with pytest.raises(TypeError, match="state_names: model must be"):
        bnt.state_names(model.state_dict())
