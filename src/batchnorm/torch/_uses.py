"""How a model uses its layers: in which mode, and how often in a batch; what is wrong with that."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .._findings import Finding, finding
from .._records import Doubles, LayerRecord
from ._causes import typical, typical_factor
from ._diagnosis import DISTANCE, FACTOR
from ._norms import Norm


class Seen(NamedTuple):
    """What a layer got: the moments of every call, (4, calls, C), and the batch that each call belongs to."""

    moments: torch.Tensor
    batches: list[int]


def left_in_training(model: nn.Module, norms: list[Norm]) -> list[tuple[float, Finding]]:
    """Layers that normalize with the batch while the model evaluates."""
    if model.training:
        return []
    depends = [norm for norm in norms if getattr(norm.layer, "normalize_with", "auto") == "auto"]
    return [(math.inf, finding("left in training", str(norm), {})) for norm in depends if norm.layer.training]


def of_calls(record: LayerRecord, seen: Seen, most: float) -> list[tuple[float, Finding]]:
    """Whether the calls of a batch differ by more than chance: by how much, `most` at most, and what to say."""
    calls = min(Counter(seen.batches).values())
    taken: dict[int, list[int]] = {}  # where the first calls of each batch stand
    for at, number in enumerate(seen.batches):
        its = taken.setdefault(number, [])
        if len(its) < calls:
            its.append(at)
    if calls < 2 or len(taken) < 2:
        return []
    count, mean, low, m2 = seen.moments.numpy()[:, np.array(list(taken.values())).T]  # each (calls, batches, C)
    with np.errstate(all="ignore"):
        var, mean = m2 / count + record.eps, mean + low
        logs, distances = np.log(var / var[0]), (mean - mean[0]) / np.sqrt(var.mean((0, 1)))
        sizes = np.maximum(_beyond_chance(logs) / math.log(FACTOR), _beyond_chance(distances) / DISTANCE)
    far = int(np.nan_to_num(sizes).argmax())
    if not sizes[far] >= 1:
        return []
    numbers = {
        "calls": calls,
        "call": far + 1,
        "factor": f"{typical_factor(np.exp(logs[far].mean(0))):.3g}",
        "distance": f"{typical(distances[far].mean(0)):.2g}",
    }
    return [(min(float(sizes[far]), most), finding("shared", record.name, numbers, is_remark=most == 0))]


def _beyond_chance(differences: Doubles) -> Doubles:
    """The size for each call of its differences, (calls, batches, C), less twice the standard error of their mean."""
    square = np.square(differences.mean(1)) - 4 * differences.var(1, ddof=1) / differences.shape[1]
    size: Doubles = np.sqrt(square.mean(-1).clip(0))
    return size
