"""A module's forward as a torch.fx graph that keeps its meaning, or the reason why there is none.

torch.fx runs a forward once, with stand-ins for its tensors, and records what is done to them. Whatever Python decides
on the way is decided for good, so it is watched (`watching.py`) and noted (`reads.py`), and a trace that would
freeze, lose or change something is refused: a branch on `self.training`, tensors made in the forward, attributes it
sets, parts under `torch.no_grad()`, a random draw.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

from .reads import Reads
from .step import hooked, in_place
from .watching import OF_ITS_OWN, Aside, Watch, is_models

_OF_EVERY_MODULE = {"__class__", "__dict__", *vars(nn.Module())} - {"training"}
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


class Untraceable(Exception):
    """A forward that no graph can stand for; the message is the reason."""


class Trace(NamedTuple):
    graph: torch.fx.Graph
    names: list[str]  # of the arguments it takes: those that the forward requires
    through: set[nn.Module]  # the modules inside whose forwards are part of the graph
    reads: Reads  # what the forwards decided by


def trace(root: nn.Module, opaque: set[type]) -> Trace:
    """Trace a module, and through the modules in it; those that cannot be traced are called, and join `opaque`."""
    while True:
        tracer, reason = _Tracer(opaque), ""
        try:
            graph = tracer.trace(root)
        except Exception as error:  # it is the user's code that runs, on unusual values
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        changed = tracer.reads.changed()
        if tracer.failed is not None:
            opaque.add(type(tracer.failed))
        elif tracer.refused or reason or changed:
            raise Untraceable(tracer.refused or reason or f"its forward changes {changed}")
        else:
            _drop_unused_reads(graph)
            return Trace(graph, tracer.names, tracer.through, tracer.reads)


def _drop_unused_reads(graph: torch.fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _is_flag(node: torch.fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


class _Value(torch.fx.Proxy):
    """Stands for a value: records what is done to it, in place too, and refuses what cannot be recorded.

    `isinstance` is told the type of arguments and parameters, which are tensors. Native code is told the truth: it
    would read the memory of whatever else it takes for a tensor.
    """

    tracer: _Tracer

    def __getattr__(self, name: str) -> _Attribute:
        tracer = self.tracer
        if tracer.watch.running() is hasattr or name in _UNKNOWN or (self._is_tensor() and not hasattr(_TENSOR, name)):
            tracer.refuse(f"its forward asks a value for .{name}, which depends on the call")
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if is_models(sys._getframe(1)):
            self.tracer.refuse(f"its forward sets .{name} of a tensor")
        super().__setattr__(name, value)

    def _is_tensor(self) -> bool:
        return self.node.op in ("placeholder", "get_attr") and not _is_flag(self.node)

    @property
    def __class__(self) -> type:
        tracer = self.tracer
        if tracer.watch.running() is not isinstance:
            tracer.asked_type = True
            return _Value
        if _is_flag(self.node):
            return bool
        if not self._is_tensor():
            tracer.refuse("its forward asks for the type of something computed in it")
        return torch.Tensor

    @__class__.setter
    def __class__(self, _: type) -> None:
        self.tracer.refuse("its forward changes a tensor's class")

    def __len__(self) -> int:
        self.tracer.refuse("its forward asks for the length of a tensor")

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.tracer.refuse("its forward calls a value")


class _Attribute(torch.fx.proxy.Attribute, _Value):
    """Of a value; recorded when it is used, or as a method when it is called."""

    __len__ = _Value.__len__

    def _is_tensor(self) -> bool:
        return False


_TENSOR = torch.empty(0)
_UNKNOWN = {"grad", "_grad", "grad_fn", "_base", "_backward_hooks", "names", "__array__", "__dict__"}  # or none at all


def _refused(name: str, what: str) -> Callable[..., NoReturn]:
    def method(self: _Value, *_: Any) -> NoReturn:
        self.tracer.refuse(what)

    method.__name__ = name
    return method


_OF_A_TENSOR = "the values or the shape of a tensor"
_OF_PYTHON = ("int", "float", "complex", "index", "contains", "array", "format", "round")
for _name in (f"__{name}__" for name in _OF_PYTHON):
    setattr(_Value, _name, _refused(_name, f"its forward computes in Python with {_OF_A_TENSOR}"))


def _of_object(what: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """A method that tracing needs, and that tells code of the model what no two calls have in common."""

    def method(self: _Value) -> Any:
        if is_models(sys._getframe(1)):
            self.tracer.refuse(f"its forward, or native code in it, asks for the {what} of a value")
        return own(self)

    return method


for _name, _what in (("__hash__", "hash"), ("__str__", "text"), ("__repr__", "text")):
    setattr(_Value, _name, _of_object(_what, getattr(torch.fx.Proxy, _name)))


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
        self.names: list[str] = []
        self.through: set[nn.Module] = set()
        self.failed: nn.Module | None = None  # the innermost module whose forward did not come to its end
        self.refused = ""  # why, whatever the forward did with the exception
        self.asked_type = False
        self.reads = Reads()
        self.watch = Watch(self.refuse, self.reads, lambda: self.recorded)
        self.recorded = 0

    def refuse(self, reason: str) -> NoReturn:
        self.refused = self.refused or reason
        raise TraceError(reason)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Arguments that the forward requires are values; the others have their defaults."""
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.refuse(f"its forward takes *{parameter.name}, which says nothing of what comes")
            if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY:
                self.refuse(f"its forward requires a keyword argument, {parameter.name}")
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                self.names.append(parameter.name)
        self.reads.of_forward(self.root)

        @functools.wraps(root_fn)
        def watched(*args: Any) -> Any:
            with _watched(self, self.root):
                return root_fn(*args)

        return watched, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.names)]

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
        self.reads.of_forward(m)
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
            self.refuse(OF_ITS_OWN)
        return super().create_arg(a)

    def _is_held(self, tensor: torch.Tensor) -> bool:
        held = (*self.root.parameters(), *self.root.buffers(), *self.tensor_attrs)
        return any(tensor is other for other in held)

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        self.recorded += 1
        return super().create_node(*args, **kwargs)

    def iter(self, obj: torch.fx.Proxy) -> NoReturn:
        self.refuse("its forward goes through a tensor, or takes apart what has an unknown length")

    def keys(self, obj: torch.fx.Proxy) -> NoReturn:
        self.refuse("its forward takes a value for a dictionary")

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        if _is_flag(obj.node):
            self.refuse("its forward branches on self.training")
        self.refuse(f"its forward branches on {_OF_A_TENSOR}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: whoever is called when that happens, it is not the forward who calls."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _watched(tracer: _Tracer, root: nn.Module) -> Iterator[None]:
    """Watch what is run, note what is read of modules, `self.training` in the graph, and refuse to set attributes.

    Patches torch.nn.Module for all threads while it lasts, as torch.fx does.
    """
    if sys.getprofile() is not None:
        tracer.refuse("a profiler is running, and tracing needs its place (sys.setprofile)")
    paths = {module: name for name, module in root.named_modules()}
    as_before = {name: getattr(nn.Module, name) for name in ("__setattr__", "__delattr__")}

    def get(module: nn.Module, name: str) -> Any:
        if name in _OF_EVERY_MODULE:
            if name in ("__dict__", "_parameters", "_buffers") and is_models(sys._getframe(1)):
                tracer.refuse(f"its forward reads self.{name}")
            if name == "_modules":
                tracer.reads.of_children(module)
            return object.__getattribute__(module, name)
        if name == "training" and module in paths:
            return tracer.create_proxy("get_attr", f"{paths[module]}.training".lstrip("."), (), {})
        if name in module.__dict__["_modules"]:
            tracer.reads.of_children(module)
        elif is_models(sys._getframe(1)):
            tracer.watch.note(tracer.reads.of_module, module, name)
        value = object.__getattribute__(module, name)
        if isinstance(value, torch.Tensor) and module in paths and name in module.__dict__:
            return tracer.create_proxy("get_attr", f"{paths[module]}.{name}".lstrip("."), (), {})
        return value

    def changed(how: str) -> Callable[..., None]:
        def change(module: nn.Module, name: str, *value: Any) -> None:
            if module in paths:
                tracer.refuse(f"its forward sets self.{name}")
            as_before[how](module, name, *value)

        return change

    nn.Module.__getattribute__ = get  # type: ignore[assignment]
    for name in as_before:
        setattr(nn.Module, name, changed(name))
    try:
        with Aside(tracer.refuse), _no_collection():
            sys.setprofile(tracer.watch)
            try:
                yield
            finally:
                sys.setprofile(None)
        if tracer.asked_type:
            tracer.refuse("its forward gives a value to native code that asks for its type")
    finally:
        del nn.Module.__getattribute__
        for name, method in as_before.items():
            setattr(nn.Module, name, method)
