"""flax's layer, compiled by jit, beside PyTorch's and ours: its time alone, and the error of its variance."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import CONTIGUOUS, EPS, Problem
from batchnorm.tools.bench.timing import Contestant, Settings, measure
from layers import EVALUATION, FORWARD, MODULE, STEP, agree, calls, contestant, of_rank, tensors

FLAX, TWO_PASSES = "flax", "flax, use_fast_variance=False"


def flax(problem: Problem, x: Any, g: Any, **options: Any) -> Contestant:
    """Each step is one compiled function; channels-last data is (N, …, C), as flax has it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from flax.linen import BatchNorm

    options |= {"axis": 1 if problem.layout == CONTIGUOUS else -1, "epsilon": EPS, "momentum": 0.9}
    trained, evaluated = (BatchNorm(use_running_average=frozen, **options) for frozen in (False, True))
    x, g = (jax.numpy.asarray(a if problem.layout == CONTIGUOUS else np.moveaxis(a, 1, -1)) for a in (x, g))
    state = trained.init(jax.random.key(0), x)

    def forward(state: Any, x: Any) -> Any:
        return trained.apply(state, x, mutable=["batch_stats"])

    def step(state: Any, x: Any, g: Any) -> Any:
        def of(params: Any, x: Any) -> Any:
            return forward({**state, "params": params}, x)

        y, back, stats = jax.vjp(of, state["params"], x, has_aux=True)
        return y, *back(g), stats

    compiled = {STEP: (step, x, g), FORWARD: (forward, x), EVALUATION: (evaluated.apply, x)}

    def run(function: Any, *operands: Any) -> Any:
        return jax.block_until_ready(function(state, *operands))

    return Contestant({name: partial(run, jax.jit(f), *given) for name, (f, *given) in compiled.items()}, "jax")


def in_order(problem: Problem, results: dict[str, Any]) -> dict[str, list[Any]]:
    """As PyTorch has them: y, and the gradients of x, weight and bias."""
    back = (lambda a: a) if problem.layout == CONTIGUOUS else lambda a: np.moveaxis(a, -1, 1)
    y, params, dx, _ = results[STEP]
    gradients = [back(np.asarray(dx)), np.asarray(params["scale"]), np.asarray(params["bias"])]
    of = {FORWARD: results[FORWARD][0], EVALUATION: results[EVALUATION]}
    return {STEP: [back(np.asarray(y)), *gradients], **{step: [back(np.asarray(a))] for step, a in of.items()}}


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Times; or, where `what` is a mean, the errors of an output, in standard deviations."""
    if problem.what:
        return {"times": {}, "errors": errors(problem)}
    contestants = {who: contestant(who, calls(problem, nn)) for who in (PYTORCH, ACCELERATED)}
    contestants[MODULE] = Contestant(calls(problem, bnt), "torch")
    results = {who: one.once() for who, one in contestants.items()}
    contestants[FLAX] = flax(problem, *(t.numpy() for t in tensors(problem, 2)))
    found = in_order(problem, contestants[FLAX].once())
    for step in found:
        others = {who: its[step] if step == STEP else [its[step]] for who, its in results.items()}
        agree(problem, others | {FLAX: found[step]})
    return {"times": measure(contestants, settings)}


def errors(problem: Problem) -> dict[str, float]:
    x = tensors(problem, 1)[0].numpy() + np.float32(problem.what)
    exact = x.astype(np.longdouble)
    exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + EPS)
    ways = {PYTORCH: of_rank(nn, problem)(x.shape[1]), MODULE: of_rank(bnt, problem)(x.shape[1])}
    found = {who: layer(torch.from_numpy(x)).detach().numpy() for who, layer in ways.items()}
    for who, fast in ((FLAX, True), (TWO_PASSES, False)):
        found[who] = np.asarray(flax(problem, x, x, use_fast_variance=fast).once()[FORWARD][0])
    return {who: float(np.abs(y - exact).max()) for who, y in found.items()}
