"""A net of batch norms inside `hold`, `masked`, `one_update` and `adapt`: its forward, and entering and leaving."""

from __future__ import annotations

import copy
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm.torch as bnt
from batchnorm.tools.bench.problem import Problem, Wrong
from batchnorm.tools.bench.timing import Contestant, Settings, Step, measure
from layers import FORWARD, of_rank, tensors
from rows import BESIDE, NET, TRAINED

AROUND = "enter and leave"
PACKAGES = {"torch.nn": nn, "ours": bnt}


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Of a package's layers, each context beside the forward without it, whose result it must have."""
    (x,), layer = tensors(problem, 1), of_rank(PACKAGES[problem.what], problem)
    trained = nn.Sequential(*(layer(problem.shape[1]) for _ in range(NET)))
    evaluated = copy.deepcopy(trained).eval()
    mask = torch.rand(x.shape[0], *x.shape[2:], generator=torch.Generator().manual_seed(0)) < 0.9

    def by_hand() -> Tensor:
        return reduce(lambda y, layer: layer(y, mask=mask), trained, x)

    plain = {TRAINED: partial(trained, x), "evaluation": partial(evaluated, x)}
    contexts = {"hold": partial(bnt.hold, trained), "one_update": partial(bnt.one_update, trained)}
    contexts["adapt"] = partial(bnt.adapt, evaluated, 16.0)
    if problem.what == "ours":  # torch.nn's layers take no mask
        plain["mask by hand"] = by_hand
        contexts["masked"] = partial(bnt.masked, trained, mask)

    def around(context: Any) -> Step:
        def step() -> None:
            with context():
                pass

        return step

    contestants = {who: Contestant({FORWARD: call}, "torch") for who, call in plain.items()}
    for who, context in contexts.items():
        forward = plain["evaluation" if who == "adapt" else TRAINED]
        contestants[who] = Contestant({FORWARD: forward}, "torch", context)
        inside, without = contestants[who].once()[FORWARD], plain[BESIDE[who]]()
        if who != "adapt" and not torch.equal(inside, without):
            raise Wrong(f"{problem.title}: {who} changes the result")
    times = measure(contestants, settings)
    entered = measure({who: Contestant({AROUND: around(context)}) for who, context in contexts.items()}, settings)
    return {"times": {who: steps | entered.get(who, {}) for who, steps in times.items()}}
