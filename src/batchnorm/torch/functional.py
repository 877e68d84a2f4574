"""Batch normalization as a function that changes nothing: running statistics go in, and new ones come out.

For `torch.func` (`grad`, `vmap`, `functional_call`-like code), and for exact micro-batching of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch

from .. import _refusals
from .._options import RUNNING_CORRECTION, Activation, Correction, checked_activation
from . import _backend, _operands, _operations, _options, _plain, _positions, _running, _shared

Tensor = torch.Tensor
Some = Tensor | Sequence[Tensor] | None

__all__ = ["RunningStatistics", "batch_norm"]


class RunningStatistics(NamedTuple):
    """Running statistics: mean and variance of each channel, and how many batches have moved them.

    A tuple of tensors, so `torch.func` and `torch.utils._pytree` look into it.

    >>> import torch
    >>> from batchnorm.torch.functional import RunningStatistics
    >>> RunningStatistics.initial(2)
    RunningStatistics(running_mean=tensor([0., 0.]), running_var=tensor([1., 1.]), num_batches_tracked=tensor(0))
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @classmethod
    def initial(
        cls, num_features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RunningStatistics:
        """Mean 0 and variance 1, of no batches."""
        mean = torch.zeros(num_features, device=device, dtype=dtype)
        return cls(mean, torch.ones_like(mean), torch.zeros((), dtype=torch.int64, device=device))

    @classmethod
    def from_layer(cls, layer: torch.nn.Module) -> RunningStatistics:
        """Copies of a layer's."""
        mean, var, batches = layer.running_mean, layer.running_var, layer.num_batches_tracked
        if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or not isinstance(batches, Tensor):
            raise ValueError(
                "RunningStatistics.from_layer: the layer has no running statistics (track_running_stats=False)"
            )
        return cls(mean.clone(), var.clone(), batches.clone())


@overload
def batch_norm(
    input: Tensor, running: RunningStatistics, weight: Tensor | None = ..., bias: Tensor | None = ..., *,
    training: bool, momentum: float | None = ..., eps: float = ..., running_correction: Correction = ...,
    mask: Some = ..., sample_weight: Some = ..., residual: Some = ..., activation: Activation = ...,
) -> tuple[Tensor, RunningStatistics]: ...  # fmt: skip
@overload
def batch_norm(
    input: Tensor, running: None, weight: Tensor | None = ..., bias: Tensor | None = ..., *,
    training: bool, momentum: float | None = ..., eps: float = ..., running_correction: Correction = ...,
    mask: Some = ..., sample_weight: Some = ..., residual: Some = ..., activation: Activation = ...,
) -> tuple[Tensor, None]: ...  # fmt: skip
@overload
def batch_norm(
    input: Sequence[Tensor], running: RunningStatistics | None, weight: Tensor | None = ...,
    bias: Tensor | None = ..., *,
    training: bool, momentum: float | None = ..., eps: float = ..., running_correction: Correction = ...,
    mask: Some = ..., sample_weight: Some = ..., residual: Some = ..., activation: Activation = ...,
) -> tuple[list[Tensor], RunningStatistics | None]: ...  # fmt: skip
def batch_norm(
    input: Tensor | Sequence[Tensor],
    running: RunningStatistics | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    running_correction: Correction = 1,
    mask: Some = None,
    sample_weight: Some = None,
    residual: Some = None,
    activation: Activation = None,
) -> tuple[Tensor | list[Tensor], RunningStatistics | None]:
    """``activation(batch_norm(input) + residual)`` and the running statistics after it; nothing is written to.

    Parameters
    ----------
    input
        With channels on axis 1. Or a sequence of such, the micro-batches of one batch: moments are gathered over
        all of them first, then each is normalized; likewise the sums of the backward. So results and gradients are
        those of the whole batch, to rounding. mask, sample_weight and residual are sequences then, too.
    running
        Running statistics, or None where there are none.
    weight, bias
        Scale and shift, one for each channel. Default: 1 and 0.
    training
        True: normalize with the batch's moments, and return moved statistics. False: normalize with `running`, and
        return them as they are.
    momentum, eps, running_correction, activation
        As of `BatchNorm1d`.
    mask, sample_weight, residual
        As of `BatchNorm1d.forward`.

    Returns
    -------
    y : Tensor, or list of Tensor
        In the shape and dtype of the input.
    running : RunningStatistics or None
        New ones, in the dtypes of the given. They are constants: no gradients flow through them.

    Raises
    ------
    TypeError, ValueError
        For shapes, a mask or sample_weight that do not fit, missing statistics, or one value per channel in training.

    Notes
    -----
    Inside `torch.func` transforms PyTorch's own operations compute this, elsewhere on the CPU our kernels do.

    Examples
    --------
    >>> import torch
    >>> from batchnorm.torch.functional import RunningStatistics, batch_norm
    >>> y, running = batch_norm(torch.tensor([[1.0], [3.0]]), RunningStatistics.initial(1), training=True)
    >>> y.flatten(), running.running_mean
    (tensor([-1.0000,  1.0000]), tensor([0.2000]))
    >>> micro_batches = [torch.tensor([[1.0]]), torch.tensor([[3.0]])]
    >>> parts = batch_norm(micro_batches, None, training=True)[0]
    >>> parts[0], parts[1]
    (tensor([[-1.0000]]), tensor([[1.0000]]))
    """
    who = "batch_norm"
    running_correction = RUNNING_CORRECTION.checked(running_correction, who)
    momentum = _options.MOMENTUM.checked(momentum, who)
    eps = (_options.POSITIVE_EPS if training else _options.EPS).checked(eps, who)
    options = _shared.Options(eps, *checked_activation(activation, who))
    micro = not isinstance(input, Tensor)
    parts = _parts(input, mask, sample_weight, residual, who)
    _check_channels(parts, running, weight, bias, who)
    if not training:
        ys, new = _evaluated(parts, running, weight, bias, options, who), running
    else:
        ys, table = _trained(parts, weight, bias, options, who)
        new = None if running is None else _moved(running, table, momentum, running_correction)
    return (ys if micro else ys[0]), new


def _parts(
    x: Tensor | Sequence[Tensor], mask: Some, sample_weight: Some, residual: Some, who: str
) -> list[_shared.Part]:
    xs = [x] if isinstance(x, Tensor) else list(x)
    if not xs:
        raise ValueError(f"{who}: a batch needs at least one micro-batch; got an empty sequence")
    given = {"mask": mask, "sample_weight": sample_weight, "residual": residual}
    lists = {name: _as_list(name, value, len(xs), isinstance(x, Tensor), who) for name, value in given.items()}
    parts = []
    for part, m, w, r in zip(xs, lists["mask"], lists["sample_weight"], lists["residual"], strict=True):
        _operands.check_input(who, part)
        if part.dim() < 2:
            raise ValueError(f"{who}: x must have channels on axis 1; got shape {tuple(part.shape)}")
        if r is not None and not _operands.is_like(r, part):
            raise ValueError(
                f"{who}: residual must have x's shape and dtype, {tuple(part.shape)} and {part.dtype}; got "
                f"{tuple(r.shape)} and {r.dtype}; expand it, or add it outside"
            )
        selection = None if m is None and w is None else _positions.weights_like(part, m, w, who)
        parts.append(_shared.Part(part, selection, r))
    return parts


def _as_list(name: str, value: Some, n: int, single: bool, who: str) -> list[Tensor | None]:
    if value is None:
        return [None] * n
    if not single and not isinstance(value, Sequence):
        raise TypeError(
            f"{who}: {name} must be a sequence of tensors, as x is; got {type(value).__name__}; use list({name})"
        )
    values = [value] if single else list(value)
    for each in values:
        _operands.check_tensor(who, name, each)
    if len(values) != n:
        raise ValueError(f"{who}: {name} must have one tensor for each of {n} micro-batches; got {len(values)}")
    return values  # type: ignore[return-value]


def _check_channels(
    parts: list[_shared.Part], running: RunningStatistics | None, weight: Tensor | None, bias: Tensor | None, who: str
) -> None:
    first, C = parts[0].x, parts[0].x.shape[1]
    for part in parts:
        _operands.check_together(who, first, x=part.x, residual=part.residual)
    tensors = {} if running is None else {f"running.{name}": t for name, t in running._asdict().items()}
    _operands.check_together(who, first, weight=weight, bias=bias, **tensors)
    tensors.pop("running.num_batches_tracked", None)
    given = {"weight": weight, "bias": bias, **tensors}
    for name, value in given.items():
        if value is not None and value.shape != (C,):
            raise ValueError(f"{who}: {name} must have one value for each of {C} channels; got {tuple(value.shape)}")
    for i, part in enumerate(parts[1:], 1):
        if part.x.shape[1] != C or part.x.dtype != parts[0].x.dtype:
            raise ValueError(
                f"{who}: micro-batches must have the same channels and dtype; got {C} of {parts[0].x.dtype} in number "
                f"0 and {part.x.shape[1]} of {part.x.dtype} in number {i}"
            )


def _evaluated(
    parts: list[_shared.Part], running: RunningStatistics | None, weight: Tensor | None, bias: Tensor | None,
    options: _shared.Options, who: str,
) -> list[Tensor]:  # fmt: skip
    if running is None:
        raise ValueError(f"{who}: evaluation (training=False) normalizes with running statistics; got running=None")
    ys = []
    for x, _, residual in parts:
        backend = _operations if _backend.is_native(x) and x.numel() else _plain
        mean, var = running.running_mean, running.running_var
        ys.append(backend.forward(x, weight, bias, mean, var, None, residual, *options)[0])
    return ys


def _trained(
    parts: list[_shared.Part], weight: Tensor | None, bias: Tensor | None, options: _shared.Options, who: str
) -> tuple[list[Tensor], Tensor]:
    """y of each part, and the moments of all."""
    xs = [part.x for part in parts]
    native = all(map(_backend.is_native, xs))
    if native or not torch._C._are_functorch_transforms_active():
        _check_positions(parts, who)
    if len(parts) == 1 or not native:
        return _as_one(parts, weight, bias, options, native)
    here = _shared.Here()
    table = here.moments([_shared.gather(part) for part in parts])
    return _shared.normalize(here, table, weight, bias, parts, options), table


def _as_one(
    parts: list[_shared.Part], weight: Tensor | None, bias: Tensor | None, options: _shared.Options, native: bool
) -> tuple[list[Tensor], Tensor]:
    """The parts as one tensor; where there is one of them, or every transform has to see plain operations."""
    (x, selection, residual), *rest = parts
    if rest:
        x = torch.cat([part.x for part in parts])
        if any(part.position_weight is not None for part in parts):
            selection = torch.cat([_expanded(part) for part in parts])
        residual = None if residual is None else torch.cat([p.residual for p in parts if p.residual is not None])
    backend = _operations if native else _plain
    y, table = backend.forward(x, weight, bias, None, None, selection, residual, *options)
    return list(y.split([part.x.shape[0] for part in parts])) if rest else [y], table


def _expanded(part: _shared.Part) -> Tensor:
    shape = (part.x.shape[0], 1, *part.x.shape[2:])
    return (
        part.x.new_ones(shape) if part.position_weight is None else part.position_weight.to(part.x.dtype).expand(shape)
    )


def _check_positions(parts: list[_shared.Part], who: str) -> None:
    counts = [_positions.counted(part.x, part.position_weight) for part in parts]
    if any(isinstance(count, Tensor) for count in counts) and torch.compiler.is_compiling():
        return  # of a selection the kernels count
    for part in parts:
        if not _backend.is_native(part.x):
            _positions.check(part.x, part.position_weight, 0, 0)
    positions = int(sum(counts))
    if positions < 2:
        shapes = ", ".join(str(tuple(part.x.shape)) for part in parts)
        counted = any(part.position_weight is not None and part.x.numel() for part in parts)
        where = f" (input {shapes}, channels on axis 1)"
        raise ValueError(f"{who}: {_refusals.too_few(positions, counted, where, 'use training=False')}")


def _moved(running: RunningStatistics, table: Tensor, momentum: float | None, correction: int) -> RunningStatistics:
    """As `batchnorm::update_` moves them, into new tensors."""
    own = _running.Running(
        running.running_mean.detach(), running.running_var.detach(), running.num_batches_tracked, None
    )
    to = _running.moved(own, table.detach(), momentum, correction).running
    return RunningStatistics(to.mean, to.var, to.batches)
