"""What a forward read from the process while it was traced, and whether that still is so.

A graph stands for a forward as long as the forward would decide the same again. So a trace notes every attribute and
every global that it came upon, with a picture of the value, and each call of the graph compares.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import pickle
import random
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

_MOST = 2000  # values in one picture: to compare more would cost more than fusing saves
_SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, slice)
_LIBRARIES = {"torch", "numpy", "batchnorm", *sys.stdlib_module_names}
_LOOKED_INTO = {"argparse", "collections", "types"}  # modules of Python whose objects hold what is put into them
_NOT_COMPARED = {"_io", "_thread", "contextvars", "ctypes", "io", "multiprocessing", "queue", "threading", "weakref"}
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)


class Unreadable(Exception):
    """A value that no picture can be taken of; the message says what it is."""


class Held(enum.Enum):
    """What stands for the value of an attribute where the value itself does not matter."""

    NOTHING = enum.auto()
    TENSOR = enum.auto()  # any: a graph reads it anew


def is_library(module: str | None) -> bool:
    """Whether a module's code and state are no matter of the model: PyTorch, NumPy, Python, this package."""
    return (module or "").partition(".")[0] in _LIBRARIES or (module or "").startswith("namedtuple_")


def attribute(module: nn.Module, name: str) -> Any:
    """What a module itself, not its class, has under a name; its children are compared as a whole."""
    own = module.__dict__
    if name in own:
        return Held.TENSOR if isinstance(own[name], torch.Tensor) else own[name]
    for tensors in (own["_parameters"], own["_buffers"]):
        if name in tensors:
            return None if tensors[name] is None else Held.TENSOR
    return Held.NOTHING


def of_class(kind: type, name: str) -> Any:
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return Held.NOTHING


