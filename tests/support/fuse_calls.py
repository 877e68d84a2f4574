"""Many callables that take a tensor, each in a module through `fuse`: ``fuse_calls.py [START STEP]``.

One process runs every STEP-th of them from START on (or else the list WAYS), and names each before it begins: a crash
is that one's. "wrong" says what was fused, or left, and does not compute the same.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import io
import math
import operator
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.dlpack
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt

Call = Callable[[Any], Any]

# --- code that hands its tensor to native code, or to another way of running it ---


class Doubled(torch.autograd.Function):
    """Its gradient is not that of its forward: a trace that ran through it would lose it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g


def double(x: Tensor) -> Tensor:
    return 2 * x


doubled = Doubled.apply
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted = torch.jit.script(double)
    traced = torch.jit.trace(double, torch.ones(2))
    scripted_module = torch.jit.script(nn.Hardtanh())
compiled = torch.compile(double, backend="eager")
parallel = nn.DataParallel(nn.Softplus())


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return 2 * x


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(2 * np.asarray(x.detach()))


def by_type(x: Any) -> Any:
    return 2 * x if type(x) is Tensor else x


def by_match(x: Any) -> Any:
    match x:
        case Tensor():
            return 2 * x
    return x


def by_class(x: Any) -> Any:
    return 2 * x if issubclass(x.__class__, Tensor) else x


def by_isinstance(x: Any) -> Any:
    return 2 * x if isinstance(x, Tensor) and not isinstance(x, (list, tuple)) else x


def by_singledispatch(x: Any) -> Any:
    return _dispatched(x)


@functools.singledispatch
def _dispatched(x: Any) -> Any:
    return x


@_dispatched.register
def _(x: Tensor) -> Any:
    return 2 * x


def attempt(x: Any) -> Any:
    try:
        return x[: len(x)] * 2
    except Exception:
        return x


WAYS: dict[str, Call] = {
    "autograd.Function": Doubled.apply,
    "autograd.Function by another name": lambda x: doubled(x),
    "torch.jit.script": lambda x: scripted(x),
    "torch.jit.trace": lambda x: traced(x),
    "a scripted module": lambda x: scripted_module(x),
    "torch.compile": lambda x: compiled(x),
    "DataParallel": lambda x: parallel(x),
    "torch.as_tensor": lambda x: torch.as_tensor(x),
    "torch.tensor": lambda x: torch.tensor(x),
    "torch.asarray": lambda x: torch.asarray(x),
    "Tensor()": lambda x: Tensor(x),
    "Parameter": lambda x: nn.Parameter(x),
    "from_dlpack": lambda x: torch.from_dlpack(x),
    "to_dlpack": lambda x: torch.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach())),
    "from_numpy": through_numpy,
    "numpy()": lambda x: torch.from_numpy(x.detach().numpy()),
    "func.grad": lambda x: torch.func.grad(lambda z: (z**2).sum())(x),
    "func.jvp": lambda x: torch.func.jvp(double, (x,), (x,))[1],
    "func.vjp": lambda x: torch.func.vjp(double, x)[0],
    "func.functional_call": lambda x: torch.func.functional_call(nn.Softplus(), {}, (x,)),
    "func.functionalize": lambda x: torch.func.functionalize(double)(x),
    "vmap": lambda x: torch.vmap(double)(x),
    "autograd.grad": lambda x: torch.autograd.grad((x * x.detach()).sum(), x, create_graph=True)[0],
    "checkpoint, reentrant": lambda x: checkpoint(double, x, use_reentrant=True),
    "checkpoint": lambda x: checkpoint(double, x, use_reentrant=False),
    "no_grad": without_gradients,
    "type()": by_type,
    "match": by_match,
    "__class__": by_class,
    "isinstance": by_isinstance,
    "singledispatch": by_singledispatch,
    "try": attempt,
    "torch.ops": lambda x: torch.ops.aten.sin(x),
    "torch.ops, an overload": lambda x: torch.ops.aten.sin.default(x),
    "torch.ops.prims": lambda x: torch.ops.prims.sin(x),
    "torch._refs": lambda x: torch._refs.sin(x),
    "a view of bits": lambda x: x.view(torch.int32).view(torch.float32),
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
    "data": lambda x: x.data,
    "a hook": lambda x: (x.register_hook(lambda g: 2 * g), x)[1],
    "requires_grad": lambda x: x if x.requires_grad else 2 * x,
    "as a dictionary's key": lambda x: {x: 2}[x] * x,
    "in a list": lambda x: 2 * x if x in [x] else x,
    "vmap of a module": lambda x: torch.vmap(nn.Softplus())(x),
    "func.jacrev": lambda x: torch.func.jacrev(double)(x[:, 0, 0, 0]).sum() * x,
    "cond": lambda x: torch.cond(x.sum() > 0, double, double, (x,)),
    "a storage": lambda x: torch.tensor(x.untyped_storage().nbytes()) * x,
    "stack of itself": lambda x: torch.stack([x, x])[0],
    "get_worker_info": lambda x: x if torch.utils.data.get_worker_info() is None else 2 * x,
    "save and load": lambda x: torch.load(_saved(x)),
}


