"""Our operations in PyTorch's dispatcher: schemas, shapes and derivatives. Their CPU kernels are C++ (cpp/libtorch).

They take and return tensors only, so that autograd, torch.compile, autocast and fake tensors treat them as they treat
PyTorch's own. `moments`, `sums`, `input_gradients` and `merge` are the halves of a forward and of a backward, for
statistics that are merged with others in between: parts of a batch, ranks, renormalization. They have no derivatives:
who uses them knows what they are part of (`_shared.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from .. import _native
from . import _activations, _backend, _operands, _plain

Tensor = torch.Tensor

LIBRARY = torch.library.Library("batchnorm", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

# With running_mean and running_var: evaluation. `position_weight` is bool or float and broadcasts to x, with one
# channel. The second result is a (4, C) float64 table: count, mean, what rounding the mean left out, M2.
# `moments` is such a table, known before: nothing is gathered, and derivatives are those of x's own moments. With a
# `ghost_size`, every so many samples are normalized by themselves: tables are (4, G, C), weight and bias may be (G, C).
LIBRARY.define(
    "forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
    "Tensor? position_weight, Tensor? residual, float eps, int activation, float slope, Tensor? moments=None, "
    "int ghost_size=0) -> (Tensor, Tensor)",
    tags=_TAGS,
)
# Gradients by x, weight, bias and residual; the last is empty where there is no residual. `y`, what came out,
# may stand for a residual where it tells the derivative of the activation: see `_activations.is_told_by_y`.
LIBRARY.define(
    "backward(Tensor grad_y, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, Tensor? position_weight, "
    "Tensor? residual, float eps, int activation, float slope, bool training, int ghost_size=0, Tensor? y=None) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
# `backward` without residual, activation or derivatives: that of a step under autograd's own node, see `step`. Weight
# may be undefined; `wanted` has a bit for each result, and others are undefined.
LIBRARY.define(
    "step_backward(Tensor grad_y, Tensor x, Tensor moments, Tensor weight, float eps, bool training, int wanted) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
# `backward` of an evaluation whose weight and bias need no gradients: by x and by the residual (empty where there is
# none), without x, which it does not depend on but by the activation; that is told by y.
LIBRARY.define(
    "frozen_gradients(Tensor grad_y, Tensor moments, Tensor? weight, float eps, int activation, float slope, "
    "Tensor? y=None, bool residual=False) -> (Tensor, Tensor)",
    tags=_TAGS,
)
LIBRARY.define(
    "update_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) num_batches_tracked, Tensor moments, "
    "float? momentum, int correction, int on_nonfinite, Tensor(d!)? running_count=None) -> ()",
    tags=_TAGS,
)
# The table of `forward`; each ghost of so many samples has a row of its own, (4, G, C).
LIBRARY.define("moments(Tensor x, Tensor? position_weight, int ghost_size=0) -> Tensor", tags=_TAGS)
# Of g·xhat and of g, where g is the gradient before the activation: (2, C) or (2, G, C).
LIBRARY.define(
    "sums(Tensor grad_y, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "int activation, float slope, int ghost_size=0, Tensor? y=None) -> Tensor",
    tags=_TAGS,
)
# By x, and by the residual (empty where there is none), with the sums of a batch that x is a part of.
LIBRARY.define(
    "input_gradients(Tensor grad_y, Tensor x, Tensor moments, Tensor sums, Tensor? weight, Tensor? bias, "
    "Tensor? position_weight, Tensor? residual, float eps, int activation, float slope, Tensor? y=None) "
    "-> (Tensor, Tensor)",
    tags=_TAGS,
)
# Up the canonical tree: moments (4, G, C) to (4, C), sums (2, G, C) to (2, C).
LIBRARY.define("merge(Tensor parts) -> Tensor", tags=_TAGS)
# A copy that torch.compile does not make again: see `as_they_are`.
LIBRARY.define("snapshot(Tensor t) -> Tensor", tags=_TAGS)
LIBRARY.impl("snapshot", torch.clone, "CompositeExplicitAutograd")
LIBRARY.impl("step_backward", torch.library.fallthrough_kernel, "Autograd")
_native.torch.add_ours()


def _refuse_devices(*args: Any, **kwargs: Any) -> Any:
    """Say what is wrong where the dispatcher would say that there is no kernel of ours."""
    _operands.check_apart(*args, **kwargs)
    raise ValueError(
        f"batch_norm: torch.ops.batchnorm computes on the CPU; got tensors on {args[0].device}, for which the modules "
        "and batchnorm.torch.functional call PyTorch's own operations"
    )


for _name in (
    "forward", "backward", "step_backward", "frozen_gradients", "moments", "sums", "input_gradients", "merge",
    "update_",
):  # fmt: skip
    for _key in ("CUDA", "XPU", "MPS", "HPU", "PrivateUse1"):
        LIBRARY.impl(_name, _refuse_devices, _key)


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the shapes that an operation returns, for meta and fake tensors, which have no values.

    One tensor without values among others that have some comes here, too: it is refused.
    """

    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(shapes)
        def checked(*args: Any, **kwargs: Any) -> Any:
            _operands.check_apart(*args, **kwargs)
            return shapes(*args, **kwargs)

        torch.library.register_fake(f"batchnorm::{name}", checked, lib=LIBRARY)
        return checked

    return register


