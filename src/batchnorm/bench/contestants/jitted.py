"""JAX: the formulas, compiled by jax.jit; the backward is the one that jax.vjp derives."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..data import Data, as_stored
from ..problem import Problem
from .contract import Contestant, Prepared, Unable, not_installed, version_of


class Jax(Contestant):
    """On all processors: its pool of threads is as large as the machine."""

    name = "jax"
    what = "the formulas compiled by jax.jit"
    pool = "jax"

    def missing(self) -> str | None:
        return not_installed("jax", "JAX")

    def version(self) -> str | None:
        return version_of("jax")

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if problem.threads != processors:
            raise Unable(f"JAX takes all {processors} processors")
        import jax
        import jax.numpy as jnp

        if jax.default_backend() != "cpu":
            raise Unable("JAX does not run on the CPU here")
        if problem.dtype == "float64" and jnp.asarray(np.zeros(1)).dtype != np.float64:
            raise Unable("JAX computes in float32 unless its x64 mode is on")
        does, eps = problem.does, self.eps
        axis = 1 if problem.layout == "contiguous" else -1
        x, grad, residual = (jnp.asarray(as_stored(a, data.layout)) for a in (data.x, data.grad, data.residual))
        axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        form = [1] * x.ndim
        form[axis] = -1
        weight, bias, mean, var = (jnp.asarray(a.reshape(form)) for a in (data.weight, data.bias, data.mean, data.var))

        def forward(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
            wide = x.astype(weight.dtype)
            mu = wide.mean(axes, keepdims=True) if does.kind != "evaluation" else mean
            v = wide.var(axes, keepdims=True) if does.kind != "evaluation" else var
            y = (wide - mu) * jax.lax.rsqrt(v + eps) * weight + bias
            y = y + residual if does.adds else y
            return (jax.nn.relu(y) if does.activates else y).astype(x.dtype)

        def back(a: Any) -> Any:
            return np.moveaxis(np.asarray(a), axis, 1)

        if does.kind != "backward":
            run = jax.jit(forward)
            return Prepared(lambda: run(x, weight, bias, residual).block_until_ready(), lambda y: {"y": back(y)})
        _, pull = jax.jit(lambda *primals: jax.vjp(forward, *primals))(x, weight, bias, residual)
        apply = jax.jit(lambda pull, g: pull(g))

        def read(results: Any) -> dict[str, Any]:
            dx, grad_weight, grad_bias, grad_residual = results
            found = {"x": back(dx), "weight": np.asarray(grad_weight).ravel(), "bias": np.asarray(grad_bias).ravel()}
            return {**found, "residual": back(grad_residual)} if does.adds else found

        return Prepared(lambda: jax.block_until_ready(apply(pull, grad)), read)


ALL: list[Contestant] = [Jax()]
