"""`convert`, `convert_sync`, `revert`: batch normalizations become ours, and torch.nn's again, by a change of class."""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import Any, Literal, TypeVar, overload

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from .._options import Activation, Correction, NormalizeWith, OnNonfinite, OnSingleValue, check_without_running
from .._renorm import Renorm
from . import _options
from ._contexts import check_outside
from ._fuse.forward import unfuse
from ._norms import check_model, is_script, norms_of
from ._options import DEFAULTS
from ._report import Left, Report
from ._sync import OURS, THEIRS, SyncBatchNorm, synchronize, why_unfit

Model = TypeVar("Model", bound=nn.Module)


@overload
def convert(
    model: Model,
    *,
    eps: float | EllipsisType = ...,
    momentum: float | EllipsisType | None = ...,
    activation: Activation | EllipsisType = ...,
    on_single_value: OnSingleValue | EllipsisType = ...,
    on_nonfinite: OnNonfinite | EllipsisType = ...,
    running_correction: Correction | EllipsisType = ...,
    virtual_batch_size: int | EllipsisType | None = ...,
    renorm: Renorm | EllipsisType | None = ...,
    normalize_with: NormalizeWith | EllipsisType = ...,
    update_running_stats: bool | EllipsisType | None = ...,
    train_affine: bool | EllipsisType = ...,
    keep_count: bool | EllipsisType = ...,
    verbose: bool = ...,
    return_report: Literal[False] = ...,
) -> Model: ...


@overload
def convert(
    model: Model,
    *,
    eps: float | EllipsisType = ...,
    momentum: float | EllipsisType | None = ...,
    activation: Activation | EllipsisType = ...,
    on_single_value: OnSingleValue | EllipsisType = ...,
    on_nonfinite: OnNonfinite | EllipsisType = ...,
    running_correction: Correction | EllipsisType = ...,
    virtual_batch_size: int | EllipsisType | None = ...,
    renorm: Renorm | EllipsisType | None = ...,
    normalize_with: NormalizeWith | EllipsisType = ...,
    update_running_stats: bool | EllipsisType | None = ...,
    train_affine: bool | EllipsisType = ...,
    keep_count: bool | EllipsisType = ...,
    verbose: bool = ...,
    return_report: Literal[True],
) -> tuple[Model, Report]: ...


def convert(
    model: Model,
    *,
    eps: float | EllipsisType = ...,
    momentum: float | EllipsisType | None = ...,
    activation: Activation | EllipsisType = ...,
    on_single_value: OnSingleValue | EllipsisType = ...,
    on_nonfinite: OnNonfinite | EllipsisType = ...,
    running_correction: Correction | EllipsisType = ...,
    virtual_batch_size: int | EllipsisType | None = ...,
    renorm: Renorm | EllipsisType | None = ...,
    normalize_with: NormalizeWith | EllipsisType = ...,
    update_running_stats: bool | EllipsisType | None = ...,
    train_affine: bool | EllipsisType = ...,
    keep_count: bool | EllipsisType = ...,
    verbose: bool = True,
    return_report: bool = False,
) -> Model | tuple[Model, Report]:
    """Make every `torch.nn.BatchNorm1d`, `2d` and `3d` of a model one of ours, in place; set options of all of ours.

    Only the class of these modules changes: each stays the object it is, with its parameters, buffers, hooks, mode,
    device and dtype. Only modules of exactly those classes are converted; others that normalize by
    the batch are left, and the report names them.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    eps, momentum, activation, on_single_value, on_nonfinite, running_correction, virtual_batch_size, renorm, \
normalize_with, update_running_stats, train_affine, keep_count
        Options of `BatchNorm1d`, for all layers of ours in the model: those that are converted, those that were before,
        and synchronized ones. What is not given (``...``) stays as it is.
    verbose
        Print what was converted, and what was left and why.
    return_report
        Return the model and a `Report`, which says the same.

    Returns
    -------
    torch.nn.Module
        The same model. With `return_report`: a tuple of the model and the `Report`.

    Raises
    ------
    TypeError
        If `model` is not a module, or an option has a value of a wrong type; nothing is converted then.
    ValueError
        If an option has a value that it, or one of the layers, does not take; nothing is converted then.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.SyncBatchNorm(4))
    >>> model = bnt.convert(model, on_nonfinite="skip")
    converted 1 batch normalization
    set on_nonfinite='skip' in 1 batch normalization
    layer 2 (SyncBatchNorm) is left: it gathers statistics from several processes; convert_sync makes it ours
    >>> type(model[1]), model[1].on_nonfinite
    (<class 'batchnorm.torch.BatchNorm1d'>, 'skip')
    """
    given = {name: value for name, value in locals().items() if name in _options.MODULE and value is not ...}
    check_model(model, "convert")
    given = {name: _options.MODULE[name].checked(value, "convert") for name, value in given.items()}
    norms = norms_of(model)
    check_outside(norms, "convert")
    found = [norm for norm in norms if type(norm.layer) in OURS and not why_unfit(norm.layer)]
    ours = [norm for norm in norms if norm in found or type(norm.layer) in THEIRS] if given else []
    for norm in ours:
        _check_options(f"convert: layer {norm}" if norm.name else "convert", norm.layer, given)
    for norm in found:
        norm.layer.__class__ = OURS[type(norm.layer)]
    for norm in ours:
        for name, value in given.items():
            setattr(norm.layer, name, value)
    report = Report(
        "converted",
        layers=tuple(norm.name for norm in found),
        total=len(norms),
        options=given,
        set_in=tuple(norm.name for norm in ours),
        left=tuple(not_ours(model)),
    )
    return reported(model, report, verbose, return_report)


