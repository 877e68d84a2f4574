"""PyTorch's kernels, called one after the other (eager) and compiled into one by inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Data
from ..problem import Problem
from .contract import FRESH, REUSED, Array, Contestant, Prepared, Unable, not_installed, version_of

if TYPE_CHECKING:
    import torch

    Step = Callable[..., Any]


class PyTorch(Contestant):
    """What eager and compiled share."""

    pool = "torch"

    def missing(self) -> str | None:
        return not_installed("torch", "PyTorch")

    def version(self) -> str | None:
        return version_of("torch")

    def set_threads(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)


class Eager(PyTorch):
    """ATen's functions without autograd; ReLU and the addition work in place, as models write them."""

    name = "eager"

    def __init__(self, outputs: str) -> None:
        self.outputs = outputs
        self.what = "PyTorch's kernels" + (" writing into given memory" if outputs == REUSED else "")

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        t = _tensors(data)
        if problem.does.kind == "backward":
            if self.outputs == REUSED:
                raise Unable("PyTorch's backward has no kernel that writes into given memory")
            saved = _saved(problem, t, self.eps)
            return Prepared(lambda: _backward(problem, self.eps, **saved), _gradients)
        call = _into(problem, t, self.eps) if self.outputs == REUSED else _forward_in_place(problem, t, self.eps)
        return Prepared(call, lambda y: {"y": _array(y)})


class Compiled(PyTorch):
    """The same operations in one function, by torch.compile for this shape, layout and number of threads."""

    name = "compiled"
    what = "the same operations compiled by torch.compile"

    def __init__(self, sorts: Collection[tuple[str, int]] | None = None) -> None:
        """Compile all, or only these pairs of an operation and a number of threads: each costs seconds."""
        self.sorts = sorts

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        if self.sorts is not None and (problem.operation, problem.threads) not in self.sorts:
            raise Unable("not compiled in this run, to save time")
        import torch

        torch._dynamo.reset()
        t, does, eps = _tensors(data), problem.does, self.eps
        if does.kind == "backward":
            arguments = _saved(problem, t, eps)

            def step(**a: torch.Tensor) -> Any:
                return _backward(problem, eps, **a)
        else:
            arguments = {"x": t["x"], **({"residual": t["residual"]} if does.adds else {})}
            fixed = {name: t[name] for name in ("weight", "bias", "mean", "var")}

            def step(**a: torch.Tensor) -> Any:
                z = _normalised(problem, {**a, **fixed}, eps)
                z = z + a["residual"] if does.adds else z
                return torch.relu(z) if does.activates else z

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor's, of things that are not the user's
                compiled = torch.compile(step, dynamic=False)
                compiled(**arguments)
        except Exception as error:  # whatever a compiler that is missing or fails raises
            raise Unable(f"torch.compile failed: {type(error).__name__}") from error
        read = _gradients if does.kind == "backward" else lambda y: {"y": _array(y)}
        return Prepared(lambda: compiled(**arguments), read)


def _tensors(data: Data) -> dict[str, torch.Tensor]:
    """The same memory as the arrays, as tensors."""
    named = ("x", "grad", "residual", "weight", "bias", "mean", "var")
    return {name: _tensor(getattr(data, name)) for name in named}


def _tensor(a: Array) -> torch.Tensor:
    import torch

    if a.dtype.name == "bfloat16":  # NumPy knows it by its bits only
        return torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def _array(t: torch.Tensor) -> Array:
    import torch

    return t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy()


def _normalised(problem: Problem, t: dict[str, Any], eps: float) -> Any:
    import torch

    trains = problem.does.kind == "forward"
    mean, var = (None, None) if trains else (t["mean"], t["var"])
    return torch.native_batch_norm(t["x"], t["weight"], t["bias"], mean, var, trains, 0.1, eps)[0]


def _forward_in_place(problem: Problem, t: dict[str, Any], eps: float) -> Callable[[], Any]:
    adds, activates = problem.does.adds, problem.does.activates

    def call() -> Any:
        y = _normalised(problem, t, eps)
        if adds:
            y.add_(t["residual"])
        return y.relu_() if activates else y

    return call


def _into(problem: Problem, t: dict[str, Any], eps: float) -> Callable[[], Any]:
    import torch

    C, adds, activates = problem.sizes[1], problem.does.adds, problem.does.activates
    y = torch.empty_like(t["x"])
    trains = problem.does.kind == "forward"
    mean, var = (None, None) if trains else (t["mean"], t["var"])
    a, b = (torch.empty(C if trains else 0, dtype=t["weight"].dtype) for _ in range(2))
    function = torch.ops.aten.native_batch_norm.out

    def call() -> Any:
        function(t["x"], t["weight"], t["bias"], mean, var, trains, 0.1, eps, out=y, save_mean=a, save_invstd=b)
        if adds:
            y.add_(t["residual"])
        return y.relu_() if activates else y

    return call


def _saved(problem: Problem, t: dict[str, Any], eps: float) -> dict[str, Any]:
    """What autograd keeps for the backward: x and its statistics, and y where ReLU follows."""
    import torch

    y, mean, rstd = torch.native_batch_norm(t["x"], t["weight"], t["bias"], None, None, True, 0.1, eps)
    saved = {"grad": t["grad"], "x": t["x"], "weight": t["weight"], "save_mean": mean, "save_rstd": rstd}
    if problem.does.activates:
        saved["y"] = torch.relu_(y.add_(t["residual"]) if problem.does.adds else y)
    return saved


def _backward(problem: Problem, eps: float, **s: Any) -> Any:
    """Gradients by x, weight and bias, and by the residual."""
    import torch

    grad = torch.ops.aten.threshold_backward(s["grad"], s["y"], 0) if problem.does.activates else s["grad"]
    results = torch.ops.aten.native_batch_norm_backward(
        grad, s["x"], s["weight"], None, None, s["save_mean"], s["save_rstd"], True, eps, [True, True, True]
    )
    return (*results, grad) if problem.does.adds else results


def _gradients(results: Any) -> dict[str, Array]:
    return dict(zip(("x", "weight", "bias", "residual"), map(_array, results), strict=False))


EAGER = (Eager(FRESH), Eager(REUSED))
