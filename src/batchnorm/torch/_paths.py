"""Which way a call goes: through our CPU kernels, or through PyTorch's own operations; and from where it comes."""

from __future__ import annotations

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_jit_trace() -> bool:
    """Whether torch.jit.trace runs this; sizes are tensors then, and a decision on one would be frozen."""
    return torch._C._get_tracing_state() is not None


def is_ours(x: torch.Tensor) -> bool:
    """Whether our CPU kernels compute this; else PyTorch's own operations do, with the same meaning."""
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()  # an exported model must not need us
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not is_jit_trace()
    )


def is_traced(x: object) -> bool:
    """Whether torch.fx records what is done to it."""
    return isinstance(x, torch.fx.Proxy)


def is_recomputation() -> bool:
    """Whether a backward pass is running, as it is when a checkpoint computes its forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
