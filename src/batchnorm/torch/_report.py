"""What `convert`, `convert_sync`, `revert` and `fuse` did with a model: printed, and returned if it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Left = tuple[str, str, str]  # a module's name, its class, and why it is left as it is

_NAMES_SHOWN = 8  # of layers that have one thing in common; more are counted


@dataclass(frozen=True, repr=False)
class Report:
    """What `convert`, `convert_sync`, `revert` or `fuse` did: ``print(report)`` says it, and a test can ask for it.

    Layers and modules are named as `named_modules` names them; "" is the model itself.

    Attributes
    ----------
    did
        "converted", "reverted" or "fused".
    layers
        The names of the layers that were converted, reverted or fused.
    total
        How many batch normalizations the model has.
    left
        Name, class and reason of each layer that was left as it is; one that is fused in one of its calls and not in
        another is here, too.
    fused_with
        What is computed in the same pass as a layer, by name: "relu", "add", "add + relu", say.
    untraced
        Name, class and reason of each module whose forward `fuse` could not trace.
    options, set_in
        The options that `convert` set, and the names of the layers in which it did: all of ours.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4))
    >>> fused, report = bnt.fuse(model, verbose=False, return_report=True)
    >>> report.layers, report.total, report.fused_with
    (('0',), 2, {'0': 'relu'})
    >>> report.left
    (('2', 'BatchNorm1d', 'no fusable activation follows (its output is returned)'),)
    >>> print(report)
    fused 1 of 2 batch normalizations
      layer 0 with relu
    layer 2 (BatchNorm1d) is left: no fusable activation follows (its output is returned)
    """

    did: Literal["converted", "reverted", "fused"]
    layers: tuple[str, ...]
    total: int
    left: tuple[Left, ...] = ()
    fused_with: Mapping[str, str] = field(default_factory=dict)
    untraced: tuple[Left, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    set_in: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = f"{len(self.layers)} of " if self.did == "fused" else ""
        lines = [f"{self.did} {of}{counted(self.total if of else len(self.layers))}"]
        if self.options:
            said = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            lines.append(f"set {said} in {counted(len(self.set_in))}")
        for what, names in _grouped((name, what) for name, what in self.fused_with.items()):
            lines.append(f"  {_named('layer', names)} with {what}")
        for (kind, reason), names in _grouped((name, tuple(why)) for name, *why in self.untraced):
            lines.append(f"{_named('module', names)} ({kind}) cannot be traced: {reason}")
        return "\n".join([*lines, *lines_of(self.left)])

    __repr__ = __str__


def counted(n: int) -> str:
    """How many layers, in words."""
    return f"{n} batch normalization{'' if n == 1 else 's'}"


def lines_of(left: Iterable[Left], what: str = "left") -> list[str]:
    """One line for each class and reason, with the names."""
    return [
        f"{_named('layer', names)} ({kind}) {'is' if len(names) == 1 else 'are'} {what}: {reason}"
        for (kind, reason), names in _grouped((name, tuple(why)) for name, *why in left)
    ]


def _grouped(named: Iterable[tuple[str, Any]]) -> list[tuple[Any, list[str]]]:
    """The names of things that have one thing in common, together."""
    groups: dict[Any, list[str]] = {}
    for name, common in named:
        groups.setdefault(common, []).append(name)
    return list(groups.items())


def _named(noun: str, names: list[str]) -> str:
    """Names after what they are of, the first few where there are many."""
    if names == [""]:
        return "the model itself"
    shown = [name or "the model itself" for name in names]
    if len(shown) > _NAMES_SHOWN:
        shown = [*shown[: _NAMES_SHOWN - 2], "…", shown[-1]]
    said = f"{noun}{'' if len(names) == 1 else 's'} {', '.join(shown)}"
    return said + (f" ({len(names)} in all)" if len(names) > _NAMES_SHOWN else "")
