"""What is fused: batch norm → activation, batch norm → add, batch norm → add → activation, in a torch.fx graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from .._activations import OF_CALL, OF_MODULE
from .._sync import THEIRS
from .aliases import called, may_change, may_write
from .step import hooked, in_place, step

_ADDS: dict[Any, bool] = {operator.add: False, torch.add: False, "add": False, "add_": True}  # whether in place


class Outcome(NamedTuple):
    """What became of one call of a batch normalization."""

    fused: str  # with what, in words; empty where it is left
    reason: str  # why it is left


class _Add(NamedTuple):
    node: Node
    left: Any
    right: Any
    writes: bool


class _Refused(Exception):
    """A batch normalization that is left; the message is the reason."""


def rewrite(graph: torch.fx.Graph, root: nn.Module, name: str) -> dict[str, list[Outcome]]:
    """Replace each pattern by a fused step. Of two batch norms that are added, the later one takes the sum.

    Returns what became of the calls of each batch norm in the module, which is called `name`.
    """
    calls: dict[str, list[Outcome]] = {}
    for node in reversed(list(graph.nodes)):
        layer = called(node, root)
        if isinstance(layer, _BatchNorm):
            try:
                outcome = Outcome(_fuse(node, layer, root), "")
            except _Refused as refused:
                outcome = Outcome("", str(refused))
            calls.setdefault(f"{name}.{node.target}".lstrip("."), []).insert(0, outcome)
    return calls


def skipped_identities(graph: torch.fx.Graph, root: nn.Module) -> set[nn.Module]:
    """Take `nn.Identity` after batch norms and additions out of a graph; return those that were taken out."""
    skipped: set[nn.Module] = set()
    for node in list(graph.nodes):
        module = called(node, root)
        if type(module) is not nn.Identity or hooked(module) or "forward" in module.__dict__:
            continue
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(before, Node) and (isinstance(called(before, root), _BatchNorm) or _add(before)):
            node.replace_all_uses_with(before)
            graph.erase_node(node)
            skipped.add(module)
    return skipped


def _fuse(norm: Node, layer: nn.Module, root: nn.Module) -> str:
    """Fuse one call of a batch norm with what follows it; say with what."""
    _refuse_layer(norm, layer)
    user = _only_user(norm)
    activation, residual, place, last = _activation(user, root), None, norm, user
    add = _add(user)
    if add is not None:
        residual = _residual(add, norm, root)
        place = add.node
        then = next(iter(user.users)) if len(user.users) == 1 else None
        activation = None if then is None else _activation(then, root)
        last = user if activation is None or then is None else then
    elif activation is None:
        raise _Refused(f"no fusable activation follows ({_described(user, root)})")
    changes = (False, False)
    if residual is not None and activation is not None:
        changes = may_change(residual, last, root), may_change(last, last, root)
    _replace(norm, residual, activation, place, last, changes)
    return " + ".join((["add"] if add else []) + ([_named(activation, root)] if activation else []))


def _refuse_layer(norm: Node, layer: Any) -> None:
    if type(layer) not in THEIRS:
        raise _Refused(f"{type(layer).__name__} is not a class that can be fused")
    if layer.activation is not None:
        raise _Refused(f"it has an activation already ({layer.activation!r})")
    if hooked(layer):
        raise _Refused("it has hooks, which see what a fused step does not compute")
    if len(norm.args) != 1 or norm.kwargs:
        raise _Refused("it is called with more than its input")


def _only_user(norm: Node) -> Node:
    users = list(norm.users)
    if not users:
        raise _Refused("nothing uses its output")
    if len(users) > 1:
        raise _Refused(f"its output is used {len(users)} times")
    if users[0].op == "output":
        raise _Refused("no fusable activation follows (its output is returned)")
    if users[0].target is step:
        raise _Refused("its output is the residual of a fused step")
    return users[0]


def _activation(node: Node, root: nn.Module) -> Any:
    """The activation that a node is: its name, or the node itself where a module applies it; None where it is none."""
    module = called(node, root)
    if module is not None:
        plain = len(node.args) == 1 and not node.kwargs and not hooked(module)
        return node if plain and type(module) in OF_MODULE else None
    if node.op not in ("call_function", "call_method") or node.target not in OF_CALL:
        return None
    try:
        found = OF_CALL[node.target](*node.args, **{"x" if k == "input" else k: v for k, v in node.kwargs.items()})
    except TypeError:
        return None
    return None if isinstance(found, tuple) and not isinstance(found[1], (int, float)) else found


def _add(node: Node) -> _Add | None:
    """The operands, where a node adds two values of the graph."""
    args, writes = node.args, _ADDS.get(node.target)
    if node.target is in_place and args[0] == "iadd":
        args, writes = args[1:], True
    plain = set(node.kwargs) <= {"alpha"} and node.kwargs.get("alpha", 1) == 1
    if writes is None or not plain or len(args) != 2 or not all(isinstance(a, Node) for a in args):
        return None
    return _Add(node, args[0], args[1], writes)


def _residual(add: _Add, norm: Node, root: nn.Module) -> Node:
    """What is added to the batch norm's output; refused where fusing would be seen.

    The step stands where the addition stood. So it reads the batch norm's input, and moves its statistics, later than
    before: neither may be written to, nor these be read, in the meantime.
    """
    residual: Node = add.right if add.left is norm else add.left
    if residual is norm:
        raise _Refused("its output is added to itself")
    if add.writes and add.left is not norm:
        fresh = isinstance(called(add.left, root), _BatchNorm) and len(add.left.users) == 1
        if not fresh:
            raise _Refused("it is added, in place, to a tensor that others may hold")
    for node in _until(norm.next, add.node):
        if may_write(node, root) or node.target == norm.target:
            raise _Refused(f"between it and its addition something may be written in place ({_described(node, root)})")
        if _reads_statistics(node, norm, root):
            raise _Refused("between it and its addition its statistics are read")
    return residual


def _reads_statistics(node: Node, norm: Node, root: nn.Module) -> bool:
    """Whether a node sees what a batch norm moves: its buffers, or all of it inside another module."""
    module, layer = called(node, root), called(norm, root)
    if module is not None:
        return any(inner is layer for inner in module.modules())
    names = [str(used.target) for used in node.all_input_nodes if used.op == "get_attr"]
    return any(name.startswith(f"{norm.target}.") for name in names)


def _until(node: Node, end: Node | None) -> Iterator[Node]:
    while node is not end and node.op != "root":
        yield node
        node = node.next


def _described(node: Node, root: nn.Module) -> str:
    module = called(node, root)
    if module is not None:
        return type(module).__name__ + (" with hooks" if hooked(module) else "")
    return f".{node.target}()" if isinstance(node.target, str) else node.target.__name__


def _named(activation: Any, root: nn.Module) -> str:
    if isinstance(activation, Node):
        module = root.get_submodule(str(activation.target))
        activation = OF_MODULE[type(module)](module)
    return activation if isinstance(activation, str) else f"{activation[0]}({activation[1]:g})"


def _replace(
    norm: Node, residual: Node | None, activation: Any, place: Node, last: Node, changes: tuple[bool, bool]
) -> None:
    """Put a step at `place`, and take out the nodes from the batch norm to `last`."""
    graph = norm.graph
    with graph.inserting_before(place):
        layer = graph.get_attr(str(norm.target))
        if isinstance(activation, Node):
            activation = graph.get_attr(str(activation.target))
        fused = graph.call_function(step, (layer, norm.args[0], residual, activation, *changes))
    last.replace_all_uses_with(fused)
    for node in dict.fromkeys((last, place, norm)):
        graph.erase_node(node)
