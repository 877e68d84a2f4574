"""A layer's running statistics, moved by a table of moments: all of them, or none."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .. import _formulas, _native, _refusals
from .._options import NONFINITE_CODES, RUNNING_CORRECTION, needs_running
from . import _backend, _operands, _operations, _plain

Tensor = torch.Tensor

_MOST_BATCHES = 2**63 - 1


class Running(NamedTuple):
    """A layer's buffers, or what they would become."""

    mean: Tensor
    var: Tensor
    batches: Any
    counts: Tensor | None


class Moved(NamedTuple):
    """What a batch makes of running statistics, in their own dtypes."""

    running: Running
    gap: Tensor | None
    finite: Tensor  # of each channel


def move(layer: Any, table: Tensor, native: bool, weighted: bool) -> None:
    """Move the running statistics of a layer towards moments (4, C), or those of ghosts, (4, G, C), as a whole.

    `weighted`: the counts may be anything.
    """
    parts = layer._collects
    if parts is not None:
        parts.add(table, native, weighted)
        return
    if table.dim() == 3:
        table = (_operations if native else _plain).merge(table)
    if native and not _backend.is_listened_to() and is_moved_directly(layer, table):
        return
    mean, var, count = statistics(layer)
    if mean is None or var is None:
        return _count_only(layer, mean, var, count)
    _operands.check_constant(type(layer).__name__, mean, var)
    update = _move_by_kernel if native else _move
    here = count is not None and (count.is_cpu if native else count.device == table.device)
    if count is None or not here or count.dtype is not torch.int64 or count.dim():
        _move_with_stand_in(layer, mean, var, count, table, weighted, update)
    else:
        update(layer, mean, var, count, table, layer.momentum, weighted)


def is_moved_directly(layer: Any, table: Tensor) -> bool:
    """Let the kernel move what is as torch.nn makes it, where nobody listens; else nothing changes."""
    own = layer._buffers
    mean, var, count = own.get("running_mean"), own.get("running_var"), own.get("num_batches_tracked")
    if mean is None or var is None or mean.requires_grad or var.requires_grad:
        return False
    how = NONFINITE_CODES[layer.on_nonfinite]
    correction, counts = layer.running_correction, own.get("running_count")
    return bool(_native.torch.update(mean, var, count, table, layer.momentum, correction, how, counts))


def statistics(layer: Any) -> tuple[Any, Any, Tensor | None]:
    """Running mean, variance and count, looked for where they usually are: torch.nn looks elsewhere first."""
    own = layer._buffers
    try:
        return own["running_mean"], own["running_var"], own["num_batches_tracked"]
    except KeyError:  # parametrized, say
        return layer.running_mean, layer.running_var, layer.num_batches_tracked


def _count_only(layer: Any, mean: Any, var: Any, count: Tensor | None) -> None:
    """Do as torch.nn where statistics were taken away by hand."""
    if mean is not None or var is not None:
        raise ValueError(
            f"{type(layer).__name__}: running_mean and running_var go together; got None for one of them. Set both, or "
            "both to None"
        )
    if count is not None:
        count.add_(1)


@torch.no_grad()
def _move_with_stand_in(
    layer: Any, mean: Tensor, var: Tensor, count: Tensor | None, table: Tensor, weighted: bool, update: Any
) -> None:
    """Move statistics whose count is of another kind than torch.nn makes, or absent: the batch is counted apart."""
    if count is not None and not torch.can_cast(torch.int64, count.dtype):
        raise TypeError(
            f"{type(layer).__name__}: num_batches_tracked must be a number; got dtype {count.dtype}; use torch.int64"
        )
    counted = torch.zeros((), dtype=torch.int64, device=table.device)
    update(layer, mean, var, counted, table, weight_of_batch(layer, count), weighted)
    if count is not None:
        count.add_(counted)


def weight_of_batch(layer: Any, count: Tensor | None) -> float:
    """Weight of the next batch in running statistics, by torch.nn's rules; momentum None: of an average of all."""
    momentum: float | None = layer.momentum
    if momentum is not None or count is None:
        return 0.0 if momentum is None else momentum
    if count.device.type == "meta":
        raise ValueError(
            f"{type(layer).__name__}: momentum=None averages by num_batches_tracked; got a meta tensor, which has no "
            "value. Set layer.num_batches_tracked = torch.tensor(0), or load a state that has it"
        )
    return 1.0 / float(count + 1)


