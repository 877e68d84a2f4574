"""The forward of a fused module: generated code where it applies, and the class's own forward where it does not."""

from __future__ import annotations

import importlib
import inspect
import itertools
import linecache
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import nn

from .step import hooked, step
from .trace import Trace

_numbers = itertools.count()


class FusedForward:
    """Stands as `forward` in a module's instance, before that of its class, which stays reachable.

    The code was traced for tensors as required arguments and defaults for all others, through modules without hooks.
    Any other call, and a model whose modules have changed since, is for the forward of the class.
    """

    def __init__(self, owner: nn.Module, traced: Trace) -> None:
        graph = traced.graph
        for node in graph.nodes:
            node.type = None  # annotations may name what cannot be pickled
        code = graph.python_code("self")
        self.owner = owner
        self.names = traced.names
        self.steps = sum(node.target is step for node in graph.nodes)
        self.through = [(module, type(module)) for module in (owner, *traced.through)]
        self.reads = traced.reads
        self.source = code.src
        self.globals = code.globals
        self._compile()

    def _compile(self) -> None:
        filename = f"<batchnorm.torch.fuse {next(_numbers)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(keepends=True), filename)
        namespace = dict(self.globals)
        exec(compile(self.source, filename, "exec"), namespace)
        self.run = namespace["forward"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args, kwargs = self._positional(args, kwargs)
        if not kwargs and self._applies(args):
            return self.run(self.owner, *args)
        return type(self.owner).forward(self.owner, *args, **kwargs)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = self.names[len(args) :]
        return (args + tuple(kwargs[name] for name in rest), {}) if kwargs.keys() == set(rest) else (args, kwargs)

    def _applies(self, args: tuple[Any, ...]) -> bool:
        if len(args) != len(self.names) or not all(isinstance(arg, torch.Tensor) for arg in args):
            return False
        return self.reads.hold() and all(
            type(module) is kind and (module is self.owner or self._is_called_plainly(module))
            for module, kind in self.through
        )

    @staticmethod
    def _is_called_plainly(module: nn.Module) -> bool:
        """Without hooks, and by the forward of its class, or one that stands for it."""
        return not hooked(module) and type(module.__dict__.get("forward", None)) in (FusedForward, type(None))

    # Code is not pickled, its source is; modules that it names are found again by name.

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["run"]
        state["globals"] = {k: (v.__name__,) if isinstance(v, ModuleType) else v for k, v in self.globals.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        named = self.globals.items()
        self.globals = {k: importlib.import_module(v[0]) if isinstance(v, tuple) else v for k, v in named}
        self._compile()

    def stand_in(self, module: nn.Module) -> None:
        """Stand before the forward of a module's class."""
        module.__dict__ |= {"forward": self, "extra_repr": self.extra_repr}

    def extra_repr(self) -> str:
        """As that of the module's class, and that its forward is fused: stands before it, as the forward does."""
        said = [type(self.owner).extra_repr(self.owner), f"fused forward: {self.steps} step{'s' * (self.steps != 1)}"]
        return "\n".join(filter(None, said))

    # What torch.export and inspect ask of a module's forward.

    @property
    def __code__(self) -> CodeType:
        return inspect.unwrap(type(self.owner).forward).__code__  # type: ignore[no-any-return]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.owner).forward.__get__(self.owner))


def fuse_layer(layer: nn.Module, what: str) -> None:
    """Let a layer's repr say with what it is fused."""
    layer.__dict__["_fused_with"] = what


def unfuse(module: nn.Module) -> None:
    """Give a module the forward and the repr of its class back."""
    if isinstance(module.__dict__.get("forward"), FusedForward):
        del module.forward, module.extra_repr
    module.__dict__.pop("_fused_with", None)
