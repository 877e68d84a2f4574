"""Parts of a batch normalized with the statistics of all of it, wherever the parts are.

An `Exchange` says what "all of it" is: it makes one table of moments, and one of the backward's sums, of those of the
parts at hand: of the micro-batches of one process (`Here`), or of the ranks of a process group (`sync.Ranks`). All else
is the same: gather moments, normalize; gather sums, differentiate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from . import _activations, _operations, _plain, _positions
from ._backend import is_native

Tensor = torch.Tensor


class Exchange(Protocol):
    """What the parts at hand are parts of."""

    ghost_size: int  # samples that have moments and sums of their own; 0: a part as a whole

    def constants(self, x: Tensor) -> list[Part]:
        """What belongs to the whole without being a part at hand, as parts whose moments are those; for derivatives."""

    def sums(self, parts: list[Tensor]) -> Tensor:
        """Of the backward's sums of the parts at hand, those of the whole."""

    def own_sums(self, parts: list[Tensor]) -> Tensor:
        """Those that are this process's gradients of weight and bias."""

    def total(self, parts: list[Tensor]) -> Tensor:
        """Differentiable sum of a value of each part over the whole; for higher derivatives."""


def merged(parts: Tensor) -> Tensor:
    """Moments (4, G, C) or sums (2, G, C) of parts as those of the whole."""
    if is_native(parts) and parts.numel():
        whole: Tensor = _operations.merge(parts.contiguous())
        return whole
    return _plain.merge(parts)


class Here:
    """The parts at hand are all there are."""

    ghost_size = 0

    def constants(self, x: Tensor) -> list[Part]:
        """Nothing."""
        return []

    def moments(self, parts: list[Tensor]) -> Tensor:
        """Merge the moments of the parts."""
        return merged(torch.stack(parts, 1))

    def sums(self, parts: list[Tensor]) -> Tensor:
        """Add the sums of the parts."""
        return merged(torch.stack(parts, 1))

    own_sums = sums

    def total(self, parts: list[Tensor]) -> Tensor:
        """Add a value of each part."""
        return torch.stack(parts).sum(0)


class Part(NamedTuple):
    """What is normalized, which of its positions count, and what is added before the activation."""

    x: Tensor
    position_weight: Tensor | None
    residual: Tensor | None


class _Saved(NamedTuple):
    """What a backward needs of a part: y in place of the residual where it tells the activation's derivative."""

    x: Tensor
    position_weight: Tensor | None
    residual: Tensor | None
    y: Tensor | None


class Options(NamedTuple):
    """Options, in schema order."""

    eps: float
    activation: int
    slope: float


def gather(part: Part, ghost_size: int = 0) -> Tensor:
    """Moments of the positions of a part that count, (4, C) or (4, G, C); zeros of those of none."""
    x = part.x.detach()
    if x.numel() == 0:
        shape = (4, 0, x.shape[1]) if ghost_size else (4, x.shape[1])
        return x.new_zeros(shape, dtype=_plain.table_dtype(x))
    if is_native(x):
        table: Tensor = _operations.moments(x, part.position_weight, ghost_size)
        return table
    _positions.check(x, part.position_weight, ghost_size, 0)
    return _plain.moments(x, part.position_weight, ghost_size)


def normalize(
    exchange: Exchange,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    parts: Sequence[Part],
    options: Options,
) -> list[Tensor]:
    """y of each part, with the moments of the whole, which depend on x: gradients flow through them."""
    given = [t for part in parts for t in part]
    return list(_Normalize.apply(exchange, options, moments, weight, bias, *given))


class _Prior(Here):
    """Some positions, of which running statistics tell the moments, are parts, too."""

    def __init__(self, positions: float, mean: Tensor, var: Tensor) -> None:
        self.positions, self.mean, self.var = positions, mean, var

    def table(self) -> Tensor:
        """Their moments."""
        mean, var = self.mean.double(), self.var.double()
        return torch.stack([torch.full_like(mean, self.positions), mean, torch.zeros_like(mean), var * self.positions])

    def constants(self, x: Tensor) -> list[Part]:
        """Two samples that have these moments."""
        spread = self.var.sqrt()
        shape = (2, -1, *[1] * (x.dim() - 2))
        samples = torch.stack([self.mean - spread, self.mean + spread]).to(x.dtype).reshape(shape)
        return [Part(samples, torch.full((2, *[1] * (x.dim() - 1)), self.positions / 2, dtype=torch.float64), None)]


