"""The PyTorch that this is; and of each call where it comes from, and who computes it: our CPU kernels, or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import _native


def library(name: str) -> str:
    """Path of one of PyTorch's shared libraries."""
    folder = Path(torch.__file__).parent / "lib"
    suffix = ".dylib" if (folder / "libtorch_cpu.dylib").exists() else ".so"
    return str(folder / (name + suffix))


def connect() -> None:
    """Connect `_native` with the libtorch of this process; ImportError where that lacks what our kernels call."""
    if missing := _native.torch.connect(library("libtorch_cpu")):
        raise ImportError(
            "batchnorm.torch needs PyTorch 2.10 or later, whose libtorch has the C functions that our kernels call; "
            f"got PyTorch {torch.__version__}, which has no {missing}. Install it with: "
            'pip install --upgrade "torch>=2.10"'
        )


# Makes tensors of a list of owning pointers. (The one that takes a single pointer never frees it: PyTorch 2.13.)
tensors_of = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs


def read_directly() -> None:
    """Let `_native` read tensors of Python, where this PyTorch has DLPack's table of functions for it."""
    if (table := getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)) is not None:
        _native.torch.read_through(table, torch.Tensor, torch.nn.Parameter, tensors_of)


connect()
read_directly()

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)

# Looked up once, for every call asks all of them.
_is_transformed = torch._C._are_functorch_transforms_active
_tracing_state: Any = torch._C._get_tracing_state
_set_tracing_state: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
_graph_task = torch._C._current_graph_task_id
_forward_ad = torch.autograd.forward_ad
_Proxy = torch.fx.Proxy
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_saved_hooks = torch._C._autograd._top_saved_tensors_default_hooks
is_profiled = torch._C._autograd._profiler_enabled

_MODES = torch._C._TorchDispatchModeKey
_RECORDING = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)


def is_jit_trace() -> bool:
    """Whether torch.jit.trace runs this; sizes are tensors then, and a decision on one would be frozen."""
    return _tracing_state() is not None


def sizes(x: torch.Tensor) -> tuple[int, ...]:
    """`x.shape`, in numbers also where torch.jit.trace would make tensors of them."""
    if not is_jit_trace():
        return tuple(x.shape)
    state: Any = _tracing_state()
    _set_tracing_state(None)
    try:
        return tuple(x.shape)
    finally:
        _set_tracing_state(state)


def is_exporting() -> bool:
    """`torch.compiler.is_exporting`, whose flag is read because torch.compile of 2.11 takes the function as True."""
    return torch.compiler._is_exporting_flag


def is_native(x: torch.Tensor) -> bool:
    """Whether our CPU kernels compute this; else PyTorch's own operations do, with the same meaning."""
    if not x.is_cpu or x.dtype not in DTYPES or x.layout is not torch.strided:
        return False
    if _is_compiling():
        return not is_exporting()  # an exported model must not need us
    return type(x) in _PLAIN and not _is_transformed() and _forward_ad._current_level < 0 and _tracing_state() is None


def is_alone(x: torch.Tensor) -> bool:
    """Whether `is_native(x)`, and nobody records, listens to operations or to what is saved, or computes again.

    One look instead of four: on a handful of numbers each takes a hundredth of a step.
    """
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.dtype in DTYPES
        and x.layout is torch.strided
        and not x.is_nested
        and not _is_compiling()
        and not _is_transformed()
        and _forward_ad._current_level < 0
        and _tracing_state() is None
        and not _dispatch_modes()
        and not _function_modes()
        and _saved_hooks(False) is None
        and not is_profiled()
        and _graph_task() == -1
    )


def is_plain(t: torch.Tensor) -> bool:
    """Whether a parameter or buffer is on the CPU, and no subclass of PyTorch's own classes."""
    return type(t) in _PLAIN and t.is_cpu


def is_listened_to() -> bool:
    """Whether somebody hears of operations that are called, or records them."""
    return bool(_is_compiling() or _dispatch_modes() or _function_modes() or is_profiled())


def is_readable(t: torch.Tensor) -> bool:
    """Whether Python may look at the tensor's values: it has some, and nothing records what is done with them."""
    if _is_compiling() or _is_transformed() or is_jit_trace():
        return False
    if t.device.type == "meta" or hasattr(t, "fake_mode") or any(map(torch._C._get_dispatch_mode, _RECORDING)):
        return False
    return t.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def has_values(t: torch.Tensor) -> bool:
    """Whether the tensor is more than a shape: neither on meta nor fake."""
    return t.device.type != "meta" and not hasattr(t, "fake_mode")


def recorder(*tensors: torch.Tensor | None) -> str:
    """Whose record or transform a look at the tensors' values would break, or be frozen in; nothing where one may look.

    (torch.compile leaves its graph for it.)
    """
    if is_jit_trace():
        return "torch.jit.trace"
    if is_exporting():
        return "torch.export"
    return "torch.vmap" if _is_transformed() and any(t is not None and _is_mapped(t) for t in tensors) else ""


def refuse_to_look(who: str, what: str, fix: str, *tensors: torch.Tensor | None) -> None:
    """Refuse an option that looks at values where nobody may."""
    if found := recorder(*tensors):
        raise ValueError(
            f"{who}: {what}, which {found} would record once for all calls, or does not allow; got such a call in "
            f"{found}. Use {fix}"
        )


def _is_mapped(t: torch.Tensor) -> bool:
    """Whether torch.vmap maps over a tensor, below whatever other transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return True
        t = functorch.get_unwrapped(t)
    return False


def is_transformed() -> bool:
    """Whether this runs under torch.func."""
    return bool(_is_transformed())


def is_dual(t: torch.Tensor) -> bool:
    """Whether forward-mode differentiation follows the tensor."""
    return _forward_ad._current_level >= 0 and _forward_ad.unpack_dual(t).tangent is not None


def is_traced(x: object) -> bool:
    """Whether torch.fx records what is done to it."""
    return isinstance(x, _Proxy)


def is_recomputation() -> bool:
    """Whether a backward pass is running, as it is when a checkpoint computes its forward again."""
    return not _is_compiling() and _graph_task() != -1
