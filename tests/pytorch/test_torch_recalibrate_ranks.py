"""`recalibrate` on several ranks: uneven and empty ones, equal bits everywhere, and failures that all see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import Failed, Ranks, group_of
from torch import nn

import batchnorm.torch as bnt
from recalibration import Branches, dense, everything, filled, statistics


@pytest.fixture(scope="module")
def three():
    pool = Ranks(3, [(0, 1, 2), (0, 2)], seconds=20)
    yield pool
    pool.close()


def recalibrated(rank, data, options):
    """In a rank: statistics, and what is said; or a refusal, and whether anything was changed."""
    model = filled(Branches() if options.pop("width", 4) == 4 else nn.Sequential(nn.BatchNorm1d(3)))
    options["group"] = group_of(options["group"])
    if options.pop("ddp", False):
        model.head[0].__class__ = nn.BatchNorm1d  # it refuses torch.nn.SyncBatchNorm on the CPU
        model = nn.parallel.DistributedDataParallel(model, process_group=options.pop("group"))  # found there
    if options.pop("interrupted", False):
        handle = model.head[0].register_forward_pre_hook(_interrupt)
    before = everything(model)
    try:
        done = bnt.recalibrate(model, [torch.from_numpy(x) for x in data], verbose=False, **options)
    except (ValueError, KeyboardInterrupt) as error:
        assert everything(model) == before
        if "handle" in locals():
            handle.remove()
        return f"{type(error).__name__}: {error}"
    found = {name: (mean.numpy(), var.numpy()) for name, (mean, var) in statistics(model).items()}
    return found, done.samples, done.batches, done.notes, [layer.count for layer in done.layers]


def _interrupt(*_):
    raise KeyboardInterrupt("planted")


DATA = dense(60).numpy()
SHARES = {
    "uneven": [[DATA[:7], DATA[7:30]], [DATA[30:31]], [DATA[31:40], DATA[40:41], DATA[41:60]]],
    "one empty": [[DATA[:7]], [], [DATA[7:30], DATA[30:60]]],
    "one has all": [[], [], [DATA[:20], DATA[20:60]]],
}


def _run(pool, data, *, ranks=None, **options):
    each = options.pop("each", [{}] * len(data))
    group = tuple(ranks) if ranks else (0, 1, 2)
    given = [{"group": group} | options | own for own in each]
    return pool.run(recalibrated, data, given, ranks=ranks)


def _alone(data, **options):
    model = filled(Branches())
    batches = [torch.from_numpy(x) for of_rank in data for x in of_rank]
    bnt.recalibrate(model, batches, verbose=False, **options)
    return statistics(model), len(batches)


@pytest.mark.parametrize("options", [{}, {"max_memory": 1}, {"how": "pooled"}, {"how": "batches"}], ids=str)
@pytest.mark.parametrize("shares", SHARES)
def test_ranks_are_parts_of_the_data(three, shares, options):
    data = SHARES[shares]
    if options.get("how") == "batches":
        data = [[x for x in of_rank if len(x) > 1] for of_rank in data]
    expected, batches = _alone(data, **options)
    found = _run(three, data, **options)
    for answer in found:
        assert not isinstance(answer, (Failed, str)), answer
        for name, (mean, var) in expected.items():
            assert np.allclose(answer[0][name][1], var.numpy(), rtol=1e-11)
            assert np.allclose(answer[0][name][0], mean.numpy(), rtol=1e-11, atol=1e-12)
            assert all(np.array_equal(a, b) for a, b in zip(answer[0][name], found[0][0][name], strict=True)), "bits"
        samples = sum(len(x) for of_rank in data for x in of_rank)
        assert answer[1:3] == (samples, batches)
        assert answer[4] == [samples] * len(expected)


def test_a_group_of_some_and_a_wrapped_model(three):
    data = SHARES["uneven"]
    expected, _ = _alone(data[::2])
    found = _run(three, data[::2], ranks=[0, 2], ddp=True)
    for answer in found:
        assert not isinstance(answer, (Failed, str)), answer
        found_mean = answer[0]["module.head.2"][0]
        assert np.allclose(found_mean, expected["head.2"][0].numpy(), rtol=1e-11)
        assert answer[3] == ["DistributedDataParallel: the model inside was used"]


BAD = [[DATA[:7]], [np.full((4, 3), np.nan)], [DATA[7:30]]]
FAILURES = {
    "a batch of NaN": (BAD, {}, [0, 2], "got mean nan"),
    "a batch of NaN, pooled": (BAD, {"how": "pooled"}, [0, 2], "got mean nan"),
    "another width": ([[DATA[:7]], [DATA[:4, :2]], [DATA[7:30]]], {}, [0, 2], "got RuntimeError from batch 0"),
    "interrupted": (
        SHARES["uneven"], {"each": [{}, {"interrupted": True}, {}]}, [0, 2], "KeyboardInterrupt: planted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_all_ranks_hear_of_a_failure(three, case):
    data, options, others, words = FAILURES[case]
    found = _run(three, data, **options)
    assert isinstance(found[1], str), found[1]
    assert words in found[1]
    for rank in others:
        assert "recalibrate: every rank must come to the end; got a failure on rank 1" in found[rank], found[rank]


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([[], [], []], {}, "data must have a batch at least; got none"),
        ([[DATA[:1]], [], []], {}, "more than one position per channel in all data; got 1"),
        (SHARES["uneven"], {"each": [{}, {"how": "pooled"}, {}]}, "all ranks must recalibrate the same layers"),
        (SHARES["uneven"], {"each": [{}, {}, {"width": 3}]}, "all ranks must recalibrate the same layers"),
    ],
    ids=["no batch", "one position", "another definition", "another model"],
)
def test_what_all_refuse(three, data, options, words):
    for answer in _run(three, data, **options):
        assert isinstance(answer, str), answer
        assert words in answer


def _diagnosed(rank, change, data, options):
    """In a rank: what is found of a model whose statistics are changed there, or what is refused."""
    model = dense_model()
    change_of(model, change)
    before = everything(model)
    try:
        found = bnt.diagnose(model, data, group=group_of((0, 1, 2)), verbose=False, **options)
    except ValueError as error:
        assert everything(model) == before
        return str(error)
    assert everything(model) == before
    return [(each.code, each.layer, each.is_remark, each.sentence) for each in found.findings if each.code == CODE]


CODE = "ranks differ"


def dense_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    for layer in (model[1], model[4]):
        layer.running_mean.fill_(0.5)
    return model


def change_of(model, change):
    name, factor = change
    if name:
        model.get_submodule(name).running_var.mul_(factor)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([("", 1)] * 3, []),
        (
            [("", 1), ("4", 1.001), ("4", 4.0)],
            [(CODE, "4", False, "rank 0 and rank 2 differ by a factor of 4 in variance and by 0 std in mean")],
        ),
        ([("", 1), ("1", 1.001), ("", 1)], [(CODE, "1", True, "rank 0 and rank 1 differ by a factor of 1 in")]),
        ([("1", np.nan), ("", 1), ("", 1)], [(CODE, "1", False, "rank 0 and rank 1 differ by a factor of nan in")]),
    ],
    ids=["alike", "far", "near", "nan"],
)
def test_diagnose_says_that_ranks_differ(three, changes, found):
    data = [[torch.randn(16, 3, generator=torch.Generator().manual_seed(9 * r + i)).double() for i in range(4)]
            for r in range(3)]  # fmt: skip
    told = three.run(_diagnosed, changes, data, [{}] * 3)
    assert told[0] == told[1] == told[2]
    assert [each[:3] for each in told[0]] == [each[:3] for each in found]
    assert all(wanted[3] in each[3] for each, wanted in zip(told[0], found, strict=True)), told[0]
    short = three.run(_diagnosed, changes, [data[0], data[1][:1], data[2]], [{}] * 3)
    assert "train must have 4 batches at least" in short[1]
    assert short[0] == short[2]
    assert short[0].startswith("diagnose: every rank must come to the end; got a failure on rank 1")
