"""Which operands go together: on one device, of a dtype that is normalized, a residual that can be added."""

from __future__ import annotations

import torch

from . import _backend

Tensor = torch.Tensor

ONEDNN = torch._mkldnn  # type: ignore[attr-defined]  # the layout of `to_mkldnn()`


def check_apart(*operands: object, **more: object) -> None:
    """Refuse operands of one of our operations that are on several devices."""
    devices = {t.device for t in (*operands, *more.values()) if isinstance(t, Tensor)}
    if len(devices) > 1:
        raise ValueError(
            "batch_norm: input, parameters, statistics and residual must be on one device; got "
            f"{' and '.join(sorted(map(str, devices)))}. {_fix(*devices)}"
        )


def check_tensor(who: str, name: str, value: object) -> None:
    """Refuse an operand that is no tensor: an array of NumPy's, a number, a list."""
    if value is not None and not isinstance(value, Tensor):
        raise TypeError(
            f"{who}: {name} must be a tensor; got {type(value).__name__}; use torch.as_tensor({name}, "
            "device=input.device)"
        )


def check_together(who: str, x: Tensor, /, **operands: Tensor | None) -> None:
    """Refuse an operand that is not on x's device; a single number on the CPU goes with any, as in PyTorch."""
    for name, t in operands.items():
        check_tensor(who, name, t)
        if t is not None and t.device != x.device and not (t.is_cpu and t.dim() == 0):
            raise ValueError(
                f"{who}: {name} must be on the input's device, {x.device}; got one on {t.device}. "
                f"{_fix(x.device, t.device)}"
            )


def _fix(*devices: torch.device) -> str:
    if any(device.type == "meta" for device in devices):
        return "Meta tensors have no values: layer.to_empty(device=x.device), then load or set them"
    return "Move the layer, layer.to(x.device), or the input"


def check_input(who: str, x: Tensor) -> None:
    """Refuse what cannot be normalized: dtypes that PyTorch's own function does not take, and sparse tensors."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{who}: input must be a tensor; got {type(x).__name__}; use torch.as_tensor(input)")
    if x.is_nested:
        raise TypeError(f"{who}: input must be dense; got a nested tensor; use input.to_padded_tensor(0.0), and a mask")
    if x.dtype not in _backend.DTYPES:
        fix = "use input.float(), or input.double() where whole numbers exceed 2**24"
        if x.is_complex():
            fix = "normalize its real and imaginary parts, torch.view_as_real(input)"
        raise TypeError(f"{who}: input must be float32, float64, float16 or bfloat16; got {x.dtype}; {fix}")
    if x.layout is not torch.strided:
        raise TypeError(f"{who}: input must be dense; got layout {x.layout}; use input.to_dense()")


def check_constant(who: str, mean: Tensor | None, var: Tensor | None) -> None:
    """Refuse running statistics that need gradients, as torch.nn does: there are none by them."""
    asked = (mean is not None and mean.requires_grad) or (var is not None and var.requires_grad)
    if asked and torch.is_grad_enabled():
        raise ValueError(
            f"{who}: running statistics are constants, gradients by them are not computed; got running_mean or "
            "running_var with requires_grad=True; use requires_grad_(False)"
        )


def is_like(t: Tensor, x: Tensor) -> bool:
    """Whether a residual is added in the same pass."""
    return isinstance(t, Tensor) and t.shape == x.shape and t.dtype == x.dtype


def check_residual(who: str, x: Tensor, residual: Tensor, activation: int) -> None:
    """Refuse what PyTorch could not add to y, which is like x, or could not activate then."""
    check_together(who, x, residual=residual)
    try:
        torch.broadcast_shapes(x.shape, residual.shape)
    except RuntimeError as error:
        raise ValueError(
            f"{who}: residual must have the input's shape, {tuple(x.shape)}, or broadcast against it; got "
            f"{tuple(residual.shape)}; reshape it"
        ) from error
    if activation and residual.is_complex():
        raise TypeError(f"{who}: residual must be real where an activation follows; got {residual.dtype}")
    if ONEDNN in (x.layout, residual.layout):
        raise TypeError(
            f"{who}: a residual of another shape or dtype than the input's must be strided, as the input; got layouts "
            f"{residual.layout} and {x.layout}; use to_dense()"
        )