def _move_by_kernel(
    layer: Any, mean: Tensor, var: Tensor, count: Tensor, table: Tensor, momentum: float | None, _: bool
) -> None:
    how, counts = NONFINITE_CODES[layer.on_nonfinite], layer._buffers.get("running_count")
    _operations.update_(mean, var, count, table, momentum, layer.running_correction, how, counts)


@torch.no_grad()
def _move(
    layer: Any, mean: Tensor, var: Tensor, count: Tensor, table: Tensor, momentum: float | None, weighted: bool
) -> None:
    """What `batchnorm::update_` does, in PyTorch's operations."""
    who = type(layer).__name__
    own = Running(mean, var, count, layer.running_count)
    if (weighted or momentum is None) and _backend.is_readable(table):
        check(who, own, table, momentum, layer.running_correction)
    to = moved(own, table, momentum, layer.running_correction)
    if any(t.numel() > 1 and 0 in t.stride() for t in (mean, var)):  # found out when some has moved
        raise ValueError(
            f"{who}: running statistics must have memory for each channel; got an expanded tensor; clone it"
        )
    if layer.on_nonfinite == "raise":
        _backend.refuse_to_look(who, "on_nonfinite='raise' looks at the batch", "on_nonfinite='skip'", table)
        if _backend.has_values(table) and not bool(to.finite.all()):
            raise ValueError(f"{who}: {not_finite(table, to)}")
    new = [(buffer, value) for buffer, value in zip(own, to.running, strict=True) if buffer is not None]
    if layer.on_nonfinite != "propagate":
        moves = to.finite.all()
        new = [(buffer, torch.where(moves, value, buffer)) for buffer, value in new]
    if _backend.is_transformed():
        _check_writable(who, new)
    for buffer, value in new:
        buffer.copy_(value)


def moved(own: Running, table: Tensor, momentum: float | None, correction: int) -> Moved:
    """Move running statistics towards the moments of a batch, into new tensors."""
    count, mean, _, m2 = table
    batches = own.batches + 1
    a = 1.0 / batches.to(m2.dtype) if momentum is None else momentum
    if own.counts is not None and own.counts.dtype != table.dtype:
        raise ValueError(f"batch_norm: {_refusals.running_count(str(table.dtype).removeprefix('torch.'))}")
    running = own.mean.to(m2.dtype), own.var.to(m2.dtype), own.counts
    to = _formulas.moved(torch, running, (count, mean, m2), a, correction)
    new = Running(to.mean.to(own.mean.dtype), to.var.to(own.var.dtype), batches, to.counts)
    return Moved(new, to.gap, _formulas.all_finite(torch, new.mean, new.var, to.gap))


def check(who: str, own: Running, table: Tensor, momentum: float | None, correction: int) -> None:
    """Refuse counts that nothing can be moved by; looks at values."""
    batches = int(own.batches)
    if batches == _MOST_BATCHES or (momentum is None and batches < 0):
        raise ValueError(f"{who}: {_refusals.batches(batches, _MOST_BATCHES, _refusals.NEW_COUNT)}")
    count, least = table[0], correction if own.counts is None else 1
    if not bool((count > least).all()):
        said = _refusals.sum_of_weights(float(count.min()), least, own.counts is not None)
        raise ValueError(f"{who}: {said}")


def not_finite(table: Tensor, to: Moved) -> str:
    """Which channel of a batch is refused with on_nonfinite="raise", and what would have been stored."""
    c = int((~to.finite).nonzero()[0])
    count, mean, _, m2 = (float(row[c]) for row in table)
    new = float(to.running.mean[c]), float(to.running.var[c])
    dtype = str(to.running.var.dtype).removeprefix("torch.")
    return _refusals.not_finite(c, (mean, m2 / count), dtype, new)


