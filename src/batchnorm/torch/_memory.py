"""A tensor's memory as NumPy sees it, and `_native`'s kernels on it: for kernels registered from Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _native

Tensor = torch.Tensor
Doubles = NDArray[np.float64]

CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.bool: 4}
KEPT = 1 << 1  # channels on axis 1


def memory(t: Tensor) -> NDArray[Any]:
    """The tensor's own memory; bfloat16, which NumPy does not know, as its bits."""
    t = t.detach()
    array: NDArray[Any] = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()
    return array


def memory_or_none(t: Tensor | None) -> NDArray[Any] | None:
    return None if t is None else memory(t)


def memory_of_weights(weights: Tensor | None, x: Tensor) -> NDArray[Any] | None:
    return None if weights is None else memory(weights.expand_as(x))


def doubles(t: Tensor | None) -> Doubles | None:
    return None if t is None else np.ascontiguousarray(t.detach().to(torch.float64).numpy())


def readable(*tensors: Tensor | None) -> bool:
    return all(
        t is None or (t.layout is torch.strided and t.dtype in CODES and t.device.type == "cpu") for t in tensors
    )


def given(mean: Tensor, var: Tensor) -> Doubles:
    """Statistics that were given stand for one position: M2 is the variance."""
    m, v = doubles(mean), doubles(var)
    assert m is not None
    assert v is not None
    return np.stack([np.ones_like(m), m, np.zeros_like(m), v])


@contextmanager
def threads_of_torch() -> Iterator[None]:
    before = _native.get_num_threads()
    _native.set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        _native.set_num_threads(before)


def run_forward(
    x: Tensor, y: Tensor | None, weight: Tensor | None, bias: Tensor | None, weights: Tensor | None,
    residual: Tensor | None, table: Doubles, computes: bool, eps: float, activation: tuple[int, float], group: int = 0,
) -> None:  # fmt: skip
    code, weights_code = CODES[x.dtype], 0 if weights is None else CODES[weights.dtype]
    with threads_of_torch():
        _native.forward(
            memory(x), memory_or_none(y), code, KEPT, memory_or_none(residual), memory_of_weights(weights, x),
            weights_code, table, computes, doubles(weight), doubles(bias), eps, activation, group,
        )  # fmt: skip


def run_backward(
    grad_y: Tensor, x: Tensor, grad_x: Tensor | None, table: Doubles, weight: Tensor | None, bias: Tensor | None,
    weights: Tensor | None, residual: Tensor | None, grad_residual: Tensor | None, eps: float,
    activation: tuple[int, float], training: bool, group: int = 0, known: Doubles | None = None,
    y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns the sums, (2, C) or (2, G, C): those that are known, if they are given."""
    groups = (-(-x.shape[0] // group),) if group else ()
    sums = np.zeros((2, *groups, x.shape[1])) if known is None else known
    code, weights_code = CODES[x.dtype], 0 if weights is None else CODES[weights.dtype]
    with threads_of_torch():
        _native.backward(
            memory(grad_y), memory(x), memory_or_none(grad_x), code, KEPT, memory_or_none(residual if y is None else y),
            memory_or_none(grad_residual), memory_of_weights(weights if training else None, x), weights_code, table,
            doubles(weight), doubles(bias), eps, activation, training, sums[0], sums[1], group,
            known is None, y is not None,
        )  # fmt: skip
    return torch.from_numpy(sums)