def _check_options(who: str, layer: Any, given: dict[str, Any]) -> None:
    """Refuse options that a layer of this class, or one without running statistics, does not take."""
    settable = _options.SYNC if type(layer) is SyncBatchNorm else _options.MODULE
    for option, value in given.items():
        settable[option].checked(value, who)
        if layer.running_mean is None:
            check_without_running(option, value, who)


def reported(model: Model, report: Report, verbose: bool, return_report: bool) -> Model | tuple[Model, Report]:
    """Print a report, return it, or both."""
    if verbose:
        print(report)
    return (model, report) if return_report else model


@overload
def convert_sync(
    model: Model,
    process_group: Any | None = ...,
    *,
    reproducible: bool = ...,
    verbose: bool = ...,
    return_report: Literal[False] = ...,
) -> Model: ...


@overload
def convert_sync(
    model: Model,
    process_group: Any | None = ...,
    *,
    reproducible: bool = ...,
    verbose: bool = ...,
    return_report: Literal[True],
) -> tuple[Model, Report]: ...


def convert_sync(
    model: Model,
    process_group: Any | None = None,
    *,
    reproducible: bool = False,
    verbose: bool = True,
    return_report: bool = False,
) -> Model | tuple[Model, Report]:
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
    return_report
        Return the model and a `Report`, which says the same.

    Returns
    -------
    torch.nn.Module
        The same model. With `return_report`: a tuple of the model and the `Report`.

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
    if isinstance(model, nn.Module):
        check_outside(norms_of(model), "convert_sync")
    became = synchronize(model, process_group, reproducible, "convert_sync")
    report = Report("converted", layers=tuple(became), total=len(norms_of(model)), left=tuple(not_ours(model)))
    return reported(model, report, verbose, return_report)


@overload
def revert(model: Model, *, verbose: bool = ..., return_report: Literal[False] = ...) -> Model: ...


@overload
def revert(model: Model, *, verbose: bool = ..., return_report: Literal[True]) -> tuple[Model, Report]: ...


def revert(model: Model, *, verbose: bool = True, return_report: bool = False) -> Model | tuple[Model, Report]:
    """Make every batch normalization of ours one of torch.nn's, in place: `convert`, `convert_sync`, `fuse` are undone.

    A layer that uses what torch.nn's has not (`activation`, say) is left, and named; one that `convert_sync` made of
    it is no longer synchronized.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    verbose
        Print what was reverted, and what was left and why.
    return_report
        Return the model and a `Report`, which says the same.

    Returns
    -------
    torch.nn.Module
        The same model. With `return_report`: a tuple of the model and the `Report`.

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
    the model itself (BatchNorm2d) is left: torch.nn's has no activation='relu'
    """
    check_model(model, "revert")
    check_outside(norms_of(model), "revert")
    left: list[Left] = []
    reverted: list[str] = []
    for name, module in model.named_modules():
        unfuse(module)
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
        reverted.append(name)
    report = Report("reverted", layers=tuple(reverted), total=len(norms_of(model)), left=tuple(left))
    return reported(model, report, verbose, return_report)


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
        if reason := why_left(module):
            yield name, type(module).__name__, reason


OWN_CLASS = "a class of its own may compute something else"


def why_left(module: nn.Module) -> str:
    """Why `convert` leaves a module; "" where it takes it, or where it is no batch normalization."""
    if type(module) in THEIRS:
        return ""
    if type(module) in OURS:
        return why_unfit(module)
    if is_script(module):
        return "TorchScript has compiled it; convert the model that torch.jit was given"
    if isinstance(module, nn.SyncBatchNorm):
        return why_unfit(module) or "it gathers statistics from several processes; convert_sync makes it ours"
    if isinstance(module, _BatchNorm):
        if isinstance(module, LazyModuleMixin):
            return "it has no parameters yet; call the model once, then convert"
        if is_parametrized(module):
            return "it is parametrized, which is a class of its own; remove the parametrizations, then convert"
        return f"{OWN_CLASS}; accelerate() serves it if it calls PyTorch's batch normalization"
    return "the class is not torch.nn's, whatever it computes" if is_other(module) else ""


def is_other(module: nn.Module) -> bool:
    """Whether a module is a batch normalization by its name alone."""
    if isinstance(module, _BatchNorm) or "BatchNorm" not in type(module).__name__:
        return False
    return not any(isinstance(m, _BatchNorm) for m in module.modules())
