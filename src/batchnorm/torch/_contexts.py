"""Contexts over a model: inside, an attribute of its batch normalizations has another value; afterwards, its own again.

Contexts nest, may be left in any order and by exceptions, and may be open in several threads: of those that are open
over a layer the one that was entered last decides, and when all are left, the attribute is what it was, or absent.
Copies of a layer are in no context: they are made of what it is outside.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from ._layers import _Extended
from ._norms import Norm, Only, check_model, chosen, layer_said, norms_of, refuse_script


class Setting(NamedTuple):
    """An attribute of a layer, and its value inside of a context."""

    layer: nn.Module
    name: str
    value: Any


class _Open:
    """The contexts that are open over one attribute of a layer, in the order in which they were entered."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.values: dict[object, Any] = {}  # by the entry


_ABSENT = object()
LOCK = threading.RLock()  # of what all contexts know
_open: dict[tuple[int, str], _Open] = {}  # by the layer's id: whoever is inside holds the layer


class _Copied:
    """What `copy.deepcopy` and `pickle` find in a layer that is inside: what they make a copy of."""

    __slots__ = ("layer", "times")

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.times = layer, 0  # inside: how many times

    def __call__(self, protocol: Any) -> Any:
        made: Any = type(self.layer).__reduce_ex__(self.layer, protocol)
        new, args, state, *rest = made
        return new, args, outside(self.layer, state) if isinstance(state, dict) else state, *rest


_COPIED = "__reduce_ex__"  # which they look for in the object first


class _Entry(NamedTuple):
    """One time that a context was entered."""

    thread: int
    settings: list[Setting]
    key: object


class Context(contextlib.ContextDecorator):
    """Settings that hold inside of a `with` block."""

    def __init__(self, who: str, settings: list[Setting]) -> None:
        self._who, self._settings = who, settings
        self._layers = {id(setting.layer): setting.layer for setting in settings}
        self._entries: list[_Entry] = []

    def _entered(self) -> list[Setting]:
        """What a block that is entered now sets: values of its own, where it gathers something."""
        return self._settings

    def _left(self, settings: list[Setting], failed: bool) -> None:
        """Do what remains when the layers are given back, with what the block had set."""

    def __enter__(self) -> None:
        entry = _Entry(threading.get_ident(), self._entered(), object())
        with LOCK:
            for layer, name, value in entry.settings:
                own = layer.__dict__
                key = id(layer), name
                if key not in _open:
                    _open[key] = _Open(own.get(name, _ABSENT))
                _open[key].values[entry.key] = value
                own[name] = value
            for layer in self._layers.values():
                own = layer.__dict__
                if _COPIED not in own:
                    own[_COPIED] = _Copied(layer)
                own[_COPIED].times += 1
            self._entries.append(entry)

    def __exit__(self, kind: object, *_: object) -> None:
        with LOCK:
            here = threading.get_ident()
            if not self._entries:
                raise RuntimeError(
                    f"{self._who}: a block is left once for each time that it was entered; got one more __exit__; use "
                    "with, or contextlib.ExitStack"
                )
            entry = next((e for e in reversed(self._entries) if e.thread == here), self._entries[-1])
            self._entries.remove(entry)
            for layer, name, _value in entry.settings:
                key = id(layer), name
                values = _open[key].values
                del values[entry.key]
                now = next(reversed(values.values())) if values else _open.pop(key).before
                if now is _ABSENT:
                    layer.__dict__.pop(name, None)
                else:
                    layer.__dict__[name] = now
            for layer in self._layers.values():
                copied = layer.__dict__[_COPIED]
                copied.times -= 1
                if not copied.times:
                    del layer.__dict__[_COPIED]
            self._left(entry.settings, kind is not None)

    def __repr__(self) -> str:
        n = len(self._layers)
        return f"<batchnorm.torch.{self._who}: {n} layer{'' if n == 1 else 's'}{', open' if self._entries else ''}>"


def before(layer: nn.Module, name: str, default: Any = None) -> Any:
    """An attribute of the layer itself, as it is outside of all contexts."""
    is_open = _open.get((id(layer), name))
    value = layer.__dict__.get(name, _ABSENT) if is_open is None else is_open.before
    return default if value is _ABSENT else value


