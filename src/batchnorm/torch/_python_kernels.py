"""What `aten.cpp` and `torch_calls.cpp` do, in Python: ATen's functions on NumPy's view of memory.

For a torch that has no stable C ABI; `BATCHNORM_TORCH=python` asks for it. Slower by the Python in each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import _memory

Tensor = torch.Tensor
Doubles = NDArray[np.float64]


def _saved_dtype(x: Tensor, parameters: tuple[Tensor | None, ...]) -> torch.dtype:
    return next((t.dtype for t in parameters if t is not None), x.dtype)


def _serves(x: Tensor, parameters: tuple[Tensor | None, ...], training: bool, eps: float) -> bool:
    """Whether ours takes this forward of ATen (`serves` of torch_calls.cpp)."""
    _, _, mean, var = parameters
    if not _memory.readable(x, *parameters) or x.dim() < 2 or x.numel() == 0 or x.dtype == torch.bool or not eps > 0:
        return False
    if (mean is None) != (var is None) or (mean is None and not training):
        return False
    dtype = _saved_dtype(x, parameters)
    if dtype != x.dtype and not (x.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32):
        return False
    return all(t is None or (t.dtype == dtype and t.shape == (x.shape[1],)) for t in parameters)


def _suggested_format(x: Tensor) -> torch.memory_format:
    """The memory format of PyTorch's batch norm: the first that x is dense in, else what its strides are like."""
    if x.is_contiguous():
        return torch.contiguous_format
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()]):
        return formats[x.dim()]
    format: torch.memory_format = torch._prims_common.suggest_memory_format(x)
    return format


# --- ATen's functions: results, or None where PyTorch's own kernel has to answer ---


def _aten_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, ...] | None:  # fmt: skip
    parameters = (weight, bias, mean, var)
    if not _serves(x, parameters, training, eps):
        return None
    dtype = _saved_dtype(x, parameters)
    save_mean, save_invstd = torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)
    y = torch.empty_like(x, memory_format=_suggested_format(x))
    if training:
        table = np.empty((4, x.shape[1]))
        _memory.run_forward(x, y, weight, bias, None, None, table, True, eps, (0, 0.0))
        count, batch_mean, _, m2 = (torch.from_numpy(row) for row in table)
        save_mean, save_invstd = _empty_with_tail(x.shape[1], dtype), (1 / torch.sqrt(m2 / count + eps)).to(dtype)
        save_mean.copy_(batch_mean)
        tail = _tail(save_mean, x.shape[1])
        assert tail is not None
        tail[0], tail[1:] = _MARK, table.ravel()
        for running, batch in ((mean, batch_mean), (var, m2 / (count - 1))):
            if running is not None:
                running.copy_(momentum * batch + (1 - momentum) * running.double())
    else:
        assert mean is not None
        assert var is not None
        _memory.run_forward(x, y, weight, bias, None, None, _memory.given(mean, var), False, eps, (0, 0.0))
    return y, save_mean, save_invstd


def _without_stats(x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, *rest: float) -> Any:
    return _aten_forward(x, weight, bias, None, None, training, *rest)


def _with_update(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: float) -> Any:
    results = _aten_forward(x, weight, bias, mean, var, True, *rest)
    return None if results is None else (*results, torch.empty(0, dtype=torch.uint8))


