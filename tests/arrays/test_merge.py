"""`merge_state_dicts` of NumPy's arrays: the bits of the merge of tensors, and what it refuses beyond that one."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt

C = 5


def _numpy(state):
    def array(value):
        return (
            value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype is torch.bfloat16 else value.numpy()
        )

    return {name: array(value.detach().clone()) for name, value in state.items()}


def _clients(server, k):
    rng = torch.Generator().manual_seed(k)
    client = copy.deepcopy(server)
    for i in range(k + 1):
        client(torch.randn(6 + i, 3, generator=rng) * (k + 1) + 3 * k)
    for parameter in client.parameters():
        parameter.data += torch.randn(parameter.shape, generator=rng)
    return client


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_bits_are_those_of_the_merge_of_tensors(dtype, momentum):
    """Of parameters, statistics and counts; apart, and in a round; with the momentum given, or the model's own."""
    layer = bnt.BatchNorm1d(C, momentum=momentum, keep_count=True)
    server = torch.nn.Sequential(torch.nn.Linear(3, C), layer, torch.nn.Linear(C, 1))
    clients = [_clients(server, k).to(dtype).state_dict() for k in range(4)]
    base, counts = server.to(dtype), [40, 9, 0, 7]
    tensors = [
        bnt.merge_state_dicts(clients, counts),
        bnt.merge_state_dicts(clients, counts, base=base),
        bnt.merge_state_dicts(clients, counts, base=base.state_dict(), momentum=momentum),
    ]
    arrays = [_numpy(client) for client in clients]
    start = _numpy(base.state_dict())
    for expected, options in zip(tensors, ({}, *[{"base": start, "momentum": momentum}] * 2), strict=True):
        merged = bn.merge_state_dicts(arrays, np.array(counts), **options)
        assert list(merged) == list(expected)
        for name, value in _numpy(expected).items():
            assert merged[name].dtype == value.dtype
            assert merged[name].tobytes() == value.tobytes(), name
            assert not any(np.shares_memory(merged[name], given[name]) for given in (*arrays, start))


def test_layers_and_rounds():
    """A layer is a state, and as `base` it knows its momentum; ten clients for twenty-five rounds."""
    server = bn.BatchNorm(C, momentum=None)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(25):
        clients = [copy.deepcopy(server) for _ in range(10)]
        for client in clients:
            seen.append(rng.normal(size=(8, C)).astype(np.float32))
            client(seen[-1])
        server.load_state_dict(bn.merge_state_dicts(clients, [8] * 10, base=server))
    assert server.num_batches_tracked == 250
    np.testing.assert_allclose(server.running_mean, np.mean([x.mean(0) for x in seen], 0), atol=1e-6)


def test_numbers_and_what_has_no_average():
    a = {"scale": 1.5, "steps": np.int64(3), "name": "x"}
    merged = bn.merge_state_dicts([a, a | {"scale": 2.5}], [1, 3], running_correction=0)
    assert (merged["scale"], merged["steps"], merged["name"]) == (2.25, 3, "x")
    with pytest.raises(ValueError, match=r"steps \(int64\) differs"):
        bn.merge_state_dicts([a, a | {"steps": np.int64(4)}], [2, 2])


STATE = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
REFUSED = {
    "tensors": (dict.fromkeys(STATE, torch.zeros(C)), {}, TypeError, "running_mean is Tensor; convert it"),
    "no state": ([1], {}, TypeError, r"number 0 is list; pass \[layer.state_dict"),
    "momentum alone": (STATE, {"momentum": 0.1}, ValueError, "momentum=0.1 and no base"),
    "Keras' momentum": (STATE, {"base": STATE, "momentum": 1.1}, ValueError, "weight of the new batch"),
    "no count": (STATE, {"base": STATE}, ValueError, "with base a layer must have num_batches_tracked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    state, options, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        bn.merge_state_dicts([state, state], [2, 2], **options)
