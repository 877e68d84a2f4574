"""The formulas in NumPy, as one would write them; and scikit-learn's StandardScaler, which is batch norm of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import Data
from ..problem import Problem
from .contract import Array, Contestant, Prepared, Unable, not_installed, version_of


class NumPy(Contestant):
    """One thread, a temporary array for each step; float32 for 16-bit data."""

    name = "numpy"
    what = "the formulas in NumPy, on one thread"

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        if problem.threads > 1:
            raise Unable("NumPy's arithmetic has one thread")
        does, eps, dtype = problem.does, self.eps, data.x.dtype
        axes = tuple(i for i in range(data.x.ndim) if i != 1)
        form = (1, -1, *[1] * (data.x.ndim - 2))
        weight, bias, mean, var = (a.reshape(form) for a in (data.weight, data.bias, data.mean, data.var))
        kind = np.float32 if dtype.itemsize == 2 else dtype

        def normalised(x: Array, trains: bool) -> tuple[Array, Any]:
            mu = x.mean(axes, keepdims=True) if trains else mean
            v: Any = x.var(axes, keepdims=True) if trains else var
            rstd = 1 / np.sqrt(v + eps)
            return (x - mu) * rstd, rstd

        def forward() -> Any:
            x = data.x.astype(kind, copy=False)
            z = normalised(x, does.kind == "forward")[0] * weight + bias
            if does.adds:
                z += data.residual
            if does.activates:
                np.maximum(z, 0, out=z)
            return z.astype(dtype, copy=False)

        x_wide = data.x.astype(kind)
        xhat, rstd = normalised(x_wide, True)  # what a forward would save
        positive = (xhat * weight + bias + (data.residual.astype(kind) if does.adds else 0)) > 0
        m = data.x.size // data.x.shape[1]

        def backward() -> list[Array]:
            g = data.grad.astype(kind, copy=False)
            if does.activates:
                g = g * positive
            grad_bias, grad_weight = g.sum(axes, keepdims=True), (g * xhat).sum(axes, keepdims=True)
            dx = weight * rstd * (g - (grad_bias + xhat * grad_weight) / m)
            results = [dx.astype(dtype, copy=False), grad_weight.ravel(), grad_bias.ravel()]
            return [*results, g.astype(dtype, copy=False)] if does.adds else results

        if does.kind == "backward":
            return Prepared(backward, lambda r: dict(zip(("x", "weight", "bias", "residual"), r, strict=False)))
        return Prepared(forward, lambda y: {"y": y})


class ScikitLearn(Contestant):
    """No weight, no bias, no eps: scaled afterwards so that results can be compared."""

    name = "scikit-learn"
    what = "StandardScaler of scikit-learn on tables, without weight, bias and eps; one thread"
    eps = 0.0

    def missing(self) -> str | None:
        return not_installed("sklearn", "scikit-learn")

    def version(self) -> str | None:
        return version_of("scikit-learn")

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        does = problem.does
        if data.x.ndim != 2 or does.kind == "backward" or does.activates or does.adds:
            raise Unable("StandardScaler normalises tables, forward")
        if problem.dtype not in ("float32", "float64"):
            raise Unable("StandardScaler computes in float32 and float64")
        if problem.threads > 1:
            raise Unable("StandardScaler has one thread")
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        if does.kind == "evaluation":
            scaler.fit(data.x)
            call = scaler.transform
        else:
            call = scaler.fit_transform
        return Prepared(lambda: call(data.x), lambda xhat: {"y": xhat * data.weight + data.bias})


ALL: list[Contestant] = [NumPy(), ScikitLearn()]