def _saved(x: Tensor) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(x.detach(), file)
    file.seek(0)
    return file


# --- everything public that could take one tensor ---

_SPACES: dict[str, Any] = {
    "torch": torch,
    "F": F,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.special": torch.special,
    "torch.autograd": torch.autograd,
    "torch.autograd.functional": torch.autograd.functional,
    "torch.func": torch.func,
    "torch.nn.init": nn.init,
    "torch.utils.data": torch.utils.data,
    "torch.jit": torch.jit,
    "torch.compiler": torch.compiler,
    "torch.ops.aten": torch.ops.aten,
    "Tensor": Tensor,
    "builtins": builtins,
    "operator": operator,
    "math": math,
    "np": np,
    "copy": copy,
}
# Those that end or block the process by themselves, whatever they are given, or change it for those that follow.
_NOT = {
    "PyTorchFileWriter",
    "breakpoint",
    "compile",
    "copyright",
    "credits",
    "empty_like",
    "exit",
    "fork",
    "get_file_path",
    "help",
    "import_ir_module",
    "init",
    "init_num_threads",
    "input",
    "jit_module_from_flatbuffer",
    "license",
    "load",
    "manual_seed",
    "new_empty",
    "new_empty_strided",
    "open",
    "print",
    "quit",
    "resize_",
    "resize_as_",
    "seed",
    "set_",
    "show_config",
    "test",
    "wait",
}


def callables() -> list[tuple[str, Call]]:
    found = list(WAYS.items())
    for space, held in _SPACES.items():
        for name in sorted({*dir(held), *(_ATEN if space == "torch.ops.aten" else ())}):
            value = getattr(held, name, None)
            if name.startswith(("_", "set_", "use_", "unset_")) or name in _NOT or not callable(value):
                continue
            if not isinstance(value, types.ModuleType):
                found.append((f"{space}.{name}", value))
    return found


_ATEN = ("abs", "clone", "detach", "exp_", "lift_fresh", "native_dropout", "relu_", "sort", "sum", "t", "view_as_real")


class Around(nn.Module):
    """ReLU of a batch norm of what a callable makes of the input."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.call = _Holder(call)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.call.held(x)))


class _Holder:
    """Keeps a callable out of the module's own attributes, and out of its copies."""

    def __init__(self, held: Call) -> None:
        self.held = held

    def __deepcopy__(self, memo: Any) -> _Holder:
        return self


def outcome(module: nn.Module) -> Any:
    """Output, gradient and running statistics, or the kind of error."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - callables draw from it
    x = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    try:
        y = module(x)
        if y.requires_grad:
            y.square().sum().backward()
        return y.detach(), x.grad, module.bn.running_mean.clone(), module.bn.running_var.clone()
    except Exception as error:
        return type(error)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, type) or isinstance(b, type):
        return a is b
    return all(
        (s is None) == (t is None) and (s is None or torch.allclose(s, t, 1e-5, 1e-6, equal_nan=True))
        for s, t in zip(a, b, strict=True)
    )


def check(call: Call) -> str:
    """ "left", "fused" or "wrong"."""
    model = Around(call)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fused = bnt.fuse(model)
    plain = copy.deepcopy(bnt.convert(model, verbose=False))
    said = printed.getvalue()
    left = said.startswith("fused 0 of 1") and "is left" in said
    if not left and not said.startswith("fused 1 of 1"):
        return f"wrong report: {said}"
    if left and "forward" in fused.__dict__:
        return "wrong: left, and with another forward"
    expected, found = outcome(plain), outcome(copy.deepcopy(fused))
    return ("left" if left else "fused") if same(found, expected) else f"wrong: {found} for {expected}"


def main(start: int = 0, step: int = 0) -> Iterator[str]:
    for name, call in callables()[start::step] if step else WAYS.items():
        print(f"{name} ", end="", flush=True)
        yield check(call)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for said in main(*map(int, sys.argv[1:])):
        print(said, flush=True)