_forward = torch.ops.batchnorm.forward.default
backward = torch.ops.batchnorm.backward.default
_frozen_gradients = torch.ops.batchnorm.frozen_gradients.default
moments = torch.ops.batchnorm.moments.default
sums = torch.ops.batchnorm.sums.default
input_gradients = torch.ops.batchnorm.input_gradients.default
merge = torch.ops.batchnorm.merge.default
update_ = torch.ops.batchnorm.update_.default


def _fake_table(x: Tensor, rows: int, ghost_size: Any) -> Tensor:
    """A table of statistics of x, without values."""
    ghosts = (-(-x.shape[0] // ghost_size),) if ghost_size else ()
    return x.new_empty((rows, *ghosts, x.shape[1]), dtype=torch.float64)


def _with_defaults(inputs: tuple[Any, ...], defaults: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """All n arguments of an operation, where the last may have been left out."""
    missing = n - len(inputs)
    return inputs + defaults[len(defaults) - missing :]


@_fake("forward")
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_table(x, 4, rest[10] if len(rest) > 10 else 0)


@_fake("backward")
def _(
    grad_y: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None,
    position_weight: Tensor | None, residual: Tensor | None, *rest: object,
) -> tuple[Tensor, ...]:  # fmt: skip
    _, y = _with_defaults(rest, (0, None), 6)[-2:]
    by_weight, by_bias = (
        x.new_empty(x.shape[1], dtype=torch.float64) if p is None else p.new_empty(p.shape) for p in (weight, bias)
    )
    by_residual = x.new_empty(0) if residual is None and y is None else torch.empty_like(x)
    return torch.empty_like(x), by_weight, by_bias, by_residual


@_fake("step_backward")
def _(grad_y: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, *rest: object) -> tuple[Tensor, ...]:
    dtype = torch.float64 if weight is None else weight.dtype
    return torch.empty_like(x), x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


@_fake("frozen_gradients")
def _(grad_y: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_y), torch.empty_like(grad_y) if rest[6:7] == (True,) else grad_y.new_empty(0)


@_fake("moments")
def _(x: Tensor, position_weight: Tensor | None, ghost_size: int = 0) -> Tensor:
    return _fake_table(x, 4, ghost_size)


@_fake("sums")
def _(grad_y: Tensor, x: Tensor, *rest: object, ghost_size: int = 0, y: Tensor | None = None) -> Tensor:
    return _fake_table(x, 2, rest[7] if len(rest) > 7 else ghost_size)


@_fake("input_gradients")
def _(grad_y: Tensor, x: Tensor, *rest: object, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given = [t for t in (rest[5], *rest[9:], y) if t is not None]  # the residual, or y
    return torch.empty_like(x), torch.empty_like(x) if given else x.new_empty(0)


@_fake("merge")
def _(parts: Tensor) -> Tensor:
    return parts.new_empty(parts.shape[0], parts.shape[2])


@_fake("update_")
def _(*_: object) -> None:
    return None


@_fake("snapshot")
def _(t: Tensor) -> Tensor:
    return torch.empty_like(t)


def as_they_are(statistics: Tensor) -> Tensor:
    """Running statistics before this call moves them, for a compiled backward, too.

    Such a backward computes cheap parts of the forward again, from buffers that have been written to meanwhile: its
    gradients would be wrong without a word (PyTorch 2.11 and 2.13). What our operations return it keeps.
    """
    if not torch.compiler.is_compiling() or _backend.is_exporting():
        return statistics
    found: Tensor = torch.ops.batchnorm.snapshot.default(statistics)
    return found


def _kernel(operation: Any, *args: Any) -> Any:
    """Call the operation's kernel, where nothing above it in the dispatcher has anything to do."""
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*args)


def _save(
    ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, rest: tuple[Any, ...],
    output: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    running_mean, _, position_weight, eps, activation, slope, _, ghost_size = rest
    y, moments = output
    ctx.mark_non_differentiable(moments)
    ctx.set_materialize_grads(False)
    ctx.frozen = running_mean is not None and _needs_no_x(ctx, x.dtype, activation, slope)
    if ctx.frozen:  # nothing of x's size is kept; y the next layer keeps, too
        ctx.known = (eps, activation, slope), residual is not None, y.stride()
        ctx.save_for_backward(moments, weight, y if activation else None)
        return
    ctx.known = (eps, activation, slope, running_mean is None, ghost_size), residual is not None
    saved: tuple[Tensor | None, Tensor | None] = (residual, None)
    if residual is None or activation == 0:  # what the activation was applied to: x tells it, or nobody asks
        saved = (None, None)
    elif _activations.keeps_y(x.dtype, activation, slope):  # the next layer often keeps y, too
        saved = (None, y)
    ctx.save_for_backward(x, moments, weight, bias, position_weight, *saved)


def _needs_no_x(ctx: Any, dtype: torch.dtype, activation: int, slope: float) -> bool:
    """Whether the gradients of an evaluation do without x: those of weight and bias nobody asks for."""
    asked: bool = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    return not asked and (activation == 0 or _activations.is_enough_when_frozen(dtype, activation, slope))


def _gradients_without_x(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, Tensor]:
    """In memory they lie as x did, whatever grad_y does."""
    moments, weight, y = ctx.saved_tensors
    options, has_residual, strides = ctx.known
    g = grad_y
    if not _lies_as(g, strides):
        g = torch.empty_strided(g.shape, strides, dtype=g.dtype, device=g.device).copy_(g)
    by_x, by_residual = frozen_gradients(g, moments, weight, *options, y, has_residual and y is not None)
    return by_x, None, None, grad_y if y is None else by_residual


def _lies_as(t: Tensor, strides: tuple[int, ...]) -> bool:
    own = t.stride()
    return own == strides or all(n == 1 or a == b for n, a, b in zip(t.shape, own, strides, strict=True))


def frozen_gradients(*args: Any) -> tuple[Tensor, Tensor]:
    """Call `batchnorm::frozen_gradients`, the short way where nobody differentiates it."""
    differentiable = torch.is_grad_enabled() or torch.compiler.is_compiling()
    found: tuple[Tensor, Tensor] = _frozen_gradients(*args) if differentiable else _kernel(_frozen_gradients, *args)
    return found


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """By x, weight, bias and residual, wanted or not."""
    if ctx.frozen:
        return _gradients_without_x(ctx, grad_y)
    x, moments, weight, bias, position_weight, residual, y = ctx.saved_tensors
    options, has_residual = ctx.known
    arguments = (grad_y, x, moments, weight, bias, position_weight, residual, *options, y)
    differentiable = torch.is_grad_enabled() or torch.compiler.is_compiling()
    by_x, by_weight, by_bias, by_residual = backward(*arguments) if differentiable else _kernel(backward, *arguments)
    if has_residual and residual is None and y is None:
        by_residual = grad_y
    return by_x, by_weight, by_bias, by_residual


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, mean, var, position_weight, residual, *options = _with_defaults(inputs, (None, 0), 12)
    _save(ctx, x, weight, bias, residual, (mean, var, position_weight, *options), output)


def _forward_backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if grad_y is None:
        return (None,) * len(needs)
    by = dict(zip((0, 1, 2, 6), _gradients(ctx, grad_y), strict=True))
    return tuple(by.get(i) if needed else None for i, needed in enumerate(needs))


torch.library.register_autograd("batchnorm::forward", _forward_backward, setup_context=_save_forward, lib=LIBRARY)


class _Forward(torch.autograd.Function):
    """`batchnorm::forward` and its derivative, without the layers that the dispatcher puts around one in Python.

    What has no gradient comes as one argument: each extra argument costs time on small inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = _kernel(_forward, x, weight, bias, *rest[:3], residual, *rest[3:])
        _save(ctx, x, weight, bias, residual, rest, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 5
        by_x, by_weight, by_bias, by_residual = _gradients(ctx, grad_y)
        x, weight, bias, residual, _ = ctx.needs_input_grad
        return (
            by_x if x else None, by_weight if weight else None, by_bias if bias else None,
            by_residual if residual else None, None,
        )  # fmt: skip


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    position_weight: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float,
    moments: Tensor | None = None, ghost_size: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Call `batchnorm::forward`; outside of compilers by the shorter way."""
    rest = (running_mean, running_var, position_weight, eps, activation, slope, moments, ghost_size)
    if torch.compiler.is_compiling():
        return _forward(x, weight, bias, *rest[:3], residual, *rest[3:])  # type: ignore[no-any-return]
    return _Forward.apply(x, weight, bias, residual, rest)  # type: ignore[no-any-return]


_OURS = math.nan  # as a momentum
_is_grad_enabled = torch.is_grad_enabled
_no_update: Any = torch.ops.aten._batch_norm_no_update.default._op  # without the layer in Python


def step(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """`forward` of a call that is alone (`_backend.is_alone`), by the shortest way there is; None where that is closed.

    Without derivatives the kernel is called as it is; else under autograd's own node, which needs no Python. What that
    saves and calls is ours alone: whoever listens or records gets our operations. It may save running statistics, which
    it does not read; they may be written to.
    """
    trains = False
    for p in (weight, bias):
        if p is not None:
            if not _backend.is_plain(p):
                return None
            trains = trains or p.requires_grad
    if not _is_grad_enabled() or not (trains or x.requires_grad):
        found = _native.torch.step(x, weight, bias, running_mean, running_var, eps)
        return None if found is None else (found[0], found[1])
    if running_mean is not None and running_var is not None:
        if not (trains and _backend.is_plain(running_mean) and _backend.is_plain(running_var)):
            return None  # without `trains`, because `forward` does not keep x
        running_mean, running_var = running_mean.data, running_var.data
    y, _, _, table = _no_update(x, weight, bias, running_mean, running_var, _OURS, eps)
    return None if y is None else (y, table)


def step_backward_of_record(
    grad_y: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, _var: object, _mean: object,
    _invstd: object, _update: object, eps: float, _wanted: object, moments: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The backward of a step while a graph of it is made, with the derivatives of ours.

    The weight stands for the bias, too: without an activation no gradient depends on the bias.
    """
    return backward(grad_y, x, moments, weight, weight, None, None, eps, 0, 0.0, running_mean is None)[:3]  # type: ignore[no-any-return]


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, eps, activation, slope, training, ghost_size, y = _with_defaults(inputs, (0, None), 13)
    ctx.set_materialize_grads(False)
    ctx.options, ctx.training, ctx.ghost_size = (eps, activation, slope), training, ghost_size
    ctx.save_for_backward(*tensors, y)


def _backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the backward: the forward in PyTorch's operations, differentiated once and then once more."""
    grad_y, x, moments, weight, bias, position_weight, residual, out = ctx.saved_tensors
    eps, activation, slope = ctx.options
    if out is not None:  # the value of what was added is not needed: what is differentiated is linear in it
        residual = out.detach()
    with torch.enable_grad():
        leaves = {name: leaf(t) for name, t in (("grad_y", grad_y), ("x", x), ("weight", weight), ("bias", bias),
                                                 ("residual", residual)) if t is not None}  # fmt: skip
        upon = leaves["grad_y"]
        if out is not None:
            upon, activation = _plain.before_activation(upon, out, activation, slope), 0
        mean, var = (None, None) if ctx.training else (moments[1], moments[3] / moments[0])
        y, _ = _plain.forward(
            leaves["x"], leaves.get("weight"), leaves.get("bias"), mean, var, position_weight, leaves.get("residual"),
            eps, activation, slope, None, ctx.ghost_size,
        )  # fmt: skip
        by = [name for name in leaves if name != "grad_y"]
        first = torch.autograd.grad(y, [leaves[name] for name in by], upon, create_graph=True, materialize_grads=True)
        given = dict(zip(("x", "weight", "bias", "residual"), grads, strict=True))
        pairs = [
            (f, g) for name, f in zip(by, first, strict=True) if (g := given[name]) is not None and f.requires_grad
        ]
        if not pairs:
            return (None,) * len(ctx.needs_input_grad)
        second = torch.autograd.grad(
            [f for f, _ in pairs], list(leaves.values()), [g.to(f.dtype) for f, g in pairs],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
    found = dict(zip(leaves, second, strict=True))
    names = ("grad_y", "x", None, "weight", "bias", None, "residual", None, None, None, None, None, None)
    return tuple(
        found.get(name) if name and needed else None for name, needed in zip(names, ctx.needs_input_grad, strict=False)
    )


def _save_frozen(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, moments, weight, *options, y, _ = _with_defaults(inputs, (None, False), 8)
    ctx.set_materialize_grads(False)
    ctx.options = options
    ctx.save_for_backward(moments, weight, y)


def _frozen_backward(ctx: Any, by_x: Tensor | None, by_residual: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate by grad_y, in which all is linear."""
    moments, weight, y = ctx.saved_tensors
    found = None if by_x is None else frozen_gradients(by_x, moments, weight, *ctx.options, y)[0]
    if by_residual is not None:
        through = by_residual if y is None else _plain.before_activation(by_residual, y.detach(), *ctx.options[1:])
        found = through if found is None else found + through
    return (found, *[None] * (len(ctx.needs_input_grad) - 1))


def leaf(t: Tensor) -> Tensor:
    """A stand-in, so that gradients by x do not include what reaches it through grad_y, which depends on x.

    Where the tensor needs gradients it is a view: a third derivative finds the way.
    """
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


torch.library.register_autograd("batchnorm::backward", _backward_backward, setup_context=_save_backward, lib=LIBRARY)
torch.library.register_autograd(
    "batchnorm::frozen_gradients", _frozen_backward, setup_context=_save_frozen, lib=LIBRARY
)