def with_prior(
    part: Part, prior: float, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options
) -> Tensor:
    """y of a batch, with its moments and those of `prior` positions that have running statistics."""
    if not is_native(part.x) or torch.compiler.is_compiling():
        return _with_prior(part, prior, mean, var, weight, bias, options)
    known = _Prior(prior, mean.detach(), var.detach())
    whole = merged(torch.stack([known.table(), gather(part)], 1))
    return normalize(known, whole, weight, bias, [part], options)[0]


def _with_prior(
    part: Part, prior: float, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options
) -> Tensor:
    """The same in PyTorch's operations, which differentiate it by themselves."""
    x, position_weight, residual = part
    if position_weight is not None:
        _positions.check(x, position_weight, 0, 0)
    count, own_mean, own_var = _plain.mean_and_variance(x, position_weight)
    mean, var = mean.to(own_mean.dtype), var.to(own_var.dtype)
    delta, excess = (torch.where(count > 0, own - known, 0.0) for own, known in ((own_mean, mean), (own_var, var)))
    fraction = count / (count + prior)
    merged_var = var + fraction * (excess + (1 - fraction) * delta * delta)
    return _plain.standardize(x, mean + fraction * delta, merged_var, weight, bias, residual, *options)


def _saved(part: Part, y: Tensor, options: Options) -> _Saved:
    x, position_weight, residual = part
    if residual is not None and _activations.keeps_y(x.dtype, options.activation, options.slope):
        return _Saved(x, position_weight, None, y)
    return _Saved(x, position_weight, residual, None)


def _all_saved(given: Sequence[Any]) -> list[_Saved]:
    return [_Saved(*given[i : i + 4]) for i in range(0, len(given), 4)]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, exchange: Exchange, options: Options, moments: Tensor, weight: Tensor | None, bias: Tensor | None,
        *given: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.exchange, ctx.options = exchange, options
        parts = [Part(*given[i : i + 3]) for i in range(0, len(given), 3)]  # type: ignore[arg-type]
        ys = tuple(_normalize(part, moments, weight, bias, options) for part in parts)
        saved = [t for part, y in zip(parts, ys, strict=True) for t in _saved(part, y, options)]
        ctx.save_for_backward(moments, weight, bias, *saved)
        return ys

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        moments, weight, bias, *saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        by = _Gradients.apply(ctx.exchange, ctx.options, wanted, moments, weight, bias, len(grads), *grads, *saved)
        return (None, None, None, *(g if w else None for g, w in zip(by, wanted, strict=True)))


class _Gradients(torch.autograd.Function):
    """Gradients by weight, bias, and each part's x, weights (there are none) and residual."""

    @staticmethod
    def forward(
        ctx: Any, exchange: Exchange, options: Options, wanted: tuple[bool, ...], moments: Tensor,
        weight: Tensor | None, bias: Tensor | None, n: int, *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        grads, parts = [t for t in tensors[:n] if t is not None], _all_saved(tensors[n:])
        ctx.set_materialize_grads(False)
        ctx.exchange, ctx.options, ctx.n = exchange, options, n
        ctx.save_for_backward(moments, weight, bias, *tensors)
        own = [
            _sums(g, part, moments, weight, bias, options, exchange.ghost_size)
            for g, part in zip(grads, parts, strict=True)
        ]
        by_weight, by_bias = exchange.own_sums(own)
        found: list[Tensor | None] = [
            None if parameter is None else by.to(parameter.dtype, copy=True)
            for parameter, by in ((weight, by_weight), (bias, by_bias))
        ]
        of_inputs = any(wanted[2:])  # by x; or by a residual, in the same pass
        sums = exchange.sums(own) if of_inputs else None
        for g, part in zip(grads, parts, strict=True):
            by_x, by_residual = (None, None) if sums is None else _inputs(g, part, moments, sums, weight, bias, options)
            found += [by_x, None, by_residual]
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *second: Tensor | None) -> tuple[Any, ...]:
        moments, weight, bias, *tensors = ctx.saved_tensors
        grads, parts = tensors[: ctx.n], _all_saved(tensors[ctx.n :])
        with torch.enable_grad():
            found = _differentiate_again(ctx.exchange, ctx.options, moments, weight, bias, grads, parts, second)
        needed, own = ctx.needs_input_grad[4:], 2 + ctx.n  # before those of parts
        by_parts = [t for i in range(own, len(found), 3) for t in (*found[i : i + 3], None)]  # none by y
        given = [*found[:2], None, *found[2:own], *by_parts]
        return (None, None, None, None, *(g if w else None for g, w in zip(given, needed, strict=True)))


