"""`freeze`, `unfreeze`, `frozen`: layers whose statistics, weight and bias stay, whatever happens around them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from .._options import NormalizeWith, check_without_running
from . import _options
from ._contexts import check_outside
from ._convert import is_other
from ._layers import _Extended
from ._norms import Norm, Only, check_readable, chosen, norms_of
from ._report import counted, lines_of
from ._sync import OURS, SyncBatchNorm, why_unfit

Model = TypeVar("Model", bound=nn.Module)

_SWITCHES = _options.FREEZE
_PARAMETERS = ("weight", "bias")


class FrozenLayer(NamedTuple):
    """One layer that `freeze` froze, as `frozen` lists them."""

    name: str
    kind: str
    normalize_with: NormalizeWith
    update_running_stats: bool | None
    train_affine: bool
    how: str


class _EvaluationOnly:
    """Stands as `train` in a layer of a class of its own: the layer stays in evaluation, what is in it follows."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.mode = layer.training

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.layer).train(self.layer, mode)
        self.mode = self.layer.training
        self.layer.training = False
        return self.layer


def freeze(
    model: Model,
    *,
    normalize_with: NormalizeWith = "running",
    update_running_stats: bool | None = False,
    train_affine: bool = False,
    only: Only = None,
    verbose: bool = True,
) -> Model:
    """Freeze the batch normalizations of a model, in place, until `unfreeze`.

    With the defaults, the outputs of a frozen layer depend neither on the mode nor on the other samples of a batch, and
    no number of steps changes its `state_dict`. It keeps nothing of the input's size for the backward; with
    ``activation="relu"``, only its output.

    It stays frozen under ``train()``, ``layer.training = True``, deepcopy, pickle, `load_state_dict`, checkpointing and
    torch.compile. The parameters stay the objects that they are, so an optimizer goes on; hooks and the names of the
    `state_dict` stay, too.

    Parameters
    ----------
    model
        Any module. Layers of torch.nn become ours, as in `convert`, and ours get the three switches below. A class that
        derives from torch.nn's keeps its own forward, and stays in evaluation whatever ``train()`` asks for; only
        assigning to its `training` undoes that.
    normalize_with, update_running_stats
        As of `BatchNorm1d`. For a class that derives from torch.nn's, only "running" and False.
    train_affine
        False: weight and bias get no gradient (``requires_grad`` is off and ``grad`` None), so no optimizer moves them.
    only
        Names of layers or of modules that contain them, patterns such as ``"backbone.*"``, or a function of a name and
        a module. None: all.
    verbose
        Print what was frozen and how, and what was left and why.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError, ValueError
        For a layer without running statistics or without parameters yet, and for a model in DistributedDataParallel,
        which would wait for the gradients. Nothing is changed then.

    Notes
    -----
    A second call with other switches changes the switches; `unfreeze` still restores what was there before the first.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> model = bnt.freeze(model)
    froze 1 batch normalization
    >>> x = torch.randn(4, 3, 5, 5)
    >>> torch.equal(model.train()(x)[:1], model.eval()(x)[:1])
    True
    >>> model[1].num_batches_tracked
    tensor(0)
    >>> model = bnt.unfreeze(model)
    unfroze 1 batch normalization
    >>> model[1]
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    check_readable(model, "freeze")
    given = {
        "normalize_with": normalize_with,
        "update_running_stats": update_running_stats,
        "train_affine": train_affine,
    }
    switches = {name: _SWITCHES[name].checked(value, "freeze") for name, value in given.items()}
    norms = chosen(norms_of(model), only, "freeze")
    check_outside(norms, "freeze")
    for norm in norms:
        _check_layer(norm, switches)
    if not switches["train_affine"]:
        _check_parallel(model, "freeze", any(p.requires_grad for norm in norms for p in _own(norm.layer).values()))
    for norm in norms:
        _freeze(norm.layer, switches)
    if verbose:
        print("\n".join(_said(model, norms, only)))
    return model


def _said(model: nn.Module, norms: list[Norm], only: Only) -> list[str]:
    """What was frozen, and with what reserve; what was left."""
    kept = [norm for norm in norms if is_kept_in_evaluation(norm.layer)]
    others = [] if only is not None else [(name, m) for name, m in model.named_modules() if is_other(m)]
    reserve, reason = (
        "code that writes to its `training` undoes that",
        "the class is not torch.nn's, whatever it computes",
    )
    return [
        f"froze {counted(len(norms))}",
        *lines_of([(norm.name, type(norm.layer).__name__, reserve) for norm in kept], "kept in evaluation"),
        *lines_of([(name, type(m).__name__, reason) for name, m in others]),
    ]


def unfreeze(model: Model, *, only: Only = None, verbose: bool = True) -> Model:
    """Undo `freeze`, in place: each layer is what it was before the first call, but for what was done to it since.

    Class, switches, mode and `requires_grad` are those of before; state, hooks and optimizer were never touched.

    Parameters
    ----------
    model
        Any module; layers that `freeze` did not freeze are left.
    only
        As of `freeze`.
    verbose
        Print how many layers were frozen.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError, ValueError
        For a model in DistributedDataParallel that was built without the gradients of these parameters.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = bnt.freeze(torch.nn.BatchNorm1d(3), verbose=False)
    >>> bnt.unfreeze(model)
    unfroze 1 batch normalization
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    check_readable(model, "unfreeze")
    norms = [norm for norm in chosen(norms_of(model), only, "unfreeze") if _is_frozen(norm.layer)]
    check_outside(norms, "unfreeze")
    found = [norm.layer for norm in norms]
    _check_parallel(model, "unfreeze", any(_trained_before(layer) for layer in found))
    for layer in found:
        _unfreeze(layer)
    if verbose:
        print(f"unfroze {counted(len(found))}")
    return model


