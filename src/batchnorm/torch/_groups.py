"""`convert_groups` and `groups`: a model whose batch normalizations keep groups of samples apart, and their labels."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, TypeVar, overload

from torch import nn

from .. import _options
from ._contexts import Context, Setting, check_outside
from ._convert import OWN_CLASS, reported, why_left
from ._grouped import GROUPS, Group, Grouped, GroupedBatchNorm1d, GroupedBatchNorm2d, GroupedBatchNorm3d, labels_of
from ._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ._norms import Only, check_model, check_readable, chosen, layer_said, norms_of
from ._report import Report
from ._sync import OURS, SyncBatchNorm

Model = TypeVar("Model", bound=nn.Module)

_GROUPED: dict[type[nn.Module], type[Grouped]] = {
    BatchNorm1d: GroupedBatchNorm1d,
    BatchNorm2d: GroupedBatchNorm2d,
    BatchNorm3d: GroupedBatchNorm3d,
}


@overload
def convert_groups(
    model: nn.Module,
    groups: int,
    *,
    share_affine: bool = ...,
    only: Only = ...,
    verbose: bool = ...,
    return_report: Literal[False] = ...,
) -> Any: ...


@overload
def convert_groups(
    model: nn.Module,
    groups: int,
    *,
    share_affine: bool = ...,
    only: Only = ...,
    verbose: bool = ...,
    return_report: Literal[True],
) -> tuple[Any, Report]: ...


def convert_groups(
    model: nn.Module,
    groups: int,
    *,
    share_affine: bool = False,
    only: Only = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Replace every batch normalization of a model by a grouped one, in place: each group begins as the layer was.

    Only modules of exactly torch.nn's classes and of ours are replaced, as in `convert`; the report names the others. A
    layer itself becomes the first group's, so its parameters stay in the optimizers that have them; pass those of the
    other groups to the optimizer, too.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too, of which the result is the grouped one.
    groups
        How many groups there are.
    share_affine
        Whether all groups have one weight and one bias.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.
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
        If `model` is not a module, or an argument has a wrong type; nothing is converted then.
    ValueError
        If `only` names no layer, for fewer than one group, for a layer in a fused model, and where no layer of those
        that the model has can be replaced.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> model = bnt.convert_groups(model, 2)
    converted 1 batch normalization
    >>> with bnt.groups(model, torch.tensor([0, 1, 1, 0])):
    ...     y = model(torch.randn(4, 3))
    """
    who = "convert_groups"
    check_readable(model, who)
    number = GROUPS.checked(groups, who)
    shared = _options.TRAINING.called("share_affine").checked(share_affine, who)
    grouped = {id(layer) for m in model.modules() if isinstance(m, Grouped) for layer in m.layers}
    norms = [norm for norm in norms_of(model) if id(norm.layer) not in grouped]
    check_outside(norms, who)
    wanted = chosen(norms, only, who)
    found = [norm for norm in wanted if not _why_left(norm.layer)]
    if wanted and not found:
        raise ValueError(
            f"{who}: the model needs a layer that can be grouped; got {layer_said(str(wanted[0]))}, a "
            f"{type(wanted[0].layer).__name__}: {_why_left(wanted[0].layer)}"
        )
    for norm in found:
        if getattr(norm.layer, "_fused_with", ""):
            raise ValueError(f"{who}: {layer_said(str(norm))} is part of a fused step; convert the model, then fuse it")
    for norm in found:
        layer = norm.layer
        layer.__class__ = OURS.get(type(layer), type(layer))
        new = _GROUPED[type(layer)].of(layer, number, shared)
        for name in norm.names:
            if not name:
                model = new
                continue
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent)._modules[last] = new
    grouped |= {id(layer) for m in model.modules() if isinstance(m, Grouped) for layer in m.layers}
    left = [
        (name, type(module).__name__, reason)
        for name, module in model.named_modules()
        if id(module) not in grouped and (reason := _why_left(module))
    ]
    report = Report("converted", layers=tuple(norm.name for norm in found), total=len(norms), left=tuple(left))
    return reported(model, report, verbose, return_report)


def _why_left(module: nn.Module) -> str:
    """Why a module stays one for all groups; "" where it does not, or where it is no batch normalization."""
    if isinstance(module, (SyncBatchNorm, nn.SyncBatchNorm)):
        return "it has ranks in common already; call convert_groups first, then convert_sync"
    reason = why_left(module)
    if reason.startswith(OWN_CLASS):
        return f"{OWN_CLASS}; all groups share it, unless you put a grouped layer in its place"
    return reason


def groups(model: nn.Module, labels: Group) -> contextlib.AbstractContextManager[None]:
    """Inside ``with groups(model, labels):`` every grouped layer uses these labels, unless it is passed others.

    Parameters
    ----------
    model
        Any module with grouped layers.
    labels
        The group of each sample: a tensor of N integers, or a sequence; or one int for all samples.

    Returns
    -------
    context manager
        May be entered again, and used as a decorator. Blocks nest, and may be left by exceptions.

    Raises
    ------
    TypeError
        If `model` is not a module, or labels are not integers.
    ValueError
        For a model without grouped layers, and for labels of several axes.

    Notes
    -----
    Labels hold for the model, so for all threads that run it.

    A forward that `torch.utils.checkpoint` runs again in the backward needs the labels, too: call the backward inside
    the block.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = bnt.GroupedBatchNorm1d(1, groups=2)
    >>> with bnt.groups(layer, 1):
    ...     y = layer(torch.tensor([[1.0], [3.0]]))
    >>> [int(layer.layer(g).num_batches_tracked) for g in range(2)]
    [0, 1]
    """
    who = "groups"
    check_model(model, who)
    if isinstance(labels, bool) or not isinstance(labels, int):
        labels = labels_of(who, labels)  # type: ignore[arg-type]
    found = [module for module in model.modules() if isinstance(module, Grouped)]
    if not found:
        raise ValueError(
            f"{who}: labels are for grouped layers, and the model ({type(model).__name__}) has none; use "
            "batchnorm.torch.convert_groups first"
        )
    return Context(who, [Setting(module, "_group", labels) for module in found])
