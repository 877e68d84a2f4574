"""The extra options of our modules: what is accepted, and the codes the kernels know them by."""

from __future__ import annotations

import torch

from .. import _checks
from .._checks import Activation

ON_NONFINITE = {"propagate": 0, "skip": 1, "raise": 2}
ON_SINGLE_VALUE = ("error", "running")


def activation(value: Activation, who: str) -> tuple[int, float]:
    """Code and slope of an activation, as the kernels take them."""
    return _checks.activation(value, who)


def activate(z: torch.Tensor, code: int, slope: float) -> torch.Tensor:
    """Apply the activation of that code with PyTorch's own operations."""
    functional = torch.nn.functional
    if code == 1:
        return functional.relu(z)
    if code == 2:
        return functional.relu6(z)
    if code == 3:
        return functional.leaky_relu(z, slope)
    return functional.silu(z) if code == 4 else z


def check(who: str, on_single_value: object, on_nonfinite: object, running_correction: object) -> None:
    """Refuse an option that does not exist."""
    if on_single_value not in ON_SINGLE_VALUE:
        raise ValueError(
            f"{who}: on_single_value says what one value per channel in training does: 'error', or 'running' "
            f"(normalise with the running statistics); got {on_single_value!r}"
        )
    if on_nonfinite not in ON_NONFINITE:
        raise ValueError(
            f"{who}: on_nonfinite says what a batch with NaN or infinity does to the running statistics: 'propagate' "
            f"(as PyTorch), 'skip' or 'raise'; got {on_nonfinite!r}"
        )
    if isinstance(running_correction, bool) or running_correction not in (0, 1):
        raise ValueError(
            f"{who}: running_correction must be 1 (unbiased running_var, as PyTorch) or 0 (biased, as Keras, Flax and "
            f"ONNX); got {running_correction!r}"
        )
