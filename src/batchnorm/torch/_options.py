"""The extra options of our modules: what is accepted, and the codes the kernels know them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import _checks, renorm
from .._checks import Activation

ON_NONFINITE = {"propagate": 0, "skip": 1, "raise": 2}
ON_SINGLE_VALUE = ("error", "running")
STATISTICS = ("auto", "batch", "running")


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


def is_told_by_y(dtype: torch.dtype, code: int, slope: float) -> bool:
    """Whether y tells the derivative of its activation, exactly as what the activation was applied to does.

    relu, relu6 and leaky_relu of positive slope leave each value, NaN too, on its side of each corner. (Slope 0 makes
    NaN of -inf.) Rounding to 16 bits does not: values above 0 become 0, values below 6 become 6.
    """
    if dtype not in (torch.float32, torch.float64):
        return False
    return code in (1, 2) or (code == 3 and slope >= torch.finfo(dtype).tiny)


DEFAULTS: dict[str, Any] = {  # PyTorch's behaviour
    "activation": None,
    "on_single_value": "error",
    "on_nonfinite": "propagate",
    "running_correction": 1,
    "virtual_batch_size": None,
    "renorm": None,
    "statistics": "auto",
    "update": None,
    "train_affine": True,
    "keep_count": False,
}


def check(who: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that does not exist."""
    activation(options["activation"], who)
    _check_choice(
        who, options, "on_single_value", ON_SINGLE_VALUE,
        "says what one value per channel in training does: 'error', or 'running' (normalise with the running "
        "statistics)",
    )  # fmt: skip
    _check_choice(
        who, options, "on_nonfinite", tuple(ON_NONFINITE),
        "says what a batch with NaN or infinity does to the running statistics: 'propagate' (as PyTorch), 'skip' or "
        "'raise'",
    )  # fmt: skip
    _check_choice(
        who, options, "statistics", STATISTICS,
        "says what normalises: 'auto' (the batch's in training, the running ones in evaluation), 'batch' or 'running'",
    )  # fmt: skip
    correction = options["running_correction"]
    if isinstance(correction, bool) or correction not in (0, 1):
        raise ValueError(
            f"{who}: running_correction must be 1 (unbiased running_var, as PyTorch) or 0 (biased, as Keras, Flax and "
            f"ONNX); got {correction!r}"
        )
    size = options["virtual_batch_size"]
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(
            f"{who}: virtual_batch_size must be an int of at least 1, the samples of a ghost batch, or None for the "
            f"whole batch; got {size!r}"
        )
    for name, values in (
        ("update", (None, True, False)),
        ("train_affine", (True, False)),
        ("keep_count", (True, False)),
    ):
        if not any(options[name] is value for value in values):
            raise ValueError(f"{who}: {name} must be {' or '.join(map(str, values))}; got {options[name]!r}")
    renorm.checked(options["renorm"], who)


def _check_choice(who: str, options: Mapping[str, Any], name: str, values: tuple[str, ...], rule: str) -> None:
    if options[name] not in values:
        raise ValueError(f"{who}: {name} {rule}; got {options[name]!r}")
