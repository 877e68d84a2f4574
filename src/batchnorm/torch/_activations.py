"""Activations by the names of our option: what PyTorch calls them, and what a backward keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .._options import ACTIVATIONS, TOLD_BY_Y, Activation

Tensor = torch.Tensor


class _Of(NamedTuple):
    """One activation in PyTorch."""

    apply: Callable[[Tensor, float], Tensor]
    module: type[nn.Module]
    of_module: Callable[[Any], Activation]
    calls: dict[Any, Callable[..., Activation]]  # functions, and tensor methods by name, with a call's arguments
    keeps_y: bool = False  # rather than what it was applied to: so y is not written to, as in ``y.mul_(2)``


def _relu(x: Any) -> Activation:
    return "relu"


def _leaky(x: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Activation:
    return "leaky_relu", negative_slope


def _elu(x: Any, alpha: Any = 1.0, inplace: bool = False) -> Activation:
    return "elu", alpha


_GELU: dict[Any, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}  # by `approximate`


def _gelu(x: Any, *, approximate: Any = "none") -> Activation:
    if approximate not in _GELU:
        raise TypeError("known when it runs only")
    return _GELU[approximate]


_TORCH = {
    "relu": _Of(
        lambda z, _: F.relu(z), nn.ReLU, lambda module: "relu",
        {F.relu: lambda x, inplace=False: "relu", torch.relu: _relu, torch.relu_: _relu, "relu": _relu, "relu_": _relu},
        keeps_y=True,
    ),
    "relu6": _Of(
        lambda z, _: F.relu6(z), nn.ReLU6, lambda module: "relu6", {F.relu6: lambda x, inplace=False: "relu6"}
    ),
    "leaky_relu": _Of(
        F.leaky_relu, nn.LeakyReLU, lambda module: ("leaky_relu", module.negative_slope),
        {F.leaky_relu: _leaky, F.leaky_relu_: _leaky},
    ),
    "silu": _Of(lambda z, _: F.silu(z), nn.SiLU, lambda module: "silu", {F.silu: lambda x, inplace=False: "silu"}),
    "gelu": _Of(lambda z, _: F.gelu(z), nn.GELU, lambda module: _GELU[module.approximate], {F.gelu: _gelu}),
    "gelu_tanh": _Of(
        lambda z, _: F.gelu(z, approximate="tanh"), nn.GELU, lambda module: _GELU[module.approximate], {F.gelu: _gelu}
    ),
    "hardswish": _Of(
        lambda z, _: F.hardswish(z), nn.Hardswish, lambda module: "hardswish",
        {F.hardswish: lambda x, inplace=False: "hardswish"},
    ),
    "elu": _Of(
        F.elu, nn.ELU, lambda module: ("elu", module.alpha),
        {F.elu: _elu, F.elu_: lambda x, alpha=1.0: ("elu", alpha)},
    ),
}  # fmt: skip
_BY_CODE = {ACTIVATIONS[name][0]: of for name, of in _TORCH.items()}

OF_MODULE = {of.module: of.of_module for of in _TORCH.values()}
OF_CALL = {called: read for of in _TORCH.values() for called, read in of.calls.items()}


def activate(z: Tensor, code: int, slope: float) -> Tensor:
    """Apply the activation of that code with PyTorch's own operations."""
    return _BY_CODE[code].apply(z, slope) if code else z


def is_told_by_y(dtype: torch.dtype, code: int, slope: float) -> bool:
    """Whether y tells the derivative of its activation, exactly as what the activation was applied to does.

    It does where each value, NaN too, is left on its side of each corner. A slope of 0 makes NaN of -inf, and rounding
    to 16 bits moves values: those above 0 become 0, those below 6 become 6.
    """
    if dtype not in (torch.float32, torch.float64) or not TOLD_BY_Y[code]:
        return False
    return code != ACTIVATIONS["leaky_relu"][0] or slope >= torch.finfo(dtype).tiny


def keeps_y(dtype: torch.dtype, code: int, slope: float) -> bool:
    """Whether y is kept for the backward in place of a residual: where it tells enough, and PyTorch keeps it, too."""
    return code != 0 and _BY_CODE[code].keeps_y and is_told_by_y(dtype, code, slope)


def is_enough_when_frozen(dtype: torch.dtype, code: int, slope: float) -> bool:
    """Whether y is all that the backward of a frozen layer needs: it spares x, so 16-bit ReLU takes y as it is rounded.

    A value that is rounded to 0 then gets no gradient, as from PyTorch's ReLU, which knows its output only.
    """
    is_rounded = dtype in (torch.float16, torch.bfloat16)
    return keeps_y(dtype, code, slope) or (is_rounded and keeps_y(torch.float32, code, slope))
