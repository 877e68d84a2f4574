"""Layers as a network has them: forward and backward through autograd; with what follows them; and tiny ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, OURS, PYTORCH
from batchnorm.tools.bench.problem import Problem, Wrong, as_array, in_layout, sixteen
from batchnorm.tools.bench.timing import Contestant, Settings, Step, measure

MODULE, FUSED, ARRAY_LAYER = "module", "fused", "layer on arrays"
STEP, FORWARD, EVALUATION = "forward + backward", "forward", "evaluation"
ACTIVATIONS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "ReLU": ("relu", nn.ReLU),
    "ReLU6": ("relu6", nn.ReLU6),
    "SiLU": ("silu", nn.SiLU),
}


def contestant(who: str, steps: Mapping[str, Step]) -> Contestant:
    """Steps of PyTorch's, with our kernels under them where the name says so."""
    return Contestant(steps, "torch", bnt.accelerate if who in (ACCELERATED, FUSED) else nullcontext)


def tensors(problem: Problem, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(problem.shape, generator=generator).numpy() for _ in range(count)]
    return [torch.from_numpy(in_layout(a, problem.layout)).to(getattr(torch, problem.dtype)) for a in found]


def of_rank(package: Any, problem: Problem) -> Any:
    """The layer of a package for such a tensor."""
    return getattr(package, {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}[len(problem.shape)])


def stepper(layer: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor, **more: Tensor) -> Step:
    """Forward of the first leaf, and the gradients of all."""

    def step() -> list[Tensor]:
        y = layer(leaves[0], **more)
        return [y, *torch.autograd.grad(y, leaves, g)]

    return step


def agree(problem: Problem, results: Mapping[str, Sequence[Any]]) -> None:
    """A fast wrong answer is not timed: everybody computes what PyTorch does.

    Rounding may put a value on the other side of an activation's corner: a few elements then differ, and sums a little.
    """
    close = 1e-4 if problem.dtype == "float32" else 5e-2
    some = sixteen(problem.shape)
    for who, found in results.items():
        for got, stock in zip(found, results[PYTORCH], strict=False):
            want = as_array(stock, some)
            limit = (close if want.ndim > 1 else 100 * close) * np.abs(want).max()
            off = ~(np.abs(as_array(got, some) - want) <= limit)  # NaN is off, too
            if not off.mean() < 1e-5:
                raise Wrong(f"{problem.title}: {who} disagrees with PyTorch")


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the distinct storages that autograd keeps while `run` runs, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address comes twice

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


# --- with what follows


class Plain(nn.Module):
    """torch.nn's batch norm, and what follows it as models write it."""

    def __init__(self, bn: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.bn, self.activation = bn, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.bn(x)
        return self.activation(y if residual is None else y + residual)


def layer(problem: Problem, settings: Settings, device: str = "cpu", masked: bool = False) -> dict[str, Any]:
    """PyTorch's layer, the same accelerated, and our module, which does all in one pass; also with a mask."""
    x, g, residual = (t.to(device) for t in tensors(problem))
    given = {"residual": residual.requires_grad_()} if "add" in problem.what else {}
    name, activation = ACTIVATIONS.get(problem.what.rpartition("+ ")[2], (None, nn.Identity))
    C, stock, ours = problem.shape[1], of_rank(nn, problem), of_rank(bnt, problem)
    plain = Plain(stock(C), activation(inplace=True)) if name else stock(C)
    ways = {PYTORCH: (plain, given), ACCELERATED: (plain, given), MODULE: (ours(C, activation=name), given)}
    if masked and not given:
        mask = {"mask": torch.rand(x.shape[0], 1, *x.shape[2:], device=device) < 0.9}
        ways |= {"module, mask": (ours(C), mask), "compiled module, mask": (torch.compile(ours(C)), mask)}
    contestants, saved = {}, {}
    for who, (model, more) in ways.items():
        leaves = [x.requires_grad_(), *given.values(), *model.to(device).parameters()]
        step = stepper(model, leaves, g, **more)
        contestants[who] = contestant(who, {STEP: step if device == "cpu" else lambda s=step: waited_for(s)})
        with contestants[who].within():
            saved[who] = saved_bytes(model, lambda model=model, more=more: model(x, **more))
    agree(problem, {who: one.once()[STEP] for who, one in contestants.items() if "mask" not in who})
    return {"times": measure(contestants, settings), "saved": saved}


def waited_for(step: Step) -> Any:
    result = step()
    torch.cuda.synchronize()
    return result


def on_gpu(problem: Problem, settings: Settings) -> dict[str, Any]:
    """The same on a GPU, where our kernels are not; also with a mask."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu: PyTorch sees no CUDA device")
    torch.compiler.reset()
    return {**layer(problem, settings, "cuda", masked=True), "gpu": torch.cuda.get_device_name()}


# --- tiny


def tiny(problem: Problem, settings: Settings) -> dict[str, Any]:
    """All ways to call on so few numbers that little but the call is left."""
    contestants = {who: contestant(who, calls(problem, nn)) for who in (PYTORCH, ACCELERATED)}
    contestants[MODULE] = Contestant(calls(problem, bnt))
    contestants[OURS] = Contestant(functions(problem))
    contestants[ARRAY_LAYER] = Contestant(array_layer(problem))
    results = {who: one.once() for who, one in contestants.items()}
    agree(problem, {who: found[STEP] for who, found in results.items()})
    for step in (FORWARD, EVALUATION):
        agree(problem, {who: [found[step]] for who, found in results.items()})
    return {"times": measure(contestants, settings)}


def calls(problem: Problem, package: Any) -> dict[str, Step]:
    """Of a layer of PyTorch's or of ours."""
    x, g = tensors(problem, 2)
    trained, untracked, evaluated = (of_rank(package, problem)(problem.shape[1]) for _ in range(3))
    evaluated.eval()
    step, quiet = stepper(trained, [x.detach().requires_grad_(), *trained.parameters()], g), torch.no_grad()
    return {STEP: step, FORWARD: quiet(lambda: untracked(x)), EVALUATION: quiet(lambda: evaluated(x))}


def functions(problem: Problem) -> dict[str, Step]:
    """Of our functions on arrays."""
    x, g = (t.numpy() for t in tensors(problem, 2))
    weight, bias = np.ones(problem.shape[1], np.float32), np.zeros(problem.shape[1], np.float32)
    running = bn.Moments.from_statistics(bias, weight)

    def step() -> list[Any]:
        y, m = bn.batch_norm(x, weight, bias)
        return [y, *bn.batch_norm_backward(g, x, m, weight, bias)[:3]]

    evaluation = lambda: bn.normalize(x, running, weight, bias)  # noqa: E731
    return {STEP: step, FORWARD: lambda: bn.batch_norm(x, weight, bias)[0], EVALUATION: evaluation}


def array_layer(problem: Problem) -> dict[str, Step]:
    """Of our layers on arrays."""
    x, g = (t.numpy() for t in tensors(problem, 2))
    trained, evaluated = (of_rank(bn, problem)(problem.shape[1]) for _ in range(2))
    evaluated.eval()

    def step() -> list[Any]:
        return [trained(x), *trained.backward(g)[:3]]

    return {STEP: step, FORWARD: lambda: trained(x), EVALUATION: lambda: evaluated(x)}
