"""Which way a call goes: through our CPU kernels, or through PyTorch's own operations; and from where it comes."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)

# Looked up once, for every call asks all of them.
_is_transformed = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_graph_task = torch._C._current_graph_task_id
_forward_ad = torch.autograd.forward_ad
_is_compiling = torch.compiler.is_compiling

_MODES = torch._C._TorchDispatchModeKey
_RECORDING = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)


def is_jit_trace() -> bool:
    """Whether torch.jit.trace runs this; sizes are tensors then, and a decision on one would be frozen."""
    return _tracing_state() is not None


def is_exporting(default: bool) -> bool:
    """`torch.compiler.is_exporting`, whose flag is read because torch.compile of 2.11 takes the function as True.

    Before there was a flag nothing told torch.export and torch.compile apart: the default is the answer.
    """
    return bool(getattr(torch.compiler, "_is_exporting_flag", default))


def is_ours(x: torch.Tensor) -> bool:
    """Whether our CPU kernels compute this; else PyTorch's own operations do, with the same meaning."""
    if not x.is_cpu or x.dtype not in DTYPES or x.layout is not torch.strided:
        return False
    if _is_compiling():
        return not is_exporting(default=True)  # an exported model must not need us
    return type(x) in _PLAIN and not _is_transformed() and _forward_ad._current_level < 0 and _tracing_state() is None


def is_readable(t: torch.Tensor) -> bool:
    """Whether Python may look at the tensor's values: it has some, and nothing records what is done with them."""
    if _is_compiling() or _is_transformed() or is_jit_trace():
        return False
    if t.device.type == "meta" or hasattr(t, "fake_mode") or any(map(torch._C._get_dispatch_mode, _RECORDING)):
        return False
    return t.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def is_traced(x: object) -> bool:
    """Whether torch.fx records what is done to it."""
    return isinstance(x, torch.fx.Proxy)


def is_recomputation() -> bool:
    """Whether a backward pass is running, as it is when a checkpoint computes its forward again."""
    return not _is_compiling() and _graph_task() != -1
