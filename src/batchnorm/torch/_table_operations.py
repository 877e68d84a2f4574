"""Our operations on tables of statistics: `batchnorm::moments`, `sums`, `input_gradients` and `merge`.

The two halves of a forward and of a backward, for statistics that are merged with others in between: parts of a batch,
ranks, renormalization. They have no derivatives; who uses them knows what they are part of (`_shared.py`).
"""

from __future__ import annotations

import torch

from . import _operations

Tensor = torch.Tensor

_define = _operations.LIBRARY.define
_TAGS = _operations.TAGS

# `group` is a number of samples: each group of so many has a row of its own, (4, G, C). 0: (4, C).
_define("moments(Tensor x, Tensor? weights, int group=0) -> Tensor", tags=_TAGS)
# Of g·xhat and of g, where g is the gradient before the activation: (2, C) or (2, G, C). y, here and below, stands for
# the residual as it does in `backward`.
_define(
    "sums(Tensor grad_y, Tensor x, Tensor stats, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "int activation, float slope, int group=0, Tensor? y=None) -> Tensor",
    tags=_TAGS,
)
# By x, and by the residual (empty where there is none), with the sums of a batch that x is a part of.
_define(
    "input_gradients(Tensor grad_y, Tensor x, Tensor stats, Tensor sums, Tensor? weight, Tensor? bias, "
    "Tensor? weights, Tensor? residual, float eps, int activation, float slope, Tensor? y=None) -> (Tensor, Tensor)",
    tags=_TAGS,
)
# Up the canonical tree: moments (4, G, C) to (4, C), sums (2, G, C) to (2, C).
_define("merge(Tensor parts) -> Tensor", tags=_TAGS)

_operations.refuse_elsewhere("moments", "sums", "input_gradients", "merge")

moments = torch.ops.batchnorm.moments.default
sums = torch.ops.batchnorm.sums.default
input_gradients = torch.ops.batchnorm.input_gradients.default
merge = torch.ops.batchnorm.merge.default


@_operations.fake("moments")
def _(x: Tensor, weights: Tensor | None, group: int = 0) -> Tensor:
    return _operations.fake_table(x, 4, group)


@_operations.fake("sums")
def _(grad_y: Tensor, x: Tensor, *rest: object, group: int = 0, y: Tensor | None = None) -> Tensor:
    given = rest[7] if len(rest) > 7 else group
    assert isinstance(given, (int, torch.SymInt))
    return _operations.fake_table(x, 2, given)


@_operations.fake("input_gradients")
def _(grad_y: Tensor, x: Tensor, *rest: object, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given = [t for t in (rest[5], *rest[9:], y) if t is not None]  # the residual, or y
    return torch.empty_like(x), torch.empty_like(x) if given else x.new_empty(0)


@_operations.fake("merge")
def _(parts: Tensor) -> Tensor:
    return parts.new_empty(parts.shape[0], parts.shape[2])
