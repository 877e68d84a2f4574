"""oneDNN's batch normalization, with ReLU fused where it has that."""

from __future__ import annotations

from ctypes import c_void_p
from typing import Any

import numpy as np

from ..data import Data
from ..problem import Problem
from . import onednn_library as dnnl
from .contract import FRESH, REUSED, Array, Contestant, Prepared, Unable, empty_like, version_of


class OneDNN(Contestant):
    """Primitives made before, executed with tensors in our memory."""

    name = "onednn"
    pool = "onednn"

    def __init__(self, outputs: str) -> None:
        self.outputs = outputs
        self.what = "oneDNN's primitives, made before" + (" and writing into given memory" if outputs == REUSED else "")

    def missing(self) -> str | None:
        try:
            dnnl.loaded()
        except dnnl.Failed as failed:
            return str(failed)
        return None

    def version(self) -> str | None:
        return version_of(dnnl.DISTRIBUTION)

    def set_threads(self, threads: int) -> None:
        dnnl.loaded().set_threads(threads)

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        if problem.dtype == "float64":
            raise Unable("oneDNN has no float64")
        try:
            call = _Call(problem, data, self.eps)
        except dnnl.Failed as failed:
            raise Unable(f"oneDNN: {failed}") from failed
        if self.outputs == REUSED:
            return Prepared(call.run, lambda _: call.results)
        return Prepared(call.run_fresh, lambda results: results)


class _Call:
    """A primitive with its arguments; it keeps alive what the library only points to."""

    def __init__(self, problem: Problem, data: Data, eps: float) -> None:
        self.lib, self.data, does = dnnl.loaded(), data, problem.does
        self.kept: list[Array] = []
        self.tensor = self._descriptor(data.x, problem.dtype)
        self.channels = self._descriptor(data.weight, "float32")
        flags = dnnl.SCALE | dnnl.SHIFT
        flags |= dnnl.WITH_ADD_RELU if does.adds else dnnl.WITH_RELU if does.activates else 0
        if does.kind == "evaluation":
            description = self.lib.forward(dnnl.INFERENCE, self.tensor, eps, flags | dnnl.GLOBAL_STATISTICS)
        else:
            description = self.lib.forward(dnnl.TRAINING, self.tensor, eps, flags)
        mean, var = (data.mean.copy(), data.var.copy()) if does.kind == "evaluation" else _two_like(data.mean)
        inputs: dict[int, Any] = {dnnl.SRC: data.x, dnnl.MEAN: mean, dnnl.VARIANCE: var}
        inputs |= {dnnl.SCALES: data.weight, dnnl.SHIFTS: data.bias}
        if does.adds:
            inputs[dnnl.SRC_1] = data.residual
        y = empty_like(data.x)
        space = self._workspace(description) if does.activates and does.kind != "evaluation" else {}
        self._take(self.lib.primitive(description), inputs, {dnnl.DST: ("y", y)}, space)
        if does.kind != "backward":
            return
        self.run()  # fills mean, variance and workspace
        dx, (dw, db) = empty_like(data.x), _two_like(data.weight)
        del inputs[dnnl.SHIFTS]
        inputs.pop(dnnl.SRC_1, None)
        inputs[dnnl.DIFF_DST] = data.grad
        outputs: dict[int, tuple[str, Array]] = {
            dnnl.DIFF_SRC: ("x", dx), dnnl.DIFF_SCALES: ("weight", dw), dnnl.DIFF_SHIFTS: ("bias", db)
        }  # fmt: skip
        if does.adds:
            outputs[dnnl.DIFF_SRC_1] = ("residual", empty_like(data.x))
        back = self.lib.backward(self.tensor, eps, flags, description)
        self._take(self.lib.primitive(back), inputs, outputs, space)

    def _take(
        self,
        primitive: c_void_p,
        inputs: dict[int, Array],
        outputs: dict[int, tuple[str, Array]],
        space: dict[int, c_void_p],
    ) -> None:
        self.primitive = primitive
        self.results = dict(outputs.values())
        self.places = {name: self._memory(a) for name, a in outputs.values()}
        memories = {role: self._memory(a) for role, a in inputs.items()}
        memories |= {role: self.places[name] for role, (name, _) in outputs.items()} | space
        pairs = [dnnl.Argument(role, memory) for role, memory in memories.items()]
        self.arguments = (dnnl.Argument * len(pairs))(*pairs)

    def _workspace(self, description: c_void_p) -> dict[int, c_void_p]:
        md, size = self.lib.workspace(description)
        if size == 0:
            return {}
        room = np.empty(size, np.uint8)
        self.kept.append(room)
        return {dnnl.WORKSPACE: self.lib.memory(md, room.ctypes.data)}

    def _descriptor(self, a: Array, dtype: str) -> c_void_p:
        return self.lib.descriptor(a.shape, [s // a.itemsize for s in a.strides], dtype)

    def _memory(self, a: Array) -> c_void_p:
        self.kept.append(a)
        return self.lib.memory(self.tensor if a.ndim > 1 else self.channels, a.ctypes.data)

    def run(self) -> None:
        self.lib.run(self.primitive, self.arguments)

    def run_fresh(self) -> dict[str, Array]:
        results = {name: np.empty_like(a) for name, a in self.results.items()}
        for name, a in results.items():
            self.lib.move(self.places[name], a.ctypes.data)
        self.lib.run(self.primitive, self.arguments)
        return results


def _two_like(a: Array) -> tuple[Array, Array]:
    return np.empty_like(a), np.empty_like(a)


ALL: list[Contestant] = [OneDNN(FRESH), OneDNN(REUSED)]
