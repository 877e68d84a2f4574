"""The options of our modules: those of `batchnorm._options`, and torch.nn's own with all that it trains with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .. import _options
from .._options import EXTRA, VIRTUAL_BATCH_SIZE, Option, by_name


def _real(accepts: Callable[[float], bool]) -> Callable[[Any], Any]:
    """A number that torch.nn takes: kept as it is where it is an int or a tensor."""

    def take(value: Any) -> Any:
        tensor = isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_floating_point()
        taken = _options.number(accepts)(value.item() if tensor else value)
        return value if tensor or isinstance(value, int) else taken

    return take


def _no_ghosts(value: Any) -> None:
    if VIRTUAL_BATCH_SIZE.take(value) is not None:
        raise ValueError


EPS = replace(
    _options.EPS,
    take=_real(lambda v: 0 <= v < math.inf),
    rule="must be finite and at least 0 (above 0 where a batch's statistics normalize)",
)
POSITIVE_EPS = replace(_options.EPS, take=_real(lambda v: 0 < v < math.inf))
MOMENTUM = replace(
    _options.MOMENTUM,
    take=_options.or_none(_real(math.isfinite)),
    rule=_options.MOMENTUM.rule.replace("from 0 to 1", "a finite number (a mean has 0 to 1)"),
)
REPRODUCIBLE = Option("reproducible", False, _options.flag, "must be True or False")
OF_SYNC = replace(
    VIRTUAL_BATCH_SIZE,
    take=_no_ghosts,
    rule="makes ghost batches, parts of one process's batch, which a synchronized layer does not look at by itself: it "
    "must be None",
    fix="use BatchNorm1d, 2d or 3d",
)

DEFAULTS = {option.name: option.default for option in EXTRA}
MODULE = by_name(EPS, MOMENTUM, *EXTRA)
SYNC = MODULE | by_name(OF_SYNC, REPRODUCIBLE)

# Of `recalibrate`.
HOW = Option(
    "how", "whole", _options._one_of(("whole", "pooled", "batches")),
    "says what the statistics are: 'whole' (of all data as one batch), 'pooled' (the moments of all batches, merged) "
    "or 'batches' (the mean over batches)",
    choices=("whole", "pooled", "batches"),
)  # fmt: skip
SAMPLES = Option(
    "samples",
    None,
    _options.or_none(_options._integer(1)),
    "is a number of samples, an int of at least 1, or None for all",
)
MAX_MEMORY = Option(
    "max_memory", None, _options.or_none(_options._integer(1)),
    "is a number of bytes, an int of at least 1, or None for half of what is free", "write 4 * 2**30 for 4 GiB",
)  # fmt: skip
ON_NONFINITE_BATCH = Option(
    "on_nonfinite", "raise", _options._one_of(("raise", "skip")),
    "says what NaN or infinity in a batch does: 'raise', or 'skip' (the batch is left out from that layer on)",
    choices=("raise", "skip"),
)  # fmt: skip
# Of `adapt`.
PRIOR = Option(
    "prior",
    math.inf,
    _options.number(lambda v: v >= 0),
    "is a number of positions, at least 0 (the batch alone), or math.inf (the running statistics alone)",
)
FREEZE = by_name(  # the switches, as `freeze` sets them
    replace(_options.NORMALIZE_WITH, default="running"),
    replace(_options.UPDATE_RUNNING_STATS, default=False),
    replace(_options.TRAIN_AFFINE, default=False),
)
