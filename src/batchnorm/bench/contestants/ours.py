"""The functions on arrays."""

from __future__ import annotations

from ...functional import Gradients, batch_norm, batch_norm_backward, normalize, set_num_threads
from ...moments import Moments
from ..data import Data
from ..problem import Problem
from .contract import FRESH, REUSED, Array, Contestant, Prepared, empty_like


class Ours(Contestant):
    """`batch_norm`, `normalize` and `batch_norm_backward`, called as a user calls them."""

    name = "ours"
    what = "this library's functions on arrays"

    def __init__(self, outputs: str) -> None:
        self.outputs = outputs

    def set_threads(self, threads: int) -> None:
        set_num_threads(threads)

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        x, grad, weight, bias, does = data.x, data.grad, data.weight, data.bias, problem.does
        residual = data.residual if does.adds else None
        activation = "relu" if does.activates else None
        out = empty_like(x) if self.outputs == REUSED else None
        if does.kind == "evaluation":
            m = Moments.from_statistics(data.mean, data.var)
            return Prepared(
                lambda: normalize(x, m, weight, bias, residual=residual, activation=activation, out=out),
                lambda y: {"y": y},
            )
        if does.kind == "forward":
            return Prepared(
                lambda: batch_norm(x, weight, bias, residual=residual, activation=activation, out=out),
                lambda result: {"y": result[0]},
            )
        m = batch_norm(x, weight, bias, residual=residual, activation=activation)[1]
        return Prepared(
            lambda: batch_norm_backward(grad, x, m, weight, bias, residual=residual, activation=activation, out=out),
            _gradients,
        )


def _gradients(g: Gradients) -> dict[str, Array]:
    return {name: a for name, a in g._asdict().items() if a is not None}


ALL = [Ours(FRESH), Ours(REUSED)]