def frozen(model: nn.Module) -> list[FrozenLayer]:
    """List the layers of a model that `freeze` froze, and how.

    Parameters
    ----------
    model
        Any module.

    Returns
    -------
    list of FrozenLayer
        Name (of a shared layer the first), class, the three switches, and what keeps the layer frozen: "switches", or,
        for a class that derives from torch.nn's, "train()".

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4))
    >>> model = bnt.freeze(model, only="1", verbose=False)
    >>> [(layer.name, layer.how) for layer in bnt.frozen(model)]
    [('1', 'switches')]
    """
    check_readable(model, "frozen")
    return [_described(norm) for norm in norms_of(model) if _is_frozen(norm.layer)]


def _described(norm: Norm) -> FrozenLayer:
    layer = norm.layer
    if is_kept_in_evaluation(layer):
        trained = any(p.requires_grad for p in _own(layer).values())
        return FrozenLayer(norm.name, type(layer).__name__, "running", False, trained, "train()")
    normalize_with, update, train_affine = (getattr(layer, name) for name in _SWITCHES)
    return FrozenLayer(norm.name, type(layer).__name__, normalize_with, update, train_affine, "switches")


# --- one layer: `_before_freeze` in its dictionary says how it was ---


def _is_frozen(layer: Any) -> bool:
    return "_before_freeze" in layer.__dict__


def is_kept_in_evaluation(layer: Any) -> bool:
    """Whether a layer of a class of its own is frozen."""
    return isinstance(layer.__dict__.get("train"), _EvaluationOnly)


def _becomes_ours(layer: Any) -> bool:
    return type(layer) in (*OURS, nn.SyncBatchNorm) and not why_unfit(layer)


def _check_layer(norm: Norm, switches: dict[str, Any]) -> None:
    """Refuse a layer that cannot be frozen so."""
    layer, who = norm.layer, f"freeze: {norm} ({type(norm.layer).__name__})"
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(f"{who} has no parameters yet, so nothing to keep; call the model once, then freeze")
    if layer.running_mean is None:
        for name, value in switches.items():
            check_without_running(name, value, who)
    kept = switches["normalize_with"] == "running" and switches["update_running_stats"] is False
    if not kept and not isinstance(layer, _Extended) and not _becomes_ours(layer):
        raise ValueError(
            f"{who} is a class of its own, which has no switches: it can only be kept in evaluation, with "
            f"normalize_with='running' and update_running_stats=False; got {switches['normalize_with']!r} and "
            f"{switches['update_running_stats']!r}; leave it out with only="
        )


def _check_parallel(model: nn.Module, who: str, changes: bool) -> None:
    """Refuse to change which parameters need gradients where DistributedDataParallel has asked for them already."""
    if changes and any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{who}: DistributedDataParallel exchanges the gradients of the parameters that needed them when it was "
            f"built; got a model that is in one, and {who} changes which do. Call {who}(ddp.module), and build "
            "DistributedDataParallel again"
        )


def _own(layer: Any) -> dict[str, nn.Parameter]:
    """The parameters behind weight and bias; not those of other modules in a class of its own."""
    named = layer.named_parameters()
    return {name: p for name, p in named if name in _PARAMETERS or name.startswith("parametrizations.")}


def _freeze(layer: Any, switches: dict[str, Any]) -> None:
    if not _is_frozen(layer):
        own = layer.__dict__
        was: dict[str, Any] = {name: own[name] for name in _SWITCHES if name in own}
        own["_before_freeze"] = {"class": type(layer), "switches": was, "requires_grad": {}}
        if type(layer) is nn.SyncBatchNorm and _becomes_ours(layer):
            own["_kind"] = nn.SyncBatchNorm
        if _becomes_ours(layer):
            layer.__class__ = OURS.get(type(layer), SyncBatchNorm)
        own["_before_freeze"]["became"] = type(layer)
        if not isinstance(layer, _Extended):
            layer.train = _EvaluationOnly(layer)
            layer.training = False
    if isinstance(layer, _Extended):
        for name, value in switches.items():
            setattr(layer, name, value)
    if switches["train_affine"]:
        _train_again(layer)
    else:
        remembered = layer._before_freeze["requires_grad"]
        for name, parameter in _own(layer).items():
            remembered.setdefault(name, parameter.requires_grad)
            parameter.requires_grad_(False)
            parameter.grad = None


def _train_again(layer: Any) -> None:
    remembered = layer._before_freeze["requires_grad"]
    for name, parameter in _own(layer).items():
        if name in remembered:
            parameter.requires_grad_(remembered.pop(name))


def _trained_before(layer: Any) -> bool:
    remembered = layer._before_freeze["requires_grad"]
    return any(remembered.get(name, False) and not p.requires_grad for name, p in _own(layer).items())


def _unfreeze(layer: Any) -> None:
    _train_again(layer)
    own = layer.__dict__
    before = own.pop("_before_freeze")
    if is_kept_in_evaluation(layer):
        layer.training = own.pop("train").mode
    for name in _SWITCHES:
        if name in before["switches"]:
            own[name] = before["switches"][name]
        else:
            own.pop(name, None)
    if type(layer) is before["became"] is not before["class"]:  # else it was converted since: that stays
        own.pop("_kind", None)
        layer.__class__ = before["class"]