def global_value(names: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value of ``a.b.c``."""
    value = names.get(path[0], Held.NOTHING)
    for name in path[1:]:
        value = getattr(value, name, Held.NOTHING)
    if isinstance(value, types.FunctionType) and "__fx_already_patched" in value.__dict__:
        return inspect.unwrap(value)  # torch.fx.wrap puts another in its place while a trace lasts
    return value


def _random_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return generator.get_state()
    return copy.deepcopy(generator.bit_generator.state)


def _set_random_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _are_same(a: Any, b: Any) -> bool:
    """Whether two states of a generator are the same: nests of numbers and arrays."""
    if isinstance(a, dict):
        return all(_are_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(map(_are_same, a, b))
    return bool((np.asarray(a) == np.asarray(b)).all())


class _Is:
    """Equal to a picture of the very same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        if isinstance(self.value, types.ModuleType):
            return _imported, (self.value.__name__,)
        return _Is, (self.value,)


def _imported(name: str) -> _Is:
    return _Is(sys.modules.get(name))


class _Camera:
    """Takes a picture: equal ones are of values that a forward cannot tell apart."""

    def __init__(self) -> None:
        self.taken: dict[int, Any] = {}
        self.generators: list[Any] = []
        self.backups: list[Callable[[], None]] = []  # put containers back as they were

    def picture(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return kind, value
        if id(value) in self.taken:
            return "again", self.taken[id(value)][0]
        if len(self.taken) >= _MOST:
            raise Unreadable("holds too much to be compared in each call")
        self.taken[id(value)] = len(self.taken), value  # held, so that no other value gets its id
        if isinstance(value, (nn.Module, torch.Tensor, torch.fx.Proxy, type, enum.Enum)):
            return _Is(value)
        if isinstance(value, types.ModuleType):
            return self._of_module(value)
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return self._of_items(value)
        if isinstance(value, dict):
            return self._of_dict(value)
        return self._of_object(value)

    def _of_module(self, value: types.ModuleType) -> Any:
        if not is_library(value.__name__):
            raise Unreadable(f"is the module {value.__name__}")
        return _Is(value)

    def _of_items(self, value: Any) -> Any:
        if isinstance(value, (list, deque)):
            self.backups.append(functools.partial(_put_back_list, value, list(value)))
        elif isinstance(value, set):
            self.backups.append(functools.partial(_put_back_set, value, set(value)))
        if isinstance(value, (set, frozenset)) and all(type(item) in _SCALARS for item in value):
            return type(value), frozenset((type(item), item) for item in value)
        if isinstance(value, (set, frozenset)):
            raise Unreadable("is a set of more than plain values")
        return type(value), [self.picture(item) for item in value]

    def _of_dict(self, value: dict[Any, Any]) -> Any:
        self.backups.append(functools.partial(_put_back_dict, value, dict(value)))
        return type(value), [(self.picture(key), self.picture(item)) for key, item in value.items()]

    def _of_object(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod)):
            return self._of_callable(value)
        if isinstance(value, (bytearray, array)):
            return kind, bytes(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.size > _MOST:
                raise Unreadable("is an array that is compared too slowly")
            return value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, _RANDOM):
            self.generators.append(value)
            return _Is(value)
        changes = kind.__module__.partition(".")[0] in _NOT_COMPARED or hasattr(kind, "__next__")
        if changes or hasattr(kind, "__enter__"):
            raise Unreadable(f"is of the class {kind.__name__}, whose state cannot be compared")
        looked_into = kind.__module__ in _LOOKED_INTO or not is_library(kind.__module__)
        if not looked_into or not hasattr(value, "__dict__"):
            return _Is(value)  # its methods are seen where they are called
        own = [name for base in kind.__mro__ if not is_library(base.__module__) for name in vars(base)]
        plain = {name: getattr(kind, name) for name in own if type(getattr(kind, name, Held.NOTHING)) in _SCALARS}
        return _Is(value), self.picture(vars(value)), self.picture(plain)

    def _of_callable(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return types.MethodType, self.picture(value.__func__), self.picture(value.__self__)
        if isinstance(value, functools.partial):
            return functools.partial, self.picture(value.func), self.picture(value.args), self.picture(value.keywords)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value), self.picture(value.__func__)
        if is_library(value.__globals__.get("__name__")):
            return _Is(value)
        names = value.__code__.co_freevars
        cells = dict(zip(names, value.__closure__ or (), strict=True))
        held = [_held(cell) for name, cell in cells.items() if name != "__class__"]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return _Is(value), *map(self.picture, [*held, *(d for d in defaults if d)])


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _put_back_list(value: Any, items: list[Any]) -> None:
    if len(value) != len(items) or any(a is not b for a, b in zip(value, items, strict=True)):
        value.clear()
        value.extend(items)


def _put_back_set(value: set[Any], items: set[Any]) -> None:
    if value != items:
        value.clear()
        value.update(items)


def _put_back_dict(value: dict[Any, Any], items: dict[Any, Any]) -> None:
    if list(value) != list(items) or any(value[key] is not items[key] for key in items):
        value.clear()
        value.update(items)


class _Read:
    """A value as it was, and how to look for it again."""

    def __init__(self, said: str, look: Callable[..., Any], *where: Any) -> None:
        self.said, self.look, self.where = said, look, where
        self.value = look(*where)
        self.camera: _Camera | None = _Camera()  # until the trace is over
        self.picture = self.camera.picture(self.value)
        self.is_plain = type(self.picture) is _Is or self.picture[0] in _SCALARS

    def holds(self) -> bool:
        now = self.look(*self.where)
        if now is self.value and self.is_plain:
            return True
        if torch.compiler.is_compiling() and not self.is_plain:
            return False  # a compiler cannot look into it, and need not: it compiles the forward of the class
        try:
            return bool(_Camera().picture(now) == self.picture)
        except Unreadable:
            return False


class _Shared(_Read):
    """Of a class, or of a Python module: a copy of the model reads the very same, a file says where to look."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> Any:
        first, *rest = self.where
        named = first["__name__"] if isinstance(first, dict) else first
        try:
            return _loaded, (pickle.dumps((self.said, self.look, named, rest, self.value, self.picture)),)
        except Exception:  # pickle raises many: what has no name cannot be found again, so this will not hold
            return _loaded, (b"",)


def _loaded(state: bytes) -> _Shared:
    read = _Shared("", lambda: None)
    read.camera = None
    try:
        read.said, read.look, first, rest, read.value, read.picture = pickle.loads(state)
        read.where = (sys.modules[first].__dict__ if isinstance(first, str) else first, *rest)
    except Exception:  # nor can what another process does not have
        read.picture = Held.NOTHING
    read.is_plain = False
    return read


class Reads:
    """All that one trace came upon."""

    def __init__(self) -> None:
        self.all: dict[tuple[Any, ...], _Read] = {}
        self.children: dict[nn.Module, dict[str, nn.Module | None]] = {}
        self.random: list[tuple[str, Any, Any]] = []  # generators, and their states
        for said, generator in (
            ("Python's random", random._inst),
            ("numpy.random", np.random.mtrand._rand),
            ("PyTorch's", torch.default_generator),
        ):
            self.random.append((f"random numbers ({said})", generator, _random_state(generator)))

    def of_module(self, module: nn.Module, name: str) -> None:
        """An attribute that a module has, or that its class has, or that neither has."""
        owners = [base for base in type(module).__mro__ if name in base.__dict__]
        if owners and name not in module.__dict__:
            if is_library(owners[0].__module__):
                return
            self._note(_Shared, (type(module), name), f"{owners[0].__name__}.{name}", of_class, type(module), name)
        self._note(_Read, (id(module), name), f"self.{name}", attribute, module, name)

    def of_children(self, module: nn.Module) -> None:
        self.children.setdefault(module, dict(module.__dict__["_modules"]))

    def of_forward(self, module: nn.Module) -> None:
        """The function that a module's class runs."""
        kind = type(module)
        if not is_library(kind.__module__):
            self._note(_Shared, (kind, "forward"), f"{kind.__name__}.forward", of_class, kind, "forward")

    def of_globals(self, names: dict[str, Any], path: tuple[str, ...]) -> None:
        self._note(_Shared, (id(names), path), ".".join(path), global_value, names, path)

    def of_switch(self, ask: Callable[[], Any]) -> None:
        self._note(_Read, (ask,), f"torch.{ask.__name__}", ask)

    def _note(self, kind: type[_Read], key: tuple[Any, ...], said: str, look: Any, *where: Any) -> None:
        if key in self.all:
            return
        try:
            read = self.all[key] = kind(said, look, *where)
        except Unreadable as error:
            raise Unreadable(f"{said}, which {error}") from error
        assert read.camera is not None
        for generator in read.camera.generators:
            self.random.append((f"random numbers ({said})", generator, _random_state(generator)))

    def changed(self) -> str:
        """What the forward changed, of what it read, in words; it is put back. The trace is over then."""
        changed = [read.said for read in self.all.values() if not read.holds()]
        for read in self.all.values():
            assert read.camera is not None
            for put_back in read.camera.backups:
                put_back()
            read.camera = None
        for said, generator, state in self.random:
            if not _are_same(_random_state(generator), state):
                changed.append(said)
                _set_random_state(generator, state)
        self.random.clear()
        return changed[0] if changed else ""

    def hold(self) -> bool:
        """Whether a forward would read the same now."""
        for module, children in self.children.items():
            if module._modules != children:
                return False
        return all(read.holds() for read in self.all.values())
