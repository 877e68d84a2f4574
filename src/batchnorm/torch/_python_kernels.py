"""What `cpp/bind_torch.cpp` and `cpp/torch_calls.cpp` do, in Python on NumPy's view of a tensor's memory.

For a torch that has no stable C ABI; `BATCHNORM_TORCH=python` asks for it. Slower by the Python in each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _native

Tensor = torch.Tensor
Doubles = NDArray[np.float64]

_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.bool: 4}
_KEPT = 1 << 1  # channels on axis 1


def _memory(t: Tensor) -> NDArray[Any]:
    """The tensor's own memory; bfloat16, which NumPy does not know, as its bits."""
    t = t.detach()
    array: NDArray[Any] = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()
    return array


def _memory_or_none(t: Tensor | None) -> NDArray[Any] | None:
    return None if t is None else _memory(t)


def _memory_of_weights(weights: Tensor | None, x: Tensor) -> NDArray[Any] | None:
    return None if weights is None else _memory(weights.expand_as(x))


def _doubles(t: Tensor | None) -> Doubles | None:
    return None if t is None else np.ascontiguousarray(t.detach().to(torch.float64).numpy())


def _readable(*tensors: Tensor | None) -> bool:
    return all(
        t is None or (t.layout is torch.strided and t.dtype in _CODES and t.device.type == "cpu") for t in tensors
    )


def _saved_dtype(x: Tensor, parameters: tuple[Tensor | None, ...]) -> torch.dtype:
    return next((t.dtype for t in parameters if t is not None), x.dtype)


def _serves(x: Tensor, parameters: tuple[Tensor | None, ...], training: bool, eps: float) -> bool:
    """Whether ours takes this forward of ATen (`serves` of torch_calls.cpp)."""
    _, _, mean, var = parameters
    if not _readable(x, *parameters) or x.dim() < 2 or x.numel() == 0 or x.dtype == torch.bool or not eps > 0:
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


def _given(mean: Tensor, var: Tensor) -> Doubles:
    """Statistics that were given stand for one position: M2 is the variance."""
    m, v = _doubles(mean), _doubles(var)
    assert m is not None
    assert v is not None
    return np.stack([np.ones_like(m), m, np.zeros_like(m), v])


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    before = _native.get_num_threads()
    _native.set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        _native.set_num_threads(before)


def _run_forward(
    x: Tensor, y: Tensor | None, weight: Tensor | None, bias: Tensor | None, weights: Tensor | None,
    residual: Tensor | None, table: Doubles, computes: bool, eps: float, activation: tuple[int, float],
) -> None:  # fmt: skip
    code, weights_code = _CODES[x.dtype], 0 if weights is None else _CODES[weights.dtype]
    with _threads_of_torch():
        _native.forward(
            _memory(x), _memory_or_none(y), code, _KEPT, _memory_or_none(residual), _memory_of_weights(weights, x),
            weights_code, table, computes, _doubles(weight), _doubles(bias), eps, activation,
        )  # fmt: skip


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
        _run_forward(x, y, weight, bias, None, None, table, True, eps, (0, 0.0))
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
        _run_forward(x, y, weight, bias, None, None, _given(mean, var), False, eps, (0, 0.0))
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
    same = bool((table[0] == m).all()) and torch.equal(mean, save_mean) and torch.equal(rstd, save_invstd)
    return table if same else None


def _aten_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, save_mean: Tensor | None,
    save_invstd: Tensor | None, training: bool, eps: float, wanted: list[bool], reserve: Tensor | None = None,
) -> tuple[Tensor | None, ...] | None:  # fmt: skip
    known_mean, known = (save_mean, save_invstd) if training else (mean, var)
    if known_mean is None or known is None or (weight is None and (wanted[1] or wanted[2])):
        return None
    if not _readable(grad_y) or not _serves(x, (weight, None, known_mean, known), False, eps):
        return None
    if grad_y.shape != x.shape or grad_y.dtype != x.dtype:
        return None
    m = x.numel() // x.shape[1]
    table = _exact(known_mean, known, m, eps) if training else None
    if table is None:
        table = _given(known_mean, known)
        if training:
            table[0] = m
            with np.errstate(all="ignore"):
                table[3] = (1 / (table[3] * table[3]) - eps) * m
    grad_x = torch.empty_like(x, memory_format=_suggested_format(x)) if wanted[0] else None
    sums = _run_backward(grad_y, x, grad_x, table, weight, None, None, None, None, eps, (0, 0.0), training)
    by = [sums[i].to(weight.dtype) if weight is not None and wanted[1 + i] else None for i in range(2)]
    return grad_x, *by


