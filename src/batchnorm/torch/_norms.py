"""The batch normalizations of a model: found, chosen by name, and described by records."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._findings import SENTENCES, Say, english
from .._options import shown
from .._records import CONVENTIONS, Doubles, LayerRecord

Only = str | Iterable[str] | Callable[[str, nn.Module], bool] | None  # which layers: names, patterns, or a predicate


THE_MODEL = SENTENCES["itself"]


class Norm(NamedTuple):
    """A layer of a model that normalizes by batch, under all its names: a shared layer has several."""

    names: tuple[str, ...]
    layer: Any

    @property
    def name(self) -> str:
        """The first name; "" is the model itself."""
        return self.names[0]

    def __str__(self) -> str:
        return self.name or THE_MODEL


def layer_said(name: str, say: Say = english) -> str:
    """How a sentence names a layer, of which `Norm` gave the name."""
    return say("itself") if name == THE_MODEL else say("layer", name=name)


def check_model(model: object, who: str) -> None:
    """Refuse what is not a module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise TypeError(
            f"{who}: model must be a torch.nn.Module; got {got}; pass a model itself, not its class, its "
            "state_dict or a list of models"
        )


def check_readable(model: object, who: str) -> None:
    """Refuse what is not a module, and one with layers that TorchScript has compiled: none of them is found."""
    check_model(model, who)
    for module in model.modules():  # type: ignore[attr-defined]
        refuse_script(module, who)


def refuse_script(module: nn.Module, who: str) -> None:
    """Refuse a batch normalization of TorchScript's."""
    if is_script(module):
        raise ValueError(
            f"{who}: a module that TorchScript has compiled is no layer that can be read or set; got a scripted or "
            f"traced {module.original_name}; use the model that torch.jit was given"
        )


def is_script(module: nn.Module) -> bool:
    """Whether a module is a batch normalization that TorchScript has compiled."""
    return isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in module.original_name


def norms_of(model: nn.Module) -> list[Norm]:
    """The layers of a model that derive from torch.nn's batch normalization, ours among them, each once."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            names.setdefault(module, []).append(name)
    return [Norm(tuple(its), layer) for layer, its in names.items()]


def name_of(layer: nn.Module, model: nn.Module) -> str:
    """How a model's layer is called: for refusals, since the names of all layers are looked up."""
    return next(str(norm) for norm in norms_of(model) if norm.layer is layer)


def chosen(norms: list[Norm], only: Only, who: str) -> list[Norm]:
    """Those that `only` says: all; by a predicate; or by names, of layers or of what they are in, and patterns."""
    if only is None:
        return norms
    if callable(only):
        return [norm for norm in norms if any(only(name, norm.layer) for name in norm.names)]
    patterns = [only] if isinstance(only, str) else only
    if not isinstance(patterns, Iterable):
        raise TypeError(
            f"{who}: only must be names or patterns of layers, or a function of a name and a module; got "
            f"{shown(only)}; use a list of names"
        )
    found: dict[int, Norm] = {}
    for pattern in patterns:
        fits = [norm for norm in norms if any(_fits(name, pattern) for name in norm.names)]
        if not fits:
            near = get_close_matches(str(pattern), [name for norm in norms for name in norm.names], 1)
            raise ValueError(
                f"{who}: only names no batch normalization of this model; got {pattern!r}; "
                + (f"did you mean {near[0]!r}?" if near else "see model.named_modules()")
            )
        found |= {id(norm.layer): norm for norm in fits}
    return [norm for norm in norms if id(norm.layer) in found]


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def record_of(norm: Norm) -> LayerRecord:
    """Describe a layer as it is now; what it has not, or has no values for (meta), is None."""
    layer = norm.layer
    count = layer.num_batches_tracked
    return LayerRecord(
        name=str(norm),
        kind=type(layer).__name__,
        channels=layer.num_features,
        axis=1,
        eps=float(layer.eps),
        momentum="cumulative" if layer.momentum is None else float(layer.momentum),
        correction=correction_of(layer),
        mean=_doubles(layer.running_mean),
        var=_doubles(layer.running_var),
        weight=_doubles(layer.weight),
        bias=_doubles(layer.bias),
        batches=None if count is None or count.is_meta else int(count),
        dtype=None if layer.running_var is None else str(layer.running_var.dtype).removeprefix("torch."),
    )


def correction_of(layer: Any) -> Literal[0, 1]:
    """1 where a layer stores the unbiased variance, as torch.nn's do."""
    return 0 if getattr(layer, "running_correction", CONVENTIONS["PyTorch"].correction) == 0 else 1


def _doubles(t: torch.Tensor | None) -> Doubles | None:
    """A copy in float64."""
    if t is None or t.is_meta:
        return None
    return np.array(t.detach().cpu().double().numpy())
