"""Recalibrating: how far off the statistics of each tool are, and what they take beside a forward in evaluation."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
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


def tools() -> tuple[dict[str, Callable[[nn.Module, list[Tensor]], Any]], dict[str, str]]:
    """Each by its name; and why one is missing."""
    found: dict[str, Callable[[nn.Module, list[Tensor]], Any]] = {
        UPDATE_BN: lambda model, batches: torch.optim.swa_utils.update_bn(batches, model),
        WHOLE: lambda model, batches: bnt.recalibrate(model, batches, verbose=False),
    }
    try:
        from fvcore.nn.precise_bn import update_bn_stats
    except ImportError as error:
        return found, {FVCORE: str(error)}

    def by_fvcore(model: nn.Module, batches: list[Tensor]) -> None:
        update_bn_stats(model.train(), batches, len(batches))

    return {UPDATE_BN: found[UPDATE_BN], FVCORE: by_fvcore, WHOLE: found[WHOLE]}, {}


def data_of(problem: Problem) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A model, all data as its last layer gets them in evaluation, and the batches."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(problem.shape).astype(problem.dtype))
    n, dtype = len(x), x.dtype
    if problem.what == "uneven":
        return nn.BatchNorm1d(x.shape[1], dtype=dtype), x, [x[: n - 2], x[n - 2 :]]
    if problem.what == "sorted":
        x = x[x[:, 0].argsort()]
    if problem.what == "mean 1e4":
        x = x + 1e4
    layer = nn.BatchNorm1d(x.shape[1], dtype=dtype)
    model = nn.Sequential(nn.Dropout(), layer) if problem.what == "dropout" else layer
    return model, x, list(x.split(500))


def errors(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Of each tool: the mean in standard deviations, and the least and largest variance as a part of the exact one."""
    model, x, batches = data_of(problem)
    exact = x.numpy().astype(np.longdouble)
    mean, var = exact.mean(0), exact.var(0, ddof=1)
    known, unable = tools()
    found = {}
    for who, tool in known.items():
        torch.manual_seed(0)
        its = copy.deepcopy(model).train()
        tool(its, batches)
        layer = next(module for module in its.modules() if isinstance(module, nn.BatchNorm1d))
        off = np.abs(layer.running_mean.numpy() - mean) / np.sqrt(var)
        ratio = layer.running_var.numpy() / var
        found[who] = {"mean": float(off.max()), "var": [float(ratio.min()), float(ratio.max())]}
    ours = found[WHOLE]
    rounded = float((2**-24 * np.abs(mean) / np.sqrt(var)).max())  # the mean is stored in float32
    assert ours["mean"] < 1e-6 + rounded, "ours is wrong"
    assert max(abs(r - 1) for r in ours["var"]) < 1e-5, "ours is wrong"
    return {"times": {}, "off": found, "unable": unable}


def speed(problem: Problem, settings: Settings) -> dict[str, Any]:
    """A network on so many batches; and the memory of ours, as it is predicted and as it is taken."""
    torch.manual_seed(0)
    try:
        model = NETWORKS[problem.what]()
    except ImportError as error:
        return {"times": {}, "unable": {problem.what: str(error)}}
    batches = [torch.randn(problem.shape) for _ in range(BATCHES)]
    known, unable = tools()
    known[POOLED] = lambda model, batches: bnt.recalibrate(model, batches, how="pooled", verbose=False)

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(batch)

    evaluate()
    contestants = {EVALUATION: Contestant({STEP: evaluate})}
    contestants |= {who: Contestant({STEP: lambda t=tool: t(model, batches)}) for who, tool in known.items()}
    times = measure(contestants, settings)
    model.eval()
    gc.collect()
    alone = peak_bytes(evaluate)
    taken = peak_bytes(lambda: known[WHOLE](model, batches))
    predicted = bnt.recalibrate(model, batches, verbose=False).bytes
    return {"times": times, "memory": {"evaluation": alone, "taken": taken, "predicted": predicted}, "unable": unable}
