"""The tensors of a problem, and the exact results, by the float64 specification."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _reference
from .problem import Operation, Problem

Array = NDArray[Any]
Doubles = NDArray[np.float64]

EPS = 1e-5


def dtype_named(name: str) -> np.dtype[Any]:
    """NumPy's dtype; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def missing_for(dtype: str) -> str | None:
    """Why arrays of this dtype cannot be made here, or None."""
    return "bfloat16 arrays need ml_dtypes" if dtype == "bfloat16" and find_spec("ml_dtypes") is None else None


def in_layout(a: Array, layout: str) -> Array:
    """The same array (N, C, …), in the memory order of the layout."""
    if layout == "contiguous":
        return np.ascontiguousarray(a)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def as_stored(a: Array, layout: str) -> Array:
    """The array with its axes in the order of memory: (N, C, …) or (N, …, C)."""
    return a if layout == "contiguous" else np.moveaxis(a, 1, -1)


class Data:
    """Random tensors of a problem's shape, layout and dtype; its operation and threads do not matter."""

    def __init__(self, problem: Problem) -> None:
        rng = np.random.default_rng(0)
        dtype, C = dtype_named(problem.dtype), problem.sizes[1]
        self.layout = problem.layout
        self.x, self.grad, self.residual = (
            in_layout(rng.standard_normal(problem.sizes, dtype=np.float32).astype(dtype), problem.layout)
            for _ in range(3)
        )
        wide = np.float64 if problem.dtype == "float64" else np.float32
        self.weight, self.bias = rng.uniform(0.5, 1.5, C).astype(wide), rng.normal(size=C).astype(wide)
        _, mean, var = self.moments
        self.mean, self.var = mean.astype(wide), var.astype(wide)  # what evaluation is given, the same for everybody

    @cached_property
    def moments(self) -> tuple[float, Doubles, Doubles]:
        """Count, mean and variance of each channel of x."""
        return _reference.moments(_reference.arrange(self.x, 1))

    def exact(self, operation: Operation, eps: float = EPS) -> Exact:
        """What the operation should compute, in float64."""
        arranged = _reference.arrange(self.x, 1)
        weight, bias, mean, var = (a.astype(np.float64) for a in (self.weight, self.bias, self.mean, self.var))
        if operation.kind != "evaluation":
            _, mean, var = self.moments
        residual = _reference.arrange(self.residual, 1) if operation.adds else 0.0
        xhat, z = _reference.normalize(arranged, mean, var, weight, bias, eps, residual)
        kind = "relu" if operation.activates else None
        if operation.kind != "backward":
            terms = np.abs(weight * xhat) + np.abs(bias) + np.abs(residual)
            return Exact({"y": self._back(_reference.activate(z, kind))}, {}, self._back(terms))
        given = _reference.arrange(self.grad, 1)
        g = given * _reference.derivative(z, kind)
        dx, grad_weight, grad_bias = _reference.backward(g, xhat, var, weight, eps)
        results = {"x": self._back(dx), "weight": grad_weight, "bias": grad_bias}
        if operation.adds:
            results["residual"] = self._back(g)
        return Exact(results, self._at_the_corner(z, given, xhat, weight, var) if operation.activates else {})

    def _at_the_corner(self, z: Doubles, g: Doubles, xhat: Doubles, weight: Doubles, var: Doubles) -> dict[str, Any]:
        """How far results may be off because rounding puts values near ReLU's corner on its other side."""
        margin = {8: 1e-12, 4: 2e-5, 2: 5e-2}[self.x.dtype.itemsize]  # 16 bit: y is rounded before a residual is added
        near = (np.abs(z) <= margin).astype(np.float64)
        weight_off, bias_off = (near * np.abs(g * xhat)).sum(0), (near * np.abs(g)).sum(0)
        scale = np.abs(weight) / np.sqrt(var + EPS)
        dx_off = scale * (near * np.abs(g) + (bias_off + np.abs(xhat) * weight_off) / len(z))
        return {
            "x": self._back(dx_off),
            "weight": weight_off,
            "bias": bias_off,
            "residual": self._back(near * np.abs(g)),
        }

    def _back(self, arranged: Doubles) -> Doubles:
        """Positions × channels to the layout of x."""
        N, C, *others = self.x.shape
        stored = arranged.reshape(N, *others, C)
        return in_layout(np.moveaxis(stored, -1, 1), self.layout)


class Exact(NamedTuple):
    """Exact results by name, and what their errors are measured by."""

    results: dict[str, Doubles]
    slack: dict[str, Any]  # by how much each may differ for a reason other than rounding
    terms: Doubles | float = 1.0  # the sizes of what is added up to y: where they cancel, so do its digits
