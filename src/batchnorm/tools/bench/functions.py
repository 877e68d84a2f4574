"""Who normalizes a tensor: our functions, PyTorch's, the same accelerated, oneDNN's; and copies beside them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ... import _native
from ..._functional import batch_norm, batch_norm_backward, normalize
from ..._threads import get_num_threads, set_num_threads
from .problem import CONTIGUOUS, EPS, Data, Problem, Wrong, verify
from .timing import Contestant, Settings, Step, measure

OURS, PYTORCH, ACCELERATED, ONEDNN, MEMORY = "arrays", "PyTorch", "accelerated", "oneDNN", "memory"
COPIES = ("memcpy", "streaming copy")


class Unable(Exception):
    """A contestant cannot do this problem; the text says why."""


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Verify everybody, time them in turn, and return the row of the document."""
    set_threads(problem.threads)
    data, unable = Data(problem), {}
    contestants = {MEMORY: memory(data)}
    for name, make in MAKERS.items():
        try:
            contestant = make(problem, data)
            verify(name, data, problem.dtype, contestant.once())
        except (Unable, ImportError) as reason:  # a PyTorch that is too old refuses to be imported
            unable[name] = str(reason)
        except Wrong as wrong:
            if name in (OURS, ACCELERATED):
                raise
            unable[name] = f"wrong: {wrong}"
        else:
            contestants[name] = contestant
    return {"times": measure(contestants, settings), "unable": unable}


def set_threads(threads: int) -> None:
    """Tell us, and PyTorch where it is installed; 0 leaves both as they are."""
    if threads:
        set_num_threads(threads)
    if find_spec("torch"):
        import torch

        torch.set_num_threads(get_num_threads())


def arrays(problem: Problem, data: Data) -> Contestant:
    """`batch_norm`, `batch_norm_backward` and `normalize`, called as a user calls them."""
    x, g, weight, bias = data.x, data.g, data.weight, data.bias
    kept: dict[str, Any] = {}

    def forward() -> Any:
        y, kept["m"] = batch_norm(x, weight, bias, eps=EPS)
        return y

    return Contestant(
        {
            "forward": forward,
            "backward": lambda: batch_norm_backward(g, x, kept["m"], weight, bias, eps=EPS)[:3],
            "evaluation": lambda: normalize(x, data.running, weight, bias, eps=EPS),
        }
    )


def pytorch(problem: Problem, data: Data) -> Contestant:
    """`torch.nn.functional.batch_norm`, in training and evaluation, and its gradients by autograd."""
    torch = _torch()
    x, g, weight, bias, mean, var = _tensors(data)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    function = torch.nn.functional.batch_norm
    kept: dict[str, Any] = {}

    def forward() -> Any:
        kept["y"] = y = function(x, None, None, weight, bias, True, eps=EPS)
        return y

    @torch.no_grad()
    def evaluation() -> Any:
        return function(x, mean, var, weight, bias, False, eps=EPS)

    def backward() -> Any:
        return torch.autograd.grad(kept.pop("y"), leaves, g)

    return Contestant({"forward": forward, "backward": backward, "evaluation": evaluation}, "torch")


def accelerated(problem: Problem, data: Data) -> Contestant:
    """The same calls with our kernels under them."""
    stock = pytorch(problem, data)
    from ...torch import accelerate

    return stock._replace(within=accelerate)


def onednn(problem: Problem, data: Data) -> Contestant:
    """OneDNN's kernels as PyTorch offers them, on tensors of its own."""
    torch = _torch()
    if problem.layout != CONTIGUOUS or len(problem.shape) != 4 or problem.dtype not in ("float32", "bfloat16"):
        raise Unable("PyTorch has oneDNN's batch norm for contiguous images in float32 and bfloat16")
    x, g, weight, bias, mean, var = _tensors(data)
    try:
        x, g = x.to_mkldnn(), g.to_mkldnn()
    except RuntimeError as error:
        raise Unable("PyTorch was built without oneDNN") from error
    kept: dict[str, Any] = {}

    def forward() -> Any:
        y, *kept["saved"] = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, EPS)
        return y

    def backward() -> Any:
        arguments = (g, x, weight, None, None, *kept["saved"], True, EPS, [True, True, True])
        return torch.ops.aten.native_batch_norm_backward(*arguments)

    def evaluation() -> Any:
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.1, EPS)[0]

    return Contestant({"forward": forward, "backward": backward, "evaluation": evaluation}, "torch")


MAKERS: dict[str, Callable[[Problem, Data], Contestant]] = {
    OURS: arrays,
    PYTORCH: pytorch,
    ACCELERATED: accelerated,
    ONEDNN: onednn,
}


def memory(data: Data) -> Contestant:
    """The roofline: reading x, and copying it into memory that exists, by the C library and past the cache."""
    stored = np.moveaxis(data.x, 1, -1) if not data.x.flags.c_contiguous else data.x
    x = stored.reshape(-1).view(np.uint8)
    y = np.ones_like(x)
    steps: dict[str, Step] = {"read": lambda: _native.read(x)}
    past_the_cache = _native.isa().startswith("avx")
    for name, streaming in zip(COPIES, (False, True)[: 1 + past_the_cache], strict=False):
        steps[name] = lambda streaming=streaming: _native.copy(y, x, streaming)  # type: ignore[misc]
    return Contestant(steps)


def _torch() -> Any:
    if find_spec("torch") is None:
        raise Unable("PyTorch is not installed")
    import torch

    return torch


def _tensors(data: Data) -> list[Any]:
    """The same memory, as tensors."""
    import torch

    found = []
    for a in (data.x, data.g, data.weight, data.bias, data.mean, data.var):
        bits = a.dtype.name == "bfloat16"  # which PyTorch reads from NumPy by its bits only
        found.append(torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16) if bits else torch.from_numpy(a))
    return found