def _run_backward(
    grad_y: Tensor, x: Tensor, grad_x: Tensor | None, table: Doubles, weight: Tensor | None, bias: Tensor | None,
    weights: Tensor | None, residual: Tensor | None, grad_residual: Tensor | None, eps: float,
    activation: tuple[int, float], training: bool,
) -> Tensor:  # fmt: skip
    sums = np.zeros((2, x.shape[1]))
    code, weights_code = _CODES[x.dtype], 0 if weights is None else _CODES[weights.dtype]
    with _threads_of_torch():
        _native.backward(
            _memory(grad_y), _memory(x), _memory_or_none(grad_x), code, _KEPT, _memory_or_none(residual),
            _memory_or_none(grad_residual), _memory_of_weights(weights if training else None, x), weights_code, table,
            _doubles(weight), _doubles(bias), eps, activation, training, sums[0], sums[1],
        )  # fmt: skip
    return torch.from_numpy(sums)


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


# --- our own operations ---


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    weights: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`batchnorm::forward`."""
    _check_operands(x, (residual,), (weight, bias, running_mean, running_var))
    if weights is not None:
        _check_weights(x, weights)
    y, computes = torch.empty_like(x), running_mean is None
    if running_mean is None or running_var is None:
        table = np.empty((4, x.shape[1]))
    else:
        table = _given(running_mean, running_var)
    _run_forward(x, y, weight, bias, weights, residual, table, computes, eps, (activation, slope))
    return y, torch.from_numpy(table)


def _check_operands(x: Tensor, like_x: tuple[Tensor | None, ...], channels: tuple[Tensor | None, ...]) -> None:
    """The rules of `refused_operands` of torch_calls.cpp, in its words."""
    if not _readable(x, *like_x, *channels):
        raise ValueError(
            "batch_norm: tensors must be strided, on the CPU, and float64, float32, float16, bfloat16 or bool"
        )
    if any(t is not None and (t.shape != x.shape or t.dtype != x.dtype) for t in like_x):
        raise ValueError("batch_norm: residual and grad_y must have x's shape and dtype")
    if any(t is not None and t.shape != (x.shape[1],) for t in channels):
        raise ValueError(
            f"batch_norm: x has {x.shape[1]} channels; weight, bias and running statistics must have a value for each"
        )


def _check_weights(x: Tensor, weights: Tensor) -> None:
    """The rules of `refused_weights` of torch_calls.cpp, in its words."""
    if weights.shape[1] != 1 or any(n not in (1, m) for n, m in zip(weights.shape, x.shape, strict=True)):
        raise ValueError("batch_norm: weights must be bool, float32 or float64 and broadcast to x, with one channel")
    w = weights.double()
    bad = w[~((w >= 0) & torch.isfinite(w))]
    if bad.numel():
        raise ValueError(f"batch_norm: weights must be finite and non-negative; got {bad[0].item():f}")
    positions = int((w > 0).expand(x.shape[0], 1, *x.shape[2:]).sum())
    if positions == 0:
        raise ValueError("batch_norm: mask and weights select nothing: no position of any channel counts")
    if positions == 1:
        raise ValueError("batch_norm: one counted value per channel in training, so its variance is 0")


def backward(
    grad_y: Tensor, x: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None, weights: Tensor | None,
    residual: Tensor | None, eps: float, activation: int, slope: float, training: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`batchnorm::backward`."""
    _check_operands(x, (grad_y, residual), (weight, bias))
    grad_x = torch.empty_like(x)
    grad_residual = x.new_empty(0) if residual is None else torch.empty_like(x)
    sums = _run_backward(
        grad_y, x, grad_x, np.array(stats.detach().numpy()), weight, bias, weights, residual,
        None if residual is None else grad_residual, eps, (activation, slope), training,
    )  # fmt: skip
    dtypes = [torch.float64 if p is None else p.dtype for p in (weight, bias)]
    by_weight, by_bias = (s.to(dtype, copy=True) for s, dtype in zip(sums, dtypes, strict=True))
    return grad_x, by_weight, by_bias, grad_residual


def update_(
    running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor, stats: Tensor, momentum: float | None,
    correction: int, on_nonfinite: int,
) -> None:  # fmt: skip
    """`batchnorm::update_`."""
    count, mean, _, m2 = stats.detach()
    if on_nonfinite != 0:
        finite = torch.isfinite(mean) & torch.isfinite(m2)
        if not bool(finite.all()):
            if on_nonfinite == 1:
                return
            c = int((~finite).nonzero()[0])
            raise ValueError(
                f"batch_norm: channel {c} of the batch has mean {float(mean[c]):f} and variance "
                f"{float(m2[c] / count[c]):f}; running statistics are left as they were (on_nonfinite='raise')"
            )
    if not bool((count > correction).all()):
        raise ValueError(
            f"batch_norm: running_var is M2 / (count - {correction}), which needs weights that sum to more; got a sum "
            f"of {float(count.min()):f}. Scale the weights (only their ratios matter for the output), or use "
            "running_correction=0"
        )
    num_batches_tracked += 1
    a = 1 / float(num_batches_tracked) if momentum is None else momentum
    running_mean.copy_(a * mean + (1 - a) * running_mean.double())
    running_var.copy_(a * (m2 / (count - correction)) + (1 - a) * running_var.double())
