"""A module's forward as a torch.fx graph that keeps its meaning, or the reason why there is none.

torch.fx runs a forward once, with stand-ins for its tensors, and records what is done to them. Whatever Python decides
on the way is decided for good, so a trace that would freeze, lose or change something is refused here: a branch on
`self.training`, tensors made in the forward, attributes it sets, parts under `torch.no_grad()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

from ._fused_step import hooked, in_place

_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


class Untraceable(Exception):
    """A forward that no graph can stand for; the message is the reason."""


class Trace(NamedTuple):
    graph: torch.fx.Graph
    names: list[str]  # of the arguments it takes: those that the forward requires
    through: set[nn.Module]  # the modules inside whose forwards are part of the graph


def trace(root: nn.Module, opaque: set[type]) -> Trace:
    """Trace a module, and through the modules in it; those that cannot be traced are called, and join `opaque`."""
    while True:
        tracer, reason = _Tracer(opaque), ""
        try:
            with _watched(tracer, root):
                graph = tracer.trace(root)
        except Exception as error:  # it is the user's code that runs, on unusual values
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        if tracer.failed is not None:
            opaque.add(type(tracer.failed))
        elif reason:
            raise Untraceable(reason)
        else:
            _drop_unused_reads(graph)
            return Trace(graph, tracer.names, tracer.through)


def _drop_unused_reads(graph: torch.fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _modes() -> tuple[bool, ...]:
    """What surrounds an operation and is not in a graph."""
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))


def _is_flag(node: torch.fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


class _Value(torch.fx.Proxy):
    """Stands for a value, and has its type where that is known: arguments are tensors. Records writing in place."""

    @property
    def __class__(self) -> type:
        if _is_flag(self.node):
            return bool
        if self.node.op not in ("placeholder", "get_attr"):
            raise TraceError("its forward asks for the type of something computed in it")
        return torch.Tensor

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TraceError("its forward changes a tensor's class")


def _written_in_place(name: str) -> Callable[[_Value, Any], Any]:
    def method(self: _Value, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", in_place, (name, self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(_Value, f"__{_name}__", _written_in_place(_name))


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True  # else what is done to a buffer is done now, once

    def __init__(self, opaque: set[type]) -> None:
        super().__init__()
        self.opaque = opaque
        self.modes = _modes()
        self.names: list[str] = []
        self.through: set[nn.Module] = set()
        self.failed: nn.Module | None = None  # the innermost module whose forward did not come to its end

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Arguments that the forward requires are values; the others have their defaults."""
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise TraceError(f"its forward takes *{parameter.name}, which says nothing of what comes")
            if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY:
                raise TraceError(f"its forward requires a keyword argument, {parameter.name}")
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                self.names.append(parameter.name)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.names)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            super().is_leaf_module(m, module_qualified_name)
            or isinstance(m, (_BatchNorm, torch.jit.ScriptModule))
            or type(m) in self.opaque
            or hooked(m)
            or "forward" in m.__dict__
        )

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        self.through.add(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise

    def proxy(self, node: torch.fx.Node) -> _Value:
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor) and not self._is_held(a):
            raise TraceError("its forward makes a tensor of its own, which a trace would freeze")
        return super().create_arg(a)

    def _is_held(self, tensor: torch.Tensor) -> bool:
        held = (*self.root.parameters(), *self.root.buffers(), *self.tensor_attrs)
        return any(tensor is other for other in held)

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if _modes() != self.modes:
            raise TraceError("part of its forward runs under torch.no_grad(), autocast or their like")
        return super().create_node(*args, **kwargs)

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        if _is_flag(obj.node):
            raise TraceError("its forward branches on self.training")
        raise TraceError("its forward branches on the values or the shape of a tensor")


@contextmanager
def _watched(tracer: _Tracer, root: nn.Module) -> Iterator[None]:
    """Record reading `self.training` of the modules under `root`, and refuse setting attributes of them.

    Patches torch.nn.Module for all threads while it lasts, as torch.fx does.
    """
    paths = {module: name for name, module in root.named_modules()}
    set_as_before = nn.Module.__setattr__

    def training(module: nn.Module) -> Any:
        if module not in paths:
            return module.__dict__["training"]
        return tracer.create_proxy("get_attr", f"{paths[module]}.training".lstrip("."), (), {})

    def set_training(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        if module in paths:
            raise TraceError(f"its forward sets self.{name}")
        set_as_before(module, name, value)

    nn.Module.training = property(training, set_training)  # type: ignore[assignment]
    nn.Module.__setattr__ = set_attribute  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training
        nn.Module.__setattr__ = set_as_before  # type: ignore[method-assign]