def outside(layer: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A state of a layer, without what contexts have set."""
    with LOCK:
        own = {name: before(layer, name, _ABSENT) if (id(layer), name) in _open else v for name, v in state.items()}
    return {name: value for name, value in own.items() if value is not _ABSENT and name != _COPIED}


def check_outside(norms: Iterable[Norm], who: str, among: Iterable[str] = ()) -> None:
    """Refuse layers that are inside of contexts, but of those that set only what is among some attributes."""
    if not _open:
        return
    inside = {layer for layer, name in _open if name not in among}
    for norm in norms:
        if id(norm.layer) in inside:
            raise ValueError(
                f"{who}: a block such as that of hold, masked, one_update or adapt gives its layers back as they were "
                f"when it began; got {layer_said(str(norm))} inside of one; call {who} before or after the block"
            )


def layers_of(model: nn.Module, only: Only, who: str) -> list[nn.Module]:
    """The batch normalizations of a model that a context is to serve, each once."""
    check_model(model, who)
    layers = _layers(model, who) if only is None else [norm.layer for norm in chosen(norms_of(model), only, who)]
    for layer in layers:
        if isinstance(layer, LazyModuleMixin):  # no longer, after its first forward
            raise ValueError(
                f"{who}: a lazy layer makes its statistics in its first forward; got {type(layer).__name__} before "
                "that forward; call the model once before"
            )
    return layers


def _layers(model: nn.Module, who: str) -> list[nn.Module]:
    """All of them: `norms_of` without names, which take most of its time."""
    found: list[nn.Module] = []
    seen: set[nn.Module | None] = {None}
    to_see: list[nn.Module | None] = [model]
    while to_see:
        module = to_see.pop()
        if module in seen:
            continue
        seen.add(module)
        assert module is not None
        if isinstance(module, _BatchNorm):
            found.append(module)
        else:
            refuse_script(module, who)
        to_see += module._modules.values()
    return found


# --- what contexts set, by the kind of layer ---


def held(layer: nn.Module) -> list[Setting]:
    """What keeps a layer's statistics and count as they are, and lets it normalize with what it does."""
    if isinstance(layer, _Extended):
        return [Setting(layer, "update_running_stats", False)]
    # The first is read in each forward: in training no buffers take part then. The second tells that it is `hold`.
    return [Setting(layer, "track_running_stats", False), Setting(layer, "_held", True)]


def hold(model: nn.Module, *, only: Only = None) -> contextlib.AbstractContextManager[None]:
    """Inside ``with hold(model):`` running statistics and counts do not change; outputs and gradients are the same.

    Use it for forwards that should not count: the second one of SAM, adversarial examples, inner loops of
    meta-learning, passes that warm up or measure. Layers normalize with what they would use without it: the batch in
    training, the running statistics in evaluation.

    It works for torch.nn's layers, for their subclasses that look at `track_running_stats` as torch.nn's do (such as
    timm's), and for ours. It holds for the model, so for all threads that run it. Blocks nest, and may be left by
    exceptions.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too. Layers that it gets later are not held.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.

    Returns
    -------
    context manager
        May be entered again, and used as a decorator.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If `only` names no layer; for lazy layers without parameters.

    Notes
    -----
    A copy that is made inside, by `copy.deepcopy` or `pickle`, is not held: it is as the model is outside.

    At the end of a block its layers get back the switches that they had when it began, as NumPy's do at the end of
    `numpy.errstate`: what you assign to `update_running_stats` or `track_running_stats` inside holds until then.

    `torch.utils.checkpoint` runs a forward again during the backward. Our layers do not move their statistics then.
    Those of torch.nn do, so call the backward inside the block, too.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = torch.nn.BatchNorm1d(1)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> with bnt.hold(layer):
    ...     y = layer(x)
    >>> y.flatten().tolist() == layer(x).flatten().tolist(), int(layer.num_batches_tracked)
    (True, 1)
    """
    layers = layers_of(model, only, "hold")
    return Context("hold", [setting for layer in layers for setting in held(layer)])
