"""torch.nn's layers, and classes that derive from them, inside of contexts that their forward does not know of."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from . import _backend, _operands, _shared
from ._contexts import Setting, before

Tensor = torch.Tensor


def watched(layer: nn.Module) -> Setting:
    """What makes a layer's forward do what the contexts that are open over it ask for."""
    others = before(layer, "forward")  # such as accelerate's, which moves a layer to its device first
    if others is None:
        return Setting(layer, "forward", types.MethodType(_forward, layer))
    return Setting(layer, "forward", functools.partial(_forward, layer, others=others))


def check_one_device(model: nn.Module, who: str) -> None:
    """Refuse a model that is copied to several devices in each forward: its copies call the layers of the first."""
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise ValueError(
            f"{who}: the layers must be on one device; got a DataParallel of {len(model.device_ids)} devices; use "
            "DistributedDataParallel with a process for each device"
        )


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a layer does more than torch.nn's forward."""
    return type(layer).forward is not _BatchNorm.forward or before(layer, "forward") is not None


def _forward(layer: Any, input: Tensor, *, others: Callable[..., Tensor] | None = None) -> Tensor:
    """The layer's own forward, but for what the contexts change of it."""
    y: Tensor
    own = others or functools.partial(type(layer).forward, layer)
    prior = getattr(layer, "_prior", None)
    if prior is not None and not layer.training and input.numel() and layer.running_mean is not None:
        if others is None and type(layer).forward in _AS_BATCH_NORM:
            layer._check_input_dim(input)
            return _adapted(prior, input, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
        y = _listened("adapt", layer, own, input, functools.partial(_adapted, prior))
        return y
    parts = getattr(layer, "_collects", None)
    if parts is None or not layer.training or getattr(layer, "_held", False):
        return own(input)
    parts.check()
    seen = [input]
    if others is None and type(layer).forward is _BatchNorm.forward:
        layer._check_input_dim(input)
        y = F.batch_norm(input, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    else:  # it tracks no statistics meanwhile
        y = _listened("one_update", layer, own, input, functools.partial(_batch_norm_of, seen))
    x = seen[-1]
    if x.numel() and not _backend.is_recomputation():
        parts.add(_shared.gather(_shared.Part(x, None, None)), _backend.is_native(x), False)
    return y


_AS_BATCH_NORM = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # in evaluation


def _adapted(
    prior: float, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, **_: object
) -> Tensor:
    """PyTorch's batch_norm in evaluation, by running statistics and the batch together."""
    if prior == 0:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    _operands.check_input("batch_norm", x)
    if x.dim() < 2 or x.shape[1] != mean.numel():
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)  # which refuses it
    part = _shared.Part(x, None, None)
    return _shared.with_prior(part, prior, mean, var, weight, bias, _shared.Options(eps, 0, 0.0))


def _batch_norm_of(seen: list[Tensor], x: Tensor, *rest: Any, **given: Any) -> Tensor:
    seen.append(x)
    return F.batch_norm(x, *rest, **given)


@torch.compiler.disable  # a compiled forward does not tell what it calls: this one layer is not compiled
def _listened(
    who: str, layer: Any, own: Callable[..., Tensor], input: Tensor, instead: Callable[..., Tensor]
) -> Tensor:
    """A forward that is not torch.nn's, in which another function stands for PyTorch's batch_norm."""
    name = type(layer).__name__
    with _Listener(instead) as listener:
        y = own(input)
    if listener.calls != 1:
        raise ValueError(
            f"{who}: the forward of a layer must call torch.nn.functional.batch_norm once, so that its statistics are "
            f"known; got {name}, which called it {listener.calls} times; use bnt.convert or bnt.convert_sync where "
            "they take it, or leave it out with only="
        )
    return y


class _Listener(TorchFunctionMode):
    """Another function in the place of torch.nn.functional.batch_norm."""

    def __init__(self, instead: Callable[..., Tensor]) -> None:
        super().__init__()
        self.instead, self.calls = instead, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.instead(*args, **(kwargs or {}))
