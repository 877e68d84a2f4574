"""The fused step that stands in a rewritten forward.

A step *means* ``activation(layer(x) + residual)``, always. It is one pass over memory where `layer` is ours and nothing
looks at what lies between: no hook on the layer or the activation. That is found out in every call, so hooks, other
layers put in the place of these, `convert` and `revert` do what they do in a model that is not fused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from ..._options import checked_activation
from .. import _operands
from .._activations import OF_MODULE, activate, is_told_by_y, keeps_y
from .._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .._sync import SyncBatchNorm

_OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm)


def hooked(module: nn.Module) -> bool:
    """Whether anything wants to see what goes into a module or comes out of it."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )


def step(
    layer: Any, x: Any, residual: Any, activation: Any, residual_changes: bool = True, y_changes: bool = True
) -> Any:
    """``activation(layer(x) + residual)``, with an activation's name or the module that applies it.

    The backward of one pass needs y or the residual where the activation by itself keeps neither, but the sum. So what
    may be written to before the backward is not kept: the activation is then a pass of its own.
    """
    name = activation
    if isinstance(activation, nn.Module):
        named = None if hooked(activation) else OF_MODULE.get(type(activation))
        if named is None:
            return activation(step(layer, x, residual, None))
        name = named(activation)
    code = checked_activation(name, "fuse")
    if residual is not None and code[0]:
        told = is_told_by_y(x.dtype, *code)
        if (y_changes and not keeps_y(x.dtype, *code)) if told else residual_changes:
            z = step(layer, x, residual, None)
            return activation(z) if isinstance(activation, nn.Module) else activate(z, *code)
    if _is_one_pass(layer, x, residual):
        if type(layer) is not SyncBatchNorm:  # which refuses together with its peers, or not at all
            layer._check_input_dim(x)
        return layer._normalize(x, None, None, residual, code)
    if residual is not None and type(layer) in _OURS and not hooked(layer) and isinstance(residual, torch.Tensor):
        _operands.check_residual(type(layer).__name__, x, residual, code[0])
    y = layer(x) if residual is None else layer(x) + residual
    return activation(y) if isinstance(activation, nn.Module) else activate(y, *code)


def _is_one_pass(layer: Any, x: Any, residual: Any) -> bool:
    if type(layer) not in _OURS or layer.activation is not None or hooked(layer) or layer._masked is not None:
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False  # sizes are tensors then, and comparing them is a decision for good
    if not isinstance(x, torch.Tensor) or x.dim() < 2 or x.shape[1] != layer.num_features:
        return False  # for the layer to refuse
    return residual is None or (isinstance(residual, torch.Tensor) and _operands.is_like(residual, x))


def in_place(name: str, left: Any, right: Any) -> Any:
    """``left += right`` and its like, by the operator's name; torch.fx by itself would record ``left + right``."""
    return getattr(operator, name)(left, right)
