"""Running statistics after a batch, in PyTorch's operations, as `update_running` in cpp/call/fused_calls.cpp."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

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
    gap: Tensor | None  # the unbiased variance less the biased one
    finite: Tensor  # of each channel


def moved(own: Running, table: Tensor, momentum: float | None, correction: int) -> Moved:
    """Move running statistics towards the moments of a batch, into new tensors.

    The unbiased running variance and the biased one are averages with the same weights, so the gap between them is one,
    too: it moves towards ``M2 / (m (m - 1))``, and the count is the unbiased one divided by it.
    """
    count, mean, _, m2 = table
    batches = own.batches + 1
    a = 1.0 / batches.to(m2.dtype) if momentum is None else momentum
    old = own.var.to(m2.dtype)
    var = a * (m2 / (count - correction)) + (1 - a) * old
    new_mean = (a * mean + (1 - a) * own.mean.to(m2.dtype)).to(own.mean.dtype)
    new_var = var.to(own.var.dtype)
    finite = torch.isfinite(new_mean) & torch.isfinite(new_var)
    if own.counts is None:
        return Moved(Running(new_mean, new_var, batches, None), None, finite)
    if own.counts.dtype != table.dtype:
        raise ValueError(
            f"batch_norm: running_count must be {str(table.dtype).removeprefix('torch.')}, with a value for each "
            "channel: a narrower dtype loses counts; set keep_count to False and to True again"
        )
    rest = 1 - correction
    gap = a * (m2 / (count * (count - 1))) + (1 - a) * (old / (own.counts - rest))
    new_count = torch.where(gap == 0, torch.inf, var / gap + rest).to(own.counts.dtype)
    return Moved(Running(new_mean, new_var, batches, new_count), gap, finite & torch.isfinite(gap))


def check(who: str, own: Running, table: Tensor, momentum: float | None, correction: int) -> None:
    """Refuse counts that nothing can be moved by; looks at values."""
    batches = int(own.batches)
    if batches == _MOST_BATCHES or (momentum is None and batches < 0):
        raise ValueError(
            f"{who}: num_batches_tracked must count from 0 to 2**63 - 2; got {batches}. Set it, "
            "layer.num_batches_tracked.zero_()"
        )
    count, least = table[0], correction if own.counts is None else 1
    if not bool((count > least).all()):
        kept = own.counts is not None
        what = "running_count (keep_count=True)" if kept else f"running_var is M2 / (count - {least}), which"
        raise ValueError(
            f"{who}: {what} needs a sample_weight whose sum is more than {least}; got a sum of {float(count.min()):g}. "
            "Scale it (only their ratios matter for the output)" + ("" if kept else ", or use running_correction=0")
        )


def not_finite(table: Tensor, to: Moved) -> str:
    """Which channel of a batch is refused with on_nonfinite="raise", and what would have been stored."""
    c = int((~to.finite).nonzero()[0])
    count, mean, _, m2 = (float(row[c]) for row in table)
    new_mean, new_var = float(to.running.mean[c]), float(to.running.var[c])
    other = to.gap is None or math.isfinite(to.gap[c])
    return (
        f"channel {c} of the batch has mean {mean:g} and variance {m2 / count:g}; as "
        f"{str(to.running.var.dtype).removeprefix('torch.')}, running_mean would be {new_mean:g} and running_var "
        f"{new_var:g}{'' if other else ', and the other variance not finite'}; running statistics are left as they "
        "were (on_nonfinite='raise')"
    )
