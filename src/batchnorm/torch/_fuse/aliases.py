"""Which nodes of a graph may write in place, and whose memory they may share."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from .._activations import OF_CALL, OF_MODULE
from .step import hooked, in_place, step

# What always makes a tensor of its own, unless it is asked to write in place.
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    *OF_MODULE,
    *(nn.Sigmoid, nn.Tanh, nn.Hardsigmoid),
)
_FRESH_FUNCTIONS: set[Callable[..., Any]] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow, operator.matmul),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.stack, torch.matmul, torch.relu, torch.sigmoid),
    *(torch.tanh, F.linear, F.conv1d, F.conv2d, F.conv3d, step),
    *(call for call in OF_CALL if callable(call)),
}


def called(node: Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def may_write(node: Node, root: nn.Module) -> bool:
    """Whether a node might write to one of its arguments: PyTorch's names, flags and schemas say so, other code may."""
    module = called(node, root)
    if module is not None:
        library = type(module).__module__.startswith(("torch.nn", "batchnorm."))
        return not library or hooked(module) or bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if isinstance(node.target, str) or node.target is step:
        return False
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _is_mutable(node.target)
    origin = getattr(node.target, "__module__", None) or "torch"  # builtins of torch name no module
    pure = origin.partition(".")[0] in ("torch", "_operator", "builtins", "math")
    flags = (*node.args, node.kwargs.get("inplace"))
    return not pure or node.target.__name__.endswith("_") or "out" in node.kwargs or any(f is True for f in flags)


def _is_mutable(operation: Any) -> bool:
    overloads = operation.overloads() if isinstance(operation, torch._ops.OpOverloadPacket) else None
    each = [operation] if overloads is None else [getattr(operation, name) for name in overloads]
    return any(overload._schema.is_mutable for overload in each)


def _shares(node: Node, root: nn.Module) -> list[Node]:
    """The arguments whose memory a node's value may be in: none of them, the one that is written to, or any."""
    if node.target is in_place or (node.op == "call_method" and str(node.target).endswith("_")):
        first = node.args[1 if node.target is in_place else 0]
        return [first] if isinstance(first, Node) else []
    module = called(node, root)
    fresh = isinstance(module, _FRESH_MODULES) or (node.op == "call_function" and node.target in _FRESH_FUNCTIONS)
    return [] if fresh and not may_write(node, root) else node.all_input_nodes


def may_change(node: Node, after: Node, root: nn.Module) -> bool:
    """Whether the memory of a node's value might be written once `after` has run, here or by who called the forward."""
    sharing, to_see = {node}, [node]
    while to_see:
        seen = to_see.pop()
        near = {*_shares(seen, root), *(user for user in seen.users if seen in _shares(user, root))}
        to_see += near - sharing
        sharing |= near
    if any(other.op in ("placeholder", "get_attr", "output") for other in sharing):
        return True
    later = after.next
    while later.op != "root":
        if may_write(later, root) and any(other in sharing for other in _shares(later, root)):
            return True
        later = later.next
    return False
