"""`fuse`: a batch normalization and what follows it, in one pass over memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._contexts import check_outside
from .._convert import Model, convert, not_ours, reported
from .._norms import check_model, norms_of
from .._report import Left, Report
from .forward import FusedForward, fuse_layer, unfuse
from .patterns import Outcome, rewrite, skipped_identities
from .trace import Untraceable, trace


@overload
def fuse(model: Model, *, verbose: bool = ..., return_report: Literal[False] = ...) -> Model: ...


@overload
def fuse(model: Model, *, verbose: bool = ..., return_report: Literal[True]) -> tuple[Model, Report]: ...


def fuse(model: Model, *, verbose: bool = True, return_report: bool = False) -> Model | tuple[Model, Report]:
    """Return a model that computes the same, but adds and activates in the same pass as it normalizes.

    ``activation(batch_norm(x) + residual)``, with or without the residual and the activation, becomes one step, forward
    and backward, in training and in evaluation. Activations are ReLU, ReLU6, LeakyReLU, SiLU, GELU, Hardswish and ELU;
    they and the additions may be modules, functions, operators or tensor methods, in place or not. `torch.nn.Identity`
    may stand between them.

    The result is a copy of the model's modules that *shares its parameters and buffers*: training one trains the other.
    Classes, attributes, `state_dict` and the order of parameters are the same; all batch normalizations are converted
    (see `convert`). The model itself is left as it is.

    Parameters
    ----------
    model
        Any module. It is traced by torch.fx, which patches torch.nn.Module meanwhile: call `fuse` while no other thread
        runs a model. Modules in it that have hooks or cannot be traced are called as they are, and the modules in those
        are tried one by one.
    verbose
        Print what was fused, and what was left and why.
    return_report
        Return the fused model and a `Report`, which says the same.

    Returns
    -------
    torch.nn.Module
        The fused model, of the same class; printed, it says which layers and forwards are fused. With `return_report`:
        a tuple of it and the `Report`.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Notes
    -----
    Each module keeps the forward of its class and gets a fused one beside it, for calls that give tensors for the
    arguments it requires and nothing else. In other calls, and once a module inside has been replaced or has a hook,
    the forward of the class runs, and calls the fused ones of the modules inside. So every module of the result, called
    by itself, computes what it computed in the model given.

    `self.training` is read in each call. Other Python values that a forward reads (``self.drop_rate``, lists, globals,
    whether gradients are computed) are compared with what they were, in each call: where one differs, the forward of
    the class runs. A forward that draws random numbers, asks for the time, counts, prints, or calls what a trace cannot
    follow is left, and the report says what it does.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    >>> fused = bnt.fuse(model)
    fused 1 of 1 batch normalization
      layer 1 with relu
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]])
    >>> bool(torch.allclose(fused(x), model(x), atol=1e-6))
    True
    >>> fused[1].weight is model[1].weight
    True
    """
    check_model(model, "fuse")
    check_outside(norms_of(model), "fuse")
    fused = convert(_copy_with_same_tensors(model), verbose=False)
    return reported(fused, _report(_fuse_in_place(fused), fused), verbose, return_report)


class _Outcomes(NamedTuple):
    calls: dict[str, list[Outcome]]  # of each batch normalization, by name, in the outermost forward that fuses one
    untraced: list[Left]


def _copy_with_same_tensors(model: Model) -> Model:
    """A copy of the modules, however they refer to each other, with the very parameters, buffers and other tensors."""
    memo: dict[int, object] = {}
    for module in model.modules():
        memo |= {id(held): held for held in (module._parameters, module._buffers)}
        tensors = (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values())
        memo |= {id(t): t for t in tensors if isinstance(t, torch.Tensor)}
        if isinstance(module, torch.jit.ScriptModule):
            memo[id(module)] = module  # its copy would have tensors of its own
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"fuse: the modules of a model must be copyable by copy.deepcopy (tensors are not copied); got a "
            f"{type(model).__name__} that is not ({type(error).__name__}: {error}); fuse it before it holds that"
        ) from error
    for module in copied.modules():
        unfuse(module)
    return copied


def _fuse_in_place(model: nn.Module) -> _Outcomes:
    found = _Outcomes({}, [])
    forwards: list[tuple[nn.Module, FusedForward]] = []
    opaque: set[type] = set()
    through: set[nn.Module] = set()  # modules whose forward is part of a trace already
    for name, module in _with_forward(model):
        try:
            traced = trace(module, opaque)
        except Untraceable as error:
            if module not in through:
                found.untraced.append((name, type(module).__name__, str(error)))
            continue
        through |= traced.through
        traced.through.update(skipped_identities(traced.graph, module))
        calls = rewrite(traced.graph, module, name)
        for layer, outcomes in calls.items():
            if not any(outcome.fused for outcome in found.calls.get(layer, ())):
                found.calls[layer] = outcomes if any(o.fused for o in outcomes) else found.calls.get(layer, outcomes)
        if any(outcome.fused for outcomes in calls.values() for outcome in outcomes):
            forwards.append((module, FusedForward(module, traced)))
    for module, forward in forwards:  # only now: traces are of the forwards of the classes
        forward.stand_in(module)
    return found


def _with_forward(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that call batch normalizations, or modules that do, from the outermost in."""
    for name, module in model.named_modules():
        inside = any(isinstance(m, _BatchNorm) for m in module.modules() if m is not module)
        opaque = isinstance(module, torch.jit.ScriptModule) or "forward" in module.__dict__
        if inside and not opaque and type(module).forward is not nn.Module.forward:
            yield name, module


def _report(found: _Outcomes, model: nn.Module) -> Report:
    """What became of each batch normalization; the fused ones say it in their repr, too."""
    fused: dict[str, str] = {}
    left: list[Left] = []
    foreign = {name: (name, kind, reason) for name, kind, reason in not_ours(model)}
    norms = norms_of(model)
    for norm in norms:
        outcomes = found.calls.get(norm.name, [Outcome("", "no forward that could be traced calls it")])
        what = " or ".join(dict.fromkeys(o.fused for o in outcomes if o.fused))
        if what:
            fused[norm.name] = what
            fuse_layer(norm.layer, what)
        kind = type(norm.layer).__name__
        for reason in dict.fromkeys(o.reason for o in outcomes if o.reason and norm.name not in foreign):
            left.append((norm.name, kind, f"in one of its calls, {reason}" if what else reason))
    return Report(
        "fused",
        layers=tuple(fused),
        total=len(norms),
        left=(*left, *foreign.values()),
        fused_with=fused,
        untraced=tuple(found.untraced),
    )