def _normalize(part: Part, moments: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options) -> Tensor:
    x, _, residual = part
    if x.numel() == 0:
        return torch.empty_like(x)
    if is_native(x):
        y: Tensor = _operations.forward(x, weight, bias, None, None, None, residual, *options, moments)[0]
        return y
    return _plain.normalize(x, moments, weight, bias, residual, *options)


def _sums(
    grad: Tensor,
    part: _Saved,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    options: Options,
    ghost_size: int,
) -> Tensor:
    x, _, residual, y = part
    if x.numel() == 0:
        return moments.new_zeros((2, 0, x.shape[1]) if ghost_size else (2, x.shape[1]))
    if is_native(x):
        sums: Tensor = _operations.sums(grad.to(x.dtype), x, moments, weight, bias, residual, *options, ghost_size, y)
        return sums
    return _plain.sums(grad, x, moments, weight, bias, residual, *options, ghost_size, y)


def _inputs(
    grad: Tensor,
    part: _Saved,
    moments: Tensor,
    sums: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    x, position_weight, residual, y = part
    if x.numel() == 0:
        by_x, by_residual = torch.zeros_like(x), torch.zeros_like(x)
    else:
        arguments = (grad.to(x.dtype), x, moments, sums, weight, bias, position_weight, residual, *options, y)
        native = is_native(x)
        by_x, by_residual = (_operations if native else _plain).input_gradients(*arguments)
    return by_x, None if residual is None and y is None else by_residual


def _differentiate_again(
    exchange: Exchange, options: Options, moments: Tensor, weight: Tensor | None, bias: Tensor | None,
    grads: list[Tensor], parts: list[_Saved], second: Sequence[Tensor | None],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients by weight, bias, grads and parts: the forward in plain operations, differentiated twice."""
    w, b = (None if t is None else _operations.leaf(t) for t in (weight, bias))
    leaves = [Part(_operations.leaf(p.x), p.position_weight, _leaf_of_residual(p)) for p in parts]
    upon = [_operations.leaf(g) for g in grads]
    mean, var = _moments_of_whole(exchange, moments, leaves)
    ys, by_ys = [], []
    for p, y, g in zip(leaves, (part.y for part in parts), upon, strict=True):
        upto = options if y is None else options._replace(activation=0)
        ys.append(_plain.standardize(p.x, mean, var, w, b, p.residual, *upto))
        by_ys.append(g if y is None else _plain.before_activation(g, y, options.activation, options.slope))
    by: list[Tensor | None] = [w, b, *(t for p in leaves for t in (p.x, None, p.residual))]
    known = [t for t in by if t is not None]
    first = torch.autograd.grad(ys, known, by_ys, create_graph=True, materialize_grads=True)
    pairs = [
        (f, g.to(f.dtype))
        for f, g in zip(first, (g for t, g in zip(by, second, strict=True) if t is not None), strict=True)
        if g is not None and f.requires_grad
    ]
    if not pairs:
        return [None] * (len(by) + len(upon))
    found = torch.autograd.grad(
        [f for f, _ in pairs], [*known, *upon], [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    of = iter(found)
    by_parameters_and_parts = [None if t is None else next(of) for t in by]
    return [*by_parameters_and_parts[:2], *of, *by_parameters_and_parts[2:]]


def _leaf_of_residual(part: _Saved) -> Tensor | None:
    """Of y where that stands for the residual: what is differentiated is linear in it then, so any value will do."""
    residual = part.residual if part.y is None else part.y.detach()
    return None if residual is None else _operations.leaf(residual)


def _moments_of_whole(exchange: Exchange, moments: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance as functions of x: their values are in the table, but not their derivatives."""
    parts = [*parts, *exchange.constants(parts[0].x)]
    dtype = _plain.compute_dtype(parts[0].x)
    count = moments[0].to(dtype)
    mean = exchange.total([_sum(p, lambda x: x) for p in parts]) / count
    deviation = exchange.total([_sum(p, lambda x: (x - _plain.over_channels(mean, x)).square()) for p in parts])
    return mean, deviation / count


def _sum(part: Part, of: Any) -> Tensor:
    x = part.x.to(_plain.compute_dtype(part.x))
    over = [d for d in range(x.dim()) if d != 1]
    if part.position_weight is None:
        return of(x).sum(over)  # type: ignore[no-any-return]
    w = part.position_weight.to(x.dtype).expand_as(x)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return (w * of(torch.where(w > 0, x, zero))).sum(over)  # type: ignore[no-any-return]
