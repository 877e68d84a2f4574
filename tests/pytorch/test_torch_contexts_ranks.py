"""Contexts over a model in DistributedDataParallel: each rank's layers do what they do in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from context_models import CONTEXTS, MASK, attributes_of, model_of, serves, x_of
from ranks import Failed, Ranks
from torch import nn

import batchnorm.torch as bnt


@pytest.fixture(scope="module")
def two():
    pool = Ranks(2, [(0, 1)])
    yield pool
    pool.close()


def _model(kind: str, context: str) -> nn.Module:
    torch.manual_seed(0)
    return model_of(kind).train(context != "adapt")


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: t.numpy().copy() for name, t in model.state_dict().items() if "running" in name or "num" in name}


def work(rank: int, kind: str, context: str, begin: dict[str, Any]) -> tuple[list[Any], dict[str, Any], bool]:
    """Two steps in a block: what comes out of this rank, the statistics after it, and whether the rest is as it was."""
    model = _model(kind, context)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in begin.items()})
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    attributes = attributes_of(model)
    ys = []
    with CONTEXTS[context](parallel):
        for seed in (0, 2):
            y = parallel(x_of(seed + rank))
            y.square().sum().backward()
            ys.append(y.detach().numpy())
    state = _state(model), attributes_of(model) == attributes
    del parallel  # before the process group
    return ys, *state


def uneven(rank: int) -> str:
    """A mask that does not fit on one rank is refused on all: none waits for the other."""
    layer = bnt.SyncBatchNorm(3)
    with bnt.masked(layer, torch.ones(5, 4 + rank, 2, dtype=torch.bool)):
        try:
            layer(x_of())
        except ValueError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "context"),
    [(kind, c) for kind in ("torch.nn", "of its own", "ours", "synchronized") for c in CONTEXTS if serves(c, kind)],
)
def test_in_distributed_data_parallel(two, kind, context):
    begin = {name: t.numpy() for name, t in _model(kind, context).state_dict().items()}
    answers = two.run(work, [kind] * 2, [context] * 2, [begin] * 2)
    for answer in answers:
        if isinstance(answer, Failed):
            raise answer
    together = kind == "synchronized" and context != "adapt"
    for rank, (ys, state, same) in enumerate(answers):
        assert same
        expected = _model(kind, context)
        block = CONTEXTS[context](expected)
        if together and context == "masked":
            block = bnt.masked(expected, torch.cat([MASK, MASK]), zero=True)
        with block:
            for seed, y in zip((0, 2), ys, strict=True):
                ranks = (0, 1) if together else (rank,)
                whole = expected(torch.cat([x_of(seed + r) for r in ranks])).detach().numpy()
                np.testing.assert_allclose(y, whole[5 * rank :][:5] if together else whole, rtol=1e-5, atol=1e-5)
        for name, value in _state(expected).items():
            np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6)


def test_a_mask_that_does_not_fit_on_one_rank(two):
    here, there = two.run(uneven)
    assert (
        here == "SyncBatchNorm: the input of rank 1 of the process group was refused, so all ranks refuse; see the "
        "error there. Nothing is changed"
    )
    assert there.startswith("masked: the model itself normalizes samples and positions (5, 4, 2)")
