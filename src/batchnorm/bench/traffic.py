"""Bytes that an operation must move, at least: the floor that no kernel can go below."""

from __future__ import annotations

from typing import NamedTuple

from .problem import Problem


class Floor(NamedTuple):
    """Bytes of whole tensors read and written; the O(C) of parameters and statistics is not counted."""

    cached: int  # where what is read a second time comes from a cache
    streamed: int  # where it comes from memory


def floor(problem: Problem) -> Floor:
    """Count the tensors that must pass.

    An operation reads its inputs and writes its outputs. In training it needs a channel's statistics, or the two sums
    of the backward, before it can write anything of that channel; so it reads its inputs twice, except for the residual
    of a forward, which is in no statistic. The backward of an activation is computed again from the inputs.
    """
    does = problem.does
    if does.kind == "backward":
        inputs, outputs = 2 + does.adds, 1 + does.adds  # grad_y, x, residual; grad_x, grad_residual
        again = inputs
    else:
        inputs, outputs = 1 + does.adds, 1
        again = 1 if does.kind == "forward" else 0
    size = problem.tensor_bytes
    return Floor((inputs + outputs) * size, (inputs + outputs + again) * size)


def copied(problem: Problem) -> int:
    """Bytes of a copy of one tensor: read once, written once."""
    return 2 * problem.tensor_bytes
