"""`set_eps`: another eps, and running variances with which evaluation stays as it is."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from .. import _formulas
from . import _options
from ._norms import Norm, Only, check_readable, chosen, layer_said, norms_of

Model = TypeVar("Model", bound=nn.Module)
_WHO = "set_eps"


def set_eps(model: Model, eps: float, *, only: Only = None) -> Model:
    """Give every batch normalization of a model another eps, in place, and keep what it computes in evaluation.

    Evaluation divides by ``sqrt(running_var + eps)``, so running_var takes what eps loses. Use it before a tool that
    sets eps to a value of its own, or drops it: exporters, quantizers, converters.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too: torch.nn's layers, those that derive from them, and ours.
    eps
        The new value.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If `model` is not a module, or `eps` is not a number.
    ValueError
        Where a running variance would become negative; for a layer without running statistics, whose evaluation would
        change; if `only` names no layer. Nothing has changed then.

    Notes
    -----
    The new running_var is rounded to its dtype once. Training divides by ``sqrt(var + eps)`` of the batch, so it does
    change. A `running_count` is such that both running variances move by the same.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = bnt.set_eps(torch.nn.BatchNorm1d(2, eps=1e-3), 1e-5)
    >>> layer.eps, layer.running_var
    (1e-05, tensor([1.0010, 1.0010]))
    """
    check_readable(model, _WHO)
    value = _options.EPS.checked(eps, _WHO)
    changes = [(norm.layer, *_moved(norm, value)) for norm in chosen(norms_of(model), only, _WHO)]
    with torch.no_grad():
        for layer, var, count in changes:
            layer.running_var.copy_(var)
            if count is not None:
                layer.running_count.copy_(count)
            layer.eps = value
    return model


def _moved(norm: Norm, eps: float) -> tuple[torch.Tensor, Any]:
    """The running variance of a layer with another eps, and the count behind it."""
    layer, said = norm.layer, layer_said(str(norm))
    var = layer.running_var
    if var is None or isinstance(var, nn.UninitializedBuffer) or var.is_meta:
        what = "no running statistics" if var is None else "running statistics without values"
        raise ValueError(
            f"{_WHO}: the running variance takes what eps loses, and {said} has {what}; leave the layer out with "
            "only=, or give it some first"
        )
    wide = var.detach().cpu().double()
    new = wide + (float(layer.eps) - float(eps))
    if bool((new < 0).any()):
        worst = int(new.argmin())
        raise ValueError(
            f"{_WHO}: running_var + eps must stay as it is, so eps can grow only by the smallest running variance; "
            f"{said} has eps={float(layer.eps):g} and a running variance of {float(wide[worst]):g} in channel {worst}, "
            f"got eps={float(eps):g}. Use an eps of at most {float(layer.eps) + float(wide.min()):g}"
        )
    count, correction = getattr(layer, "running_count", None), getattr(layer, "running_correction", 1)
    if count is not None:
        gap = _formulas.variance_gap(wide, count.cpu().double(), correction)
        count = _formulas.count_behind(torch, new, gap, correction)
    return new, count
