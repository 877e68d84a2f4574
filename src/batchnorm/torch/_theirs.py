"""torch.nn's layers, and classes that derive from them, inside of contexts that their forward does not know of."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from . import _backend, _shared
from ._contexts import Setting

Tensor = torch.Tensor


def watched(layer: nn.Module) -> Setting:
    """What makes a layer's forward do what the contexts that are open over it ask for."""
    return Setting(layer, "forward", types.MethodType(_forward, layer))


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a class does more than torch.nn's forward."""
    return type(layer).forward is not _BatchNorm.forward


def _forward(layer: Any, input: Tensor) -> Tensor:
    """The layer's own forward, whose moments are handed in; no buffer moves, since it tracks none meanwhile."""
    parts = getattr(layer, "_collects", None)
    if parts is None or not layer.training or getattr(layer, "_held", False) or _backend.is_recomputation():
        y: Tensor = type(layer).forward(layer, input)
        return y
    x = input
    if has_own_forward(layer):
        y, x = _seen(layer, input)
    else:
        y = type(layer).forward(layer, input)
    if x.numel():
        parts.add(_shared.gather(_shared.Part(x, None, None)), _backend.is_native(x), False)
    return y


def _seen(layer: Any, input: Tensor) -> tuple[Tensor, Tensor]:
    """y of a forward that is not torch.nn's, and what it normalized: what reached PyTorch's batch_norm."""
    who = type(layer).__name__
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"one_update: what a class with a forward of its own normalizes is seen in PyTorch's batch_norm, which "
            f"torch.compile does not let us see; got {who}; leave it out with only=, or compile outside of the block"
        )
    with _Listener() as listener:
        y: Tensor = type(layer).forward(layer, input)
    if len(listener.inputs) != 1:
        raise ValueError(
            f"one_update: the forward of a layer must call PyTorch's batch_norm once, so that its statistics are "
            f"known; got {who}, which called it {len(listener.inputs)} times; use bnt.convert or bnt.convert_sync "
            "where they take it, or leave it out with only="
        )
    return y, listener.inputs[0]


class _Listener(TorchFunctionMode):
    """What reaches PyTorch's batch_norm, by either of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm or func is torch.batch_norm:
            self.inputs.append(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))
