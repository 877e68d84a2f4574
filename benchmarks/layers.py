"""Layers as a network has them: forward and backward through autograd; with what follows them; and tiny ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, OURS, PYTORCH
from batchnorm.tools.bench.problem import CHANNELS_LAST, Problem, as_array, sixteen
from batchnorm.tools.bench.timing import Contestant, Settings, measure

MODULE, ARRAY_LAYER = "module", "layer on arrays"
STEP, FORWARD, EVALUATION = "forward + backward", "forward", "evaluation"
ACTIVATIONS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "ReLU": ("relu", lambda: nn.ReLU(inplace=True)),
    "ReLU6": ("relu6", lambda: nn.ReLU6(inplace=True)),
    "SiLU": ("silu", lambda: nn.SiLU(inplace=True)),
}


class Plain(nn.Module):
    """torch.nn's batch norm, and what follows it as models write it."""

    def __init__(self, bn: nn.Module, activation: nn.Module | None) -> None:
        super().__init__()
        self.bn, self.activation = bn, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.bn(x)
        y = y if residual is None else y + residual
        return y if self.activation is None else self.activation(y)


def tensors(problem: Problem, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(problem.shape, generator=generator) for _ in range(count)]
    if problem.layout == CHANNELS_LAST:
        found = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in found]
    return [t.to(getattr(torch, problem.dtype)) for t in found]


def of_rank(package: Any, problem: Problem) -> Any:
    """The layer of a package for such a tensor."""
    return getattr(package, {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}[len(problem.shape)])


def agree(problem: Problem, results: Mapping[str, Sequence[Any]]) -> None:
    """A fast wrong answer is not timed: everybody computes what PyTorch does.

    Rounding may put a value on the other side of an activation's corner: a few elements then differ, and sums a little.
    """
    close = 1e-4 if problem.dtype == "float32" else 5e-2
    some = sixteen(problem.shape)
    stock = [as_array(a, some) for a in results[PYTORCH]]
    for who, found in results.items():
        for got, want in zip(found, stock, strict=False):
            limit = (close if want.ndim > 1 else 100 * close) * np.abs(want).max()
            off = ~(np.abs(as_array(got, some) - want) <= limit)  # NaN is off, too
            if not off.mean() < 1e-5:
                raise SystemExit(f"{problem.title}: {who} disagrees with PyTorch")


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the distinct storages that autograd keeps while `run` runs, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address comes twice

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


# --- with what follows


def layer(problem: Problem, settings: Settings, device: str = "cpu", masked: bool = False) -> dict[str, Any]:
    """PyTorch's layer, the same accelerated, and our module, which does all in one pass; also with a mask."""
    x, g, residual = (t.to(device) for t in tensors(problem))
    adds, word = "add" in problem.what, problem.what.rpartition("+ ")[2]
    ours, theirs = ACTIVATIONS.get(word, (None, lambda: None))
    C, given = problem.shape[1], {"residual": residual.requires_grad_()} if adds else {}
    plain = Plain(of_rank(nn, problem)(C), theirs()) if ours else of_rank(nn, problem)(C)
    module = of_rank(bnt, problem)(C, activation=ours)
    ways: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {PYTORCH: (plain, given), MODULE: (module, given)}
    if masked and not adds:
        mask = {"mask": torch.rand(x.shape[0], 1, *x.shape[2:], device=device) < 0.9}
        ways |= {"module, mask": (of_rank(bnt, problem)(C), mask)}
        ways |= {"compiled module, mask": (torch.compile(of_rank(bnt, problem)(C)), mask)}
    x.requires_grad_()

    def step(model: nn.Module, more: dict[str, Tensor]) -> Callable[[], list[Tensor]]:
        leaves = [x, *more.values()] if adds else [x]
        leaves += model.to(device).parameters()

        def run() -> list[Tensor]:
            y = model(x, **more)
            results = [y, *torch.autograd.grad(y, leaves, g)]
            if device != "cpu":
                torch.cuda.synchronize()
            return results

        return run

    contestants = {who: Contestant({STEP: step(*way)}, "torch") for who, way in ways.items()}
    contestants[ACCELERATED] = contestants[PYTORCH]._replace(within=bnt.accelerate)
    results, saved = {}, {}
    for who, contestant in contestants.items():
        model, more = ways.get(who, ways[PYTORCH])
        with contestant.within():
            results[who] = [t.detach().clone() for t in contestant.steps[STEP]()]
            saved[who] = saved_bytes(model, lambda model=model, more=more: model(x, **more))
    agree(problem, {who: found for who, found in results.items() if "mask" not in who})
    results.clear()
    return {"times": measure(contestants, settings), "saved": saved}


def on_gpu(problem: Problem, settings: Settings) -> dict[str, Any]:
    """The same on a GPU, where our kernels are not; also with a mask."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu: PyTorch sees no CUDA device")
    torch.compiler.reset()
    return {**layer(problem, settings, "cuda", masked=True), "gpu": torch.cuda.get_device_name()}


# --- tiny


def tiny(problem: Problem, settings: Settings) -> dict[str, Any]:
    """All ways to call on so few numbers that little but the call is left."""
    contestants = {
        PYTORCH: Contestant(calls(problem, nn)),
        ACCELERATED: Contestant(calls(problem, nn), within=bnt.accelerate),
        MODULE: Contestant(calls(problem, bnt)),
        OURS: Contestant(functions(problem)),
        ARRAY_LAYER: Contestant(array_layer(problem)),
    }
    for step in (STEP, FORWARD, EVALUATION):
        results = {}
        for who, contestant in contestants.items():
            with contestant.within():
                found = contestant.steps[step]()
                results[who] = found if isinstance(found, (list, tuple)) else [found]
        agree(problem, results)
    return {"times": measure(contestants, settings)}


def calls(problem: Problem, package: Any) -> dict[str, Callable[[], Any]]:
    """Of a layer of PyTorch's or of ours."""
    x, g = tensors(problem, 2)
    leaf, C = x.clone().requires_grad_(), problem.shape[1]
    trained, untracked, evaluated = (of_rank(package, problem)(C) for _ in range(3))
    evaluated.eval()
    leaves = [leaf, *trained.parameters()]

    def step() -> list[Tensor]:
        y = trained(leaf)
        return [y, *torch.autograd.grad(y, leaves, g)]

    quiet = torch.no_grad()
    return {STEP: step, FORWARD: quiet(lambda: untracked(x)), EVALUATION: quiet(lambda: evaluated(x))}


def functions(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Of our functions on arrays."""
    x, g = (t.numpy() for t in tensors(problem, 2))
    C = problem.shape[1]
    weight, bias = np.ones(C, np.float32), np.zeros(C, np.float32)
    running = bn.Moments.from_statistics(bias, weight)

    def step() -> list[Any]:
        y, m = bn.batch_norm(x, weight, bias)
        return [y, *bn.batch_norm_backward(g, x, m, weight, bias)[:3]]

    return {
        STEP: step,
        FORWARD: lambda: bn.batch_norm(x, weight, bias)[0],
        EVALUATION: lambda: bn.normalize(x, running, weight, bias),
    }


def array_layer(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Of our layers on arrays."""
    x, g = (t.numpy() for t in tensors(problem, 2))
    trained, evaluated = (of_rank(bn, problem)(problem.shape[1]) for _ in range(2))
    evaluated.eval()

    def step() -> list[Any]:
        return [trained(x), *trained.backward(g)[:3]]

    return {STEP: step, FORWARD: lambda: trained(x), EVALUATION: lambda: evaluated(x)}
