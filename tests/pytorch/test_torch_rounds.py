"""`merge_state_dicts` over rounds of training apart: statistics of the pooled batches, and exact counts."""

from __future__ import annotations

import collections
import copy
import itertools

import numpy as np
import pytest
import torch

import batchnorm.torch as bnt

C, CLIENTS, ROUNDS = 2, 10, 30


def _layer(**options):
    return bnt.BatchNorm1d(C, affine=False, **options)


def _bits(states):
    return [{name: value.clone() for name, value in state.items()} for state in states]


def _equal(a, b):
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def _pooled(batches, momentum, correction):
    """Running statistics of one training, in NumPy: each of its batches is what all clients saw in a round."""
    mean, var = np.zeros(C), np.ones(C)
    for i, parts in enumerate(batches):
        whole = np.concatenate(parts)
        a = 1 / (i + 1) if momentum is None else momentum
        mean, var = (1 - a) * mean + a * whole.mean(0), (1 - a) * var + a * whole.var(0, ddof=correction)
    return mean, var


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rounds_are_one_training_with_the_batches_of_all(dtype):
    """Every momentum, either variance, clients of different means and sizes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 9, CLIENTS)
    places = rng.normal(size=(CLIENTS, 1, C)) * 3
    batches = [[rng.normal(size=(n, C)) + place for n, place in zip(sizes, places, strict=True)] for _ in range(ROUNDS)]
    rtol = 1e-11 if dtype is torch.float64 else 1e-5
    for momentum, correction, keep_count in itertools.product((0.1, 0.5, 1.0, None), (0, 1), (False, True)):
        cell = f"momentum={momentum} correction={correction} keep_count={keep_count}"
        rounds = ROUNDS if momentum in (0.1, None) and keep_count else 5
        server = _layer(momentum=momentum, running_correction=correction, keep_count=keep_count, dtype=dtype)
        clients = [copy.deepcopy(server) for _ in sizes]
        for parts in batches[:rounds]:
            for client, x in zip(clients, parts, strict=True):
                client.load_state_dict(server.state_dict())
                client(torch.from_numpy(x))
            server.load_state_dict(
                bnt.merge_state_dicts(clients, sizes, base=server, running_correction=correction), strict=True
            )
        mean, var = _pooled(batches[:rounds], momentum, correction)
        np.testing.assert_allclose(server.running_mean, mean, rtol=rtol, atol=rtol, err_msg=cell)
        np.testing.assert_allclose(server.running_var, var, rtol=rtol, err_msg=cell)
        assert server.num_batches_tracked == rounds * CLIENTS, cell
        for other in (0, 1) if keep_count else ():
            _, var = _pooled(batches[:rounds], momentum, other)
            np.testing.assert_allclose(server.running_variance(other), var, rtol=rtol, err_msg=f"{cell} var {other}")


def test_a_mean_over_all_batches_is_one_over_all_rounds():
    """With several batches a round, and clients that saw different numbers of them."""
    rng, server, seen = np.random.default_rng(1), _layer(momentum=None, dtype=torch.float64), []
    for _ in range(ROUNDS):
        clients, numbers = [copy.deepcopy(server) for _ in range(3)], rng.integers(1, 5, 3)
        for i, client in enumerate(clients):
            for _ in range(numbers[i]):
                seen.append(rng.normal(size=(6, C)) + i)
                client(torch.from_numpy(seen[-1]))
        server.load_state_dict(bnt.merge_state_dicts(clients, 6 * numbers, base=server))
    assert server.num_batches_tracked == len(seen)
    np.testing.assert_allclose(server.running_mean, np.mean([x.mean(0) for x in seen], 0), rtol=1e-10)


def test_without_base_counts_are_summed_until_they_do_not_fit():
    """The sum is how many batches there were where each state began at zero; in rounds it grows tenfold."""
    server, x = _layer(), torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    for expected in (10, 110, 1110):
        clients = [copy.deepcopy(server) for _ in range(CLIENTS)]
        for client in clients:
            client(x)
        server.load_state_dict(bnt.merge_state_dicts(clients, [2] * CLIENTS))
        assert server.num_batches_tracked == expected
    server.num_batches_tracked.fill_(10**18)
    before = _bits([server.state_dict()])
    with pytest.raises(
        ValueError, match=r"num_batches_tracked would be 10{19}, which int64 does not hold\. Give base="
    ):
        bnt.merge_state_dicts([server] * CLIENTS, [2] * CLIENTS)
    assert _equal([server.state_dict()], before)
    clients = [copy.deepcopy(server) for _ in range(CLIENTS)]
    clients[0](x)
    assert bnt.merge_state_dicts(clients, [2] * CLIENTS, base=server)["num_batches_tracked"] == 10**18 + 1


@pytest.mark.parametrize("count", [torch.tensor(3, dtype=torch.int32), torch.tensor([3.0]), torch.tensor(3.0).double()])
def test_a_count_keeps_its_dtype_and_shape(count):
    server = torch.nn.BatchNorm1d(C)
    server.num_batches_tracked = count
    clients = [copy.deepcopy(server) for _ in range(2)]
    for client in clients:
        client.num_batches_tracked = count + 4
    for base, expected in ((server, 11), (None, 14)):
        merged = bnt.merge_state_dicts(clients, [2, 2], base=base)["num_batches_tracked"]
        assert (merged.dtype, merged.shape, int(merged)) == (count.dtype, count.shape, expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_who_added_nothing_has_no_say(momentum):
    server = torch.nn.BatchNorm1d(C, momentum=momentum)
    server(torch.randn(5, C, generator=torch.Generator().manual_seed(0)))
    idle, busy = copy.deepcopy(server), copy.deepcopy(server)
    merged = bnt.merge_state_dicts([idle, idle], [7, 3], base=server)
    assert _equal([merged], [server.state_dict()])
    assert merged["running_mean"].data_ptr() not in {m.running_mean.data_ptr() for m in (idle, server)}
    busy(torch.randn(5, C, generator=torch.Generator().manual_seed(1)))
    merged = bnt.merge_state_dicts([idle, busy], [7, 3], base=server)
    torch.testing.assert_close(merged["running_var"], busy.running_var)
    assert merged["num_batches_tracked"] == 2
    unmoved = copy.deepcopy(server)
    unmoved.momentum = 0.0
    assert torch.equal(bnt.merge_state_dicts([busy], [3], base=unmoved)["running_mean"], server.running_mean)


def test_a_whole_model_with_base():
    """Parameters are averaged as without."""
    server = torch.nn.Sequential(torch.nn.Linear(C, C), torch.nn.BatchNorm1d(C), torch.nn.BatchNorm1d(C, momentum=None))
    clients = [copy.deepcopy(server) for _ in range(3)]
    for i, client in enumerate(clients):
        client[0].weight.data += i
        client(torch.randn(4, C, generator=torch.Generator().manual_seed(i)))
    merged = bnt.merge_state_dicts([client.state_dict() for client in clients], [4, 4, 0], base=server)
    assert isinstance(merged, collections.OrderedDict)
    assert list(merged) == list(server.state_dict())
    torch.testing.assert_close(merged["0.weight"], server[0].weight.detach() + 0.5)
    assert merged["1.num_batches_tracked"] == merged["2.num_batches_tracked"] == 2


def _state(count=5, dtype=torch.float32, mean=0.0):
    return {
        "running_mean": torch.full((C,), mean, dtype=dtype),
        "running_var": torch.ones(C, dtype=dtype),
        "num_batches_tracked": torch.as_tensor(count),
    }


def _base(count=5, **options):
    layer = torch.nn.BatchNorm1d(C, affine=False, **options)
    if options.get("track_running_stats", True):
        layer.num_batches_tracked.fill_(count)
    return layer


class _Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in _state().items():
            self.register_buffer(name, value)


HALF = torch.float16
REFUSED = {
    "not a state": ([_state()] * 2, [2, 2], [_state()], TypeError, "base is list; pass .model.state_dict"),
    "another model": ([_state()] * 2, [2, 2], torch.nn.Linear(1, 1), ValueError, "same names; base lacks"),
    "another dtype": ([_state()] * 2, [2, 2], _base().double(), ValueError, "float32 .*float64 in base"),
    "fewer batches": ([_state(), _state(4)], [2, 2], _base(), ValueError, "at least 5, that of base; got 4"),
    "a class of its own": ([_state()] * 2, [2, 2], _Other(), ValueError, "_Other, does not; give momentum="),
    "no count": ([{k: v for k, v in _state().items() if k != "num_batches_tracked"}] * 2, [2, 2], None, None, ""),
    "too many": ([_state(2**62)] * 2, [2, 2], None, ValueError, "would be 9223372036854775808, which int64"),
    "int32": ([_state(torch.tensor(2**30, dtype=torch.int32))] * 2, [2, 2], None, ValueError, "which int32 does"),
    "a float that rounds": ([_state(torch.tensor(2.0**23 + 1))] * 2, [2, 2], None, ValueError, "which float32 does"),
    "negative": ([_state(), _state(-1)], [2, 2], None, ValueError, "number of batches, at least 0; got -1 in number 1"),
    "a fraction": ([_state(torch.tensor(2.5))] * 2, [2, 2], None, ValueError, r"at least 0; got 2\.5 in number 0"),
    "NaN": ([_state(torch.tensor(torch.nan))] * 2, [2, 2], None, ValueError, "got nan in number 0"),
    "halves": ([_state(1, HALF, 300.0), _state(1, HALF, -300.0)], [9, 9], None, ValueError, "running_var .*in float16"),
    "enormous counts": ([_state()] * 2, [2, 2**63], None, ValueError, r"below 2\*\*63 and above 1, or 0; number 1"),
    "beyond floats": ([_state()] * 2, [2, 10**400], None, ValueError, r"below 2\*\*63"),
    "infinite": ([_state()] * 2, [2, torch.inf], None, ValueError, "number 1 is inf"),
    "two counts in one": ([_state()] * 2, [2, torch.tensor([1, 2])], None, ValueError, "number 1 is tensor"),
    "shares, and counts to keep": (
        [_state() | {"running_count": torch.ones(C).double()}] * 2, [0.5, 0.5], None, ValueError, "above 1, or 0; "
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(name):
    states, counts, base, error, words = REFUSED[name]
    everything = [*states, *([base.state_dict()] if isinstance(base, torch.nn.Module) else [])]
    before = _bits(everything)
    for correction in (0, 1) if name.startswith("shares") else (1,):
        if error is None:  # without a count there is nothing to refuse, but with base
            assert list(bnt.merge_state_dicts(states, counts)) == ["running_mean", "running_var"]
            continue
        with pytest.raises(error, match=words):
            bnt.merge_state_dicts(states, counts, base=base, running_correction=correction)
    assert str([dict(state) for state in everything]) == str(before)


def test_large_counts_are_shares_all_the_same():
    merged = bnt.merge_state_dicts([_state(1, mean=1.0), _state(1, mean=4.0)], [2**62, np.float32(2**61)])
    torch.testing.assert_close(merged["running_mean"], torch.full((C,), 2.0))
    assert merged["running_var"].isfinite().all()