def _check_writable(who: str, new: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse buffers that the transforms in force do not let us move, before one of them is moved."""
    never = torch.zeros((), dtype=torch.bool, device=new[0][0].device)
    try:
        for buffer, value in new:
            buffer.copy_(torch.where(never, value, buffer))  # as it is; but to be written to
    except RuntimeError as error:
        raise ValueError(
            f"{who}: a transform of torch.func cannot move the running statistics of the layer itself; got a call that "
            "moves them. Pass buffers to functional_call (those of torch.func.stack_module_state, for torch.vmap), or "
            "set layer.update_running_stats = False, or use batchnorm.torch.functional.batch_norm, which returns new "
            "ones"
        ) from error


def renormalized(layer: Any, table: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias that do to xhat what ``(xhat * r + d) * weight + bias`` does; r and d are constants."""
    with torch.no_grad():
        r, d = _correction(layer, table)
    scale = torch.ones_like(r) if weight is None else weight.to(r.dtype)
    shift = torch.zeros_like(d) if bias is None else bias.to(d.dtype)
    return scale * r, shift + scale * d


def _correction(layer: Any, table: Tensor) -> tuple[Tensor, Tensor]:
    """`Renorm.factors`, with limits that follow the tensor `num_batches_tracked`; (C) each, or of ghosts (G, C)."""
    count, mean, low, m2 = table
    running_mean, running_var = map(_operations.as_they_are, (layer.running_mean, layer.running_var))
    limits = _formulas.renorm_limits(torch, layer.renorm, layer.num_batches_tracked.to(m2.dtype))
    distance = (mean - running_mean.to(m2.dtype)) + low
    r, d = _formulas.renorm_factors(torch, limits, layer.eps, distance, m2 / count, running_var.to(m2.dtype))
    there = count > 0  # an empty batch has nothing to correct
    return torch.where(there, r, 1.0), torch.where(there, d, 0.0)


class KeepsCount(_BatchNorm):
    """A layer of torch.nn's that can keep the counts behind its running variance."""

    running_correction: int
    _collects: Any = None  # inside of `one_update`: what takes the moments that would move running statistics

    @property
    def running_count(self) -> Tensor | None:
        """With `keep_count`: the count n of each channel for which running_var * (n - 1) / n is the biased variance."""
        return self._buffers.get("running_count")

    @property
    def keep_count(self) -> bool:
        """Whether there is a buffer `running_count`; setting it makes one, or takes it away."""
        return "running_count" in self._buffers

    @keep_count.setter
    def keep_count(self, keep: bool) -> None:
        if not keep:
            self._buffers.pop("running_count", None)
        elif not self.keep_count:
            assert self.running_var is not None  # or it would have been refused
            count = torch.full_like(self.running_var, torch.inf, dtype=_plain.table_dtype(self.running_var))
            self._buffers["running_count"] = count

    def running_variance(self, correction: int = 0) -> Tensor:
        """The biased (0) or unbiased (1) running variance, in float64; with `keep_count`, either is exact.

        Raises
        ------
        ValueError
            Where it is not the one that running_var holds, and `keep_count` is off; where there are no running
            statistics.
        """
        who, held = type(self).__name__, self.running_correction
        if self.running_var is None:
            raise needs_running(who, "running_variance")
        var = self.running_var.double()
        if RUNNING_CORRECTION.called("correction").checked(correction, who) == held:
            return var
        if self.running_count is None:
            raise ValueError(
                f"{who}: running_var has correction {held}; the variance with correction {correction} needs the counts "
                "behind it: keep_count=True"
            )
        other: Tensor = _formulas.other_variance(var, self.running_count.double(), held)
        return other

    def reset_running_stats(self) -> None:
        """As torch.nn's; a `running_count` is infinite again: the initial variance is neither biased nor unbiased."""
        super().reset_running_stats()
        if self.running_count is not None:
            self.running_count.fill_(torch.inf)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch.nn's; `running_count` keeps its dtype, as `num_batches_tracked` does: halves do not hold counts."""
        before = self.running_count
        super()._apply(fn, recurse)
        self._widen_count(before)
        return self

    def _widen_count(self, before: Tensor | None = None) -> None:
        count = self.running_count
        if count is not None and count.dtype != (wide := _plain.table_dtype(count)):
            self._buffers["running_count"] = (count if before is None else before).to(count.device, wide)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """As torch.nn's; a state without `running_count` (of a layer that kept none) leaves it unknown: infinite."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._widen_count()  # the state's own, with assign=True
        missing: list[str] = args[2]
        name = f"{prefix}running_count"
        if self.running_count is not None and name in missing:
            missing.remove(name)
            self.running_count.fill_(torch.inf)