def _no_update(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    mean, var, momentum, eps = rest
    results = _aten_forward(x, weight, bias, mean, var, False, momentum, eps)
    return None if results is None else (*results, torch.empty(0, dtype=torch.uint8))


# What stands behind a saved mean, in the same storage: a mark, and the table of the forward (torch_calls.cpp).
_MARK = float.fromhex("0x1.b47c40feedp+77")


def _tail(save_mean: Tensor, C: int) -> Doubles | None:
    """The doubles behind a saved mean whose storage has the size that a forward of ours gives it."""
    values = C * save_mean.element_size()
    start, storage = (values + 7) // 8 * 8, save_mean.untyped_storage()
    if save_mean.storage_offset() != 0 or not save_mean.is_contiguous() or storage.nbytes() != start + 8 * (1 + 4 * C):
        return None
    return np.frombuffer(torch.empty(0, dtype=torch.uint8).set_(storage).numpy(), np.float64, offset=start)


def _empty_with_tail(C: int, dtype: torch.dtype) -> Tensor:
    values = C * dtype.itemsize
    return torch.empty(((values + 7) // 8 * 8 + 8 * (1 + 4 * C)) // dtype.itemsize, dtype=dtype)[:C].detach()


def _exact(save_mean: Tensor, save_invstd: Tensor, m: int, eps: float) -> Doubles | None:
    """The exact statistics behind what was saved, if they are those that were rounded to it."""
    C = save_mean.shape[0]
    tail = _tail(save_mean, C)
    if tail is None or tail[0] != _MARK:
        return None
    table: Doubles = tail[1:].reshape(4, C).copy()
    mean = torch.from_numpy(table[1]).to(save_mean.dtype)
    rstd = (1 / (torch.from_numpy(table[3] / table[0]) + eps).sqrt()).to(save_invstd.dtype)
    same = [torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in ((mean, save_mean), (rstd, save_invstd))]
    return table if all(same) and bool((table[0] == m).all()) else None


def _aten_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, save_mean: Tensor | None,
    save_invstd: Tensor | None, training: bool, eps: float, wanted: list[bool], reserve: Tensor | None = None,
) -> tuple[Tensor | None, ...] | None:  # fmt: skip
    known_mean, known = (save_mean, save_invstd) if training else (mean, var)
    if known_mean is None or known is None or (weight is None and (wanted[1] or wanted[2])):
        return None
    if not _memory.readable(grad_y) or not _serves(x, (weight, None, known_mean, known), False, eps):
        return None
    if grad_y.shape != x.shape or grad_y.dtype != x.dtype:
        return None
    m = x.numel() // x.shape[1]
    table = _exact(known_mean, known, m, eps) if training else None
    if table is None:
        table = _memory.given(known_mean, known)
        if training:
            table[0] = m
            with np.errstate(all="ignore"):
                table[3] = (1 / (table[3] * table[3]) - eps) * m
    grad_x = torch.empty_like(x, memory_format=_suggested_format(x)) if wanted[0] else None
    sums = _memory.run_backward(grad_y, x, grad_x, table, weight, None, None, None, None, eps, (0, 0.0), training)
    by = [sums[i].to(weight.dtype) if weight is not None and wanted[1 + i] else None for i in range(2)]
    return grad_x, *by


ATEN: dict[str, Callable[..., Any]] = {
    "native_batch_norm": _aten_forward,
    "_native_batch_norm_legit": _aten_forward,
    "_native_batch_norm_legit.no_stats": _without_stats,
    "_batch_norm_with_update": _with_update,
    "_batch_norm_no_update": _no_update,
    "native_batch_norm_backward": _aten_backward,
    "batch_norm_backward": _aten_backward,
}


def without_kernel(name: str, args: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """PyTorch's own answer where its kernel cannot be had: the out= overloads (not ours) and the decompositions."""
    if "backward" in name:
        decomposition = torch._decomp.decomposition_table[getattr(torch.ops.aten, name).default]
        results: tuple[Tensor | None, ...] = tuple(decomposition(*args))
        return results
    packet, _, overload = name.partition(".")
    out = getattr(getattr(torch.ops.aten, packet), f"{overload}_out" if overload else "out")
    x = args[0]
    parameters = (*(a for a in args[1:5] if isinstance(a, Tensor)),)
    names = [a.name for a in out._schema.arguments if a.kwarg_only]
    dtypes = [x.dtype, *[_saved_dtype(x, parameters)] * 2, torch.uint8]
    outs = {n: torch.empty(0, dtype=d) for n, d in zip(names, dtypes, strict=False)}
    return tuple(out(*args, **outs))
