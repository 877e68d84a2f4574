"""Recalibrating: how far off the statistics of each tool are, and what they take beside a forward in evaluation."""

from __future__ import annotations

import copy
import gc
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchnorm.torch as bnt
from batchnorm.tools.bench.problem import Problem
from batchnorm.tools.bench.timing import Contestant, Settings, measure
from networks import NETWORKS, peak_bytes

UPDATE_BN, FVCORE, WHOLE, POOLED, EVALUATION = "update_bn", "fvcore", "recalibrate", "pooled", "evaluation"
BATCHES = 8
STEP = "all batches"


def by_fvcore(model: nn.Module, batches: list[Tensor]) -> None:
    from fvcore.nn.precise_bn import update_bn_stats

    update_bn_stats(model.train(), batches, len(batches))


TOOLS = {
    UPDATE_BN: lambda model, batches: torch.optim.swa_utils.update_bn(batches, model),
    FVCORE: by_fvcore,
    WHOLE: lambda model, batches: bnt.recalibrate(model, batches, verbose=False),
    POOLED: lambda model, batches: bnt.recalibrate(model, batches, how="pooled", verbose=False),
}
MISSING = {} if find_spec("fvcore") else {FVCORE: "it is not installed"}


def data_of(problem: Problem) -> tuple[nn.Sequential, Tensor, list[Tensor]]:
    """A model, all data as its layer gets them in evaluation, and the batches."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(problem.shape).astype(problem.dtype))
    x = x[x[:, 0].argsort()] if problem.what == "sorted" else x
    x = x + 1e4 if problem.what == "mean 1e4" else x
    dropout = nn.Dropout(0.5 if problem.what == "dropout" else 0.0)
    sizes = (len(x) - 2, 2) if problem.what == "uneven" else 500
    return nn.Sequential(dropout, nn.BatchNorm1d(x.shape[1], dtype=x.dtype)), x, list(x.split(sizes))


def errors(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Of each tool: the mean in standard deviations, and the least and largest variance as a part of the exact one."""
    model, x, batches = data_of(problem)
    exact = x.numpy().astype(np.longdouble)
    mean, var = exact.mean(0), exact.var(0, ddof=1)
    found = {}
    for who in (who for who in (UPDATE_BN, FVCORE, WHOLE) if who not in MISSING):
        torch.manual_seed(0)
        its = copy.deepcopy(model).train()
        TOOLS[who](its, batches)
        off = np.abs(its[1].running_mean.numpy() - mean) / np.sqrt(var)
        ratio = its[1].running_var.numpy() / var
        found[who] = {"mean": float(off.max()), "var": [float(ratio.min()), float(ratio.max())]}
    ours = found[WHOLE]
    rounded = float((2**-24 * np.abs(mean) / np.sqrt(var)).max())  # the mean is stored in float32
    assert ours["mean"] < 1e-6 + rounded, "ours is wrong"
    assert max(abs(r - 1) for r in ours["var"]) < 1e-5, "ours is wrong"
    return {"times": {}, "off": found, "unable": MISSING}


def speed(problem: Problem, settings: Settings) -> dict[str, Any]:
    """A network on so many batches; and the memory of ours, as it is predicted and as it is taken."""
    torch.manual_seed(0)
    model = NETWORKS[problem.what]()
    batches = [torch.randn(problem.shape) for _ in range(BATCHES)]

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(batch)

    calls = {EVALUATION: evaluate}
    calls |= {who: (lambda t=tool: t(model, batches)) for who, tool in TOOLS.items() if who not in MISSING}
    evaluate()
    times = measure({who: Contestant({STEP: call}) for who, call in calls.items()}, settings)
    model.eval()
    gc.collect()
    memory = {"evaluation": peak_bytes(evaluate), "taken": peak_bytes(calls[WHOLE])}
    memory["predicted"] = bnt.recalibrate(model, batches, verbose=False).bytes
    return {"times": times, "memory": memory, "unable": MISSING}
