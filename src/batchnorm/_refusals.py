"""Sentences that refuse what several parts refuse: functions on arrays, layers of both front ends, and C++.

Each returns what follows the name of who refuses: the rule, what came, the fix. C++ refuses by a rule's name and
numbers, and `of_native` says the sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

KNOWN_MOMENTS = "normalize with known moments: running statistics, in evaluation"


def too_few(
    positions: int, counted: bool, where: str = "", fix: str = KNOWN_MOMENTS, ghost: tuple[int, int, int] | None = None
) -> str:
    """No value per channel, or one: there is no variance.

    `counted`: a mask or weights chose them; `where` says of which input. Of ghost batches: which, of how many, and the
    samples of each.
    """
    if ghost is not None:
        i, number, size = ghost
        return (
            f"every ghost batch needs at least two values per channel that count; ghost {i} of {number}{where} with "
            f"virtual_batch_size={size} has {positions}, so its variance would be 0. Use another virtual_batch_size, "
            f"leave out the samples that remain, or {fix}"
        )
    if positions == 0 and not counted:
        return f"an empty batch has no statistics{where}; skip it, or {fix}"
    if positions == 0:
        return (
            f"mask and sample_weight select nothing: no position of any channel counts{where}; leave out batches that "
            "are padding alone"
        )
    return (
        f"one {'counted ' * counted}value per channel{where}, so its variance is 0 and the output would be the bias "
        f"alone. Use a batch of at least 2, drop the last incomplete batch, or {fix}"
    )


def mask_dtype(got: str) -> str:
    """A mask of another dtype than bool."""
    return f"mask must be bool (True: the position counts); got {got}; use mask != 0, or sample_weight= for fractions"


def weight_value(got: float, where: str = "") -> str:
    """A sample weight that is no weight."""
    return f"sample_weight must be finite and non-negative; got {got:g}{where}; use 0 for what does not count"


def positions(name: str, positions: tuple[int, ...], got: str, shape: tuple[int, ...], cells: str = "") -> str:
    """A mask or weights that do not broadcast to x; `cells`: what else its shape may be."""
    return (
        f"{name} says which positions count, for all channels alike: it must broadcast to the input without its "
        f"channel axes, shape {positions} (or have them as length one){cells}; got {got} for an input of shape {shape}"
    )


def batches(got: int, most: int, fix: str) -> str:
    """A count of batches that cannot count another one."""
    return f"num_batches_tracked must count from 0 to {most - 1}; got {got}. Set it, {fix}"


def sum_of_weights(got: float, least: int, keeps_count: bool) -> str:
    """A batch whose weights add up to too little for a variance."""
    what = "running_count (keep_count=True)" if keeps_count else f"running_var is M2 / (count - {least}), which"
    return (
        f"{what} needs more than {least} values of a channel, or a sample_weight whose sum is more than {least}; got a "
        f"sum of {got:g}. Use larger batches, or scale the weights (only their ratios matter for the output)"
        f"{', or use running_correction=0' if least and not keeps_count else ''}"
    )


def running_count(dtype: str = "float64") -> str:
    """A running_count of another dtype."""
    return (
        f"running_count must be {dtype}, with a value for each channel: a narrower dtype loses counts; set keep_count "
        "to False and to True again"
    )


def not_finite(channel: object, moments: tuple[float, float], dtype: str, new: tuple[float, float]) -> str:
    """A batch whose mean and variance would not leave the running ones finite, with on_nonfinite="raise"."""
    gap = ", and the other variance not finite" if all(map(math.isfinite, new)) else ""
    return (
        f"channel {channel} of the batch has mean {_plain(moments[0])} and variance {_plain(moments[1])}; as {dtype}, "
        f"running_mean would be {_plain(new[0])} and running_var {_plain(new[1])}{gap}; running statistics are left as "
        "they were (on_nonfinite='raise'). Look upstream, or use on_nonfinite='skip'"
    )


def _plain(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:g}"


def of_native(refused: str) -> str:
    """Say what C++ refused: a sentence of its own, or ``#rule`` and numbers."""
    if not refused.startswith("#"):
        return refused
    rule, *text = refused[1:].split()
    return _OF_NATIVE[rule](*(float(number) if set(number) - set("-0123456789") else int(number) for number in text))


NEW_COUNT = "layer.num_batches_tracked.zero_()"
_DTYPES = "float64", "float32", "float16", "bfloat16"  # by code of cpp/core/problem.h
_OF_NATIVE: dict[str, Callable[..., str]] = {
    "too_few": lambda count, *ghost: too_few(count, True, ghost=ghost if ghost[1] > 1 else None),
    "weight_value": weight_value,
    "batches": lambda got: batches(got, 2**63 - 1, NEW_COUNT),
    "sum_of_weights": sum_of_weights,
    "running_count": running_count,
    "not_finite": lambda channel, mean, var, dtype, *new: not_finite(channel, (mean, var), _DTYPES[dtype], new),
}
