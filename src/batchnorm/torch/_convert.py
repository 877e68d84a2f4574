"""`convert`, `convert_sync`, `revert`: batch normalizations become ours, and torch.nn's again, by a change of class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from ._fuse.forward import FusedForward
from ._options import DEFAULTS
from ._sync import OURS, THEIRS, SyncBatchNorm, check_model, synchronize, why_unfit

Model = TypeVar("Model", bound=nn.Module)
Left = tuple[str, str, str]  # a module's name, its class, and why it is left as it is

_NAMES_SHOWN = 8  # of modules that have one thing in common; more are counted


def convert(model: Model, *, verbose: bool = True) -> Model:
    """Make every `torch.nn.BatchNorm1d`, `2d` and `3d` of a model one of ours, in place.

    Only the class of these modules changes: each stays the object it is, with its parameters, buffers, hooks, mode,
    device and dtype. Only modules of exactly those classes are converted; others that normalize by batch are named.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    verbose
        Print what was converted, and what was left and why.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.SyncBatchNorm(4))
    >>> model = bnt.convert(model)
    converted 1 batch normalization
    left 2 (SyncBatchNorm): it gathers statistics from several processes; convert_sync makes it ours
    >>> type(model[1])
    <class 'batchnorm.torch.BatchNorm1d'>
    """
    check_model(model, "convert")
    found = [module for module in model.modules() if type(module) in OURS and not why_unfit(module)]
    for module in found:
        module.__class__ = OURS[type(module)]
    if verbose:
        print(f"converted {counted(len(found))}")
        print_left(not_ours(model))
    return model


def convert_sync(
    model: Model, process_group: Any | None = None, *, reproducible: bool = False, verbose: bool = True
) -> Model:
    """Make every batch normalization of a model a `SyncBatchNorm` of ours, in place: torch.nn's, and ours.

    Only classes change, as in `convert`, and each layer goes on to take inputs of the rank it took. `revert` undoes it.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    process_group
        The processes whose batches are one. None: all; synchronized layers keep the group they have.
    reproducible
        See `SyncBatchNorm`.
    verbose
        Print what was converted, and what was left and why.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        For a layer with ghost batches (virtual_batch_size); nothing is converted then.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> model = bnt.convert_sync(model)  # then wrap it in DistributedDataParallel
    converted 1 batch normalization
    >>> type(model[1])
    <class 'batchnorm.torch.SyncBatchNorm'>
    """
    became = synchronize(model, process_group, reproducible, "convert_sync")
    if verbose:
        print(f"converted {counted(became)}")
        print_left(not_ours(model))
    return model


def revert(model: Model, *, verbose: bool = True) -> Model:
    """Make every batch normalization of ours one of torch.nn's, in place: `convert`, `convert_sync`, `fuse` are undone.

    A layer that uses what torch.nn's has not (`activation`, say) is left, and named; one that `convert_sync` made of
    it is no longer synchronized.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    verbose
        Print what was reverted, and what was left and why.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import batchnorm.torch as bnt
    >>> bnt.revert(bnt.BatchNorm2d(3))
    reverted 1 batch normalization
    BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    >>> _ = bnt.revert(bnt.BatchNorm2d(3, activation="relu"))
    reverted 0 batch normalizations
    left the model itself (BatchNorm2d): torch.nn's has no activation='relu'
    """
    check_model(model, "revert")
    left: list[Left] = []
    reverted = 0
    for name, module in model.named_modules():
        if isinstance(module.__dict__.get("forward"), FusedForward):
            del module.forward
        if type(module) is SyncBatchNorm:
            _unsynchronize(module)
        if type(module) not in THEIRS:
            continue
        if extras := _extras_of(module):
            left.append((name, type(module).__name__, f"torch.nn's has no {extras}"))
            continue
        for extra in DEFAULTS:
            module.__dict__.pop(extra, None)
        for own in ("reproducible", "_kind"):
            module.__dict__.pop(own, None)
        module.__class__ = THEIRS[type(module)]
        reverted += 1
    if verbose:
        print(f"reverted {counted(reverted)}")
        print_left(left)
    return model


def _unsynchronize(layer: SyncBatchNorm) -> None:
    """Give a layer back the class that `convert_sync` found; one that was built as it is stays."""
    if layer._kind is None or layer._kind is nn.SyncBatchNorm:
        return
    kind: Any = OURS.get(layer._kind, layer._kind)
    for own in ("process_group", "reproducible", "_kind"):
        layer.__dict__.pop(own, None)
    layer.__class__ = kind


def _extras_of(module: nn.Module) -> str:
    used = {extra: getattr(module, extra) for extra in DEFAULTS}
    if getattr(module, "reproducible", False):
        used["reproducible"] = True
    return ", ".join(f"{extra}={value!r}" for extra, value in used.items() if value != DEFAULTS.get(extra))


def not_ours(model: nn.Module) -> Iterator[Left]:
    """The modules that normalize by batch, as far as their classes tell, and that `convert` leaves."""
    for name, module in model.named_modules():
        if reason := _why_left(module):
            yield name, type(module).__name__, reason


def _why_left(module: nn.Module) -> str:
    if type(module) in THEIRS:
        return ""
    if type(module) in OURS:
        return why_unfit(module)
    if isinstance(module, nn.SyncBatchNorm):
        return why_unfit(module) or "it gathers statistics from several processes; convert_sync makes it ours"
    if isinstance(module, _BatchNorm):
        if isinstance(module, LazyModuleMixin):
            return "it has no parameters yet; call the model once, then convert"
        if is_parametrized(module):
            return "it is parametrized, which is a class of its own; remove the parametrizations, then convert"
        return "a class of its own, which may compute something else"
    if "BatchNorm" in type(module).__name__ and not any(isinstance(m, _BatchNorm) for m in module.modules()):
        return "not a class of torch.nn, whatever it computes"
    return ""


def counted(n: int) -> str:
    return f"{n} batch normalization{'' if n == 1 else 's'}"


def print_left(left: Iterable[Left]) -> None:
    """One line for each class and reason, with the names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, kind, reason in left:
        groups.setdefault((kind, reason), []).append(name)
    for (kind, reason), names in groups.items():
        print(f"left {listed(names)} ({kind}): {reason}")


def listed(names: list[str]) -> str:
    """Names of modules, the first few where there are many."""
    shown = [name or "the model itself" for name in names]
    if len(shown) > _NAMES_SHOWN:
        shown = [*shown[: _NAMES_SHOWN - 2], "…", shown[-1]]
    return ", ".join(shown) + (f" ({len(names)} in all)" if len(names) > _NAMES_SHOWN else "")
