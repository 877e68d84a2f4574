"""What each batch normalization of a model normalizes: handed in, layer by layer, while the model evaluates batches.

A look that leaves no trace: modes, buffers, hooks and the states of random generators are as they were when it ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import _operands, _positions, _shared
from ._batches import SAY_HOW, Batches
from ._layers import _Extended
from ._norms import Norm

Tensor = torch.Tensor
Arrived = Callable[[int, Tensor], None]  # number of the layer, moments of its input

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "running_count")  # buffers

_batch_norm: Any = torch.batch_norm  # which torch.nn.functional's calls

_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


def gather(
    model: nn.Module,
    norms: Sequence[Norm],
    batches: Batches,
    take: Callable[[int, int, Tensor], None],
    *,
    normalize_with: Literal["stored", "batch"],
    training: bool = False,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Give `take` the number of a batch, of a layer, and the moments (4, C) of what that layer was to normalize.

    Parameters
    ----------
    normalize_with
        What the layers of `norms` normalize with: what they have stored, or the moments of this batch. Layers that are
        not among them always use what they have stored.
    training
        Whether all other modules, dropout say, are in training mode; the batch normalizations never are.
    done
        Is called after each batch.
    """
    number = -1
    reached: list[int] = []

    def arrived(i: int, table: Tensor) -> None:
        reached.append(i)
        take(number, i, table)
        if normalize_with == "batch":
            write(norms[i].layer, table, 0)

    with (
        undisturbed(model, norms, batches, training=training),
        watching(norms, arrived),
        torch.no_grad(),
    ):
        for batch in batches:
            number = batch.number
            reached.clear()
            try:
                batch.call()
            except Exception as error:
                raise failure(number, norms, reached, error, batches.who) from error
            done()


def write(layer: Any, table: Tensor, correction: int) -> None:
    """Make a layer's statistics those of some moments; of no positions, mean and variance 0."""
    count, mean, low, m2 = table
    layer.running_mean.copy_(mean + low)
    layer.running_var.copy_(m2 / (count - correction).clamp_min(torch.finfo(count.dtype).tiny))


def failure(number: int, norms: Sequence[Norm], reached: Sequence[int], error: Exception, who: str) -> ValueError:
    """The refusal of data that the model does not take."""
    where = f"after {norms[reached[-1]]}" if reached else "before the first batch normalization"
    return ValueError(
        f"{who}: the model must take every batch; got {type(error).__name__} from batch {number}, {where}: {error}. "
        f"Nothing is changed. Leave the batch out, or {SAY_HOW}"
    )


# --- a look that leaves no trace ---


@contextlib.contextmanager
def undisturbed(model: nn.Module, norms: Sequence[Norm], batches: Batches, *, training: bool = False) -> Iterator[None]:
    """Evaluation mode, by the flags alone; what is touched is as it was before, however this ends."""
    buffers = [buffer for norm in norms for buffer in statistics_of(norm.layer)]
    if any(buffer.is_inference() for buffer in buffers) and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{batches.who}: running statistics must be tensors that can be written; got some of torch.inference_mode; "
            "build the model, or load it, outside of that"
        )
    modules = list(model.modules())
    flags = [module.training for module in modules]
    compiled = [module for module in modules if getattr(module, "_compiled_call_impl", None) is not None]
    calls = [module._compiled_call_impl for module in compiled]
    kept = [(buffer, buffer.detach().clone()) for buffer in buffers]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [batches.device] if batches.device.type not in ("cpu", "meta") else []
    kind = batches.device.type if devices else "cuda"
    may_be_compiled = "torch._dynamo" in sys.modules  # else there is nothing compiled, and importing it takes seconds
    eager = torch.compiler.set_stance("force_eager") if may_be_compiled else contextlib.nullcontext()
    try:
        with torch.random.fork_rng(devices, device_type=kind), eager:
            for module in modules:
                module.training = training and not isinstance(module, _BatchNorm)
            for module in compiled:
                module._compiled_call_impl = None
            yield
    finally:
        put_back(kept)
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, call in zip(compiled, calls, strict=True):
            module._compiled_call_impl = call
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def put_back(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the second into the first of each pair: into all of them, even if interrupted."""
    interrupted: BaseException | None = None
    with torch.no_grad():
        for buffer, value in values:
            for _ in range(2):
                try:
                    buffer.copy_(value)
                    break
                except BaseException as error:
                    interrupted = error
    if interrupted is not None:
        raise interrupted


def statistics_of(layer: Any) -> list[Tensor]:
    """The buffers of a layer that say what its statistics are."""
    return [buffer for name in STATISTICS if isinstance(buffer := getattr(layer, name, None), Tensor)]


# --- layers that hand in ---


@contextlib.contextmanager
def watching(norms: Sequence[Norm], arrived: Arrived) -> Iterator[None]:
    """Have every layer hand in the moments of what it is to normalize, just before it does.

    Ours do so where they normalize, those with torch.nn's forward where they are called. A class with a forward of its
    own may do anything to its input first: then it is what reaches PyTorch's batch_norm that counts.
    """
    others: dict[int, int] = {}

    def take(i: int, x: Tensor, position_weight: Tensor | None) -> None:
        arrived(i, _shared.gather(_shared.Part(x, position_weight, None)))

    handles = []
    try:
        for i, norm in enumerate(norms):
            if isinstance(norm.layer, _Extended):
                norm.layer.__dict__.update(_normalize=_ours(norm.layer, i, take), _usual=_not_usual)
            elif type(norm.layer).forward in _FORWARDS and "forward" not in norm.layer.__dict__:
                handles.append(norm.layer.register_forward_pre_hook(_theirs(i, take), with_kwargs=True))
            else:
                others[id(norm.layer.running_mean)] = i
        if others:
            torch.batch_norm = _see(others, take)
        yield
    finally:
        torch.batch_norm = _batch_norm
        for handle in handles:
            handle.remove()
        for norm in norms:
            for name in ("_normalize", "_usual"):
                norm.layer.__dict__.pop(name, None)


def _not_usual(x: Tensor) -> None:
    """Every call of a layer goes to its `_normalize`."""


def _ours(layer: Any, i: int, take: Any) -> Any:
    normalize = layer._normalize

    def with_moments(x: Tensor, mask: Tensor | None, sample_weight: Tensor | None, *rest: Any) -> Any:
        if x.layout is not _operands.ONEDNN:  # or the layer comes back with a dense one
            position_weight = None
            if mask is not None or sample_weight is not None:
                position_weight = _positions.weights_like(x, mask, sample_weight, type(layer).__name__)
            take(i, x, position_weight)
        return normalize(x, mask, sample_weight, *rest)

    return with_moments


def _theirs(i: int, take: Any) -> Any:
    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return  # for the layer to refuse
        layer._check_input_dim(x)
        if x.shape[1] == layer.num_features:
            take(i, x.to_dense() if x.layout is _operands.ONEDNN else x, None)

    return hook


def _see(others: dict[int, int], take: Any) -> Any:
    """PyTorch's batch_norm that hands in what reaches it with the running mean of one of some layers."""

    @functools.wraps(_batch_norm)
    def batch_norm(*args: Any, **kwargs: Any) -> Any:
        mean = args[3] if len(args) > 3 else kwargs.get("running_mean")
        if (i := others.get(id(mean))) is not None:
            take(i, args[0] if args else kwargs["input"], None)
        return _batch_norm(*args, **kwargs)

    return batch_norm
